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
    let stride = geometry.stride[1];
    for (row, columns) in columns.chunks_mut(output[0] * output[1]).enumerate() {
        let walk = Walk::new(row, input, geometry, output);
        for (y, line) in columns.chunks_mut(output[1]).enumerate() {
            let Some(start) = walk.start(y) else {
                line.fill(T::default());
                continue;
            };
            let Range { start: from, end: to } = walk.outputs;
            let x = &x[start..walk.plane.end];
            line[..from].fill(T::default());
            line[to..].fill(T::default());
            if stride == 1 {
                line[from..to].copy_from_slice(&x[..to - from]);
            } else {
                line[from..to].iter_mut().zip(x.iter().step_by(stride)).for_each(|(y, x)| *y = *x);
            }
        }
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
    let stride = geometry.stride[1];
    for (row, columns) in columns.chunks(output[0] * output[1]).enumerate() {
        let walk = Walk::new(row, input, geometry, output);
        for (y, line) in columns.chunks(output[1]).enumerate() {
            let Some(start) = walk.start(y) else { continue };
            let (x, line) = (&mut x[start..walk.plane.end], &line[walk.outputs.clone()]);
            if stride == 1 {
                x.iter_mut().zip(line).for_each(|(x, y)| *x += *y);
            } else {
                x.iter_mut().step_by(stride).zip(line).for_each(|(x, y)| *x += *y);
            }
        }
    }
}

/// How one weight of the filter walks over its channel.
struct Walk<'a> {
    geometry: &'a Conv2d,
    input: [usize; 2],
    /// The weight's row and column in the kernel.
    at: [usize; 2],
    /// Where its channel lies.
    plane: Range<usize>,
    /// The outputs of a line that see the image: padding ≤ o·stride + column·dilation < padding + width.
    outputs: Range<usize>,
}

impl<'a> Walk<'a> {
    fn new(weight: usize, input: [usize; 2], geometry: &'a Conv2d, output: [usize; 2]) -> Self {
        let [height, width] = geometry.kernel;
        let (channel, at) = (weight / (height * width), [weight / width % height, weight % width]);
        let size = input[0] * input[1];
        let (reach, padding, stride) = (at[1] * geometry.dilation[1], geometry.padding[1], geometry.stride[1]);
        let to = (padding + input[1]).saturating_sub(reach).div_ceil(stride).min(output[1]);
        let from = padding.saturating_sub(reach).div_ceil(stride).min(to);
        Self { geometry, input, at, plane: channel * size..(channel + 1) * size, outputs: from..to }
    }

    /// What the first of those outputs sees in line `y` of the output, if any does.
    fn start(&self, y: usize) -> Option<usize> {
        let Conv2d { stride, padding, dilation, .. } = self.geometry;
        let row = (y * stride[0] + self.at[0] * dilation[0]).wrapping_sub(padding[0]);
        let column = self.outputs.start * stride[1] + self.at[1] * dilation[1];
        (row < self.input[0] && !self.outputs.is_empty())
            .then(|| self.plane.start + row * self.input[1] + column - padding[1])
    }
}
