//! What one tensor of a run becomes, and where that goes: its pieces, and what the index says of it in the end.
//! Not here: in which order, on which threads ([`super`]), or the arithmetic.

use std::ops::Range;
use std::sync::Arc;

use super::calibrated::{self, Calibrated};
use super::int8::Int8Work;
use super::job::{Done, Places, Run};
use super::look::Look;
use super::moved::MovedWork;
use super::tally::Tally;
use super::tensor::TernaryWork;
use super::{NATIVE, PIECE, in_order, steps, weights_error};
use crate::container::{
    CalibrationEntry, ContainerWriter, DenseEntry, Granularity, Int8Entry, MethodEntry, Section, TensorEntry,
    TernaryEntry,
};
use crate::select::{BUDGET, Decision, Planned, Treatment};
use crate::source::{Input, TensorView};
use crate::{Error, Result};

/// A tensor, what it becomes, and where that goes.
pub(super) struct Work<'a> {
    pub tensor: TensorView<'a>,
    reason: &'a str,
    kind: Kind<'a>,
    /// What the index says of it, where an earlier run has done it.
    pub known: Option<Box<TensorEntry>>,
}

enum Kind<'a> {
    Dense(Section),
    Int8 { places: Places, work: Int8Work<'a>, calibrated: Option<&'a Calibrated<'a>> },
    Moved { places: Places, work: MovedWork<'a> },
    Ternary { places: Places, work: TernaryWork<'a>, calibrated: Option<&'a Calibrated<'a>> },
}

/// Hands out the places of sections, with or without a file to put them in.
pub(super) struct Offsets<'w> {
    pub writer: Option<&'w mut ContainerWriter>,
    pub end: u64,
}

impl Offsets<'_> {
    fn reserve(&mut self, length: u64) -> Result<Section> {
        let section = match &mut self.writer {
            Some(writer) => writer.reserve(length)?,
            None => Section { crc32: 0, length, offset: self.end },
        };
        self.end = crate::container::align(self.end.saturating_add(length)).unwrap_or(u64::MAX);
        Ok(section)
    }
}

impl<'a> Work<'a> {
    pub fn new(
        input: Input<'a>,
        planned: &'a Planned,
        Look { reason, left, packed, calibrated }: &'a Look<'a>,
        offsets: &mut Offsets<'_>,
    ) -> Result<Self> {
        let view = planned.decision.filters(input)?.filter(|_| !left);
        let (tensor, calibrated) = (input.tensor, calibrated.as_deref());
        let mut places = |planes: u64, plane: (u64, u64)| -> Result<Places> {
            let (codes, scales) = (offsets.reserve(planes * plane.0)?, offsets.reserve(planes * plane.1)?);
            Ok(Places { codes, scales, plane })
        };
        let kind = match (&planned.decision, view, packed) {
            (Decision::Ternary(treatment), Some(view), _) => {
                let work = TernaryWork::new(view, treatment);
                Kind::Ternary { places: places(treatment.planes as u64, work.plane_bytes())?, work, calibrated }
            }
            (Decision::Int8(treatment), Some(view), _) => {
                let work = Int8Work::new(view, *treatment);
                Kind::Int8 { places: places(1, work.bytes())?, work, calibrated }
            }
            (Decision::Moved(moved), _, &Some((ternary, granularity))) => {
                let work = MovedWork::new(ternary, *moved, granularity);
                Kind::Moved { places: places(work.planes() as u64, work.plane_bytes())?, work }
            }
            _ => Kind::Dense(offsets.reserve(tensor.stored.len() as u64)?),
        };
        Ok(Self { tensor, reason, kind, known: None })
    }

    /// Bytes of the checkpoint that are read for it; those of a second look count again.
    pub fn bytes(&self) -> u64 {
        let bytes = match &self.kind {
            Kind::Moved { work, .. } => work.source_bytes(),
            _ => self.tensor.stored.len() as u64,
        };
        if self.needs_prefit() { 2 * bytes } else { bytes }
    }

