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
mod target;

use std::path::Path;

use serde::Serialize;

use self::hull::Point;
pub use self::target::Target;
use crate::container::{Body, CalibrationEntry, Granularity, Index, Producer, TensorEntry, align, relative};
use crate::convert::journal::{Journal, MEASURED};
use crate::convert::{self, NON_FINITE, Options, Progress};
use crate::error::WeightsProblem;
use crate::limits::PACKED_PLANES;
use crate::report::{Budget, CurvePoint, ImpossibleRung, Rung as ReportedRung};
use crate::select::{BUDGET, Decision, Int8, Plan, Planned, Treatment};
use crate::source::{Checkpoint, Input, TensorView};
use crate::{Error, Result};

/// Group sizes that are tried, where a filter is longer.
pub const GROUPS: [u64; 2] = [128, 32];

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

/// A tensor.
#[derive(Debug)]
struct Slot {
    rungs: Vec<Rung>,
    /// Those that it cannot have, and why.
    impossible: Vec<ImpossibleRung>,
    /// Whether the budget decides about it.
    free: bool,
}

/// One way to store a tensor.
#[derive(Debug)]
struct Rung {
    planned: Planned,
    entry: TensorEntry,
    /// Bytes of its sections.
    bytes: u64,
    /// Those, padding, and what the index says of it, but for the digits of offsets.
    in_file: u64,
    /// ‖W − Ŵ‖² / ‖W‖², or that of the outputs.
    relative: f64,
}

/// What the index would say of a tensor on each rung, or why it cannot have that.
type Measured = Vec<Result<TensorEntry, String>>;

/// A rung for each tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice(Vec<usize>);

/// Every way in which a tensor may be stored that the plan makes ternary like that. Groups count as long as they
/// take no more than 8 bits per filter do.
fn rungs(tensor: TensorView<'_>, treatment: &Treatment) -> Vec<Planned> {
    let n = tensor.elements().checked_div(tensor.shape[treatment.axis]).unwrap_or_default() as u64;
    let groups = GROUPS.into_iter().filter(|&size| size < n).map(Granularity::Group);
    let granularities: Vec<Granularity> = std::iter::once(Granularity::Filter).chain(groups).collect();
    let scale = treatment.scale_dtype.size() as u64;
    let bytes = |planes: usize, granularity: Granularity| {
        planes as u64 * (treatment.encoding.bytes(n as usize) as u64 + granularity.scales(1, n) * scale)
    };
    let all = (1..=PACKED_PLANES).flat_map(|planes| granularities.iter().map(move |&g| (planes, g)));
    let ternary = all.filter(|&(planes, g)| g == Granularity::Filter || bytes(planes, g) <= n + scale);
    let ternary =
        ternary.map(|(planes, granularity)| Decision::Ternary(Treatment { planes, granularity, ..treatment.clone() }));
    let Treatment { axis, scale_dtype, .. } = *treatment;
    ternary
        .chain([Decision::Int8(Int8 { axis, scale_dtype }), Decision::Dense])
        .map(|decision| Planned { name: tensor.name.to_owned(), decision, reason: BUDGET.into(), fixed: false })
        .collect()
}

/// What the tensor would be on each of these rungs; of one that it cannot have (scales that their type does not hold)
/// the reason.
fn measure(input: Input<'_>, planned: &[Planned], options: &Options<'_>) -> Result<Measured> {
    let misfit = |error: &Error| match error {
        Error::Weights { problem: problem @ WeightsProblem::Scale { .. }, .. } => Some(problem.to_string()),
        _ => None,
    };
    let all = match convert::measure_tensor(input, planned, options) {
        Err(error) if misfit(&error).is_some() && planned.len() > 1 => planned,
        entries => return Ok(entries?.into_iter().map(Ok).collect()),
    };
    let alone = |planned: &[Planned]| match convert::measure_tensor(input, planned, options) {
        Ok(mut entries) => Ok(Ok(entries.remove(0))),
        Err(error) => misfit(&error).map(Err).ok_or(error),
    };
    all.chunks(1).map(alone).collect()
}

impl Rung {
    fn new(planned: Planned, entry: TensorEntry) -> Self {
        let mut in_file = serde_json::to_vec(&entry).map_or(0, |json| json.len() as u64);
        let mut bytes = 0;
        for (_, section) in entry.sections() {
            bytes += section.length;
            in_file += align(section.length).unwrap_or(u64::MAX) - digits(section.offset);
        }
        let output = entry.calibration().and_then(CalibrationEntry::relative_squared_error);
        let relative = output.unwrap_or_else(|| relative(entry.squared()));
        Self { planned, entry, bytes, in_file, relative }
    }

