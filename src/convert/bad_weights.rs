//! What is said of weights that cannot become ternary, and where they are. Not here: how they are noticed.

use std::ops::Range;

use super::steps;
use crate::error::WeightsProblem;
use crate::source::FilterView;
use crate::source::weights::Element;
use crate::ternarize::ScaleDtype;
use crate::vector::Isa;
use crate::vector::block::BLOCK;

/// What to do about a scale that its type cannot hold.
pub(super) fn misfit(filter: usize, scale: f64, dtype: ScaleDtype) -> WeightsProblem {
    let (dtype, advice) = match dtype {
        ScaleDtype::F16 if ScaleDtype::F32.round(scale).is_finite() => ("f16", "use --scale-dtype f32"),
        ScaleDtype::F16 => ("f16", "nor can f32: keep the tensor dense with --exclude, or rescale it"),
        ScaleDtype::F32 => ("f32", "keep the tensor dense with --exclude, or rescale it"),
    };
    WeightsProblem::Scale { filter, scale, dtype, advice }
}

/// The first weight of `range` that is NaN or infinite; `first` is the number of the view's first filter.
pub(super) fn non_finite(view: &FilterView<'_>, first: usize, range: Range<usize>, isa: Isa) -> WeightsProblem {
    let found = steps(range, BLOCK).find_map(|block| match view.is_f64() {
        true => non_finite_in::<f64>(view, first, block, isa),
        false => non_finite_in::<f32>(view, first, block, isa),
    });
    // There was one when the sums were made; if it is gone, so is the place of it.
    found.unwrap_or(WeightsProblem::NonFinite { filter: 0, index: 0, value: f64::NAN })
}

fn non_finite_in<W: Element>(
    view: &FilterView<'_>,
    first: usize,
    block: Range<usize>,
    isa: Isa,
) -> Option<WeightsProblem> {
    let (mut scratch, n) = (Vec::new(), view.filter_len());
    let weights = view.read::<W>(block.clone(), isa, &mut scratch);
    let at = weights.iter().position(|w| !w.to_f64().is_finite())?;
    let (at, value) = (block.start + at, weights[at].to_f64());
    Some(WeightsProblem::NonFinite { filter: first + at / n, index: at % n, value })
}
