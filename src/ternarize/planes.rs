//! Several planes: W ≈ Σ α_p·T_p over weights that share their P scales.
//! Source: trit-planes, arXiv 2509.16989. A greedy start, in which the method fits each plane to what
//! the planes before it leave over; then by turns the best codes for the scales (the nearest of the
//! 3^P values that they give) and the least-squares scales for the codes, until the squared error
//! stops falling. That ends in a local optimum, so the best of some starts with scales in a ratio of
//! 3 (evenly spaced values) or 2 are improved in the same way, and so is what one plane less came to, with a
//! scale more; the best of all counts. A method of signs only stays one: 2^P values.
//!
//! Weights in memory are sorted once: all that a step has to know of them (how many take each value, and their
//! sum) is then found by bisection.
//!
//! Scales are rounded to their stored type each time, and values are summed in `f32` as a reader
//! sums them, so the error is that of what is stored. It never rises: a step that does not lower it
//! is not taken.
//! Not here: the methods, or second moments of inputs ([`crate::calibration`]).

use std::fmt::Debug;

use super::unit::{Data, LongWeights, Slice, on_slice};
use super::{Fit, ScaleDtype, Ternarizer, Threshold, Unit, fit};
use crate::limits::PACKED_PLANES as MAX;
use crate::vector::block::{AboveOf, Weight};
use crate::vector::{Isa, Task};

/// Values that the codes of all planes can give.
const COMBINATIONS: usize = 3usize.pow(MAX as u32);

/// Those that are not negative: one for each of 3^P codes and its mirror image, and 0.
const LEVELS: usize = COMBINATIONS.div_ceil(2);

/// Steps at most; a few dozen are usual.
const STEPS: usize = 200;

/// Starts of evenly spaced values that are improved.
const STARTS: usize = 2;

/// A step that lowers the error by less than this share of it is the last: of every start at first, and of those
/// that are improved to the end.
const ROUGH: f64 = 1e-3;
const WORTHWHILE: f64 = 1e-6;

/// How many of the roughly improved starts are improved to the end where every step takes a pass over the weights. Of
/// sorted weights all are: the method's own start often comes to its end slowly, and yet the furthest.
const FINALISTS: usize = 2;

/// By how much a step goes further than the one before it, and how far at most, in units of the way to the
/// least-squares scales. (By turns codes and scales come near to their end slowly, always in the same direction.)
const FURTHER: f64 = 1.3;
const FURTHEST: f64 = 6.0;

/// The values that some scales can give, and their codes. They lie symmetrically around 0, so only
/// those that are not negative are kept, in ascending order.
#[derive(Debug, Clone)]
pub(crate) struct Levels {
    planes: usize,
    values: Vec<f32>,
    /// A weight takes level k when k of these lie below its magnitude; on one of them the lower level.
    midpoints: Vec<f64>,
    /// t+1 per plane, for weights that are not negative; the others have 2 minus that.
    codes: Vec<[u8; MAX]>,
}

impl Levels {
    /// Of these scales, at most [`MAX`], none negative; with `binary` codes are never 0.
    pub fn new(scales: &[f32], binary: bool) -> Self {
        // Adding a term keeps the order, so the values with each of a plane's digits are merged, and nothing is
        // sorted. Of equal values the first digit here counts: zero where there is one.
        let digits: &[u8] = if binary { &[2, 0] } else { &[1, 2, 0] };
        let mut all = [(0.0f32, [1u8; MAX]); COMBINATIONS];
        let (mut next, mut count) = (all, 1);
        for (p, &scale) in scales.iter().enumerate() {
            let value = |digit: u8, before: f32| match digit {
                0 => before - scale,
                1 => before,
                _ => before + scale,
            };
            let mut at = [0; 3];
            for to in &mut next[..count * digits.len()] {
                let mut least = (f32::INFINITY, usize::MAX);
                for (i, (&digit, &at)) in digits.iter().zip(&at).enumerate().filter(|(_, (_, at))| **at < count) {
                    let value = value(digit, all[at].0);
                    if value < least.0 || least.1 == usize::MAX {
                        least = (value, i);
                    }
                }
                let (value, i) = least;
                *to = (value, all[at[i]].1);
                to.1[p] = digits[i];
                at[i] += 1;
            }
            count *= digits.len();
            std::mem::swap(&mut all, &mut next);
        }
        let (mut values, mut codes) = (Vec::with_capacity(LEVELS), Vec::with_capacity(LEVELS));
        for (value, its_codes) in all[..count].iter().filter(|(value, _)| *value >= 0.0 && value.is_finite()) {
            if values.last() != Some(&value.abs()) {
                values.push(value.abs());
                codes.push(*its_codes);
            }
        }
        let midpoints = values.windows(2).map(|pair| f64::midpoint(f64::from(pair[0]), f64::from(pair[1]))).collect();
        Self { planes: scales.len(), values, midpoints, codes }
    }

