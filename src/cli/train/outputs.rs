//! What `twn-pack train` leaves behind: whether it can, before the long work; the checkpoint; and that packed. Not here: the
//! run's directory, which is the library's.

use std::path::{Path, PathBuf};

use twn_pack::train::last_metrics;
use twn_pack::{Error, PARTIAL_SUFFIX, Plan, Result, Rules, convert, import};

use super::TrainArgs;
use crate::cli::Session;

/// Before the long work, so that it is not in vain.
pub(super) fn check_outputs(args: &TrainArgs, directory: &Path, epochs: u32) -> Result<()> {
    // What a run wrote that goes on behind its last epoch may be there already: see `publish`.
    let is_over = || {
        let last = last_metrics(directory);
        args.resume && last.map_or(true, |last| last.is_some_and(|last| last.epoch >= epochs))
    };
    let outputs: Vec<&PathBuf> = [Some(&args.output), args.pack.as_ref()].into_iter().flatten().collect();
    let places: Vec<PathBuf> = outputs.iter().map(|output| place(output)).collect();
    for (i, output) in outputs.iter().enumerate() {
        if places[..i].contains(&places[i]) || places[i] == place(directory) {
            let output = output.display();
            return Err(Error::Request(format!("{output}: expected different paths for -o, --pack and --run")));
        }
        if output.is_dir() {
            let output = output.display();
            return Err(Error::Request(format!(
                "{output} is a directory; expected the name of a file for -o and --pack"
            )));
        }
        if output.exists() && !output.is_file() {
            let output = output.display();
            return Err(Error::Request(format!("{output}: expected a regular file to replace for -o and --pack")));
        }
        if output.exists() && !args.force && !is_over() {
            return Err(Error::OutputExists { path: (*output).clone() });
        }
        let parent = parent(output);
        if !parent.is_dir() {
            return Err(Error::Request(format!("{}: there is no directory {}", output.display(), parent.display())));
        }
    }
    Ok(())
}

/// One file has one place, however it is spelt.
fn place(path: &Path) -> PathBuf {
    if let Ok(place) = path.canonicalize() {
        return place;
    }
    match (parent(path).canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_path_buf(),
    }
}

/// The directory that a file lies in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes an output. One that a run wrote which was killed then is the same, and no reason to refuse what goes on from there.
pub(super) fn publish(output: &Path, args: &TrainArgs, write: impl FnOnce(&Path) -> Result<()>) -> anyhow::Result<()> {
    if args.force || !args.resume || !output.exists() {
        return Ok(write(output)?);
    }
    let again = tempfile::Builder::new().prefix(".").suffix(PARTIAL_SUFFIX).tempfile_in(parent(output))?;
    write(again.path())?;
    if std::fs::read(again.path())? == std::fs::read(output)? {
        return Ok(());
    }
    Err(Error::OutputExists { path: output.to_path_buf() }.into())
}

/// The checkpoint, packed as it was trained.
pub(super) fn pack(checkpoint: &Path, output: &Path, overwrite: bool, session: &Session) -> Result<()> {
    let checkpoint = import::open(checkpoint)?;
    let plan = Plan::new(&checkpoint, &Rules::default())?;
    let options = convert::Options { overwrite, cancel: Some(&session.cancel), ..convert::Options::default() };
    convert::pack(&checkpoint, &plan, output, &options).map(drop)
}
