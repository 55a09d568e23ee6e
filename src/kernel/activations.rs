//! Activations as the tiles want them: rounded to 8 bits or not, and laid down in the order in
//! which weights come out of their bytes, so that 64 bytes of codes meet 64 neighbouring
//! activations. Costs O(n) per column, against O(n·filters) for the product.
//! Not here: the products.

use std::marker::PhantomData;

use ndarray::{ArrayView1, ArrayView2, Axis, s};

use super::digits::Digits;
use super::lanes::{CHUNK, LANES, Line8, Line32};
use crate::pack::Encoding;
#[cfg(target_arch = "x86_64")]
use crate::vector::Avx512;
use crate::vector::Task;

/// Columns that are laid down together, so that whole cache lines of a row-major X are used.
pub(super) const BLOCK: usize = 16;

/// The same in 8 bits, where there are many: rows that are far apart are read in longer runs.
const WIDE: usize = 4 * BLOCK;

/// Weights of the longest chunk, that of `b1`.
pub(super) const LONGEST: usize = CHUNK * 8;

/// What multiplies an 8-bit column: x ≈ scale·q, and the sum of its q.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quantized {
    pub scale: f32,
    pub sum: i64,
}

/// |x| as bits, which order as magnitudes do: infinity above all numbers, NaN above infinity.
#[inline(always)]
pub(super) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Rounds to the nearest of 255 steps, ties to even.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quantizer {
    /// Lifts the smallest of numbers, whose reciprocals would be infinite.
    pub lift: f32,
    pub steps: f32,
    /// The width of a step.
    pub scale: f32,
}

impl Quantizer {
    /// For numbers up to the one with these bits ([`magnitude`]). NaN or infinity among them makes
    /// the scale, and with it every product, NaN.
    pub fn new(largest: u32) -> Self {
        let max = f32::from_bits(largest);
        if largest == 0 || !max.is_finite() {
            return Self { lift: 0.0, steps: 0.0, scale: if largest == 0 { 0.0 } else { f32::NAN } };
        }
        let lift = if max < 1e-30 { 1e30 } else { 1.0 };
        Self { lift, steps: 127.0 / (max * lift), scale: max / 127.0 }
    }

    #[inline(always)]
    pub fn round(self, x: f32) -> i8 {
        round(x, self.lift, self.steps)
    }
}

#[inline(always)]
fn round(x: f32, lift: f32, steps: f32) -> i8 {
    // Adding 1.5·2²³ leaves the rounded number in the lowest bits.
    (x * lift * steps + 12_582_912.0).to_bits() as i8
}

/// Lays down the columns of X, n × any, in 8 bits. `lines` has `PER_BYTE` lines per
/// chunk and column, `sums` the sums per column, chunk and lane.
pub(super) struct Pack8<'a, D> {
    pub x: ArrayView2<'a, f32>,
    pub lines: &'a mut [Line8],
    pub columns: &'a mut [Quantized],
    pub sums: &'a mut [[i32; LANES]],
    pub digits: PhantomData<D>,
}

impl<D: Digits> Task for Pack8<'_, D> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let width = if self.x.ncols() < 2 * WIDE { BLOCK } else { WIDE };
        for mut part in self.blocks(width) {
            match part.x.ncols() {
                _ if is_tall(part.x) => part.columns(),
                ..=BLOCK => part.rows::<BLOCK>(),
                _ => part.rows::<WIDE>(),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) {
        if is_tall(self.x) && D::ENCODING == Encoding::T2 {
            let Self { x, lines, columns, sums, .. } = self;
            super::lanes::pack8_runs(proof, Pack8 { x, lines, columns, sums, digits: PhantomData });
        } else if is_tall(self.x) || self.x.strides()[1] != 1 || self.x.ncols() <= 2 * BLOCK {
            // What the compiler makes of it for AVX2 scatters no bytes; of few columns it is the fastest.
            proof.avx2().run(self);
        } else {
            super::lanes::pack8(proof, self);
        }
    }
}