    /// The level nearest to a magnitude.
    fn nearest(&self, magnitude: f64) -> usize {
        self.midpoints.partition_point(|&midpoint| magnitude > midpoint)
    }

    /// The value nearest to a weight, and t per plane.
    #[cfg(feature = "calibration")]
    pub fn round(&self, weight: f64) -> (f64, [i8; MAX]) {
        let level = self.nearest(weight.abs());
        let sign: i8 = if weight < 0.0 { -1 } else { 1 };
        (f64::from(sign) * f64::from(self.values[level]), self.codes[level].map(|code| sign * (code as i8 - 1)))
    }

    /// Writes the codes t+1 of weights, one byte each: `codes[p]` for plane p, as long as `weights`.
    pub fn encode<W: Weight>(&self, isa: Isa, weights: &[W], codes: &mut [&mut [u8]]) {
        isa.run(Encode { levels: self, weights, codes });
    }

    /// ‖W − Ŵ‖², term by term: exactly 0 where the weights are such values already.
    fn squared_error(&self, unit: &Unit<'_>) -> f64 {
        let error = |x: f64| x - f64::from(self.values[self.nearest(x)]);
        unit.sum(
            |slice| on_slice!(slice, w => w.iter().map(|w| error(w.magnitude().to_f64()).powi(2)).sum()),
            |a: f64, b| a + b,
        )
    }
}

struct Encode<'a, 'c, W> {
    levels: &'a Levels,
    weights: &'a [W],
    codes: &'a mut [&'c mut [u8]],
}

impl<W: Weight> Task for Encode<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        const RUN: usize = 64;
        let Levels { midpoints, codes: table, .. } = self.levels;
        for (at, weights) in self.weights.chunks(RUN).enumerate() {
            let mut level = [0u8; RUN];
            for &midpoint in midpoints {
                let midpoint = W::floor_from(midpoint);
                level.iter_mut().zip(weights).for_each(|(level, w)| *level += u8::from(w.magnitude() > midpoint));
            }
            for (p, codes) in self.codes.iter_mut().enumerate() {
                let codes = codes[at * RUN..].iter_mut().zip(weights).zip(level);
                codes.for_each(|((code, &w), level)| {
                    let up = table[usize::from(level)][p];
                    *code = if w < W::default() { 2 - up } else { up };
                });
            }
        }
    }
}

/// The weights above each midpoint: how many, and Σ|w|; and before them all weights.
#[derive(Clone, Copy)]
struct Tails([(u64, f64); LEVELS]);

impl Default for Tails {
    fn default() -> Self {
        Self([(0, 0.0); LEVELS])
    }
}

/// What is fitted: weights that share their scales, and those in memory also in order, so that a look at them does
/// not take a pass.
struct Weights<'a> {
    unit: &'a Unit<'a>,
    /// Magnitudes, smallest first, and what the first k of them add up to.
    sorted: Option<(Vec<f64>, Vec<f64>)>,
}

impl<'a> Weights<'a> {
    fn new(unit: &'a Unit<'a>) -> Self {
        let sorted = match *unit.data() {
            Data::F32(weights) => Some(sorted(weights)),
            Data::F64(weights) => Some(sorted(weights)),
            Data::Long(_) => None,
        };
        Self { unit, sorted }
    }
}

