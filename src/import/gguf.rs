//! GGUF → a checkpoint: TQ1_0, TQ2_0 and Q2_0 as the ternary weights that they are, plain elements as they lie, and what
//! llama-quantize makes of embeddings and heads as floats, in a temporary file; of one
//! file or of all `-00001-of-0000N.gguf`. What [`crate::export`] said of shapes, types and granularity is heeded. Not
//! here: the bytes ([`crate::gguf`]); other quantized types, which are refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::copies::Copies;
use crate::error::CheckpointProblem;
use crate::gguf::{Block, Described, FORMAT, Header, Kind, METADATA_KEY, Quantized, TENSORS_KEY, Tensor, Value};
use crate::source::{CheckpointBuilder, TernaryLayout, TernaryPlane};
use crate::{Checkpoint, Dtype, Error, Granularity, Isa, MappedFile, Result, limits};

/// What is true of the file alone.
const OF_THE_FILE: [&str; 5] =
    ["general.alignment", "general.file_type", "general.quantization_version", METADATA_KEY, TENSORS_KEY];

/// Opens a file, or all of them where it is one of several.
pub(super) fn open(path: &Path, file: MappedFile) -> Result<Checkpoint> {
    let count = Header::parse(&file).map_err(foreign(path))?.count("split.count").unwrap_or(1);
    let (mut builder, mut planes) = (CheckpointBuilder::new(path), Planes::default());
    if count <= 1 {
        add(&mut builder, &mut planes, file)?;
    } else {
        for number in 1..=count {
            let file = MappedFile::open(sibling(path, number, count)?)?;
            check_number(&file, number, count)?;
            add(&mut builder, &mut planes, file)?;
        }
    }
    for (weight, of_weight) in planes.by_weight {
        let taken = planes.names.contains(&weight);
        join(&mut builder, &weight, of_weight, taken)?;
    }
    builder.finish()
}

/// A file of another model, or another part under that name, would give a checkpoint that nobody made.
fn check_number(file: &MappedFile, number: u64, count: u64) -> Result<()> {
    let header = Header::parse(file).map_err(foreign(file.path()))?;
    // Counted from 0 there.
    let says = ["split.no", "split.count"].map(|key| header.count(key));
    if says == [Some(number - 1), Some(count)] {
        return Ok(());
    }
    let [no, of] = says.map(|value| value.map_or("missing".to_owned(), |value| value.to_string()));
    Err(foreign(file.path())(format!(
        "its split.no is {no} and its split.count {of}, expected {} and {count}; download the files again",
        number - 1
    )))
}

/// What the files say are planes of weights.
#[derive(Default)]
struct Planes {
    by_weight: BTreeMap<String, Vec<Plane>>,
    /// Of all tensors.
    names: BTreeSet<String>,
}

struct Plane {
    name: String,
    number: u64,
    dtype: Dtype,
    shape: Vec<usize>,
    layout: Blocks,
    file: usize,
    range: Range<usize>,
    /// How many there should be.
    count: u64,
}

/// Adds planes as one tensor, if they are all there and alike, and no other tensor has its name; else each as what it is.
fn join(builder: &mut CheckpointBuilder, weight: &str, mut planes: Vec<Plane>, taken: bool) -> Result<()> {
    planes.sort_by_key(|plane| plane.number);
    let form = |plane: &Plane| (plane.count, plane.dtype, plane.shape.clone(), plane.layout.unit_len());
    let (dtype, shape) = (planes[0].dtype, planes[0].shape.clone());
    let alike = planes.iter().all(|plane| form(plane) == form(&planes[0]));
    if taken {
        builder.warn(format!(
            "the planes of `{weight}` stay apart, because there is a tensor of that name too; rename one of them to get their sum"
        ));
    } else if alike && planes.iter().map(|plane| plane.number).eq(0..planes[0].count) {
        let planes = planes.into_iter().map(|Plane { layout, file, range, .. }| TernaryPlane {
            layout: Box::new(layout),
            file,
            range,
        });
        return builder.ternary_planes(weight, (dtype, &shape), planes.collect());
    }
    for Plane { name, dtype, shape, layout, file, range, .. } in planes {
        builder.ternary(&name, (dtype, &shape), Box::new(layout), file, range)?;
    }
    Ok(())
}

