//! The run: every tensor of a checkpoint by its plan, streamed into a `.twn` file (or nowhere, to
//! learn what that would give). Threads take small pieces from one queue, in the order of the
//! file; each piece has its place in the output, and sums are added in the order of the pieces, so
//! the bytes do not depend on the number of threads. Not here: any method's rule, any bit order.

mod bad_weights;
mod behind;
#[cfg(feature = "calibration")]
mod bias;
#[cfg_attr(not(feature = "calibration"), path = "uncalibrated.rs")]
mod calibrated;
mod int8;
mod job;
pub(crate) mod journal;
mod look;
mod moved;
mod native;
mod pairs;
mod repair;
mod tally;
mod tensor;
mod unit;
mod window;
mod work;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use self::behind::Behind;
#[cfg(feature = "calibration")]
pub use self::bias::correct_bias;
#[cfg(feature = "calibration")]
pub use self::calibrated::uncalibrated;
use self::job::{Done, Monitor, Run};
use self::journal::Journal;
use self::look::Look;
pub use self::repair::Repair;
use self::tally::Tally;
use self::tensor::{PlaneBytes, TernaryWork};
use self::work::{Offsets, Work, ternary_entry};
use crate::atomic_file::refuse_existing;
#[cfg(feature = "calibration")]
use crate::calibration::Calibration;
use crate::container::{Body, ContainerWriter, Index, Producer, Section, TensorEntry, TernaryTensor};
use crate::error::WeightsProblem;
use crate::report::Report;
use crate::select::{Plan, Planned, Treatment};
use crate::source::{Checkpoint, Input, TensorView};
use crate::vector::Isa;
use crate::vector::block::BLOCK;
use crate::{Error, ReadAhead, Result};

/// Weights per piece of work, about: 1 MiB of `f32`.
const PIECE: usize = 3 * BLOCK;

/// Bytes of the checkpoint that are worked on, about, before a run that may be resumed notes what is finished: a
/// hundredth of a second, or what one calibrated tensor takes.
const BATCH: u64 = 64 << 20;

/// Tensors that are worked on before the next ones are begun, at the most: what works and their sums take does not grow
/// with a checkpoint. That threads wait for the end of the last piece is nothing beside so many.
const BATCH_TENSORS: usize = 4096;

/// The reason of tensors that the method `auto` packed.
pub const NATIVE: &str = "ternary already";

/// The reason of tensors that the method `auto` kept dense.
pub const NOT_NATIVE: &str = "not ternary as it is, with scales of that type";

/// The reason of tensors that [`Options::keep_non_finite_dense`] kept dense.
pub const NON_FINITE: &str = "holds NaN or infinity";

/// How to run a plan.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Replace an output that exists.
    pub overwrite: bool,
    /// Tensors with NaN or infinite weights stay dense instead of stopping the run.
    pub keep_non_finite_dense: bool,
    /// Keep beside the output what is finished, whatever ends the run (`.NAME.twn-partial`, `.NAME.twn-journal`), and
    /// go on with what a run with the same input, plan and options has left there. The bytes are the same.
    pub resume: bool,
    /// Publish no file of more bytes: [`Error::TooLarge`].
    pub limit: Option<u64>,
    /// What is known of the layers' inputs.
    #[cfg(feature = "calibration")]
    pub calibration: Option<&'a Calibration>,
    /// What changes dense tensors once everything else is packed, one after another; [`measure`] leaves it out.
    pub repairs: &'a [Box<Repair<'a>>],
    /// The instruction set, or `None` for [`Isa::detect`]; every one gives the same bytes.
    pub isa: Option<Isa>,
    /// Called now and then, from any thread; calls may overtake one another.
    pub progress: Option<&'a (dyn Fn(Progress<'_>) + Sync)>,
    /// Set it to stop the run; it ends with [`Error::Cancelled`] and leaves nothing behind.
    pub cancel: Option<&'a AtomicBool>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Bytes of the checkpoint that are done; of the output, when unpacking.
    pub done: u64,
    /// Bytes in all (tensors that need a second look count twice).
    pub total: u64,
    /// The tensor at hand.
    pub tensor: &'a str,
}