    /// The same of a tensor that stays dense, for another reason.
    fn because(&self, reason: &str) -> Self {
        let planned = Planned { reason: reason.to_owned().into(), ..self.planned.clone() };
        let mut entry = self.entry.clone();
        if let Some(dense) = entry.dense_mut() {
            dense.reason = reason.to_owned();
        }
        Self::new(planned, entry)
    }

    fn error(&self, minimize: Minimize) -> f64 {
        match minimize {
            Minimize::Relative => self.relative,
            Minimize::Absolute => self.entry.squared()[0],
        }
    }
}

/// Of a number in JSON.
fn digits(number: u64) -> u64 {
    u64::from(number.checked_ilog10().unwrap_or(0)) + 1
}

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
        if plan.tensors.len() != checkpoint.len() {
            return Err(Error::Request("the plan was made for another checkpoint".to_owned()));
        }
        let all: Vec<(Vec<Planned>, bool)> = checkpoint
            .tensors()
            .zip(&plan.tensors)
            .map(|(tensor, planned)| match &planned.decision {
                Decision::Ternary(treatment) if !planned.fixed => (rungs(tensor, treatment), true),
                _ => (vec![planned.clone()], false),
            })
            .collect();
        let size = |tensor: TensorView<'_>, rungs: &[Planned]| (tensor.data.len() * rungs.len()) as u64;
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
                    let measured = measure(checkpoint.input(i), &planned, &quiet)?;
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
                    let smallest = self.bits_per_weight(&hull::steps(&points).0);
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
                let ratio = self.source_bytes() as f64 / found as f64;
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

impl Slot {
    /// What a tensor may be. One that can only stay dense, for what it holds or for its scales, has nothing to choose
    /// from, and its own reason.
    fn new(planned: Vec<Planned>, measured: Measured, free: bool) -> Self {
        let (mut rungs, mut impossible) = (Vec::new(), Vec::new());
        for (planned, entry) in planned.into_iter().zip(measured) {
            match entry {
                Ok(entry) => rungs.push(Rung::new(planned, entry)),
                Err(reason) => {
                    let (tensor, rung) = (planned.name, planned.decision.to_string());
                    impossible.push(ImpossibleRung { tensor, rung, reason });
                }
            }
        }
        let left = |rung: &Rung| matches!(rung.entry.body(), Body::Dense(dense) if dense.reason == NON_FINITE);
        if let Some(at) = rungs.iter().position(left).filter(|_| free) {
            return Self { rungs: vec![rungs.swap_remove(at)], impossible, free: false };
        }
        if let ([rung], [first, ..]) = (&mut rungs[..], &impossible[..]) {
            *rung = rung.because(&first.reason);
            return Self { rungs, impossible, free: false };
        }
        Self { rungs, impossible, free }
    }

    /// The smallest rung with at most that relative error; of a tensor that is fixed, what it is.
    fn smallest(&self, error: f64) -> usize {
        let good = self.rungs.iter().enumerate().filter(|(_, rung)| rung.relative <= error);
        good.min_by_key(|(_, rung)| rung.in_file).map_or(0, |(i, _)| i)
    }

    /// A rung, and the next one on the hull.
    fn reported(&self, rung: usize, minimize: Minimize) -> ReportedRung {
        let points: Vec<Point> = self.rungs.iter().map(|rung| (rung.in_file, rung.error(minimize))).collect();
        let hull = hull::hull(&points);
        let next = hull.into_iter().map(|i| &self.rungs[i]).find(|next| next.in_file > self.rungs[rung].in_file);
        let mut reported = self.rungs[rung].reported();
        reported.next = next.map(|next| Box::new(next.reported()));
        reported
    }
}

impl Rung {
    fn reported(&self) -> ReportedRung {
        ReportedRung {
            tensor: self.planned.name.clone(),
            rung: self.planned.decision.to_string(),
            bytes: self.bytes,
            bits_per_weight: 8.0 * self.bytes as f64 / self.entry.elements().max(1) as f64,
            relative_squared_error: relative(self.entry.squared()),
            relative_output_error: self.entry.calibration().and_then(CalibrationEntry::relative_squared_error),
            next: None,
        }
    }
}

fn too_small(target: Target, smallest: &str) -> Error {
    Error::Request(format!(
        "{target} cannot be kept: the smallest file that these rules allow has {smallest}; ask for that, or let more \
         tensors take part (--include)"
    ))
}
