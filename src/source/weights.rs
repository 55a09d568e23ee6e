//! A tensor's weights with the filter axis first, decoded to `f32` (or `f64` for F64), on demand
//! and in pieces. Not here: what is done with them.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::{Strided, TensorView};
use crate::dtype::{Dtype, is_float};
use crate::float8;
use crate::vector::weight::Weight;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Isa, Task};

/// A floating-point tensor seen as `filters` rows of `filter_len` weights: the filter axis moved to
/// the front, the other axes in their order, flattened.
#[derive(Debug, Clone, Copy)]
pub struct FilterView<'a> {
    dtype: Dtype,
    data: &'a [u8],
    /// The shape, its axes as they are nested in the file, as [before the axis, the axis, behind the axis].
    outer: usize,
    filters: usize,
    inner: usize,
    /// The tensor and the axis, where it is not in C order and the file does not have each filter in its order and in one run.
    permuted: Option<(TensorView<'a>, usize)>,
}

impl<'a> FilterView<'a> {
    /// Of a floating-point tensor along `axis`; `None` for other types, or where there is no such axis.
    pub fn new(tensor: TensorView<'a>, axis: usize) -> Option<Self> {
        if !is_float(tensor.dtype) || axis >= tensor.shape.len() {
            return None;
        }
        let order = tensor.order.map_or_else(|| (0..tensor.shape.len()).collect(), Vec::from);
        let (before, behind) = order.split_at(order.iter().position(|&other| other == axis)?);
        let product = |axes: &[usize]| axes.iter().map(|&axis| tensor.shape[axis]).product();
        let (outer, filters, inner): (usize, _, _) = (product(before), tensor.shape[axis], product(&behind[1..]));
        // A single filter lies in one run, whatever stands before its axis.
        let (outer, inner) = if filters == 1 { (1, outer * inner) } else { (outer, inner) };
        let in_order = order.iter().filter(|&&other| other != axis && tensor.shape[other] != 1).is_sorted();
        let permuted = (!in_order || tensor.order.is_some() && outer > 1).then_some((tensor, axis));
        Some(Self { dtype: tensor.dtype, data: tensor.stored, outer, filters, inner, permuted })
    }

    /// Of decoded weights, filter axis first: `filters` rows of `filter_len`.
    pub(crate) fn of_rows<W: Element>(weights: &'a [W], filters: usize) -> Self {
        let inner = weights.len() / filters;
        Self { dtype: W::DTYPE, data: bytemuck::cast_slice(weights), outer: 1, filters, inner, permuted: None }
    }

    /// How many filters.
    pub fn filters(&self) -> usize {
        self.filters
    }

    /// Weights per filter, n.
    pub fn filter_len(&self) -> usize {
        self.outer * self.inner
    }

    /// Whether the weights are decoded to `f64`; all other types go to `f32`, which holds them exactly.
    pub fn is_f64(&self) -> bool {
        self.dtype == Dtype::F64
    }

    /// Whether the file's own bytes can be read as that type.
    pub(crate) fn borrows<W: Element>(&self) -> bool {
        self.contiguous() && W::borrow(self.dtype, self.data).is_some()
    }

    /// Whether each filter's weights lie in one run, in their order.
    pub(crate) fn contiguous(&self) -> bool {
        self.outer == 1 && self.permuted.is_none()
    }

    /// Bytes of a filter that are neighbours in the file.
    pub(crate) fn run_bytes(&self) -> usize {
        self.inner * self.dtype.bitsize() / 8
    }