fn foreign(path: &Path) -> impl Fn(String) -> Error {
    move |message| super::foreign(path, FORMAT, message)
}

/// The path of number `number` of several files, one of which is `path`.
fn sibling(path: &Path, number: u64, count: u64) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(&format!("-of-{count:05}.gguf"));
    let stem = stem.and_then(|stem| stem.rsplit_once('-')).filter(|(_, digits)| digits.len() == 5);
    let (stem, _) = stem.ok_or_else(|| {
        foreign(path)(format!(
            "it is one of {count} files, expected a name like `model-00001-of-{count:05}.gguf` to find the others; \
             rename them, or merge them with llama-gguf-split --merge"
        ))
    })?;
    Ok(path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf")))
}

fn add(builder: &mut CheckpointBuilder, planes: &mut Planes, file: MappedFile) -> Result<()> {
    let path = file.path().to_path_buf();
    let header = Header::parse(&file).map_err(foreign(&path))?;
    let number = builder.file(file.clone());
    let described: BTreeMap<String, Described> = json(&header, TENSORS_KEY).map_err(foreign(&path))?;
    let mut floats = Floats::new(&path, &file);
    for tensor in &header.tensors {
        let nothing = Described::default();
        let described = described.get(tensor.name).unwrap_or(&nothing);
        add_tensor(builder, planes, &mut floats, tensor, described, number, &foreign(&path))?;
    }
    floats.finish(builder)?;
    let mut arrays = Vec::new();
    for key in header.keys.iter().filter(|key| !OF_THE_FILE.contains(&key.name) && !key.name.starts_with("split.")) {
        match text(key.value) {
            Some(text) => builder.metadata(key.name, &text),
            None => arrays.push(key.name),
        }
    }
    if let [first, ..] = arrays[..] {
        builder.warn(format!(
            "{}: {} keys that are arrays (or no text) are not kept (`{first}`{}): tokenizers do not fit into metadata; to get a \
             model that runs, export into this file again",
            path.display(),
            arrays.len(),
            if arrays.len() > 1 { ", …" } else { "" }
        ));
    }
    for (key, value) in json::<BTreeMap<String, String>>(&header, METADATA_KEY).map_err(foreign(&path))? {
        builder.metadata(&key, &value);
    }
    Ok(())
}

/// What the JSON of a key says; nothing where there is none.
fn json<T: DeserializeOwned + Default>(header: &Header<'_>, key: &str) -> Result<T, String> {
    match header.text(key) {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| format!("key `{key}` is not what twn-pack writes: {error}; remove it or export again")),
        None => Ok(T::default()),
    }
}

/// A value as metadata; `None` where it is too much, or no text.
fn text(value: Value<'_>) -> Option<String> {
    match value {
        Value::Array(_) => None,
        Value::Text(value) => std::str::from_utf8(value).ok().map(str::to_owned),
        value => Some(value.to_string()),
    }
}

fn add_tensor(
    builder: &mut CheckpointBuilder,
    planes: &mut Planes,
    floats: &mut Floats<'_>,
    tensor: &Tensor<'_>,
    described: &Described,
    file: usize,
    foreign: &impl Fn(String) -> Error,
) -> Result<()> {
    let wrong = |message: String| foreign(format!("tensor `{}`: {message}", tensor.name));
    let name = described.name.as_deref().unwrap_or(tensor.name);
    planes.names.insert(name.to_owned());
    let shape = described.shape.as_ref().unwrap_or(&tensor.shape);
    let elements = |shape: &[u64]| shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    if elements(shape) != elements(&tensor.shape) {
        let found = &tensor.shape;
        return Err(wrong(format!("shape {found:?}, but `{TENSORS_KEY}` says {shape:?}; remove that key")));
    }
    let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
    match tensor.kind.kind {
        Kind::Plain(dtype) => {
            let said = described.dtype.unwrap_or(dtype);
            builder.tensor(name, said, &shape, file, tensor.range.clone()).map_err(|error| match error {
                Error::Checkpoint { problem: CheckpointProblem::Size { expected, found, .. }, .. } => wrong(format!(
                    "`{TENSORS_KEY}` says {said}, of which shape {shape:?} needs {expected}, but {found} bytes of {} are \
                     there; remove that key",
                    tensor.kind.name
                )),
                other => other,
            })
        }
        Kind::Ternary(block) => {
            let layout = Blocks::new(block, &shape, described).map_err(wrong)?;
            let dtype = described.dtype.unwrap_or(Dtype::F32);
            let range = tensor.range.clone();
            let plane = described.plane.filter(|[_, count]| *count <= limits::PACKED_PLANES as u64);
            let plane = plane
                .and_then(|[number, count]| Some((number, count, name.strip_suffix(&*format!(".plane{number}"))?)));
            let Some((number, count, weight)) = plane else {
                return builder.ternary(name, (dtype, &shape), Box::new(layout), file, range);
            };
            let plane = Plane { name: name.to_owned(), number, dtype, shape, layout, file, range, count };
            planes.by_weight.entry(weight.to_owned()).or_default().push(plane);
            Ok(())
        }
        Kind::Quantized(block) => floats.add(name, &shape, block, tensor),
        Kind::Other => Err(wrong(format!(
            "type {}, which is not read; turn it into floats first, with llama-quantize --allow-requantize IN.gguf OUT.gguf \
             F16, and pack that with --method auto, which finds the weights that were ternary (--granularity group:256 where \
             a row has several scales)",
            tensor.kind.name
        ))),
    }
}

