//! `.twn` → GGUF with TQ1_0, TQ2_0 or Q2_0: codes go from byte to byte, a scale to each of its blocks, rounded to f16.
//! Either as a file of tensors alone, with keys by which [`crate::import`] gives back the same tensors, or in the place
//! of those of a given file ([`Options::into`]), which stays a model that runs. Not here: the bits
//! ([`crate::gguf`]), how tensors are found in a given file (`into`).

mod floats;
mod into;
mod tensor;

use std::collections::{BTreeMap, BTreeSet};

use self::tensor::{Made, Rows};
use super::{Export, Exporter, Line, Options, Part, as_floats};
use crate::gguf::{
    ALIGNMENT, Block, Described, MAGIC, METADATA_KEY, NAME_BYTES, RANK, TENSORS_KEY, Type, number_pair, text_pair,
    write_tensor,
};
use crate::{Container, Result, Tensor};

/// The format, with ternary tensors of that type.
pub(super) struct Gguf(pub(super) Block);

/// The version of what is written anew.
const VERSION: u32 = 3;
/// ggml's number for how its quantized types are laid out by now.
const QUANTIZATION_VERSION: (&str, u32) = ("general.quantization_version", 2);
const FILE_TYPE: &str = "general.file_type";

impl Exporter for Gguf {
    fn name(&self) -> &'static str {
        match self.0 {
            Block::Tq1_0 => "tq1_0",
            Block::Tq2_0 => "tq2_0",
            Block::Q2_0 => "q2_0",
        }
    }

    fn about(&self) -> &'static str {
        match self.0 {
            Block::Tq1_0 => "GGUF, 256 weights in 54 bytes (1.7 bits each): llama.cpp, CPU",
            Block::Tq2_0 => "GGUF, 256 weights in 66 bytes (2.1 bits each): llama.cpp, CPU, Vulkan, Metal",
            Block::Q2_0 => {
                "GGUF, 64 weights in 18 bytes (2.25 bits each): llama.cpp of July 2026 or newer, every backend"
            }
        }
    }

    fn export<'a>(&self, container: &'a Container, options: &Options) -> Result<Export<'a>> {
        match &options.into {
            Some(into) => into::export(self.0, container, into, options),
            None => self.alone(container, options),
        }
    }
}

/// A tensor of a file that is written.
struct Written<'a> {
    name: String,
    shape: Vec<u64>,
    kind: &'static Type,
    part: Part<'a>,
}

impl Gguf {
    /// Each plane as a tensor of its own.
    fn planes<'a>(&self, name: &str, tensor: &Tensor<'a>, planes: usize) -> Result<Vec<(usize, Made<'a>)>, String> {
        let options = Options { planes_as_tensors: true, ..Options::default() };
        let make = |plane| Ok((plane, tensor::make(name, tensor, plane, self.0, Rows::InOrder, None, &options)?));
        (0..planes).map(make).collect()
    }

    /// A file of these tensors and nothing else.
    fn alone<'a>(&self, container: &'a Container, options: &Options) -> Result<Export<'a>> {
        let mut export = Export::default();
        let (mut written, mut described) = (Vec::new(), BTreeMap::new());
        for (entry, tensor) in options.tensors_with_scales(container)? {
            let name = entry.name.as_str();
            let of_one = |options| Ok(vec![(0, tensor::make(name, &tensor, 0, self.0, Rows::InOrder, None, options)?)]);
            let several = match &tensor {
                Tensor::Ternary(ternary) if options.planes_as_tensors => Some(ternary.planes).filter(|&p| p > 1),
                _ => None,
            };
            let count = several.unwrap_or(1);
            let (made, several) = match several.map(|planes| self.planes(name, &tensor, planes)) {
                None => (of_one(options), false),
                // Its planes are no tensors then: as floats it is one.
                Some(Err(reason)) if options.refused_as_dense => {
                    let options = Options { planes_as_tensors: false, ..options.clone() };
                    let floats = of_one(&options).map(|made| {
                        made.into_iter()
                            .map(|(plane, made)| (plane, Made { why: Some(reason.clone()), ..made }))
                            .collect()
                    });
                    (floats, false)
                }
                Some(made) => (made, true),
            };
            export.tensors.push(line(name, made, |made| {
                let mut becomes = Vec::new();
                for (plane, made) in made {
                    let name = if several { format!("{name}.plane{plane}") } else { name.to_owned() };
                    let (shape, what) = describe(&made, self.0);
                    let what = Described { plane: several.then_some([plane as u64, count as u64]), ..what };
                    becomes.push(match made.dtype {
                        Some(dtype) if made.granularity.is_none() => {
                            format!("{} {shape:?} for {dtype}", made.kind.name)
                        }
                        _ => format!("{} {shape:?}", made.kind.name),
                    });
                    let (name, what) = if name.len() < NAME_BYTES {
                        (name, what)
                    } else {
                        let short = format!("twn_pack.tensor.{}", written.len());
                        becomes
                            .push(format!("as `{short}`, because ggml takes names of up to {} bytes", NAME_BYTES - 1));
                        (short, Described { name: Some(name), ..what })
                    };
                    if what != Described::default() {
                        described.insert(name.clone(), what);
                    }
                    written.push(Written { name, shape, kind: made.kind, part: made.part });
                }
                becomes.join(", ")
            }));
        }
        refuse_equal_names(&written, &mut export.tensors);
        warn_of_rounding(&mut export);
        let mut keys = vec![
            number_pair(FILE_TYPE, self.0.file_type()),
            number_pair(QUANTIZATION_VERSION.0, QUANTIZATION_VERSION.1),
            text_pair(TENSORS_KEY, &json(&described)),
        ];
        if !container.index().metadata.is_empty() {
            keys.push(text_pair(METADATA_KEY, &json(&container.index().metadata)));
        }
        export.parts = parts(VERSION, ALIGNMENT, &keys, written);
        Ok(export)
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("maps of strings and numbers are JSON")
}

