//! Scales to start with. Not here: how they are improved ([`super`]).

use crate::limits::PACKED_PLANES as MAX;
use crate::ternarize::unit::{Data, LongWeights, Slice, on_slice};
use crate::ternarize::{Fit, ScaleDtype, Ternarizer, Threshold, Unit, fit};
use crate::vector::weight::Weight;

/// Relative sizes of the scales of two, three and four planes. Nearly all are such that every multiple of the unit up to the
/// largest is a value: 3 and 2 give 1, 2, 3 and 5. Where values are dense and where they are sparse is what tells
/// local optima apart.
const SHAPES: [&[[f64; MAX]]; MAX - 1] = [
    &[[3.0, 1.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0], [5.0, 4.0, 0.0, 0.0], [5.0, 3.0, 0.0, 0.0]],
    &[
        [9.0, 3.0, 1.0, 0.0],
        [4.0, 2.0, 1.0, 0.0],
        [9.0, 8.0, 3.0, 0.0],
        [9.0, 5.0, 3.0, 0.0],
        [4.0, 3.0, 1.0, 0.0],
        [9.0, 4.0, 3.0, 0.0],
        [8.0, 7.0, 5.0, 0.0],
        [7.0, 3.0, 1.0, 0.0],
        [9.0, 3.0, 2.0, 0.0],
    ],
    &[
        [27.0, 9.0, 3.0, 1.0],
        [8.0, 4.0, 2.0, 1.0],
        [23.0, 18.0, 6.0, 2.0],
        [21.0, 8.0, 7.0, 5.0],
        [27.0, 18.0, 5.0, 3.0],
        [21.0, 7.0, 5.0, 1.0],
        [23.0, 22.0, 15.0, 5.0],
        [22.0, 13.0, 6.0, 5.0],
    ],
];

/// Those of signs, which are never 0: evenly spaced values, and such as are denser near 0.
const SIGNS: [&[[f64; MAX]]; MAX - 1] = [
    &[[2.0, 1.0, 0.0, 0.0]],
    &[[4.0, 2.0, 1.0, 0.0], [4.0, 3.0, 2.0, 0.0]],
    &[[8.0, 4.0, 2.0, 1.0], [10.0, 6.0, 3.0, 2.0]],
];

/// The largest scale, in units of the weights' root mean square; and which of these is a usual one.
pub(super) const SIZES: [f64; 10] = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0];
pub(super) const USUAL: usize = 3;

/// Relative sizes of scales, the largest being 1.
pub(super) fn shapes(planes: usize, binary: bool) -> impl Iterator<Item = Vec<f64>> {
    let shapes = if binary { SIGNS } else { SHAPES }[planes - 2];
    shapes.iter().map(move |shape| shape[..planes].iter().map(|part| part / shape[0]).collect())
}

/// The method's scale for the weights, for what that leaves over, and so on; and whether the first
/// one fits its type. What comes before each plane is subtracted anew on every pass over long units.
pub(super) fn greedy(method: &dyn Ternarizer, unit: &Unit<'_>, planes: usize, dtype: ScaleDtype) -> (Vec<f64>, bool) {
    let first = fit(method, unit, dtype);
    let (mut fits, fitting) = (vec![first], first.scale_fits());
    while fits.len() < planes && fitting {
        let next = match unit.data() {
            Data::F32(w) => fit(method, &Unit::from_f64(unit.isa(), &left_over(&fits, w)), dtype),
            Data::F64(w) => fit(method, &Unit::from_f64(unit.isa(), &left_over(&fits, w)), dtype),
            Data::Long(weights) => fit(method, &Unit::from_long(unit.isa(), &LeftOver { weights, fits: &fits }), dtype),
        };
        fits.push(next);
    }
    (fits.iter().map(|fit| fit.exact_scale).collect(), fitting)
}

/// W − Σ α_p·T_p over the planes so far.
fn left_over<W: Weight>(fits: &[Fit], weights: &[W]) -> Vec<f64> {
    let one = |fit: &Fit, x: f64| {
        let kept = match fit.threshold {
            Threshold::Delta(delta) => x.abs() > delta,
            Threshold::Sign => true,
        };
        match (kept, x < 0.0) {
            (false, _) => x,
            (true, false) => x - f64::from(fit.scale),
            (true, true) => x + f64::from(fit.scale),
        }
    };
    weights.iter().map(|w| fits.iter().fold(w.to_f64(), |x, fit| one(fit, x))).collect()
}

/// The same of weights that do not lie in memory.
#[derive(Debug)]
struct LeftOver<'a> {
    weights: &'a dyn LongWeights,
    fits: &'a [Fit],
}

impl LongWeights for LeftOver<'_> {
    fn len(&self) -> usize {
        self.weights.len()
    }

    fn block(&self, i: usize, visit: &mut dyn FnMut(Slice<'_>)) {
        self.weights.block(i, &mut |slice| {
            let left = on_slice!(slice, w => left_over(self.fits, w));
            visit(Slice::F64(&left));
        });
    }
}
