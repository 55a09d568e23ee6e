//! Several planes: W ≈ Σ α_p·T_p over weights that share their P scales.
//! Source: trit-planes, arXiv 2509.16989. A greedy start, in which the method fits each plane to what
//! the planes before it leave over; then by turns the best codes for the scales (the nearest of the
//! 3^P values that they give) and the least-squares scales for the codes, until the squared error
//! stops falling. That ends in a local optimum, so starts whose scales have other ratios are improved in the same
//! way (a table in `starts.rs`), and so is what one plane less came to, with a scale more; the best of all
//! counts. A method of signs only stays one: 2^P values.
//!
//! Weights in memory are sorted once: all that a step has to know of them (how many take each value, and their
//! sum) is then found by bisection. Of more weights than are held in memory a sample is, for the starts, and passes
//! over all of them improve what comes of that.
//!
//! Scales are rounded to their stored type each time, and values are summed in `f32` as a reader
//! sums them, so the error is that of what is stored. It never rises: a step that does not lower it
//! is not taken.
//! Not here: the methods, or second moments of inputs ([`crate::calibration`]).

mod levels;
mod starts;
mod tails;

#[cfg(feature = "calibration")]
use self::levels::LEVELS;
pub(crate) use self::levels::Levels;
use self::starts::{SIZES, USUAL, greedy, shapes};
use self::tails::{Tails, Weights, sample};
use super::{CANCELS, ScaleDtype, Ternarizer, Unit};
use crate::limits::PACKED_PLANES as MAX;

/// Steps at most; a few dozen are usual.
const STEPS: usize = 200;

/// A step that lowers the error by less than this share of it is the last: of every start at first, and of those
/// that are improved to the end.
const ROUGH: f64 = 1e-3;
pub(crate) const WORTHWHILE: f64 = 1e-6;

/// How many of the roughly improved starts are improved to the end. (More than two were no better for any of 136 filters of
/// LeNet-5 and of known distributions.)
const FINALISTS: usize = 2;

/// By how much a step goes further than the one before it, and how far at most, in units of the way to the
/// least-squares scales. (By turns codes and scales come near to their end slowly, always in the same direction.)
const FURTHER: f64 = 1.3;
const FURTHEST: f64 = 6.0;

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
        let levels = Levels::new(&scales, binary);
        let tails = Tails::of(weights, &levels);
        let unit = weights.unit;
        let squared_norm = unit.moments().sum_of_squares;
        let gains = levels.values.iter().enumerate().map(|(k, &value)| {
            let ((count, sum), value) = (tails.level(k), f64::from(value));
            value * (count * value - 2.0 * sum)
        });
        let mut squared_error = squared_norm + gains.sum::<f64>();
        if squared_error.is_nan() || squared_error < squared_norm * CANCELS {
            squared_error = levels.squared_error(unit);
        }
        let exact_scale = exact.first().copied().unwrap_or_default();
        (Self { scales, exact_scale, levels, squared_error, squared_norm }, tails)
    }

    /// To go on with, over other weights.
    fn stored_scales(&self) -> Vec<f64> {
        self.scales.iter().map(|&scale| f64::from(scale)).collect()
    }

    /// Its scales, and the best one for what they leave over if that is spread evenly between two bounds ±b: 2b/3.
    fn with_one_more(&self, unit: &Unit<'_>) -> Vec<f64> {
        let bound = (3.0 * self.squared_error / unit.len() as f64).sqrt();
        [self.stored_scales(), vec![2.0 / 3.0 * bound]].concat()
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
    let (greedy, fits) = greedy(method, unit, planes, dtype);
    let search = Search { weights: Weights::new(unit), dtype, binary: method.binary() };
    let start = search.fit(greedy.clone());
    if !fits || start.0.squared_error == 0.0 {
        return start.0;
    }
    if search.weights.sorted.is_some() {
        return search.ends(&greedy).swap_remove(0).0;
    }
    let mut starts = vec![start];
    let sample = sample(unit);
    if !sample.is_empty() {
        let sample = Unit::from_f64(unit.isa(), &sample);
        let ends = Search { weights: Weights::new(&sample), ..search }.ends(&greedy);
        starts.extend(ends.into_iter().map(|(end, _)| search.fit(end.stored_scales())));
    }
    best_first(&mut starts, FINALISTS);
    let mut ends: Vec<_> = starts.into_iter().map(|start| search.refined(start, WORTHWHILE)).collect();
    best_first(&mut ends, 1);
    ends.swap_remove(0).0
}