/// Packs a checkpoint into a `.twn` file, on the threads of the current rayon pool.
///
/// # Errors
/// Weights that cannot become ternary, an output that exists or cannot be written, an input that
/// changed meanwhile, or cancellation. After an error there is no output, or the old one.
pub fn pack(checkpoint: &Checkpoint, plan: &Plan, output: &Path, options: &Options<'_>) -> Result<Report> {
    refuse_own_input(checkpoint, output, options)?;
    let (writer, mut journal) = if options.resume {
        refuse_existing(output, options.overwrite)?;
        let journal = Journal::open(checkpoint, plan, (output, journal::PACKED), options)?;
        let writer = match ContainerWriter::resume(output, options.overwrite) {
            // Of a run that did not begin nothing is to be left.
            Err(error) if journal.is_new() => {
                journal.remove();
                return Err(error);
            }
            writer => writer?,
        };
        if journal.is_new() {
            writer.clear()?;
        }
        (writer, Some(journal))
    } else {
        (ContainerWriter::create(output, options.overwrite)?, None)
    };
    let (mut index, writer) = run_plan(checkpoint, plan, Some(writer), journal.as_mut(), options)?;
    if let Some(writer) = &writer {
        options.repairs.iter().try_for_each(|repair| repair::repair(writer, &mut index, repair))?;
    }
    checkpoint.check_unchanged()?;
    calibrated::check_unchanged(options)?;
    if let Some(limit) = options.limit {
        let found = length(&index);
        if found > limit {
            return Err(Error::TooLarge { found, limit });
        }
    }
    let length = writer.map(|writer| writer.finish(&index)).transpose()?.unwrap_or_default();
    if let Some(journal) = journal {
        journal.remove();
    }
    Ok(Report::of_entries(index.tensors, length))
}

/// Does everything that [`pack`] does but write: what packing would give.
///
/// # Errors
/// As [`pack`], but for the output.
pub fn measure(checkpoint: &Checkpoint, plan: &Plan, options: &Options<'_>) -> Result<Report> {
    let (index, _) = run_plan(checkpoint, plan, None, None, options)?;
    let length = length(&index);
    Ok(Report::of_entries(index.tensors, length))
}

/// Bytes of a file with that index.
fn length(index: &Index) -> u64 {
    let end = index.tensors.iter().flat_map(TensorEntry::sections).map(|(_, s)| s.offset + s.length).max();
    crate::container::align(end.unwrap_or(64)).unwrap_or_default() + index.json_length()
}

fn refuse_own_input(checkpoint: &Checkpoint, output: &Path, options: &Options<'_>) -> Result<()> {
    let Ok(output) = output.canonicalize() else {
        return Ok(());
    };
    if checkpoint.reads(&output) || calibrated::reads(options, &output) {
        return Err(Error::Request(format!("{} is the input; give another output", output.display())));
    }
    Ok(())
}

/// A piece of work: bytes of a dense tensor, or weights (filter axis first) of a ternary one.
#[derive(Debug, Clone)]
struct Piece {
    work: usize,
    range: Range<usize>,
}

fn run_plan(
    checkpoint: &Checkpoint,
    plan: &Plan,
    writer: Option<ContainerWriter>,
    journal: Option<&mut Journal>,
    options: &Options<'_>,
) -> Result<(Index, Option<ContainerWriter>)> {
    plan.check(checkpoint)?;
    let inputs = (0..checkpoint.len()).map(|i| checkpoint.input(i));
    let files: Vec<&[u8]> = checkpoint.mapped().iter().map(|file| &file[..]).collect();
    let (tensors, writer) = ReadAhead::during(&files, |ahead| {
        std::thread::scope(|scope| {
            let mut unmap = behind::unmapper(scope);
            let behind = Behind::new(checkpoint.mapped(), &mut unmap);
            run(inputs.zip(&plan.tensors), writer, journal, &None, Some((ahead, behind)), options)
        })
    })?;
    let index = Index { metadata: checkpoint.metadata().clone(), producer: Producer::this(), tensors };
    Ok((index, writer))
}

