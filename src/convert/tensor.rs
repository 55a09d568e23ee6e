//! One tensor on its way to codes and scales: which weights share a scale, where pieces of work
//! may be cut, and the work on one piece. Not here: files and threads ([`super`]).

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use half::{bf16, f16};

use super::bad_weights::{misfit, non_finite};
use super::pairs::{SelectUnits, Selected};
use super::tally::Tally;
use super::unit::LongRange;
use super::window::{Held, Ordered, filters_held};
use super::{PIECE, gcd};
use crate::container::Granularity;
use crate::error::WeightsProblem;
use crate::pack::{Encoding, SelectPacked};
use crate::select::Treatment;
use crate::source::FilterView;
use crate::source::weights::Element;
use crate::ternarize::{Above, Fit, Fitted, Moments, ScaleDtype, Threshold, Unit};
use crate::vector::Isa;
use crate::vector::block::{BLOCK, Select, SignsOf};

/// A tensor, its treatment, and what is known of its units so far.
#[derive(Debug)]
pub(super) struct TernaryWork<'a> {
    pub view: FilterView<'a>,
    pub treatment: &'a Treatment,
    /// The number of the first filter, where these are some of a tensor's.
    pub first: usize,
    /// The fits of units that no piece holds whole, found beforehand.
    pub fits: Vec<Fitted>,
}

/// What a piece becomes, and where in each plane of the tensor's sections that goes.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub planes: Vec<PlaneBytes>,
    pub codes_at: u64,
    pub scales_at: u64,
    pub tally: Tally,
}

/// Packed codes and stored scales, in order.
#[derive(Debug, Default, Clone)]
pub(super) struct PlaneBytes {
    pub codes: Vec<u8>,
    pub scales: Vec<u8>,
}

impl<'a> TernaryWork<'a> {
    pub fn new(view: FilterView<'a>, treatment: &'a Treatment) -> Self {
        Self { view, treatment, first: 0, fits: Vec::new() }
    }

    /// Whether all the work is done window by window, see [`TernaryWork::each_window`].
    pub fn is_scattered(&self) -> bool {
        filters_held(&self.view).is_some()
    }

    /// Calls `each` with the work on as many filters at a time as are held in memory, in order, and
    /// keeps their fits; with all of it where the filters are not scattered.
    pub fn each_window<E>(
        &mut self,
        isa: Isa,
        mut each: impl FnMut(&mut TernaryWork<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(window) = filters_held(&self.view) else {
            return each(self);
        };
        let mut held = Held::default();
        for filters in super::steps(0..self.view.filters(), window) {
            let view = held.read(self.view, filters.clone(), isa);
            let mut part = TernaryWork { first: filters.start, ..TernaryWork::new(view, self.treatment) };
            if self.treatment.granularity == Granularity::Tensor {
                part.fits.clone_from(&self.fits);
                each(&mut part)?;
            } else {
                each(&mut part)?;
                self.fits.append(&mut part.fits);
            }
        }
        Ok(())
    }

    /// How many weights share a scale; the last unit of a filter may hold fewer.
    pub fn unit_len(&self) -> usize {
        let n = self.view.filter_len();
        match self.treatment.granularity {
            Granularity::Filter => n,
            Granularity::Tensor => self.view.filters() * n,
            Granularity::Group(size) => usize::try_from(size).unwrap_or(usize::MAX).min(n),
        }
    }

    pub fn needs_prefit(&self) -> bool {
        self.treatment.granularity == Granularity::Tensor || self.unit_len() > PIECE
    }

    fn unit_count(&self) -> usize {
        let (filters, n) = (self.view.filters(), self.view.filter_len());
        self.treatment.granularity.scales(filters as u64, n as u64) as usize
    }

    fn unit_range(&self, unit: usize) -> Range<usize> {
        let (n, len) = (self.view.filter_len(), self.unit_len());
        if self.treatment.granularity == Granularity::Tensor {
            return 0..len;
        }
        let per_filter = n.div_ceil(len);
        let (filter, group) = (unit / per_filter, unit % per_filter);
        filter * n + group * len..filter * n + ((group + 1) * len).min(n)
    }

    /// Weights per piece of a filter that is longer than a piece: whole bytes of every encoding,
    /// and whole groups unless they were fitted beforehand.
    fn step(&self) -> usize {
        let unit = self.unit_len();
        if self.needs_prefit() {
            return PIECE;
        }
        let whole = 40 / gcd(40, unit) * unit;
        whole * (PIECE / whole).max(1)
    }

    /// Fits every unit that no piece holds whole, unless windows are to do it; `each` is told how many
    /// weights are done, and has to stop the work when `cancel` is set: the fit means nothing then.
    pub fn prefit<E: From<WeightsProblem>>(
        &mut self,
        isa: Isa,
        cancel: Option<&AtomicBool>,
        mut each: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let by_windows = self.is_scattered() && self.treatment.granularity != Granularity::Tensor;
        if !self.needs_prefit() || by_windows || !self.fits.is_empty() {
            return Ok(());
        }
        for unit in 0..self.unit_count() {
            let range = self.unit_range(unit);
            let fit = self.fit_long(range.clone(), isa, cancel);
            each(range.len())?;
            self.fits.push(fit?);
        }
        Ok(())
    }

    /// Where the work may be cut, in order: ranges of weights, filter axis first.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        let (filters, n) = (self.view.filters(), self.view.filter_len());
        if n <= PIECE {
            return super::steps(0..filters * n, (PIECE / n).max(1) * n).collect();
        }
        let step = self.step();
        (0..filters).flat_map(|f| super::steps(f * n..(f + 1) * n, step)).collect()
    }