    /// Whether that could be what becomes of it: the same name and places.
    pub fn is_described_by(&self, entry: &TensorEntry) -> bool {
        let places: Vec<Section> = match &self.kind {
            Kind::Dense(section) => vec![*section],
            Kind::Int8 { places, .. } | Kind::Ternary { places, .. } | Kind::Moved { places, .. } => {
                vec![places.codes, places.scales]
            }
        };
        let same = |(a, b): (&Section, Section)| (a.offset, a.length) == (b.offset, b.length);
        let found: Vec<Section> = entry.sections().map(|(_, section)| section).collect();
        entry.name == self.tensor.name && places.len() == found.len() && places.iter().zip(found).all(same)
    }

    /// Whether it is read twice.
    pub fn needs_prefit(&self) -> bool {
        match &self.kind {
            Kind::Ternary { work, calibrated: None, .. } => work.needs_prefit(),
            Kind::Ternary { work, .. } => work.treatment.granularity == Granularity::Tensor,
            _ => false,
        }
    }

    /// What has to happen before there are pieces: units that no piece holds whole are fitted. Where
    /// filters are scattered over the file that is the whole work, on some filters after another.
    /// Nothing where it is known already.
    pub fn prefit(&mut self, run: Run<'_>) -> Result<Done> {
        if self.known.is_some() {
            return Ok(Done::default());
        }
        if !self.has_pieces() || self.needs_prefit() {
            run.reached(self.tensor.stored);
        }
        let Self { tensor, kind, .. } = self;
        let done = match kind {
            Kind::Dense(_) | Kind::Moved { .. } => Done::default(),
            Kind::Int8 { places, work, calibrated: Some(calibrated) } => {
                calibrated.int8(*tensor, work, *places, run)?
            }
            Kind::Int8 { places, work, calibrated: None } => work.by_windows(*tensor, *places, run)?,
            Kind::Ternary { places, work, calibrated: Some(calibrated) } => {
                if work.treatment.granularity == Granularity::Tensor {
                    run.fit(*tensor, work)?;
                    calibrated.fit_tensor(*tensor, work, run)?;
                    for (p, bytes) in work.fit_scales().iter().enumerate() {
                        run.write(bytes, places.plane(p).1)?;
                    }
                }
                calibrated.ternary(*tensor, work, *places, run)?
            }
            Kind::Ternary { places, work, calibrated: None } => {
                let mut done = Done::of_planes(work.treatment.planes);
                run.fit(*tensor, work)?;
                if work.is_scattered() {
                    work.each_window(run.isa, |part| {
                        run.fit(*tensor, part)?;
                        let job = |range: &Range<usize>| run.ternary(*tensor, part, range.clone(), *places);
                        in_order(part.pieces().into_iter(), job, |_, next| done.add(&next))
                    })?;
                }
                for (p, bytes) in work.fit_scales().iter().enumerate() {
                    run.write(bytes, places.plane(p).1)?;
                }
                done
            }
        };
        let mut total = self.start();
        total.add(&done);
        Ok(total)
    }

    /// Whether it is worked on piece by piece; else it is known already, or [`Work::prefit`] does it all.
    fn has_pieces(&self) -> bool {
        match &self.kind {
            _ if self.known.is_some() => false,
            Kind::Dense(_) | Kind::Moved { .. } => true,
            Kind::Ternary { calibrated: Some(_), .. } | Kind::Int8 { calibrated: Some(_), .. } => false,
            Kind::Int8 { work, .. } => !work.is_scattered(),
            Kind::Ternary { work, .. } => !work.is_scattered(),
        }
    }

