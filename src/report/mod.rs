//! What a file holds and what it cost: one plain result struct, from an index alone, and one small
//! exporter per output format. Not here: any measuring; the numbers were written by the run.

mod budget;
mod csv;
#[cfg(feature = "cli")]
mod html;
mod json;
#[cfg(feature = "cli")]
mod table;
mod units;

use std::io;

use serde::Serialize;

pub use self::budget::{Budget, CurvePoint, ImpossibleRung, Rung};
pub use self::units::{bytes, count, ratio};
use crate::Result;
use crate::container::{Body, CalibrationEntry, Index, Int8Entry, Spread, TensorEntry, TernaryEntry, relative};
use crate::dtype::Dtype;
use crate::select::{Decision, Plan, became, became_int8};
use crate::source::Checkpoint;

/// A whole file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Sums over all tensors.
    pub totals: Totals,
    /// One entry per tensor, in the order of the file unless sorted.
    pub tensors: Vec<TensorReport>,
    /// Whether nothing was read or measured; sizes are without the index then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub plan: bool,
    /// How a budget was kept, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// One tensor. What was not measured (a plan without a run) or has no meaning (dense) is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// The tensor's name.
    pub name: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// The checkpoint's data type.
    pub dtype: Dtype,
    /// What it became: `dense`, or encoding, method and granularity.
    pub became: String,
    /// Why it stayed dense or became int8, or that a budget decided; empty for other ternary tensors.
    pub reason: String,
    /// What changed its values, where they are not the checkpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Box<str>>,
    /// Share of zeros among the codes.
    pub sparsity: Option<f64>,
    /// Thresholds Δ, in the weights' unit.
    pub delta: Option<Spread>,
    /// Scales α as stored, in the weights' unit.
    pub alpha: Option<Spread>,
    /// ‖W − Ŵ‖² / ‖W‖².
    pub relative_squared_error: Option<f64>,
    /// What was known of the inputs in a calibrated run: `full`, `diagonal`, or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// The same error of the outputs, ‖X(W − Ŵ)‖² / ‖XW‖², over the inputs that were summed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_output_error: Option<f64>,
    /// Entropy of the codes −1, 0, +1 in bits per weight: what an ideal coder would need.
    pub entropy: Option<f64>,
    /// Bits of codes and scales per weight.
    pub bits_per_weight: Option<f64>,
    /// Bytes in the checkpoint.
    pub source_bytes: u64,
    /// Bytes in the file: codes and scales, or data; without padding.
    pub bytes: u64,
    /// `source_bytes / bytes`.
    pub ratio: f64,
}

/// Sums over a file.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Totals {
    /// How many tensors.
    pub tensors: u64,
    /// How many of them are ternary.
    pub ternary_tensors: u64,
    /// Elements of all tensors.
    pub elements: u64,
    /// Weights of the ternary tensors.
    pub ternary_weights: u64,
    /// Bytes of all tensors in the checkpoint.
    pub source_bytes: u64,
    /// Bytes of the whole file, with prefix, index and padding.
    pub file_bytes: u64,
    /// `source_bytes / file_bytes`.
    pub ratio: f64,
    /// Bytes of the ternary tensors in the checkpoint.
    pub ternary_source_bytes: u64,
    /// Bytes of their codes.
    pub code_bytes: u64,
    /// Bytes of their scales.
    pub scale_bytes: u64,
    /// Bytes of dense tensors.
    pub dense_bytes: u64,
    /// How many tensors are int8.
    #[serde(skip_serializing_if = "is_zero")]
    pub int8_tensors: u64,
    /// Weights of the int8 tensors.
    #[serde(skip_serializing_if = "is_zero")]
    pub int8_weights: u64,
    /// Bytes of their codes and scales.
    #[serde(skip_serializing_if = "is_zero")]
    pub int8_bytes: u64,
    /// Prefix, index and padding.
    pub overhead_bytes: u64,
    /// Ternary tensors: bytes in the checkpoint over bytes of codes and scales.
    pub ternary_ratio: f64,
    /// The same, had every ternary weight been f32 (4 bytes).
    pub ternary_ratio_f32: f64,
    /// The same, had every ternary weight been f64 (8 bytes).
    pub ternary_ratio_f64: f64,
    /// Ternary tensors: bits of codes and scales per weight.
    pub bits_per_weight: f64,
    /// Share of zeros among all ternary weights' codes.
    pub sparsity: Option<f64>,
    /// Σ‖W − Ŵ‖² / Σ‖W‖² over the ternary tensors.
    pub relative_squared_error: Option<f64>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// a/b, and 0 where b is 0.