/// Keeps so many of these, those of the least error, the best first.
fn best_first(fits: &mut Vec<(PlanesFit, Tails)>, count: usize) {
    fits.sort_by(|(a, _), (b, _)| a.squared_error.total_cmp(&b.squared_error));
    fits.truncate(count);
}

/// Weights, and what their scales have to be like.
struct Search<'a> {
    weights: Weights<'a>,
    dtype: ScaleDtype,
    binary: bool,
}

impl Search<'_> {
    fn fit(&self, scales: Vec<f64>) -> (PlanesFit, Tails) {
        PlanesFit::new(&self.weights, scales, self.dtype, self.binary)
    }

    /// What comes of all starts, the best first: of the method's scales, of each of the [`shapes`], and of what one plane
    /// less comes to.
    fn ends(&self, greedy: &[f64]) -> Vec<(PlanesFit, Tails)> {
        let mut ends: Vec<(PlanesFit, Tails)> = Vec::new();
        // Signs have few values and few starts.
        let finalists = if self.binary { usize::MAX } else { FINALISTS };
        for planes in 2..=greedy.len() {
            let is_last = planes == greedy.len();
            let mut starts = vec![self.fit(greedy[..planes].to_vec())];
            for (i, shape) in shapes(planes, self.binary).enumerate() {
                let mut sizes = self.sizes(&shape, is_last && (planes == 2 || self.binary));
                // Where values are evenly spaced, two sizes can lead apart.
                best_first(&mut sizes, if i == 0 { 2 } else { 1 });
                starts.append(&mut sizes);
            }
            starts.extend(ends.first().map(|(fewer, _)| self.fit(fewer.with_one_more(self.weights.unit))));
            if !is_last {
                best_first(&mut starts, finalists);
            }
            ends = starts.into_iter().map(|start| self.refined(start, ROUGH)).collect();
            best_first(&mut ends, if is_last { finalists } else { 1 });
        }
        let mut ends: Vec<_> = ends.into_iter().map(|end| self.refined(end, WORTHWHILE)).collect();
        best_first(&mut ends, FINALISTS);
        ends
    }

    /// Scales in this shape, in all sizes, or from [`USUAL`] up or down as long as that is better.
    fn sizes(&self, shape: &[f64], all: bool) -> Vec<(PlanesFit, Tails)> {
        let unit = self.weights.unit;
        let root_mean_square = (unit.moments().sum_of_squares / unit.len() as f64).sqrt();
        let fit = |size: &f64| self.fit(shape.iter().map(|part| size * root_mean_square * part).collect());
        let (smaller, larger) = SIZES.split_at(USUAL);
        let walks: [&mut dyn Iterator<Item = &f64>; 2] = [&mut larger.iter(), &mut smaller.iter().rev()];
        let (mut fits, mut least) = (Vec::new(), f64::INFINITY);
        for walk in walks {
            for next in walk.map(fit).filter(|(fit, _)| fit.scale_fits()) {
                let error = next.0.squared_error;
                fits.push(next);
                if error >= least && !all {
                    break;
                }
                least = error.min(least);
            }
        }
        fits
    }

    /// By turns the best codes and the best scales for them, or scales a little further in that direction; until that
    /// lowers the error by less than this share of it.
    fn refined(&self, start: (PlanesFit, Tails), worthwhile: f64) -> (PlanesFit, Tails) {
        let (mut best, mut further) = (start, 1.0);
        for _ in 0..STEPS {
            let (now, tails) = &best;
            if now.squared_error == 0.0 {
                break;
            }
            let step = |(wanted, &scale): (f64, &f32)| (f64::from(scale) + further * (wanted - f64::from(scale))).abs();
            let scales = now.rescaled(tails).into_iter().zip(&now.scales).map(step).collect();
            let next = self.fit(scales);
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
}

/// The same by turns for weights that count as much as `importance` says, all in memory: from these
/// scales (one per plane) to such of least Σ importance·(w − ŵ)² nearby, and its levels; until a step lowers that by less
/// than this share.
#[cfg(feature = "calibration")]
pub(crate) fn refine_weighted(
    weights: &[f64],
    importance: &[f64],
    scales: Vec<f32>,
    dtype: ScaleDtype,
    binary: bool,
    worthwhile: f64,
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
        if !(next.0 < best.0 * (1.0 - worthwhile) && next.1.iter().all(|scale| scale.is_finite())) {
            break;
        }
        best = next;
    }
    (best.1, best.2)
}
