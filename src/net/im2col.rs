//! What lies under a convolution's filter at each place of its output, as a column; and back, each
//! column added to where it came from. Not here: products.

#[cfg(feature = "train")]
use std::ops::AddAssign;
use std::ops::Range;

use crate::kernel::Conv2d;

/// Gathers what each output sees. `x` is `[channels][height][width]` of the size `input`, `columns` is
/// `[channels][kernel height][kernel width]` × `[output height][output width]`.
pub(crate) fn im2col<T: Copy + Default>(
    x: &[T],
    input: [usize; 2],
    geometry: &Conv2d,
    output: [usize; 2],
    columns: &mut [T],
) {
    let (stride, width) = (geometry.stride[1], output[1]);
    let mut rows = columns.chunks_exact_mut(output[0] * width);
    walk(x.len(), input, geometry, output, |Seen { lines, outputs, start, next }| {
        let Some(row) = rows.next() else { return };
        let whole = outputs.len() == width;
        row[..lines.start * width].fill(T::default());
        row[lines.end * width..].fill(T::default());
        for (i, line) in row[lines.start * width..lines.end * width].chunks_exact_mut(width).enumerate() {
            if !whole {
                line[..outputs.start].fill(T::default());
                line[outputs.end..].fill(T::default());
            }
            let (line, x) = (&mut line[outputs.clone()], &x[start + i * next..]);
            if stride == 1 {
                copy(line, &x[..line.len()]);
            } else {
                line.iter_mut().zip(x.iter().step_by(stride)).for_each(|(y, x)| *y = *x);
            }
        }
    });
}

/// What is short is copied as two pieces that may overlap: a call of `memcpy` takes longer.
#[inline(always)]
fn copy<T: Copy>(to: &mut [T], from: &[T]) {
    #[inline(always)]
    fn ends<T: Copy, const N: usize>(to: &mut [T], from: &[T]) -> Option<()> {
        *to.first_chunk_mut::<N>()? = *from.first_chunk()?;
        *to.last_chunk_mut::<N>()? = *from.last_chunk()?;
        Some(())
    }
    let copied = match to.len() {
        4..8 => ends::<T, 4>(to, from),
        8..=16 => ends::<T, 8>(to, from),
        17..=32 => ends::<T, 16>(to, from),
        _ => None,
    };
    if copied.is_none() {
        to.copy_from_slice(from);
    }
}

/// Adds every column to where [`im2col`] took it from; `x` is overwritten.
#[cfg(feature = "train")]
pub(crate) fn col2im<T: Copy + Default + AddAssign>(
    columns: &[T],
    input: [usize; 2],
    geometry: &Conv2d,
    output: [usize; 2],
    x: &mut [T],
) {
    x.fill(T::default());
    let (stride, width) = (geometry.stride[1], output[1]);
    let mut rows = columns.chunks_exact(output[0] * width);
    walk(x.len(), input, geometry, output, |Seen { lines, outputs, start, next }| {
        let Some(row) = rows.next() else { return };
        for (i, line) in row[lines.start * width..lines.end * width].chunks_exact(width).enumerate() {
            let (x, line) = (&mut x[start + i * next..], &line[outputs.clone()]);
            if stride == 1 {
                let (x, y) = (x[..line.len()].as_chunks_mut::<8>(), line.as_chunks::<8>());
                for (x, y) in x.0.iter_mut().zip(y.0) {
                    (0..8).for_each(|i| x[i] += y[i]);
                }
                x.1.iter_mut().zip(y.1).for_each(|(x, y)| *x += *y);
            } else {
                x.iter_mut().step_by(stride).zip(line).for_each(|(x, y)| *x += *y);
            }
        }
    });
}

/// What one weight of the filter meets.
struct Seen {
    /// The lines of the output for which it lies inside the image, and the outputs of each of them.
    lines: Range<usize>,
    outputs: Range<usize>,
    /// Where in the image the first of those outputs has it, and how much further on that of the next line does.
    start: usize,
    next: usize,
}