fn share(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

impl Report {
    /// Of a file of `file_bytes` bytes with that index.
    pub fn of_index(index: &Index, file_bytes: u64) -> Self {
        Self::of_entries(index.tensors.iter().cloned(), file_bytes)
    }

    /// The same of entries that nobody needs any more.
    pub(crate) fn of_entries(entries: impl IntoIterator<Item = TensorEntry>, file_bytes: u64) -> Self {
        let mut totals = Totals { file_bytes, ..Totals::default() };
        let (mut error, mut norm, mut zeros, mut codes) = (0.0, 0.0, 0, 0);
        // There may be a hundred thousand: a `Vec` of them is changed in place, a report being no larger than an entry.
        let tensors = entries.into_iter().map(|mut entry| {
            let (elements, source_bytes) = (entry.elements(), entry.source_bytes());
            let bytes = entry.sections().map(|(_, section)| section.length).sum();
            let (name, shape) = (std::mem::take(&mut entry.name), std::mem::take(&mut entry.shape));
            let mut tensor = TensorReport::unmeasured(name, entry.dtype, shape, source_bytes, bytes);
            totals.add(&tensor, elements);
            match entry.body() {
                Body::Dense(dense) => {
                    tensor.reason.clone_from(&dense.reason);
                    tensor.repaired = dense.repaired.as_deref().map(Box::from);
                    totals.dense_bytes += dense.section.length;
                }
                Body::Int8(int8) => {
                    tensor.measure_int8(int8);
                    totals.add_int8(elements, bytes);
                }
                Body::Ternary(ternary) => {
                    tensor.measure(ternary);
                    totals.add_ternary(elements, source_bytes, ternary.codes.length, ternary.scales.length);
                    let stats = &ternary.stats;
                    error += stats.squared_error;
                    norm += stats.squared_norm;
                    zeros += stats.zeros;
                    codes += stats.negative + stats.zeros + stats.positive;
                }
            }
            tensor
        });
        let tensors = tensors.collect();
        totals.finish();
        if totals.ternary_tensors > 0 {
            totals.sparsity = Some(share(zeros, codes));
            totals.relative_squared_error = Some(relative([error, norm]));
        }
        Self { totals, tensors, plan: false, budget: None }
    }

    /// Of a plan that was not run: names, decisions and sizes. The file's own size is without the
    /// index, which is not known before the run; nor is what only a look at the weights says: which tensors `auto`
    /// finds ternary (all that it may look at are counted so), and how many scales ternary tensors share.
    ///
    /// # Errors
    /// As [`Plan::check`].
    pub fn of_plan(checkpoint: &Checkpoint, plan: &Plan) -> Result<Self> {
        plan.check(checkpoint)?;
        let mut totals = Totals { file_bytes: 64, ..Totals::default() };
        let mut tensors = Vec::with_capacity(plan.tensors.len());
        for (i, (tensor, planned)) in checkpoint.tensors().zip(&plan.tensors).enumerate() {
            let source_bytes = checkpoint.input(i).bytes() as u64;
            let (mut elements, mut sections) = (tensor.elements() as u64, [source_bytes, 0]);
            let (mut dtype, mut shape) = (tensor.dtype, tensor.shape);
            let filters_along = |axis: usize| tensor.shape[axis] as u64;
            match &planned.decision {
                Decision::Dense => totals.dense_bytes += source_bytes,
                Decision::Int8(int8) => {
                    sections = [elements, filters_along(int8.axis) * int8.scale_dtype.size() as u64];
                    totals.add_int8(elements, sections.iter().sum());
                }
                Decision::Moved(moved) => {
                    if let Some(ternary) = checkpoint.ternary(i) {
                        let (filters, n) = (ternary.filters(), ternary.filter_len());
                        let filters = ternary.planes() * filters;
                        let codes = filters * moved.encoding.bytes(n);
                        let scales = filters * n.div_ceil(ternary.unit_len()) * moved.scale_dtype.size();
                        (dtype, shape) = (ternary.dtype, ternary.shape);
                        elements = (ternary.filters() * n) as u64;
                        sections = [codes as u64, scales as u64];
                        totals.add_ternary(elements, source_bytes, codes as u64, scales as u64);
                    }
                }
                Decision::Ternary(treatment) => {
                    let filters = filters_along(treatment.axis);
                    let n = elements.checked_div(filters).unwrap_or_default();
                    let planes = treatment.planes as u64;
                    let codes = planes * filters * treatment.encoding.bytes(n as usize) as u64;
                    let scales = treatment.granularity.scales(filters, n) * treatment.scale_dtype.size() as u64;
                    sections = [codes, planes * scales];
                    totals.add_ternary(elements, source_bytes, codes, planes * scales);
                }
            }
            let bytes = sections.iter().sum();
            totals.file_bytes += sections.iter().map(|n| n.next_multiple_of(crate::container::ALIGNMENT)).sum::<u64>();
            let shape = shape.iter().map(|&d| d as u64).collect();
            let mut report = TensorReport::unmeasured(tensor.name.to_owned(), dtype, shape, source_bytes, bytes);
            report.became = planned.decision.to_string();
            report.reason = planned.reason.to_string();
            totals.add(&report, elements);
            tensors.push(report);
        }
        totals.finish();
        Ok(Self { totals, tensors, plan: true, budget: None })
    }

    /// The tensors of largest relative squared error, ternary or of 8 bits, worst first.
    pub fn worst(&self, how_many: usize) -> Vec<&TensorReport> {
        let mut worst: Vec<_> = self.tensors.iter().filter(|t| t.relative_squared_error.is_some()).collect();
        worst.sort_by(|a, b| {
            b.relative_squared_error.partial_cmp(&a.relative_squared_error).unwrap_or(std::cmp::Ordering::Equal)
        });
        worst.truncate(how_many);
        worst
    }

    /// As JSON, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        json::render(self)
    }

    /// The same, written as it comes: of many tensors it is longer than all that a run keeps of them.
    ///
    /// # Errors
    /// Of `to`.
    pub fn write_json(&self, to: impl io::Write) -> io::Result<()> {
        json::write(self, to)
    }

    /// As CSV with a header line: one line per tensor, numbers in full. Text that a spreadsheet would
    /// take for a formula, or that begins with an apostrophe, has one more apostrophe in front.
    pub fn to_csv(&self) -> String {
        csv::render(self)
    }

    /// As a table for people, with a summary below, in parts to be printed one behind another; `color` for a terminal.
    #[cfg(feature = "cli")]
    pub fn to_table(&self, color: bool) -> impl Iterator<Item = String> {
        table::render(self, color)
    }

    /// As one HTML page.
    #[cfg(feature = "cli")]
    pub fn to_html(&self) -> String {
        html::render(self)
    }
}

