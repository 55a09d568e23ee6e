//! What has to be known of a tensor before it is worked on: whether its filters can be had, whether the plan holds for
//! its weights, and what statistics say of it. Not here: the work ([`super::work`]).

use std::sync::atomic::AtomicBool;

use super::calibrated::{self, Calibrated};
use super::unit::LongRange;
use super::{BATCH, NATIVE, NON_FINITE, NOT_NATIVE, Options, moved, native, weights_error};
use crate::container::Granularity;
use crate::error::WeightsProblem;
use crate::limits::PACKED_PLANES;
use crate::pack::Encoding;
use crate::select::{Decision, Planned, Treatment};
use crate::source::{FilterView, Input, TensorView};
use crate::ternarize::Unit;
use crate::vector::Isa;
use crate::{Error, Result};

/// What only weights and statistics say of a tensor, found once. Works are made from it when they are due.
pub(super) struct Look<'a> {
    pub reason: &'a str,
    /// Of tensors that are moved.
    pub granularity: Option<Granularity>,
    pub calibrated: Option<Box<Calibrated<'a>>>,
}

impl<'a> Look<'a> {
    /// Whether that means to read the whole tensor, or all its scales.
    pub fn reads(planned: &Planned, options: &Options<'_>) -> bool {
        match &planned.decision {
            Decision::Dense => false,
            Decision::Moved(_) => true,
            Decision::Int8(_) => options.keep_non_finite_dense,
            Decision::Ternary(treatment) => options.keep_non_finite_dense || treatment.method.lossless(),
        }
    }

    /// What is expected before anything was read: that the plan holds.
    pub fn unread(planned: &'a Planned) -> Self {
        let moved = matches!(planned.decision, Decision::Moved(_));
        Self { reason: &planned.reason, granularity: moved.then_some(Granularity::Filter), calibrated: None }
    }

    /// Bytes to be read, for the choice of batches: a calibrated tensor takes long enough to be one by itself, and codes
    /// are as much to write as to read.
    pub fn effort(&self, bytes: u64) -> u64 {
        match (&self.calibrated, self.granularity) {
            (Some(_), _) => BATCH.max(bytes),
            (None, Some(_)) => 4 * bytes,
            (None, None) => bytes,
        }
    }

    pub fn new(
        Input { tensor, ternary }: Input<'a>,
        planned: &'a Planned,
        options: &Options<'a>,
        shared: &calibrated::Shared,
        isa: Isa,
    ) -> Result<Self> {
        let view = view_of(tensor, &planned.decision)?;
        let mut reason = &planned.reason[..];
        if view.is_some() && options.keep_non_finite_dense && !is_finite(tensor, isa, options.cancel) {
            reason = NON_FINITE;
        } else if let (Decision::Ternary(treatment), Some(view)) = (&planned.decision, view)
            && treatment.method.lossless()
        {
            reason = if native::is_ternary(view, treatment.granularity, treatment.scale_dtype, isa) {
                NATIVE
            } else {
                NOT_NATIVE
            };
        }
        let view = view.filter(|_| !is_left(reason));
        let calibrated = match view {
            Some(view) => calibrated::of(options, tensor, view, shared)?.map(Box::new),
            None => None,
        };
        let granularity = match (&planned.decision, ternary) {
            (Decision::Moved(_), Some(ternary)) => {
                let problem = |message| weights_error(tensor.name, WeightsProblem::Packed { message });
                Some(moved::granularity(ternary).map_err(problem)?)
            }
            _ => None,
        };
        Ok(Self { reason, granularity, calibrated })
    }
}

/// Whether a tensor stays dense for that reason, whatever the plan says.
pub(super) fn is_left(reason: &str) -> bool {
    [NON_FINITE, NOT_NATIVE].contains(&reason)
}

/// The filters of a tensor that is to have codes.
pub(super) fn view_of<'a>(tensor: TensorView<'a>, decision: &Decision) -> Result<Option<FilterView<'a>>> {
    match decision {
        Decision::Dense | Decision::Moved(_) => Ok(None),
        Decision::Int8(treatment) => filters_of(tensor, treatment.axis).map(Some),
        Decision::Ternary(treatment) => filter_view(tensor, treatment).map(Some),
    }
}

pub(super) fn filter_view<'a>(tensor: TensorView<'a>, treatment: &Treatment) -> Result<FilterView<'a>> {
    // A treatment may be put together by hand; what settings refuse is refused here as well.
    let contradiction = match treatment {
        Treatment { encoding: Encoding::B1, method, .. } if !method.binary() => Some("encoding b1 has no zeros"),
        Treatment { granularity: Granularity::Group(0), .. } => Some("groups of 0 weights"),
        Treatment { planes, .. } if !(1..=PACKED_PLANES).contains(planes) => Some("planes that are not 1 to 4"),
        _ => None,
    };
    if let Some(contradiction) = contradiction {
        let method = treatment.method.name();
        return Err(Error::Request(format!("tensor `{}`: method `{method}`, but {contradiction}", tensor.name)));
    }
    filters_of(tensor, treatment.axis)
}

/// The filters of a tensor that can have some.
fn filters_of(tensor: TensorView<'_>, axis: usize) -> Result<FilterView<'_>> {
    if tensor.elements() == 0 {
        return Err(Error::Request(format!("tensor `{}` is empty, it cannot be ternary; keep it dense", tensor.name)));
    }
    FilterView::new(tensor, axis).ok_or_else(|| {
        let (name, dtype, shape) = (tensor.name, tensor.dtype, tensor.shape);
        Error::Request(format!("tensor `{name}` ({dtype}, shape {shape:?}) cannot be ternary along axis {axis}"))
    })
}

/// Whatever the filter axis is: looked at in the order of the file.
fn is_finite(tensor: TensorView<'_>, isa: Isa, cancel: Option<&AtomicBool>) -> bool {
    let all = [tensor.elements()];
    FilterView::new(TensorView::new(tensor.name, tensor.dtype, &all, tensor.stored), 0).is_some_and(|view| {
        let long = LongRange { isa, view, start: 0, len: tensor.elements(), cancel };
        Unit::from_long(isa, &long).moments().max.is_finite()
    })
}
