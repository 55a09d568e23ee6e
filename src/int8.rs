//! Weights in, codes of 8 bits and one scale out: w ≈ α·q with q = round(w/α), −127 ≤ q ≤ 127.
//! Not here: which weights share a scale, or where codes go ([`crate::convert`]).
//!
//! max|w|/127 is the scale that clips nothing. A smaller one rounds most weights finer and clips the
//! largest; which is better depends on the weights, so some smaller ones are tried. Of a few weights the
//! error jumps up and down with the scale, so many are tried, larger ones too. From the best of all, and
//! from the one that promises most with the least-squares scale (α = Σwq/Σq²) for its codes, codes and
//! that scale take turns until the squared error stops falling. So it is never larger than with max|w|/127.
//! Scales count as stored, and values as a reader computes them.

use crate::ternarize::ScaleDtype;
use crate::vector::block::{BLOCK, LANES, Moments, MomentsOf, each_lane, tree};
use crate::vector::weight::Weight;
use crate::vector::{Isa, Task};

/// The largest code.
const LARGEST: f64 = 127.0;

/// Scales that are tried, in units of max|w|/127.
const CLIPPED: [f64; 9] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.45, 0.3];

/// Of at most so many weights scales are tried one by one, from max|w|/127.5 to max|w|/63.5: larger ones give
/// no values that half of them does not. As many as [`TRIED`] allows, so at least two for each largest code.
const FEW: usize = 128;

/// Weights times scales that are tried of a filter, and scales at most.
const TRIED: usize = 1 << 14;
const SCALES: usize = 512;

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
        let (mut moments, mut count): (Option<Moments>, usize) = (None, 0);
        let blocks = |visit: &mut dyn FnMut(&[W])| each(&mut |weights| weights.chunks(BLOCK).for_each(&mut *visit));
        blocks(&mut |block| {
            count += block.len();
            let [next] = isa.run(MomentsOf(block));
            moments = Some(moments.map_or(next, |moments| moments.then(next)));
        });
        let Moments { sum_of_squares, max, .. } = moments.unwrap_or_default();
        let measure = |scale: f32| {
            let mut sums = Sums::default();
            blocks(&mut |weights| sums = sums.then(isa.run(Measure { weights, scale })));
            Measured { scale, sums }
        };
        let exact_scale = max / LARGEST;
        // The largest value as well.
        let usable = |scale: &f32| (scale * LARGEST as f32).is_finite() && *scale > 0.0;
        let steps = TRIED.checked_div(count).filter(|_| count <= FEW).unwrap_or(0).min(SCALES);
        let largest_code = |i: usize| (LARGEST + 0.5) - (LARGEST + 1.0) / 2.0 * (i as f64 / steps as f64);
        let fine = (0..steps).map(|i| max / largest_code(i));
        let tried = CLIPPED.iter().map(|share| share * exact_scale).chain(fine).map(|scale| dtype.round(scale));
        let (mut best, mut promising): (Option<Measured>, Option<Measured>) = (None, None);
        for next in tried.filter(usable).map(measure) {
            best = best.filter(|best| best.error() <= next.error()).or(Some(next));
            promising = promising.filter(|best| best.sums.gain() >= next.sums.gain()).or(Some(next));
        }
        let turns = |mut best: Measured| {
            for _ in 0..STEPS {
                let Sums { error, products, squares } = best.sums;
                let next = Some(dtype.round(products / squares)).filter(|scale| error > 0.0 && usable(scale));
                let Some(next) = next.map(measure).filter(|next| next.error() < error) else { break };
                best = next;
                if next.error() > error * (1.0 - WORTHWHILE) {
                    break;
                }
            }
            best
        };
        let ends = [best, promising.filter(|_| steps > 0)].into_iter().flatten().map(turns);
        let best = ends.min_by(|a, b| a.error().total_cmp(&b.error()));
        let (scale, squared_error) =
            best.map_or((dtype.round(exact_scale), sum_of_squares), |best| (best.scale, best.error()));
        Self { scale, exact_scale, squared_error, squared_norm: sum_of_squares }
    }

    /// Whether the stored scale keeps its order of magnitude: not infinite, and zero only if exact.
    pub fn scale_fits(&self) -> bool {
        // A smaller scale than the largest weight asks for must not hide that none holds it.
        self.exact_scale * LARGEST <= f64::from(f32::MAX) * (1.0 + 1e-9)
            && self.scale.is_finite()
            && self.squared_norm.is_finite()
            && (self.scale > 0.0 || self.exact_scale == 0.0)
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

/// A scale, and what comes of it.
#[derive(Debug, Clone, Copy)]
struct Measured {
    scale: f32,
    sums: Sums,
}

impl Measured {
    fn error(&self) -> f64 {
        self.sums.error
    }
}

impl Sums {
    /// By how much the least-squares scale of these codes lowers the error from ‖W‖².
    fn gain(&self) -> f64 {
        self.products * self.products / self.squares
    }

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

    /// Of few weights the error is near the least of any scale: it was up to 4.5 times that.
    #[test]
    fn of_few_weights_the_best_scale_is_found() {
        for n in [1usize, 5, 9, 16, 27, 50, 64, 100, 128] {
            let (mut found, mut best) = (0.0, 0.0);
            for seed in 0..12 {
                let all = weights(n * 12, |x| x);
                let w = &all[seed * n..(seed + 1) * n];
                let max = w.iter().fold(0.0f64, |max, w| max.max(f64::from(w.abs())));
                let all = (0..6000).map(|i| {
                    let scale = max / (63.5 + f64::from(i) / 6000.0 * 72.0);
                    let q: Vec<f64> = w.iter().map(|&w| code(w, 1.0 / scale)).collect();
                    let sum = |of: &dyn Fn(f64, f64) -> f64| w.iter().zip(&q).map(|(&w, &q)| of(f64::from(w), q)).sum();
                    let (products, squares): (f64, f64) = (sum(&|w, q| w * q), sum(&|_, q| q * q));
                    sum(&|w, q| (w - products / squares * q).powi(2))
                });
                let (least, fit) = (all.fold(f64::INFINITY, f64::min), fit(w));
                let slack = 1e-13 * fit.squared_norm;
                assert!(fit.squared_error <= 1.5 * least + slack, "{n}: {:e}, {least:e}", fit.squared_error);
                (found, best) = (found + fit.squared_error, best + least + slack);
            }
            assert!(found <= 1.1 * best, "{n}: {found:e}, the best {best:e}");
        }
    }

    /// Also where the largest code is not 127, and after a factor and rounding (`fold`).
    #[test]
    fn codes_are_found_again() {
        let mut state = 5u64;
        for largest in 64..=127i32 {
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as i32) % (2 * largest + 1) - largest
            };
            // Coprime to its neighbour, so that no larger scale gives the same values.
            let mut q: Vec<i32> = (0..40).map(|_| next()).collect();
            q.extend([largest, 1 - largest]);
            let w: Vec<f32> = q.iter().map(|&q| (f64::from(0.013f32 * q as f32) * -1.7) as f32).collect();
            let mut codes = vec![0; w.len()];
            encode(Isa::PORTABLE, &w, fit(&w).scale, &mut codes);
            assert!(codes.iter().zip(&q).all(|(&code, &q)| i32::from(code.cast_signed()) == -q), "{largest}");
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