impl Report {
    /// The tensors that a run with statistics of inputs packed without any.
    pub fn uncalibrated(&self) -> Vec<&str> {
        self.tensors.iter().filter(|t| t.is_uncalibrated()).map(|t| t.name.as_str()).collect()
    }

    /// The ternary tensors that it packed by statistics.
    pub fn calibrated(&self) -> Vec<&str> {
        // Of int8 tensors only the error is measured by them.
        let by_them = |t: &&TensorReport| t.sparsity.is_some() && t.calibration.is_some() && !t.is_uncalibrated();
        self.tensors.iter().filter(by_them).map(|t| t.name.as_str()).collect()
    }
}

impl TensorReport {
    /// Whether a run that was given statistics of inputs packed it without any.
    pub fn is_uncalibrated(&self) -> bool {
        self.calibration.as_deref() == Some(CalibrationEntry::NONE)
    }

    /// Dense, for no reason yet.
    fn unmeasured(name: String, dtype: Dtype, shape: Vec<u64>, source_bytes: u64, bytes: u64) -> Self {
        Self {
            name,
            shape,
            dtype,
            became: "dense".to_owned(),
            reason: String::new(),
            repaired: None,
            sparsity: None,
            delta: None,
            alpha: None,
            relative_squared_error: None,
            calibration: None,
            relative_output_error: None,
            entropy: None,
            bits_per_weight: None,
            source_bytes,
            bytes,
            ratio: share(source_bytes, bytes),
        }
    }

