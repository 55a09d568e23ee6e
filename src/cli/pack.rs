//! `twn-pack MODEL -o OUT.twn`: the main job.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use twn_pack::budget::Target;
use twn_pack::select::{Decision, Planned};
use twn_pack::{Checkpoint, Error, Plan, Report, Result, convert};

use super::budget::BudgetArgs;
use super::calibration::CalibrationArgs;
use super::exit::Exit;
use super::progress::Display;
use super::repair::RepairArgs;
use super::rules::RuleArgs;
use super::{ColorWhen, Session, naming_input, print_with, refuse_outputs, warn_of_existing};

#[derive(Debug, Args)]
pub(super) struct PackArgs {
    /// A .safetensors file, a directory of them, or a model.safetensors.index.json; or a checkpoint of PyTorch, NumPy,
    /// ONNX, GGUF or Hugging Face BitNet
    #[arg(value_name = "MODEL", required = true)]
    model: Option<PathBuf>,
    /// The .twn file to write
    #[arg(short, long, value_name = "OUT.twn", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Replace the output if it exists; of a symbolic link the link itself, not what it leads to
    #[arg(short, long)]
    force: bool,
    /// Print the plan and the sizes; read no weights, write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Keep what is finished beside the output, whatever ends the run (OUT's name with .twn-partial and .twn-journal
    /// behind it), and go on with it: the same command again gives the same bytes as one that was not interrupted
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// What to do with tensors that hold NaN or infinity
    #[arg(long, value_name = "HOW", default_value = "error")]
    non_finite: NonFinite,
    /// When to use colour
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorWhen,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    repair: RepairArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum NonFinite {
    /// Stop and say where
    Error,
    /// Keep such tensors dense; one more pass over the weights finds them
    Dense,
}

pub(super) fn run(args: PackArgs, session: &Session) -> anyhow::Result<Exit> {
    let Some(model) = &args.model else {
        return Err(Error::Request("give a checkpoint to pack; see --help".to_owned()).into());
    };
    refuse_outputs(&[args.output.as_deref()], &[args.rules.file(), args.repair.net()])?;
    if args.dry_run && !args.force {
        warn_of_existing(args.output.clone(), session);
    }
    let (checkpoint, plan) = args.rules.open(model, session)?;
    // When the process ends, the system lets go of a mapping faster than we would.
    let checkpoint = ManuallyDrop::new(checkpoint);
    let calibration = args.calibration.open(&checkpoint, session)?;
    let target = args.budget.target()?;
    if target.is_some() {
        args.rules.refuse_rungs()?;
    }
    let repairs = args.repair.open(&checkpoint, calibration.as_ref(), session)?;
    let report = match &args.output {
        Some(output) if !args.dry_run => {
            let display = Display::new(&session.global);
            let list = repairs.list();
            let options = convert::Options {
                overwrite: args.force,
                keep_non_finite_dense: args.non_finite == NonFinite::Dense,
                resume: args.resume,
                calibration: calibration.as_ref(),
                repairs: &list,
                progress: Some(&|progress| display.show(progress)),
                cancel: Some(&session.cancel),
                ..convert::Options::default()
            };
            let target = target.map(|target| (target, repairs.reserve(&plan)));
            pack(&args, target, (&checkpoint, &plan), output, &options, session).map_err(|e| naming_input(e, model))?
        }
        _ if target.is_some() => {
            let message =
                "a target takes measuring, and --dry-run reads no weights; `twn-pack sweep` shows what there is";
            return Err(Error::Request(message.to_owned()).into());
        }
        None if !args.dry_run => {
            return Err(Error::Request("give an output with -o".to_owned()).into());
        }
        _ => {
            let unknown = |t: &Planned| matches!(&t.decision, Decision::Ternary(how) if how.method.lossless());
            if plan.tensors.iter().any(unknown) {
                let warning = "--dry-run reads no weights: which tensors `auto` finds ternary is not known, sizes are \
                               as if all were (`twn-pack inspect` with the same options looks)";
                session.warn(&[warning.to_owned()]);
            }
            Report::of_plan(&checkpoint, &plan)?
        }
    };
    let missing = match &calibration {
        Some(calibration) if args.dry_run => convert::uncalibrated(&checkpoint, &plan, calibration)?,
        _ => report.uncalibrated(),
    };
    CalibrationArgs::warn_of_missing(&missing, &report.calibrated(), calibration.as_ref(), session);
    if !args.dry_run {
        args.repair.warn_of_missing(&report, session);
        repairs.warn_of_unadjusted(&report, session);
    }
    let printed = if args.json {
        print_with(|stdout| report.write_json(stdout))
    } else if session.global.quiet {
        Ok(Exit::Success)
    } else {
        let mut table = report.to_table(args.color.on_stdout());
        print_with(|stdout| table.try_for_each(|part| stdout.write_all(part.as_bytes())))
    };
    match &args.output {
        Some(output) if !args.dry_run => printed.with_context(|| format!("{} is written", output.display())),
        _ => printed,
    }
}

/// Packs by the plan, or by what a budget makes of it.
fn pack(
    args: &PackArgs,
    target: Option<(Target, u64)>,
    input: (&Checkpoint, &Plan),
    output: &Path,
    options: &convert::Options<'_>,
    session: &Session,
) -> Result<Report> {
    let Some(target) = target else { return convert::pack(input.0, input.1, output, options) };
    if output.exists() && !args.force {
        // Before the long work, so that it is not in vain.
        return Err(Error::OutputExists { path: output.to_path_buf() });
    }
    args.budget.pack(target, input, output, options, session)
}
