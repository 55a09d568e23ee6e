//! Learning rates over a run. Not here: what a step does with them.

use serde::{Deserialize, Serialize};

/// How the rate changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// Divided at some epochs.
    MultiStep {
        /// Epochs, counted from 0, from which on the rate is divided once more.
        milestones: Vec<u32>,
        /// By what.
        divisor: f64,
    },
    /// Half a cosine from the rate down to 0 behind the last step.
    Cosine,
}

impl Schedule {
    /// Milestones at which a run of so many epochs is over, so that nothing is divided there.
    pub fn beyond(&self, epochs: u32) -> Vec<u32> {
        match self {
            Self::Constant | Self::Cosine => Vec::new(),
            Self::MultiStep { milestones, .. } => milestones.iter().copied().filter(|&epoch| epoch >= epochs).collect(),
        }
    }

    /// Milestones that fall on the same epoch, where the rate is divided more than once.
    pub fn together(&self) -> Vec<u32> {
        match self {
            Self::Constant | Self::Cosine => Vec::new(),
            Self::MultiStep { milestones, .. } => {
                let mut twice: Vec<u32> =
                    milestones.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
                twice.dedup();
                twice
            }
        }
    }

    /// The rate after so many of all epochs, not always a whole number of them.
    pub fn rate(&self, rate: f64, done: f64, epochs: u32) -> f64 {
        match self {
            Self::Constant => rate,
            Self::MultiStep { milestones, divisor } => {
                let passed = milestones.iter().filter(|milestone| f64::from(**milestone) <= done).count();
                rate / divisor.powi(passed as i32)
            }
            Self::Cosine => {
                let share = done / f64::from(epochs.max(1));
                rate * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_over_a_run() {
        let steps = Schedule::MultiStep { milestones: vec![15, 25], divisor: 10.0 };
        let rates = [0.0, 14.99, 15.0, 24.9, 25.0, 29.0].map(|done| steps.rate(0.01, done, 30));
        let expected = [0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4];
        assert!(rates.iter().zip(expected).all(|(rate, expected)| (rate - expected).abs() < 1e-12), "{rates:?}");
        let cosine = [0.0, 1.0, 1.5, 3.0].map(|done| Schedule::Cosine.rate(1.0, done, 3));
        let expected = [1.0, 0.75, 0.5, 0.0];
        assert!(cosine.iter().zip(expected).all(|(rate, expected)| (rate - expected).abs() < 1e-12), "{cosine:?}");
        assert_eq!(Schedule::Constant.rate(0.1, 7.0, 9), 0.1);
    }
}
