//! The loops over a block of weights: sums, selection, codes. Written once in plain Rust and
//! compiled for every instruction set; the order of every floating-point addition is fixed here
//! (lane = index mod 16, f64, one tree), so all of them give the same bits.
//! Not here: thresholds and scales ([`crate::ternarize`]), bit orders ([`crate::pack`]).

use std::ops::AddAssign;

use super::Task;
use super::weight::Weight;
#[cfg(target_arch = "x86_64")]
use super::weight::{Singles, on_singles};
#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};

/// Weights per block. A sum over more weights adds the blocks' sums in order. A multiple of the
/// 16 lanes and of the weights per byte of every encoding (4, 5, 8).
pub const BLOCK: usize = 81_920;

pub(crate) const LANES: usize = 16;

/// The lanes of one sum, added in a fixed tree: 16 → 8 → 4 → 2 → 1.
#[inline(always)]
pub(crate) fn tree<T: Copy + AddAssign>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Calls `step(lane, weight)` for every weight, in an order that fills the lanes evenly.
#[inline(always)]
pub(crate) fn each_lane<W: Weight>(weights: &[W], mut step: impl FnMut(usize, W)) {
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &w) in chunk.iter().enumerate() {
            step(lane, w);
        }
    }
    for (lane, &w) in rest.iter().enumerate() {
        step(lane, w);
    }
}

/// Sums over magnitudes: Σ|w|, Σw² and max|w|.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moments {
    /// Σ|w|.
    pub sum: f64,
    /// Σw².
    pub sum_of_squares: f64,
    /// max|w|; NaN or infinite exactly when some weight is.
    pub max: f64,
}

impl Moments {
    /// These weights followed by `next`.
    pub(crate) fn then(self, next: Self) -> Self {
        #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "a NaN in `next` has to win")]
        let max = if self.max.is_finite() && !(self.max > next.max) { next.max } else { self.max };
        Self { sum: self.sum + next.sum, sum_of_squares: self.sum_of_squares + next.sum_of_squares, max }
    }
}

/// Of each of `N` parts of the same length.
pub(crate) struct MomentsOf<'a, W, const N: usize = 1>(pub &'a [W]);

impl<W: Weight, const N: usize> Task for MomentsOf<'_, W, N> {
    type Output = [Moments; N];

    #[inline(always)]
    fn portable(self) -> [Moments; N] {
        let (n, mut all) = (self.0.len() / N, [Moments::default(); N]);
        for (part, moments) in all.iter_mut().enumerate() {
            let (mut sum, mut squares, mut max) = ([0.0; LANES], [0.0; LANES], [W::Bits::default(); LANES]);
            each_lane(&self.0[part * n..(part + 1) * n], |lane, w| {
                let x = w.magnitude().to_f64();
                sum[lane] += x;
                squares[lane] += x * x;
                max[lane] = max[lane].max(w.magnitude_bits());
            });
            let max = max.into_iter().max().unwrap_or_default();
            *moments = Moments { sum: tree(sum), sum_of_squares: tree(squares), max: W::from_bits(max).to_f64() };
        }
        all
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(self, proof: Avx2) -> Self::Output {
        let Some(singles) = W::as_singles(self.0) else {
            return self.portable();
        };
        let (n, mut all) = (self.0.len() / N, [Moments::default(); N]);
        on_singles!(singles, weights => for (part, moments) in all.iter_mut().enumerate() {
            let next = weights.as_ptr_range().end.wrapping_add(part * n / 2);
            *moments = proof.moments(&weights[part * n..(part + 1) * n], next);
        });
        all
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) -> Self::Output {
        match W::as_singles(self.0) {
            Some(singles) => on_singles!(singles, weights => proof.moments(weights)),
            None => self.portable(),
        }
    }
}

/// Weights whose magnitude is above a threshold: how many, and Σ|w| over them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Above {
    /// How many weights.
    pub count: u64,
    /// How many of them are positive.
    pub positive: u64,
    /// Σ|w| over them.
    pub sum: f64,
}

impl Above {
    /// These weights followed by `next`.
    pub(crate) fn then(self, next: Self) -> Self {
        Self { count: self.count + next.count, positive: self.positive + next.positive, sum: self.sum + next.sum }
    }
}

