//! Which tiles make up a product: planes, filters, panels of columns; and how large a tile is for
//! each instruction set. Groups of weights are whole lanes here. Not here: the tiles ([`super::int8`],
//! [`super::exact`]), the other way ([`super::tables`]), threads and memory ([`super`]).

use std::marker::PhantomData;

use ndarray::ArrayViewMut2;

use super::activations::Quantized;
use super::digits::Digits;
use super::int8::{FEW, MANY};
use super::lanes::{LANES, Lanes, Line8, Line32, Portable};
#[cfg(target_arch = "x86_64")]
use super::lanes::{Ymm, Zmm};
use super::tile::map;
use super::{PackedMatrix, exact, int8};
use crate::pack::Encoding;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512, Avx512Vnni, AvxVnni};
use crate::vector::{Task, nearest_cache};

/// Columns of activations, laid down for one encoding.
pub(super) trait Columns: Copy + Send + Sync {
    /// What some filters give with the columns from `c` on.
    fn tile<L: Lanes, const R: usize, const C: usize>(
        self,
        lanes: L,
        w: &PackedMatrix<'_>,
        plane: usize,
        filters: [usize; R],
        c: usize,
    ) -> [[f32; C]; R];

    /// Adds what all filters of a product give with one column, in tiles of `R` or as many as suit it better.
    #[inline(always)]
    fn single<L: Lanes, const R: usize>(product: &mut Product<'_, Self>, lanes: L, plane: usize, c: usize) {
        product.panel::<L, R, 1>(lanes, plane, c);
    }
}

/// Columns in 8 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns8<'a, D> {
    pub lines: &'a [Line8],
    pub columns: &'a [Quantized],
    /// Their sums per chunk and lane.
    pub sums: &'a [[i32; LANES]],
    pub digits: PhantomData<D>,
}

/// Columns in `f32`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns32<'a, D> {
    pub lines: &'a [Line32],
    pub digits: PhantomData<D>,
}

/// 0, 1, 2 …
#[inline(always)]
fn count<const N: usize>() -> [usize; N] {
    let mut count = [0; N];
    count.iter_mut().enumerate().for_each(|(i, n)| *n = i);
    count
}

/// One column of several that are equally long.
#[inline]
fn column<T>(all: &[T], c: usize, len: usize) -> &[T] {
    &all[c * len..(c + 1) * len]
}

/// How many filters a tile of one column in 8 bits has best, with registers of 512 bits. While a tile is gone through, the
/// activations have to stay in the nearest cache, which throws out what was used longest ago: so seven eighths of it have to
/// be room for them and for a quarter as many bytes of codes per filter; the rest is for what is asked for ahead. Where they
/// cannot stay, tiles of more filters read them less often. (`t5` and groups are not as fast as memory, and do without; `b1`
/// has half the codes.)
fn filters_of_column(encoding: Encoding, groups: bool, activations: usize, nearest_cache: usize) -> usize {
    const SHORT: usize = 16 << 10;
    let stay = activations + FEW * activations / 4 <= nearest_cache / 8 * 7;
    match encoding {
        _ if activations <= SHORT => 4,
        Encoding::B1 if !groups => 4,
        Encoding::T2 if !groups && stay => FEW,
        _ => MANY,
    }
}

impl<D: Digits> Columns for Columns8<'_, D> {
    #[inline(always)]
    fn tile<L: Lanes, const R: usize, const C: usize>(
        self,
        lanes: L,
        w: &PackedMatrix<'_>,
        plane: usize,
        filters: [usize; R],
        c: usize,
    ) -> [[f32; C]; R] {
        let chunks = w.filter_len().div_ceil(D::PER_CHUNK);
        let codes = map(filters, &[][..], |filter| w.codes(plane, filter));
        let x = map(count(), &[][..], |i| column(self.lines, c + i, chunks * D::PER_BYTE));
        let mut y = match w.group() {
            None => {
                let sums = map(count(), 0, |i| self.columns[c + i].sum);
                let mut y = int8::tile::<L, D, R, C>(lanes, codes, x, sums);
                for (y, filter) in y.iter_mut().zip(filters) {
                    let alpha = w.scales(plane, filter)[0];
                    y.iter_mut().for_each(|y| *y *= alpha);
                }
                y
            }
            Some(size) => {
                let scales = map(filters, &[][..], |filter| w.scales(plane, filter));
                let sums = map(count(), &[][..], |i| column(self.sums, c + i, chunks));
                int8::grouped_tile::<L, D, R, C>(lanes, codes, scales, size / D::PER_LANE, x, sums)
            }
        };
        for y in &mut y {
            y.iter_mut().enumerate().for_each(|(i, y)| *y *= self.columns[c + i].scale);
        }
        y
    }

    #[inline(always)]
    fn single<L: Lanes, const R: usize>(product: &mut Product<'_, Self>, lanes: L, plane: usize, c: usize) {
        // Others are not as fast as memory, or have no registers for the sums of eight filters.
        if !L::WIDE || L::PARTS > 1 {
            return product.panel::<L, R, 1>(lanes, plane, c);
        }
        let w = product.w;
        match filters_of_column(D::ENCODING, w.group().is_some(), w.filter_len(), nearest_cache()) {
            FEW => product.panel::<L, FEW, 1>(lanes, plane, c),
            MANY => product.panel::<L, MANY, 1>(lanes, plane, c),
            _ => product.panel::<L, R, 1>(lanes, plane, c),
        }
    }
}

