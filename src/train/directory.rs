//! A run's directory: its lock, its metrics, and where its state lies. Not here: what is in a state
//! ([`super::state`]), or the loop ([`super::run`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::run::{Metrics, Setup};
use crate::atomic_file::PARTIAL_SUFFIX;
use crate::error::CheckpointProblem;
use crate::locked_file::LockedFile;
use crate::{Error, Result, write_atomically};

/// The state's file in a run's directory.
pub const STATE: &str = "state.safetensors";
/// The metrics' file in a run's directory: a JSON object per line, [`Setup`] or [`Metrics`]. The first one is
/// the setup; another one follows where the recipe changed.
pub const METRICS: &str = "metrics.jsonl";
/// Whoever trains there holds a lock on it.
const LOCK: &str = "lock";

/// The last epoch in the metrics of a run's directory; nothing before the first.
///
/// # Errors
/// Metrics that cannot be read.
pub fn last_metrics(directory: &Path) -> Result<Option<Metrics>> {
    let path = Directory(directory).metrics();
    let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
    Ok(bytes.split(|byte| *byte == b'\n').rev().find_map(|line| serde_json::from_slice(line).ok()))
}

/// A run's directory and what is in it.
pub(super) struct Directory<'a>(pub &'a Path);

impl Directory<'_> {
    pub fn state(&self) -> PathBuf {
        self.0.join(STATE)
    }

    fn metrics(&self) -> PathBuf {
        self.0.join(METRICS)
    }

    fn line(&self, value: &impl Serialize) -> Result<String> {
        let text = serde_json::to_string(value);
        text.map(|text| text + "\n").map_err(|e| Error::Request(format!("{}: {e}", self.metrics().display())))
    }

    /// Keeps other processes out until the file is dropped. The directory is made if it is not there.
    pub fn lock(&self) -> Result<LockedFile> {
        fs::create_dir_all(self.0).map_err(Error::io(self.0, "make the run's directory"))?;
        let path = self.0.join(LOCK);
        let file = File::create(&path).map_err(Error::io(&path, "open"))?;
        let Some(file) = LockedFile::new(file).map_err(Error::io(&path, "lock"))? else {
            return Err(Error::Request(format!(
                "{}: another process is training in this directory; wait for it, or choose another one with --run",
                self.0.display()
            )));
        };
        self.sweep();
        Ok(file)
    }

    /// Removes what runs that were killed left of files that they wrote just then. Whoever calls holds the lock.
    fn sweep(&self) {
        let left = |name: &str| {
            let ours = [STATE, METRICS].iter().any(|file| name.starts_with(&format!(".{file}.")));
            ours && name.ends_with(PARTIAL_SUFFIX)
        };
        for entry in fs::read_dir(self.0).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(left) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Metrics without a state are those of a run that never began.
    pub fn create(&self, setup: &Setup) -> Result<()> {
        let state = self.state();
        if state.exists() {
            return Err(Error::Request(format!(
                "{}: a run is there already; go on with --resume, or choose another directory with --run",
                state.display()
            )));
        }
        write_atomically(self.metrics(), true, self.line(setup)?.as_bytes())
    }

    pub fn append(&self, line: &impl Serialize) -> Result<()> {
        let (path, line) = (self.metrics(), self.line(line)?);
        let mut file = OpenOptions::new().append(true).create(true).open(&path).map_err(Error::io(&path, "open"))?;
        file.write_all(line.as_bytes()).map_err(Error::io(&path, "write"))
    }

    /// Drops the lines of epochs that are done again, since the state is older than they, and a last one that a kill
    /// left broken. Where the file is gone, it begins anew.
    pub fn cut(&self, epoch: u32, setup: &Setup) -> Result<()> {
        let path = self.metrics();
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.line(setup)?.into_bytes(),
            bytes => bytes.map_err(Error::io(&path, "go on with the metrics in"))?,
        };
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        // What stands behind the last line's end: nothing, or what is broken.
        lines.pop_if(|line| line.is_empty());
        let mut kept = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            let epochs = match serde_json::from_slice::<Metrics>(line) {
                Ok(metrics) => metrics.epoch,
                Err(_) if serde_json::from_slice::<Setup>(line).is_ok() => 0,
                Err(_) if i + 1 == lines.len() => break,
                Err(e) => {
                    let message = format!(
                        "line {}: {e}; expected an epoch of a run, or its setup; remove that line, or the file (what it \
                         says is lost then, the run is not)",
                        i + 1
                    );
                    return Err(Error::Checkpoint {
                        path,
                        problem: CheckpointProblem::Foreign { format: "metrics", message },
                    });
                }
            };
            if epochs <= epoch {
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
        }
        write_atomically(&path, true, &kept)
    }
}