    fn fit_long(&self, range: Range<usize>, isa: Isa, cancel: Option<&AtomicBool>) -> Result<Fitted, WeightsProblem> {
        // Methods go over a tensor several times.
        let ordered = match self.treatment.granularity {
            Granularity::Tensor if !self.view.contiguous() => Ordered::new(self.view, isa, cancel),
            _ => None,
        };
        let view = ordered.as_ref().map_or(self.view, Ordered::view);
        let long = LongRange { isa, view, start: range.start, len: range.len(), cancel };
        let unit = Unit::from_long(isa, &long);
        self.check_finite(&unit, range.start)?;
        let Treatment { method, planes, scale_dtype, .. } = self.treatment;
        self.checked(Fitted::new(&**method, &unit, *planes, *scale_dtype), range.start)
    }

    /// The work on weights `range` (filter axis first), which [`TernaryWork::pieces`] gave.
    pub fn run(&self, range: Range<usize>, isa: Isa) -> Result<Output, WeightsProblem> {
        // Halves are widened as they are loaded where that saves a pass.
        let as_they_are = self.packs_at_once() && isa.has_vectors();
        if self.view.is_f64() {
            self.run_as::<f64>(range, isa)
        } else if as_they_are && self.view.borrows::<f16>() {
            self.run_as::<f16>(range, isa)
        } else if as_they_are && self.view.borrows::<bf16>() {
            self.run_as::<bf16>(range, isa)
        } else {
            self.run_as::<f32>(range, isa)
        }
    }

