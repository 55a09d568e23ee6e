//! One tensor that is ternary in the checkpoint on its way into ours: codes and scales are moved. Not here: how they
//! lie there ([`crate::source::TernaryLayout`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::job::{Done, Places, Run};
use super::tally::{Tally, counts_of};
use super::tensor::{Output, PlaneBytes, misfit, push_scale};
use super::{PIECE, steps, weights_error};
use crate::Result;
use crate::container::{Granularity, MethodEntry, Section, TensorEntry, TernaryEntry};
use crate::error::WeightsProblem;
use crate::pack::{Counts, Encoding};
use crate::select::{MOVED, Moved};
use crate::source::{TensorView, TernaryView};
use crate::vector::Isa;

/// A tensor, how it is to be stored, and which of its weights share a scale.
#[derive(Debug)]
pub(super) struct MovedWork<'a> {
    view: TernaryView<'a>,
    moved: Moved,
    granularity: Granularity,
}

impl<'a> MovedWork<'a> {
    pub fn new(view: TernaryView<'a>, moved: Moved, granularity: Granularity) -> Self {
        Self { view, moved, granularity }
    }

    /// Bytes of codes and of scales.
    pub fn bytes(&self) -> (u64, u64) {
        let (filters, n) = (self.view.filters(), self.view.filter_len());
        let scales = self.granularity.scales(filters as u64, n as u64);
        ((filters * self.moved.encoding.bytes(n)) as u64, scales * self.moved.scale_dtype.size() as u64)
    }

    /// Where the work may be cut, in order: whole filters, by their numbers.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        // Codes are a sixteenth of floats: more of them, for writing small pieces costs more than making them.
        steps(0..self.view.filters(), (4 * PIECE / self.view.filter_len()).max(1)).collect()
    }

    pub fn piece(&self, tensor: TensorView<'_>, filters: Range<usize>, places: Places, run: Run<'_>) -> Result<Done> {
        run.output(tensor, self.source_bytes(tensor, &filters), places, || self.filters(filters.clone(), run.isa))
    }

    /// The bytes of the checkpoint that those filters take, about; all of them take all.
    fn source_bytes(&self, tensor: TensorView<'_>, filters: &Range<usize>) -> usize {
        let up_to = |filter: usize| (tensor.data.len() as u128 * filter as u128 / self.view.filters() as u128) as usize;
        up_to(filters.end) - up_to(filters.start)
    }

    fn filters(&self, filters: Range<usize>, isa: Isa) -> Result<Output, WeightsProblem> {
        let Moved { encoding, scale_dtype } = self.moved;
        let n = self.view.filter_len();
        let row = encoding.bytes(n);
        let packed = |message| WeightsProblem::Packed { message };
        let units = match self.granularity {
            Granularity::Group(_) => n.div_ceil(self.view.unit_len()),
            Granularity::Filter | Granularity::Tensor => 1,
        };
        let first = if self.granularity == Granularity::Tensor { 0 } else { filters.start * units };
        let mut output = Output {
            codes_at: (filters.start * row) as u64,
            scales_at: (first * scale_dtype.size()) as u64,
            ..Output::default()
        };
        let (mut plane, mut codes) = (PlaneBytes::default(), Vec::new());
        plane.codes.reserve(filters.len() * row);
        let unit_len = if units == 1 { n } else { self.view.unit_len() };
        for filter in filters {
            let from = plane.codes.len();
            plane.codes.resize(from + row, 0);
            let counts = self.codes(filter, isa, unit_len, &mut plane.codes[from..], &mut codes).map_err(packed)?;
            for (unit, counts) in counts.into_iter().enumerate() {
                output.tally.add_counts(counts);
                let scale = match units {
                    1 => common_scale(self.view, filter).map_err(packed)?.unwrap_or(0.0),
                    _ => self.view.scale(filter, unit).map_err(packed)?,
                };
                let stored = scale_dtype.round(f64::from(scale));
                if !stored.is_finite() || (stored == 0.0) != (scale == 0.0) {
                    return Err(misfit(filter, f64::from(scale), scale_dtype));
                }
                let count = (counts.negative + counts.positive) as f64;
                let (scale, rest) = (f64::from(scale), f64::from(scale) - f64::from(stored));
                let (error, norm) = (count * rest * rest, count * scale * scale);
                if self.granularity == Granularity::Tensor && filter > 0 {
                    output.tally.add_errors(error, norm);
                    continue;
                }
                push_scale(&mut plane.scales, scale_dtype, stored);
                output.tally.add_unit(&[stored], None, error, norm);
            }
        }
        output.planes.push(plane);
        Ok(output)
    }

    /// Packs the codes of one filter; what they are in each run of `unit_len`. `codes` is for what has to be widened.
    fn codes(
        &self,
        filter: usize,
        isa: Isa,
        unit_len: usize,
        packed: &mut [u8],
        codes: &mut Vec<u8>,
    ) -> Result<Vec<Counts>, String> {
        let n = self.view.filter_len();
        let whole_bytes = unit_len == n || unit_len.is_multiple_of(4);
        if self.moved.encoding == Encoding::T2 && whole_bytes && self.view.t2(filter, packed) {
            let units = (0..n).step_by(unit_len).zip(packed.chunks(unit_len.div_ceil(4)));
            let counts = units.map(|(at, packed)| Encoding::T2.check(isa, packed, unit_len.min(n - at)));
            if let Ok(counts) = counts.collect() {
                return Ok(counts);
            }
        }
        codes.resize(n, 0);
        self.view.codes(filter, codes)?;
        let code = codes.iter().fold(0, |most, &code| code.max(most));
        if code > 2 {
            return Err(format!("filter {filter}: code {code}, should be 0, 1 or 2"));
        }
        self.moved.encoding.pack(isa, codes, packed);
        Ok(codes.chunks(unit_len).map(counts_of).collect())
    }

    /// `source_bytes`: those of the tensor in the checkpoint.
    pub fn entry(&self, source_bytes: u64, codes: Section, scales: Section, tally: &Tally) -> Result<TensorEntry> {
        let elements = (self.view.filters() * self.view.filter_len()) as u64;
        let entry = TernaryEntry {
            axis: self.view.axis() as u64,
            calibration: None,
            codes,
            encoding: self.moved.encoding,
            granularity: self.granularity,
            method: Arc::new(MethodEntry { name: MOVED.to_owned(), parameters: BTreeMap::new() }),
            planes: 1,
            reason: String::new(),
            scale_dtype: self.moved.scale_dtype,
            scales,
            source_bytes: Some(source_bytes),
            stats: tally.stats(elements).map_err(|problem| weights_error(self.view.name, problem))?,
        };
        let shape = self.view.shape.iter().map(|&d| d as u64).collect();
        Ok(TensorEntry::ternary(self.view.name.to_owned(), self.view.dtype, shape, entry))
    }
}

