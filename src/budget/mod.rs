//! A size or an error that is asked for, and what each tensor becomes for it: so many planes, with one scale per
//! filter or per group, 8 bits, or dense. Not here: how such a rung is packed and measured ([`crate::convert`]),
//! or shown ([`crate::report`]).
//!
//! Every tensor that the plan makes ternary, and has no fixed rung for, is measured on every rung. For a size, the sum over these tensors of
//! ‖W − Ŵ‖² / ‖W‖² is made small (with statistics of inputs, of ‖X(W − Ŵ)‖² / ‖XW‖²): the share of noise that a
//! layer adds to what goes through it. Such shares add up over the layers of a network in first order, whatever
//! the size of its weights; absolute errors do not, since a layer behind a normalisation may have weights of any
//! size. [`Minimize::Absolute`] is there for networks where they do.

mod hull;
mod slot;
mod target;

use std::path::Path;

use serde::Serialize;

use self::hull::Point;
pub use self::slot::GROUPS;
use self::slot::{Measured, Rung, Slot, digits};
pub use self::target::Target;
use crate::container::{Body, CalibrationEntry, Index, Producer, TensorEntry, align, relative};
use crate::convert::journal::{Journal, MEASURED};
use crate::convert::{self, Options, Progress};
use crate::report::{Budget, CurvePoint, ImpossibleRung};
use crate::select::{Decision, Plan, Planned};
use crate::source::{Checkpoint, TensorView};
use crate::{Error, Result};

/// What is to be small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Minimize {
    /// The sum over the tensors of what share of its energy each loses.
    #[default]
    Relative,
    /// ‖W − Ŵ‖² over all weights.
    Absolute,
}

/// Every rung that the tensors of a checkpoint can have, measured.
#[derive(Debug)]
pub struct Ladder<'a> {
    checkpoint: &'a Checkpoint,
    warnings: Vec<String>,
    slots: Vec<Slot>,
    minimize: Minimize,
    /// Bytes that something else needs.
    reserve: u64,
    /// Where it is kept what was measured.
    journal: Option<Journal<Measured>>,
}

/// A rung for each tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice(Vec<usize>);

impl<'a> Ladder<'a> {
    /// Measures every rung of every tensor that the plan makes ternary, on all threads, in about the memory that
    /// packing takes; its planes and granularity are what is tried. Other tensors stay as planned, and so do those
    /// that are [`Planned::fixed`]. One tensor after another is read, once for each rung.
    ///
    /// # Errors
    /// As [`convert::measure`]; absolute errors together with statistics of inputs.
    pub fn measure(checkpoint: &'a Checkpoint, plan: &Plan, minimize: Minimize, options: &Options<'_>) -> Result<Self> {
        Self::measure_with(checkpoint, plan, minimize, None, options)
    }

    /// The same for an output to come: with [`Options::resume`] what is measured is kept beside it
    /// (`.NAME.twn-measured`), and a later run with the same input, plan and options goes on with that, whatever its
    /// target is.
    ///
    /// # Errors
    /// As [`Ladder::measure`]; a journal of another run, or a directory that cannot be written to.
    pub fn measure_for(
        output: &Path,
        checkpoint: &'a Checkpoint,
        plan: &Plan,
        minimize: Minimize,
        options: &Options<'_>,
    ) -> Result<Self> {
        let open = || Journal::open(checkpoint, plan, (output, MEASURED), options);
        Self::measure_with(checkpoint, plan, minimize, options.resume.then(open).transpose()?, options)
    }

    /// The output is there: what was kept of the measuring is of no more use.
    pub fn forget(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
    }

