//! `twn-pack plot`: accuracy over the epochs of several training runs, as one SVG. Not here: training.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use plotters::prelude::*;
use twn_pack::train::{METRICS, Metrics, Setup};
use twn_pack::{Error, write_atomically};

use super::exit::Exit;
use super::refuse_outputs;

#[derive(Debug, Args)]
pub(super) struct PlotArgs {
    /// Runs: their directories, or their metrics.jsonl
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The SVG to write
    #[arg(short, long, value_name = "OUT.svg", default_value = CURVES)]
    output: PathBuf,
    /// Replace it if it exists
    #[arg(short, long)]
    force: bool,
    /// What to draw over the epochs
    #[arg(long, default_value = "test")]
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Accuracy on the test images, in percent
    Test,
    /// Accuracy on the training images, in percent
    Train,
    /// Loss on the training images
    Loss,
}

impl What {
    fn title(self) -> &'static str {
        match self {
            Self::Test => "test accuracy, %",
            Self::Train => "training accuracy, %",
            Self::Loss => "training loss",
        }
    }

    fn of(self, metrics: &Metrics) -> f64 {
        match self {
            Self::Test => 100.0 * metrics.test_accuracy,
            Self::Train => 100.0 * metrics.train_accuracy,
            Self::Loss => metrics.loss,
        }
    }
}

/// What curves are called.
pub(super) const CURVES: &str = "accuracy.svg";

/// Axes are not divided any further.
const LARGEST: f64 = 1e12;

/// A run's name, and a point per epoch.
type Curve = (String, Vec<(f64, f64)>);

/// The curve of one run, in its directory.
pub(super) fn draw_run(directory: &Path) -> anyhow::Result<()> {
    let mut svg = String::new();
    let curve = read(directory, What::Test)?;
    draw(&[curve], What::Test.title(), &mut svg).map_err(|e| anyhow!("{}: {e}", directory.display()))?;
    Ok(write_atomically(directory.join(CURVES), true, svg.as_bytes())?)
}

pub(super) fn run(args: PlotArgs) -> anyhow::Result<Exit> {
    let mut curves = args.runs.iter().map(|path| read(path, args.what)).collect::<anyhow::Result<Vec<_>>>()?;
    let names: Vec<String> = curves.iter().map(|(name, _)| name.clone()).collect();
    for ((name, _), path) in curves.iter_mut().zip(&args.runs) {
        if names.iter().filter(|other| *other == name).count() > 1 {
            *name = path.display().to_string();
        }
    }
    let metrics: Vec<_> = args.runs.iter().map(|run| metrics_of(run)).collect();
    refuse_outputs(&[Some(&args.output)], &metrics.iter().map(|metrics| Some(&**metrics)).collect::<Vec<_>>())?;
    let mut svg = String::new();
    draw(&curves, args.what.title(), &mut svg).map_err(|e| anyhow!("{}: {e}", args.output.display()))?;
    write_atomically(&args.output, args.force, svg.as_bytes())?;
    Ok(Exit::Success)
}

/// A run's metrics, given by its directory or as they are.
fn metrics_of(run: &Path) -> PathBuf {
    if run.is_dir() { run.join(METRICS) } else { run.to_path_buf() }
}

fn read(path: &Path, what: What) -> anyhow::Result<Curve> {
    let file = metrics_of(path);
    if file.exists() && !file.is_file() {
        return Err(
            Error::Request(format!("{}: not a regular file; expected the metrics of a run", file.display())).into()
        );
    }
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::Request(format!("{}: no text; expected the metrics of a run", file.display())))?;
    // A line without an end is being written. Others are epochs, or setups.
    let whole = text.split_inclusive('\n').enumerate().filter(|(_, line)| line.ends_with('\n'));
    let epochs = whole.filter(|(_, line)| serde_json::from_str::<Setup>(line).is_err());
    let mut epochs: Vec<_> = epochs.collect();
    // The last one may be what a kill left of it, as for `train --resume`.
    epochs.pop_if(|(_, line)| serde_json::from_str::<Metrics>(line).is_err());
    let lines = epochs.into_iter().map(|(i, line)| {
        let metrics: Metrics = serde_json::from_str(line.trim_end()).map_err(|e| {
            Error::Request(format!("{}: line {}: {e}; expected an epoch of a run", file.display(), i + 1))
        })?;
        let value = what.of(&metrics);
        if value.is_nan() || value.abs() >= LARGEST {
            let place = format!("{}: line {}", file.display(), i + 1);
            return Err(
                Error::Request(format!("{place}: {value} cannot be drawn; expected less than {LARGEST:e}")).into()
            );
        }
        Ok((f64::from(metrics.epoch), value))
    });
    let points = lines.collect::<anyhow::Result<Vec<_>>>()?;
    if points.is_empty() {
        return Err(Error::Request(format!("{}: expected at least one epoch, found none", file.display())).into());
    }
    let named = if file.file_name().is_some_and(|name| name == METRICS) { file.parent() } else { Some(&*file) };
    let name =
        named.and_then(Path::file_name).map_or_else(|| path.display().to_string(), |s| s.to_string_lossy().into());
    // Other dots are the name's own, as in esa-0.2.
    let short = [".run", ".jsonl"].iter().find_map(|end| name.strip_suffix(end)).filter(|short| !short.is_empty());
    Ok((short.unwrap_or(&name).to_owned(), points))
}

fn draw(curves: &[Curve], title: &str, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let least = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let most = points().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let last = points().map(|point| point.0).fold(1.0, f64::max);
    let margin = (0.05 * (most - least)).max(1e-6);
    let area = SVGBackend::with_string(svg, (800, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last.max(1.0), least - margin..most + margin)?;
    chart.configure_mesh().x_desc("epoch").y_desc(title).light_line_style(WHITE).draw()?;
    for (i, (name, points)) in curves.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        // One epoch makes no line.
        if let [point] = points[..] {
            chart.draw_series([Circle::new(point, 3, colour.filled())])?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}
