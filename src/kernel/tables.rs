//! Many filters × 16 columns by tables: what a byte of codes selects is looked up, not added up anew.
//!
//! ```text
//! for each word of 16 weights, 4 bytes of codes:
//!     for each byte k: table[k][codes] = Σ ±x over its 4 weights   (81 rows of 16 columns, an addition each)
//!     for each filter: s += (table[0] + table[1]) + (table[2] + table[3])
//! where weights that share a scale end:  y[filter] += α·s
//! ```
//!
//! Per 16 weights × 16 columns a filter costs 4 loads and 4 additions, and the tables 81·4 additions and
//! stores for all filters together. Codes of every encoding become words of `t2`, filter by filter,
//! once for all columns of a panel.
//!
//! The additions and their order are the same for every instruction set and number of threads. Of a
//! run of g weights that share a scale there are at most g/16 + 1 words, whose sums are added one after
//! the other (the first to 0, which is exact), and 4 roundings within a word: with the scale, and the
//! sums of n/g runs, at most (g/16 + n/g + 6)·2⁻²⁴·Σ|α·x| to first order.
//! Whole numbers up to 127 stay exact: a run is scaled after [`FLUSH`] words, whose sum is less than 2²³.
//! Not here: the layout of x ([`super::rows`]), when this way is taken ([`super::Kernel`]).

use ndarray::{ArrayViewMut2, s};

use super::PackedMatrix;
use super::activations::BLOCK;
use super::digits::{B1, T2, T5, WORD, word};
use super::lanes::{LANES, Lanes, Line32, Portable};
#[cfg(target_arch = "x86_64")]
use super::lanes::{Ymm, Zmm};
use super::rows::Rows;
use super::tile::map;
use crate::pack::Encoding;
use crate::vector::Task;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};

/// Filters whose sums are kept at a time, next to the tables, in the nearest cache.
pub(super) const FILTERS: usize = 256;

/// Words after which a sum is scaled, whether or not its run ends.
const FLUSH: usize = 1 << 12;

/// Bytes of a word.
const BYTES: usize = 4;

const ZERO: Line32 = Line32([0.0; LANES]);

/// What a byte of codes gives for each of the 4 bytes of a word. Those with a code of 3 are never asked for.
type Tables = [[Line32; BYTES]; 256];

/// Adds to `y` the part of W·X that it is.
pub(super) struct TableProduct<'a> {
    pub w: &'a PackedMatrix<'a>,
    pub x: Rows<'a>,
    /// The filter and the column of the first element of `y`; columns in whole blocks.
    pub first: [usize; 2],
    pub y: ArrayViewMut2<'a, f32>,
    /// Room for the words of [`FILTERS`] filters, or of as many as there are.
    pub words: &'a mut [u32],
}

/// What stays in the cache.
struct Memory {
    tables: Tables,
    sums: [Line32; FILTERS],
    totals: [Line32; FILTERS],
}

