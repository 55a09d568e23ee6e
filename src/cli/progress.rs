//! Progress on stderr: a bar on a terminal, JSON lines, or nothing. Not here: results.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use twn_pack::convert::Progress;

use super::{Global, printable};

/// Time between JSON lines.
const INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    Auto,
    Json,
    Never,
}

pub(super) enum Display {
    Bar(ProgressBar),
    Json(Mutex<Option<Instant>>),
    Nothing,
}

/// The bar's text for weights, counted in bytes.
const BYTES: &str = "{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {msg:.40}";
/// The same for images.
const IMAGES: &str = "{wide_bar} {human_pos}/{human_len} images  {per_sec}  {eta} left  {msg}";

impl Display {
    pub fn new(global: &Global) -> Self {
        Self::with(global, BYTES)
    }

    /// To count images, not bytes.
    pub fn of_images(global: &Global) -> Self {
        Self::with(global, IMAGES)
    }

    fn with(global: &Global, template: &str) -> Self {
        match global.progress {
            Mode::Json => Self::Json(Mutex::new(None)),
            Mode::Auto if !global.quiet && io::stderr().is_terminal() => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
                bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
                Self::Bar(bar)
            }
            Mode::Auto | Mode::Never => Self::Nothing,
        }
    }

    /// Lets `print` write lines that stay, above the bar.
    pub fn above(&self, print: impl FnOnce()) {
        match self {
            Self::Bar(bar) => bar.suspend(print),
            _ => print(),
        }
    }

    /// Whether stderr is for lines that programs read.
    pub fn is_json(&self) -> bool {
        matches!(self, Self::Json(_))
    }

    pub fn show(&self, progress: Progress<'_>) {
        self.advance(progress.done, progress.total, Some(progress.tensor));
    }

    /// `what` is being worked on; without it nothing is said of that.
    pub fn advance(&self, done: u64, total: u64, what: Option<&str>) {
        self.tell(done, total, what.unwrap_or_default(), || match what {
            Some(tensor) => serde_json::json!({ "done": done, "total": total, "tensor": tensor }),
            None => serde_json::json!({ "done": done, "total": total }),
        });
    }

    /// With that text beside a bar, or else with that line.
    pub fn tell(&self, done: u64, total: u64, text: &str, line: impl FnOnce() -> serde_json::Value) {
        match self {
            Self::Bar(bar) => {
                // What was done before (a run that goes on) took no time of this one.
                let first = bar.length().is_none();
                bar.set_length(total);
                bar.set_position(done);
                if first {
                    bar.tick();
                    bar.reset_eta();
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
                bar.set_message(printable(text));
            }
            Self::Json(last) => {
                let Ok(mut last) = last.lock() else { return };
                if done < total && last.is_some_and(|last| last.elapsed() < INTERVAL) {
                    return;
                }
                *last = Some(Instant::now());
                let _ = writeln!(io::stderr(), "{}", line());
            }
            Self::Nothing => {}
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
