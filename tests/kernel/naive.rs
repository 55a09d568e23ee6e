//! Ternary matrices as plain numbers, packed by an own packer; their products in `f64`, one weight
//! after the other; and how far from them the documentation lets a product be. Nothing of
//! `twn_pack::kernel` is used but the view that is handed to it.

use std::fmt;
use std::ops::Range;

use ndarray::{Array2, ArrayView2};
use twn_pack::kernel::{Arithmetic, PackedMatrix};
use twn_pack::{Encoding, Granularity};

use crate::common::Random;

pub const ENCODINGS: [Encoding; 3] = [Encoding::T2, Encoding::T5, Encoding::B1];

/// What one rounding to `f32` adds at most, relatively; and a hair for errors of second order.
const UNIT: f64 = 1.001 / (1u64 << 24) as f64;

/// The smallest `f32`: what one rounding adds at most where numbers are too small for `UNIT`.
const LEAST: f64 = 1.5e-45;

/// Σ_p α_p·T_p.
pub struct Weights {
    pub encoding: Encoding,
    pub planes: usize,
    pub filters: usize,
    pub n: usize,
    pub granularity: Granularity,
    /// `[planes][filters][n]`: −1, 0 or 1.
    pub t: Vec<i8>,
    /// `[planes][filters][groups]`, or one per plane.
    pub scales: Vec<f32>,
    /// `[planes][filters][bytes]`
    pub codes: Vec<u8>,
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { planes, filters, n, .. } = self;
        let encoding = self.encoding.name();
        write!(f, "{encoding} of {planes} planes × {filters} filters × {n} weights, scales per {}", self.granularity)
    }
}

impl Weights {
    /// From a rule for t and one for the scales.
    pub fn new(
        encoding: Encoding,
        [planes, filters, n]: [usize; 3],
        granularity: Granularity,
        mut t: impl FnMut(usize) -> i8,
        mut scale: impl FnMut() -> f32,
    ) -> Self {
        let t: Vec<i8> = (0..planes * filters * n).map(&mut t).collect();
        let per_plane = match granularity {
            Granularity::Tensor => 1,
            Granularity::Filter => filters,
            Granularity::Group(size) => filters * (n as u64).div_ceil(size) as usize,
        };
        let scales = (0..planes * per_plane).map(|_| scale()).collect();
        let codes = t.chunks(n.max(1)).flat_map(|t| pack(encoding, t)).collect();
        Self { encoding, planes, filters, n, granularity, t, scales, codes }
    }

    pub fn random(random: &mut Random, encoding: Encoding, shape: [usize; 3], granularity: Granularity) -> Self {
        let (mut signs, mut sizes) = (Random(random.bits()), Random(random.bits()));
        let t = |_| match encoding {
            Encoding::B1 => signs.below(2) as i8 * 2 - 1,
            Encoding::T2 | Encoding::T5 => signs.below(3) as i8 - 1,
        };
        Self::new(encoding, shape, granularity, t, || (0.1 + sizes.unit()) as f32)
    }

    /// All weights the same, all scales 1.
    pub fn all(encoding: Encoding, n: usize, t: i8) -> Self {
        Self::new(encoding, [1, 1, n], Granularity::Filter, |_| t, || 1.0)
    }