/// The outputs along an axis for which a weight of the filter lies inside the image, and where it does for the first of them
/// (of no use where there are none).
pub(super) fn inside(
    geometry: &Conv2d,
    axis: usize,
    weight: usize,
    input: [usize; 2],
    output: [usize; 2],
) -> (Range<usize>, usize) {
    let (stride, padding) = (geometry.stride[axis], geometry.padding[axis]);
    let reach = weight * geometry.dilation[axis];
    // padding ≤ o·stride + reach < padding + size
    let to = (padding + input[axis]).saturating_sub(reach).div_ceil(stride).min(output[axis]);
    let from = padding.saturating_sub(reach).div_ceil(stride).min(to);
    (from..to, (from * stride + reach).wrapping_sub(padding))
}

/// Tells what each weight of the filter meets, in their order: `values` says how many there are in the image.
fn walk(values: usize, input: [usize; 2], geometry: &Conv2d, output: [usize; 2], mut row: impl FnMut(Seen)) {
    let along = |axis: usize| -> Vec<_> {
        (0..geometry.kernel[axis]).map(|weight| inside(geometry, axis, weight, input, output)).collect()
    };
    let [rows, columns] = [0, 1].map(along);
    let (size, next) = (input[0] * input[1], geometry.stride[0] * input[1]);
    for plane in (0..values).step_by(size.max(1)) {
        for (lines, first) in &rows {
            for (outputs, column) in &columns {
                let nothing = lines.is_empty() || outputs.is_empty();
                let (lines, start) =
                    if nothing { (0..0, 0) } else { (lines.clone(), plane + first * input[1] + column) };
                row(Seen { lines, outputs: outputs.clone(), start, next });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition, where filters hang over the edges, skip what is between, or see nothing at all.
    #[test]
    fn columns_are_what_lies_under_the_filter() {
        let input = [7, 33];
        let x: Vec<f32> = (1..=2 * 7 * 33).map(|x| x as f32).collect();
        let sizes = [([1, 1], 1), ([3, 5], 1), ([2, 4], 3), ([7, 2], 1), ([1, 3], 9)];
        for (kernel, dilation) in sizes {
            for (stride, padding) in [([1, 1], [0, 0]), ([2, 1], [1, 2]), ([1, 3], [3, 9]), ([3, 2], [0, 1])] {
                let geometry = Conv2d { kernel, stride, padding, dilation: [1, dilation], groups: 1 };
                let Some(output) = geometry.output(input) else { continue };
                let mut columns = vec![f32::NAN; 2 * kernel[0] * kernel[1] * output[0] * output[1]];
                im2col(&x, input, &geometry, output, &mut columns);
                let mut back = vec![0.0; x.len()];
                let mut next = columns.iter();
                for weight in 0..2 * kernel[0] * kernel[1] {
                    let (plane, at) =
                        (weight / (kernel[0] * kernel[1]), [weight / kernel[1] % kernel[0], weight % kernel[1]]);
                    for place in 0..output[0] * output[1] {
                        let place = [place / output[1], place % output[1]];
                        let [row, column] = [0, 1].map(|i| {
                            (place[i] * stride[i] + at[i] * geometry.dilation[i])
                                .checked_sub(padding[i])
                                .filter(|at| *at < input[i])
                        });
                        let seen = row.zip(column).map(|(row, column)| (plane * input[0] + row) * input[1] + column);
                        let found = *next.next().unwrap();
                        assert_eq!(found, seen.map_or(0.0, |at| x[at]), "{geometry:?}");
                        seen.into_iter().for_each(|at| back[at] += found);
                    }
                }
                #[cfg(feature = "train")]
                {
                    let mut sums = vec![f32::NAN; x.len()];
                    col2im(&columns, input, &geometry, output, &mut sums);
                    assert_eq!(sums, back, "{geometry:?}");
                }
            }
        }
    }
}