/// Magnitudes, smallest first, and their sums.
fn sorted<W: Weight>(weights: &[W]) -> (Vec<f64>, Vec<f64>) {
    let mut bits: Vec<W::Bits> = weights.iter().map(|w| w.magnitude_bits()).collect();
    bits.sort_unstable();
    let magnitudes: Vec<f64> = bits.into_iter().map(|bits| W::from_bits(bits).to_f64()).collect();
    let mut sums = vec![0.0];
    sums.extend(magnitudes.iter().scan(0.0, |sum, x| {
        *sum += x;
        Some(*sum)
    }));
    (magnitudes, sums)
}

impl Tails {
    fn of(weights: &Weights<'_>, levels: &Levels) -> Self {
        let Some((magnitudes, sums)) = &weights.sorted else { return Self::by_passes(weights.unit, levels) };
        let (n, mut below, mut tails) = (magnitudes.len(), 0, Self::default());
        tails.0[0] = (n as u64, sums[n]);
        for (tail, &midpoint) in tails.0[1..].iter_mut().zip(&levels.midpoints) {
            below += magnitudes[below..].partition_point(|&x| x <= midpoint);
            *tail = ((n - below) as u64, sums[n] - sums[below]);
        }
        tails
    }

    fn by_passes(unit: &Unit<'_>, levels: &Levels) -> Self {
        let isa = unit.isa();
        let mut tails = unit.sum(
            |slice| {
                on_slice!(slice, weights => {
                    let mut tails = Self::default();
                    for (tail, &delta) in tails.0[1..].iter_mut().zip(&levels.midpoints) {
                        let above = isa.run(AboveOf { weights, delta });
                        *tail = (above.count, above.sum);
                    }
                    tails
                })
            },
            |mut all, next| {
                all.0.iter_mut().zip(next.0).for_each(|(a, b)| *a = (a.0 + b.0, a.1 + b.1));
                all
            },
        );
        tails.0[0] = (unit.len() as u64, unit.moments().sum);
        tails
    }

    /// How many weights take level k, and Σ|w| over them. (Cancelled meanwhile, sums need not fit
    /// together.)
    fn level(&self, k: usize) -> (f64, f64) {
        let (above, next) = (self.0[k], self.0.get(k + 1).copied().unwrap_or_default());
        (above.0.saturating_sub(next.0) as f64, above.1 - next.1)
    }
}

/// The scales of one unit over several planes, largest first, and what they cost.
#[derive(Debug, Clone)]
pub(crate) struct PlanesFit {
    /// As stored.
    pub scales: Vec<f32>,
    /// The largest one before rounding.
    pub exact_scale: f64,
    pub levels: Levels,
    /// ‖W − Ŵ‖², with the stored scales and the nearest codes.
    pub squared_error: f64,
    /// ‖W‖².
    pub squared_norm: f64,
}

impl PlanesFit {
    /// Scales that were chosen elsewhere; what they cost is counted there.
    #[cfg(feature = "calibration")]
    pub fn given(scales: Vec<f32>, binary: bool) -> Self {
        let levels = Levels::new(&scales, binary);
        let exact_scale = scales.first().copied().map_or(0.0, f64::from);
        Self { scales, exact_scale, levels, squared_error: 0.0, squared_norm: 0.0 }
    }

    /// Whether the largest stored scale keeps its order of magnitude, as in [`Fit::scale_fits`]. A
    /// smaller one may be rounded to 0; its plane then is of no use, and the error says so.
    pub fn scale_fits(&self) -> bool {
        let largest = self.scales.first().copied().unwrap_or_default();
        self.scales.iter().all(|scale| scale.is_finite())
            && (largest > 0.0 || self.exact_scale == 0.0)
            && self.exact_scale.is_finite()
            && self.squared_norm.is_finite()
    }

    /// Of scales that are not negative, in any order.
    fn new(weights: &Weights<'_>, mut exact: Vec<f64>, dtype: ScaleDtype, binary: bool) -> (Self, Tails) {
        exact.sort_by(|a, b| b.total_cmp(a));
        let scales: Vec<f32> = exact.iter().map(|&scale| dtype.round(scale)).collect();
        // A scale beyond its type is refused later; until then it must not give values.
        let finite = |&scale: &f32| if scale.is_finite() { scale } else { 0.0 };
        let levels = Levels::new(&scales.iter().map(finite).collect::<Vec<_>>(), binary);
        let tails = Tails::of(weights, &levels);
        let unit = weights.unit;
        let squared_norm = unit.moments().sum_of_squares;
        let gains = levels.values.iter().enumerate().map(|(k, &value)| {
            let ((count, sum), value) = (tails.level(k), f64::from(value));
            value * (count * value - 2.0 * sum)
        });
        let mut squared_error = squared_norm + gains.sum::<f64>();
        // Expanded it is free; where that loses more than half of the digits, it is summed again.
        if squared_error.is_nan() || squared_error < squared_norm * 1e-8 {
            squared_error = levels.squared_error(unit);
        }
        let exact_scale = exact.first().copied().unwrap_or_default();
        (Self { scales, exact_scale, levels, squared_error, squared_norm }, tails)
    }

