//! Groups of weights that are not whole lanes, made whole: their codes become words of `t2`, the last of each
//! group filled up, and activations get zeros where weights do. Not here: products.

use ndarray::{ArrayView2, Axis, ShapeBuilder};
use rayon::prelude::*;

use super::PackedMatrix;
use super::digits::{B1, T2, T5, WORD, word};
use super::rows::Runs;
use super::workspace::room;
use crate::pack::Encoding;

/// Memory for both.
#[derive(Debug, Default)]
pub(super) struct Filled {
    codes: Vec<[u8; 4]>,
    x: Vec<f32>,
}

impl Filled {
    /// The codes of `w`, and room for so many columns.
    pub fn codes(&mut self, w: &PackedMatrix<'_>, columns: usize, parallel: bool) -> (&[u8], &mut [f32]) {
        let runs = Runs::of(w);
        let codes = room(&mut self.codes, w.stored() * runs.words(), [0; 4]);
        for plane in 0..w.planes() {
            let rows = w.stored_at(plane);
            let codes = &mut codes[rows.start * runs.words()..rows.end * runs.words()];
            let fill = |(filter, to): (usize, &mut [[u8; 4]])| {
                let codes = w.codes(plane, filter);
                match w.encoding() {
                    Encoding::T2 => write(to, runs, |j| word::<T2>(codes, j)),
                    Encoding::T5 => write(to, runs, |j| word::<T5>(codes, j)),
                    Encoding::B1 => write(to, runs, |j| word::<B1>(codes, j)),
                }
            };
            if parallel {
                codes.par_chunks_mut(runs.words()).enumerate().for_each(fill);
            } else {
                codes.chunks_mut(runs.words()).enumerate().for_each(fill);
            }
        }
        (codes.as_flattened(), room(&mut self.x, columns * runs.rows(), 0.0))
    }
}

fn write(to: &mut [[u8; 4]], runs: Runs, word: impl Fn(usize) -> u32) {
    for (run, to) in to.chunks_mut(runs.words_per_run()).enumerate() {
        let first = run * runs.size();
        to.iter_mut().enumerate().for_each(|(i, to)| *to = word(first + i * WORD).to_le_bytes());
    }
}

/// The columns of X with the zeros, each in one run.
pub(super) fn columns<'a>(x: ArrayView2<'_, f32>, runs: Runs, memory: &'a mut [f32]) -> ArrayView2<'a, f32> {
    let memory = &mut memory[..x.ncols() * runs.rows()];
    memory.fill(0.0);
    for (memory, x) in memory.chunks_mut(runs.rows()).zip(x.columns()) {
        let groups = memory.chunks_mut(runs.words_per_run() * WORD).zip(x.axis_chunks_iter(Axis(0), runs.size()));
        groups.for_each(|(to, x)| to.iter_mut().zip(x).for_each(|(to, &x)| *to = x));
    }
    ArrayView2::from_shape((runs.rows(), x.ncols()).f(), memory).expect("as long as that")
}