    fn run_as<W: Element>(&self, range: Range<usize>, isa: Isa) -> Result<Output, WeightsProblem> {
        let n = self.view.filter_len();
        let encoding = self.treatment.encoding;
        let (filter, j) = (range.start / n, range.start % n);
        let unit = (self.first + filter) * n.div_ceil(self.unit_len()) + j / self.unit_len();
        let mut output = Output {
            codes_at: ((self.first + filter) * encoding.bytes(n) + j / encoding.weights_per_byte()) as u64,
            scales_at: (unit * self.treatment.scale_dtype.size()) as u64,
            planes: vec![PlaneBytes::default(); self.treatment.planes],
            tally: Tally::default(),
        };
        // Where each filter lies in one run, decode it just before it is used; else a whole piece,
        // whose filters are neighbours in the file.
        let (mut scratch, mut row_scratch) = (Vec::new(), Vec::new());
        if self.view.contiguous() {
            self.view.touch(range.clone());
        }
        let whole = (!self.view.contiguous() || self.view.borrows::<W>())
            .then(|| self.view.read::<W>(range.clone(), isa, &mut scratch));
        // [planes][weights], where they are not packed at once.
        let (at_once, longest) = (self.packs_at_once(), range.len().min(n));
        let mut codes = vec![vec![0; if at_once { 0 } else { longest }]; self.treatment.planes];
        let bytes = range.len().div_ceil(longest) * encoding.bytes(longest);
        for plane in &mut output.planes {
            plane.codes = vec![0; bytes];
            plane.scales.reserve(range.len().div_ceil(self.unit_len()) * self.treatment.scale_dtype.size());
        }
        let (mut at, mut packed_at) = (range.start, 0);
        if let (Some(all), true) = (whole, at_once && self.has_equal_units()) {
            let done = self.units(all, at, isa, &mut output)?;
            (at, packed_at) = (at + done * self.unit_len(), done * encoding.bytes(self.unit_len()));
        }
        while at < range.end {
            let row = at..((at / n + 1) * n).min(range.end);
            let weights = match whole {
                Some(all) => &all[row.start - range.start..row.end - range.start],
                None => self.view.read::<W>(row.clone(), isa, &mut row_scratch),
            };
            let packed = packed_at..packed_at + encoding.bytes(row.len());
            self.row(weights, row.start, isa, &mut codes, packed_at, &mut output)?;
            if !at_once {
                for (codes, plane) in codes.iter().zip(&mut output.planes) {
                    encoding.pack(isa, &codes[..row.len()], &mut plane.codes[packed.clone()]);
                }
            }
            (at, packed_at) = (row.end, packed.end);
        }
        Ok(output)
    }

    /// Whether codes are packed as soon as they are known: where every unit begins with a byte.
    fn packs_at_once(&self) -> bool {
        let Treatment { encoding, planes, .. } = self.treatment;
        let unit = self.unit_len();
        *encoding != Encoding::B1
            && *planes == 1
            && (unit >= self.view.filter_len() || unit.is_multiple_of(encoding.weights_per_byte()))
    }

    /// Whether pieces are units of one length with thresholds, none of them longer than a block or fitted beforehand.
    fn has_equal_units(&self) -> bool {
        let (unit, n) = (self.unit_len(), self.view.filter_len());
        unit <= BLOCK && n.is_multiple_of(unit) && !self.needs_prefit() && !self.treatment.method.binary()
    }

    /// Codes for such units, whose weights are `start..`, and says for how many: [`SelectUnits`] may leave the last one,
    /// and what has no threshold.
    fn units<W: Element>(
        &self,
        weights: &[W],
        start: usize,
        isa: Isa,
        output: &mut Output,
    ) -> Result<usize, WeightsProblem> {
        // An even number of units at a time, and not much memory.
        const UNITS: usize = 256;
        let (Treatment { encoding, method, scale_dtype, .. }, n) = (self.treatment, self.unit_len());
        let (mut found, mut done) = ([Selected::default(); UNITS], 0);
        for weights in weights.chunks(UNITS * n) {
            let unit = |i: usize, moments| Unit::of_moments(isa, &weights[i * n..(i + 1) * n], moments);
            let delta = |i, moments: &Moments| {
                let threshold = moments.max.is_finite().then(|| method.threshold(&unit(i, *moments)));
                if let Some(Threshold::Delta(delta)) = threshold { Some(delta) } else { None }
            };
            let PlaneBytes { codes, scales } = &mut output.planes[0];
            let packed = &mut codes[done * encoding.bytes(n)..];
            let count = isa.run(SelectUnits { weights, n, encoding: *encoding, delta, packed, found: &mut found });
            for (i, Selected { moments, delta, above }) in found[..count].iter().enumerate() {
                let fit = Fit::new(&**method, &unit(i, *moments), Threshold::Delta(*delta), *above, *scale_dtype);
                let misfit = (!fit.scale_fits()).then_some(fit.exact_scale);
                self.check(fit.breach(false), misfit, start + (done + i) * n)?;
                push_scale(scales, *scale_dtype, fit.scale);
                output.tally.count(n, *above);
                output.tally.add_unit(&[fit.scale], Some(*delta), fit.squared_error, fit.squared_norm);
            }
            done += count;
            if count < weights.len() / n {
                break;
            }
        }
        Ok(done)
    }