/// What the index would say of one tensor for each of these decisions; nothing is written.
///
/// # Errors
/// As [`measure`].
pub(crate) fn measure_tensor(input: Input<'_>, planned: &[Planned], options: &Options<'_>) -> Result<Vec<TensorEntry>> {
    Ok(run(planned.iter().map(|planned| (input, planned)), None, None, &calibrated::shared(), None, options)?.0)
}

/// Whether the run has statistics of inputs.
pub(crate) fn is_calibrated(options: &Options<'_>) -> bool {
    calibrated::is_asked(options)
}

/// The work on those tensors; `shared` is for what they have in common, where they are one. Where they are all of a
/// checkpoint, `around` is told what is read.
fn run<'a>(
    tensors: impl Iterator<Item = (Input<'a>, &'a Planned)> + Clone,
    mut writer: Option<ContainerWriter>,
    mut journal: Option<&mut Journal>,
    shared: &calibrated::Shared,
    around: Option<(&ReadAhead<'_>, Behind<'_, '_>)>,
    options: &Options<'_>,
) -> Result<(Vec<TensorEntry>, Option<ContainerWriter>)> {
    let isa = options.isa.map_or_else(Isa::detect, Ok)?;
    let (ahead, mut behind) = around.unzip();
    // Works are made twice: now, for what they refuse, and again when they are due. There may be a hundred thousand
    // tensors; of each there is room for a look. What has to be read for that is read shortly before it is read again.
    let (mut looks, mut total, mut longest) = (Vec::with_capacity(tensors.size_hint().0), 0, u64::MAX);
    for (input, planned) in tensors.clone() {
        let look = match Look::reads(planned, options) {
            true => None,
            false => Some(Look::new(input, planned, options, shared, isa)?),
        };
        let unread = Look::unread(input, planned);
        let expected = look.as_ref().unwrap_or(&unread);
        let work = Work::new(input, planned, expected, &mut Offsets { writer: None, end: 0 })?;
        if look.is_none() || work.needs_prefit() || journal.is_some() {
            longest = BATCH;
        }
        let bytes = work.bytes();
        total += bytes;
        looks.push((look, bytes));
    }
    let monitor = Monitor { total, done: AtomicU64::new(0), options };
    let mut entries: Vec<TensorEntry> = Vec::with_capacity(looks.len());
    let mut tensors = tensors.zip(looks).map(|((input, planned), (look, bytes))| (input, planned, look, bytes));
    let (mut end, mut method) = (64, None);
    loop {
        let due = due(&mut tensors, longest, |input, planned| {
            monitor.check()?;
            if let Some(ahead) = ahead {
                ahead.reached(input.tensor.stored);
            }
            Look::new(input, planned, options, shared, isa)
        })?;
        if due.is_empty() {
            break;
        }
        let (mut batch, mut offsets) = (Vec::with_capacity(due.len()), Offsets { writer: writer.as_mut(), end });
        for (input, planned, look, bytes) in &due {
            let work = Work::new(*input, planned, look, &mut offsets)?;
            // What stays dense after all is not read twice.
            if *bytes > work.bytes() {
                monitor.advance(bytes - work.bytes(), work.tensor.name);
            }
            batch.push(work);
        }
        end = offsets.end;
        let run = Run { isa, writer: writer.as_ref(), monitor: &monitor, ahead };
        recall(&mut batch, entries.len(), journal.as_deref_mut(), run)?;
        let totals = run_batch(&mut batch, behind.as_mut(), run)?;
        for (mut work, total) in batch.into_iter().zip(totals) {
            let mut entry = match work.known.take() {
                Some(known) => *known,
                None => {
                    let entry = work.entry(total, calibrated::is_asked(options))?;
                    if let Some(journal) = &mut journal {
                        journal.add(entries.len(), &entry)?;
                    }
                    entry
                }
            };
            entry.share_method(&mut method);
            entries.push(entry);
        }
    }
    Ok((entries, writer))
}

