//! The values that the scales of several planes give, and which of them a weight takes. Not here: which scales
//! ([`super`]).

use crate::limits::PACKED_PLANES as MAX;
use crate::ternarize::Unit;
use crate::ternarize::unit::{Slice, on_slice};
use crate::vector::weight::Weight;
use crate::vector::{Isa, Task};

/// Values that the codes of all planes can give.
const COMBINATIONS: usize = 3usize.pow(MAX as u32);

/// Those that are not negative: one for each of 3^P codes and its mirror image, and 0.
pub(super) const LEVELS: usize = COMBINATIONS.div_ceil(2);

/// The values that some scales can give, and their codes. They lie symmetrically around 0, so only
/// those that are not negative are kept, in ascending order.
#[derive(Debug, Clone)]
pub(crate) struct Levels {
    pub(super) planes: usize,
    pub(super) values: Vec<f32>,
    /// A weight takes level k when k of these lie below its magnitude; on one of them the lower level.
    pub(super) midpoints: Vec<f64>,
    /// t+1 per plane, for weights that are not negative; the others have 2 minus that.
    pub(super) codes: Vec<[u8; MAX]>,
}

impl Levels {
    /// Of these scales, at most [`MAX`], none negative; with `binary` codes are never 0. One that is not finite, which is
    /// refused later, gives no values until then.
    pub fn new(scales: &[f32], binary: bool) -> Self {
        // Adding a term keeps the order, so the values with each of a plane's digits are merged, and nothing is
        // sorted. Of equal values the digit 1 comes first: zero where there is one.
        let mut buffers = [[(0.0f32, [1u8; MAX]); COMBINATIONS]; 2];
        let [all, next] = &mut buffers;
        let (mut all, mut next) = (all, next);
        let mut count = 1;
        for (p, &scale) in scales.iter().enumerate() {
            let scale = if scale.is_finite() { scale } else { 0.0 };
            // Behind the last value there is infinity, and so there is where `binary` leaves a digit out.
            let value = |at: usize, term: f32| if at < count { all[at].0 + term } else { f32::INFINITY };
            let (mut down, mut zero, mut up) = (0, if binary { count } else { 0 }, 0);
            let mut values = [value(down, -scale), value(zero, 0.0), value(up, scale)];
            let merged = count * if binary { 2 } else { 3 };
            for to in &mut next[..merged] {
                let [low, middle, high] = values;
                let (digit, least, from) = if middle <= high && middle <= low && zero < count {
                    zero += 1;
                    values[1] = value(zero, 0.0);
                    (1, middle, zero - 1)
                } else if high <= low && up < count {
                    up += 1;
                    values[2] = value(up, scale);
                    (2, high, up - 1)
                } else {
                    down += 1;
                    values[0] = value(down, -scale);
                    (0, low, down - 1)
                };
                *to = (least, all[from].1);
                to.1[p] = digit;
            }
            count = merged;
            std::mem::swap(&mut all, &mut next);
        }
        let room = count.div_ceil(2);
        let (mut values, mut codes) = (Vec::with_capacity(room), Vec::with_capacity(room));
        for (value, its_codes) in all[..count].iter().filter(|(value, _)| *value >= 0.0 && value.is_finite()) {
            if values.last() != Some(&value.abs()) {
                values.push(value.abs());
                codes.push(*its_codes);
            }
        }
        let midpoints = values.windows(2).map(|pair| f64::midpoint(f64::from(pair[0]), f64::from(pair[1]))).collect();
        Self { planes: scales.len(), values, midpoints, codes }
    }

    /// The level nearest to a magnitude.
    pub(super) fn nearest(&self, magnitude: f64) -> usize {
        self.midpoints.partition_point(|&midpoint| magnitude > midpoint)
    }

    /// The value nearest to a weight, and t per plane.
    #[cfg(feature = "calibration")]
    pub fn round(&self, weight: f64) -> (f64, [i8; MAX]) {
        let level = self.nearest(weight.abs());
        let sign: i8 = if weight < 0.0 { -1 } else { 1 };
        (f64::from(sign) * f64::from(self.values[level]), self.codes[level].map(|code| sign * (code as i8 - 1)))
    }

    /// Writes the codes t+1 of weights, one byte each: `codes[p]` for plane p, as long as `weights`.
    pub fn encode<W: Weight>(&self, isa: Isa, weights: &[W], codes: &mut [&mut [u8]]) {
        isa.run(Encode { levels: self, weights, codes });
    }

    /// ‖W − Ŵ‖², term by term: exactly 0 where the weights are such values already.
    pub(super) fn squared_error(&self, unit: &Unit<'_>) -> f64 {
        let error = |x: f64| x - f64::from(self.values[self.nearest(x)]);
        unit.sum(
            |slice| on_slice!(slice, w => w.iter().map(|w| error(w.magnitude().to_f64()).powi(2)).sum()),
            |a: f64, b| a + b,
        )
    }
}

struct Encode<'a, 'c, W> {
    levels: &'a Levels,
    weights: &'a [W],
    codes: &'a mut [&'c mut [u8]],
}

impl<W: Weight> Task for Encode<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        const RUN: usize = 64;
        let Levels { midpoints, codes: table, .. } = self.levels;
        for (at, weights) in self.weights.chunks(RUN).enumerate() {
            let mut level = [0u8; RUN];
            for &midpoint in midpoints {
                let midpoint = W::floor_from(midpoint);
                level.iter_mut().zip(weights).for_each(|(level, w)| *level += u8::from(w.magnitude() > midpoint));
            }
            for (p, codes) in self.codes.iter_mut().enumerate() {
                let codes = codes[at * RUN..].iter_mut().zip(weights).zip(level);
                codes.for_each(|((code, &w), level)| {
                    let up = table[usize::from(level)][p];
                    *code = if w < W::default() { 2 - up } else { up };
                });
            }
        }
    }
}