    fn add_fit(&self, fit: &Fitted, output: &mut Output) {
        for (plane, &scale) in output.planes.iter_mut().zip(fit.scales()) {
            push_scale(&mut plane.scales, self.treatment.scale_dtype, scale);
        }
        output.tally.add_fit(fit);
    }

    /// Codes for the weights `start..` of one filter, into the output's bytes from `packed_at` on or into `codes`; fits
    /// every unit that was not fitted before.
    fn row<W: Element>(
        &self,
        weights: &[W],
        start: usize,
        isa: Isa,
        codes: &mut [Vec<u8>],
        packed_at: usize,
        output: &mut Output,
    ) -> Result<(), WeightsProblem> {
        let n = self.view.filter_len();
        let unit_len = self.unit_len();
        let Treatment { encoding, planes, .. } = self.treatment;
        let (at_once, several) = (self.packs_at_once(), *planes > 1);
        let (filter, mut j) = (start / n, start % n);
        let mut at = 0;
        while at < weights.len() {
            let (unit, rest) = match self.treatment.granularity {
                Granularity::Tensor => (0, n - j),
                _ => (filter * n.div_ceil(unit_len) + j / unit_len, (unit_len - j % unit_len).min(n - j)),
            };
            let end = (at + rest).min(weights.len());
            let weights = &weights[at..end];
            let known = self.needs_prefit().then(|| &self.fits[unit]);
            let mut fresh = None;
            if several {
                let mut codes: Vec<&mut [u8]> = codes.iter_mut().map(|plane| &mut plane[at..end]).collect();
                if known.is_none() {
                    fresh = Some(self.fit_unit(weights, start + at, isa)?);
                }
                if let Some(Fitted::Several(fit)) = known.or(fresh.as_ref()) {
                    fit.levels.encode(isa, weights, &mut codes);
                }
                codes.iter().for_each(|codes| output.tally.count_codes(codes));
            } else {
                let codes = if at_once {
                    let bytes = encoding.bytes(at)..encoding.bytes(end);
                    let packed = &mut output.planes[0].codes[packed_at..][bytes];
                    Codes::Packed(*encoding, packed)
                } else {
                    Codes::Bytes(&mut codes[0][at..end])
                };
                let above = if let Some(Fitted::One(fit)) = known {
                    encode(isa, weights, fit.threshold, codes)
                } else {
                    let unit = Unit::of(isa, weights);
                    let threshold = self.threshold(&unit, start + at)?;
                    let fit = self.fit_here(&unit, threshold, weights, start + at, codes)?;
                    fresh = Some(Fitted::One(fit));
                    fit.above
                };
                output.tally.count(weights.len(), above);
            }
            if let Some(fit) = fresh {
                self.add_fit(&fit, output);
            }
            j += end - at;
            at = end;
        }
        Ok(())
    }

    /// Fits a unit that is in memory.
    pub fn fit_unit<W: Element>(&self, weights: &[W], start: usize, isa: Isa) -> Result<Fitted, WeightsProblem> {
        let unit = Unit::of(isa, weights);
        self.check_finite(&unit, start)?;
        let Treatment { method, planes, scale_dtype, .. } = self.treatment;
        self.checked(Fitted::new(&**method, &unit, *planes, *scale_dtype), start)
    }

    /// The method's threshold for a unit in memory, whose weights are `start..`.
    fn threshold(&self, unit: &Unit<'_>, start: usize) -> Result<Threshold, WeightsProblem> {
        self.check_finite(unit, start)?;
        Ok(self.treatment.method.threshold(unit))
    }

    fn check_finite(&self, unit: &Unit<'_>, start: usize) -> Result<(), WeightsProblem> {
        if unit.moments().max.is_finite() {
            return Ok(());
        }
        Err(non_finite(&self.view, self.first, start..start + unit.len(), unit.isa()))
    }

    /// Fits a unit that is in memory, of one plane, and writes the codes of its weights.
    fn fit_here<W: Element>(
        &self,
        unit: &Unit<'_>,
        threshold: Threshold,
        weights: &[W],
        start: usize,
        codes: Codes<'_>,
    ) -> Result<Fit, WeightsProblem> {
        let Treatment { method, scale_dtype, .. } = self.treatment;
        let above = encode(unit.isa(), weights, threshold, codes);
        let above = if threshold == Threshold::Sign { Above { sum: unit.moments().sum, ..above } } else { above };
        let fit = Fit::new(&**method, unit, threshold, above, *scale_dtype);
        self.checked(Fitted::One(fit), start)?;
        Ok(fit)
    }

