//! An [`Export`] onto the disk: tile by tile on all threads, in bounded memory, published whole or not at all. Not
//! here: any format.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{Export, Part, Source};
use crate::container::TensorEntry;
use crate::{AtomicFile, Container, Error, Isa, ReadAhead, Result};

/// Bytes that each thread makes at once, about; one row where that is more. They go from the cache into the file.
const TILE: usize = 1 << 18;

/// The same where rows should be made together.
const LARGE_TILE: usize = 1 << 20;

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
    let beside: Vec<_> = export.beside.iter().map(|(name, bytes)| (output.with_file_name(name), bytes)).collect();
    refuse_inputs(container, export, beside.iter().map(|(path, _)| path.as_path()).chain([output]))?;
    if let Some((name, _)) =
        export.beside.iter().find(|(name, _)| output.file_name().is_some_and(|own| own == name.as_str()))
    {
        return Err(Error::Request(format!("`{name}` is written beside the output; give the output another name")));
    }
    if let Some((taken, _)) = beside.iter().find(|(path, _)| path.exists() && !options.overwrite) {
        return Err(Error::OutputExists { path: taken.clone() });
    }
    let file = AtomicFile::create(output, options.overwrite)?;
    let check = |entry: &TensorEntry| {
        check_cancelled(options)?;
        container.check_sections(entry)
    };
    let (total, done) = (export.len(), AtomicU64::new(0));
    let run = |ahead: &ReadAhead<'_>, buffer: &mut Vec<u8>, job: &Job<'_>| {
        let (part, offset, rows) = match job {
            Job::Check(entry) => {
                entry.sections().for_each(|(_, section)| ahead.reached(container.section(section)));
                return check(entry);
            }
            Job::Write(part, offset, rows) => (part, *offset, rows.clone()),
        };
        check_cancelled(options)?;
        let length = part.write(rows, buffer, |bytes| file.write_at(bytes, offset), container.path())?;
        let done = done.fetch_add(length, Ordering::Relaxed) + length;
        if let Some(progress) = options.progress {
            progress(done, total);
        }
        Ok(())
    };
    let jobs = jobs(container, export);
    let result = ReadAhead::during(&read_by(&jobs, container), |ahead| {
        // Every thread takes the next one.
        let next = AtomicUsize::new(0);
        let results = rayon::broadcast(|_| {
            let mut buffer = Vec::new();
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = run(ahead, &mut buffer, job) {
                    next.store(jobs.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        });
        results.into_iter().collect::<Result<()>>()
    });
    match result {
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
    // Nothing gets its name before everything is on the disk.
    file.sync()?;
    let mut whole = Vec::new();
    for (path, bytes) in &beside {
        let file = AtomicFile::create(path, options.overwrite)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        whole.push(file);
    }
    whole.into_iter().chain([file]).try_for_each(AtomicFile::publish)?;
    Ok(total)
}

enum Job<'a> {
    Check(&'a TensorEntry),
    /// These rows, to go to that offset.
    Write(&'a Part<'a>, u64, Range<usize>),
}

/// What is read of a container, in order; neighbours are one.
fn read_by<'c>(jobs: &[Job<'_>], container: &'c Container) -> Vec<&'c [u8]> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let entries = jobs.iter().filter_map(|job| if let Job::Check(entry) = job { Some(*entry) } else { None });
    for (_, section) in entries.flat_map(TensorEntry::sections) {
        let (start, end) = (section.offset, section.offset + section.length);
        match ranges.last_mut() {
            // Sections begin at multiples of 64 bytes.
            Some(last) if last.end <= start && start - last.end < 64 => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges.into_iter().map(|range| &container.bytes()[range.start as usize..range.end as usize]).collect()
}

/// Everything there is to do, in the order of the new file. But a tensor is checked just before the first of it is
/// written, and with that goes all that stays as it is, wherever to, so that the disk is read once.
fn jobs<'a>(container: &'a Container, export: &'a Export<'a>) -> Vec<Job<'a>> {
    let entries = &container.index().tensors;
    let by_name: HashMap<&str, usize> = entries.iter().zip(0..).map(|(entry, i)| (entry.name.as_str(), i)).collect();
    let all = container.bytes().as_ptr_range();
    let tensor_of = |part: &Part<'_>| match &part.source {
        Source::Bytes(bytes) if all.contains(&bytes.as_ptr()) => {
            let at = (bytes.as_ptr().addr() - all.start.addr()) as u64;
            // They stand in the index as they lie.
            let begins = |entry: &TensorEntry| entry.sections().next().is_some_and(|(_, first)| first.offset <= at);
            entries.partition_point(begins).checked_sub(1)
        }
        Source::Rows { tensor, .. } => by_name.get(tensor.as_str()).copied(),
        _ => None,
    };
    // Each with the number of the part that it goes with.
    let (mut jobs, mut firsts, mut offset) = (Vec::new(), vec![None; entries.len()], 0);
    for (number, part) in export.parts.iter().enumerate() {
        let mut goes_with = number;
        if let Some(i) = tensor_of(part) {
            let first = *firsts[i].get_or_insert_with(|| {
                jobs.push((number, Job::Check(&entries[i])));
                number
            });
            if let Source::Bytes(_) = part.source {
                goes_with = first;
            }
        }
        let tile = |rows: Range<usize>| Job::Write(part, offset + (rows.start * part.row_bytes) as u64, rows);
        jobs.extend(part.tiles().map(|rows| (goes_with, tile(rows))));
        offset += part.len();
    }
    let rest = entries.iter().zip(firsts).filter(|(_, first)| first.is_none());
    jobs.extend(rest.map(|(entry, _)| (export.parts.len(), Job::Check(entry))));
    jobs.sort_by_key(|(number, _)| *number);
    jobs.into_iter().map(|(_, job)| job).collect()
}