/// What becomes of a tensor whose parts were made, or not; `place` puts them into the file and says how.
fn line<'a>(
    name: &str,
    made: Result<Vec<(usize, Made<'a>)>, String>,
    place: impl FnOnce(Vec<(usize, Made<'a>)>) -> String,
) -> Line {
    let tensor = name.to_owned();
    match made {
        Ok(made) => {
            let bytes = made.iter().map(|(_, made)| made.part.len()).sum();
            let rounding = made.iter().map(|(_, made)| made.rounding).fold(0.0, f64::max);
            let why = made.iter().find_map(|(_, made)| made.why.as_deref().map(as_floats)).unwrap_or_default();
            Line { tensor, becomes: Ok(place(made) + &why), bytes, rounding }
        }
        Err(reason) => Line { tensor, becomes: Err(reason), bytes: 0, rounding: 0.0 },
    }
}

/// The shape of a tensor in a file of its own, and what that file has to say of it.
fn describe(made: &Made<'_>, block: Block) -> (Vec<u64>, Described) {
    let shape = &made.shape;
    let ternary = made.granularity.is_some();
    let whole_rows = !ternary || shape.last().is_some_and(|row| row % block.weights() as u64 == 0);
    let elements = shape.iter().product::<u64>();
    let flat = if (1..=RANK).contains(&shape.len()) && elements > 0 && whole_rows {
        shape.clone()
    } else if ternary {
        vec![shape[0], elements / shape[0]]
    } else {
        vec![elements]
    };
    let what = Described {
        axis: ternary.then_some(0),
        dtype: made.dtype,
        granularity: made.granularity.clone(),
        method: made.method.clone(),
        name: None,
        plane: None,
        shape: (flat != *shape).then(|| shape.clone()),
    };
    (flat, what)
}

/// The bytes of a file, whole.
fn parts<'a>(version: u32, alignment: u64, keys: &[Vec<u8>], tensors: Vec<Written<'a>>) -> Vec<Part<'a>> {
    let mut header = MAGIC.to_vec();
    header.extend(version.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((keys.len() as u64).to_le_bytes());
    keys.iter().for_each(|key| header.extend(key));
    let mut offset = 0;
    for tensor in &tensors {
        write_tensor(&tensor.name, &tensor.shape, tensor.kind, offset, &mut header);
        offset += tensor.part.len().next_multiple_of(alignment);
    }
    let padding = Part::padding(header.len() as u64, alignment);
    let mut parts = vec![Part::bytes(header), padding];
    for tensor in tensors {
        let length = tensor.part.len();
        parts.push(tensor.part);
        parts.push(Part::padding(length, alignment));
    }
    parts
}

/// `a.plane0` may meet a tensor that is called so already.
fn refuse_equal_names(written: &[Written<'_>], lines: &mut [Line]) {
    let (mut names, mut twice) = (BTreeSet::new(), BTreeSet::new());
    twice.extend(written.iter().map(|written| written.name.as_str()).filter(|name| !names.insert(*name)));
    for line in lines {
        let planes = twice.iter().find(|name| name.strip_prefix(&line.tensor).is_some_and(is_plane));
        if let Some(name) = planes.or(twice.get(line.tensor.as_str())) {
            line.becomes = Err(format!("two tensors would be called `{name}`; rename one and pack again"));
        }
    }
}

fn is_plane(rest: &str) -> bool {
    rest.strip_prefix(".plane").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Below the normal numbers of f16 every scale loses bits.
fn warn_of_rounding(export: &mut Export<'_>) {
    const NORMAL: f64 = 1.0 / 2048.0;
    for line in export.tensors.iter().filter(|line| line.rounding > NORMAL) {
        export.warnings.push(format!(
            "tensor `{}`: a scale is below {:.1e}, where f16 has fewer bits: it changes by up to {:.1e} of itself",
            line.tensor,
            half::f16::MIN_POSITIVE.to_f32(),
            line.rounding
        ));
    }
}
