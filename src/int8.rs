//! Weights in, codes of 8 bits and one scale out: w ≈ α·q with q = round(w/α), −127 ≤ q ≤ 127.
//! Not here: which weights share a scale, or where codes go ([`crate::convert`]).
//!
//! max|w|/127 is the scale that clips nothing. A smaller one rounds most weights finer and clips the
//! largest; which is better depends on the weights, so some smaller ones are tried. From the best of
//! all, codes and least-squares scale (α = Σwq/Σq²) take turns until the squared error stops falling.
//! So it is never larger than with max|w|/127. Scales count as stored, and values as a reader computes them.

use crate::ternarize::ScaleDtype;
use crate::vector::block::{BLOCK, LANES, Moments, MomentsOf, Weight, each_lane, tree};
use crate::vector::{Isa, Task};

/// The largest code.
const LARGEST: f64 = 127.0;

/// Scales that are tried, in units of max|w|/127.
const CLIPPED: [f64; 9] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.45, 0.3];

/// Turns of codes and scale, at most.
const STEPS: usize = 8;

/// A turn that lowers the error by less than this share of it is the last.
const WORTHWHILE: f64 = 1e-4;

/// The scale of some weights, and what it costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fit8 {
    /// As stored.
    pub scale: f32,
    /// max|w|/127.
    pub exact_scale: f64,
    /// ‖W − αQ‖².
    pub squared_error: f64,
    /// ‖W‖².
    pub squared_norm: f64,
}

impl Fit8 {
    /// `each` calls what it is given with all weights, whole [`BLOCK`]s and then the rest, in order; there is at
    /// least one. With NaN or infinity among them, `exact_scale` is not finite.
    pub fn new<W: Weight>(isa: Isa, dtype: ScaleDtype, each: impl Fn(&mut dyn FnMut(&[W]))) -> Self {
        let mut moments: Option<Moments> = None;
        let blocks = |visit: &mut dyn FnMut(&[W])| each(&mut |weights| weights.chunks(BLOCK).for_each(&mut *visit));
        blocks(&mut |block| {
            let next = isa.run(MomentsOf(block));
            moments = Some(moments.map_or(next, |moments| moments.then(next)));
        });
        let Moments { sum_of_squares, max, .. } = moments.unwrap_or_default();
        let measure = |scale: f32| {
            let mut sums = Sums::default();
            blocks(&mut |weights| sums = sums.then(isa.run(Measure { weights, scale })));
            (sums.error, scale, sums)
        };
        let exact_scale = max / LARGEST;
        let usable = |scale: &f32| scale.is_finite() && *scale > 0.0;
        let tried = CLIPPED.iter().map(|share| dtype.round(share * exact_scale)).filter(usable);
        let better = |best: Option<(f64, f32, Sums)>, next: (f64, f32, Sums)| match best {
            Some(best) if best.0 <= next.0 => Some(best),
            _ => Some(next),
        };
        let mut best = tried.map(measure).fold(None, better);
        for _ in 0..STEPS {
            let Some((error, _, sums)) = best.filter(|(error, ..)| *error > 0.0) else { break };
            let next = Some(dtype.round(sums.products / sums.squares)).filter(usable).map(measure);
            let Some(next) = next.filter(|next| next.0 < error) else { break };
            best = Some(next);
            if next.0 > error * (1.0 - WORTHWHILE) {
                break;
            }
        }
        let (squared_error, scale, _) = best.unwrap_or((sum_of_squares, dtype.round(exact_scale), Sums::default()));
        Self { scale, exact_scale, squared_error, squared_norm: sum_of_squares }
    }

    /// Whether the stored scale keeps its order of magnitude: not infinite, and zero only if exact.
    pub fn scale_fits(&self) -> bool {
        self.scale.is_finite() && (self.scale > 0.0 || self.exact_scale == 0.0) && self.squared_norm.is_finite()
    }
}

/// Writes the codes of weights for that scale: two's complement, as many as there are weights.
pub(crate) fn encode<W: Weight>(isa: Isa, weights: &[W], scale: f32, codes: &mut [u8]) {
    isa.run(Encode { weights, scale, codes });
}

/// The code of a weight, as a number. Adding and taking away 1.5·2⁵² rounds to nearest, ties to even, with
/// every instruction set.
#[inline(always)]
fn code<W: Weight>(weight: W, inverse: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    ((weight.to_f64() * inverse).clamp(-LARGEST, LARGEST) + ROUND) - ROUND
}

