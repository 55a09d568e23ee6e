//! `.twn` → the files of other programs, one format per file in this module, on the crate's public interface
//! alone. Each says of every tensor what it would become or why it cannot, and how the bytes of the new file come
//! about; [`write()`] streams them. Not here: reading those formats ([`crate::import`]).
//!
//! A new format is one new file with an [`Exporter`] and a line in [`FORMATS`].

mod bitnet;
mod gguf;
mod gptq;
mod hugging_face;
mod onnx;
mod packed_safetensors;
mod safetensors_file;
mod write;

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;

use half::{bf16, f16};
use serde::Serialize;

pub use self::write::{WriteOptions, write};
use crate::container::TensorEntry;
use crate::gguf::Block;
use crate::{Container, Dtype, Error, MappedFile, Result, Tensor};

/// A format that `.twn` files are exported to.
pub trait Exporter: Sync {
    /// Its name, as `--to` takes it.
    fn name(&self) -> &'static str;

    /// One line about it for a list of formats.
    fn about(&self) -> &'static str;

    /// What a container would become. Reads scales and, of the file that is exported into, what stands in front of
    /// its tensors; no codes. What cannot be exported is a [`Line::becomes`] that is an error, with the reason and
    /// a way out.
    ///
    /// # Errors
    /// A request that makes no sense for this format, or a file to export into that cannot be read.
    fn export<'a>(&self, container: &'a Container, options: &Options) -> Result<Export<'a>>;
}

/// Every format, in the order of the documentation.
pub const FORMATS: [&dyn Exporter; 8] = [
    &packed_safetensors::PackedSafetensors,
    &gguf::Gguf(Block::Tq1_0),
    &gguf::Gguf(Block::Tq2_0),
    &gguf::Gguf(Block::Q2_0),
    &onnx::Onnx,
    &onnx::OnnxNbits,
    &bitnet::BitNet,
    &gptq::Gptq,
];

/// The format of that name.
///
/// # Errors
/// No format has it.
pub fn format(name: &str) -> Result<&'static dyn Exporter> {
    FORMATS.into_iter().find(|format| format.name() == name).ok_or_else(|| {
        let names: Vec<_> = FORMATS.iter().map(|format| format.name()).collect();
        Error::Request(format!("unknown format `{name}`; expected one of {}", names.join(", ")))
    })
}

/// How to export.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A file of the target format whose tensors are replaced by those of the same name; everything else of it is
    /// kept. For the formats that need a file around the weights.
    pub into: Option<PathBuf>,
    /// Where a format has one plane only, planes become tensors of their own, whose sum is the weight.
    pub planes_as_tensors: bool,
    /// What the format cannot hold as codes goes out as floats instead of being refused.
    pub refused_as_dense: bool,
    /// Glob patterns of tensors that are not exported.
    pub leave_out: Vec<String>,
}

impl Options {
    /// The tensors of a container that are to be exported, each with what the index says of it.
    ///
    /// # Errors
    /// A pattern that is none, or that no tensor's name matches.
    pub fn tensors<'a>(&self, container: &'a Container) -> Result<Vec<(&'a TensorEntry, Tensor<'a>)>> {
        self.not_left_out(container, container.tensors())
    }

    /// The same for formats whose export looks at all scales: [`Container::tensors_with_scales`].
    ///
    /// # Errors
    /// As [`Options::tensors`].
    pub fn tensors_with_scales<'a>(&self, container: &'a Container) -> Result<Vec<(&'a TensorEntry, Tensor<'a>)>> {
        self.not_left_out(container, container.tensors_with_scales())
    }

    fn not_left_out<'a>(
        &self,
        container: &'a Container,
        tensors: impl Iterator<Item = (&'a str, Tensor<'a>)>,
    ) -> Result<Vec<(&'a TensorEntry, Tensor<'a>)>> {
        let mut tensors: Vec<_> = container.index().tensors.iter().zip(tensors.map(|(_, tensor)| tensor)).collect();
        for text in &self.leave_out {
            let pattern =
                globset::Glob::new(text).map_err(|e| Error::Request(format!("pattern `{text}`: {}", e.kind())))?;
            let (pattern, before) = (pattern.compile_matcher(), tensors.len());
            tensors.retain(|(entry, _)| !pattern.is_match(&entry.name));
            if tensors.len() == before {
                let path = container.path().display();
                return Err(Error::Request(format!(
                    "{path}: no tensor is left that is called like `{text}`; leave out --leave-out {text}"
                )));
            }
        }
        Ok(tensors)
    }
}

/// A file as it would be.
#[must_use]
#[derive(Debug, Default)]
pub struct Export<'a> {
    /// What becomes of each tensor, in the order of the container.
    pub tensors: Vec<Line>,
    /// The bytes of the file, in order.
    pub parts: Vec<Part<'a>>,
    /// Small files that belong beside it: name and contents.
    pub beside: Vec<(String, Vec<u8>)>,
    /// What deserves a second look.
    pub warnings: Vec<String>,
    /// Files besides those of the parts that were read, or that the new one needs: neither it nor what lies beside it
    /// may replace them.
    pub inputs: Vec<PathBuf>,
}