    /// Weights `range` of the tensor with its filter axis first, flattened: weight j of filter i is
    /// number i·n + j. Borrowed from the file where type and alignment allow, else decoded into `scratch`.
    pub(crate) fn read<'s, W: Element>(&self, range: Range<usize>, isa: Isa, scratch: &'s mut Vec<W>) -> &'s [W]
    where
        'a: 's,
    {
        let size = self.dtype.bitsize() / 8;
        if self.contiguous() {
            let bytes = &self.data[range.start * size..range.end * size];
            if let Some(weights) = W::borrow(self.dtype, bytes) {
                return weights;
            }
            scratch.resize(range.len(), W::default());
            decode(self.dtype, bytes, isa, scratch);
            return scratch;
        }
        if let Some(strided) = self.strided() {
            scratch.resize(range.len(), W::default());
            self.permute(&strided, range, isa, scratch);
            return scratch;
        }
        let n = self.filter_len();
        let filters = range.start / n..range.end.div_ceil(n);
        if n <= range.len() && self.run_bytes() < SHORT {
            scratch.resize(filters.len() * n, W::default());
            tiles(scratch, self.outer, self.inner, filters.len())
                .into_iter()
                .for_each(|tile| self.gather(filters.clone(), isa, tile));
            return &scratch[range.start - filters.start * n..range.end - filters.start * n];
        }
        scratch.resize(range.len(), W::default());
        // Run by run; of a part of a filter only the runs that it touches.
        let mut at = range.start;
        while at < range.end {
            let (f, j) = (at / n, at % n);
            let (o, skipped) = (j / self.inner, j % self.inner);
            let run = at..(at + self.inner - skipped).min(range.end);
            let from = (o * self.filters + f) * self.inner + skipped;
            let bytes = &self.data[from * size..(from + run.len()) * size];
            let out = &mut scratch[run.start - range.start..run.end - range.start];
            decode(self.dtype, bytes, isa, out);
            at = run.end;
        }
        scratch
    }

    /// Has the pages of weights that lie in one run mapped, which prefetching does not do.
    pub(crate) fn touch(&self, range: Range<usize>) {
        // Linux maps so many bytes at a time.
        const AROUND: usize = 64 << 10;
        let size = self.dtype.bitsize() / 8;
        for byte in self.data[range.start * size..range.end * size].iter().step_by(AROUND) {
            std::hint::black_box(*byte);
        }
    }

    /// Whole filters of a tensor where they do not lie in one run, on all threads of the pool.
    pub(crate) fn read_filters<W: Element>(&self, filters: Range<usize>, isa: Isa, weights: &mut [W]) {
        if let Some(strided) = self.strided() {
            let n = self.filter_len();
            // Of neighbours in the file a line of the cache and more, if they are not too long.
            let step = (PERMUTED / n).max(LINE.min(4 * PERMUTED / n)).max(1) * n;
            return weights.par_chunks_mut(step).enumerate().for_each(|(i, part)| {
                let start = filters.start * n + i * step;
                self.permute(&strided, start..start + part.len(), isa, part);
            });
        }
        tiles(weights, self.outer, self.inner, filters.len())
            .into_par_iter()
            .for_each(|tile| self.gather(filters.clone(), isa, tile));
    }

    /// Where all the weights lie, the filter axis first, if the tensor is permuted.
    fn strided(&self) -> Option<Strided> {
        let (tensor, axis) = self.permuted?;
        let mut strided = tensor.strided()?;
        strided.shape[..=axis].rotate_right(1);
        strided.strides[..=axis].rotate_right(1);
        Some(strided)
    }

    /// Puts weights `range` in order, and decodes them; a piece of work at the most.
    fn permute<W: Element>(&self, strided: &Strided, range: Range<usize>, isa: Isa, out: &mut [W]) {
        if let Some(out) = W::bytes_mut(self.dtype, out) {
            return strided.read(self.data, range, out);
        }
        let mut bytes = vec![0; range.len() * strided.size];
        strided.read(self.data, range, &mut bytes);
        decode(self.dtype, &bytes, isa, out);
    }

    /// Decodes what lies together in the file, row by row, and then hands it out to the filters:
    /// both sides go through memory in order, and the rows between them stay in the cache.
    fn gather<W: Element>(&self, filters: Range<usize>, isa: Isa, tile: Tile<'_, W>) {
        let (size, inner, width) = (self.dtype.bitsize() / 8, self.inner, filters.len() * self.inner);
        let count = tile.filters[0].len() / inner;
        // [outer indices][filters][inner]
        let mut rows = vec![W::default(); count * width];
        for (row, out) in rows.chunks_exact_mut(width).enumerate() {
            let from = ((tile.first + row) * self.filters + filters.start) * inner;
            let bytes = &self.data[from * size..(from + width) * size];
            decode(self.dtype, bytes, isa, out);
        }
        for (i, out) in tile.filters.into_iter().enumerate() {
            let rows = rows.chunks_exact(width);
            if inner == 1 {
                out.iter_mut().zip(rows).for_each(|(w, row)| *w = row[i]);
            } else {
                let runs = out.chunks_exact_mut(inner).zip(rows);
                runs.for_each(|(run, row)| run.copy_from_slice(&row[i * inner..(i + 1) * inner]));
            }
        }
    }
}

/// Weights that are put in order at a time, about.
const PERMUTED: usize = 1 << 18;

/// Weights of which neighbours fill lines of the cache, whatever their type.
const LINE: usize = 32;

/// Where runs are shorter than so many bytes, a few lines of the cache, filters are read together.
const SHORT: usize = 256;

/// The weights of all wanted filters for some indices before the axis, from `first`.
struct Tile<'s, W> {
    first: usize,
    filters: Vec<&'s mut [W]>,
}

/// `weights`, whole filters of `outer` runs of `inner`, in tiles whose rows fit into a cache.
fn tiles<W>(weights: &mut [W], outer: usize, inner: usize, filters: usize) -> Vec<Tile<'_, W>> {
    const ROWS: usize = 4096;
    let rows = (ROWS / (filters * inner)).max(1);
    let mut tiles: Vec<_> =
        (0..outer).step_by(rows).map(|first| Tile { first, filters: Vec::with_capacity(filters) }).collect();
    for filter in weights.chunks_exact_mut(outer * inner) {
        for (tile, part) in tiles.iter_mut().zip(filter.chunks_mut(rows * inner)) {
            tile.filters.push(part);
        }
    }
    tiles
}

