//! GGUF, the file format of llama.cpp and ggml: its types and, in the files beside this one, its header and its
//! ternary blocks, each read and written, and other blocks, which are only read. Not here: what becomes of tensors ([`crate::import`], [`crate::export`]).
//!
//! ```text
//! "GGUF"  u32 version  u64 tensors  u64 keys
//! keys:     string name, u32 type, value
//! tensors:  string name, u32 rank, u64 dimensions (innermost first), u32 type, u64 offset in the data
//! data:     from the next multiple of `general.alignment`, each tensor padded to one
//! ```

mod blocks;
mod header;
mod quantized;

use serde::{Deserialize, Serialize};

pub use self::blocks::Block;
pub use self::header::{Header, Key, Tensor, Value, number_pair, text_pair, write_tensor};
pub use self::quantized::Quantized;
use crate::Dtype;

/// The first bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The format's name in errors.
pub const FORMAT: &str = "GGUF";
/// What `general.alignment` is where the key is missing.
pub const ALIGNMENT: u64 = 32;
/// One more than the bytes that ggml's reader takes for a tensor's name.
pub const NAME_BYTES: usize = 64;
/// Dimensions that a tensor has at most.
pub const RANK: usize = 4;
/// The key of what a file of this crate says of its tensors beyond the format: JSON, by name.
pub const TENSORS_KEY: &str = "twn_pack.tensors";
/// The key of the checkpoint's own metadata: JSON, strings by name.
pub const METADATA_KEY: &str = "twn_pack.metadata";

/// What is said under [`TENSORS_KEY`] of a tensor; everything may be missing that the file itself says.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Described {
    /// The filter axis of a ternary tensor; always 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub axis: Option<u64>,
    /// The type that the weights have for those who compute with them, or of the elements where the file has
    /// integers of the same size instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Which weights share a scale, as `.twn` spells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<String>,
    /// How thresholds and scales were chosen; for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The name, where it is too long for ggml.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of one of several planes its number and how many there are; it is called like the weight, and `.plane` and the number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plane: Option<[u64; 2]>,
    /// The shape, outermost dimension first, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<u64>>,
}

/// An element type: so many weights in so many bytes.
#[derive(Debug, PartialEq)]
pub struct Type {
    /// Its number in the file.
    pub id: u32,
    /// Its name in ggml.
    pub name: &'static str,
    /// Weights per block.
    pub block: u64,
    /// Bytes per block.
    pub bytes: u64,
    /// What it means here.
    pub kind: Kind,
}

/// What a type means here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Plain elements.
    Plain(Dtype),
    /// Ternary codes and a scale per block.
    Ternary(Block),
    /// Small integers with scales, which floats are made of.
    Quantized(Quantized),
    /// Anything else: its length is known, its meaning is not.
    Other,
}

const fn plain(id: u32, name: &'static str, bytes: u64, dtype: Dtype) -> Type {
    Type { id, name, block: 1, bytes, kind: Kind::Plain(dtype) }
}

const fn ternary(id: u32, name: &'static str, block: Block) -> Type {
    Type { id, name, block: block.weights() as u64, bytes: block.bytes() as u64, kind: Kind::Ternary(block) }
}

const fn quantized(id: u32, name: &'static str, block: Quantized) -> Type {
    Type { id, name, block: block.weights() as u64, bytes: block.bytes() as u64, kind: Kind::Quantized(block) }
}

const fn other(id: u32, name: &'static str, block: u64, bytes: u64) -> Type {
    Type { id, name, block, bytes, kind: Kind::Other }
}

/// Every type that ggml knows.
static TYPES: [Type; 35] = [
    plain(0, "F32", 4, Dtype::F32),
    plain(1, "F16", 2, Dtype::F16),
    quantized(2, "Q4_0", Quantized::Q4_0),
    other(3, "Q4_1", 32, 20),
    quantized(6, "Q5_0", Quantized::Q5_0),
    other(7, "Q5_1", 32, 24),
    quantized(8, "Q8_0", Quantized::Q8_0),
    other(9, "Q8_1", 32, 36),
    other(10, "Q2_K", 256, 84),
    other(11, "Q3_K", 256, 110),
    quantized(12, "Q4_K", Quantized::Q4K),
    other(13, "Q5_K", 256, 176),
    quantized(14, "Q6_K", Quantized::Q6K),
    other(15, "Q8_K", 256, 292),
    other(16, "IQ2_XXS", 256, 66),
    other(17, "IQ2_XS", 256, 74),
    other(18, "IQ3_XXS", 256, 98),
    other(19, "IQ1_S", 256, 50),
    other(20, "IQ4_NL", 32, 18),
    other(21, "IQ3_S", 256, 110),
    other(22, "IQ2_S", 256, 82),
    other(23, "IQ4_XS", 256, 136),
    plain(24, "I8", 1, Dtype::I8),
    plain(25, "I16", 2, Dtype::I16),
    plain(26, "I32", 4, Dtype::I32),
    plain(27, "I64", 8, Dtype::I64),
    plain(28, "F64", 8, Dtype::F64),
    other(29, "IQ1_M", 256, 56),
    plain(30, "BF16", 2, Dtype::BF16),
    ternary(34, "TQ1_0", Block::Tq1_0),
    ternary(35, "TQ2_0", Block::Tq2_0),
    other(39, "MXFP4", 32, 17),
    other(40, "NVFP4", 64, 36),
    other(41, "Q1_0", 128, 18),
    ternary(42, "Q2_0", Block::Q2_0),
];

impl Type {
    /// The type of that number.
    pub fn by_id(id: u32) -> Option<&'static Self> {
        TYPES.iter().find(|kind| kind.id == id)
    }

    /// The type of those blocks.
    pub fn of_block(block: Block) -> Option<&'static Self> {
        TYPES.iter().find(|kind| kind.kind == Kind::Ternary(block))
    }

    /// The type of those elements.
    pub fn of_dtype(dtype: Dtype) -> Option<&'static Self> {
        TYPES.iter().find(|kind| kind.kind == Kind::Plain(dtype))
    }

    /// Single precision, which every reader computes with.
    pub fn f32() -> &'static Self {
        &TYPES[0]
    }

    /// Bytes of a tensor of that shape, outermost dimension first.
    ///
    /// # Errors
    /// Rows that are no whole blocks, or a size that overflows, in words.
    pub fn length(&self, shape: &[u64]) -> Result<u64, String> {
        let row = shape.last().copied().unwrap_or(1);
        if row % self.block != 0 {
            return Err(format!(
                "has rows of {row} weights, {} takes multiples of {}; convert the model again",
                self.name, self.block
            ));
        }
        // Beside a zero the others still have to fit: then no product of some of them overflows either.
        let product = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)));
        let weights = if shape.contains(&0) { Some(0) } else { product };
        product
            .and_then(|product| product.checked_mul(self.bytes))
            .and_then(|_| (weights? / self.block).checked_mul(self.bytes))
            .filter(|&bytes| bytes <= i64::MAX as u64)
            .ok_or_else(|| {
                format!("has the shape {shape:?}, which takes more than 2^63 bytes; convert the model again")
            })
    }
}
