//! Codes, scales and values in the order and types of the new tensors. Not here: which tensors those are.

use std::ops::Range;

use crate::container::{Int8Tensor, TernaryTensor};
use crate::export::{Part, rounded};
use crate::pack::transpose_t2;
use crate::{Dtype, Encoding, Granularity, Isa};

/// Filters that are put in order at once: a line of the cache of their codes.
const TOGETHER: usize = 64;

/// How the weights of `filters` filters lie in a tensor of `[outer][filters][inner]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layout {
    pub filters: usize,
    pub inner: usize,
    pub weights: usize,
}

impl Layout {
    /// In a tensor of that shape, its filters along `axis`.
    pub fn new(shape: &[usize], axis: usize) -> Self {
        Self { filters: shape[axis], inner: shape[axis + 1..].iter().product(), weights: shape.iter().product() }
    }

    /// Whether filters follow one another.
    fn is_by_filter(self) -> bool {
        self.filters * self.inner == self.weights
    }

    /// Puts elements `range` of the tensor into `out`; `read` gives those of a range of a filter.
    pub fn gather<T: Copy + Default>(
        self,
        range: Range<usize>,
        out: &mut [T],
        read: impl Fn(usize, Range<usize>, &mut [T]) -> Result<(), String>,
    ) -> Result<(), String> {
        let row = self.filters * self.inner;
        if range.is_empty() || row == 0 {
            return Ok(());
        }
        let (first, last) = (range.start / row, (range.end - 1) / row);
        if first == last {
            // A part of one row: filter after filter.
            let (mut at, base) = (range.start, first * self.inner);
            while at < range.end {
                let (filter, from) = (at % row / self.inner, at % self.inner);
                let length = (self.inner - from).min(range.end - at);
                read(filter, base + from..base + from + length, &mut out[at - range.start..][..length])?;
                at += length;
            }
            return Ok(());
        }
        // Of some filters all that is needed, so that what comes to lie together is written together.
        let (wanted, length) = (first * self.inner..(last + 1) * self.inner, (last + 1 - first) * self.inner);
        let mut some = vec![T::default(); length * TOGETHER.min(self.filters)];
        for filters in (0..self.filters).step_by(TOGETHER).map(|at| at..(at + TOGETHER).min(self.filters)) {
            for (filter, weights) in filters.clone().zip(some.chunks_exact_mut(length)) {
                read(filter, wanted.clone(), weights)?;
            }
            for outer in first..=last {
                for (filter, weights) in filters.clone().zip(some.chunks_exact(length)) {
                    let weights = &weights[(outer - first) * self.inner..][..self.inner];
                    let begin = outer * row + filter * self.inner;
                    let (from, to) = (begin.max(range.start), (begin + self.inner).min(range.end));
                    if from < to {
                        out[from - range.start..to - range.start].copy_from_slice(&weights[from - begin..to - begin]);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The numbers that stand for −1, 0, +1 in two bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Code {
    /// INT2: 3, 0, 1.
    TwosComplement,
    /// `MatMulNBits` with its own zero point: 1, 2, 3.
    PlusTwo,
}

impl Code {
    /// Four codes t+1, each in two bits: the same per bit.
    fn of_four(self, byte: u8) -> u8 {
        let (low, high) = (byte & 0x55, byte >> 1 & 0x55);
        let either = low | high;
        let high = if self == Self::TwosComplement { !either & 0x55 } else { either };
        !low & 0x55 | high << 1
    }

    /// Bytes of `t2` as those of these numbers.
    fn recode(self, isa: Isa, bytes: &mut [u8]) -> Result<(), String> {
        Encoding::T2.check(isa, bytes, bytes.len() * 4)?;
        bytes.iter_mut().for_each(|byte| *byte = self.of_four(*byte));
        Ok(())
    }
}

/// Codes in a line of the cache.
const LINE: usize = 256;

/// Four zeros in `t2`.
const ZEROS: u8 = 0x55;

/// The packed codes of a plane, [filters][bytes per filter].
fn packed<'t>(tensor: &'t TernaryTensor<'_>, plane: usize) -> &'t [u8] {
    let length = tensor.filters * tensor.filter_bytes();
    &tensor.packed()[plane * length..][..length]
}

/// Whether the rows of a matrix have a code of each filter.
fn is_turned(layout: Layout) -> bool {
    layout.inner == 1 && !layout.is_by_filter()
}

/// Some rows of such a matrix in `t2`, each filled up with zeros.
fn turn(isa: Isa, tensor: &TernaryTensor<'_>, plane: usize, rows: Range<usize>, out: &mut [u8]) -> Result<(), String> {
    let (filters, row_bytes) = (tensor.filters, out.len() / rows.len().max(1));
    if tensor.encoding == Encoding::T2 {
        transpose_t2(isa, packed(tensor, plane), tensor.filter_bytes(), filters, rows, out, row_bytes);
    } else {
        let (mut codes, bytes) = (vec![0; rows.len()], rows.len().div_ceil(4));
        let mut t2 = vec![0; bytes * LINE.min(filters)];
        for some in (0..filters).step_by(LINE).map(|first| first..(first + LINE).min(filters)) {
            for (filter, t2) in some.clone().zip(t2.chunks_exact_mut(bytes)) {
                tensor.codes_range(plane, filter, rows.clone(), &mut codes)?;
                Encoding::T2.pack(isa, &codes, t2);
            }
            transpose_t2(isa, &t2, bytes, some.len(), 0..rows.len(), &mut out[some.start / 4..], row_bytes);
        }
    }
    if !filters.is_multiple_of(4) {
        let lasts = out.iter_mut().skip(filters / 4).step_by(row_bytes);
        lasts.for_each(|last| *last |= ZEROS << (2 * (filters % 4)));
    }
    Ok(())
}

/// INT2, four to a byte across the whole tensor, lowest bits first.
pub(super) fn int2<'a>(name: &str, tensor: &TernaryTensor<'a>, plane: usize, layout: Layout) -> Part<'a> {
    let (tensor, isa) = (tensor.clone(), Isa::detect().unwrap_or(Isa::PORTABLE));
    if is_turned(layout) && layout.filters.is_multiple_of(4) {
        return Part::rows(name, tensor.filter_len, layout.filters / 4, move |rows, out| {
            turn(isa, &tensor, plane, rows, out)?;
            Code::TwosComplement.recode(isa, out)
        })
        .together(LINE);
    }
    Part::rows(name, layout.weights.div_ceil(4), 1, move |bytes, out| {
        let whole_bytes = tensor.encoding == Encoding::T2 && tensor.filter_len.is_multiple_of(4);
        if whole_bytes && layout.is_by_filter() {
            out.copy_from_slice(&packed(&tensor, plane)[bytes]);
        } else {
            let range = bytes.start * 4..(bytes.end * 4).min(layout.weights);
            let mut codes = vec![0; range.len()];
            layout.gather(range, &mut codes, |filter, range, out| tensor.codes_range(plane, filter, range, out))?;
            Encoding::T2.pack(isa, &codes, out);
        }
        Code::TwosComplement.recode(isa, out)
    })
}

/// The first input of `MatMulNBits`: rows of `width` weights, each filled up with zeros to whole blocks.
pub(super) fn nbits<'a>(
    name: &str,
    tensor: &TernaryTensor<'a>,
    plane: usize,
    layout: Layout,
    width: usize,
    block: usize,
) -> Part<'a> {
    let (tensor, isa, row_bytes) =
        (tensor.clone(), Isa::detect().unwrap_or(Isa::PORTABLE), width.div_ceil(block) * block / 4);
    let together = if is_turned(layout) { LINE } else { 1 };
    Part::rows(name, layout.weights / width, row_bytes, move |rows, out| {
        out.fill(ZEROS);
        let used = width.div_ceil(4);
        if is_turned(layout) {
            turn(isa, &tensor, plane, rows, out)?;
        } else if tensor.encoding == Encoding::T2 && layout.is_by_filter() {
            for (out, filter) in out.chunks_exact_mut(row_bytes).zip(rows) {
                let packed = tensor.packed_filter(plane, filter);
                // What fills up the last byte, too, is to be zeros.
                if !width.is_multiple_of(4) {
                    Encoding::T2.check(isa, packed, width)?;
                }
                out[..used].copy_from_slice(packed);
            }
        } else {
            let mut codes = vec![0; rows.len() * width];
            let range = rows.start * width..rows.end * width;
            layout.gather(range, &mut codes, |filter, range, out| tensor.codes_range(plane, filter, range, out))?;
            let filters = out.chunks_exact_mut(row_bytes).zip(codes.chunks_exact(width));
            filters.for_each(|(out, codes)| Encoding::T2.pack(isa, codes, &mut out[..used]));
        }
        Code::PlusTwo.recode(isa, out)
    })
    .together(together)
}

/// 8-bit codes.
pub(super) fn int8<'a>(name: &str, tensor: &Int8Tensor<'a>, layout: Layout) -> Part<'a> {
    let tensor = tensor.clone();
    Part::rows(name, layout.weights, 1, move |range, out| {
        layout.gather(range, out, |filter, range, out| {
            let codes = &tensor.codes()[filter * tensor.filter_len..][range];
            out.iter_mut().zip(codes).for_each(|(out, code)| *out = code.cast_unsigned());
            Ok(())
        })
    })
}