/// Tensors of small integers while they become floats.
struct Floats<'a> {
    copies: Copies<'a>,
    file: &'a MappedFile,
    /// Name, shape and place of each.
    done: Vec<(String, Vec<usize>, Range<usize>)>,
    types: BTreeSet<&'static str>,
}

/// Weights that become floats at once.
const CHUNK: usize = 1 << 20;

impl<'a> Floats<'a> {
    fn new(path: &'a Path, file: &'a MappedFile) -> Self {
        // Four bits become 32, with a scale for 32 of them.
        let limit = 8 * file.len() as u64;
        Self { copies: Copies::new(path, FORMAT, limit), file, done: Vec::new(), types: BTreeSet::new() }
    }

    fn add(&mut self, name: &str, shape: &[usize], block: Quantized, tensor: &Tensor<'_>) -> Result<()> {
        let blocks = &self.file[tensor.range.clone()];
        let (weights, bytes) = (block.weights(), block.bytes());
        let range = self.copies.add(name, (blocks.len() / bytes * weights * 4) as u64, |out| {
            let (mut values, mut stored) = (Vec::new(), Vec::new());
            for blocks in blocks.chunks(CHUNK / weights * bytes) {
                values.resize(blocks.len() / bytes * weights, 0.0);
                block.values(blocks, &mut values);
                stored.clear();
                stored.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                out.write_all(&stored)?;
            }
            Ok::<_, io::Error>(())
        })?;
        self.done.push((name.to_owned(), shape.to_vec(), range));
        self.types.insert(tensor.kind.name);
        Ok(())
    }

    fn finish(self, builder: &mut CheckpointBuilder) -> Result<()> {
        let Some(file) = self.copies.map()? else { return Ok(()) };
        let number = builder.file(file);
        if let [(first, ..), others @ ..] = &self.done[..] {
            let others = if others.is_empty() { String::new() } else { format!(" and {} others", others.len()) };
            let types = Vec::from_iter(self.types).join(", ");
            builder.warn(format!(
                "{}: `{first}`{others} are {types}: they are read as the F32 values that ggml makes of them, which take more bytes \
                 (--int8 GLOB stores them in 8 bits); what becomes ternary of them has lost precision twice",
                self.file.path().display()
            ));
        }
        self.done
            .into_iter()
            .try_for_each(|(name, shape, range)| builder.tensor(&name, Dtype::F32, &shape, number, range))
    }
}

/// Filters of whole blocks, one behind the other.
#[derive(Debug)]
struct Blocks {
    block: Block,
    /// Blocks of a filter.
    per_filter: usize,
    /// Blocks of a filter that share a scale.
    per_unit: usize,
    isa: Isa,
}

