//! An [`Export`] onto the disk: tile by tile on all threads, in bounded memory, published whole or not at all. Not
//! here: any format.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;

use super::{Export, Part, Source};
use crate::container::TensorEntry;
use crate::{AtomicFile, Container, Error, Isa, MappedFile, ReadAhead, Result, write_atomically};

/// Bytes that each thread makes at once, about; one row where that is more. They go from the cache into the file.
const TILE: usize = 1 << 18;

/// How to write.
#[derive(Clone, Copy, Default)]
pub struct WriteOptions<'a> {
    /// Replace outputs that exist.
    pub overwrite: bool,
    /// Called now and then, from any thread, with the bytes that are done and all of them; an error may still come
    /// after the last.
    pub progress: Option<&'a (dyn Fn(u64, u64) + Sync)>,
    /// Set it to stop the run; it ends with [`Error::Cancelled`] and leaves nothing behind.
    pub cancel: Option<&'a AtomicBool>,
}

/// Writes what an [`Exporter`](super::Exporter) made of a container, on the threads of the current rayon pool;
/// returns the file's length. Every section's checksum is checked on the way.
///
/// # Errors
/// Tensors that are refused, a damaged container, an output that exists or cannot be written, or cancellation. After
/// an error there is no output, or the old one.
pub fn write(container: &Container, export: &Export<'_>, output: &Path, options: &WriteOptions<'_>) -> Result<u64> {
    export.check().map_err(|error| match error {
        Error::Request(message) => Error::Request(format!("{}: {message}", container.path().display())),
        other => other,
    })?;
    // Rows that are written have no way to say that the set which the environment names is not there.
    Isa::detect()?;
    refuse_inputs(container, export, output)?;
    let beside: Vec<_> = export.beside.iter().map(|(name, bytes)| (output.with_file_name(name), bytes)).collect();
    if let Some((name, _)) =
        export.beside.iter().find(|(name, _)| output.file_name().is_some_and(|own| own == name.as_str()))
    {
        return Err(Error::Request(format!("`{name}` is written beside the output; give the output another name")));
    }
    if let Some((taken, _)) = beside.iter().find(|(path, _)| path.exists() && !options.overwrite) {
        return Err(Error::OutputExists { path: taken.clone() });
    }
    let file = AtomicFile::create(output, options.overwrite)?;
    let check = |entry| {
        check_cancelled(options)?;
        container.check_sections(entry)
    };
    let (total, done) = (export.len(), AtomicU64::new(0));
    let run = |ahead: &ReadAhead<'_>, buffer: &mut Vec<u8>, job| {
        let (part, offset, rows) = match job {
            Job::Check(entry) => {
                entry.sections().for_each(|(_, section)| ahead.reached(container.section(section)));
                return check(entry);
            }
            Job::Write(part, offset, rows) => (part, offset, rows),
        };
        check_cancelled(options)?;
        let length = part.write(rows, buffer, |bytes| file.write_at(bytes, offset), container.path())?;
        let done = done.fetch_add(length, Ordering::Relaxed) + length;
        if let Some(progress) = options.progress {
            progress(done, total);
        }
        Ok(())
    };
    // Every thread takes the next one: both files are gone through in order.
    let jobs = jobs(container, export, total).into_iter().par_bridge();
    let files = container.mapped().map_or(&[][..], std::slice::from_ref::<MappedFile>);
    match ReadAhead::during(files, |ahead| jobs.try_for_each_init(Vec::new, |buffer, job| run(ahead, buffer, job))) {
        // Codes that make no sense may come from damage, which is what is told then: the first, whatever came first here.
        Err(error @ (Error::Request(_) | Error::Container { .. })) => {
            let damage = container.index().tensors.par_iter().find_map_first(|entry| check(entry).err());
            return Err(damage.unwrap_or(error));
        }
        result => result?,
    }
    for part in &export.parts {
        if let Source::File(file, _) = &part.source {
            file.check_unchanged()?;
        }
    }
    beside.iter().try_for_each(|(path, bytes)| write_atomically(path, options.overwrite, bytes))?;
    file.publish()?;
    Ok(total)
}

enum Job<'a> {
    Check(&'a TensorEntry),
    /// These rows, to go to that offset.
    Write(&'a Part<'a>, u64, Range<usize>),
}

/// Everything there is to do for `total` bytes. A tensor is checked about when it is written, so that the disk is mostly
/// read once: both go through their files in order, and most formats have tensors in the order of the container.
fn jobs<'a>(container: &'a Container, export: &'a Export<'a>, total: u64) -> Vec<Job<'a>> {
    // Each with how far into its own file it is, from 0 to 1; what goes as it lies in the container is in that one.
    let (mut jobs, mut offset, bytes) = (Vec::new(), 0, container.bytes());
    let in_container = |at: usize| at as f64 / bytes.len() as f64;
    for entry in &container.index().tensors {
        let start = entry.sections().next().map_or(0, |(_, section)| section.offset);
        jobs.push((in_container(start as usize), Job::Check(entry)));
    }
    for part in &export.parts {
        let lies_at = match &part.source {
            Source::Bytes(part) if bytes.as_ptr_range().contains(&part.as_ptr()) => {
                Some(part.as_ptr().addr() - bytes.as_ptr().addr())
            }
            _ => None,
        };
        for rows in part.tiles() {
            let start = rows.start * part.row_bytes;
            let at = offset + start as u64;
            let far = lies_at.map_or(at as f64 / total as f64, |lies_at| in_container(lies_at + start));
            jobs.push((far, Job::Write(part, at, rows)));
        }
        offset += part.len();
    }
    jobs.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    jobs.into_iter().map(|(_, job)| job).collect()
}

fn check_cancelled(options: &WriteOptions<'_>) -> Result<()> {
    match options.cancel {
        Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Error::Cancelled),
        _ => Ok(()),
    }
}

fn refuse_inputs(container: &Container, export: &Export<'_>, output: &Path) -> Result<()> {
    let Ok(output) = output.canonicalize() else { return Ok(()) };
    let files = export.parts.iter().filter_map(|part| match &part.source {
        Source::File(file, _) => Some(file.path()),
        _ => None,
    });
    for input in files.chain([container.path()]).chain(export.inputs.iter().map(PathBuf::as_path)) {
        if input.canonicalize().is_ok_and(|input| input == output) {
            return Err(Error::Request(format!("{} is an input; give another output", output.display())));
        }
    }
    Ok(())
}

impl Part<'_> {
    /// The rows that are made at once, in order.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let (rows, step) = (self.rows, (TILE / self.row_bytes.max(1)).max(1));
        (0..rows).step_by(step).map(move |row| row..(row + step).min(rows))
    }

    /// Hands the bytes of these rows, made in `buffer`, to `write`; returns how many there were.
    fn write(
        &self,
        rows: Range<usize>,
        buffer: &mut Vec<u8>,
        write: impl FnOnce(&[u8]) -> Result<()>,
        container: &Path,
    ) -> Result<u64> {
        let length = rows.len() * self.row_bytes;
        match &self.source {
            Source::Bytes(bytes) => write(&bytes[rows])?,
            Source::File(file, range) => write(&file[range.start + rows.start..range.start + rows.end])?,
            Source::Rows { tensor, fill } => {
                buffer.clear();
                buffer.resize(length, 0);
                fill(rows, buffer).map_err(|message| {
                    Error::Request(format!("{}: tensor `{tensor}`: {message}", container.display()))
                })?;
                write(buffer)?;
            }
        }
        Ok(length as u64)
    }
}