/// Elements of `size` bytes, 8 at most, of a matrix with that many columns, its columns as rows.
pub(super) fn transposed<'a>(name: &str, data: &'a [u8], size: usize, columns: usize) -> Part<'a> {
    let weights = data.len() / size;
    let layout = Layout { filters: weights / columns.max(1), inner: 1, weights };
    Part::rows(name, weights, size, move |range, out| {
        let mut elements = vec![[0; 8]; range.len()];
        layout.gather(range, &mut elements, |row, range, out| {
            let bytes = data[(row * columns + range.start) * size..].chunks_exact(size);
            out.iter_mut().zip(bytes).for_each(|(out, bytes)| out[..size].copy_from_slice(bytes));
            Ok(())
        })?;
        out.chunks_exact_mut(size).zip(elements).for_each(|(out, element)| out.copy_from_slice(&element[..size]));
        Ok(())
    })
}

/// A value in a type of floats.
fn put(dtype: Dtype, value: f32, out: &mut [u8]) {
    match dtype {
        Dtype::F64 => out.copy_from_slice(&f64::from(value).to_le_bytes()),
        Dtype::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
        Dtype::BF16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        _ => out.copy_from_slice(&value.to_le_bytes()),
    }
}

/// Values as floats of that type; `read` gives those of a range of a filter.
pub(super) fn floats<'a>(
    name: &str,
    dtype: Dtype,
    layout: Layout,
    read: impl Fn(usize, Range<usize>, &mut [f32]) -> Result<(), String> + Send + Sync + 'a,
) -> Part<'a> {
    let size = dtype.bitsize() / 8;
    Part::rows(name, layout.weights, size, move |range, out| {
        let mut values = vec![0.0; range.len()];
        layout.gather(range, &mut values, &read)?;
        out.chunks_exact_mut(size).zip(values).for_each(|(out, value)| put(dtype, value, out));
        Ok(())
    })
}