impl Blocks {
    fn new(block: Block, shape: &[usize], described: &Described) -> Result<Self, String> {
        let weights = block.weights();
        // Beside a 0 the product of all says nothing of the others.
        let filter_len = shape.iter().skip(1).try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(0);
        if shape.len() < 2 || shape[0] == 0 || filter_len == 0 || !filter_len.is_multiple_of(weights) {
            return Err(format!(
                "ternary of shape {shape:?}, expected filters along the first dimension with a multiple of {weights} \
                 weights each; turn it into floats with llama-quantize --allow-requantize IN.gguf OUT.gguf F16"
            ));
        }
        if let Some(axis @ 1..) = described.axis {
            return Err(format!("`{TENSORS_KEY}` says axis {axis}, expected 0; remove that key"));
        }
        let per_filter = filter_len / weights;
        let granularity = described.granularity.as_deref().map(str::parse).transpose();
        let per_unit = match granularity.map_err(|message| format!("`{TENSORS_KEY}` says {message}"))? {
            None => 1,
            Some(Granularity::Tensor | Granularity::Filter) => per_filter,
            Some(Granularity::Group(size)) if size >= filter_len as u64 => per_filter,
            Some(Granularity::Group(size)) if size % weights as u64 == 0 => size as usize / weights,
            Some(Granularity::Group(size)) => {
                return Err(format!(
                    "`{TENSORS_KEY}` says group:{size}, expected a multiple of {weights}; remove that key"
                ));
            }
        };
        Ok(Self { block, per_filter, per_unit, isa: Isa::detect().unwrap_or(Isa::PORTABLE) })
    }

    /// The blocks of one filter; none where there are too few.
    fn filter<'a>(&self, data: &'a [u8], filter: usize) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.block.bytes();
        let length = self.per_filter * bytes;
        data.get(filter * length..(filter + 1) * length).unwrap_or_default().chunks_exact(bytes)
    }
}

impl TernaryLayout for Blocks {
    fn unit_len(&self) -> usize {
        self.per_unit * self.block.weights()
    }

    fn codes(&self, data: &[u8], filter: usize, codes: &mut [u8]) -> Result<(), String> {
        let mut of_unit = 0;
        for (i, (block, codes)) in
            self.filter(data, filter).zip(codes.chunks_exact_mut(self.block.weights())).enumerate()
        {
            // The magnitude: a negative scale negates the codes.
            let scale = self.block.scale(block).to_bits() & 0x7fff;
            if i % self.per_unit == 0 {
                of_unit = scale;
            } else if scale != of_unit {
                return Err(format!(
                    "filter {filter}: blocks {} and {i} have different scales, but `{TENSORS_KEY}` says that they \
                     share one; remove that key",
                    i - 1
                ));
            }
            self.block.codes(block, codes).map_err(|at| {
                format!(
                    "filter {filter}: weight {} has code 3, which is +2 times the scale and not ternary; turn the file into \
                     floats with llama-quantize --allow-requantize IN.gguf OUT.gguf F16, and pack that with --method auto",
                    i * self.block.weights() + at
                )
            })?;
        }
        Ok(())
    }

    fn t2(&self, data: &[u8], filter: usize, packed: &mut [u8]) -> bool {
        let (bytes, length) = (self.block.bytes(), self.per_filter * self.block.bytes());
        let Some(blocks) = data.get(filter * length..(filter + 1) * length) else { return false };
        // Those that share a scale have the same one.
        let scale = |block: &[u8]| self.block.scale(block).to_bits() & 0x7fff;
        let alike = |blocks: &[u8]| {
            let mut scales = blocks.chunks_exact(bytes).map(scale);
            let first = scales.next();
            scales.fold(true, |alike, scale| alike & (Some(scale) == first))
        };
        if self.per_unit > 1 && !blocks.chunks(self.per_unit * bytes).all(alike) {
            return false;
        }
        self.block.read_t2(self.isa, blocks, packed);
        true
    }

    fn scale(&self, data: &[u8], filter: usize, unit: usize) -> f32 {
        let block = self.filter(data, filter).nth(unit * self.per_unit);
        block.map_or(f32::NAN, |block| self.block.scale(block).to_f32().abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product of all is 0, that of the others is more than there are numbers.
    #[test]
    fn no_filters_of_too_many_weights_are_refused() {
        for shape in [[0, 1 << 56, 256], [0, 1 << 62, 1 << 62], [0, 1, 256], [1, 0, 256]] {
            assert!(Blocks::new(Block::Tq2_0, &shape, &Described::default()).is_err(), "{shape:?}");
        }
        assert!(Blocks::new(Block::Tq2_0, &[1, 1, 256], &Described::default()).is_ok());
    }
}
