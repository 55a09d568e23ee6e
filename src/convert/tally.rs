//! Statistics of a tensor under way, added up in the order of the pieces. Not here: the totals of
//! a file ([`crate::report`]).

use crate::container::{Spread, Stats};
use crate::error::WeightsProblem;
use crate::ternarize::{Above, Fit, Threshold};

/// Counts and sums so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    negative: u64,
    zeros: u64,
    positive: u64,
    squared_error: f64,
    squared_norm: f64,
    units: u64,
    alpha: Spread,
    delta: Option<Spread>,
}

impl Tally {
    pub fn count(&mut self, weights: usize, above: Above) {
        self.positive += above.positive;
        self.negative += above.count - above.positive;
        self.zeros += weights as u64 - above.count;
    }

    pub fn add_fit(&mut self, fit: &Fit) {
        let one = |value: f64| Spread { min: value, mean: value, max: value };
        let delta = match fit.threshold {
            Threshold::Delta(delta) => Some(one(delta)),
            Threshold::Sign => None,
        };
        self.add(&Self {
            squared_error: fit.squared_error,
            squared_norm: fit.squared_norm,
            units: 1,
            alpha: one(f64::from(fit.scale)),
            delta,
            ..Self::default()
        });
    }

    /// Adds what comes next. Until the end `mean` holds sums.
    pub fn add(&mut self, next: &Self) {
        self.negative += next.negative;
        self.zeros += next.zeros;
        self.positive += next.positive;
        if next.units == 0 {
            return;
        }
        self.squared_error += next.squared_error;
        self.squared_norm += next.squared_norm;
        let join =
            |a: Spread, b: Spread| Spread { min: a.min.min(b.min), mean: a.mean + b.mean, max: a.max.max(b.max) };
        if self.units == 0 {
            (self.alpha, self.delta) = (next.alpha, next.delta);
        } else {
            self.alpha = join(self.alpha, next.alpha);
            self.delta = self.delta.zip(next.delta).map(|(a, b)| join(a, b));
        }
        self.units += next.units;
    }

    /// All of it, unless something went beyond the range of `f64`: each unit's own numbers are
    /// finite, but thresholds (a huge factor) and sums need not be.
    pub fn stats(&self, elements: u64) -> Result<Stats, WeightsProblem> {
        debug_assert_eq!(self.negative + self.zeros + self.positive, elements);
        // Rounding must not put the mean of equal values outside of them.
        let mean = |s: Spread| Spread { mean: (s.mean / self.units.max(1) as f64).clamp(s.min, s.max), ..s };
        let (alpha, delta) = (mean(self.alpha), self.delta.map(mean));
        let delta_mean = delta.unwrap_or_default().mean;
        let sums = [("‖W‖²", self.squared_norm), ("‖W−Ŵ‖²", self.squared_error), ("the mean threshold", delta_mean)];
        if let Some((what, found)) = sums.into_iter().find(|(_, sum)| !sum.is_finite()) {
            return Err(WeightsProblem::Statistics { what, found });
        }
        Ok(Stats {
            alpha,
            delta,
            negative: self.negative,
            positive: self.positive,
            squared_error: self.squared_error,
            squared_norm: self.squared_norm,
            zeros: self.zeros,
        })
    }
}