    pub fn packed(&self) -> PackedMatrix<'_> {
        self.packed_from(&self.codes)
    }

    /// With these codes instead.
    pub fn packed_from<'a>(&'a self, codes: &'a [u8]) -> PackedMatrix<'a> {
        let shape = [self.planes, self.filters, self.n];
        PackedMatrix::from_parts(self.encoding, shape, self.granularity, codes, self.scales.as_slice()).unwrap()
    }

    pub fn t(&self, plane: usize, filter: usize, j: usize) -> i8 {
        self.t[(plane * self.filters + filter) * self.n + j]
    }

    pub fn alpha(&self, plane: usize, filter: usize, j: usize) -> f64 {
        let index = match self.granularity {
            Granularity::Tensor => plane,
            Granularity::Filter => plane * self.filters + filter,
            Granularity::Group(size) => {
                let groups = (self.n as u64).div_ceil(size) as usize;
                (plane * self.filters + filter) * groups + (j as u64 / size) as usize
            }
        };
        f64::from(self.scales[index])
    }

    /// Weights that share a scale, where a filter has several scales.
    fn group(&self) -> Option<usize> {
        match self.granularity {
            Granularity::Group(size) if size < self.n as u64 => Some(size as usize),
            _ => None,
        }
    }

    /// How many roundings the documentation counts for a product with so many columns.
    fn roundings(&self, arithmetic: Arithmetic, filters: usize, columns: usize) -> f64 {
        let (n, planes) = (self.n as f64, self.planes as f64);
        let lane = match self.encoding {
            Encoding::T2 => 16,
            Encoding::T5 => 20,
            Encoding::B1 => 32,
        };
        // Groups that are not whole lanes are filled up.
        let (n, group) = match self.group() {
            Some(g) if g % lane != 0 => {
                let filled = g.next_multiple_of(16);
                ((self.n.div_ceil(g) * filled) as f64, Some(filled))
            }
            group => (n, group),
        };
        let many = columns >= 8 && filters * columns.min(16) >= 1024;
        match arithmetic {
            Arithmetic::ExactF32 if many => {
                let g = group.unwrap_or(self.n).max(1) as f64;
                g / 16.0 + n / g + 6.0 + planes
            }
            Arithmetic::ExactF32 => n / 16.0 + 38.0 + planes,
            Arithmetic::Int8 => n / group.unwrap_or(256).min(256) as f64 + 14.0 + planes,
        }
    }
}

/// The bytes of one filter, as the specification has them; the last one filled up with zero weights.
pub fn pack(encoding: Encoding, t: &[i8]) -> Vec<u8> {
    let byte = |t: &[i8]| {
        let code = |j: usize| (t.get(j).copied().unwrap_or(0) + 1) as u8;
        match encoding {
            Encoding::T2 => (0..4).map(|j| code(j) << (2 * j)).sum(),
            Encoding::T5 => (0..5).map(|j| code(j) * 3u8.pow(j as u32)).sum(),
            Encoding::B1 => (0..8).map(|j| (code(j) / 2) << j).sum(),
        }
    };
    t.chunks(encoding.weights_per_byte()).map(byte).collect()
}

/// What products have to be, and how far from it they may be: filters × columns each.
pub struct Expected {
    /// Σ α·t·x over the weights that are not zero.
    pub y: Array2<f64>,
    pub exact_error: Array2<f64>,
    /// Besides what is in `rounded_error`: s/2·Σ|ŵ|.
    pub int8_error: Array2<f64>,
    /// The same sum of activations that were rounded to 8 bits: Σ α·t·s·q.
    pub rounded: Array2<f64>,
    /// Roundings of `f32`, and steps where x lies so near the middle between two that either is right.
    pub rounded_error: Array2<f64>,
}

impl Expected {
    /// Each column is rounded for itself.
    pub fn of_columns(w: &Weights, filters: Range<usize>, x: ArrayView2<'_, f32>) -> Self {
        let largest = |x: ndarray::ArrayView1<'_, f32>| x.iter().fold(0.0, |max, &x| larger(max, f64::from(x)));
        let largest: Vec<f64> = x.columns().into_iter().map(largest).collect();
        Self::new(w, filters, x, &largest)
    }

