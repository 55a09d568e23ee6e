//! What has to be known of a tensor before it is worked on: whether its filters can be had, whether the plan holds for
//! its weights, and what statistics say of it. Not here: the work ([`super::work`]).

use std::sync::atomic::AtomicBool;

use super::calibrated::{self, Calibrated};
use super::unit::LongRange;
use super::{BATCH, NATIVE, NON_FINITE, NOT_NATIVE, Options, moved, native, weights_error};
use crate::Result;
use crate::container::Granularity;
use crate::error::WeightsProblem;
use crate::select::{Decision, Planned};
use crate::source::{FilterView, Input, TensorView, TernaryView};
use crate::ternarize::Unit;
use crate::vector::Isa;

/// What only weights and statistics say of a tensor, found once. Works are made from it when they are due.
pub(super) struct Look<'a> {
    /// In words, for the index.
    pub reason: &'a str,
    /// It stays dense, whatever the plan says.
    pub left: bool,
    /// Of tensors that are moved.
    pub packed: Option<(TernaryView<'a>, Granularity)>,
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
    pub fn unread(input: Input<'a>, planned: &'a Planned) -> Self {
        let packed = input.ternary.map(|ternary| (ternary, Granularity::Filter));
        Self { reason: &planned.reason, left: false, packed, calibrated: None }
    }

    /// Bytes to be read, for the choice of batches: a calibrated tensor takes long enough to be one by itself, and codes
    /// are as much to write as to read.
    pub fn effort(&self, bytes: u64) -> u64 {
        match (&self.calibrated, self.packed) {
            (Some(_), _) => BATCH.max(bytes),
            (None, Some(_)) => 4 * bytes,
            (None, None) => bytes,
        }
    }

    pub fn new(
        input: Input<'a>,
        planned: &'a Planned,
        options: &Options<'a>,
        shared: &calibrated::Shared,
        isa: Isa,
    ) -> Result<Self> {
        let view = planned.decision.filters(input)?;
        let (tensor, mut reason, mut left) = (input.tensor, &planned.reason[..], false);
        if view.is_some() && options.keep_non_finite_dense && !is_finite(tensor, isa, options.cancel) {
            (reason, left) = (NON_FINITE, true);
        } else if let (Decision::Ternary(treatment), Some(view)) = (&planned.decision, view)
            && treatment.method.lossless()
        {
            left = !native::is_ternary(view, treatment.granularity, treatment.scale_dtype, isa);
            reason = if left { NOT_NATIVE } else { NATIVE };
        }
        let view = view.filter(|_| !left);
        let calibrated = match view {
            Some(view) => calibrated::of(options, tensor, view, shared)?.map(Box::new),
            None => None,
        };
        let packed = match input.ternary {
            Some(ternary) => {
                let problem = |message| weights_error(tensor.name, WeightsProblem::Packed { message });
                Some((ternary, moved::granularity(ternary).map_err(problem)?))
            }
            None => None,
        };
        Ok(Self { reason, left, packed, calibrated })
    }
}

/// Whatever the filter axis is: looked at in the order of the file.
fn is_finite(tensor: TensorView<'_>, isa: Isa, cancel: Option<&AtomicBool>) -> bool {
    let all = [tensor.elements()];
    FilterView::new(TensorView::new(tensor.name, tensor.dtype, &all, tensor.stored), 0).is_some_and(|view| {
        let long = LongRange { isa, view, start: 0, len: tensor.elements(), cancel };
        Unit::from_long(isa, &long).moments().max.is_finite()
    })
}
