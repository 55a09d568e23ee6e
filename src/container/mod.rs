//! The `.twn` container, version 1: layout types (`prefix`, [`index`]), writer, reader and views.
//! `spec/twn-v1.md` is normative. Not here: which tensors are ternary, and how they became so.
//!
//! ```text
//!  0   prefix, 64 bytes   magic, version, features, where the index is, CRC-32s
//! 64   data sections      each at a multiple of 64, zero padded, in order, no holes
//!      index              JSON; the last thing in the file
//! ```

mod granularity;
pub mod index;
mod int8;
pub(crate) mod prefix;
mod quantized;
mod reader;
mod stats;
mod tensor;
mod writer;

pub use self::granularity::Granularity;
pub use self::index::{Body, DenseEntry, Index, Int8Entry, MethodEntry, Producer, Section, TensorEntry, TernaryEntry};
pub use self::int8::Int8Tensor;
pub(crate) use self::quantized::Quantized;
pub use self::reader::{Container, Tensor};
pub(crate) use self::stats::relative;
pub use self::stats::{CalibrationEntry, Int8Stats, Spread, Stats};
pub use self::tensor::{DenseTensor, TernaryTensor};
pub use self::writer::{ContainerWriter, Replacement};

/// Sections start at multiples of this.
pub const ALIGNMENT: u64 = 64;

/// The next multiple of [`ALIGNMENT`].
pub(crate) fn align(offset: u64) -> Option<u64> {
    offset.checked_next_multiple_of(ALIGNMENT)
}
