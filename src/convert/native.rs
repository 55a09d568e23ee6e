//! Floats that are ternary already: whether all weights that share a scale are −a, 0 or +a, and the type of the scales
//! has a. Not here: what is made of them.

use std::ops::Range;

use rayon::prelude::*;

use super::steps;
use crate::container::Granularity;
use crate::source::FilterView;
use crate::source::weights::Element;
use crate::ternarize::ScaleDtype;
use crate::vector::Isa;
use crate::vector::block::BLOCK;

/// Whether the weights can be packed without loss. Stops at the first unit that cannot.
pub(super) fn is_ternary(view: FilterView<'_>, granularity: Granularity, scales: ScaleDtype, isa: Isa) -> bool {
    if view.is_f64() {
        is_ternary_in::<f64>(view, granularity, scales, isa)
    } else {
        is_ternary_in::<f32>(view, granularity, scales, isa)
    }
}

fn is_ternary_in<W: Element>(view: FilterView<'_>, granularity: Granularity, scales: ScaleDtype, isa: Isa) -> bool {
    let n = view.filter_len();
    // No magnitude yet, or the one that all have so far.
    let magnitude = |range: Range<usize>| -> Result<f64, NotTernary> {
        let mut scratch = Vec::new();
        steps(range, BLOCK)
            .try_fold(0.0, |known, block| join(known, one_magnitude(view.read::<W>(block, isa, &mut scratch), scales)?))
    };
    let filters = (0..view.filters()).into_par_iter();
    let found = match granularity {
        Granularity::Tensor => filters.map(|f| magnitude(f * n..(f + 1) * n)).try_reduce(|| 0.0, join),
        Granularity::Filter => filters.map(|f| magnitude(f * n..(f + 1) * n)).try_reduce(|| 0.0, |_, _| Ok(0.0)),
        Granularity::Group(size) => {
            let size = usize::try_from(size).unwrap_or(usize::MAX).clamp(1, n.max(1));
            let groups = |f: usize| steps(f * n..(f + 1) * n, size).try_for_each(|group| magnitude(group).map(|_| ()));
            filters.map(|f| groups(f).map(|()| 0.0)).try_reduce(|| 0.0, |_, _| Ok(0.0))
        }
    };
    found.is_ok()
}

struct NotTernary;

/// The magnitude of all weights that are not zero, one that scales have; 0 where there are none.
fn one_magnitude<W: Element>(weights: &[W], scales: ScaleDtype) -> Result<f64, NotTernary> {
    let Some(first) = weights.iter().map(|w| w.to_f64().abs()).find(|&w| w != 0.0) else { return Ok(0.0) };
    let same = |w: &W| w.to_f64() == 0.0 || w.to_f64().abs() == first;
    if f64::from(scales.round(first)) == first && first.is_finite() && weights.iter().all(same) {
        Ok(first)
    } else {
        Err(NotTernary)
    }
}

fn join(a: f64, b: f64) -> Result<f64, NotTernary> {
    if a == 0.0 || b == 0.0 || a == b { Ok(a.max(b)) } else { Err(NotTernary) }
}