    /// Its scales, and the best one for what they leave over if that is spread evenly between two bounds ±b: 2b/3.
    fn with_one_more(&self, unit: &Unit<'_>) -> Vec<f64> {
        let bound = (3.0 * self.squared_error / unit.len() as f64).sqrt();
        self.scales.iter().map(|&scale| f64::from(scale)).chain([2.0 / 3.0 * bound]).collect()
    }

    /// The least-squares scales for these codes; signs are the codes' business.
    fn rescaled(&self, tails: &Tails) -> Vec<f64> {
        let system = LeastSquares::of_levels(&self.levels, |k| tails.level(k));
        system.solve(self.levels.planes).into_iter().map(f64::abs).collect()
    }
}

/// αᵀ·matrix·α − 2·rightᵀ·α is to be smallest; the matrix is positive semidefinite.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct LeastSquares {
    pub matrix: [[f64; MAX]; MAX],
    pub right: [f64; MAX],
}

impl LeastSquares {
    /// For weights of which `level(k)` says how much those at level k count, and Σ|w| of them.
    fn of_levels(levels: &Levels, level: impl Fn(usize) -> (f64, f64)) -> Self {
        let mut system = Self::default();
        for (k, codes) in levels.codes.iter().enumerate() {
            let (count, sum) = level(k);
            let t = codes.map(|code| f64::from(code) - 1.0);
            for p in 0..levels.planes {
                system.right[p] += sum * t[p];
                (0..levels.planes).for_each(|q| system.matrix[p][q] += count * t[p] * t[q]);
            }
        }
        system
    }

    /// Adds what other weights with the same scales say.
    #[cfg(feature = "calibration")]
    pub fn add(&mut self, other: &Self) {
        for p in 0..MAX {
            self.right[p] += other.right[p];
            (0..MAX).for_each(|q| self.matrix[p][q] += other.matrix[p][q]);
        }
    }

    /// Of a system for changes of scales: those as stored, with the sign that their codes are to take, if they lower
    /// the error.
    #[cfg(feature = "calibration")]
    pub fn rescaled(&self, old: &[f64], dtype: ScaleDtype) -> Option<Vec<f64>> {
        let round = |scale: f64| f64::from(dtype.round(scale.abs())).copysign(scale);
        let new: Vec<f64> = self.solve(old.len()).iter().zip(old).map(|(delta, old)| round(old + delta)).collect();
        let delta: Vec<f64> = new.iter().zip(old).map(|(new, old)| new - old).collect();
        let along = |p: usize| delta.iter().zip(&self.matrix[p]).map(|(delta, m)| delta * m).sum::<f64>();
        let gain: f64 = (0..old.len()).map(|p| (2.0 * self.right[p] - along(p)) * delta[p]).sum();
        (gain > 0.0 && new.iter().all(|scale| scale.is_finite())).then_some(new)
    }

    /// The first `planes` of α. A plane that is a combination of those before it gets 0.
    pub fn solve(mut self, planes: usize) -> Vec<f64> {
        let diagonal: Vec<f64> = (0..planes).map(|p| self.matrix[p][p]).collect();
        let mut used = [false; MAX];
        for p in 0..planes {
            let pivot = self.matrix[p][p];
            used[p] = pivot > 1e-10 * diagonal[p] && pivot.is_normal();
            for q in (p + 1..planes).filter(|_| used[p]) {
                let factor = self.matrix[q][p] / pivot;
                (p..planes).for_each(|r| self.matrix[q][r] -= factor * self.matrix[p][r]);
                self.right[q] -= factor * self.right[p];
            }
        }
        let mut alpha = vec![0.0; planes];
        for p in (0..planes).rev().filter(|&p| used[p]) {
            let known: f64 = (p + 1..planes).map(|q| self.matrix[p][q] * alpha[q]).sum();
            alpha[p] = (self.right[p] - known) / self.matrix[p][p];
        }
        alpha
    }
}

