//! The run: every tensor of a checkpoint by its plan, streamed into a `.twn` file (or nowhere, to
//! learn what that would give). Threads take small pieces from one queue, in the order of the
//! file; each piece has its place in the output, and sums are added in the order of the pieces, so
//! the bytes do not depend on the number of threads. Not here: any method's rule, any bit order.

#[cfg(feature = "calibration")]
mod bias;
#[cfg_attr(not(feature = "calibration"), path = "uncalibrated.rs")]
mod calibrated;
mod int8;
mod job;
mod journal;
mod repair;
mod tally;
mod tensor;
mod unit;
mod window;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

#[cfg(feature = "calibration")]
pub use self::bias::correct_bias;
use self::calibrated::Calibrated;
use self::int8::Int8Work;
use self::job::{Done, Monitor, Places, Run};
use self::journal::Journal;
pub use self::repair::Repair;
use self::tally::Tally;
use self::tensor::{PlaneBytes, TernaryWork};
use self::unit::LongRange;
#[cfg(feature = "calibration")]
use crate::calibration::Calibration;
use crate::container::{
    Body, CalibrationEntry, ContainerWriter, DenseEntry, Granularity, Index, Int8Entry, MethodEntry, Producer, Section,
    TensorEntry, TernaryEntry, TernaryTensor,
};
use crate::error::WeightsProblem;
use crate::limits::PACKED_PLANES;
use crate::pack::Encoding;
use crate::report::Report;
use crate::select::{BUDGET, Decision, Plan, Planned, Treatment};
use crate::source::{Checkpoint, FilterView, TensorView};
use crate::ternarize::Unit;
use crate::vector::Isa;
use crate::vector::block::BLOCK;
use crate::{Error, Result};

/// Weights per piece of work, about: 1 MiB of `f32`.
const PIECE: usize = 3 * BLOCK;

/// Bytes of the checkpoint that are worked on, about, before a run that may be resumed notes what is finished: a
/// hundredth of a second, or what one calibrated tensor takes.
const BATCH: u64 = 64 << 20;

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
    /// What is known of the layers' inputs.
    #[cfg(feature = "calibration")]
    pub calibration: Option<&'a Calibration>,
    /// What changes dense tensors once everything else is packed, one after another; [`measure`] leaves it out.
    pub repairs: &'a [Box<Repair<'a>>],
    /// The instruction set, or `None` for [`Isa::detect`]; every one gives the same bytes.
    pub isa: Option<Isa>,
    /// Called now and then, from any thread.
    pub progress: Option<&'a (dyn Fn(Progress<'_>) + Sync)>,
    /// Set it to stop the run; it ends with [`Error::Cancelled`] and leaves nothing behind.
    pub cancel: Option<&'a AtomicBool>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Bytes of the checkpoint that are done.
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
    refuse_own_input(checkpoint, output)?;
    let (writer, mut journal) = if options.resume {
        let writer = ContainerWriter::resume(output, options.overwrite)?;
        let journal = Journal::open(checkpoint, plan, output, options)?;
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
    let length = writer.map(|writer| writer.finish(&index)).transpose()?.unwrap_or_default();
    if let Some(journal) = journal {
        journal.remove();
    }
    Ok(Report::of_index(&index, length))
}

/// Does everything that [`pack`] does but write: what packing would give.
///
/// # Errors
/// As [`pack`], but for the output.
pub fn measure(checkpoint: &Checkpoint, plan: &Plan, options: &Options<'_>) -> Result<Report> {
    let (index, _) = run_plan(checkpoint, plan, None, None, options)?;
    let end = index.tensors.iter().flat_map(TensorEntry::sections).map(|(_, s)| s.offset + s.length).max();
    let end = crate::container::align(end.unwrap_or(64)).unwrap_or_default();
    Ok(Report::of_index(&index, end + index.to_json().len() as u64))
}

fn refuse_own_input(checkpoint: &Checkpoint, output: &Path) -> Result<()> {
    let Ok(output) = output.canonicalize() else {
        return Ok(());
    };
    for file in checkpoint.files() {
        if file.canonicalize().is_ok_and(|file| file == output) {
            return Err(Error::Request(format!("{} is the input; give another output", output.display())));
        }
    }
    Ok(())
}

/// A tensor, what it becomes, and where that goes.
struct Work<'a> {
    tensor: TensorView<'a>,
    reason: &'a str,
    kind: Kind<'a>,
    /// Pieces that are done already: those of scattered filters.
    done: Vec<Done>,
}

