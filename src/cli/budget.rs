//! The options that ask for a size or an error, and `twn-pack sweep`, which shows what they cost. Not here: the
//! choice; that is the library's.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use twn_pack::budget::{Ladder, Minimize, Target};
use twn_pack::{Checkpoint, Error, Plan, Report, Result, convert};

use super::calibration::CalibrationArgs;
use super::exit::Exit;
use super::pack::NonFinite;
use super::progress::Display;
use super::rules::RuleArgs;
use super::{Session, naming_input, print};

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "A size or an error that is asked for")]
pub(super) struct BudgetArgs {
    /// Each tensor as small as it can be with at most that relative squared error, of its weights, or with
    /// --calibration of its outputs: 1 to 4 planes, a scale per filter or group, 8 bits, or dense
    #[arg(long, value_name = "E", conflicts_with_all = ["target_size", "target_ratio"], allow_negative_numbers = true)]
    target_error: Option<f64>,
    /// A file of at most that size (1500000, 40MB, 1.5MiB), or so many bits per weight that becomes ternary
    /// (2.5bits), with a sum of the tensors' errors that is the smallest but for what one tensor's next step gains
    #[arg(long, value_name = "SIZE", conflicts_with = "target_ratio")]
    target_size: Option<String>,
    /// The same, at least that many times smaller than the checkpoint
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    target_ratio: Option<f64>,
    /// Which errors make up that sum: each relative to its tensor, or absolute [default: relative]
    #[arg(long, value_name = "WHICH")]
    minimize: Option<MinimizeName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MinimizeName {
    /// ‖W − Ŵ‖² / ‖W‖² of each tensor, or that of its outputs
    Relative,
    /// ‖W − Ŵ‖²
    Absolute,
}

fn minimize(name: Option<MinimizeName>) -> Minimize {
    match name {
        None | Some(MinimizeName::Relative) => Minimize::Relative,
        Some(MinimizeName::Absolute) => Minimize::Absolute,
    }
}

impl BudgetArgs {
    /// What is asked for, if anything is.
    pub fn target(&self) -> Result<Option<Target>> {
        let target = match (&self.target_size, self.target_error, self.target_ratio) {
            (Some(size), ..) => Some(Target::size(size)?),
            (None, Some(error), _) => Some(Target::Error(error)),
            (None, None, ratio) => ratio.map(Target::Ratio),
        };
        if matches!(target, None | Some(Target::Error(_))) && self.minimize.is_some() {
            return Err(Error::Request("--minimize is for --target-size and --target-ratio".to_owned()));
        }
        Ok(target)
    }

    /// Packs by what keeps the target; `reserve` bytes are for repairs.
    pub fn pack(
        &self,
        (target, reserve): (Target, u64),
        (checkpoint, plan): (&Checkpoint, &Plan),
        output: &Path,
        options: &convert::Options<'_>,
        session: &Session,
    ) -> Result<Report> {
        let ladder = Ladder::measure_for(output, checkpoint, plan, minimize(self.minimize), options)?;
        let mut ladder = ladder.with_reserve(reserve);
        session.warn(&ladder.impossible());
        let choice = ladder.choose(target)?;
        if let Target::Error(error) = target
            && let above @ [first, ..] = &ladder.above(error)[..]
        {
            let others = if above.len() > 1 { format!(" and {} more", above.len() - 1) } else { String::new() };
            session.warn(&[format!("`{first}`{others}: planned otherwise by the rules, with an error above {error}")]);
        }
        let options = convert::Options { limit: ladder.limit(target), ..*options };
        let report = convert::pack(checkpoint, &ladder.plan(&choice), output, &options)?;
        ladder.forget();
        let mut budget = ladder.budget(Some((target, &choice)));
        if let Some(chosen) = &mut budget.chosen {
            (chosen.file_bytes, chosen.ratio) = (report.totals.file_bytes, report.totals.ratio);
        }
        Ok(Report { budget: Some(budget), ..report })
    }
}

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// A checkpoint, in every form that packing takes
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Which errors are added up: each relative to its tensor, or absolute [default: relative]
    #[arg(long, value_name = "WHICH")]
    minimize: Option<MinimizeName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What to do with tensors that hold NaN or infinity
    #[arg(long, value_name = "HOW", default_value = "error")]
    non_finite: NonFinite,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
}

pub(super) fn sweep(args: SweepArgs, session: &Session) -> anyhow::Result<Exit> {
    args.rules.refuse_rungs()?;
    let (checkpoint, plan) = args.rules.open(&args.model, session)?;
    let calibration = args.calibration.open(&checkpoint, session)?;
    let display = Display::new(&session.global);
    let options = convert::Options {
        keep_non_finite_dense: args.non_finite == NonFinite::Dense,
        calibration: calibration.as_ref(),
        progress: Some(&|progress| display.show(progress)),
        cancel: Some(&session.cancel),
        ..convert::Options::default()
    };
    let ladder = Ladder::measure(&checkpoint, &plan, minimize(args.minimize), &options);
    let ladder = ladder.map_err(|e| naming_input(e, &args.model))?;
    let budget = ladder.budget(None);
    drop(display);
    session.warn(&ladder.impossible());
    CalibrationArgs::warn_of_missing(&ladder.uncalibrated(), &ladder.calibrated(), calibration.as_ref(), session);
    print(if args.json { budget.to_json() } else { budget.to_table() })
}