pub(crate) struct AboveOf<'a, W> {
    pub weights: &'a [W],
    pub delta: f64,
}

impl<W: Weight> Task for AboveOf<'_, W> {
    type Output = Above;

    #[inline(always)]
    fn portable(self) -> Above {
        let delta = W::floor_from(self.delta);
        let zero = W::default();
        let (mut sum, mut count, mut positive) = ([0.0; LANES], [0u32; LANES], [0u32; LANES]);
        each_lane(self.weights, |lane, w| {
            let above = w.magnitude() > delta;
            sum[lane] += if above { w.magnitude().to_f64() } else { 0.0 };
            count[lane] += u32::from(above);
            positive[lane] += u32::from(above & (w > zero));
        });
        let total = |lanes: [u32; LANES]| lanes.into_iter().map(u64::from).sum();
        Above { count: total(count), positive: total(positive), sum: tree(sum) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) -> Self::Output {
        match W::as_singles(self.weights) {
            Some(Singles::F32(weights)) => proof.above(weights, f32::floor_from(self.delta)),
            _ => self.portable(),
        }
    }
}

/// [`AboveOf`], and the code t+1 of every weight, one byte each: 2 above Δ, 0 below −Δ, 1 between.
pub(crate) struct Select<'a, W> {
    pub weights: &'a [W],
    pub delta: f64,
    pub codes: &'a mut [u8],
}

impl<W: Weight> Task for Select<'_, W> {
    type Output = Above;

    #[inline(always)]
    fn portable(self) -> Above {
        codes_of(self.weights, self.delta, self.codes);
        AboveOf { weights: self.weights, delta: self.delta }.portable()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(self, proof: Avx2) -> Self::Output {
        let Some(singles) = W::as_singles(self.weights) else {
            return self.portable();
        };
        let mut outside = proof.outside(f32::floor_from(self.delta));
        on_singles!(singles, w => proof.select(&mut outside, w, w.as_ptr_range().end, self.codes));
        proof.end(outside)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) -> Self::Output {
        match W::as_singles(self.weights) {
            Some(Singles::F32(weights)) => proof.select(weights, f32::floor_from(self.delta), self.codes),
            _ => self.portable(),
        }
    }
}

/// The codes alone.
#[inline(always)]
pub(crate) fn codes_of<W: Weight>(weights: &[W], delta: f64, codes: &mut [u8]) {
    let delta = W::floor_from(delta);
    let minus = -delta;
    for (code, &w) in codes.iter_mut().zip(weights) {
        *code = 1 + u8::from(w > delta) - u8::from(w < minus);
    }
}

/// Writes the code of every weight's sign: 2 for w ≥ 0, 0 below; returns how many are not negative.
pub(crate) struct SignsOf<'a, W> {
    pub weights: &'a [W],
    pub codes: &'a mut [u8],
}

impl<W: Weight> Task for SignsOf<'_, W> {
    type Output = u64;

    #[inline(always)]
    fn portable(self) -> u64 {
        let zero = W::default();
        let mut count = 0;
        for (code, &w) in self.codes.iter_mut().zip(self.weights) {
            let positive = w >= zero;
            *code = 2 * u8::from(positive);
            count += u64::from(positive);
        }
        count
    }
}

/// Σ(|w| − α·[|w| > Δ])², term by term: exactly 0 where the weights are ternary already.
pub(crate) struct ErrorOf<'a, W> {
    pub weights: &'a [W],
    pub delta: f64,
    pub alpha: f64,
}

impl<W: Weight> Task for ErrorOf<'_, W> {
    type Output = f64;

    #[inline(always)]
    fn portable(self) -> f64 {
        let delta = W::floor_from(self.delta);
        let mut sum = [0.0; LANES];
        each_lane(self.weights, |lane, w| {
            let x = w.magnitude();
            let rest = x.to_f64() - if x > delta { self.alpha } else { 0.0 };
            sum[lane] += rest * rest;
        });
        tree(sum)
    }
}

/// Weights whose sum, lane by lane, is made in their own type before it is added up in f64, where that is accurate enough.
pub(crate) const RUN: usize = 16 * LANES;