/// A weight type that checkpoints decode to.
pub(crate) trait Element: Weight {
    /// The checkpoint's type that needs no decoding.
    const DTYPE: Dtype;

    /// The file's own bytes, where they are this type already and aligned.
    #[inline]
    fn borrow(dtype: Dtype, bytes: &[u8]) -> Option<&[Self]> {
        let same = dtype == Self::DTYPE && cfg!(target_endian = "little");
        if same { bytemuck::try_cast_slice(bytes).ok() } else { None }
    }

    /// The bytes of weights, where the file has the same ones.
    #[inline]
    fn bytes_mut(dtype: Dtype, weights: &mut [Self]) -> Option<&mut [u8]> {
        let same = dtype == Self::DTYPE && cfg!(target_endian = "little");
        same.then(|| bytemuck::cast_slice_mut(weights))
    }

    /// From `f64`, exactly: the types that reach it are narrower than this one, or this one.
    fn narrow(value: f64) -> Self;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn narrow(value: f64) -> f32 {
        value as f32
    }
}

impl Element for f64 {
    const DTYPE: Dtype = Dtype::F64;

    #[inline(always)]
    fn narrow(value: f64) -> f64 {
        value
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;

    #[inline(always)]
    fn narrow(value: f64) -> f16 {
        f16::from_f64(value)
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::BF16;

    #[inline(always)]
    fn narrow(value: f64) -> bf16 {
        bf16::from_f64(value)
    }
}

/// Decodes exactly; `bytes` holds as many elements as `out`.
fn decode<W: Element>(dtype: Dtype, bytes: &[u8], isa: Isa, out: &mut [W]) {
    match W::bytes_mut(dtype, out) {
        Some(out) => out.copy_from_slice(bytes),
        None => isa.run(Decode { dtype, bytes, out }),
    }
}

/// The same with a set of instructions.
struct Decode<'a, W> {
    dtype: Dtype,
    bytes: &'a [u8],
    out: &'a mut [W],
}

impl<W: Element> Task for Decode<'_, W> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        match self.dtype {
            Dtype::F64 => self.each(f64::from_le_bytes),
            Dtype::F32 => self.each(|b| f64::from(f32::from_le_bytes(b))),
            Dtype::BF16 => self.each(|b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))),
            Dtype::F16 => self.each(|b| half::f16::from_le_bytes(b).to_f64()),
            Dtype::F8_E4M3 => self.each(|[b]| f64::from(float8::E4M3[usize::from(b)])),
            Dtype::F8_E5M2 => self.each(|[b]| f64::from(float8::E5M2[usize::from(b)])),
            other => unreachable!("{other} does not become ternary"),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(self, proof: Avx2) {
        match (self.dtype, W::as_f32_mut(self.out)) {
            (Dtype::F16, Some(out)) => proof.decode_f16(self.bytes.as_chunks().0, out),
            _ => Decode { dtype: self.dtype, bytes: self.bytes, out: self.out }.portable(),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) {
        match (self.dtype, W::as_f32_mut(self.out)) {
            (Dtype::F16, Some(out)) => proof.decode_f16(self.bytes.as_chunks().0, out),
            (Dtype::BF16, Some(out)) => proof.decode_bf16(self.bytes.as_chunks().0, out),
            _ => Decode { dtype: self.dtype, bytes: self.bytes, out: self.out }.portable(),
        }
    }
}

impl<W: Element> Decode<'_, W> {
    #[inline(always)]
    fn each<const N: usize>(self, decode: impl Fn([u8; N]) -> f64) {
        for (w, b) in self.out.iter_mut().zip(self.bytes.as_chunks::<N>().0) {
            *w = W::narrow(decode(*b));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bit pattern of the 16-bit types, and a ragged end, with every instruction set.
    #[test]
    fn halves_decode_exactly() {
        let bits: Vec<u16> = (0..=u16::MAX).chain(0..13).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        type Exact = fn(u16) -> f32;
        let exact: [(Dtype, Exact); 2] = [
            (Dtype::F16, |bits| half::f16::from_bits(bits).to_f32()),
            (Dtype::BF16, |bits| half::bf16::from_bits(bits).to_f32()),
        ];
        for (dtype, exact) in exact {
            let shape = [1, bits.len()];
            let view = FilterView::new(TensorView::new("w", dtype, &shape, &bytes), 0).unwrap();
            for isa in Isa::all() {
                let mut scratch = Vec::new();
                let decoded: &[f32] = view.read(0..bits.len(), isa, &mut scratch);
                for (&bits, &value) in bits.iter().zip(decoded) {
                    let exact = exact(bits);
                    let same = value.to_bits() == exact.to_bits() || (value.is_nan() && exact.is_nan());
                    assert!(same, "{dtype} {bits:#06x}, {}: {value} instead of {exact}", isa.name());
                }
            }
        }
    }
}