fn check_cancelled(options: &WriteOptions<'_>) -> Result<()> {
    match options.cancel {
        Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Error::Cancelled),
        _ => Ok(()),
    }
}

fn refuse_inputs<'p>(
    container: &Container,
    export: &Export<'_>,
    outputs: impl Iterator<Item = &'p Path>,
) -> Result<()> {
    for output in outputs.filter_map(|output| output.canonicalize().ok()) {
        let files = export.parts.iter().filter_map(|part| match &part.source {
            Source::File(file, _) => Some(file.path()),
            _ => None,
        });
        let mut inputs = files.chain([container.path()]).chain(export.inputs.iter().map(PathBuf::as_path));
        if inputs.any(|input| input.canonicalize().is_ok_and(|input| input == output)) {
            return Err(Error::Request(format!("{} is an input; give another output", output.display())));
        }
    }
    Ok(())
}

impl Part<'_> {
    /// The rows that are made at once, in order.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let (rows, fitting) = (self.rows, |bytes: usize| bytes / self.row_bytes.max(1));
        let step = match fitting(TILE) / self.together * self.together {
            0 => self.together.min(fitting(LARGE_TILE)).max(1),
            step => step,
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export;

    /// Every byte of the file once, every tensor checked once and before anything of it is written; and of a tensor that
    /// stays as it is, which packed safetensors spreads over the file, nothing is written after the next one is checked.
    #[test]
    fn a_tensor_is_checked_just_before_it_is_written() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/every-dtype.t2.twn");
        let container = Container::open(fixture).unwrap();
        for (format, left_out) in [("safetensors", "f32.*"), ("tq2_0", "none"), ("bitnet", "f16.*")] {
            let leave_out = Vec::from_iter((left_out != "none").then(|| left_out.to_owned()));
            let options =
                export::Options { refused_as_dense: format != "safetensors", leave_out, ..Default::default() };
            let export = export::format(format).unwrap().export(&container, &options).unwrap();
            let (mut checked, mut written, mut bytes) = (Vec::new(), 0, vec![0u8; export.len() as usize]);
            for job in jobs(&container, &export) {
                match job {
                    Job::Check(entry) => checked.push(entry),
                    Job::Write(part, at, rows) => {
                        let length = rows.len() * part.row_bytes;
                        bytes[at as usize..][..length].iter_mut().for_each(|byte| *byte += 1);
                        if let Source::Rows { tensor, .. } = &part.source {
                            assert!(checked.iter().any(|entry| entry.name == *tensor), "{format}: {tensor}");
                        }
                        let Source::Bytes(source) = &part.source else { continue };
                        let of = |entry: &&TensorEntry| {
                            entry.sections().any(|(_, section)| {
                                container.section(section).as_ptr_range().contains(&source.as_ptr())
                            })
                        };
                        if container.bytes().as_ptr_range().contains(&source.as_ptr()) {
                            written += 1;
                            assert!(checked.last().is_some_and(of), "{format}: part at {at}");
                        }
                    }
                }
            }
            assert!(bytes.iter().all(|&times| times == 1), "{format}");
            let names = |entries: &[&TensorEntry]| {
                let mut names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
                names.sort();
                names
            };
            assert_eq!(names(&checked), names(&container.index().tensors.iter().collect::<Vec<_>>()), "{format}");
            assert!(written >= 4, "{format}: {written}");
            let last = &checked[checked.len() - 1].name;
            assert!(left_out == "none" || last.starts_with(&left_out[..3]), "{format}: {last}");
        }
    }
}
