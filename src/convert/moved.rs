//! One tensor that is ternary in the checkpoint on its way into ours: codes and scales are moved. Not here: how they
//! lie there ([`crate::source::TernaryLayout`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::bad_weights::misfit;
use super::job::{Done, Places, Run};
use super::tally::{Tally, counts_of};
use super::tensor::{Output, PlaneBytes, push_scale};
use super::{PIECE, gcd, steps, weights_error};
use crate::Result;
use crate::container::{Granularity, MethodEntry, Section, TensorEntry, TernaryEntry};
use crate::error::WeightsProblem;
use crate::limits::PACKED_PLANES as PLANES;
use crate::pack::{Counts, Encoding};
use crate::select::{MOVED, Moved};
use crate::source::{TensorView, TernaryView};
use crate::vector::Isa;

/// Filters that lie between each other and are read together: two lines of the cache of two-bit codes.
const TOGETHER: usize = 512;

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

    pub fn planes(&self) -> usize {
        self.view.planes()
    }

    /// Bytes of codes and of scales per plane.
    pub fn plane_bytes(&self) -> (u64, u64) {
        let (filters, n) = (self.view.filters(), self.view.filter_len());
        let scales = self.granularity.scales(filters as u64, n as u64);
        ((filters * self.moved.encoding.bytes(n)) as u64, scales * self.moved.scale_dtype.size() as u64)
    }

    /// Bytes in the checkpoint.
    pub fn source_bytes(&self) -> u64 {
        self.view.bytes() as u64
    }

    /// Where the work may be cut, in order: whole filters, by their numbers.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        let n = self.view.filter_len();
        // Codes are a sixteenth of floats: more of them, for writing small pieces costs more than making them. Filters that
        // lie between each other share lines of the cache and pages, so that there are to be many in a piece.
        let together = if self.view.axis() > 0 { TOGETHER.min(16 * PIECE / n) } else { 1 };
        steps(0..self.view.filters(), (4 * PIECE / n).max(together).max(1)).collect()
    }

    pub fn piece(&self, tensor: TensorView<'_>, filters: Range<usize>, places: Places, run: Run<'_>) -> Result<Done> {
        run.output(tensor, self.bytes_of(&filters), places, || self.filters(filters.clone(), run.isa))
    }

    /// The bytes of the checkpoint that those filters take, about; all of them take all.
    fn bytes_of(&self, filters: &Range<usize>) -> usize {
        let up_to = |filter: usize| (self.view.bytes() as u128 * filter as u128 / self.view.filters() as u128) as usize;
        up_to(filters.end) - up_to(filters.start)
    }

    fn filters(&self, filters: Range<usize>, isa: Isa) -> Result<Output, WeightsProblem> {
        let Moved { encoding, scale_dtype } = self.moved;
        let n = self.view.filter_len();
        let row = encoding.bytes(n);
        let packed = |message| WeightsProblem::Packed { message };
        let unit_len = match self.granularity {
            Granularity::Group(size) => size as usize,
            Granularity::Filter | Granularity::Tensor => n,
        };
        let units = n.div_ceil(unit_len);
        let first = if self.granularity == Granularity::Tensor { 0 } else { filters.start * units };
        let mut output = Output {
            codes_at: (filters.start * row) as u64,
            scales_at: (first * scale_dtype.size()) as u64,
            planes: vec![PlaneBytes::default(); self.planes()],
            ..Output::default()
        };
        let planes: Vec<_> = (0..self.planes()).map(|p| Plane::new(self.view.plane(p), filters.clone())).collect();
        let (mut codes, mut counts, mut products) = (Vec::new(), vec![Vec::new(); planes.len()], Vec::new());
        let mut all_scales = vec![Vec::new(); planes.len()];
        output.planes.iter_mut().for_each(|plane| plane.codes.reserve(filters.len() * row));
        for filter in filters {
            for (plane, scales) in planes.iter().zip(&mut all_scales) {
                plane.view.scales(filter, scales).map_err(packed)?;
            }
            for ((plane, output), counts) in planes.iter().zip(&mut output.planes).zip(&mut counts) {
                let from = output.codes.len();
                output.codes.resize(from + row, 0);
                let of_plane = self.codes(plane, filter, isa, unit_len, &mut output.codes[from..], &mut codes);
                *counts = of_plane.map_err(packed)?;
            }
            multiply(&planes, filter, unit_len, &counts, &mut products).map_err(packed)?;
            for (unit, products) in products.chunks_exact(planes.len() * planes.len()).enumerate() {
                counts.iter().for_each(|counts| output.tally.add_counts(counts[unit]));
                // Per plane the scale, as it is stored, and what that takes away.
                let (mut scales, mut stored, mut rests) = ([0.0; PLANES], [0.0; PLANES], [0.0; PLANES]);
                for (p, (plane, all)) in planes.iter().zip(&all_scales).enumerate() {
                    let scale = shared(plane.view, all, unit * unit_len, unit_len);
                    stored[p] = scale_dtype.round(f64::from(scale));
                    if !stored[p].is_finite() || (stored[p] == 0.0) != (scale == 0.0) {
                        return Err(misfit(filter, f64::from(scale), scale_dtype));
                    }
                    scales[p] = f64::from(scale);
                    rests[p] = scales[p] - f64::from(stored[p]);
                }
                let (stored, [error, norm]) =
                    (&stored[..planes.len()], [rests, scales].map(|of| square(products, &of[..planes.len()])));
                if self.granularity == Granularity::Tensor && filter > 0 {
                    output.tally.add_errors(error, norm);
                    continue;
                }
                let planes = output.planes.iter_mut().zip(stored);
                planes.for_each(|(plane, &scale)| push_scale(&mut plane.scales, scale_dtype, scale));
                output.tally.add_unit(stored, None, error, norm);
            }
        }
        Ok(output)
    }

    /// Packs the codes of one filter; what they are in each run of `unit_len`. `codes` is for what has to be widened.
    fn codes(
        &self,
        plane: &Plane<'_>,
        filter: usize,
        isa: Isa,
        unit_len: usize,
        packed: &mut [u8],
        codes: &mut Vec<u8>,
    ) -> Result<Vec<Counts>, String> {
        let n = plane.view.filter_len();
        let whole_bytes = unit_len == n || unit_len.is_multiple_of(4);
        if self.moved.encoding == Encoding::T2 && whole_bytes && plane.t2(filter, packed) {
            let units = (0..n).step_by(unit_len).zip(packed.chunks(unit_len.div_ceil(4)));
            let counts = units.map(|(at, packed)| Encoding::T2.check(isa, packed, unit_len.min(n - at)));
            if let Ok(counts) = counts.collect() {
                return Ok(counts);
            }
        }
        codes.resize(n, 0);
        plane.codes(filter, codes)?;
        let code = codes.iter().fold(0, |most, &code| code.max(most));
        if code > 2 {
            return Err(format!("filter {filter}: code {code}, should be 0, 1 or 2"));
        }
        self.moved.encoding.pack(isa, codes, packed);
        Ok(codes.chunks(unit_len).map(counts_of).collect())
    }

    pub fn entry(&self, codes: Section, scales: Section, tally: &Tally) -> Result<TensorEntry> {
        let count = (self.planes() * self.view.filters() * self.view.filter_len()) as u64;
        let entry = TernaryEntry {
            axis: self.view.axis() as u64,
            calibration: None,
            codes,
            encoding: self.moved.encoding,
            granularity: self.granularity,
            method: Arc::new(MethodEntry { name: MOVED.to_owned(), parameters: BTreeMap::new() }),
            planes: self.planes() as u64,
            reason: String::new(),
            scale_dtype: self.moved.scale_dtype,
            scales,
            source_bytes: Some(self.source_bytes()),
            stats: tally.stats(count).map_err(|problem| weights_error(self.view.name, problem))?,
        };
        let shape = self.view.shape.iter().map(|&d| d as u64).collect();
        Ok(TensorEntry::ternary(self.view.name.to_owned(), self.view.dtype, shape, entry))
    }
}