enum Kind<'a> {
    Dense(Section),
    Int8 { places: Places, work: Int8Work<'a>, calibrated: Option<Calibrated<'a>> },
    Ternary { places: Places, work: Box<TernaryWork<'a>>, calibrated: Option<Calibrated<'a>> },
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
    if plan.tensors.len() != checkpoint.len() {
        return Err(Error::Request("the plan was made for another checkpoint".to_owned()));
    }
    let (tensors, writer) = run(checkpoint.tensors().zip(&plan.tensors), writer, journal, options)?;
    let index = Index { metadata: checkpoint.metadata().clone(), producer: Producer::this(), tensors };
    Ok((index, writer))
}

/// What the index would say of one tensor for each of these decisions; nothing is written.
///
/// # Errors
/// As [`measure`].
pub(crate) fn measure_tensor(
    tensor: TensorView<'_>,
    planned: &[Planned],
    options: &Options<'_>,
) -> Result<Vec<TensorEntry>> {
    Ok(run(planned.iter().map(|planned| (tensor, planned)), None, None, options)?.0)
}

/// Whether the run has statistics of inputs.
pub(crate) fn is_calibrated(options: &Options<'_>) -> bool {
    calibrated::is_asked(options)
}

fn run<'a>(
    tensors: impl Iterator<Item = (TensorView<'a>, &'a Planned)>,
    mut writer: Option<ContainerWriter>,
    mut journal: Option<&mut Journal>,
    options: &Options<'_>,
) -> Result<(Vec<TensorEntry>, Option<ContainerWriter>)> {
    let isa = options.isa.map_or_else(Isa::detect, Ok)?;
    let mut offsets = Offsets { writer: writer.as_mut(), end: 64 };
    let mut works = Vec::new();
    for (tensor, planned) in tensors {
        works.push(Work::new(tensor, planned, &mut offsets, options, isa)?);
    }
    let monitor = Monitor { total: works.iter().map(Work::bytes).sum(), done: AtomicU64::new(0), options };
    let run = Run { isa, writer: writer.as_ref(), monitor: &monitor };
    let mut entries = Vec::with_capacity(works.len());
    // Without a journal all tensors at once: no thread waits for the end of any.
    let batch = if journal.is_some() { BATCH } else { u64::MAX };
    let mut rest = &mut works[..];
    while !rest.is_empty() {
        let mut bytes = 0u64;
        let end = rest.iter().position(|work| {
            bytes = bytes.saturating_add(work.effort());
            bytes >= batch
        });
        let (works, others) = rest.split_at_mut(end.map_or(rest.len(), |end| end + 1));
        rest = others;
        let first = entries.len();
        let known = recall(works, first, journal.as_deref_mut(), run)?;
        for (i, entry) in run_batch(works, known, run, options)?.into_iter().enumerate() {
            let (entry, is_new) = entry;
            if let (Some(journal), true) = (&mut journal, is_new) {
                journal.add(first + i, &entry)?;
            }
            entries.push(entry);
        }
    }
    Ok((entries, writer))
}