/// Copies the magnitudes in (lo, hi] to the front of `kept`, in order.
pub(crate) struct Partition<'a, W> {
    pub weights: &'a [W],
    pub lo: W,
    pub hi: W,
    /// As long as `weights`.
    pub kept: &'a mut [W],
}

/// What [`Partition`] found: how many it kept and their sum, and the same for those above. A sum over `f32` is wrong by
/// 2⁻²⁰ of it at the most: 15 additions in a row round to 24 bits, the others to 53.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Parts {
    pub kept: usize,
    pub kept_sum: f64,
    pub above: u64,
    pub above_sum: f64,
}

#[cfg(target_arch = "x86_64")]
impl<W: Weight> Partition<'_, W> {
    /// By hand where the weights are `f32`.
    #[inline(always)]
    fn in_f32(self, by_hand: impl FnOnce(&[f32], f32, f32, &mut [f32]) -> Parts) -> Parts {
        let (lo, hi) = (self.lo.to_f64() as f32, self.hi.to_f64() as f32);
        let Some(Singles::F32(weights)) = W::as_singles(self.weights) else {
            return self.portable();
        };
        match W::as_f32_mut(self.kept) {
            Some(kept) => by_hand(weights, lo, hi, kept),
            None => unreachable!("both are slices of one type"),
        }
    }
}

impl<W: Weight> Task for Partition<'_, W> {
    type Output = Parts;

    #[inline(always)]
    fn portable(self) -> Parts {
        let Self { weights, lo, hi, kept } = self;
        let (mut kept_sum, mut above_sum, mut above) = ([0.0; LANES], [0.0; LANES], [0u32; LANES]);
        let zero = W::default();
        for run in weights.chunks(RUN) {
            let (mut kept, mut over) = ([zero; LANES], [zero; LANES]);
            each_lane(run, |lane, w| {
                let x = w.magnitude();
                above[lane] += u32::from(x > hi);
                over[lane] += if x > hi { x } else { zero };
                kept[lane] += if (x > lo) & (x <= hi) { x } else { zero };
            });
            for lane in 0..LANES {
                kept_sum[lane] += kept[lane].to_f64();
                above_sum[lane] += over[lane].to_f64();
            }
        }
        let mut at = 0;
        for &w in weights {
            let x = w.magnitude();
            kept[at] = x;
            at += usize::from((x > lo) & (x <= hi));
        }
        let above = above.into_iter().map(u64::from).sum();
        Parts { kept: at, kept_sum: tree(kept_sum), above, above_sum: tree(above_sum) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(self, proof: Avx2) -> Parts {
        self.in_f32(|weights, lo, hi, kept| proof.partition(weights, lo, hi, kept))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) -> Parts {
        self.in_f32(|weights, lo, hi, kept| proof.partition(weights, lo, hi, kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Isa;
    use crate::vector::weight::narrowed;

    /// Sums of one part and of two at a time, every length around those that the vector forms go by, against plain Rust.
    #[test]
    fn moments_are_the_same_everywhere() {
        fn check<W: Weight>(weights: &[W]) {
            for n in (0..200).chain([1000, 1299]) {
                let [first, second] =
                    [&weights[..n], &weights[n..2 * n]].map(|part| MomentsOf::<W, 1>(part).portable()[0]);
                for isa in Isa::all() {
                    let name = isa.name();
                    assert_eq!(isa.run(MomentsOf::<W, 1>(&weights[..n])), [first], "{n} weights, {name}");
                    assert_eq!(isa.run(MomentsOf::<W, 2>(&weights[..2 * n])), [first, second], "{n} weights, {name}");
                }
            }
        }
        let even = |scale: f64| (0..2600).map(move |i| (f64::from(i * 7919 % 2003) / 1001.0 - 1.0) * scale);
        let far_apart = even(1.0).zip(0..).map(|(w, i)| w * f64::from(i % 38 - 23).exp2());
        for weights in [even(0.05).collect::<Vec<_>>(), even(1.99).collect(), even(3.0).collect(), far_apart.collect()]
        {
            let (singles, halves, brains) = narrowed(&weights);
            check(&weights);
            check(&singles);
            check(&halves);
            check(&brains);
        }
    }
}