    /// The tensor's pieces, in order.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        match &self.kind {
            _ if !self.has_pieces() => Vec::new(),
            Kind::Dense(_) => steps(0..self.tensor.stored.len(), 4 * PIECE).collect(),
            Kind::Moved { work, .. } => work.pieces(),
            Kind::Int8 { work, .. } => work.pieces(),
            Kind::Ternary { work, .. } => work.pieces(),
        }
    }

    pub fn run(&self, range: Range<usize>, run: Run<'_>) -> Result<Done> {
        match &self.kind {
            Kind::Dense(section) => run.dense(self.tensor, range, *section),
            Kind::Moved { places, work } => work.piece(self.tensor, range, *places, run),
            Kind::Int8 { places, work, .. } => work.piece(self.tensor, range, *places, run),
            Kind::Ternary { places, work, .. } => run.ternary(self.tensor, work, range, *places),
        }
    }

    /// The bytes of a piece, where it has them for itself.
    pub fn source(&self, range: Range<usize>) -> &'a [u8] {
        let size = match &self.kind {
            Kind::Dense(_) if self.tensor.order.is_none() => 1,
            Kind::Ternary { work: TernaryWork { view, .. }, .. } | Kind::Int8 { work: Int8Work { view, .. }, .. }
                if view.contiguous() =>
            {
                self.tensor.dtype.bitsize() / 8
            }
            _ => return &[],
        };
        &self.tensor.stored[range.start * size..range.end * size]
    }

    /// What is known before the first piece: units that were fitted beforehand.
    fn start(&self) -> Done {
        let (work, calibrated) = match &self.kind {
            Kind::Ternary { work, calibrated, .. } => (work, calibrated.is_some()),
            Kind::Moved { work, .. } => return Done::of_planes(work.planes()),
            Kind::Dense(_) | Kind::Int8 { .. } => return Done::of_planes(1),
        };
        let mut done = Done::of_planes(work.treatment.planes);
        for (sums, scales) in done.planes.iter_mut().zip(work.fit_scales()) {
            sums.scales.update(&scales);
        }
        for fit in &work.fits {
            // Errors are counted with the codes then, which follow from no threshold.
            match calibrated {
                true => done.tally.add_unit(fit.scales(), None, 0.0, 0.0),
                false => done.tally.add_fit(fit),
            }
        }
        done
    }

    /// `calibration`: the run was given statistics.
    pub fn entry(&self, done: Done, calibration: bool) -> Result<TensorEntry> {
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
                    calibration: calibration.then(|| Box::new(calibrated::entry(*calibrated, false, tally.output()))),
                    codes: Section { crc32: codes_crc, ..*codes },
                    reason: self.reason.to_owned(),
                    scale_dtype: work.treatment.scale_dtype,
                    scales: Section { crc32: scales_crc, ..*scales },
                    stats: tally.int8_stats().map_err(|problem| weights_error(self.tensor.name, problem))?,
                };
                Ok(TensorEntry::int8(self.tensor.name.to_owned(), self.tensor.dtype, shape_of(self.tensor), entry))
            }
            Kind::Moved { places: Places { codes, scales, .. }, work } => {
                let (codes, scales) =
                    (Section { crc32: codes_crc, ..*codes }, Section { crc32: scales_crc, ..*scales });
                work.entry(codes, scales, &tally)
            }
            Kind::Ternary { places: Places { codes, scales, .. }, work, calibrated } => ternary_entry(
                self.tensor,
                work.treatment,
                if [BUDGET, NATIVE].contains(&self.reason) { self.reason } else { "" },
                calibration.then(|| Box::new(calibrated::entry(*calibrated, true, tally.output()))),
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

pub(super) fn ternary_entry(
    tensor: TensorView<'_>,
    treatment: &Treatment,
    reason: &str,
    calibration: Option<Box<CalibrationEntry>>,
    codes: Section,
    scales: Section,
    tally: &Tally,
) -> Result<TensorEntry> {
    let method = MethodEntry { name: treatment.method.name().to_owned(), parameters: treatment.method.parameters() };
    if let Some((parameter, value)) = method.parameters.iter().find(|(_, value)| !value.is_finite()) {
        let name = &method.name;
        return Err(Error::Request(format!("method `{name}`: parameter `{parameter}` is {value}, should be finite")));
    }
    let planes = treatment.planes as u64;
    let entry = TernaryEntry {
        axis: treatment.axis as u64,
        calibration,
        codes,
        encoding: treatment.encoding,
        granularity: treatment.granularity,
        method: Arc::new(method),
        planes,
        reason: reason.to_owned(),
        scale_dtype: treatment.scale_dtype,
        scales,
        source_bytes: None,
        stats: tally.stats(planes * tensor.elements() as u64).map_err(|problem| weights_error(tensor.name, problem))?,
    };
    Ok(TensorEntry::ternary(tensor.name.to_owned(), tensor.dtype, shape_of(tensor), entry))
}
