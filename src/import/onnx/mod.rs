//! The initializers of an ONNX model as a checkpoint. Data in the model and in files beside it are mapped where they
//! lie, those of ternary codes as what they are; only numbers in fields of varints are decoded, into a temporary file.
//! Not here: constants that nodes carry, nested graphs and sparse tensors (a warning names them), what the graph
//! computes.

mod graph;
mod int2;
mod nbits;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use self::graph::{Found, Graph, Scales};
use self::slots::Slots;
use crate::error::CheckpointProblem;
use crate::onnx::{Data, Externals, FORMAT, Initializer, Model, dtype, type_name};
use crate::source::{CheckpointBuilder, TernaryPlane};
use crate::{Checkpoint, Error, MappedFile, Result};

/// Opens it.
///
/// # Errors
/// A file that cannot be read, is no ONNX model, or whose data are not where it says.
pub(super) fn open(path: &Path, file: &MappedFile) -> Result<Checkpoint> {
    // What is said of a tensor stands beside its data.
    file.glance(|bytes| read(path, file, bytes))
}

/// Reads what the bytes of that file say.
fn read(path: &Path, file: &MappedFile, bytes: &[u8]) -> Result<Checkpoint> {
    let foreign = |message| super::foreign(path, FORMAT, message);
    let model = Model::parse(bytes).map_err(foreign)?;
    let mut builder = CheckpointBuilder::new(path);
    let here = builder.file(file.clone());
    let mut places =
        Places { path, file, here, externals: Externals::of(path), beside: Vec::new(), decoded: BTreeMap::new() };
    let (mut decoded, mut left_out) = (Vec::new(), Vec::new());
    let graph = Graph::new(&model);
    let ((mut ternary, other_codes), (products, other_products)) = (int2::find(&graph), nbits::find(&graph));
    ternary.extend(products);
    for found in &ternary {
        add_ternary(&mut builder, &mut places, found, foreign)?;
    }
    // Their codes, scales and shapes are no tensors of their own.
    let parts: BTreeSet<&str> = ternary.iter().flat_map(Found::parts).collect();
    for initializer in model.initializers.iter().filter(|initializer| !parts.contains(initializer.name)) {
        let Some(dtype) = dtype(initializer.data_type) else {
            if let Some(reason) = other_codes.get(initializer.name) {
                builder.warn(format!(
                    "`{}` (INT2) is left out: {reason}; give the floats that the model was made from",
                    initializer.name
                ));
                continue;
            }
            left_out.push(format!("`{}` ({})", initializer.name, type_name(initializer.data_type)));
            continue;
        };
        let shape = shape(initializer).map_err(foreign)?;
        let bytes = initializer.elements().and_then(|n| n.checked_mul(dtype.bitsize() as u64 / 8));
        match places.find(&mut builder, initializer, bytes).map_err(foreign)? {
            Some((number, _, range)) => builder
                .tensor(initializer.name, dtype, &shape, number, range)
                .map_err(|error| in_words(error, initializer, foreign))?,
            None => decoded.push((initializer, dtype, shape)),
        }
    }
    if !decoded.is_empty() {
        let (spilled, ends) = spill(file, decoded.iter().map(|(initializer, ..)| *initializer), path, foreign)?;
        let number = builder.file(spilled);
        let mut start = 0;
        for ((initializer, dtype, shape), end) in decoded.into_iter().zip(ends) {
            builder
                .tensor(initializer.name, dtype, &shape, number, start..end)
                .map_err(|error| in_words(error, initializer, foreign))?;
            start = end;
        }
    }
    let Slots { scales, biases } = Slots::find(&graph);
    scales.into_iter().for_each(|name| builder.scales(name));
    biases.into_iter().for_each(|name| builder.bias(name));
    if !left_out.is_empty() {
        builder.warn(format!("{} are left out: types that are not read", some(&left_out)));
    }
    if !other_products.is_empty() {
        let names: Vec<_> = other_products.iter().map(|name| format!("`{name}`")).collect();
        builder.warn(format!(
            "{} are codes of MatMulNBits that are no ternary weights (other than 2 bits, permuted, or zero points in floats): \
             they are kept as the integers that they are; give the floats that the model was made from",
            some(&names)
        ));
    }
    let left_out = model.elsewhere.iter().chain(&model.carried).filter(|name| !graph.is_size(name));
    let names: Vec<_> = left_out.map(|name| format!("`{name}`")).collect();
    if !names.is_empty() {
        builder.warn(format!("{} are left out: constants, nested graphs or sparse tensors are not read", some(&names)));
    }
    builder.finish()
}

/// What is said of too few or too many bytes of data, in the words of this format.
fn in_words(error: Error, initializer: &Initializer<'_>, foreign: impl Fn(String) -> Error) -> Error {
    let Error::Checkpoint { problem: CheckpointProblem::Size { tensor, shape, dtype, expected, found }, .. } = error
    else {
        return error;
    };
    let place = match &initializer.data {
        Data::External { location, .. } => format!("its external data in {location:?} are"),
        _ => "the initializer's data are".to_owned(),
    };
    foreign(format!(
        "tensor `{tensor}`: shape {shape:?} of {dtype} needs {expected}, {place} {found} bytes; export the model again"
    ))
}