    /// `largest` is the largest magnitude among the activations that are rounded together with
    /// each column; NaN or infinity if there is such a thing among them.
    pub fn new(w: &Weights, filters: Range<usize>, x: ArrayView2<'_, f32>, largest: &[f64]) -> Self {
        let (n, columns) = x.dim();
        assert_eq!((n, columns), (w.n, largest.len()));
        let zeros = || Array2::zeros((filters.len(), columns));
        let mut this =
            Self { y: zeros(), exact_error: zeros(), int8_error: zeros(), rounded: zeros(), rounded_error: zeros() };
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let (mut q, mut near) = (x.clone(), x.clone());
        for (i, x) in x.iter().enumerate() {
            let step = largest[i % columns] / 127.0;
            let steps = if step == 0.0 { 0.0 } else { x / step };
            q[i] = step * steps.round_ties_even();
            near[i] = if (steps.fract().abs() - 0.5).abs() < 1e-4 { step } else { 0.0 };
        }
        let exact_unit = UNIT * w.roundings(Arithmetic::ExactF32, filters.len(), columns);
        let int8_unit = UNIT * w.roundings(Arithmetic::Int8, filters.len(), columns);
        for (row, filter) in filters.enumerate() {
            let mut weights = 0.0;
            for j in 0..n {
                let (mut sum, mut size) = (0.0, 0.0);
                for plane in 0..w.planes {
                    let weight = w.alpha(plane, filter, j) * f64::from(w.t(plane, filter, j));
                    if w.t(plane, filter, j) == 0 {
                        continue;
                    }
                    sum += weight;
                    size += weight.abs();
                    for c in 0..columns {
                        this.y[[row, c]] += weight * x[j * columns + c];
                        this.rounded[[row, c]] += weight * q[j * columns + c];
                    }
                }
                weights += sum.abs();
                if size == 0.0 {
                    continue;
                }
                for (c, &largest) in largest.iter().enumerate() {
                    let i = j * columns + c;
                    let rounding = size * (int8_unit * largest + 127.0 * LEAST);
                    this.exact_error[[row, c]] += exact_unit * size * x[i].abs();
                    this.rounded_error[[row, c]] += rounding + sum.abs() * near[i];
                }
            }
            let least = LEAST * (w.planes * (n + 32)) as f64;
            for (c, &largest) in largest.iter().enumerate() {
                // A vector that is not finite has no scale, whatever the weights are.
                if w.planes > 0 && !largest.is_finite() {
                    this.rounded[[row, c]] = f64::NAN;
                }
                this.exact_error[[row, c]] += least;
                this.rounded_error[[row, c]] += least;
                this.int8_error[[row, c]] = weights * largest / 254.0;
            }
        }
        this
    }

    /// With something added to every filter first, which is rounded once per plane.
    pub fn with_bias(mut self, bias: &[f32], planes: usize) -> Self {
        for (row, &bias) in bias.iter().enumerate() {
            let (bias, error) = (f64::from(bias), UNIT * planes as f64 * f64::from(bias).abs());
            self.y.row_mut(row).mapv_inplace(|y| y + bias);
            self.rounded.row_mut(row).mapv_inplace(|y| y + bias);
            self.exact_error.row_mut(row).mapv_inplace(|e| e + error);
            self.rounded_error.row_mut(row).mapv_inplace(|e| e + error);
        }
        self
    }

    /// `y` is within the bounds; where the sum is infinite or not a number, so is `y`.
    pub fn assert_holds(&self, arithmetic: Arithmetic, y: ArrayView2<'_, f32>, case: impl Fn() -> String) {
        assert_eq!(y.dim(), self.y.dim(), "{}", case());
        for ((at, &y), &exact) in y.indexed_iter().zip(&self.y) {
            let (y, rounded) = (f64::from(y), self.rounded[at]);
            match arithmetic {
                Arithmetic::ExactF32 if exact.is_finite() => {
                    let limit = self.exact_error[at];
                    assert!((y - exact).abs() <= limit, "{}, {at:?}: {y:e} for {exact:e} ± {limit:e}", case());
                }
                Arithmetic::ExactF32 => {
                    assert!(y == exact || y.is_nan() && exact.is_nan(), "{}, {at:?}: {y} for {exact}", case());
                }
                Arithmetic::Int8 if rounded.is_finite() => {
                    let (limit, more) = (self.rounded_error[at], self.int8_error[at]);
                    assert!((y - rounded).abs() <= limit, "{}, {at:?}: {y:e} for {rounded:e} ± {limit:e}", case());
                    let limit = limit + more;
                    assert!((y - exact).abs() <= limit, "{}, {at:?}: {y:e} for {exact:e} ± {limit:e}", case());
                }
                Arithmetic::Int8 => assert!(y.is_nan(), "{}, {at:?}: {y} for NaN", case()),
            }
        }
    }
}

/// The larger magnitude, above which stands NaN.
pub fn larger(max: f64, x: f64) -> f64 {
    if max.is_nan() || x.is_nan() { f64::NAN } else { max.max(x.abs()) }
}
