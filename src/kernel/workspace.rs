//! The memory in which activations are laid down, and who lays them down. Not here: how
//! ([`super::activations`], [`super::image`]).

use std::marker::PhantomData;
use std::ops::Range;

use ndarray::{ArrayView2, Axis, s};
use rayon::prelude::*;

use super::Arithmetic;
use super::activations::{BLOCK, Pack8, Pack32, Quantized};
use super::digits::Digits;
use super::fill::Filled;
use super::image::{Column8, Column32, Image, ImageRows};
use super::lanes::{CHUNK, LANES, Line8, Line32};
use super::product::{Columns8, Columns32};
use super::rows::{PackRows, Rows, Runs};
use crate::Isa;

/// Memory that products need besides their operands: a few MiB, or what 16 columns take if that is
/// more, the codes of 256 filters per thread (of all filters where groups are not whole lanes, each filled
/// up to 16 weights), and for convolutions per thread a copy of an image with its padding (1 or 4 bytes a place, for
/// one channel more than there are) and 4 bytes per place of the output. It grows to what is asked of it and is
/// used again, so that a second product of the same shapes allocates nothing.
#[derive(Debug, Default)]
pub struct Workspace {
    columns8: Memory8,
    lines32: Vec<Line32>,
    /// What multiplies each column, for tables.
    scales: Vec<Line32>,
    /// Codes as the tables take them.
    words: Vec<u32>,
    pub(super) image: Image,
    pub(super) filled: Filled,
    /// For threads that take images of their own.
    others: Vec<Workspace>,
}

/// What [`Columns8`] borrow.
#[derive(Debug, Default)]
struct Memory8 {
    lines: Vec<Line8>,
    columns: Vec<Quantized>,
    sums: Vec<[i32; LANES]>,
}

impl Memory8 {
    fn room<D: Digits>(&mut self, n: usize, columns: usize) -> (&mut [Line8], &mut [Quantized], &mut [[i32; LANES]]) {
        let chunks = n.div_ceil(D::PER_CHUNK);
        (
            room(&mut self.lines, columns * chunks * D::PER_BYTE, Line8([0; _])),
            room(&mut self.columns, columns, Quantized::default()),
            room(&mut self.sums, columns * chunks, [0; _]),
        )
    }
}

impl Workspace {
    /// One for each thread.
    pub(super) fn of_threads(&mut self, threads: usize) -> &mut [Workspace] {
        if self.others.len() < threads {
            self.others.resize_with(threads, Workspace::default);
        }
        &mut self.others[..threads]
    }