/// Adds planes as the tensor that they are.
fn add_ternary(
    builder: &mut CheckpointBuilder,
    places: &mut Places<'_>,
    found: &Found<'_>,
    foreign: impl Fn(String) -> Error + Copy,
) -> Result<()> {
    let mut planes = Vec::new();
    for plane in &found.planes {
        let mut place = |initializer, bytes| places.exactly(builder, initializer, bytes, foreign);
        let bytes = |(_, file, range): Place| (file, range);
        let scales = bytes(place(plane.scales.of, plane.scales.bytes)?);
        let zeros = plane.zeros.map(|zeros| place(zeros, plane.zero_bytes).map(bytes)).transpose()?;
        let (file, _, range) = place(plane.codes, plane.bytes)?;
        let layout = plane.order.layout(Scales::new(scales, plane.scales.dtype), zeros);
        planes.push(TernaryPlane { layout, file, range });
    }
    builder.ternary_planes(found.name, (found.planes[0].scales.dtype, &found.shape), planes)
}

/// Where data lie: in the model or in files beside it, each of which has a number in the checkpoint.
struct Places<'f> {
    path: &'f Path,
    file: &'f MappedFile,
    here: usize,
    externals: Externals,
    beside: Vec<(PathBuf, usize)>,
    /// What had to be decoded, by name: several planes may share it.
    decoded: BTreeMap<String, Place>,
}

/// Bytes of a file, and its number.
type Place = (usize, MappedFile, Range<usize>);

impl Places<'_> {
    /// Where the data of an initializer lie; nothing where they have to be decoded. `bytes`: how many there should be.
    fn find(
        &mut self,
        builder: &mut CheckpointBuilder,
        initializer: &Initializer<'_>,
        bytes: Option<u64>,
    ) -> Result<Option<Place>, String> {
        if let Data::Here(range) = &initializer.data {
            return Ok(Some((self.here, self.file.clone(), range.clone())));
        }
        let Some((file, range)) = self.externals.find(initializer, bytes)? else { return Ok(None) };
        let known = self.beside.iter().find(|(known, _)| known == file.path()).map(|(_, number)| *number);
        let number = known.unwrap_or_else(|| {
            let number = builder.file(file.clone());
            self.beside.push((file.path().to_path_buf(), number));
            number
        });
        Ok(Some((number, file, range)))
    }

    /// The same of exactly so many bytes; decoded, where they have to be.
    fn exactly(
        &mut self,
        builder: &mut CheckpointBuilder,
        initializer: &Initializer<'_>,
        bytes: usize,
        foreign: impl Fn(String) -> Error + Copy,
    ) -> Result<Place> {
        let place = match self.find(builder, initializer, Some(bytes as u64)).map_err(foreign)? {
            Some(place) => place,
            None if let Some(place) = self.decoded.get(initializer.name) => place.clone(),
            None => {
                let (spilled, _) = spill(self.file, std::iter::once(initializer), self.path, foreign)?;
                let all = 0..spilled.len();
                let place = (builder.file(spilled.clone()), spilled, all);
                self.decoded.insert(initializer.name.to_owned(), place.clone());
                place
            }
        };
        let found = place.2.len();
        if found != bytes {
            let (name, kind) = (initializer.name, type_name(initializer.data_type));
            return Err(foreign(format!(
                "tensor `{name}`: {found} bytes of {kind}, shape {:?} needs {bytes}; was the file cut off?",
                initializer.dims
            )));
        }
        Ok(place)
    }
}

/// What is said of a code that is not −1, 0 or 1.
fn not_ternary(filter: usize, weight: usize, found: i32) -> String {
    format!(
        "weight {weight} of filter {filter} is {found}, should be -1, 0 or 1; give the floats that the model was made from"
    )
}

/// The first few, and how many there are besides.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

fn shape(initializer: &Initializer<'_>) -> Result<Vec<usize>, String> {
    let dims = initializer.dims.iter().map(|&dim| usize::try_from(dim));
    dims.collect::<Result<_, _>>().map_err(|_| format!("tensor `{}`: its shape is too large", initializer.name))
}

/// Decodes numbers into a temporary file, one tensor after another; also where each ends.
fn spill<'f>(
    file: &[u8],
    initializers: impl Iterator<Item = &'f Initializer<'f>>,
    path: &Path,
    foreign: impl Fn(String) -> Error,
) -> Result<(MappedFile, Vec<usize>)> {
    let failed = |source| Error::Io { path: path.to_path_buf(), action: "decode into a temporary file", source };
    let mut writer = BufWriter::new(tempfile::tempfile().map_err(failed)?);
    let (mut ends, mut end) = (Vec::new(), 0);
    for initializer in initializers {
        let mut broken = None;
        let decoded = initializer.decode(file, |bytes| {
            end += bytes.len();
            writer.write_all(bytes).map_err(|error| {
                let message = error.to_string();
                broken = Some(error);
                message
            })
        });
        if let Some(error) = broken {
            return Err(failed(error));
        }
        decoded.map_err(&foreign)?;
        ends.push(end);
    }
    let spilled = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    Ok((MappedFile::of_temporary(spilled, path)?, ends))
}