    fn measure(&mut self, ternary: &TernaryEntry) {
        let stats = &ternary.stats;
        let codes = stats.negative + stats.zeros + stats.positive;
        let TernaryEntry { encoding, method, granularity, planes, axis, .. } = ternary;
        self.became = became(*encoding, &method.name, *granularity, *planes, *axis);
        if let Some(calibration) = &ternary.calibration {
            self.under(calibration);
            self.became += match calibration.kind.as_str() {
                CalibrationEntry::FULL => " calibrated",
                CalibrationEntry::DIAGONAL => " weighted",
                _ => " uncalibrated",
            };
        }
        self.reason.clone_from(&ternary.reason);
        self.bits_per_weight = Some(self.bits());
        self.sparsity = Some(share(stats.zeros, codes));
        self.delta = stats.delta;
        self.alpha = Some(stats.alpha);
        self.relative_squared_error = Some(stats.relative_squared_error());
        self.entropy = Some(
            [stats.negative, stats.zeros, stats.positive]
                .into_iter()
                .filter(|&n| n > 0)
                .map(|n| share(n, codes))
                .map(|p| -p * p.log2())
                .sum::<f64>()
                .max(0.0)
                * ternary.planes as f64,
        );
    }
}

impl TensorReport {
    fn measure_int8(&mut self, int8: &Int8Entry) {
        self.became = became_int8(int8.axis);
        self.reason.clone_from(&int8.reason);
        self.bits_per_weight = Some(self.bits());
        if let Some(calibration) = &int8.calibration {
            self.under(calibration);
        }
        self.alpha = Some(int8.stats.alpha);
        self.relative_squared_error = Some(int8.stats.relative_squared_error());
    }

    fn bits(&self) -> f64 {
        8.0 * share(self.bytes, self.shape.iter().product())
    }

    fn under(&mut self, calibration: &CalibrationEntry) {
        self.calibration = Some(calibration.kind.clone());
        self.relative_output_error = calibration.relative_squared_error();
    }
}

impl Totals {
    fn add(&mut self, tensor: &TensorReport, elements: u64) {
        self.tensors += 1;
        self.elements += elements;
        self.source_bytes += tensor.source_bytes;
    }

    fn add_ternary(&mut self, weights: u64, source_bytes: u64, codes: u64, scales: u64) {
        self.ternary_tensors += 1;
        self.ternary_weights += weights;
        self.ternary_source_bytes += source_bytes;
        self.code_bytes += codes;
        self.scale_bytes += scales;
    }

    fn add_int8(&mut self, weights: u64, bytes: u64) {
        self.int8_tensors += 1;
        self.int8_weights += weights;
        self.int8_bytes += bytes;
    }

    fn finish(&mut self) {
        let ternary = self.code_bytes + self.scale_bytes;
        self.ratio = share(self.source_bytes, self.file_bytes);
        self.overhead_bytes = self.file_bytes.saturating_sub(ternary + self.dense_bytes + self.int8_bytes);
        self.ternary_ratio = share(self.ternary_source_bytes, ternary);
        self.ternary_ratio_f32 = share(4 * self.ternary_weights, ternary);
        self.ternary_ratio_f64 = share(8 * self.ternary_weights, ternary);
        self.bits_per_weight = share(8 * ternary, self.ternary_weights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{DenseEntry, Section};

    /// Both at once would be a third of what a run takes for a tensor.
    #[test]
    fn a_report_takes_the_place_of_its_entries() {
        let section = Section { crc32: 0, length: 4, offset: 64 };
        let dense = DenseEntry { reason: String::new(), repaired: None, section };
        let entries = vec![TensorEntry::dense("w".to_owned(), Dtype::F32, vec![1], dense); 3];
        let place = entries.as_ptr().addr();
        assert_eq!(Report::of_entries(entries, 68).tensors.as_ptr().addr(), place);
    }
}
