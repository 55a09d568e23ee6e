//! One piece of work: computed, written to its place, summed up; and what every piece needs for that.
//! Not here: which pieces there are, and who takes them ([`super`]).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crc32fast::Hasher;

use super::tally::Tally;
use super::tensor::TernaryWork;
use super::{Options, Progress, weights_error};
use crate::container::{ContainerWriter, Section};
use crate::error::WeightsProblem;
use crate::source::TensorView;
use crate::vector::Isa;
use crate::{Error, Result};

/// What a piece adds to its tensor.
#[derive(Default)]
pub(super) struct Done {
    pub codes: Hasher,
    pub scales: Hasher,
    pub tally: Tally,
}

impl Done {
    /// Adds what comes next.
    pub fn add(&mut self, next: &Self) {
        self.codes.combine(&next.codes);
        self.scales.combine(&next.scales);
        self.tally.add(&next.tally);
    }
}

/// What every piece of work needs.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub isa: Isa,
    pub writer: Option<&'a ContainerWriter>,
    pub monitor: &'a Monitor<'a>,
}

impl Run<'_> {
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

    /// Bytes `range` of a tensor that stays dense.
    pub fn dense(self, tensor: TensorView<'_>, range: Range<usize>, section: Section) -> Result<Done> {
        self.monitor.check()?;
        let bytes = &tensor.data[range.clone()];
        let mut done = Done::default();
        done.codes.update(bytes);
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
        codes: Section,
        scales: Section,
    ) -> Result<Done> {
        self.monitor.check()?;
        let bytes = range.len() * tensor.dtype.bitsize() / 8;
        let output = work.run(range, self.isa).map_err(|problem| weights_error(tensor.name, problem))?;
        let mut done = Done { tally: output.tally, ..Done::default() };
        done.codes.update(&output.codes);
        done.scales.update(&output.scales);
        self.write(&output.codes, codes.offset + output.codes_at)?;
        self.write(&output.scales, scales.offset + output.scales_at)?;
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
    fn check(&self) -> Result<()> {
        match self.options.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    fn advance(&self, bytes: u64, tensor: &str) {
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