/// What becomes of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Its name in the container.
    pub tensor: String,
    /// Its type and shape in the new file, in words; or why it cannot be exported and what to do about it.
    pub becomes: Result<String, String>,
    /// Bytes in the new file, scales included.
    pub bytes: u64,
    /// The largest relative error of a scale by its rounding to the format's type.
    pub rounding: f64,
}

/// Some bytes of a file that is to be written.
#[derive(Debug)]
pub struct Part<'a> {
    rows: usize,
    row_bytes: usize,
    /// How many rows are best made at once.
    together: usize,
    source: Source<'a>,
}

/// Writes the rows of that range, one after another.
type Fill<'a> = Box<dyn Fn(Range<usize>, &mut [u8]) -> Result<(), String> + Sync + Send + 'a>;

enum Source<'a> {
    Bytes(Cow<'a, [u8]>),
    File(MappedFile, Range<usize>),
    Rows { tensor: String, fill: Fill<'a> },
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::File(file, range) => write!(f, "{range:?} of {}", file.path().display()),
            Self::Rows { tensor, .. } => write!(f, "rows of {tensor}"),
        }
    }
}

impl<'a> Part<'a> {
    /// Bytes as they are: headers, padding, dense tensors.
    pub fn bytes(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        let bytes = bytes.into();
        Self { rows: bytes.len(), row_bytes: 1, together: 1, source: Source::Bytes(bytes) }
    }

    /// Bytes of another file.
    ///
    /// # Panics
    /// When the file is shorter.
    pub fn of_file(file: &MappedFile, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= file.len(), "{range:?} of {} bytes", file.len());
        Self { rows: range.len(), row_bytes: 1, together: 1, source: Source::File(file.clone(), range) }
    }

    /// Bytes that are made as they are written: `rows` of `row_bytes` each. `fill` is called from any thread, for any
    /// rows in any order, with as many bytes as they take, all zero; what it says is wrong is wrong with that tensor.
    pub fn rows(
        tensor: &str,
        rows: usize,
        row_bytes: usize,
        fill: impl Fn(Range<usize>, &mut [u8]) -> Result<(), String> + Sync + Send + 'a,
    ) -> Self {
        Self { rows, row_bytes, together: 1, source: Source::Rows { tensor: tensor.to_owned(), fill: Box::new(fill) } }
    }

    /// The same, but so many rows are made at once, or a multiple of it, if they do not take much memory: where making one
    /// reads what others need as well.
    pub fn together(self, rows: usize) -> Self {
        Self { together: rows.max(1), ..self }
    }

    /// Zeros up to a multiple of `alignment` from a beginning that is one.
    pub fn padding(length: u64, alignment: u64) -> Self {
        Self::bytes(vec![0; (length.next_multiple_of(alignment) - length) as usize])
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.rows as u64 * self.row_bytes as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Number `index` of these floats, exactly; nothing where there are not so many, or they are of another type.
fn float(dtype: Dtype, data: &[u8], index: usize) -> Option<f64> {
    let bytes = data.get(index.checked_mul(dtype.bitsize() / 8)?..)?;
    Some(match dtype {
        Dtype::F64 => f64::from_le_bytes(*bytes.first_chunk()?),
        Dtype::F32 => f32::from_le_bytes(*bytes.first_chunk()?).into(),
        Dtype::F16 => f16::from_le_bytes(*bytes.first_chunk()?).into(),
        Dtype::BF16 => bf16::from_le_bytes(*bytes.first_chunk()?).into(),
        _ => return None,
    })
}

/// The first few of these names, and how many others there are.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} others", shown.join(", ")),
    }
}

/// A value after a round trip through a type of floats.
fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Refuses a value that the type cannot hold: each scale of several planes may fit, and their sum not.
fn check_range(dtype: Dtype, values: &[f32]) -> Result<(), String> {
    match values.iter().find(|&&value| !rounded(dtype, value).is_finite()) {
        Some(value) => Err(format!("weight {value:e} is more than {dtype} can hold")),
        None => Ok(()),
    }
}

/// What is said of a tensor that becomes floats because it cannot be codes: the reason without its ways out.
fn as_floats(refusal: &str) -> String {
    format!(", as floats: {}", refusal.split("; ").next().unwrap_or(refusal))
}

impl Export<'_> {
    /// Bytes of the whole file.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(Part::len).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses where any tensor is refused.
    ///
    /// # Errors
    /// The reasons, the first few of them.
    pub fn check(&self) -> Result<()> {
        const SHOWN: usize = 8;
        let refused: Vec<_> =
            self.tensors.iter().filter_map(|line| Some((&line.tensor, line.becomes.as_ref().err()?))).collect();
        if refused.is_empty() {
            return Ok(());
        }
        let shown: Vec<_> =
            refused.iter().take(SHOWN).map(|(tensor, reason)| format!("\n  tensor `{tensor}`: {reason}")).collect();
        let more = refused.len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!("\n  and {more} others; --dry-run shows all") };
        let (count, of) = (refused.len(), self.tensors.len());
        Err(Error::Request(format!("{count} of {of} tensors cannot be exported:{}{more}", shown.concat())))
    }
}
