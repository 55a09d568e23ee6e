//! A checkpoint's weights as the methods take them. Not here: which weights share a scale
//! ([`super::tensor`]), how they are decoded ([`crate::source`]).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::window::Held;
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
    /// How many filters are held in memory at once, and where, if that saves reading; only for whole tensors.
    pub window: Option<(usize, Mutex<Held>)>,
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

    fn parts(&self, visit: &mut dyn FnMut(&dyn LongWeights)) {
        let Some((window, held)) = &self.window else { return visit(self) };
        // A method may make several sums at a time; one of them gets the memory that is there.
        let (mut there, mut fresh) = (held.try_lock().ok(), Held::default());
        let held = there.as_deref_mut().unwrap_or(&mut fresh);
        let (n, mut at) = (self.view.filter_len(), 0);
        while at < self.len && !self.is_cancelled() {
            // Whole blocks, of as many filters as they touch.
            let first = at / n;
            let end = (first + window).max((at + BLOCK).div_ceil(n)).min(self.view.filters());
            let whole = (end * n - at) / BLOCK * BLOCK;
            let len = if end == self.view.filters() { self.len - at } else { whole };
            let view = held.read(self.view, first..end, self.isa);
            visit(&LongRange { isa: self.isa, view, start: at - first * n, len, window: None, cancel: self.cancel });
            at += len;
        }
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
