//! What an index has to be, as far as it shows without the sections' bytes. Not here: how it is read and written ([`super`]).

use std::collections::BTreeSet;

use super::{Index, Int8Entry, Section, TensorEntry, TernaryEntry};
use crate::container::align;
use crate::container::prefix::LENGTH;
use crate::container::stats::{CalibrationEntry, Int8Stats, Spread};
use crate::dtype::{byte_length, is_float, needs};
use crate::error::ContainerProblem as Problem;
use crate::limits;

impl Index {
    /// Every entry by itself, no name twice, and that sections tile the file.
    pub(super) fn check(&self, index_offset: u64) -> Result<(), Problem> {
        let (mut names, mut sources) = (BTreeSet::new(), 0u64);
        for tensor in &self.tensors {
            tensor.check()?;
            let bytes = tensor.source_bytes();
            sources = sources.checked_add(bytes).ok_or_else(|| {
                tensor.problem(format!(
                    "had {bytes} bytes in the checkpoint, with the {sources} of the tensors before it more than any has; pack \
                     it again"
                ))
            })?;
            if !names.insert(&tensor.name) {
                return Err(Problem::Index(format!(
                    "tensor `{}` stands twice, should stand once; pack it again",
                    tensor.name
                )));
            }
        }
        self.check_tiling(index_offset)
    }

    /// Every section begins where the one before ends, rounded up to 64; so does the index.
    fn check_tiling(&self, index_offset: u64) -> Result<(), Problem> {
        let mut next = LENGTH as u64;
        for tensor in &self.tensors {
            for (part, section) in tensor.sections() {
                let end = section.offset.checked_add(section.length).and_then(align);
                let what = format!("tensor `{}`: {part} section", tensor.name);
                if section.offset != next {
                    return Err(Problem::Tiling { what, expected: next, found: section.offset });
                }
                match end {
                    Some(end) if end <= index_offset => next = end,
                    _ => {
                        let Section { offset, length, .. } = section;
                        return Err(Problem::Outside { what, offset, length, end: index_offset });
                    }
                }
            }
        }
        if next != index_offset {
            return Err(Problem::Tiling { what: "index".to_owned(), expected: next, found: index_offset });
        }
        Ok(())
    }
}

impl TensorEntry {
    /// A name may be too long to be told.
    fn problem(&self, message: String) -> Problem {
        Problem::Entry { tensor: self.name.chars().take(64).collect(), message }
    }

    /// Everything that can be checked without the sections' bytes.
    fn check(&self) -> Result<(), Problem> {
        let entry = |message: String| self.problem(message);
        if self.name.len() > limits::NAME_BYTES {
            return Err(entry(format!(
                "name of {} bytes is over the limit of {}; give it a shorter one and pack again",
                self.name.len(),
                limits::NAME_BYTES
            )));
        }
        if self.name == "__metadata__" {
            return Err(entry("this name means something else in a safetensors header".to_owned()));
        }
        if self.shape.len() > limits::RANK {
            return Err(entry(format!(
                "rank {} is over the limit of {}; reshape it and pack again",
                self.shape.len(),
                limits::RANK
            )));
        }
        let bytes = byte_length(self.dtype, &self.shape).ok_or_else(|| {
            entry(format!(
                "shape {:?} of {} needs {}; pack it again",
                self.shape,
                self.dtype,
                needs(self.dtype, &self.shape)
            ))
        })?;
        match (&self.dense, &self.int8, &self.ternary) {
            (Some(dense), None, None) if dense.section.length == bytes => Ok(()),
            (Some(dense), None, None) => Err(entry(format!(
                "data section has {} bytes, should have {bytes}; pack it again",
                dense.section.length
            ))),
            (None, Some(int8), None) => self.check_int8(int8).map_err(entry),
            (None, None, Some(ternary)) => self.check_ternary(ternary).map_err(entry),
            (None, None, None) => {
                Err(entry("is not dense, int8 or ternary, has to be one of them; is twn-pack up to date?".to_owned()))
            }
            _ => {
                let kinds = [("dense", self.dense.is_some()), ("int8", self.int8.is_some())];
                let kinds = kinds.into_iter().chain([("ternary", self.ternary.is_some())]);
                let kinds: Vec<_> = kinds.filter(|(_, there)| *there).map(|(kind, _)| kind).collect();
                Err(entry(format!("is both {}, has to be one of them; pack it again", kinds.join(" and "))))
            }
        }
    }