    fn measure_with(
        checkpoint: &'a Checkpoint,
        plan: &Plan,
        minimize: Minimize,
        mut journal: Option<Journal<Measured>>,
        options: &Options<'_>,
    ) -> Result<Self> {
        if minimize == Minimize::Absolute && convert::is_calibrated(options) {
            let message = "errors of the outputs of different layers have no common unit: expected relative errors with --calibration";
            return Err(Error::Request(message.to_owned()));
        }
        plan.check(checkpoint)?;
        let all: Vec<(Vec<Planned>, bool)> = checkpoint
            .tensors()
            .zip(&plan.tensors)
            .map(|(tensor, planned)| match &planned.decision {
                Decision::Ternary(treatment) if !planned.fixed => (slot::rungs(tensor, treatment), true),
                _ => (vec![planned.clone()], false),
            })
            .collect();
        let size = |tensor: TensorView<'_>, rungs: &[Planned]| (tensor.stored.len() * rungs.len()) as u64;
        let total = checkpoint.tensors().zip(&all).map(|(tensor, (rungs, _))| size(tensor, rungs)).sum();
        let mut done = 0;
        let quiet = Options { progress: None, ..*options };
        let mut slots = Vec::with_capacity(all.len());
        for (i, (planned, free)) in all.into_iter().enumerate() {
            let tensor = checkpoint.tensor(i);
            done += size(tensor, &planned);
            let known = journal.as_mut().and_then(|journal| journal.take(i));
            let measured = match known.filter(|known: &Measured| known.len() == planned.len()) {
                Some(known) => known,
                None => {
                    let measured = slot::measure(checkpoint.input(i), &planned, &quiet)?;
                    journal.as_mut().filter(|_| free).map_or(Ok(()), |journal| journal.add(i, &measured))?;
                    measured
                }
            };
            slots.push(Slot::new(planned, measured, free));
            if let Some(progress) = options.progress {
                progress(Progress { done, total, tensor: tensor.name });
            }
        }
        Ok(Self { checkpoint, warnings: plan.warnings.clone(), slots, minimize, reserve: 0, journal })
    }

    /// Leaves room for so many bytes more: what repairs will add to the index.
    pub fn with_reserve(self, reserve: u64) -> Self {
        Self { reserve, ..self }
    }

    /// A rung for each tensor, as the target asks.
    ///
    /// # Errors
    /// A target that makes no sense, or a size that is too small; with the smallest one there is.
    pub fn choose(&self, target: Target) -> Result<Choice> {
        target.check()?;
        match target {
            Target::Error(error) => Ok(Choice(self.slots.iter().map(|slot| slot.smallest(error)).collect())),
            Target::Bytes(_) | Target::Ratio(_) => self.within(target, self.limit(target).unwrap_or_default()),
            Target::Bits(bits) => {
                let weights: u64 = self.free().map(|slot| slot.rungs[0].entry.elements()).sum();
                let points = self.points(|slot, rung| if slot.free { rung.bytes } else { 0 });
                let chosen = hull::choose(&points, (bits * weights as f64 / 8.0) as u64);
                chosen.map(Choice).ok_or_else(|| {
                    // Rounded up: who asks for what is said gets it.
                    let smallest = (self.bits_per_weight(&hull::steps(&points).0) * 1e4).ceil() / 1e4;
                    too_small(target, &format!("{smallest:.4} bits per weight"))
                })
            }
        }
    }

    /// Every tensor's error on the rungs, and what they cost.
    fn points(&self, cost: impl Fn(&Slot, &Rung) -> u64) -> Vec<Vec<Point>> {
        let of = |slot: &Slot| slot.rungs.iter().map(|rung| (cost(slot, rung), rung.error(self.minimize))).collect();
        self.slots.iter().map(of).collect()
    }

    /// The bytes that a file may have at most for that target; nothing where it is not about those.
    pub fn limit(&self, target: Target) -> Option<u64> {
        match target {
            Target::Bytes(bytes) => Some(bytes),
            Target::Ratio(ratio) => Some((self.source_bytes() as f64 / ratio) as u64),
            Target::Bits(_) | Target::Error(_) => None,
        }
    }