/// What is finished of these tensors, of which the first has that number.
fn recall(
    works: &[Work<'_>],
    first: usize,
    journal: Option<&mut Journal>,
    run: Run<'_>,
) -> Result<Vec<Option<TensorEntry>>> {
    let (Some(journal), Some(writer)) = (journal, run.writer) else { return Ok(vec![None; works.len()]) };
    let mut known = Vec::with_capacity(works.len());
    for (i, work) in works.iter().enumerate() {
        let entry = journal.take(first + i).filter(|entry| work.is_described_by(entry));
        let holds = entry.as_ref().map_or(Ok(false), |entry| writer.holds(entry))?;
        if holds {
            run.monitor.advance(work.bytes(), work.tensor.name);
        }
        known.push(entry.filter(|_| holds));
    }
    Ok(known)
}

/// All the work on some tensors but those that are known; what the index says of each, and whether that is new.
fn run_batch(
    works: &mut [Work<'_>],
    known: Vec<Option<TensorEntry>>,
    run: Run<'_>,
    options: &Options<'_>,
) -> Result<Vec<(TensorEntry, bool)>> {
    for (work, _) in works.iter_mut().zip(&known).filter(|(_, known)| known.is_none()) {
        work.prefit(run)?;
    }
    let pieces: Vec<Piece> = works
        .iter()
        .enumerate()
        .filter(|(i, _)| known[*i].is_none())
        .flat_map(|(i, work)| work.pieces().into_iter().map(move |range| Piece { work: i, range }))
        .collect();
    let done = in_order(&pieces, |piece| works[piece.work].run(piece.range.clone(), run))?;
    let mut pieces = pieces.iter().zip(done).peekable();
    let entries = works.iter().zip(known).enumerate().map(|(i, (work, known))| {
        if let Some(entry) = known {
            return Ok((entry, false));
        }
        let mut total = work.start();
        work.done.iter().for_each(|done| total.add(done));
        while let Some((_, done)) = pieces.next_if(|(piece, _)| piece.work == i) {
            total.add(&done);
        }
        Ok((work.entry(total, calibrated::is_asked(options))?, true))
    });
    entries.collect()
}

/// Runs `job` for every piece, on all threads of the pool, each taking the next piece. The results
/// are in the order of the pieces; of several errors the first in that order is returned.
fn in_order<P: Sync, T: Send>(pieces: &[P], job: impl Fn(&P) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut results: Vec<(usize, Result<T>)> = rayon::broadcast(|_| {
        let mut mine = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(i) else { break };
            let result = job(piece);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            mine.push((i, result));
        }
        mine
    })
    .into_iter()
    .flatten()
    .collect();
    results.sort_unstable_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Hands out the places of sections, with or without a file to put them in.
struct Offsets<'w> {
    writer: Option<&'w mut ContainerWriter>,
    end: u64,
}

impl Offsets<'_> {
    fn reserve(&mut self, length: u64) -> Result<Section> {
        if let Some(writer) = &mut self.writer {
            return writer.reserve(length);
        }
        let section = Section { crc32: 0, length, offset: self.end };
        self.end = crate::container::align(self.end.saturating_add(length)).unwrap_or(u64::MAX);
        Ok(section)
    }
}

impl<'a> Work<'a> {
    fn new(
        tensor: TensorView<'a>,
        planned: &'a Planned,
        offsets: &mut Offsets<'_>,
        options: &Options<'a>,
        isa: Isa,
    ) -> Result<Self> {
        let view = match &planned.decision {
            Decision::Dense => None,
            Decision::Int8(treatment) => Some(filters_of(tensor, treatment.axis)?),
            Decision::Ternary(treatment) => Some(filter_view(tensor, treatment)?),
        };
        let left = view.is_some() && options.keep_non_finite_dense && !is_finite(tensor, isa, options.cancel);
        let reason = if left { NON_FINITE } else { &planned.reason };
        let mut places = |planes: u64, plane: (u64, u64)| -> Result<Places> {
            let (codes, scales) = (offsets.reserve(planes * plane.0)?, offsets.reserve(planes * plane.1)?);
            Ok(Places { codes, scales, plane })
        };
        let kind = match (&planned.decision, view.filter(|_| !left)) {
            (Decision::Ternary(treatment), Some(view)) => {
                let work = Box::new(TernaryWork::new(view, treatment));
                let whole_tensor = treatment.granularity == Granularity::Tensor;
                let calibrated = calibrated::of(options, tensor, view, whole_tensor)?;
                Kind::Ternary { places: places(treatment.planes as u64, work.plane_bytes())?, work, calibrated }
            }
            (Decision::Int8(treatment), Some(view)) => {
                let work = Int8Work::new(view, *treatment);
                let calibrated = calibrated::of(options, tensor, view, false)?;
                Kind::Int8 { places: places(1, work.bytes())?, work, calibrated }
            }
            _ => Kind::Dense(offsets.reserve(tensor.data.len() as u64)?),
        };
        Ok(Self { tensor, reason, kind, done: Vec::new() })
    }

    /// Bytes of the checkpoint that are read for it; those of a second look count again.
    fn bytes(&self) -> u64 {
        let bytes = self.tensor.data.len() as u64;
        if self.needs_prefit() { 2 * bytes } else { bytes }
    }

    /// The same for the choice of batches: a calibrated tensor takes long enough to be one by itself.
    fn effort(&self) -> u64 {
        match &self.kind {
            Kind::Ternary { calibrated: Some(_), .. } => BATCH.max(self.bytes()),
            _ => self.bytes(),
        }
    }