/// Scales of `planes` planes (2 to [`MAX`]) for weights that share them: at least one weight, all finite.
pub(crate) fn fit_planes(method: &dyn Ternarizer, unit: &Unit<'_>, planes: usize, dtype: ScaleDtype) -> PlanesFit {
    let binary = method.binary();
    let weights = Weights::new(unit);
    let (greedy, fits) = greedy(method, unit, planes, dtype);
    let fit = |scales: Vec<f64>| PlanesFit::new(&weights, scales, dtype, binary);
    let mut best: Option<PlanesFit> = None;
    // From two planes on: what fewer come to is a start as well.
    let last = planes;
    for planes in 2..=last {
        let is_last = planes == last;
        let start = fit(greedy[..planes.min(greedy.len())].to_vec());
        if !fits || start.0.squared_error == 0.0 {
            best = Some(start.0);
            continue;
        }
        let mut starts: Vec<_> = match is_last {
            true => spaced(unit, planes, binary).map(fit).filter(|(fit, _)| fit.scale_fits()).collect(),
            false => Vec::new(),
        };
        best_first(&mut starts, STARTS);
        starts.push(start);
        starts.extend(
            best.take().filter(|fewer| fewer.levels.planes < planes).map(|one_less| fit(one_less.with_one_more(unit))),
        );
        let mut ends: Vec<_> = starts.into_iter().map(|start| refined(&weights, start, dtype, binary, ROUGH)).collect();
        let finalists = if weights.sorted.is_some() { ends.len() } else { FINALISTS };
        best_first(&mut ends, if is_last { finalists } else { 1 });
        if is_last {
            ends = ends.into_iter().map(|end| refined(&weights, end, dtype, binary, WORTHWHILE)).collect();
            best_first(&mut ends, 1);
        }
        best = ends.into_iter().next().map(|(fit, _)| fit);
    }
    best.unwrap_or_else(|| fit(greedy).0)
}

/// Keeps so many of these, those of the least error, the best first.
fn best_first(fits: &mut Vec<(PlanesFit, Tails)>, count: usize) {
    fits.sort_by(|(a, _), (b, _)| a.squared_error.total_cmp(&b.squared_error));
    fits.truncate(count);
}

/// Scales in a constant ratio, of several sizes against the weights' root mean square.
fn spaced(unit: &Unit<'_>, planes: usize, binary: bool) -> impl Iterator<Item = Vec<f64>> {
    let size = (unit.moments().sum_of_squares / unit.len() as f64).sqrt();
    let ratios: &[f64] = if binary { &[2.0] } else { &[3.0, 2.0] };
    let sizes = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0];
    ratios.iter().flat_map(move |ratio| {
        sizes.into_iter().map(move |s| (0..planes).map(|p| s * size / ratio.powi(p as i32)).collect())
    })
}

/// By turns the best codes and the best scales for them, or scales a little further in that direction; until that
/// lowers the error by less than this share of it.
fn refined(
    weights: &Weights<'_>,
    start: (PlanesFit, Tails),
    dtype: ScaleDtype,
    binary: bool,
    worthwhile: f64,
) -> (PlanesFit, Tails) {
    let (mut best, mut further) = (start, 1.0);
    for _ in 0..STEPS {
        let (now, tails) = &best;
        if now.squared_error == 0.0 {
            break;
        }
        let step = |(wanted, &scale): (f64, &f32)| (f64::from(scale) + further * (wanted - f64::from(scale))).abs();
        let scales = now.rescaled(tails).into_iter().zip(&now.scales).map(step).collect();
        let next = PlanesFit::new(weights, scales, dtype, binary);
        let (before, after) = (now.squared_error, next.0.squared_error);
        if after < before && next.0.scale_fits() {
            best = next;
        }
        let was_worth_it = after < before * (1.0 - worthwhile);
        match was_worth_it {
            true => further = f64::min(further * FURTHER, FURTHEST),
            false if further > 1.0 => further = 1.0,
            false => break,
        }
    }
    best
}