    /// The columns of X in 8 bits.
    pub(super) fn pack8<D: Digits>(&mut self, isa: Isa, x: ArrayView2<'_, f32>, parallel: bool) -> Columns8<'_, D> {
        let (n, columns) = x.dim();
        let (lines, quantized, sums) = self.columns8.room::<D>(n, columns);
        let chunks = n.div_ceil(D::PER_CHUNK);
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        let block = columns.div_ceil(threads).next_multiple_of(BLOCK);
        let (lines_each, sums_each) = (block * chunks * D::PER_BYTE, block * chunks);
        let pack = |(((lines, columns), sums), x): (((&mut [_], &mut [_]), &mut [_]), _)| {
            isa.run(Pack8 { x, lines, columns, sums, digits: PhantomData::<D> });
        };
        if columns > block {
            let lines = lines.par_chunks_mut(lines_each).zip(quantized.par_chunks_mut(block));
            let blocks = x.axis_chunks_iter(Axis(1), block).into_par_iter();
            lines.zip(sums.par_chunks_mut(sums_each)).zip(blocks).for_each(pack);
        } else {
            pack((((&mut *lines, &mut *quantized), &mut *sums), x));
        }
        Columns8 { lines, columns: quantized, sums, digits: PhantomData }
    }

    /// The columns of X in `f32`.
    pub(super) fn pack32<D: Digits>(&mut self, isa: Isa, x: ArrayView2<'_, f32>, parallel: bool) -> Columns32<'_, D> {
        let (n, columns) = x.dim();
        let per_column = n.next_multiple_of(D::PER_CHUNK) / LANES;
        let lines = room(&mut self.lines32, columns * per_column, Line32([0.0; _]));
        let pack = |(lines, x): (&mut [_], _)| isa.run(Pack32 { x, lines, digits: PhantomData::<D> });
        let blocks = x.axis_chunks_iter(Axis(1), BLOCK);
        if parallel && columns > BLOCK {
            lines.par_chunks_mut(BLOCK * per_column).zip(blocks.into_par_iter()).for_each(pack);
        } else {
            lines.chunks_mut(BLOCK * per_column).zip(blocks).for_each(pack);
        }
        Columns32 { lines, digits: PhantomData }
    }

    /// The columns of X as rows, and room for `words` words.
    pub(super) fn pack_rows(
        &mut self,
        isa: Isa,
        arithmetic: Arithmetic,
        runs: Runs,
        x: ArrayView2<'_, f32>,
        words: usize,
        parallel: bool,
    ) -> (Rows<'_>, &mut [u32]) {
        let blocks = x.ncols().div_ceil(BLOCK);
        let lines = room(&mut self.lines32, blocks * runs.rows(), Line32([0.0; _]));
        let scales = room(&mut self.scales, blocks, Line32([0.0; _]));
        let round = arithmetic == Arithmetic::Int8;
        in_blocks(lines, runs.rows(), scales, parallel, |i, lines, scales| {
            let x = x.slice(s![.., i * BLOCK..x.ncols().min((i + 1) * BLOCK)]);
            isa.run(PackRows { x, runs, round, lines, scales });
        });
        (Rows { lines, scales, runs }, room(&mut self.words, words, 0))
    }

    /// What lies under the filter at these outputs as rows, and room for `words` words.
    #[expect(clippy::too_many_arguments, reason = "what to lay down, and how")]
    pub(super) fn output_rows(
        &mut self,
        isa: Isa,
        arithmetic: Arithmetic,
        runs: Runs,
        scale: f32,
        outputs: Range<usize>,
        words: usize,
        parallel: bool,
    ) -> (Rows<'_>, &mut [u32]) {
        let blocks = outputs.len().div_ceil(BLOCK);
        let lines = room(&mut self.lines32, blocks * runs.rows(), Line32([0.0; _]));
        let scales = room(&mut self.scales, blocks, Line32([0.0; _]));
        let image = &self.image;
        in_blocks(lines, runs.rows(), scales, parallel, |i, lines, scales| {
            *scales = Line32([scale; _]);
            let first = outputs.start + i * BLOCK;
            let outputs = first..outputs.end.min(first + BLOCK);
            isa.run(ImageRows { image, outputs, arithmetic, lines });
        });
        (Rows { lines, scales, runs }, room(&mut self.words, words, 0))
    }

    /// What lies under the filter at these outputs, in 8 bits.
    pub(super) fn outputs8<D: Digits>(
        &mut self,
        isa: Isa,
        scale: f32,
        outputs: Range<usize>,
        parallel: bool,
    ) -> Columns8<'_, D> {
        let image = &self.image;
        let per_column = image.column_len();
        let (lines, columns, sums) = self.columns8.room::<D>(per_column, outputs.len());
        let lay = |(((lines, column), sums), output): (((&mut [_], &mut _), &mut [_]), _)| {
            isa.run(Column8 { image, output, scale, lines, column, sums, digits: PhantomData::<D> });
        };
        let (lines_each, sums_each) = (per_column / CHUNK, per_column / D::PER_CHUNK);
        if parallel {
            let lines = lines.par_chunks_mut(lines_each).zip(&mut *columns);
            lines.zip(sums.par_chunks_mut(sums_each)).zip(outputs).with_min_len(BLOCK).for_each(lay);
        } else {
            let lines = lines.chunks_mut(lines_each).zip(&mut *columns);
            lines.zip(sums.chunks_mut(sums_each)).zip(outputs).for_each(lay);
        }
        Columns8 { lines, columns, sums, digits: PhantomData }
    }

    /// What lies under the filter at these outputs, in `f32`.
    pub(super) fn outputs32<D: Digits>(&mut self, isa: Isa, outputs: Range<usize>, parallel: bool) -> Columns32<'_, D> {
        let per_column = self.image.column_len() / LANES;
        let lines = room(&mut self.lines32, outputs.len() * per_column, Line32([0.0; _]));
        let image = &self.image;
        let lay = |(lines, output): (&mut [_], _)| {
            isa.run(Column32 { image, output, lines, digits: PhantomData::<D> });
        };
        if parallel {
            lines.par_chunks_mut(per_column).zip(outputs).with_min_len(BLOCK).for_each(lay);
        } else {
            lines.chunks_mut(per_column).zip(outputs).for_each(lay);
        }
        Columns32 { lines, digits: PhantomData }
    }
}

/// Lays down blocks of columns, some memory each.
fn in_blocks<A: Send, B: Send>(
    a: &mut [A],
    a_each: usize,
    b: &mut [B],
    parallel: bool,
    lay: impl Fn(usize, &mut [A], &mut B) + Sync,
) {
    if parallel && b.len() > 1 {
        let blocks = a.par_chunks_mut(a_each).zip(b).enumerate();
        blocks.for_each(|(i, (a, b))| lay(i, a, b));
    } else {
        a.chunks_mut(a_each).zip(b).enumerate().for_each(|(i, (a, b))| lay(i, a, b));
    }
}

/// The first `len` elements of `memory`, which grows if it has to.
pub(super) fn room<T: Clone>(memory: &mut Vec<T>, len: usize, empty: T) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, empty);
    }
    &mut memory[..len]
}
