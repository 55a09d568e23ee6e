//! Activations as the tables want them: for 16 columns at a time, a row of 16 floats per weight. Where a
//! filter has several scales, what shares one begins on a word of its own, and zeros fill the last word
//! up. Not here: the tables ([`super::tables`]), nor what lies under a convolution's filter
//! ([`super::image`]).

use ndarray::ArrayView2;

use super::PackedMatrix;
use super::activations::{BLOCK, Quantizer, magnitude, row};
use super::digits::WORD;
use super::lanes::Line32;
use crate::vector::Task;

/// How the weights of a filter lie in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Runs {
    n: usize,
    /// Weights that share a scale.
    size: usize,
}

impl Runs {
    pub fn of(w: &PackedMatrix<'_>) -> Self {
        Self { n: w.filter_len(), size: w.group().unwrap_or(w.filter_len()) }
    }

    /// Weights that share a scale.
    pub fn size(self) -> usize {
        self.size
    }

    /// Words that share a scale.
    pub fn words_per_run(self) -> usize {
        self.size.div_ceil(WORD)
    }

    /// Words of a filter.
    pub fn words(self) -> usize {
        self.n / self.size * self.words_per_run() + (self.n % self.size).div_ceil(WORD)
    }

    /// Rows of activations.
    pub fn rows(self) -> usize {
        self.words() * WORD
    }

    /// Where the activation of weight `j` lies.
    pub fn row(self, j: usize) -> usize {
        j / self.size * self.words_per_run() * WORD + j % self.size
    }

    /// The first weight of each word, run by run.
    pub fn firsts(self) -> impl Iterator<Item = usize> {
        (0..self.n).step_by(self.size).flat_map(move |run| (run..self.n.min(run + self.size)).step_by(WORD))
    }
}

/// Columns, [`BLOCK`] by [`BLOCK`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub lines: &'a [Line32],
    /// What multiplies each column.
    pub scales: &'a [Line32],
    pub runs: Runs,
}

/// Lays down the columns of X, n × at most [`BLOCK`]; rounded to whole steps or not.
pub(super) struct PackRows<'a> {
    pub x: ArrayView2<'a, f32>,
    pub runs: Runs,
    pub round: bool,
    pub lines: &'a mut [Line32],
    pub scales: &'a mut Line32,
}

impl Task for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        *self.scales = Line32([1.0; BLOCK]);
        let mut quantizers = None;
        if self.round {
            let mut largest = [0; BLOCK];
            for j in 0..self.x.nrows() {
                largest.iter_mut().zip(row(self.x, j)).for_each(|(max, x)| *max = (*max).max(magnitude(x)));
            }
            let all = largest.map(Quantizer::new);
            self.scales.0 = all.map(|quantizer| quantizer.scale);
            quantizers = Some(all);
        }
        let Runs { n, size } = self.runs;
        let runs = self.lines.chunks_mut(self.runs.words_per_run() * WORD);
        for (first, lines) in (0..n).step_by(size).zip(runs) {
            let used = size.min(n - first);
            for (line, j) in lines[..used].iter_mut().zip(first..) {
                line.0 = row(self.x, j);
                if let Some(quantizers) = &quantizers {
                    line.0.iter_mut().zip(quantizers).for_each(|(x, q)| *x = f32::from(q.round(*x)));
                }
            }
            lines[used..].fill(Line32([0.0; BLOCK]));
        }
    }
}