    /// What every tensor with filters has to be.
    fn check_filters(&self, kind: &str, axis: u64) -> Result<(), String> {
        if axis >= self.shape.len() as u64 {
            let rank = self.shape.len();
            return Err(format!("filter axis is {axis}, should be below its rank, {rank}; pack it again"));
        }
        if !is_float(self.dtype) {
            let dtype = self.dtype;
            return Err(format!("is {kind}, but {dtype} is no floating-point type that can be; pack it again"));
        }
        // With weights, filters ≤ bytes of codes: loops over filters are bounded by the length of the file.
        if self.elements() == 0 {
            return Err(format!("is {kind} but has no weights, empty tensors have to be dense; pack it again"));
        }
        Ok(())
    }

    fn check_int8(&self, int8: &Int8Entry) -> Result<(), String> {
        self.check_filters("int8", int8.axis)?;
        let (filters, n) = self.filters(int8.axis);
        check_length("codes", int8.codes, filters.checked_mul(n))?;
        check_length("scales", int8.scales, filters.checked_mul(int8.scale_dtype.size() as u64))?;
        let Int8Stats { alpha, squared_error, squared_norm } = int8.stats;
        check_spreads(&alpha, None)?;
        check_errors([squared_error, squared_norm], int8.calibration.as_deref())
    }

    fn check_ternary(&self, ternary: &TernaryEntry) -> Result<(), String> {
        self.check_filters("ternary", ternary.axis)?;
        if !(1..=limits::PLANES as u64).contains(&ternary.planes) {
            return Err(format!("has {} planes, should have 1 to {}; pack it again", ternary.planes, limits::PLANES));
        }
        let (filters, n) = self.filters(ternary.axis);
        let per_byte = ternary.encoding.weights_per_byte() as u64;
        let codes = filters.checked_mul(n.div_ceil(per_byte)).and_then(|bytes| bytes.checked_mul(ternary.planes));
        check_length("codes", ternary.codes, codes)?;
        let scales =
            ternary.granularity.scales(filters, n).checked_mul(ternary.planes * ternary.scale_dtype.size() as u64);
        check_length("scales", ternary.scales, scales)?;
        let stats = &ternary.stats;
        check_spreads(&stats.alpha, stats.delta.as_ref())?;
        check_errors([stats.squared_error, stats.squared_norm], ternary.calibration.as_deref())?;
        let counted = stats.negative.checked_add(stats.zeros).and_then(|n| n.checked_add(stats.positive));
        if counted != self.elements().checked_mul(ternary.planes) {
            return Err(format!(
                "statistics count {} + {} + {} codes, should count {} × {}; pack it again",
                stats.negative,
                stats.zeros,
                stats.positive,
                ternary.planes,
                self.elements()
            ));
        }
        Ok(())
    }
}

fn check_spreads(alpha: &Spread, delta: Option<&Spread>) -> Result<(), String> {
    let in_order = |s: &Spread| s.min <= s.mean && s.mean <= s.max;
    if !in_order(alpha) || delta.is_some_and(|delta| !in_order(delta) || delta.min < 0.0) {
        return Err("statistics of scales or thresholds are out of order; pack it again".to_owned());
    }
    Ok(())
}

/// ‖W − Ŵ‖² and ‖W‖², and what they are under calibration.
fn check_errors([error, norm]: [f64; 2], calibration: Option<&CalibrationEntry>) -> Result<(), String> {
    if error < 0.0 || norm < 0.0 {
        return Err(format!(
            "statistics say ‖W−Ŵ‖² = {error:e} and ‖W‖² = {norm:e}, which cannot be negative; pack it again"
        ));
    }
    let sums = calibration.map(|calibration| [calibration.squared_error, calibration.squared_norm]);
    if sums.into_iter().flatten().flatten().any(|sum| sum < 0.0) {
        return Err("errors under calibration cannot be negative; pack it again".to_owned());
    }
    Ok(())
}

fn check_length(part: &str, section: Section, expected: Option<u64>) -> Result<(), String> {
    if expected == Some(section.length) {
        return Ok(());
    }
    let expected = expected.map_or_else(|| "more than any file".to_owned(), |n| n.to_string());
    Err(format!("{part} section has {} bytes, should have {expected}; pack it again", section.length))
}