impl<D: Digits> Columns for Columns32<'_, D> {
    #[inline(always)]
    fn tile<L: Lanes, const R: usize, const C: usize>(
        self,
        lanes: L,
        w: &PackedMatrix<'_>,
        plane: usize,
        filters: [usize; R],
        c: usize,
    ) -> [[f32; C]; R] {
        let chunks = w.filter_len().div_ceil(D::PER_CHUNK);
        let codes = map(filters, &[][..], |filter| w.codes(plane, filter));
        let scales = map(filters, &[][..], |filter| w.scales(plane, filter));
        let x = map(count(), &[][..], |i| column(self.lines, c + i, chunks * D::PER_LANE));
        match w.group() {
            None => {
                let mut y = exact::tile::<L, D, R, C>(lanes, codes, None, x);
                for (y, scales) in y.iter_mut().zip(scales) {
                    y.iter_mut().for_each(|y| *y *= scales[0]);
                }
                y
            }
            Some(size) => exact::tile::<L, D, R, C>(lanes, codes, Some((scales, size / D::PER_LANE)), x),
        }
    }
}

/// Adds to `y` the part of W·X that it is.
pub(super) struct Product<'a, X> {
    pub w: &'a PackedMatrix<'a>,
    pub x: X,
    /// The filter and the column of the first element of `y`.
    pub first: [usize; 2],
    pub y: ArrayViewMut2<'a, f32>,
}

impl<X: Columns> Product<'_, X> {
    /// Tiles of `R` filters × `C` columns (or `W`, if they may be wide), and of `S` filters × one column.
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const W: usize, const C: usize, const S: usize>(&mut self, lanes: L, wide: bool) {
        let columns = self.y.ncols();
        for plane in 0..self.w.planes() {
            let mut c = 0;
            while c + C <= columns {
                let left = columns - c;
                if wide && left >= W && !(2..C).contains(&(left - W)) {
                    self.panel::<L, R, W>(lanes, plane, c);
                    c += W;
                } else {
                    self.panel::<L, R, C>(lanes, plane, c);
                    c += C;
                }
            }
            while c < columns {
                X::single::<L, S>(self, lanes, plane, c);
                c += 1;
            }
        }
    }

    /// All filters with `C` columns. With one column, the filters of a tile are taken far apart:
    /// several streams from memory are faster than one.
    #[inline(always)]
    fn panel<L: Lanes, const R: usize, const C: usize>(&mut self, lanes: L, plane: usize, c: usize) {
        let tiles = self.y.nrows() / R;
        let (step, apart) = if C == 1 { (1, tiles) } else { (R, 1) };
        for i in 0..tiles {
            self.tile::<L, R, C>(lanes, plane, map(count(), 0, |r| i * step + r * apart), c);
        }
        for row in tiles * R..self.y.nrows() {
            self.tile::<L, 1, C>(lanes, plane, [row], c);
        }
    }

    #[inline(always)]
    fn tile<L: Lanes, const R: usize, const C: usize>(&mut self, lanes: L, plane: usize, rows: [usize; R], c: usize) {
        let [filter, column] = self.first;
        let y = self.x.tile::<L, R, C>(lanes, self.w, plane, map(rows, 0, |row| filter + row), column + c);
        for (row, y) in rows.into_iter().zip(y) {
            let mut row = self.y.row_mut(row);
            match row.as_slice_mut() {
                Some(row) => row[c..c + C].iter_mut().zip(y).for_each(|(to, y)| *to += y),
                None => y.into_iter().enumerate().for_each(|(i, y)| row[c + i] += y),
            }
        }
    }
}

impl<D: Digits> Task for Product<'_, Columns8<'_, D>> {
    type Output = ();

    #[inline(always)]
    fn portable(mut self) {
        self.run::<_, 4, 1, 1, 4>(Portable, false);
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(mut self, proof: Avx2) {
        self.run::<_, 2, 4, 4, 4>(Ymm::<false>::new(proof), false);
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avxvnni(mut self, proof: AvxVnni) {
        self.run::<_, 2, 4, 4, 4>(Ymm::<true>::new(proof), false);
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(mut self, proof: Avx512) {
        self.run::<_, 4, 4, 4, 4>(Zmm::<false>::new(proof), false);
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512vnni(mut self, proof: Avx512Vnni) {
        // Six columns take more registers than there are, which pays where taking codes apart, or scaling, is dear.
        let wide = D::ENCODING == Encoding::T5 || self.w.group().is_some();
        self.run::<_, 4, 6, 4, 4>(Zmm::<true>::new(proof), wide);
    }
}

impl<D: Digits> Task for Product<'_, Columns32<'_, D>> {
    type Output = ();

    #[inline(always)]
    fn portable(mut self) {
        self.run::<_, 4, 1, 1, 4>(Portable, false);
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(mut self, proof: Avx2) {
        self.run::<_, 2, 4, 4, 4>(Ymm::<false>::new(proof), false);
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(mut self, proof: Avx512) {
        self.run::<_, 4, 4, 4, 8>(Zmm::<false>::new(proof), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_filters_as_the_nearest_cache_has_room_for() {
        let chosen =
            |activations| [32 << 10, 48 << 10].map(|cache| filters_of_column(Encoding::T2, false, activations, cache));
        assert_eq!(chosen(16 << 10), [4, 4]);
        assert_eq!(chosen((16 << 10) + 1), [FEW, FEW]);
        assert_eq!(chosen(20 << 10), [MANY, FEW]);
        assert_eq!(chosen(28_672), [MANY, FEW], "28,672 + 2·7,168 are 42 KiB");
        assert_eq!(chosen(28_676), [MANY, MANY]);
    }
}