/// The method's scale for the weights, for what that leaves over, and so on; and whether the first
/// one fits its type. What comes before each plane is subtracted anew on every pass over long units.
fn greedy(method: &dyn Ternarizer, unit: &Unit<'_>, planes: usize, dtype: ScaleDtype) -> (Vec<f64>, bool) {
    let first = fit(method, unit, dtype);
    let (mut fits, fitting) = (vec![first], first.scale_fits());
    while fits.len() < planes && fitting {
        let next = match *unit.data() {
            Data::F32(w) => fit(method, &Unit::from_f64(unit.isa(), &left_over(&fits, w)), dtype),
            Data::F64(w) => fit(method, &Unit::from_f64(unit.isa(), &left_over(&fits, w)), dtype),
            Data::Long(weights) => fit(method, &Unit::from_long(unit.isa(), &LeftOver { weights, fits: &fits }), dtype),
        };
        fits.push(next);
    }
    (fits.iter().map(|fit| fit.exact_scale).collect(), fitting)
}

/// W − Σ α_p·T_p over the planes so far.
fn left_over<W: Weight>(fits: &[Fit], weights: &[W]) -> Vec<f64> {
    let one = |fit: &Fit, x: f64| {
        let kept = match fit.threshold {
            Threshold::Delta(delta) => x.abs() > delta,
            Threshold::Sign => true,
        };
        match (kept, x < 0.0) {
            (false, _) => x,
            (true, false) => x - f64::from(fit.scale),
            (true, true) => x + f64::from(fit.scale),
        }
    };
    weights.iter().map(|w| fits.iter().fold(w.to_f64(), |x, fit| one(fit, x))).collect()
}

/// The same of weights that do not lie in memory.
#[derive(Debug)]
struct LeftOver<'a> {
    weights: &'a dyn LongWeights,
    fits: &'a [Fit],
}

impl LongWeights for LeftOver<'_> {
    fn len(&self) -> usize {
        self.weights.len()
    }

    fn parts(&self, visit: &mut dyn FnMut(&dyn LongWeights)) {
        self.weights.parts(&mut |weights| visit(&LeftOver { weights, fits: self.fits }));
    }

    fn block(&self, i: usize, visit: &mut dyn FnMut(Slice<'_>)) {
        self.weights.block(i, &mut |slice| {
            let left = on_slice!(slice, w => left_over(self.fits, w));
            visit(Slice::F64(&left));
        });
    }
}

/// The same by turns for weights that count as much as `importance` says, all in memory: from these
/// scales (one per plane) to such of least Σ importance·(w − ŵ)² nearby, and its levels.
#[cfg(feature = "calibration")]
pub(crate) fn refine_weighted(
    weights: &[f64],
    importance: &[f64],
    scales: Vec<f32>,
    dtype: ScaleDtype,
    binary: bool,
) -> (Vec<f32>, Levels) {
    let planes = scales.len();
    let measure = |scales: Vec<f32>| {
        let levels = Levels::new(&scales, binary);
        let (mut sums, mut error) = ([(0.0, 0.0); LEVELS], 0.0);
        for (w, importance) in weights.iter().zip(importance) {
            let x = w.abs();
            let level = levels.nearest(x);
            sums[level].0 += importance;
            sums[level].1 += importance * x;
            error += importance * (x - f64::from(levels.values[level])).powi(2);
        }
        (error, scales, levels, sums)
    };
    let mut best = measure(scales);
    for _ in 0..STEPS {
        let (error, _, levels, sums) = &best;
        if *error == 0.0 {
            break;
        }
        let wanted = LeastSquares::of_levels(levels, |k| sums[k]).solve(planes);
        let mut rounded: Vec<f32> = wanted.into_iter().map(|scale| dtype.round(scale.abs())).collect();
        rounded.sort_by(|a, b| b.total_cmp(a));
        let next = measure(rounded);
        if !(next.0 < best.0 * (1.0 - WORTHWHILE) && next.1.iter().all(|scale| scale.is_finite())) {
            break;
        }
        best = next;
    }
    (best.1, best.2)
}