#[inline(always)]
fn inverse(scale: f32) -> f64 {
    if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 }
}

/// Over weights and their codes.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    /// Σ(w − αq)².
    error: f64,
    /// Σwq.
    products: f64,
    /// Σq².
    squares: f64,
}

impl Sums {
    fn then(self, next: Self) -> Self {
        Self {
            error: self.error + next.error,
            products: self.products + next.products,
            squares: self.squares + next.squares,
        }
    }
}

/// Of a block, lane by lane, as all sums.
struct Measure<'a, W> {
    weights: &'a [W],
    scale: f32,
}

impl<W: Weight> Task for Measure<'_, W> {
    type Output = Sums;

    #[inline(always)]
    fn portable(self) -> Sums {
        let (inverse, scale) = (inverse(self.scale), self.scale);
        let (mut error, mut products, mut squares) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        each_lane(self.weights, |lane, w| {
            let q = code(w, inverse);
            let rest = w.to_f64() - f64::from(scale * q as f32);
            error[lane] += rest * rest;
            products[lane] += w.to_f64() * q;
            squares[lane] += q * q;
        });
        Sums { error: tree(error), products: tree(products), squares: tree(squares) }
    }
}

struct Encode<'a, W> {
    weights: &'a [W],
    scale: f32,
    codes: &'a mut [u8],
}

impl<W: Weight> Task for Encode<'_, W> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let inverse = inverse(self.scale);
        let codes = self.codes.iter_mut().zip(self.weights);
        codes.for_each(|(to, &w)| *to = (code(w, inverse) as i32 as i8).cast_unsigned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(weights: &[f32]) -> Fit8 {
        Fit8::new(Isa::PORTABLE, ScaleDtype::F32, |visit| weights.chunks(BLOCK).for_each(visit))
    }

    /// Naively.
    fn error(weights: &[f32], scale: f32) -> f64 {
        let value = |w: f32| scale * (f64::from(w) / f64::from(scale)).clamp(-127.0, 127.0).round_ties_even() as f32;
        weights.iter().map(|&w| (f64::from(w) - f64::from(value(w))).powi(2)).sum()
    }

    fn weights(n: usize, shape: impl Fn(f64) -> f64) -> Vec<f32> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..n).map(|_| shape((next() + next() + next() + next()) - 2.0) as f32).collect()
    }

    /// Of bell-shaped weights, and of such with a long tail, where clipping pays.
    #[test]
    fn the_error_is_that_of_the_scale_and_never_above_the_largest_values() {
        for (n, power) in [(1, 1.0), (7, 1.0), (500, 1.0), (5000, 3.0), (100_000, 7.0)] {
            let w = weights(n, |x| x.abs().powf(power).copysign(x));
            let (fit, max) = (fit(&w), w.iter().fold(0.0f32, |max, w| max.max(w.abs())));
            let naive = error(&w, fit.scale);
            assert!((fit.squared_error - naive).abs() <= 1e-9 * naive + 1e-18, "{n} {power}: {naive:e} {fit:?}");
            let plain = error(&w, (f64::from(max) / 127.0) as f32);
            assert!(fit.squared_error <= plain * (1.0 + 1e-9), "{n} {power}: {plain:e} {fit:?}");
            if power > 5.0 {
                assert!(fit.squared_error < 0.97 * plain, "{n} {power}: {plain:e} {fit:?}");
            }
        }
    }

    #[test]
    fn what_is_int8_already_is_exact_and_zeros_are_zero() {
        let w: Vec<f32> = (-127..=127).map(|q| 0.25 * q as f32).collect();
        assert_eq!((fit(&w).scale, fit(&w).squared_error), (0.25, 0.0));
        let zeros = fit(&[0.0, -0.0]);
        assert_eq!((zeros.scale, zeros.squared_error, zeros.scale_fits()), (0.0, 0.0, true));
        assert!(!fit(&[1e-44]).scale_fits());
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let w = weights(100_003, |x| x * x * x);
        let of = |isa: Isa| {
            let fit = Fit8::new(isa, ScaleDtype::F16, |visit| w.chunks(BLOCK).for_each(visit));
            let mut codes = vec![0; w.len()];
            encode(isa, &w, fit.scale, &mut codes);
            (fit.scale.to_bits(), fit.squared_error.to_bits(), codes)
        };
        let portable = of(Isa::PORTABLE);
        Isa::all().into_iter().for_each(|isa| assert!(of(isa) == portable, "{}", isa.name()));
    }
}
