//! A checkpoint's weights as the methods take them. Not here: which weights share a scale
//! ([`super::tensor`]), how they are decoded ([`crate::source`]).

use std::sync::atomic::{AtomicBool, Ordering};

use crate::source::FilterView;
use crate::ternarize::{LongWeights, Slice};
use crate::vector::Isa;
use crate::vector::block::BLOCK;

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

impl LongRange<'_> {
    fn is_cancelled(&self) -> bool {
        self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

impl LongWeights for LongRange<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn block(&self, i: usize, visit: &mut dyn FnMut(Slice<'_>)) {
        if self.is_cancelled() {
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
