//! What is to become of one tensor, and what that is called in a report. Not here: why ([`super::decide`]).

use std::fmt;
use std::sync::Arc;

use crate::container::Granularity;
use crate::limits::PACKED_PLANES;
use crate::pack::Encoding;
use crate::source::{FilterView, Input, TensorView};
use crate::ternarize::{ScaleDtype, Ternarizer};
use crate::{Error, Result};

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

impl Treatment {
    /// The filters of a tensor that can be treated so. A treatment may be put together by hand; what settings refuse is refused here
    /// as well.
    pub(crate) fn filters<'a>(&self, tensor: TensorView<'a>) -> Result<FilterView<'a>> {
        let contradiction = match self {
            Self { encoding: Encoding::B1, method, .. } if !method.binary() => Some("encoding b1 has no zeros"),
            Self { granularity: Granularity::Group(0), .. } => Some("groups of 0 weights"),
            Self { planes, .. } if !(1..=PACKED_PLANES).contains(planes) => Some("planes that are not 1 to 4"),
            _ => None,
        };
        if let Some(contradiction) = contradiction {
            let method = self.method.name();
            return Err(Error::Request(format!("tensor `{}`: method `{method}`, but {contradiction}", tensor.name)));
        }
        filters(tensor, self.axis)
    }
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

impl Decision {
    /// The filters of a tensor that is to have codes, or why that cannot be done to it.
    pub(crate) fn filters<'a>(&self, Input { tensor, ternary }: Input<'a>) -> Result<Option<FilterView<'a>>> {
        let contradiction = match (self, ternary) {
            (Self::Moved(_), None) => "is not ternary in the checkpoint",
            (Self::Moved(Moved { encoding: Encoding::B1, .. }), _) => "may have zeros, encoding b1 has none",
            (Self::Dense, None) | (Self::Moved(_), Some(_)) => return Ok(None),
            (Self::Int8(int8), None) => return filters(tensor, int8.axis).map(Some),
            (Self::Ternary(treatment), None) => return treatment.filters(tensor).map(Some),
            (_, Some(_)) => "is ternary in the checkpoint and has no floats to keep",
        };
        Err(Error::Request(format!("tensor `{}` {contradiction}; plan it again", tensor.name)))
    }
}

/// The filters of a tensor that can have some.
fn filters(tensor: TensorView<'_>, axis: usize) -> Result<FilterView<'_>> {
    if tensor.elements() == 0 {
        return Err(Error::Request(format!("tensor `{}` is empty, it cannot be ternary; keep it dense", tensor.name)));
    }
    FilterView::new(tensor, axis).ok_or_else(|| {
        let (name, dtype, shape) = (tensor.name, tensor.dtype, tensor.shape);
        Error::Request(format!("tensor `{name}` ({dtype}, shape {shape:?}) cannot be ternary along axis {axis}"))
    })
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