impl TableProduct<'_> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let mut memory = Memory { tables: [[ZERO; BYTES]; 256], sums: [ZERO; FILTERS], totals: [ZERO; FILTERS] };
        let filters = self.y.nrows();
        let each = filters.div_ceil(filters.div_ceil(FILTERS));
        for plane in 0..self.w.planes() {
            for from in (0..filters).step_by(each) {
                let rows = from..filters.min(from + each);
                match self.w.encoding() {
                    Encoding::T2 => self.write_words(plane, rows.clone(), word::<T2>),
                    Encoding::T5 => self.write_words(plane, rows.clone(), word::<T5>),
                    Encoding::B1 => self.write_words(plane, rows.clone(), word::<B1>),
                }
                for column in (0..self.y.ncols()).step_by(BLOCK) {
                    self.block(lanes, &mut memory, plane, rows.clone(), column);
                }
            }
        }
    }

    /// The codes of some filters, word by word, each with all filters.
    #[inline(always)]
    fn write_words(&mut self, plane: usize, rows: std::ops::Range<usize>, word: impl Fn(&[u8], usize) -> u32) {
        let count = rows.len();
        // As many as make up a line of the cache.
        for from in (0..count).step_by(LANES) {
            let mut codes = [&[][..]; LANES];
            let filters = self.first[0] + rows.start + from..self.first[0] + rows.end;
            let used =
                codes.iter_mut().zip(filters).map(|(codes, filter)| *codes = self.w.codes(plane, filter)).count();
            for (words, j) in self.words.chunks_exact_mut(count).zip(self.x.runs.firsts()) {
                let words = &mut words[from..from + used];
                words.iter_mut().zip(codes).for_each(|(to, codes)| *to = word(codes, j));
            }
        }
    }

    /// Some filters with [`BLOCK`] columns.
    #[inline(always)]
    fn block<L: Lanes>(
        &mut self,
        lanes: L,
        Memory { tables, sums, totals }: &mut Memory,
        plane: usize,
        rows: std::ops::Range<usize>,
        column: usize,
    ) {
        let block = (self.first[1] + column) / BLOCK;
        let (words_per_run, words) = (self.x.runs.words_per_run(), self.x.runs.words());
        let x = &self.x.lines[block * words * WORD..(block + 1) * words * WORD];
        let (sums, totals) = (&mut sums[..rows.len()], &mut totals[..rows.len()]);
        sums.fill(ZERO);
        totals.fill(ZERO);
        let (scales, apart) = self.w.scales_from(plane, self.first[0] + rows.start);
        let (mut run, mut left, mut unscaled) = (0, words_per_run, 0);
        let all = x.as_chunks::<WORD>().0.iter().zip(self.words.chunks_exact(rows.len()));
        for (i, (x, codes)) in all.enumerate() {
            fill(lanes, x, tables);
            look_up(lanes, codes, tables, sums);
            (left, unscaled) = (left - 1, unscaled + 1);
            if left == 0 || unscaled == FLUSH || i + 1 == words {
                for (i, (sum, total)) in sums.iter_mut().zip(&mut *totals).enumerate() {
                    scale(lanes, scales[i * apart + run], sum, total);
                }
                unscaled = 0;
            }
            if left == 0 {
                (run, left) = (run + 1, words_per_run);
            }
        }
        let of_columns = &self.x.scales[block].0;
        let columns = column..self.y.ncols().min(column + BLOCK);
        for (mut y, total) in self.y.slice_mut(s![rows, columns]).rows_mut().into_iter().zip(totals) {
            let terms = total.0.iter().zip(of_columns).map(|(total, scale)| total * scale);
            match y.as_slice_mut() {
                Some(y) => y.iter_mut().zip(terms).for_each(|(y, term)| *y += term),
                None => y.iter_mut().zip(terms).for_each(|(y, term)| *y += term),
            }
        }
    }
}

/// Makes the tables of a word from the activations that it meets.
#[inline(always)]
fn fill<L: Lanes>(lanes: L, x: &[Line32; WORD], tables: &mut Tables) {
    /// Codes of two weights.
    const PAIRS: [usize; 9] = [0, 1, 2, 4, 5, 6, 8, 9, 10];
    for part in 0..L::PARTS {
        let zero = lanes.floats(&ZERO, part);
        for (k, x) in x.as_chunks::<4>().0.iter().enumerate() {
            let x = map(x.each_ref(), zero, |x| lanes.floats(x, part));
            let minus = map(x, zero, |x| lanes.negate(x));
            let pairs = |i: usize| {
                let ([a, b], [minus_a, minus_b]) = ([x[i], x[i + 1]], [minus[i], minus[i + 1]]);
                let sum = |a, b| lanes.plus(a, b);
                [sum(minus_a, minus_b), minus_b, sum(a, minus_b), minus_a, zero, a, sum(minus_a, b), b, sum(a, b)]
            };
            let (low, high) = (pairs(0), pairs(2));
            for (high, high_codes) in high.into_iter().zip(PAIRS) {
                for (low, low_codes) in low.into_iter().zip(PAIRS) {
                    let codes = high_codes << 4 | low_codes;
                    lanes.store(lanes.plus(low, high), &mut tables[codes][k], part);
                }
            }
        }
    }
}

/// Adds what each filter's word gives.
#[inline(always)]
fn look_up<L: Lanes>(lanes: L, words: &[u32], tables: &Tables, sums: &mut [Line32]) {
    for (&word, sum) in words.iter().zip(sums) {
        for part in 0..L::PARTS {
            let byte = |k: usize| lanes.floats(&tables[(word >> (8 * k)) as usize & 0xff][k], part);
            let four = lanes.plus(lanes.plus(byte(0), byte(1)), lanes.plus(byte(2), byte(3)));
            lanes.store(lanes.plus(lanes.floats(sum, part), four), sum, part);
        }
    }
}

/// total += α·sum, and sum = 0.
#[inline(always)]
fn scale<L: Lanes>(lanes: L, alpha: f32, sum: &mut Line32, total: &mut Line32) {
    let alpha = Line32([alpha; LANES]);
    for part in 0..L::PARTS {
        let scaled = lanes.mul_add(lanes.floats(total, part), lanes.floats(&alpha, part), lanes.floats(sum, part));
        lanes.store(scaled, total, part);
        lanes.store(lanes.floats(&ZERO, part), sum, part);
    }
}

impl Task for TableProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        self.run(Portable);
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(self, proof: Avx2) {
        self.run(Ymm::<false>::new(proof));
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) {
        self.run(Zmm::<false>::new(proof));
    }
}
