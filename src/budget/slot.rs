//! What one tensor can be: its rungs, measured. Not here: which of them is chosen ([`super::Ladder`]).

use super::Minimize;
use super::hull::{self, Point};
use crate::container::{Body, CalibrationEntry, Granularity, TensorEntry, align, relative};
use crate::convert::{self, NON_FINITE, Options};
use crate::error::WeightsProblem;
use crate::limits::PACKED_PLANES;
use crate::report::{ImpossibleRung, Rung as ReportedRung};
use crate::select::{BUDGET, Decision, Int8, Planned, Treatment};
use crate::source::{Input, TensorView};
use crate::{Error, Result};

/// Group sizes that are tried, where a filter is longer.
pub const GROUPS: [u64; 2] = [128, 32];

/// A tensor.
#[derive(Debug)]
pub(super) struct Slot {
    pub rungs: Vec<Rung>,
    /// Those that it cannot have, and why.
    pub impossible: Vec<ImpossibleRung>,
    /// Whether the budget decides about it.
    pub free: bool,
}

/// One way to store a tensor.
#[derive(Debug)]
pub(super) struct Rung {
    pub planned: Planned,
    pub entry: TensorEntry,
    /// Bytes of its sections.
    pub bytes: u64,
    /// Those, padding, and what the index says of it, but for the digits of offsets.
    pub in_file: u64,
    /// ‖W − Ŵ‖² / ‖W‖², or that of the outputs.
    pub relative: f64,
}

/// What the index would say of a tensor on each rung, or why it cannot have that.
pub(super) type Measured = Vec<Result<TensorEntry, String>>;

impl Slot {
    /// What a tensor may be. One that can only stay dense, for what it holds or for its scales, has nothing to choose
    /// from, and its own reason.
    pub fn new(planned: Vec<Planned>, measured: Measured, free: bool) -> Self {
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
    pub fn smallest(&self, error: f64) -> usize {
        let good = self.rungs.iter().enumerate().filter(|(_, rung)| rung.relative <= error);
        good.min_by_key(|(_, rung)| rung.in_file).map_or(0, |(i, _)| i)
    }

    /// A rung, and the next one on the hull.
    pub fn reported(&self, rung: usize, minimize: Minimize) -> ReportedRung {
        let points: Vec<Point> = self.rungs.iter().map(|rung| (rung.in_file, rung.error(minimize))).collect();
        let hull = hull::hull(&points);
        let next = hull.into_iter().map(|i| &self.rungs[i]).find(|next| next.in_file > self.rungs[rung].in_file);
        let mut reported = self.rungs[rung].reported();
        reported.next = next.map(|next| Box::new(next.reported()));
        reported
    }
}

/// Every way in which a tensor may be stored that the plan makes ternary like that. Groups count as long as they
/// take no more than 8 bits per filter do.
pub(super) fn rungs(tensor: TensorView<'_>, treatment: &Treatment) -> Vec<Planned> {
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
pub(super) fn measure(input: Input<'_>, planned: &[Planned], options: &Options<'_>) -> Result<Measured> {
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
    pub fn new(planned: Planned, entry: TensorEntry) -> Self {
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

    pub fn error(&self, minimize: Minimize) -> f64 {
        match minimize {
            Minimize::Relative => self.relative,
            Minimize::Absolute => self.entry.squared()[0],
        }
    }

    pub fn reported(&self) -> ReportedRung {
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

/// Of a number in JSON.
pub(super) fn digits(number: u64) -> u64 {
    u64::from(number.checked_ilog10().unwrap_or(0)) + 1
}
