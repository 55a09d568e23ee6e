//! Matrices of codes in two bits, turned. Not here: what a code stands for.

use std::ops::Range;

use crate::vector::{Isa, Task};

/// Rows and columns that are turned at once: a line of the cache of each row, and 16 KiB to put them together.
const BLOCK: usize = 256;

/// Rows and columns of a square that is turned in words of 32 bits.
const SQUARE: usize = 16;

/// Transposes some columns of a matrix of codes in two bits, four to a byte along its `rows`, lowest bits first. A row
/// begins every `row_bytes` bytes of `from`, a column every `column_bytes` of `to`, where the codes of a column follow one
/// another; what is left of a column's last byte becomes 0.
///
/// # Panics
/// When a row or a column has less bytes than its codes take, or one that is needed is not there.
pub fn transpose_t2(
    isa: Isa,
    from: &[u8],
    row_bytes: usize,
    rows: usize,
    columns: Range<usize>,
    to: &mut [u8],
    column_bytes: usize,
) {
    assert!(columns.end.div_ceil(4) <= row_bytes && rows.div_ceil(4) <= column_bytes, "bytes of a row and of a column");
    // What is read lies together as far as it can: all columns of some rows, by blocks that begin on bytes.
    for row in (0..rows).step_by(BLOCK) {
        let mut column = columns.start;
        while column < columns.end {
            let (skipped, end) = (column % 4, (column - column % 4 + BLOCK).min(columns.end));
            let from = &from[row * row_bytes + column / 4..];
            let to = &mut to[(column - columns.start) * column_bytes + row / 4..];
            let (rows, columns) = (BLOCK.min(rows - row), skipped..skipped + end - column);
            isa.run(Block { from, row_bytes, rows, columns, to, column_bytes });
            column = end;
        }
    }
}

/// 256 rows and columns, or what is left of them.
struct Block<'a> {
    from: &'a [u8],
    row_bytes: usize,
    rows: usize,
    columns: Range<usize>,
    to: &'a mut [u8],
    column_bytes: usize,
}

impl Task for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let (width, height) = (self.columns.end.div_ceil(4), self.rows.div_ceil(4));
        let squares = self.columns.end.div_ceil(SQUARE);
        let (mut rows, mut turned) = ([[0; BLOCK / 4]; BLOCK], [[0_u32; BLOCK / SQUARE]; BLOCK]);
        for (row, line) in rows[..self.rows].iter_mut().enumerate() {
            let from = &self.from[row * self.row_bytes..];
            match from.first_chunk() {
                Some(whole) if width == BLOCK / 4 => *line = *whole,
                _ => line[..width].copy_from_slice(&from[..width]),
            }
        }
        for (strip, rows) in rows.chunks_exact(SQUARE).take(self.rows.div_ceil(SQUARE)).enumerate() {
            // Squares side by side are turned together.
            let mut words = [[0_u32; BLOCK / SQUARE]; SQUARE];
            for (words, row) in words.iter_mut().zip(rows) {
                words
                    .iter_mut()
                    .zip(row.as_chunks::<4>().0)
                    .for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
            }
            swap::<8>(&mut words, 0x0000_ffff);
            swap::<4>(&mut words, 0x00ff_00ff);
            swap::<2>(&mut words, 0x0f0f_0f0f);
            swap::<1>(&mut words, 0x3333_3333);
            for (column, words) in words.iter().enumerate() {
                for (square, word) in words.iter().enumerate().take(squares) {
                    turned[square * SQUARE + column][strip] = *word;
                }
            }
        }
        for (column, words) in turned[self.columns].iter().enumerate() {
            let to = &mut self.to[column * self.column_bytes..];
            let mut line = [0; BLOCK / 4];
            line.as_chunks_mut::<4>().0.iter_mut().zip(words).for_each(|(line, word)| *line = word.to_le_bytes());
            match to.first_chunk_mut() {
                Some(whole) if height == BLOCK / 4 => *whole = line,
                _ => to[..height].copy_from_slice(&line[..height]),
            }
        }
    }
}

/// One step of turning squares: what is `BY` rows down and what is as many columns to the right change places. `mask`
/// has the columns whose number does not have that bit.
#[inline(always)]
fn swap<const BY: usize>(words: &mut [[u32; BLOCK / SQUARE]; SQUARE], mask: u32) {
    for rows in words.chunks_exact_mut(2 * BY) {
        let (upper, lower) = rows.split_at_mut(BY);
        for (upper, lower) in upper.as_flattened_mut().iter_mut().zip(lower.as_flattened_mut()) {
            let swap = (*upper >> (2 * BY) ^ *lower) & mask;
            *upper ^= swap << (2 * BY);
            *lower ^= swap;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(matrix: &[u8], row_bytes: usize, row: usize, column: usize) -> u8 {
        matrix[row * row_bytes + column / 4] >> (2 * (column % 4)) & 3
    }

    /// Every code of matrices of all sorts of sizes, against plain indexing, and nothing beside them.
    #[test]
    fn every_code_is_where_it_belongs() {
        let sizes = [
            (1, 0..1_usize),
            (4, 0..4),
            (3, 1..5),
            (16, 0..16),
            (17, 3..70),
            (255, 0..257),
            (300, 6..600),
            (513, 2..33),
        ];
        for isa in Isa::all() {
            for (rows, columns) in sizes.clone().into_iter().chain([(0, 0..7), (700, 255..256), (1, 4..4)]) {
                let (row_bytes, column_bytes) = (columns.end.div_ceil(4) + 3, usize::div_ceil(rows, 4) + 2);
                let byte = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8;
                let from: Vec<u8> = (0..rows * row_bytes).map(byte).collect();
                let mut to = vec![0xee; columns.len() * column_bytes];
                transpose_t2(isa, &from, row_bytes, rows, columns.clone(), &mut to, column_bytes);
                for (column, to) in columns.clone().zip(to.chunks_exact(column_bytes)) {
                    let (codes, rest) = to.split_at(rows.div_ceil(4));
                    for row in 0..codes.len() * 4 {
                        let expected = if row < rows { code(&from, row_bytes, row, column) } else { 0 };
                        assert_eq!(code(codes, 0, 0, row), expected, "{isa:?} {rows} {columns:?}: {row} {column}");
                    }
                    assert!(rest.iter().all(|&byte| byte == 0xee), "{rows} {columns:?}");
                }
            }
        }
    }
}
