//! Convolutions: what lies under the filter at each place of the output becomes a column of
//! activations, laid down straight from a copy of the image with its padding. Not here: products.

use ndarray::ArrayView3;
use rayon::prelude::*;

use super::activations::{Quantized, Quantizer, magnitude};
use super::digits::Digits;
use super::lanes::{CHUNK, LANES, Line8, Line32};

/// How a convolution walks over its input: `[height, width]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// The filter's size in space.
    pub kernel: [usize; 2],
    /// Steps between outputs. At least 1.
    pub stride: [usize; 2],
    /// Zeros around the input.
    pub padding: [usize; 2],
    /// Steps between the inputs of one output. At least 1.
    pub dilation: [usize; 2],
    /// Channels and filters fall into so many groups that do not see each other. At least 1.
    pub groups: usize,
}

impl Conv2d {
    /// A dense convolution without padding, stride or dilation.
    pub fn new(kernel: [usize; 2]) -> Self {
        Self { kernel, stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 }
    }

    /// The output's size for an input's, as in PyTorch; `None` where no filter fits, or a stride,
    /// dilation or kernel is 0.
    pub fn output(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let along = |i: usize| {
            let padded = self.padding[i].checked_mul(2)?.checked_add(input[i])?;
            let reach = self.kernel[i].checked_sub(1)?.checked_mul(self.dilation[i])?;
            let steps = padded.checked_sub(reach)?.checked_sub(1)?;
            (self.dilation[i] > 0).then_some(())?;
            Some(steps.checked_div(self.stride[i])? + 1)
        };
        Some([along(0)?, along(1)?])
    }
}

/// An image with its padding: `[channels][height][width]`, and behind it so many zeros that a place
/// behind the image is zero wherever the filter stands.
#[derive(Debug, Default)]
pub(super) struct Image {
    rounded: Vec<i8>,
    exact: Vec<f32>,
    /// For every place of a column's lines, where in the image it comes from.
    places: Vec<u32>,
    starts: Vec<u32>,
}

impl Image {
    /// Where the weights of a filter of `channels` lie in an image of that size, by `place` in a
    /// column's lines, which hold `len` activations; and where the filter stands for each output.
    /// `None` when the image has 2³¹ places or more.
    pub fn walk(
        &mut self,
        geometry: &Conv2d,
        [channels, height, width]: [usize; 3],
        place: impl Fn(usize) -> usize,
        len: usize,
    ) -> Option<()> {
        let [output_height, output_width] = geometry.output([height, width])?;
        let padded = [height + 2 * geometry.padding[0], width + 2 * geometry.padding[1]];
        let size = channels.checked_mul(padded[0])?.checked_mul(padded[1]).filter(|&size| size < 1 << 31)?;
        self.places.clear();
        self.places.resize(len, size as u32);
        let [kernel_height, kernel_width] = geometry.kernel;
        for j in 0..channels * kernel_height * kernel_width {
            let (channel, y, x) =
                (j / (kernel_height * kernel_width), j / kernel_width % kernel_height, j % kernel_width);
            let row = channel * padded[0] + y * geometry.dilation[0];
            self.places[place(j)] = (row * padded[1] + x * geometry.dilation[1]) as u32;
        }
        self.starts.clear();
        for y in 0..output_height {
            let row = y * geometry.stride[0] * padded[1];
            self.starts.extend((0..output_width).map(|x| (row + x * geometry.stride[1]) as u32));
        }
        Some(())
    }

    /// Activations per column, with the zeros that fill it up.
    pub fn column_len(&self) -> usize {
        self.places.len()
    }

    /// Copies an image, rounded to 8 bits with one scale for all of it, which is returned.
    pub fn round(&mut self, image: ArrayView3<'_, f32>, padding: [usize; 2]) -> f32 {
        let quantizer = Quantizer::new(image.iter().fold(0, |max, &x| max.max(magnitude(x))));
        copy(image, padding, &mut self.rounded, self.starts.last(), |x| quantizer.round(x));
        quantizer.scale
    }

    /// Copies an image as it is; its scale is 1.
    pub fn keep(&mut self, image: ArrayView3<'_, f32>, padding: [usize; 2]) -> f32 {
        copy(image, padding, &mut self.exact, self.starts.last(), |x| x);
        1.0
    }

    /// Lays down the columns of the outputs from `first` on: as [`super::activations::Pack8`] does.
    pub fn columns8<D: Digits>(
        &self,
        first: usize,
        scale: f32,
        lines: &mut [Line8],
        columns: &mut [Quantized],
        sums: &mut [[i32; LANES]],
    ) {
        let (per_column, chunks) = (self.places.len() / CHUNK, self.places.len() / CHUNK / D::PER_BYTE);
        let outputs = lines.par_chunks_mut(per_column).zip(columns).zip(sums.par_chunks_mut(chunks)).with_min_len(16);
        outputs.zip(&self.starts[first..]).for_each(|(((lines, column), sums), &start)| {
            for (line, places) in lines.iter_mut().zip(self.places.as_chunks().0) {
                line.0 = places.map(|place| self.rounded[(start + place) as usize]);
            }
            for (sums, lines) in sums.iter_mut().zip(lines.chunks(D::PER_BYTE)) {
                *sums = [0; LANES];
                for line in lines {
                    for (sum, bytes) in sums.iter_mut().zip(line.0.as_chunks::<4>().0) {
                        *sum += bytes.iter().map(|&q| i32::from(q)).sum::<i32>();
                    }
                }
            }
            *column = Quantized { scale, sum: sums.as_flattened().iter().map(|&sum| i64::from(sum)).sum() };
        });
    }

    /// The same as [`super::activations::Pack32`] does.
    pub fn columns32(&self, first: usize, lines: &mut [Line32]) {
        let outputs = lines.par_chunks_mut(self.places.len() / LANES).with_min_len(16);
        outputs.zip(&self.starts[first..]).for_each(|(lines, &start)| {
            for (line, places) in lines.iter_mut().zip(self.places.as_chunks().0) {
                line.0 = places.map(|place| self.exact[(start + place) as usize]);
            }
        });
    }
}

fn copy<T: Copy + Default>(
    image: ArrayView3<'_, f32>,
    padding: [usize; 2],
    to: &mut Vec<T>,
    last_start: Option<&u32>,
    convert: impl Fn(f32) -> T,
) {
    let (channels, height, width) = image.dim();
    let padded = [height + 2 * padding[0], width + 2 * padding[1]];
    to.clear();
    to.resize(channels * padded[0] * padded[1] + last_start.map_or(0, |&start| start as usize + 1), T::default());
    for (channel, image) in image.outer_iter().enumerate() {
        for (y, row) in image.rows().into_iter().enumerate() {
            let start = (channel * padded[0] + padding[0] + y) * padded[1] + padding[1];
            to[start..start + width].iter_mut().zip(row).for_each(|(to, &x)| *to = convert(x));
        }
    }
}