    fn checked(&self, fit: Fitted, start: usize) -> Result<Fitted, WeightsProblem> {
        let breach = fit.breach(self.treatment.method.binary(), self.treatment.planes.max(1));
        self.check(breach, fit.misfit(), start)?;
        Ok(fit)
    }

    /// Refuses what a method must not give to the unit that begins at weight `start`, and a scale that cannot be stored.
    fn check(&self, breach: Option<&'static str>, misfit: Option<f64>, start: usize) -> Result<(), WeightsProblem> {
        if let Some(what) = breach {
            let filter = self.first + start / self.view.filter_len();
            return Err(WeightsProblem::Method { method: self.treatment.method.name(), filter, what });
        }
        misfit.map_or(Ok(()), |scale| Err(self.misfit(start, scale)))
    }

    /// The unit that begins at weight `start` has that scale.
    fn misfit(&self, start: usize, scale: f64) -> WeightsProblem {
        misfit(self.first + start / self.view.filter_len(), scale, self.treatment.scale_dtype)
    }

    /// The scales of those units as stored, per plane.
    pub fn fit_scales(&self) -> Vec<Vec<u8>> {
        let mut planes = vec![Vec::new(); self.treatment.planes];
        for fit in &self.fits {
            for (bytes, &scale) in planes.iter_mut().zip(fit.scales()) {
                push_scale(bytes, self.treatment.scale_dtype, scale);
            }
        }
        planes
    }

    /// Bytes of codes and of scales per plane.
    pub fn plane_bytes(&self) -> (u64, u64) {
        let (filters, n) = (self.view.filters() as u64, self.view.filter_len());
        let scales = self.treatment.granularity.scales(filters, n as u64);
        (filters * self.treatment.encoding.bytes(n) as u64, scales * self.treatment.scale_dtype.size() as u64)
    }
}

pub(super) fn push_scale(bytes: &mut Vec<u8>, dtype: ScaleDtype, scale: f32) {
    match dtype {
        ScaleDtype::F32 => bytes.extend(scale.to_le_bytes()),
        ScaleDtype::F16 => bytes.extend(half::f16::from_f32(scale).to_le_bytes()),
    }
}

/// Where the codes of some weights go: one byte each, or packed.
enum Codes<'c> {
    Bytes(&'c mut [u8]),
    Packed(Encoding, &'c mut [u8]),
}

/// Writes the codes of weights that share a threshold, and says what lies above (for signs, without
/// its sum). Blocks are added as everywhere.
fn encode<W: Element>(isa: Isa, weights: &[W], threshold: Threshold, codes: Codes<'_>) -> Above {
    match (threshold, codes) {
        (Threshold::Delta(delta), Codes::Bytes(codes)) => {
            let blocks = weights.chunks(BLOCK).zip(codes.chunks_mut(BLOCK));
            blocks
                .fold(Above::default(), |above, (weights, codes)| above.then(isa.run(Select { weights, delta, codes })))
        }
        (Threshold::Delta(delta), Codes::Packed(encoding, packed)) => {
            // The sums have prefetched the first half of what lies behind these.
            let ahead = weights.len() / 2;
            let blocks = weights.chunks(BLOCK).zip(packed.chunks_mut(encoding.bytes(BLOCK)));
            blocks.fold(Above::default(), |above, (weights, packed)| {
                above.then(isa.run(SelectPacked { weights, delta, ahead, encoding, packed }))
            })
        }
        (Threshold::Sign, Codes::Bytes(codes)) => {
            Above { count: weights.len() as u64, positive: isa.run(SignsOf { weights, codes }), sum: 0.0 }
        }
        (Threshold::Sign, Codes::Packed(encoding, packed)) => {
            let mut codes = vec![0; weights.len()];
            let above = encode(isa, weights, threshold, Codes::Bytes(&mut codes));
            encoding.pack(isa, &codes, packed);
            above
        }
    }
}
