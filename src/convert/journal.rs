//! What a run that may be resumed has finished: beside the output, one line per tensor. Not here: the work
//! ([`super`]), or the partial file ([`crate::container`]).
//!
//! `.NAME.twn-journal` (of packing; `.NAME.twn-measured` of measuring for a target) begins with a line that says which
//! run it belongs to; every further one has a tensor's number and what the index will say of it, or would say on each
//! rung. Each line has its own CRC-32 in front, and counts only up to the first one that is not whole. A tensor counts
//! only if its sections in the partial file have the checksums that its line says. So nothing has to reach the disk in any order, and what was damaged is done anew.

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Options, calibrated};
use crate::atomic_file::{PARTIAL_SUFFIX, beside, open_kept};
use crate::container::{Producer, TensorEntry};
use crate::locked_file::LockedFile;
use crate::select::Plan;
use crate::source::Checkpoint;
use crate::{Error, Result};

/// Behind the output's name: what of it is packed.
pub(crate) const PACKED: &str = ".twn-journal";
/// What its tensors would be on each rung; nothing where they cannot have it.
pub(crate) const MEASURED: &str = ".twn-measured";

/// The journal of one output, locked while it is open; of each tensor it keeps a `T`.
#[derive(Debug)]
pub(crate) struct Journal<T = TensorEntry> {
    file: LockedFile,
    path: PathBuf,
    finished: BTreeMap<usize, T>,
    is_new: bool,
}

/// What has to be the same for a run to go on, by the words in which a difference is told.
type Identity = BTreeMap<String, String>;

#[derive(Serialize, Deserialize)]
struct Line<T> {
    tensor: usize,
    entry: T,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// The journal of a run; what an earlier one of the same kind has left in it counts.
    ///
    /// # Errors
    /// A journal of another run, or one that is in use; a directory that cannot be written to.
    pub fn open(
        checkpoint: &Checkpoint,
        plan: &Plan,
        (output, suffix): (&Path, &str),
        options: &Options<'_>,
    ) -> Result<Self> {
        let path = beside(output, suffix)?;
        let io = |action| Error::io(&path, action);
        let file = open_kept(&path).map_err(io("open the journal"))?;
        let Some(mut file) = LockedFile::new(file).map_err(io("lock the journal"))? else {
            let path = path.display();
            return Err(Error::Request(format!("{path}: another run is working on this output; wait for its end")));
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(io("read the journal"))?;
        let mut lines = text.split_inclusive(|&byte| byte == b'\n');
        let ours = identity(checkpoint, plan, (output, suffix), options)?;
        // One that stayed behind when its run was killed at the very end: the partial file has become the output.
        let partial = std::fs::metadata(beside(output, PARTIAL_SUFFIX)?).map_or(0, |partial| partial.len());
        let is_over = suffix == PACKED && partial == 0;
        let theirs: Option<Identity> = lines.next().and_then(parse).filter(|_| !is_over);
        if let Some(theirs) = &theirs {
            // Of what was measured, what was packed by it is of as little use.
            let packed = beside(output, PACKED)?;
            refuse_other(&path, Some(&packed).filter(|packed| **packed != path && packed.exists()), theirs, &ours)?;
        }
        let (mut finished, mut end) = (BTreeMap::new(), 0);
        if theirs.is_some() {
            end = text.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            for line in lines {
                let Some(Line { tensor, entry }) = parse(line) else { break };
                finished.insert(tensor, entry);
                end += line.len();
            }
        }
        // Behind the last whole line.
        file.set_len(end as u64)
            .and_then(|()| file.seek(std::io::SeekFrom::End(0)))
            .map_err(io("write the journal"))?;
        let mut journal = Self { file, path, finished, is_new: theirs.is_none() };
        if journal.is_new {
            journal.write(&ours)?;
        }
        Ok(journal)
    }

    /// Whether there was none that counts.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// What was finished of tensor number `i`, if it was.
    pub fn take(&mut self, i: usize) -> Option<T> {
        self.finished.remove(&i)
    }

    /// Tensor number `i` is finished, and all its bytes are written.
    pub fn add(&mut self, i: usize, entry: &T) -> Result<()> {
        self.write(&Line { tensor: i, entry })
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let json = serde_json::to_string(line).expect("string keys and finite numbers");
        let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path, "write the journal"))
    }

    /// The output is there: nothing is to be resumed any more.
    pub fn remove(self) {
        // One that stays does not count, for there is no partial file.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A line that is whole.
fn parse<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (crc32, json) = line.split_once(' ')?;
    let whole = u32::from_str_radix(crc32, 16).ok()? == crc32fast::hash(json.as_bytes());
    if whole { serde_json::from_str(json).ok() } else { None }
}

/// `and`: another journal of the same run.
fn refuse_other(path: &Path, and: Option<&PathBuf>, theirs: &Identity, ours: &Identity) -> Result<()> {
    let keys = theirs.keys().chain(ours.keys());
    let Some(other) = keys.into_iter().find(|key| theirs.get(*key) != ours.get(*key)) else { return Ok(()) };
    let and = and.map(|and| format!(" and {}", and.display())).unwrap_or_default();
    Err(Error::Request(format!(
        "{}: what is there to resume is of a run with {other}; run that again with --resume, or remove this file{and} to \
         begin anew",
        path.display()
    )))
}

fn identity(
    checkpoint: &Checkpoint,
    plan: &Plan,
    (output, suffix): (&Path, &str),
    options: &Options<'_>,
) -> Result<Identity> {
    let mut files = String::new();
    for file in checkpoint.read_files() {
        files += &stamp(file)?;
    }
    // Else these are not the files that were read.
    checkpoint.check_unchanged()?;
    // Every decision with all its parameters, in full.
    let rules = format!("{} {:?}", options.keep_non_finite_dense, plan.tensors);
    let Producer { name, version } = Producer::this();
    let parts = [
        ("another checkpoint, or one that was written to, moved, linked or given other permissions since", files),
        // What is measured does not depend on a target, what is packed does.
        (
            if suffix == PACKED { "another target or other rules" } else { "other rules" },
            format!("{:08x} {}", crc32fast::hash(rules.as_bytes()), rules.len()),
        ),
        ("other statistics of inputs, or another use of them", calibrated::identity(options)?),
        ("another version of twn-pack", format!("{name} {version}")),
        ("another output", format!("{:?}", output.file_name().unwrap_or_default())),
    ];
    Ok(parts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Which file it is, as far as can be known without reading it.
pub(super) fn stamp(path: &Path) -> Result<String> {
    let io = || Error::io(path, "look at the input");
    let path = path.canonicalize().map_err(io())?;
    let metadata = std::fs::metadata(&path).map_err(io())?;
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |time| time.as_nanos());
    // Times of change can be set, and are, by whoever unpacks archives; another file, and when it was touched last, cannot.
    #[cfg(unix)]
    let touched = {
        use std::os::unix::fs::MetadataExt;
        (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
    };
    #[cfg(not(unix))]
    let touched = ();
    Ok(format!("{path:?} {} {modified} {touched:?}\n", metadata.len()))
}
