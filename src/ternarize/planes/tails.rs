//! What a fit of several planes has to know of the weights: how many take each value, and their sum. Not here: what
//! is made of that ([`super`]).

use super::levels::{LEVELS, Levels};
use crate::ternarize::Unit;
use crate::ternarize::unit::{Data, Slice, on_slice};
use crate::vector::block::AboveOf;
use crate::vector::weight::Weight;

/// The weights above each midpoint: how many, and Σ|w|; and before them all weights.
#[derive(Clone, Copy)]
pub(super) struct Tails([(u64, f64); LEVELS]);

impl Default for Tails {
    fn default() -> Self {
        Self([(0, 0.0); LEVELS])
    }
}

/// What is fitted: weights that share their scales, and those in memory also in order, so that a look at them does
/// not take a pass.
pub(super) struct Weights<'a> {
    pub unit: &'a Unit<'a>,
    /// Magnitudes, smallest first, and what the first k of them add up to.
    pub sorted: Option<(Vec<f64>, Vec<f64>)>,
}

impl<'a> Weights<'a> {
    pub fn new(unit: &'a Unit<'a>) -> Self {
        let sorted = match unit.data() {
            Data::F32(weights) => Some(sorted(weights)),
            Data::F64(weights) => Some(sorted(weights)),
            Data::Long(_) => None,
        };
        Self { unit, sorted }
    }
}

/// Magnitudes, smallest first, and their sums.
fn sorted<W: Weight>(weights: &[W]) -> (Vec<f64>, Vec<f64>) {
    let mut bits: Vec<W::Bits> = weights.iter().map(|w| w.magnitude_bits()).collect();
    bits.sort_unstable();
    let magnitudes: Vec<f64> = bits.into_iter().map(|bits| W::from_bits(bits).to_f64()).collect();
    let mut sums = vec![0.0];
    sums.extend(magnitudes.iter().scan(0.0, |sum, x| {
        *sum += x;
        Some(*sum)
    }));
    (magnitudes, sums)
}

impl Tails {
    pub fn of(weights: &Weights<'_>, levels: &Levels) -> Self {
        let Some((magnitudes, sums)) = &weights.sorted else { return Self::by_passes(weights.unit, levels) };
        let (n, mut below, mut tails) = (magnitudes.len(), 0, Self::default());
        tails.0[0] = (n as u64, sums[n]);
        for (tail, &midpoint) in tails.0[1..].iter_mut().zip(&levels.midpoints) {
            below += magnitudes[below..].partition_point(|&x| x <= midpoint);
            *tail = ((n - below) as u64, sums[n] - sums[below]);
        }
        tails
    }

    fn by_passes(unit: &Unit<'_>, levels: &Levels) -> Self {
        let isa = unit.isa();
        let mut tails = unit.sum(
            |slice| {
                on_slice!(slice, weights => {
                    let mut tails = Self::default();
                    for (tail, &delta) in tails.0[1..].iter_mut().zip(&levels.midpoints) {
                        let above = isa.run(AboveOf { weights, delta });
                        *tail = (above.count, above.sum);
                    }
                    tails
                })
            },
            |mut all, next| {
                all.0.iter_mut().zip(next.0).for_each(|(a, b)| *a = (a.0 + b.0, a.1 + b.1));
                all
            },
        );
        tails.0[0] = (unit.len() as u64, unit.moments().sum);
        tails
    }

    /// How many weights take level k, and Σ|w| over them. (Cancelled meanwhile, sums need not fit
    /// together.)
    pub fn level(&self, k: usize) -> (f64, f64) {
        let (above, next) = (self.0[k], self.0.get(k + 1).copied().unwrap_or_default());
        (above.0.saturating_sub(next.0) as f64, above.1 - next.1)
    }
}

/// About so many weights stand for many more, where it is only about starts.
const SAMPLE: usize = 1 << 16;

/// One of each run of weights, in no regular places: weights far apart can belong to the same input.
pub(super) fn sample(unit: &Unit<'_>) -> Vec<f64> {
    let length = unit.len().div_ceil(SAMPLE);
    let pick = |(i, first): (usize, f64)| {
        let mixed = (i as u64 ^ first.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize
    };
    unit.sum(
        |slice| {
            on_slice!(slice, weights => {
                let runs = weights.chunks(length).enumerate();
                runs.map(|(i, run)| run[pick((i, run[0].to_f64())) % run.len()].to_f64()).collect()
            })
        },
        |all: Vec<f64>, next| [all, next].concat(),
    )
}
