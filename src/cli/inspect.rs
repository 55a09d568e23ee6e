//! `twn-pack inspect`: the report of a `.twn` file, or of what packing a checkpoint would give.

use std::cmp::Ordering;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use globset::Glob;
use twn_pack::report::TensorReport;
use twn_pack::{Container, Error, Report, convert};

use super::calibration::CalibrationArgs;
use super::exit::Exit;
use super::progress::Display;
use super::rules::RuleArgs;
use super::{ColorWhen, Session, is_container, naming_input, print, print_with};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A .twn file, or a checkpoint to learn what packing it would give
    file: PathBuf,
    /// Print JSON
    #[arg(long, group = "format")]
    json: bool,
    /// Print CSV, one line per tensor
    #[arg(long, group = "format")]
    csv: bool,
    /// Print one HTML page
    #[arg(long, group = "format")]
    html: bool,
    /// Order the tensors
    #[arg(long, value_name = "BY", default_value = "file")]
    sort: SortBy,
    /// The other way round
    #[arg(short, long)]
    reverse: bool,
    /// Show only tensors whose names match (repeatable); totals stay those of the whole file
    #[arg(long, value_name = "GLOB")]
    filter: Vec<String>,
    /// Show only ternary or only dense tensors
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// When to use colour
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorWhen,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SortBy {
    /// As in the file
    File,
    Name,
    /// Largest relative squared error first
    Error,
    /// Most zeros first
    Sparsity,
    /// Largest first
    Bytes,
    /// Most bits per weight first
    Entropy,
    /// Largest ratio first
    Ratio,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Ternary,
    Int8,
    Dense,
}

pub(super) fn run(args: InspectArgs, session: &Session) -> anyhow::Result<Exit> {
    let mut report = if is_container(&args.file)? {
        args.calibration.refuse("a .twn file is packed already; give the checkpoint to calibrate")?;
        if args.rules != RuleArgs::default() {
            let advice = "give the checkpoint to learn what other rules would give";
            return Err(Error::Request(format!("{} is packed already; {advice}", args.file.display())).into());
        }
        let container = Container::open(&args.file)?;
        Report::of_index(container.index(), container.bytes().len() as u64)
    } else {
        let (checkpoint, plan) = args.rules.open(&args.file, session)?;
        let calibration = args.calibration.open(&checkpoint, session)?;
        let display = Display::new(&session.global);
        let options = convert::Options {
            keep_non_finite_dense: true,
            resume: false,
            calibration: calibration.as_ref(),
            progress: Some(&|progress| display.show(progress)),
            cancel: Some(&session.cancel),
            ..convert::Options::default()
        };
        let report = convert::measure(&checkpoint, &plan, &options).map_err(|e| naming_input(e, &args.file))?;
        CalibrationArgs::warn_of_missing(&report.uncalibrated(), &report.calibrated(), calibration.as_ref(), session);
        if report.tensors.iter().any(|tensor| tensor.reason == convert::NON_FINITE) {
            session.warn(&["some tensors hold NaN or infinity: packing needs --non-finite dense".to_owned()]);
        }
        report
    };
    let before = report.tensors.len();
    args.arrange(&mut report.tensors)?;
    if report.tensors.is_empty() && before > 0 {
        session.warn(&[format!("--filter and --only leave none of {before} tensors")]);
    }
    if args.json {
        print_with(|stdout| report.write_json(stdout))
    } else if args.csv {
        print(report.to_csv())
    } else if args.html {
        print(report.to_html())
    } else {
        let mut table = report.to_table(args.color.on_stdout());
        print_with(|stdout| table.try_for_each(|part| stdout.write_all(part.as_bytes())))
    }
}

impl InspectArgs {
    fn arrange(&self, tensors: &mut Vec<TensorReport>) -> Result<(), Error> {
        let globs = self
            .filter
            .iter()
            .map(|text| Glob::new(text).map(|glob| glob.compile_matcher()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Error::Request(format!("--filter: {e}")))?;
        tensors.retain(|tensor| globs.is_empty() || globs.iter().any(|glob| glob.is_match(&tensor.name)));
        if let Some(kind) = self.only {
            let kind_of = |tensor: &TensorReport| match tensor.became.as_str() {
                "dense" => Kind::Dense,
                became if became.starts_with("int8") => Kind::Int8,
                _ => Kind::Ternary,
            };
            tensors.retain(|tensor| kind_of(tensor) == kind);
        }
        let descending = |key: fn(&TensorReport) -> Option<f64>| {
            move |a: &TensorReport, b: &TensorReport| key(b).partial_cmp(&key(a)).unwrap_or(Ordering::Equal)
        };
        match self.sort {
            SortBy::File => {}
            SortBy::Name => tensors.sort_by(|a, b| a.name.cmp(&b.name)),
            SortBy::Error => tensors.sort_by(descending(|t| t.relative_squared_error)),
            SortBy::Sparsity => tensors.sort_by(descending(|t| t.sparsity)),
            SortBy::Entropy => tensors.sort_by(descending(|t| t.entropy)),
            SortBy::Ratio => tensors.sort_by(descending(|t| Some(t.ratio))),
            SortBy::Bytes => tensors.sort_by_key(|t| std::cmp::Reverse(t.bytes)),
        }
        if self.reverse {
            tensors.reverse();
        }
        Ok(())
    }
}
