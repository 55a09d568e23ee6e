//! What is to become of one tensor, and what that is called in a report. Not here: why ([`super::decide`]).

use std::fmt;
use std::sync::Arc;

use crate::container::Granularity;
use crate::pack::Encoding;
use crate::ternarize::{ScaleDtype, Ternarizer};

/// How one tensor becomes ternary.
#[derive(Debug, Clone)]
pub struct Treatment {
    /// Chooses threshold and scale.
    pub method: Arc<dyn Ternarizer>,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// The filter axis: one filter per index along it.
    pub axis: usize,
    /// How many planes: 1 to [`PACKED_PLANES`](crate::limits::PACKED_PLANES).
    pub planes: usize,
    /// How codes are packed.
    pub encoding: Encoding,
    /// The type of the scales.
    pub scale_dtype: ScaleDtype,
}

/// How one tensor becomes codes of 8 bits, with one scale per filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int8 {
    /// The filter axis: one filter per index along it.
    pub axis: usize,
    /// The type of the scales.
    pub scale_dtype: ScaleDtype,
}

/// How a tensor that is ternary in the checkpoint is stored: codes and scales are moved, nothing is estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// How codes are packed; not `b1`.
    pub encoding: Encoding,
    /// The type of the scales.
    pub scale_dtype: ScaleDtype,
}

/// What is to become of a tensor.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Ternary, in this way.
    Ternary(Treatment),
    /// 8 bits a weight.
    Int8(Int8),
    /// Ternary, as it is already.
    Moved(Moved),
    /// Kept bit by bit.
    Dense,
}

/// The method of tensors that were ternary in the checkpoint, in another program's layout.
pub const MOVED: &str = "as-packed";

/// The reason of what a budget decided; files keep it of ternary tensors too.
pub const BUDGET: &str = "budget";

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Int8(int8) => f.write_str(&became_int8(int8.axis as u64)),
            Self::Moved(moved) => write!(f, "{} {MOVED}", moved.encoding.name()),
            Self::Ternary(t) => {
                f.write_str(&became(t.encoding, t.method.name(), t.granularity, t.planes as u64, t.axis as u64))
            }
        }
    }
}

/// What an int8 tensor is called in a report.
pub(crate) fn became_int8(axis: u64) -> String {
    let axis = if axis == 0 { String::new() } else { format!(" axis {axis}") };
    format!("int8 filter{axis}")
}

/// What a ternary tensor is called in a report: `t2 twn filter`, and what is out of the ordinary.
pub(crate) fn became(encoding: Encoding, method: &str, granularity: Granularity, planes: u64, axis: u64) -> String {
    let planes = if planes == 1 { String::new() } else { format!(" planes {planes}") };
    let axis = if axis == 0 { String::new() } else { format!(" axis {axis}") };
    format!("{} {method} {granularity}{planes}{axis}", encoding.name())
}
