//! One piece of work: computed, written to its place, summed up; and what every piece needs for that.
//! Not here: which pieces there are, and who takes them ([`super`]).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crc32fast::Hasher;

use super::tally::Tally;
use super::tensor::{Output, PlaneBytes, TernaryWork};
use super::{Options, Progress, weights_error};
use crate::container::{ContainerWriter, Section};
use crate::error::WeightsProblem;
use crate::source::TensorView;
use crate::vector::Isa;
use crate::{Error, ReadAhead, Result};

/// What a piece adds to its tensor.
#[derive(Default)]
pub(super) struct Done {
    pub planes: Vec<PlaneSums>,
    pub tally: Tally,
}

/// Checksums of one plane; of a dense tensor, `codes` is all its bytes.
#[derive(Default, Clone)]
pub(super) struct PlaneSums {
    pub codes: Hasher,
    pub scales: Hasher,
}

impl Done {
    /// Nothing so far of that many planes.
    pub fn of_planes(planes: usize) -> Self {
        Self { planes: vec![PlaneSums::default(); planes], ..Self::default() }
    }

    /// Adds what comes next.
    pub fn add(&mut self, next: &Self) {
        for (sums, next) in self.planes.iter_mut().zip(&next.planes) {
            sums.codes.combine(&next.codes);
            sums.scales.combine(&next.scales);
        }
        self.tally.add(&next.tally);
    }

    /// The checksums of both sections: planes stand one after another.
    pub fn checksums(self) -> (u32, u32) {
        let mut whole = PlaneSums::default();
        for sums in &self.planes {
            whole.codes.combine(&sums.codes);
            whole.scales.combine(&sums.scales);
        }
        (whole.codes.finalize(), whole.scales.finalize())
    }
}

/// Where a ternary tensor goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub codes: Section,
    pub scales: Section,
    /// Bytes of codes and of scales per plane.
    pub plane: (u64, u64),
}

impl Places {
    /// Where codes and scales of a plane begin in the file.
    pub fn plane(&self, p: usize) -> (u64, u64) {
        (self.codes.offset + p as u64 * self.plane.0, self.scales.offset + p as u64 * self.plane.1)
    }
}

/// What every piece of work needs.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub isa: Isa,
    pub writer: Option<&'a ContainerWriter>,
    pub monitor: &'a Monitor<'a>,
    /// Where the files are gone through in order.
    pub ahead: Option<&'a ReadAhead<'a>>,
}

impl Run<'_> {
    /// These bytes of the checkpoint are about to be read.
    pub fn reached(self, bytes: &[u8]) {
        if let Some(ahead) = self.ahead {
            ahead.reached(bytes);
        }
    }

    pub fn write(self, bytes: &[u8], offset: u64) -> Result<()> {
        self.writer.map_or(Ok(()), |writer| writer.write_at(bytes, offset))
    }

    pub fn fit(self, tensor: TensorView<'_>, work: &mut TernaryWork<'_>) -> Result<()> {
        let size = tensor.dtype.bitsize() / 8;
        work.prefit(self.isa, self.monitor.options.cancel, |weights| {
            self.monitor.advance((weights * size) as u64, tensor.name);
            self.monitor.check().map_err(Stop::Run)
        })
        .map_err(|stop| match stop {
            Stop::Run(error) => error,
            Stop::Weights(problem) => weights_error(tensor.name, problem),
        })
    }

    /// Bytes `range` of a tensor that stays dense, whole elements.
    pub fn dense(self, tensor: TensorView<'_>, range: Range<usize>, section: Section) -> Result<Done> {
        self.monitor.check()?;
        let mut scratch = Vec::new();
        let bytes = tensor.read(range.clone(), &mut scratch);
        let mut done = Done::of_planes(1);
        done.planes[0].codes.update(bytes);
        self.write(bytes, section.offset + range.start as u64)?;
        self.monitor.advance(bytes.len() as u64, tensor.name);
        Ok(done)
    }

    /// Weights `range` of what `work` knows of a tensor.
    pub fn ternary(
        self,
        tensor: TensorView<'_>,
        work: &TernaryWork<'_>,
        range: Range<usize>,
        places: Places,
    ) -> Result<Done> {
        self.output(tensor, range.len(), places, || work.run(range, self.isa))
    }

    /// Writes what `work` gives of so many weights to its place.
    pub fn output(
        self,
        tensor: TensorView<'_>,
        weights: usize,
        places: Places,
        work: impl FnOnce() -> Result<Output, WeightsProblem>,
    ) -> Result<Done> {
        self.monitor.check()?;
        let bytes = weights * tensor.dtype.bitsize() / 8;
        let output = work().map_err(|problem| weights_error(tensor.name, problem))?;
        let mut done = Done { tally: output.tally, ..Done::of_planes(output.planes.len()) };
        for (p, (sums, PlaneBytes { codes, scales })) in done.planes.iter_mut().zip(&output.planes).enumerate() {
            sums.codes.update(codes);
            sums.scales.update(scales);
            let (codes_at, scales_at) = places.plane(p);
            self.write(codes, codes_at + output.codes_at)?;
            self.write(scales, scales_at + output.scales_at)?;
        }
        self.monitor.advance(bytes as u64, tensor.name);
        Ok(done)
    }
}

/// Progress and cancellation.
pub(super) struct Monitor<'a> {
    pub total: u64,
    pub done: AtomicU64,
    pub options: &'a Options<'a>,
}

impl Monitor<'_> {
    pub fn check(&self) -> Result<()> {
        match self.options.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    pub fn advance(&self, bytes: u64, tensor: &str) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = self.options.progress {
            progress(Progress { done, total: self.total, tensor });
        }
    }
}

/// Why fitting stopped.
enum Stop {
    Run(Error),
    Weights(WeightsProblem),
}

impl From<WeightsProblem> for Stop {
    fn from(problem: WeightsProblem) -> Self {
        Self::Weights(problem)
    }
}
