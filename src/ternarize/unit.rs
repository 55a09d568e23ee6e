//! The weights that share one scale, as the methods see them: sums over magnitudes, whatever the
//! element type and wherever the weights lie. Not here: any method's rule.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::Threshold;
use crate::vector::Isa;
use crate::vector::block::{Above, AboveOf, BLOCK, ErrorOf, Moments, MomentsOf, Partition, Parts};
use crate::vector::weight::{Singles, Weight};

/// Weights that share one scale: a group, a filter, or a whole tensor. Never empty.
#[derive(Debug)]
pub struct Unit<'a> {
    isa: Isa,
    len: usize,
    moments: Moments,
    weights: Weights<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Data<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    Long(&'a dyn LongWeights),
}

#[derive(Debug)]
enum Weights<'a> {
    Ready(Data<'a>),
    /// Of 16 bits; decoded once more than their moments is asked for, which most methods never do.
    Halves(Singles<'a>, OnceLock<Vec<f32>>),
}

impl<'a> Weights<'a> {
    fn of<W: Weight>(weights: &'a [W]) -> Self {
        match W::as_singles(weights) {
            Some(Singles::F32(weights)) => Self::Ready(Data::F32(weights)),
            Some(halves) => Self::Halves(halves, OnceLock::new()),
            None => Self::Ready(Data::F64(bytemuck::cast_slice(weights))),
        }
    }
}

/// More than [`BLOCK`] weights, decoded block by block on every pass, so that memory stays bounded.
pub(crate) trait LongWeights: std::fmt::Debug + Sync {
    /// How many weights.
    fn len(&self) -> usize;
    /// Calls `visit` with weights `BLOCK·i ..` up to the next block or the end; or not at all, once
    /// the run is cancelled and no sum counts any more.
    fn block(&self, i: usize, visit: &mut dyn FnMut(Slice<'_>));
}

/// A block of weights in the type they are ternarized in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Slice<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
}

macro_rules! on_slice {
    ($slice:expr, $w:ident => $body:expr) => {
        match $slice {
            Slice::F32($w) => $body,
            Slice::F64($w) => $body,
        }
    };
}
pub(crate) use on_slice;

impl<'a> Unit<'a> {
    /// Over `f32` weights in memory.
    ///
    /// # Panics
    /// When `weights` is empty.
    pub fn from_f32(isa: Isa, weights: &'a [f32]) -> Self {
        Self::of(isa, weights)
    }

    /// Over `f64` weights in memory.
    ///
    /// # Panics
    /// When `weights` is empty.
    pub fn from_f64(isa: Isa, weights: &'a [f64]) -> Self {
        Self::of(isa, weights)
    }

    /// Over weights in memory, of any type.
    pub(crate) fn of<W: Weight>(isa: Isa, weights: &'a [W]) -> Self {
        assert!(!weights.is_empty(), "a unit holds at least one weight");
        Self::of_moments(isa, weights, by_blocks(weights, |block| isa.run(MomentsOf::<W, 1>(block))[0], Moments::then))
    }

    /// The same, where their sums are known.
    pub(crate) fn of_moments<W: Weight>(isa: Isa, weights: &'a [W], moments: Moments) -> Self {
        Self { isa, len: weights.len(), moments, weights: Weights::of(weights) }
    }

    pub(crate) fn from_long(isa: Isa, weights: &'a dyn LongWeights) -> Self {
        let (len, data) = (weights.len(), Weights::Ready(Data::Long(weights)));
        let mut unit = Self { isa, len, moments: Moments::default(), weights: data };
        unit.moments = unit.sum(|slice| on_slice!(slice, w => isa.run(MomentsOf::<_, 1>(w))[0]), Moments::then);
        unit
    }

    /// How many weights.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true; here because clippy asks for it beside `len`.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Σ|w|, Σw² and max|w| over all weights.
    pub fn moments(&self) -> Moments {
        self.moments
    }

    /// E|w|.
    pub fn mean(&self) -> f64 {
        self.moments.sum / self.len() as f64
    }

    /// The weights with |w| > `delta`: how many, and Σ|w| over them.
    pub fn above(&self, delta: f64) -> Above {
        self.sum(|slice| on_slice!(slice, weights => self.isa.run(AboveOf { weights, delta })), Above::then)
    }

    /// ‖W − αT‖², term by term.
    pub fn squared_error(&self, threshold: Threshold, alpha: f64) -> f64 {
        // Signs only: every weight is above.
        let delta = match threshold {
            Threshold::Delta(delta) => delta,
            Threshold::Sign => -1.0,
        };
        self.sum(|slice| on_slice!(slice, weights => self.isa.run(ErrorOf { weights, delta, alpha })), |a, b| a + b)
    }

    pub(super) fn data(&self) -> Data<'_> {
        match &self.weights {
            Weights::Ready(data) => *data,
            Weights::Halves(halves, decoded) => Data::F32(decoded.get_or_init(|| halves.to_vec())),
        }
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// One sum over all weights, blocks added in order however many threads there are.
    pub(super) fn sum<T: Default + Send>(&self, of: impl Fn(Slice<'_>) -> T + Sync, then: impl Fn(T, T) -> T) -> T {
        match self.data() {
            Data::F32(weights) => by_blocks(weights, |block| of(Slice::F32(block)), then),
            Data::F64(weights) => by_blocks(weights, |block| of(Slice::F64(block)), then),
            Data::Long(weights) => {
                let block = |i| {
                    let mut result = T::default();
                    weights.block(i, &mut |slice| result = of(slice));
                    result
                };
                let blocks: Vec<T> = (0..weights.len().div_ceil(BLOCK)).into_par_iter().map(block).collect();
                let mut blocks = blocks.into_iter();
                let first = blocks.next().unwrap_or_default();
                blocks.fold(first, then)
            }
        }
    }
}

/// One sum over weights in memory, blocks added in order.
fn by_blocks<W, T: Default>(weights: &[W], of: impl Fn(&[W]) -> T, then: impl Fn(T, T) -> T) -> T {
    let mut blocks = weights.chunks(BLOCK).map(of);
    let first = blocks.next().unwrap_or_default();
    blocks.fold(first, then)
}

/// Keeps the magnitudes in (lo, hi].
pub(super) fn partition<W: Weight>(isa: Isa, weights: &[W], lo: f64, hi: f64, kept: &mut [W]) -> Parts {
    isa.run(Partition { weights, lo: W::floor_from(lo), hi: W::floor_from(hi), kept })
}
