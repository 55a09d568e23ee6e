//! Activations as the tiles want them: rounded to 8 bits or not, and laid down in the order in
//! which weights come out of their bytes, so that 64 bytes of codes meet 64 neighbouring
//! activations. Costs O(n) per column, against O(n·filters) for the product.
//! Not here: the products.

use ndarray::{ArrayView2, Axis, s};

use super::digits::Digits;
use super::lanes::{CHUNK, LANES, Line8, Line32};
use crate::vector::Task;

/// Columns that are laid down together, so that whole cache lines of a row-major X are used.
pub(super) const BLOCK: usize = 16;

/// Weights of the longest chunk, that of `b1`.
const LONGEST: usize = CHUNK * 8;

/// What multiplies an 8-bit column: x ≈ scale·q, and the sum of its q.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quantized {
    pub scale: f32,
    pub sum: i64,
}

/// Largest |x| as bits, which order as magnitudes do: infinity above all numbers, NaN above infinity.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> u32 {
    x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff))
}

/// Rounds to the nearest of 255 steps, ties to even.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quantizer {
    /// Lifts the smallest of numbers, whose reciprocals would be infinite.
    lift: f32,
    steps: f32,
    pub scale: f32,
}

impl Quantizer {
    /// For numbers up to the one with these bits. NaN or infinity among them makes the scale, and
    /// with it the product, NaN.
    pub fn new(largest: u32) -> Self {
        let max = f32::from_bits(largest);
        if largest == 0 || !max.is_finite() {
            return Self { lift: 0.0, steps: 0.0, scale: if largest == 0 { 0.0 } else { f32::NAN } };
        }
        let lift = if max < 1e-30 { 1.0e30 } else { 1.0 };
        Self { lift, steps: 127.0 / (max * lift), scale: max / 127.0 }
    }

    #[inline(always)]
    pub fn round(self, x: f32) -> i8 {
        // Adding 1.5·2²³ leaves the rounded number in the lowest bits.
        (x * self.lift * self.steps + 12_582_912.0).to_bits() as i8
    }
}

/// Lays down one column per `x_rows` columns of X (n × at most [`BLOCK`]); `lines` has `PER_BYTE`
/// lines per chunk and column, `sums` the sums per lane and chunk, where they are wanted.
pub(super) struct Pack8<'a, D> {
    pub x: ArrayView2<'a, f32>,
    pub lines: &'a mut [Line8],
    pub columns: &'a mut [Quantized],
    pub sums: &'a mut [[i32; LANES]],
    pub digits: std::marker::PhantomData<D>,
}

impl<D: Digits> Task for Pack8<'_, D> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let (n, columns) = self.x.dim();
        let chunks = n.div_ceil(D::PER_CHUNK);
        let quantizers = maxima(self.x).map(Quantizer::new);
        let mut block = [[0.0; LONGEST]; BLOCK];
        for (column, quantizer) in self.columns.iter_mut().zip(quantizers) {
            *column = Quantized { scale: quantizer.scale, sum: 0 };
        }
        for i in 0..chunks {
            let range = i * D::PER_CHUNK..((i + 1) * D::PER_CHUNK).min(n);
            gather(self.x.slice(s![range.clone(), ..]), &mut block);
            for c in 0..columns {
                let mut rounded = [0; LONGEST];
                for (q, &x) in rounded[..D::PER_CHUNK].iter_mut().zip(&block[c][..range.len()]) {
                    *q = quantizers[c].round(x);
                }
                let lines = &mut self.lines[(c * chunks + i) * D::PER_BYTE..][..D::PER_BYTE];
                let sums = lay_down::<D>(&rounded, lines);
                self.columns[c].sum += sums.iter().map(|&sum| i64::from(sum)).sum::<i64>();
                if let Some(place) = self.sums.get_mut(c * chunks + i) {
                    *place = sums;
                }
            }
        }
    }
}

/// One chunk into its lines; the sums per lane.
#[inline(always)]
fn lay_down<D: Digits>(rounded: &[i8; LONGEST], lines: &mut [Line8]) -> [i32; LANES] {
    for (k, line) in lines.iter_mut().enumerate() {
        let weight = D::weight(k);
        for (byte, x) in line.0.iter_mut().enumerate() {
            *x = rounded[byte * D::PER_BYTE + weight];
        }
    }
    let mut sums = [0; LANES];
    for (lane, sum) in sums.iter_mut().enumerate() {
        *sum = rounded[lane * D::PER_LANE..][..D::PER_LANE].iter().map(|&q| i32::from(q)).sum();
    }
    sums
}

/// The same without rounding: `lines` has `PER_LANE` lines per chunk and column.
pub(super) struct Pack32<'a, D> {
    pub x: ArrayView2<'a, f32>,
    pub lines: &'a mut [Line32],
    pub digits: std::marker::PhantomData<D>,
}

impl<D: Digits> Task for Pack32<'_, D> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let (n, columns) = self.x.dim();
        let chunks = n.div_ceil(D::PER_CHUNK);
        let mut block = [[0.0; LONGEST]; BLOCK];
        for i in 0..chunks {
            let range = i * D::PER_CHUNK..((i + 1) * D::PER_CHUNK).min(n);
            block.iter_mut().for_each(|column| column[range.len()..D::PER_CHUNK].fill(0.0));
            gather(self.x.slice(s![range, ..]), &mut block);
            for (c, column) in block[..columns].iter().enumerate() {
                let lines = &mut self.lines[(c * chunks + i) * D::PER_LANE..][..D::PER_LANE];
                for (step, line) in lines.iter_mut().enumerate() {
                    let weight = weight_of_step::<D>(step);
                    for (lane, x) in line.0.iter_mut().enumerate() {
                        *x = column[lane * D::PER_LANE + weight];
                    }
                }
            }
        }
    }
}

/// Which weight of its lane the activations of a step belong to.
#[inline(always)]
fn weight_of_step<D: Digits>(step: usize) -> usize {
    let per_word = D::PER_LANE / D::WORDS;
    D::weight_of_word(step / per_word, step % per_word)
}

/// The largest magnitude of each column.
#[inline(always)]
fn maxima(x: ArrayView2<'_, f32>) -> [u32; BLOCK] {
    let mut maxima = [0; BLOCK];
    for (max, column) in maxima.iter_mut().zip(x.columns()) {
        match column.as_slice() {
            Some(column) => *max = largest(column),
            None => {
                // Row by row, as it lies in memory.
                for row in x.rows() {
                    for (max, x) in maxima.iter_mut().zip(row) {
                        *max = (*max).max(x.to_bits() & 0x7fff_ffff);
                    }
                }
                break;
            }
        }
    }
    maxima
}

/// Columns into rows of `block`.
#[inline(always)]
fn gather(x: ArrayView2<'_, f32>, block: &mut [[f32; LONGEST]; BLOCK]) {
    if x.stride_of(Axis(0)) == 1 {
        for (column, x) in block.iter_mut().zip(x.columns()) {
            column.iter_mut().zip(x).for_each(|(to, &x)| *to = x);
        }
    } else {
        for (j, row) in x.rows().into_iter().enumerate() {
            block.iter_mut().zip(row).for_each(|(column, &x)| column[j] = x);
        }
    }
}