/// A tensor, what is to become of it, what has to be known of it, and bytes to be read.
type Due<'a, L> = (Input<'a>, &'a Planned, L, u64);

/// The next tensors, until they are enough to do; `look` looks at those that nobody has looked at yet.
fn due<'a>(
    tensors: &mut impl Iterator<Item = Due<'a, Option<Look<'a>>>>,
    longest: u64,
    look: impl Fn(Input<'a>, &'a Planned) -> Result<Look<'a>>,
) -> Result<Vec<Due<'a, Look<'a>>>> {
    let (mut due, mut effort) = (Vec::new(), 0u64);
    while effort < longest
        && due.len() < BATCH_TENSORS
        && let Some((input, planned, seen, bytes)) = tensors.next()
    {
        let seen = seen.map_or_else(|| look(input, planned), Ok)?;
        effort = effort.saturating_add(seen.effort(bytes));
        due.push((input, planned, seen, bytes));
    }
    Ok(due)
}

/// Finds what is finished of these tensors, of which the first has that number.
fn recall(works: &mut [Work<'_>], first: usize, journal: Option<&mut Journal>, run: Run<'_>) -> Result<()> {
    let (Some(journal), Some(writer)) = (journal, run.writer) else { return Ok(()) };
    for (i, work) in works.iter_mut().enumerate() {
        let entry = journal.take(first + i).filter(|entry| work.is_described_by(entry));
        if let Some(entry) = entry
            && writer.holds(&entry)?
        {
            run.monitor.advance(work.bytes(), work.tensor.name);
            work.known = Some(Box::new(entry));
        }
    }
    Ok(())
}

/// All the work on some tensors but those that are known; what it adds up to.
fn run_batch(works: &mut [Work<'_>], mut behind: Option<&mut Behind<'_, '_>>, run: Run<'_>) -> Result<Vec<Done>> {
    let totals: Result<Vec<Done>> = works.iter_mut().map(|work| work.prefit(run)).collect();
    let (mut totals, works) = (totals?, &*works);
    let pieces = works.iter().enumerate();
    let pieces = pieces.flat_map(|(i, work)| work.pieces().into_iter().map(move |range| Piece { work: i, range }));
    let job = |piece: &Piece| {
        let work = &works[piece.work];
        let source = work.source(piece.range.clone());
        run.reached(if source.is_empty() { work.tensor.stored } else { source });
        work.run(piece.range.clone(), run)
    };
    let add = |piece: Piece, done| {
        totals[piece.work].add(&done);
        if let Some(behind) = &mut behind {
            behind.passed(works[piece.work].source(piece.range));
        }
    };
    in_order(pieces, job, add)?;
    Ok(totals)
}

/// Runs `job` for every piece, on all threads of the pool, each taking the next piece. The results go to `add` in the
/// order of the pieces, as soon as all before are there; of several errors the first in that order is returned.
fn in_order<P: Send, T: Send>(
    pieces: impl Iterator<Item = P> + Send,
    job: impl Fn(&P) -> Result<T> + Sync,
    add: impl FnMut(P, T) + Send,
) -> Result<()> {
    let (pieces, failed) = (Mutex::new(pieces.enumerate()), AtomicBool::new(false));
    // The number of the result that is next, and those that came too early.
    let sums = Mutex::new((0, BTreeMap::new(), add));
    rayon::broadcast(|_| {
        while !failed.load(Ordering::Relaxed) {
            let Some((i, piece)) = lock(&pieces).next() else { break };
            let result = job(&piece);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            let (next, early, add) = &mut *lock(&sums);
            early.insert(i, (piece, result));
            while let Some(first) = early.first_entry()
                && *first.key() == *next
                && first.get().1.is_ok()
            {
                if let (piece, Ok(result)) = first.remove() {
                    add(piece, result);
                }
                *next += 1;
            }
        }
    });
    // An error stops the sums: it is the first of what is left, and all before it was taken.
    let (_, left, _) = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    left.into_values().try_for_each(|(_, result)| result.map(drop))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ternarizes one tensor in memory, on the threads of the current rayon pool. `tensor` is what
/// [`TensorView`] describes, of a floating-point type; the result has its shape.
///
/// # Errors
/// Another type, no such axis, an empty tensor, or weights that cannot become ternary.
pub fn ternarize(tensor: TensorView<'_>, treatment: &Treatment, isa: Isa) -> Result<TernaryTensor<'static>> {
    let view = treatment.filters(tensor)?;
    if treatment.method.lossless() && !native::is_ternary(view, treatment.granularity, treatment.scale_dtype, isa) {
        return Err(Error::Request(format!("tensor `{}` is {NOT_NATIVE}; take another method than auto", tensor.name)));
    }
    let problem = |problem| weights_error(tensor.name, problem);
    let mut work = TernaryWork::new(view, treatment);
    work.prefit(isa, None, |_| Ok(())).map_err(problem)?;
    let mut outputs = Vec::new();
    work.each_window(isa, |part| {
        part.prefit(isa, None, |_| Ok(()))?;
        outputs.par_extend(part.pieces().into_par_iter().map(|range| part.run(range, isa)));
        Ok(())
    })
    .map_err(problem)?;
    let (mut planes, mut tally) = (vec![PlaneBytes::default(); treatment.planes], Tally::default());
    planes.iter_mut().zip(work.fit_scales()).for_each(|(plane, scales)| plane.scales = scales);
    work.fits.iter().for_each(|fit| tally.add_fit(fit));
    for output in outputs {
        let output = output.map_err(problem)?;
        for (plane, piece) in planes.iter_mut().zip(output.planes) {
            plane.codes.extend(piece.codes);
            plane.scales.extend(piece.scales);
        }
        tally.add(&output.tally);
    }
    let (codes, scales): (Vec<_>, Vec<_>) = planes.into_iter().map(|plane| (plane.codes, plane.scales)).unzip();
    let (codes, scales) = (codes.concat(), scales.concat());
    let section = |bytes: &[u8]| Section { crc32: crc32fast::hash(bytes), length: bytes.len() as u64, offset: 0 };
    let entry = ternary_entry(tensor, treatment, "", None, section(&codes), section(&scales), &tally)?;
    match entry.body() {
        Body::Ternary(ternary) => Ok(TernaryTensor::new(&entry, ternary, codes, scales)),
        Body::Dense(_) | Body::Int8(_) => unreachable!("made as ternary just above"),
    }
}

/// The greatest common divisor; of 0 and a number that number.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn steps(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(step).map(move |at| at..(at + step).min(end))
}

fn weights_error(tensor: &str, problem: WeightsProblem) -> Error {
    Error::Weights { tensor: tensor.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    /// They were all kept to the end: 200 bytes for each MiB of a checkpoint, and some KiB for each tensor.
    #[test]
    fn results_are_added_as_they_come() {
        let added = AtomicUsize::new(0);
        let pieces = (0..100).inspect(|&piece| assert_eq!(added.load(Ordering::Relaxed), piece));
        let add = |piece, result| {
            assert_eq!((piece, added.fetch_add(1, Ordering::Relaxed)), (result, result));
        };
        pool(1).install(|| in_order(pieces, |&piece| Ok(piece), add)).unwrap();
        assert_eq!(added.into_inner(), 100);
    }

    #[test]
    fn the_first_error_in_order_ends_the_sums() {
        let (both, mut added) = (Barrier::new(2), Vec::new());
        let job = |&piece: &usize| match piece {
            3 | 5 => {
                both.wait();
                Err(Error::Request(piece.to_string()))
            }
            _ => Ok(piece),
        };
        let error = pool(3).install(|| in_order(0..100, job, |_, result| added.push(result))).unwrap_err();
        assert!(matches!(&error, Error::Request(piece) if piece == "3"), "{error}");
        assert_eq!(added, [0, 1, 2]);
    }
}
