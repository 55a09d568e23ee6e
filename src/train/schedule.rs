//! Learning rates over the epochs. Not here: what a step does with them.

use serde::{Deserialize, Serialize};

/// How the rate changes from epoch to epoch.
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
    /// Half a cosine from the rate down to 0 behind the last epoch.
    Cosine,
}

impl Schedule {
    /// The rate in an epoch, counted from 0.
    pub fn rate(&self, rate: f64, epoch: u32, epochs: u32) -> f64 {
        match self {
            Self::Constant => rate,
            Self::MultiStep { milestones, divisor } => {
                let passed = milestones.iter().filter(|milestone| **milestone <= epoch).count();
                rate / divisor.powi(passed as i32)
            }
            Self::Cosine => {
                let done = f64::from(epoch) / f64::from(epochs.max(1));
                rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        }
    }
}