    /// Which rungs of which tensors cannot be had, in a line per tensor: what was chosen was chosen without them.
    pub fn impossible(&self) -> Vec<String> {
        let line = |slot: &Slot| {
            let [first, others @ ..] = &slot.impossible[..] else { return None };
            let ImpossibleRung { tensor, rung, reason } = first;
            Some(match (slot.free, others.len()) {
                (false, _) => format!("`{tensor}` stays dense: {reason}"),
                (true, 0) => format!("`{tensor}` cannot become {rung}: {reason}"),
                (true, n) => format!("`{tensor}` cannot become {rung}, nor {n} others: {reason}"),
            })
        };
        self.slots.iter().filter_map(line).collect()
    }

    /// Of which tensors nothing was known in a run with statistics of inputs.
    pub fn uncalibrated(&self) -> Vec<&str> {
        self.having(|entry| entry.calibration().is_some_and(|known| known.kind == CalibrationEntry::NONE))
    }

    /// The tensors that have ternary rungs by statistics of inputs.
    pub fn calibrated(&self) -> Vec<&str> {
        self.having(|entry| match entry.body() {
            Body::Ternary(entry) => {
                entry.calibration.as_ref().is_some_and(|known| known.kind != CalibrationEntry::NONE)
            }
            Body::Int8(_) | Body::Dense(_) => false,
        })
    }

    fn having(&self, what: impl Fn(&TensorEntry) -> bool) -> Vec<&str> {
        let slots = self.slots.iter().filter(|slot| slot.rungs.iter().any(|rung| what(&rung.entry)));
        slots.map(|slot| slot.rungs[0].entry.name.as_str()).collect()
    }

    /// The tensors that the budget does not decide about, and whose relative error is above that.
    pub fn above(&self, error: f64) -> Vec<&str> {
        let fixed = self.slots.iter().filter(|slot| slot.rungs.iter().all(|rung| rung.relative > error));
        fixed.map(|slot| slot.rungs[0].entry.name.as_str()).collect()
    }

    fn source_bytes(&self) -> usize {
        (0..self.checkpoint.len()).map(|i| self.checkpoint.input(i).bytes()).sum()
    }

    /// The choice of a file of at most so many bytes.
    fn within(&self, target: Target, limit: u64) -> Result<Choice> {
        let points = self.points(|_, rung| rung.in_file);
        // The digits of offsets are not in the costs: what they take is found afterwards, and taken off.
        let mut room = limit.saturating_sub(self.fixed_bytes());
        while let Some(chosen) = hull::choose(&points, room) {
            let found = self.file_bytes(&chosen);
            if found <= limit {
                return Ok(Choice(chosen));
            }
            let Some(less) = room.checked_sub(found - limit) else { break };
            room = less;
        }
        let smallest = hull::steps(&points).0;
        match self.file_bytes(&smallest) {
            found if found <= limit => Ok(Choice(smallest)),
            found => {
                // Rounded down, as bits are rounded up.
                let ratio = (self.source_bytes() as f64 / found as f64 * 1e3).floor() / 1e3;
                Err(too_small(target, &format!("{found} bytes, {ratio:.3} times smaller than the checkpoint")))
            }
        }
    }

    /// Prefix, and the index without its tensors.
    fn fixed_bytes(&self) -> u64 {
        let metadata = self.checkpoint.metadata().clone();
        let index = Index { metadata, producer: Producer::this(), tensors: Vec::new() };
        64 + index.json_length() + (self.slots.len() as u64).saturating_sub(1) + self.reserve
    }

    /// The size of the file, to the byte.
    fn file_bytes(&self, chosen: &[usize]) -> u64 {
        let (mut at, mut bytes) = (64, self.fixed_bytes());
        for (slot, &rung) in self.slots.iter().zip(chosen) {
            let rung = &slot.rungs[rung];
            bytes += rung.in_file;
            for (_, section) in rung.entry.sections() {
                bytes += digits(at);
                at += align(section.length).unwrap_or(u64::MAX);
            }
        }
        bytes
    }