    /// Whether that could be what becomes of it: the same name and places.
    fn is_described_by(&self, entry: &TensorEntry) -> bool {
        let places: Vec<Section> = match &self.kind {
            Kind::Dense(section) => vec![*section],
            Kind::Int8 { places, .. } | Kind::Ternary { places, .. } => vec![places.codes, places.scales],
        };
        let same = |(a, b): (&Section, Section)| (a.offset, a.length) == (b.offset, b.length);
        let found: Vec<Section> = entry.sections().map(|(_, section)| section).collect();
        entry.name == self.tensor.name && places.len() == found.len() && places.iter().zip(found).all(same)
    }

    fn needs_prefit(&self) -> bool {
        matches!(&self.kind, Kind::Ternary { work, calibrated: None, .. } if work.needs_prefit())
    }

    /// What has to happen before there are pieces: units that no piece holds whole are fitted. Where
    /// filters are scattered over the file that is the whole work, on some filters after another.
    fn prefit(&mut self, run: Run<'_>) -> Result<()> {
        let Self { tensor, kind, done, .. } = self;
        let (places, work) = match kind {
            Kind::Dense(_) => return Ok(()),
            Kind::Int8 { places, work, calibrated } => {
                *done = match calibrated {
                    Some(calibrated) => calibrated.int8(*tensor, work, *places, run)?,
                    None => work.by_windows(*tensor, *places, run)?,
                };
                return Ok(());
            }
            Kind::Ternary { places, work, calibrated: Some(calibrated) } => {
                *done = calibrated.ternary(*tensor, work, *places, run)?;
                return Ok(());
            }
            Kind::Ternary { places, work, calibrated: None } => (places, work),
        };
        run.fit(*tensor, work)?;
        if work.is_scattered() {
            work.each_window(run.isa, |part| {
                run.fit(*tensor, part)?;
                let job = |range: &Range<usize>| run.ternary(*tensor, part, range.clone(), *places);
                done.extend(in_order(&part.pieces(), job)?);
                Ok::<_, Error>(())
            })?;
        }
        for (p, bytes) in work.fit_scales().iter().enumerate() {
            run.write(bytes, places.plane(p).1)?;
        }
        Ok(())
    }

    /// The tensor's pieces, in order.
    fn pieces(&self) -> Vec<Range<usize>> {
        match &self.kind {
            Kind::Dense(_) => steps(0..self.tensor.data.len(), 4 * PIECE).collect(),
            Kind::Ternary { calibrated: Some(_), .. } | Kind::Int8 { calibrated: Some(_), .. } => Vec::new(),
            Kind::Int8 { work, .. } if work.is_scattered() => Vec::new(),
            Kind::Int8 { work, .. } => work.pieces(),
            Kind::Ternary { work, .. } if work.is_scattered() => Vec::new(),
            Kind::Ternary { work, .. } => work.pieces(),
        }
    }

    fn run(&self, range: Range<usize>, run: Run<'_>) -> Result<Done> {
        match &self.kind {
            Kind::Dense(section) => run.dense(self.tensor, range, *section),
            Kind::Int8 { places, work, .. } => work.piece(self.tensor, range, *places, run),
            Kind::Ternary { places, work, .. } => run.ternary(self.tensor, work, range, *places),
        }
    }

    /// What is known before the first piece: units that were fitted beforehand.
    fn start(&self) -> Done {
        let Kind::Ternary { work, .. } = &self.kind else { return Done::of_planes(1) };
        let mut done = Done::of_planes(work.treatment.planes);
        for (sums, scales) in done.planes.iter_mut().zip(work.fit_scales()) {
            sums.scales.update(&scales);
        }
        work.fits.iter().for_each(|fit| done.tally.add_fit(fit));
        done
    }

    /// `calibration`: the run was given statistics.
    fn entry(&self, done: Done, calibration: bool) -> Result<TensorEntry> {
        let tally = done.tally;
        let (codes_crc, scales_crc) = done.checksums();
        match &self.kind {
            Kind::Dense(section) => {
                let section = Section { crc32: codes_crc, ..*section };
                let entry = DenseEntry { reason: self.reason.to_owned(), repaired: None, section };
                Ok(TensorEntry::dense(self.tensor.name.to_owned(), self.tensor.dtype, shape_of(self.tensor), entry))
            }
            Kind::Int8 { places: Places { codes, scales, .. }, work, calibrated } => {
                let entry = Int8Entry {
                    axis: work.treatment.axis as u64,
                    calibration: calibration.then(|| calibrated::entry(calibrated.as_ref(), false, tally.output())),
                    codes: Section { crc32: codes_crc, ..*codes },
                    reason: self.reason.to_owned(),
                    scale_dtype: work.treatment.scale_dtype,
                    scales: Section { crc32: scales_crc, ..*scales },
                    stats: tally.int8_stats().map_err(|problem| weights_error(self.tensor.name, problem))?,
                };
                Ok(TensorEntry::int8(self.tensor.name.to_owned(), self.tensor.dtype, shape_of(self.tensor), entry))
            }
            Kind::Ternary { places: Places { codes, scales, .. }, work, calibrated } => ternary_entry(
                self.tensor,
                work.treatment,
                if self.reason == BUDGET { BUDGET } else { "" },
                calibration.then(|| calibrated::entry(calibrated.as_ref(), true, tally.output())),
                Section { crc32: codes_crc, ..*codes },
                Section { crc32: scales_crc, ..*scales },
                &tally,
            ),
        }
    }
}