/// The coarsest granularity that holds every scale exactly: what all weights of a filter, or all filters, share is
/// stored once. Looks at every scale.
pub(super) fn granularity(view: TernaryView<'_>) -> Result<Granularity, String> {
    // Per filter its scale; none where all its codes are zero, and any would do.
    let scales: Vec<Scales> =
        (0..view.filters()).into_par_iter().map(|filter| scales_of(view, filter)).collect::<Result<_, _>>()?;
    if scales.contains(&Scales::Several) {
        return Ok(Granularity::Group(view.unit_len() as u64));
    }
    let mut known = scales.iter().filter_map(|scales| match scales {
        Scales::One(scale) => Some(scale),
        Scales::Any | Scales::Several => None,
    });
    // The first filter's scale is the one that a tensor's only scale is taken from.
    let one = matches!(scales.first(), Some(Scales::One(_)))
        && known.next().is_none_or(|first| known.all(|scale| scale == first));
    Ok(if one { Granularity::Tensor } else { Granularity::Filter })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scales {
    Any,
    One(f32),
    Several,
}

/// What the units of a filter have for scales. A scale of 0 whose codes are zero, too, is as good as any other.
fn scales_of(view: TernaryView<'_>, filter: usize) -> Result<Scales, String> {
    let (n, unit_len) = (view.filter_len(), view.unit_len());
    let (mut found, mut codes) = (Scales::Any, Vec::new());
    for unit in 0..n.div_ceil(unit_len) {
        let scale = view.scale(filter, unit)?;
        if scale == 0.0 {
            if codes.is_empty() {
                codes.resize(n, 1);
                view.codes(filter, &mut codes)?;
            }
            if codes[unit * unit_len..((unit + 1) * unit_len).min(n)].iter().all(|&code| code == 1) {
                continue;
            }
        }
        match found {
            Scales::Any => found = Scales::One(scale),
            Scales::One(known) if known == scale => {}
            _ => return Ok(Scales::Several),
        }
    }
    Ok(found)
}

/// The scale that all units of a filter have; `None` where any would do.
fn common_scale(view: TernaryView<'_>, filter: usize) -> Result<Option<f32>, String> {
    Ok(match scales_of(view, filter)? {
        Scales::One(scale) => Some(scale),
        Scales::Any | Scales::Several => None,
    })
}