/// A plane, some of whose filters were read together.
struct Plane<'a> {
    view: TernaryView<'a>,
    /// The first of these filters.
    first: usize,
    /// Their codes in `t2`; none where the layout reads one filter as fast by itself.
    t2: Vec<u8>,
}

impl<'a> Plane<'a> {
    fn new(view: TernaryView<'a>, filters: Range<usize>) -> Self {
        let (first, mut t2) = (filters.start, Vec::new());
        if view.axis() > 0 {
            t2.resize(filters.len() * Encoding::T2.bytes(view.filter_len()), 0);
            if !view.t2_together(filters, &mut t2) {
                t2 = Vec::new();
            }
        }
        Self { view, first, t2 }
    }

    /// The codes of a filter that was read with the others.
    fn read(&self, filter: usize) -> Option<&[u8]> {
        let row = Encoding::T2.bytes(self.view.filter_len());
        self.t2.get((filter - self.first) * row..)?.get(..row).filter(|row| !row.is_empty())
    }

    fn t2(&self, filter: usize, packed: &mut [u8]) -> bool {
        let Some(read) = self.read(filter) else { return self.view.t2(filter, packed) };
        packed.copy_from_slice(read);
        true
    }

    fn codes(&self, filter: usize, codes: &mut [u8]) -> Result<(), String> {
        match self.read(filter) {
            // What is wrong with them the view says better.
            Some(read) if Encoding::T2.unpack(read, codes).is_ok() => Ok(()),
            _ => self.view.codes(filter, codes),
        }
    }
}