fn shape_of(tensor: TensorView<'_>) -> Vec<u64> {
    tensor.shape.iter().map(|&d| d as u64).collect()
}

fn ternary_entry(
    tensor: TensorView<'_>,
    treatment: &Treatment,
    reason: &str,
    calibration: Option<CalibrationEntry>,
    codes: Section,
    scales: Section,
    tally: &Tally,
) -> Result<TensorEntry> {
    let method = MethodEntry { name: treatment.method.name().to_owned(), parameters: treatment.method.parameters() };
    let planes = treatment.planes as u64;
    let entry = TernaryEntry {
        axis: treatment.axis as u64,
        calibration,
        codes,
        encoding: treatment.encoding,
        granularity: treatment.granularity,
        method,
        planes,
        reason: reason.to_owned(),
        scale_dtype: treatment.scale_dtype,
        scales,
        stats: tally.stats(planes * tensor.elements() as u64).map_err(|problem| weights_error(tensor.name, problem))?,
    };
    Ok(TensorEntry::ternary(tensor.name.to_owned(), tensor.dtype, shape_of(tensor), entry))
}

/// Ternarizes one tensor in memory, on the threads of the current rayon pool. `tensor` is what
/// [`TensorView`] describes, of a floating-point type; the result has its shape.
///
/// # Errors
/// Another type, no such axis, an empty tensor, or weights that cannot become ternary.
pub fn ternarize(tensor: TensorView<'_>, treatment: &Treatment, isa: Isa) -> Result<TernaryTensor<'static>> {
    let view = filter_view(tensor, treatment)?;
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

fn steps(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(step).map(move |at| at..(at + step).min(end))
}

fn filter_view<'a>(tensor: TensorView<'a>, treatment: &Treatment) -> Result<FilterView<'a>> {
    // A treatment may be put together by hand; what settings refuse is refused here as well.
    let contradiction = match treatment {
        Treatment { encoding: Encoding::B1, method, .. } if !method.binary() => Some("encoding b1 has no zeros"),
        Treatment { granularity: Granularity::Group(0), .. } => Some("groups of 0 weights"),
        Treatment { planes, .. } if !(1..=PACKED_PLANES).contains(planes) => Some("planes that are not 1 to 4"),
        _ => None,
    };
    if let Some(contradiction) = contradiction {
        let method = treatment.method.name();
        return Err(Error::Request(format!("tensor `{}`: method `{method}`, but {contradiction}", tensor.name)));
    }
    filters_of(tensor, treatment.axis)
}

/// The filters of a tensor that can have some.
fn filters_of(tensor: TensorView<'_>, axis: usize) -> Result<FilterView<'_>> {
    if tensor.elements() == 0 {
        return Err(Error::Request(format!("tensor `{}` is empty, it cannot be ternary; keep it dense", tensor.name)));
    }
    FilterView::new(tensor, axis).ok_or_else(|| {
        let (name, dtype, shape) = (tensor.name, tensor.dtype, tensor.shape);
        Error::Request(format!("tensor `{name}` ({dtype}, shape {shape:?}) cannot be ternary along axis {axis}"))
    })
}

/// Whatever the filter axis is: looked at in the order of the file.
fn is_finite(tensor: TensorView<'_>, isa: Isa, cancel: Option<&AtomicBool>) -> bool {
    FilterView::new(tensor, 0).is_some_and(|view| {
        let long = LongRange { isa, view, start: 0, len: tensor.elements(), window: None, cancel };
        Unit::from_long(isa, &long).moments().max.is_finite()
    })
}

fn weights_error(tensor: &str, problem: WeightsProblem) -> Error {
    Error::Weights { tensor: tensor.to_owned(), problem }
}
