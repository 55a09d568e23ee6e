//! The options that say what is known of the layers' inputs; shared by `pack` and `inspect`. Not here:
//! how that is collected ([`super::calibrate`]).

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use twn_pack::{Calibration, Checkpoint, Error, Result};

use super::Session;

#[derive(Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "What is known of the layers' inputs")]
pub(super) struct CalibrationArgs {
    /// Statistics of inputs (XᵀX or its diagonal per layer, spec/calibration-v1.md): codes and scales are
    /// then those that change the layers' outputs least
    #[arg(long, value_name = "STATS.safetensors")]
    calibration: Option<PathBuf>,
    /// Add so much of the mean of its diagonal to the diagonal of each XᵀX: the more, the less is made of the rows
    /// at hand [default: 0.1]
    #[arg(long, value_name = "SHARE", requires = "calibration", allow_negative_numbers = true)]
    damping: Option<f64>,
    /// Which weights are rounded first [default: diagonal]
    #[arg(long, value_name = "WHICH", requires = "calibration")]
    order: Option<OrderName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OrderName {
    /// Those of the strongest inputs
    Diagonal,
    /// One after another, as they stand
    Natural,
}

impl CalibrationArgs {
    /// The statistics, with a warning for each of them that belongs to no tensor.
    pub fn open(&self, checkpoint: &Checkpoint, session: &Session) -> Result<Option<Calibration>> {
        let Some(path) = &self.calibration else { return Ok(None) };
        let calibration = Calibration::open(path)?
            .with_damping(self.damping.unwrap_or(Calibration::DAMPING))?
            .with_act_order(self.order != Some(OrderName::Natural));
        session.warn(&calibration.warnings(checkpoint));
        Ok(Some(calibration))
    }

    /// Says of which tensors nothing was known, and of which some groups of filters: `calibrated` were packed by it.
    pub fn warn_of_missing(
        missing: &[&str],
        calibrated: &[&str],
        calibration: Option<&Calibration>,
        session: &Session,
    ) {
        if let Some(first) = missing.first() {
            let others = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
            session.warn(&[format!("`{first}`{others}: no statistics, or such of zeros only; packed without")]);
        }
        let unseen = calibration.map(|calibration| calibration.unseen(calibrated.iter().copied()));
        session.warn(&unseen.unwrap_or_default());
    }

    /// Whether any was given for a run that has no use for it.
    pub fn refuse(&self, why: &str) -> Result<()> {
        if *self == Self::default() { Ok(()) } else { Err(Error::Request(why.to_owned())) }
    }
}
