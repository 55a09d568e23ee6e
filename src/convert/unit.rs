//! A checkpoint's weights as the methods take them. Not here: which weights share a scale
//! ([`super::tensor`]), how they are decoded ([`crate::source`]).

use std::sync::atomic::{AtomicBool, Ordering};

use crate::source::FilterView;
use crate::source::weights::Element;
use crate::ternarize::{LongWeights, Slice, Unit};
use crate::vector::Isa;
use crate::vector::block::BLOCK;

/// Weights in memory, as one unit.
pub(super) trait AsUnit: Element {
    fn as_unit(isa: Isa, weights: &[Self]) -> Unit<'_>;
}

impl AsUnit for f32 {
    fn as_unit(isa: Isa, weights: &[f32]) -> Unit<'_> {
        Unit::from_f32(isa, weights)
    }
}

impl AsUnit for f64 {
    fn as_unit(isa: Isa, weights: &[f64]) -> Unit<'_> {
        Unit::from_f64(isa, weights)
    }
}

/// The weights `start..start + len` of a view, as one unit that is decoded block by block. Once
/// `cancel` is set it shows nothing any more, so that sums over billions of weights end at once;
/// they mean nothing then, and whoever set it throws them away.
#[derive(Debug)]
pub(super) struct LongRange<'a> {
    pub isa: Isa,
    pub view: FilterView<'a>,
    pub start: usize,
    pub len: usize,
    pub cancel: Option<&'a AtomicBool>,
}

impl LongWeights for LongRange<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn block(&self, i: usize, visit: &mut dyn FnMut(Slice<'_>)) {
        if self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return;
        }
        let range = self.start + i * BLOCK..self.start + ((i + 1) * BLOCK).min(self.len);
        if self.view.is_f64() {
            visit(Slice::F64(self.view.read(range, self.isa, &mut Vec::new())));
        } else {
            visit(Slice::F32(self.view.read(range, self.isa, &mut Vec::new())));
        }
    }
}