/// `count` scales in that type; `scale` gives one.
pub(super) fn scales<'a>(
    name: &str,
    dtype: Dtype,
    count: usize,
    scale: impl Fn(usize) -> f32 + Send + Sync + 'a,
) -> Part<'a> {
    let size = dtype.bitsize() / 8;
    Part::rows(name, count, size, move |range, out| {
        out.chunks_exact_mut(size).zip(range).for_each(|(out, i)| put(dtype, scale(i), out));
        Ok(())
    })
}

/// The largest relative error of scales in that type.
///
/// # Errors
/// One that is no scale, or that the type cannot hold.
pub(super) fn rounding(dtype: Dtype, scales: impl Iterator<Item = f32>) -> Result<f64, String> {
    let mut largest = 0.0f64;
    for (index, scale) in scales.enumerate() {
        if !scale.is_finite() || scale < 0.0 {
            return Err(format!("scale {index} is {scale}, should be finite and not negative; pack it again"));
        }
        let stored = rounded(dtype, scale);
        if !stored.is_finite() || (stored == 0.0) != (scale == 0.0) {
            return Err(format!("scale {index} is {scale:e}, which {dtype} cannot hold; export the model in F32"));
        }
        if scale > 0.0 {
            largest = largest.max((f64::from(stored) / f64::from(scale) - 1.0).abs());
        }
    }
    Ok(largest)
}

/// The number of a scale of a plane by filter and the filter's weight.
pub(super) fn scale_index(tensor: &TernaryTensor<'_>, filter: usize, weight: usize) -> usize {
    match tensor.granularity {
        Granularity::Tensor => 0,
        Granularity::Filter => filter,
        Granularity::Group(size) => filter * tensor.filter_len.div_ceil(size as usize) + weight / size as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_codes_at_once_are_four_codes() {
        for codes in (0..81).map(|n: u8| [n % 3, n / 3 % 3, n / 9 % 3, n / 27]) {
            let byte = |number: &dyn Fn(u8) -> u8| codes.iter().rev().fold(0, |byte, &code| byte << 2 | number(code));
            let t2 = byte(&|code| code);
            assert_eq!(Code::TwosComplement.of_four(t2), byte(&|code| code.wrapping_sub(1) & 3), "{codes:?}");
            assert_eq!(Code::PlusTwo.of_four(t2), byte(&|code| code + 1), "{codes:?}");
        }
    }

    /// Every range of tensors of every small form, against plain indexing.
    #[test]
    fn any_range_is_gathered() {
        for (outer, filters, inner) in [(1, 3, 4), (4, 3, 1), (2, 3, 2), (5, 1, 2), (1, 1, 1), (3, 2, 3)] {
            let layout = Layout { filters, inner, weights: outer * filters * inner };
            let expected: Vec<_> =
                (0..layout.weights).map(|e| (e / inner % filters, e / (filters * inner) * inner + e % inner)).collect();
            for start in 0..=layout.weights {
                for end in start..=layout.weights {
                    let mut out = vec![(0, 0); end - start];
                    let read = |filter, range: Range<usize>, out: &mut [(usize, usize)]| {
                        out.iter_mut().zip(range).for_each(|(out, weight)| *out = (filter, weight));
                        Ok(())
                    };
                    layout.gather(start..end, &mut out, read).unwrap();
                    assert_eq!(out, expected[start..end], "{layout:?} {start}..{end}");
                }
            }
        }
    }
}
