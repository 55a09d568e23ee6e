//! A run's directory: its lock, its metrics, and where its state lies. Not here: what is in a state
//! ([`super::state`]), or the loop ([`super::run`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::run::{Metrics, Setup};
use crate::atomic_file::PARTIAL_SUFFIX;
use crate::locked_file::LockedFile;
use crate::{Error, Result, write_atomically};

/// The state's file in a run's directory.
pub const STATE: &str = "state.safetensors";
/// The metrics' file in a run's directory: a JSON object per line, [`Setup`] or [`Metrics`]. The first one is
/// the setup; another one follows where the recipe changed.
pub const METRICS: &str = "metrics.jsonl";
/// Whoever trains there holds a lock on it.
const LOCK: &str = "lock";

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

    /// The last epoch's line.
    pub fn last(&self) -> Result<Option<Metrics>> {
        let path = self.metrics();
        let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        Ok(text.lines().rev().find_map(|line| serde_json::from_str(line).ok()))
    }

    /// Drops the lines of epochs that are done again, since the state is older than they. Where the file is
    /// gone, it begins anew.
    pub fn cut(&self, epoch: u32, setup: &Setup) -> Result<()> {
        let path = self.metrics();
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.line(setup)?,
            text => text.map_err(Error::io(&path, "go on with the metrics in"))?,
        };
        let keep = text.lines().filter(|line| match serde_json::from_str::<Metrics>(line) {
            Ok(metrics) => metrics.epoch <= epoch,
            Err(_) => serde_json::from_str::<Setup>(line).is_ok(),
        });
        let text: String = keep.map(|line| format!("{line}\n")).collect();
        write_atomically(&path, true, text.as_bytes())
    }
}
