//! Statistics of a tensor under way, added up in the order of the pieces. Not here: the totals of
//! a file ([`crate::report`]).

use crate::container::{Int8Stats, Spread, Stats};
use crate::error::WeightsProblem;
use crate::pack::Counts;
use crate::ternarize::{Above, Fitted, Threshold};

/// Counts and sums so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    negative: u64,
    zeros: u64,
    positive: u64,
    squared_error: f64,
    squared_norm: f64,
    scales: u64,
    alpha: Spread,
    delta: Option<Spread>,
    /// Error and norm under the inputs, where they are known.
    output: [f64; 2],
}

/// How many of the codes t+1 are which.
pub(super) fn counts_of(codes: &[u8]) -> Counts {
    let (zeros, positive) = (count_of(codes, 1), count_of(codes, 2));
    Counts { negative: codes.len() as u64 - zeros - positive, zeros, positive }
}

/// How many of the codes are that one.
fn count_of(codes: &[u8], code: u8) -> u64 {
    // As many as a byte counts, so that a vector holds many sums.
    let part = |codes: &[u8]| codes.iter().fold(0u8, |n, &c| n + u8::from(c == code));
    codes.chunks(255).map(|codes| u64::from(part(codes))).sum()
}

impl Tally {
    pub fn count(&mut self, weights: usize, above: Above) {
        self.positive += above.positive;
        self.negative += above.count - above.positive;
        self.zeros += weights as u64 - above.count;
    }

    /// The codes t+1 of one plane.
    pub fn count_codes(&mut self, codes: &[u8]) {
        self.add_counts(counts_of(codes));
    }

    /// What the codes of one plane are.
    pub fn add_counts(&mut self, codes: Counts) {
        self.negative += codes.negative;
        self.zeros += codes.zeros;
        self.positive += codes.positive;
    }

    pub fn add_fit(&mut self, fit: &Fitted) {
        let delta = match fit {
            Fitted::One(fit) => match fit.threshold {
                Threshold::Delta(delta) => Some(delta),
                Threshold::Sign => None,
            },
            // Codes of several planes are those of the nearest value; no threshold stands for them.
            Fitted::Several(_) => None,
        };
        let (squared_error, squared_norm) = fit.errors();
        self.add_unit(fit.scales(), delta, squared_error, squared_norm);
    }

    /// Weights that share these scales, one per plane.
    pub fn add_unit(&mut self, scales: &[f32], delta: Option<f64>, squared_error: f64, squared_norm: f64) {
        let one = |value: f64| Spread { min: value, mean: value, max: value };
        self.add_errors(squared_error, squared_norm);
        scales.iter().for_each(|&scale| self.add_scales(1, one(f64::from(scale)), delta.map(one)));
    }

    /// ‖W − Ŵ‖² and ‖W‖² of weights whose scale is counted elsewhere.
    pub fn add_errors(&mut self, squared_error: f64, squared_norm: f64) {
        self.squared_error += squared_error;
        self.squared_norm += squared_norm;
    }

    /// ‖X(W − Ŵ)‖² and ‖XW‖² of some filters.
    pub fn add_output(&mut self, [error, norm]: [f64; 2]) {
        self.output = [self.output[0] + error, self.output[1] + norm];
    }

    pub fn output(&self) -> [f64; 2] {
        self.output
    }

    /// Adds what comes next. Until the end `mean` holds sums.
    pub fn add(&mut self, next: &Self) {
        self.negative += next.negative;
        self.zeros += next.zeros;
        self.positive += next.positive;
        self.add_output(next.output);
        self.squared_error += next.squared_error;
        self.squared_norm += next.squared_norm;
        if next.scales > 0 {
            self.add_scales(next.scales, next.alpha, next.delta);
        }
    }

    fn add_scales(&mut self, count: u64, alpha: Spread, delta: Option<Spread>) {
        let join =
            |a: Spread, b: Spread| Spread { min: a.min.min(b.min), mean: a.mean + b.mean, max: a.max.max(b.max) };
        if self.scales == 0 {
            (self.alpha, self.delta) = (alpha, delta);
        } else {
            self.alpha = join(self.alpha, alpha);
            self.delta = self.delta.zip(delta).map(|(a, b)| join(a, b));
        }
        self.scales += count;
    }

    /// All of it, unless something went beyond the range of `f64`: each unit's own numbers are
    /// finite, but thresholds (a huge factor) and sums need not be.
    pub fn stats(&self, codes: u64) -> Result<Stats, WeightsProblem> {
        debug_assert_eq!(self.negative + self.zeros + self.positive, codes);
        let (alpha, delta) = self.spreads()?;
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

    /// The same of 8-bit codes, which are not counted.
    pub fn int8_stats(&self) -> Result<Int8Stats, WeightsProblem> {
        let (alpha, _) = self.spreads()?;
        Ok(Int8Stats { alpha, squared_error: self.squared_error, squared_norm: self.squared_norm })
    }

    fn spreads(&self) -> Result<(Spread, Option<Spread>), WeightsProblem> {
        // Rounding must not put the mean of equal values outside of them.
        let mean = |s: Spread| Spread { mean: (s.mean / self.scales.max(1) as f64).clamp(s.min, s.max), ..s };
        let (alpha, delta) = (mean(self.alpha), self.delta.map(mean));
        let delta_mean = delta.unwrap_or_default().mean;
        let [output_error, output_norm] = self.output;
        let sums = [
            ("‖W‖²", self.squared_norm),
            ("‖W−Ŵ‖²", self.squared_error),
            ("the mean threshold", delta_mean),
            ("‖XW‖² over the inputs", output_norm),
            ("‖X(W−Ŵ)‖² over the inputs", output_error),
        ];
        if let Some((what, found)) = sums.into_iter().find(|(_, sum)| !sum.is_finite()) {
            return Err(WeightsProblem::Statistics { what, found });
        }
        Ok((alpha, delta))
    }
}
