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

impl Display {
    pub fn new(global: &Global) -> Self {
        match global.progress {
            Mode::Json => Self::Json(Mutex::new(None)),
            Mode::Auto if !global.quiet && io::stderr().is_terminal() => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                let template = "{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {msg:.40}";
                bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
                Self::Bar(bar)
            }
            Mode::Auto | Mode::Never => Self::Nothing,
        }
    }

    pub fn show(&self, progress: Progress<'_>) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                bar.set_message(printable(progress.tensor));
            }
            Self::Json(last) => {
                let Ok(mut last) = last.lock() else { return };
                if progress.done < progress.total && last.is_some_and(|last| last.elapsed() < INTERVAL) {
                    return;
                }
                *last = Some(Instant::now());
                let line = serde_json::json!({
                    "done": progress.done, "total": progress.total, "tensor": progress.tensor
                });
                let _ = writeln!(io::stderr(), "{line}");
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
