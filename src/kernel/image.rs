//! What lies under a filter, at each of its places on an image: laid down as columns, or as rows of 16
//! columns, straight from a copy of the image with its padding. Not here: the walk's geometry ([`super::conv`]), products.

use std::marker::PhantomData;
use std::ops::Range;

use ndarray::ArrayView3;

use super::activations::{BLOCK, Quantized, Quantizer, magnitude};
use super::digits::{Digits, place8, place32};
use super::lanes::{CHUNK, LANES, Line8, Line32};
use super::rows::Runs;
use super::{Arithmetic, Conv2d};
use crate::pack::Encoding;
use crate::vector::Task;

/// Geometry, `[channels, height, width]`, and for whom places are found.
type Walk = (Conv2d, [usize; 3], Encoding, Arithmetic, Option<Runs>);

/// An image with its padding: `[channels][height][width]`, and behind it so many zeros that what
/// fills up a column finds a zero wherever the filter stands.
#[derive(Debug, Default)]
pub(super) struct Image {
    rounded: Vec<i8>,
    exact: Vec<f32>,
    /// Weights of a filter.
    weights: usize,
    /// For every place of a column's lines, where it lies from the filter's corner.
    places: Vec<u32>,
    /// Where the filter's corner stands, for every output.
    corners: Vec<u32>,
    /// What `places` and `corners` are for.
    walk: Option<Walk>,
}

impl Image {
    /// Finds out where the weights of a filter of `channels` lie in an image of `[channels, height,
    /// width]`, for rows of `runs` or for columns. `None` when the filter does not fit or the image has
    /// 2³¹ places or more.
    pub fn walk<D: Digits>(
        &mut self,
        geometry: &Conv2d,
        image: [usize; 3],
        arithmetic: Arithmetic,
        runs: Option<Runs>,
    ) -> Option<()> {
        let walk = Some((*geometry, image, D::ENCODING, arithmetic, runs));
        if self.walk == walk {
            return Some(());
        }
        self.walk = None;
        let [channels, height, width] = image;
        let [output_height, output_width] = geometry.output([height, width])?;
        let padded = padded(image, geometry.padding);
        let size = channels.checked_mul(padded[0])?.checked_mul(padded[1]).filter(|&size| size < 1 << 31)?;
        let place = |j| match (runs, arithmetic) {
            (Some(runs), _) => runs.row(j),
            (None, Arithmetic::Int8) => place8::<D>(j),
            (None, Arithmetic::ExactF32) => place32::<D>(j),
        };
        let [kernel_height, kernel_width] = geometry.kernel;
        let n = channels * kernel_height * kernel_width;
        self.weights = n;
        self.places.clear();
        self.places.resize(runs.map_or(n.next_multiple_of(D::PER_CHUNK), Runs::rows), size as u32);
        for j in 0..n {
            let (channel, y, x) =
                (j / (kernel_height * kernel_width), j / kernel_width % kernel_height, j % kernel_width);
            let row = channel * padded[0] + y * geometry.dilation[0];
            self.places[place(j)] = (row * padded[1] + x * geometry.dilation[1]) as u32;
        }
        self.corners.clear();
        for y in 0..output_height {
            let row = y * geometry.stride[0] * padded[1];
            self.corners.extend((0..output_width).map(|x| (row + x * geometry.stride[1]) as u32));
        }
        self.walk = walk;
        Some(())
    }

    /// Copies an image, for int8 rounded with one scale for all of it, which is returned.
    pub fn copy(&mut self, image: ArrayView3<'_, f32>, padding: [usize; 2], arithmetic: Arithmetic) -> f32 {
        let behind = self.corners.last().map_or(0, |&corner| corner as usize + 1);
        match arithmetic {
            Arithmetic::Int8 => {
                let quantizer = Quantizer::new(image.iter().fold(0, |max, &x| max.max(magnitude(x))));
                copy(image, padding, behind, &mut self.rounded, |x| quantizer.round(x));
                quantizer.scale
            }
            Arithmetic::ExactF32 => {
                copy(image, padding, behind, &mut self.exact, |x| x);
                1.0
            }
        }
    }

    /// Activations per column, with the zeros that fill it up.
    pub fn column_len(&self) -> usize {
        self.places.len()
    }
}

/// Lays down what lies under the filter at one output, as [`super::activations::Pack8`] does.
pub(super) struct Column8<'a, D> {
    pub image: &'a Image,
    pub output: usize,
    pub scale: f32,
    pub lines: &'a mut [Line8],
    pub column: &'a mut Quantized,
    pub sums: &'a mut [[i32; LANES]],
    pub digits: PhantomData<D>,
}