    fn free(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.free)
    }

    fn bits_per_weight(&self, chosen: &[usize]) -> f64 {
        let free = self.slots.iter().zip(chosen).filter(|(slot, _)| slot.free);
        let (bits, weights) = free.fold((0, 0), |(bits, weights), (slot, &rung)| {
            let rung = &slot.rungs[rung];
            (bits + 8 * rung.bytes, weights + rung.entry.elements())
        });
        if weights == 0 { 0.0 } else { bits as f64 / weights as f64 }
    }

    /// What is made small, of the tensors that the budget decides about: the mean of relative errors, or the share of
    /// ‖W‖² that is lost.
    fn error(&self, chosen: &[usize]) -> f64 {
        let free = self.slots.iter().zip(chosen).filter(|(slot, _)| slot.free);
        let error: f64 = free.map(|(slot, &rung)| slot.rungs[rung].error(self.minimize)).sum();
        let whole = match self.minimize {
            Minimize::Relative => self.free().count() as f64,
            Minimize::Absolute => self
                .free()
                .map(|slot| slot.rungs.iter().fold(0.0, |norm: f64, rung| norm.max(rung.entry.squared()[1])))
                .sum(),
        };
        relative([error, whole])
    }

    /// The plan with these rungs in it.
    pub fn plan(&self, choice: &Choice) -> Plan {
        let tensors = self.slots.iter().zip(&choice.0).map(|(slot, &rung)| slot.rungs[rung].planned.clone()).collect();
        Plan { tensors, warnings: self.warnings.clone() }
    }

    /// For a report: what was chosen, if it was, what the next rung of each tensor costs, and the curve.
    pub fn budget(&self, chosen: Option<(Target, &Choice)>) -> Budget {
        let rungs = chosen.iter().flat_map(|(_, choice)| {
            let slots = self.slots.iter().zip(&choice.0).filter(|(slot, _)| slot.free);
            slots.map(|(slot, &rung)| slot.reported(rung, self.minimize))
        });
        Budget {
            target: chosen.map(|(target, _)| target.to_string()),
            minimize: match self.minimize {
                Minimize::Relative => "relative",
                Minimize::Absolute => "absolute",
            },
            errors: self.errors(),
            chosen: chosen.map(|(_, choice)| self.point(&choice.0, None)),
            rungs: rungs.collect(),
            measured: match chosen {
                Some(_) => Vec::new(),
                None => self.free().flat_map(|slot| slot.rungs.iter().map(Rung::reported)).collect(),
            },
            impossible: self.slots.iter().flat_map(|slot| slot.impossible.clone()).collect(),
            curve: self.curve(),
        }
    }

    /// What the errors are errors of.
    fn errors(&self) -> &'static str {
        let known = |slot: &&Slot| slot.rungs.iter().any(|rung| rung.reported().relative_output_error.is_some());
        match self.free().filter(known).count() {
            0 => "weights",
            all if all == self.free().count() => "outputs",
            _ => "outputs, or weights where no inputs are known",
        }
    }

    /// Along the steps of [`hull`], from the smallest file on.
    fn curve(&self) -> Vec<CurvePoint> {
        let points = self.points(|_, rung| rung.in_file);
        let (mut chosen, steps) = hull::steps(&points);
        let mut curve = vec![self.point(&chosen, None)];
        for step in steps {
            chosen[step.slot] = step.to;
            curve.push(self.point(&chosen, Some(step.slot)));
        }
        curve
    }

    fn point(&self, chosen: &[usize], changed: Option<usize>) -> CurvePoint {
        let file_bytes = self.file_bytes(chosen);
        let step = changed.map(|slot| &self.slots[slot].rungs[chosen[slot]].planned);
        CurvePoint {
            file_bytes,
            ratio: self.source_bytes() as f64 / file_bytes as f64,
            bits_per_weight: self.bits_per_weight(chosen),
            error: self.error(chosen),
            tensor: step.map(|planned| planned.name.clone()),
            rung: step.map(|planned| planned.decision.to_string()),
        }
    }
}

fn too_small(target: Target, smallest: &str) -> Error {
    Error::Request(format!(
        "{target} cannot be kept: the smallest file that these rules allow has {smallest}; ask for that, let more \
         tensors take part (--include), or ask for no budget: what one says of each tensor takes a few bytes"
    ))
}