impl<'a, D: Digits> Pack8<'a, D> {
    /// The same of at most so many columns each.
    #[inline(always)]
    pub fn blocks(self, width: usize) -> impl Iterator<Item = Pack8<'a, D>> {
        let Self { x, lines, columns, sums, digits } = self;
        let chunks = x.nrows().div_ceil(D::PER_CHUNK);
        let parts = lines.chunks_mut(width * chunks * D::PER_BYTE).zip(columns.chunks_mut(width));
        let parts = parts.zip(sums.chunks_mut(width * chunks)).zip((0..x.ncols()).step_by(width));
        parts.map(move |(((lines, columns), sums), first)| {
            let x = x.slice_move(s![.., first..x.ncols().min(first + width)]);
            Pack8 { x, lines, columns, sums, digits }
        })
    }

    /// Column by column, where each lies in one run.
    #[inline(always)]
    fn columns(&mut self) {
        let chunks = self.x.nrows().div_ceil(D::PER_CHUNK);
        let mut rounded = [0; LONGEST];
        for (c, column) in self.x.columns().into_iter().enumerate() {
            let x = column.to_slice().unwrap_or_default();
            let quantizer = Quantizer::new(x.iter().fold(0, |max, &x| max.max(magnitude(x))));
            let mut total = 0;
            for (i, x) in x.chunks(D::PER_CHUNK).enumerate() {
                rounded[x.len()..].fill(0);
                rounded.iter_mut().zip(x).for_each(|(q, &x)| *q = quantizer.round(x));
                let lines = &mut self.lines[(c * chunks + i) * D::PER_BYTE..][..D::PER_BYTE];
                for (k, line) in lines.iter_mut().enumerate() {
                    let weight = D::weight(k);
                    for (q, rounded) in line.0.iter_mut().zip(rounded.chunks_exact(D::PER_BYTE)) {
                        *q = rounded[weight];
                    }
                }
                let sums: [i32; LANES] = std::array::from_fn(|lane| {
                    rounded[lane * D::PER_LANE..][..D::PER_LANE].iter().map(|&q| i32::from(q)).sum()
                });
                total += sums.iter().map(|&sum| i64::from(sum)).sum::<i64>();
                self.sums[c * chunks + i] = sums;
            }
            self.columns[c] = Quantized { scale: quantizer.scale, sum: total };
        }
    }

    /// Row by row, all columns at once.
    #[inline(always)]
    fn rows<const B: usize>(&mut self) {
        let (n, columns) = self.x.dim();
        let chunks = n.div_ceil(D::PER_CHUNK);
        let mut largest = [0; B];
        for x in self.x.rows() {
            for (max, x) in largest.iter_mut().zip(filled_up::<B>(x)) {
                *max = (*max).max(magnitude(x));
            }
        }
        let quantizers = largest.map(Quantizer::new);
        // One array each, so that a vector can load them.
        let (lifts, steps) = (quantizers.map(|q| q.lift), quantizers.map(|q| q.steps));
        let mut totals = [0; B];
        let mut rounded = [[0; B]; LONGEST];
        for (i, x) in self.x.axis_chunks_iter(Axis(0), D::PER_CHUNK).enumerate() {
            for (rounded, x) in rounded.iter_mut().zip(x.rows()) {
                let x = filled_up::<B>(x);
                for c in 0..B {
                    rounded[c] = round(x[c], lifts[c], steps[c]);
                }
            }
            rounded[x.nrows()..D::PER_CHUNK].fill([0; B]);
            for c in 0..columns {
                let lines = &mut self.lines[(c * chunks + i) * D::PER_BYTE..][..D::PER_BYTE];
                for (k, line) in lines.iter_mut().enumerate() {
                    let weight = D::weight(k);
                    for (q, rows) in line.0.iter_mut().zip(rounded.chunks_exact(D::PER_BYTE)) {
                        *q = rows[weight][c];
                    }
                }
            }
            let mut sums = [[0; B]; LANES];
            for (sums, rounded) in sums.iter_mut().zip(rounded.chunks_exact(D::PER_LANE)) {
                for rounded in rounded {
                    sums.iter_mut().zip(rounded).for_each(|(sum, &q)| *sum += i32::from(q));
                }
                totals.iter_mut().zip(sums).for_each(|(total, &mut sum)| *total += i64::from(sum));
            }
            (0..columns).for_each(|c| self.sums[c * chunks + i] = sums.map(|sums| sums[c]));
        }
        for ((column, quantizer), sum) in self.columns.iter_mut().zip(quantizers).zip(totals) {
            *column = Quantized { scale: quantizer.scale, sum };
        }
    }
}

/// Lays down the columns of X, n × at most [`BLOCK`], as they are: `PER_LANE` lines per chunk and column.
pub(super) struct Pack32<'a, D> {
    pub x: ArrayView2<'a, f32>,
    pub lines: &'a mut [Line32],
    pub digits: PhantomData<D>,
}

impl<D: Digits> Task for Pack32<'_, D> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let (n, columns) = self.x.dim();
        let chunks = n.div_ceil(D::PER_CHUNK);
        if is_tall(self.x) {
            let mut padded = [0.0; LONGEST];
            for (c, column) in self.x.columns().into_iter().enumerate() {
                for (i, x) in column.to_slice().unwrap_or_default().chunks(D::PER_CHUNK).enumerate() {
                    padded[..x.len()].copy_from_slice(x);
                    padded[x.len()..].fill(0.0);
                    let lines = &mut self.lines[(c * chunks + i) * D::PER_LANE..][..D::PER_LANE];
                    for (step, line) in lines.iter_mut().enumerate() {
                        let weight = D::weight_of_step(step);
                        for (lane, to) in line.0.iter_mut().enumerate() {
                            *to = padded[lane * D::PER_LANE + weight];
                        }
                    }
                }
            }
            return;
        }
        for i in 0..chunks {
            for step in 0..D::PER_LANE {
                let weight = D::weight_of_step(step);
                let mut rows = [[0.0; BLOCK]; LANES];
                for (lane, to) in rows.iter_mut().enumerate() {
                    *to = row(self.x, i * D::PER_CHUNK + lane * D::PER_LANE + weight);
                }
                for c in 0..columns {
                    let line = &mut self.lines[(c * chunks + i) * D::PER_LANE + step];
                    for (to, row) in line.0.iter_mut().zip(&rows) {
                        *to = row[c];
                    }
                }
            }
        }
    }
}

/// Whether every column lies in one run.
#[inline(always)]
fn is_tall(x: ArrayView2<'_, f32>) -> bool {
    x.strides()[0] == 1 || x.nrows() == 1
}

/// Row `j`, filled up with zeros; nothing but zeros where X has no more rows.
#[inline(always)]
pub(super) fn row(x: ArrayView2<'_, f32>, j: usize) -> [f32; BLOCK] {
    if j < x.nrows() { filled_up(x.row(j)) } else { [0.0; BLOCK] }
}

/// A row of at most `B` columns, and zeros.
#[inline(always)]
fn filled_up<const B: usize>(x: ArrayView1<'_, f32>) -> [f32; B] {
    let mut row = [0.0; B];
    match x.to_slice() {
        Some(x) => match x.as_array() {
            Some(x) => return *x,
            None => row[..x.len()].copy_from_slice(x),
        },
        None => row.iter_mut().zip(x).for_each(|(to, &x)| *to = x),
    }
    row
}