impl<D: Digits> Task for Column8<'_, D> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let from = &self.image.rounded[self.image.corners[self.output] as usize..];
        let places = self.image.places.as_chunks::<CHUNK>().0;
        for (i, (line, places)) in self.lines.iter_mut().zip(places).enumerate() {
            // Bytes that hold weights; those behind them stay empty.
            let left = self.image.weights.saturating_sub(i / D::PER_BYTE * D::PER_CHUNK);
            let used = left.div_ceil(D::PER_BYTE).min(CHUNK);
            for (to, &place) in line.0[..used].iter_mut().zip(places) {
                *to = from[place as usize];
            }
            line.0[used..].fill(0);
        }
        let mut total = 0;
        for (sums, lines) in self.sums.iter_mut().zip(self.lines.chunks_exact(D::PER_BYTE)) {
            let mut bytes = [0; CHUNK];
            for line in lines {
                bytes.iter_mut().zip(&line.0).for_each(|(sum, &q)| *sum += i16::from(q));
            }
            for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *sum = bytes.iter().map(|&q| i32::from(q)).sum();
            }
            total += i64::from(sums.iter().sum::<i32>());
        }
        *self.column = Quantized { scale: self.scale, sum: total };
    }
}

/// The same as [`super::activations::Pack32`] does.
pub(super) struct Column32<'a, D> {
    pub image: &'a Image,
    pub output: usize,
    pub lines: &'a mut [Line32],
    pub digits: PhantomData<D>,
}

impl<D: Digits> Task for Column32<'_, D> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let from = &self.image.exact[self.image.corners[self.output] as usize..];
        let places = self.image.places.as_chunks::<LANES>().0;
        for (i, (line, places)) in self.lines.iter_mut().zip(places).enumerate() {
            // Lanes that hold weights; those behind them stay empty.
            let left = self.image.weights.saturating_sub(i / D::PER_LANE * D::PER_CHUNK);
            let used = left.div_ceil(D::PER_LANE).min(LANES);
            for (to, &place) in line.0[..used].iter_mut().zip(places) {
                *to = from[place as usize];
            }
            line.0[used..].fill(0.0);
        }
    }
}

/// Lays down what lies under the filter at no more than [`BLOCK`] outputs, as [`super::rows::PackRows`] does.
pub(super) struct ImageRows<'a> {
    pub image: &'a Image,
    pub outputs: Range<usize>,
    pub arithmetic: Arithmetic,
    pub lines: &'a mut [Line32],
}

impl Task for ImageRows<'_> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let Image { rounded, exact, places, corners, .. } = self.image;
        let corners = &corners[self.outputs];
        match self.arithmetic {
            Arithmetic::Int8 => lay_rows(rounded, corners, places, self.lines, f32::from),
            Arithmetic::ExactF32 => lay_rows(exact, corners, places, self.lines, |x| x),
        }
    }
}

#[inline(always)]
fn lay_rows<T: Copy>(
    from: &[T],
    corners: &[u32],
    places: &[u32],
    lines: &mut [Line32],
    convert: impl Fn(T) -> f32 + Copy,
) {
    let neighbours = corners.len() == BLOCK && corners.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    for (line, &place) in lines.iter_mut().zip(places) {
        if neighbours {
            let from = &from[(corners[0] + place) as usize..][..BLOCK];
            line.0.iter_mut().zip(from).for_each(|(to, &x)| *to = convert(x));
            continue;
        }
        for (to, &corner) in line.0.iter_mut().zip(corners) {
            *to = convert(from[(corner + place) as usize]);
        }
        line.0[corners.len()..].fill(0.0);
    }
}

/// `[height, width]` with the padding.
fn padded([_, height, width]: [usize; 3], padding: [usize; 2]) -> [usize; 2] {
    [height + 2 * padding[0], width + 2 * padding[1]]
}

fn copy<T: Copy + Default>(
    image: ArrayView3<'_, f32>,
    padding: [usize; 2],
    behind: usize,
    to: &mut Vec<T>,
    convert: impl Fn(f32) -> T,
) {
    let (channels, height, width) = image.dim();
    let padded = padded([channels, height, width], padding);
    to.clear();
    to.resize(channels * padded[0] * padded[1] + behind, T::default());
    for (channel, image) in image.outer_iter().enumerate() {
        for (y, row) in image.rows().into_iter().enumerate() {
            let start = (channel * padded[0] + padding[0] + y) * padded[1] + padding[1];
            to[start..start + width].iter_mut().zip(row).for_each(|(to, &x)| *to = convert(x));
        }
    }
}