/// Makes `products` those of the codes −1, 0, +1 of each two planes, summed over each unit of a filter: `[units][P][P]`.
fn multiply(
    planes: &[Plane<'_>],
    filter: usize,
    unit_len: usize,
    counts: &[Vec<Counts>],
    products: &mut Vec<f64>,
) -> Result<(), String> {
    let count = planes.len();
    products.clear();
    products.resize(counts[0].len() * count * count, 0.0);
    for (p, counts) in counts.iter().enumerate() {
        let of_units = products.chunks_exact_mut(count * count).zip(counts);
        of_units.for_each(|(products, counts)| products[p * count + p] = (counts.negative + counts.positive) as f64);
    }
    if count > 1 {
        let mut codes = vec![vec![0; planes[0].view.filter_len()]; count];
        for (plane, codes) in planes.iter().zip(&mut codes) {
            plane.codes(filter, codes)?;
        }
        for (p, q) in (0..count).flat_map(|p| (0..p).map(move |q| (p, q))) {
            let units = codes[p].chunks(unit_len).zip(codes[q].chunks(unit_len));
            for (products, (a, b)) in products.chunks_exact_mut(count * count).zip(units) {
                let sum: i64 = a.iter().zip(b).map(|(&a, &b)| i64::from((i32::from(a) - 1) * (i32::from(b) - 1))).sum();
                (products[p * count + q], products[q * count + p]) = (sum as f64, sum as f64);
            }
        }
    }
    Ok(())
}

/// The squared norm of the sum of planes with those scales.
fn square(products: &[f64], scales: &[f64]) -> f64 {
    let rows = products.chunks_exact(scales.len()).zip(scales);
    let sum: f64 = rows.map(|(row, a)| row.iter().zip(scales).map(|(product, b)| product * a * b).sum::<f64>()).sum();
    // Where planes cancel each other, rounding may leave less than nothing.
    if sum < 0.0 { 0.0 } else { sum }
}

/// The coarsest granularity that holds every scale exactly: what all weights of a group, a filter, or all filters, share
/// is stored once. Looks at every scale.
pub(super) fn granularity(view: TernaryView<'_>) -> Result<Granularity, String> {
    let (mut per_tensor, mut group) = (true, 0);
    for view in (0..view.planes()).map(|p| view.plane(p)) {
        // Per filter its scale; none where all its codes are zero, and any would do.
        let scales: Vec<Scales> = (0..view.filters())
            .into_par_iter()
            .map_init(Vec::new, |all, filter| scales_of(view, filter, all))
            .collect::<Result<_, _>>()?;
        let mut known = scales.iter().filter_map(|scales| scales.first);
        // The first filter's scale is the one that a tensor's only scale is taken from.
        let first = scales.first().and_then(|scales| scales.first);
        per_tensor &= first.is_some() && known.all(|scale| Some(scale) == first);
        group = scales.iter().fold(group, |group, scales| gcd(group, scales.changes));
    }
    Ok(match group {
        0 if per_tensor => Granularity::Tensor,
        0 => Granularity::Filter,
        units => Granularity::Group((units * view.unit_len()) as u64),
    })
}

/// The scales of a filter.
#[derive(Debug, Clone, Copy, Default)]
struct Scales {
    /// The first one; none where any would do.
    first: Option<f32>,
    /// What divides the numbers of all units where it changes; 0 where it does not.
    changes: usize,
}

/// What the units of a filter have for scales. A scale of 0 whose codes are zero, too, is as good as any other.
fn scales_of(view: TernaryView<'_>, filter: usize, all: &mut Vec<f32>) -> Result<Scales, String> {
    let (n, unit_len) = (view.filter_len(), view.unit_len());
    let (mut found, mut last, mut codes) = (Scales::default(), None, Vec::new());
    view.scales(filter, all)?;
    for (unit, &scale) in all.iter().enumerate() {
        if scale == 0.0 {
            if codes.is_empty() {
                codes.resize(n, 1);
                view.codes(filter, &mut codes)?;
            }
            if codes[unit * unit_len..((unit + 1) * unit_len).min(n)].iter().all(|&code| code == 1) {
                continue;
            }
        }
        if last.is_some_and(|last| last != scale) {
            found.changes = gcd(found.changes, unit);
        }
        last = Some(scale);
        found.first = found.first.or(last);
    }
    Ok(found)
}

/// Of all scales of a filter, the one that the weights from `start` on share: all are equal, but where any would do
/// and 0 stands.
fn shared(view: TernaryView<'_>, scales: &[f32], start: usize, length: usize) -> f32 {
    let (first, end) = (start / view.unit_len(), (start + length).min(view.filter_len()));
    scales[first..end.div_ceil(view.unit_len())].iter().copied().fold(0.0, f32::max)
}
