//! Convolution: every image is unrolled (im2col) and multiplied, one group at a time. Not here: how W
//! becomes ternary.
//!
//! ```text
//!  forward   y  = W·X            W: filters × n, X: n × outputs, the columns under the filter
//!  backward  dWᵀ = Σ X·dyᵀ       over the images, in a fixed order; X would have to be turned for Σ dy·Xᵀ, dy is smaller
//!            dx = fold(Wᵀ·dy)    each column's derivatives added where its values came from
//! ```

use ndarray::{Array2, Axis, s};
use rayon::prelude::*;

use super::{Bias, Layer, Pass, Tensor, Weights};
use crate::kernel;
use crate::net::im2col::{col2im, im2col};
use crate::train::maps::{Maps, PARTS, Real, matrix, matrix_mut};
use crate::train::matmul::matmul;

/// Filters that walk over the images.
#[derive(Debug)]
pub struct Conv2d<R: Real> {
    weights: Weights<R>,
    bias: Option<Bias<R>>,
    geometry: kernel::Conv2d,
    /// Unrolled images, one per piece of the batch.
    columns: Vec<R>,
    /// Each piece's dW, group by group n × filters.
    gradients: Vec<R>,
}

/// Into how many pieces a batch is cut, each with a sum of its own for dW: the same for any number of threads.
pub fn conv_pieces(images: usize) -> usize {
    images.div_ceil(images.div_ceil(PARTS).max(1))
}

impl<R: Real> Conv2d<R> {
    /// With those weights, which walk in that way.
    pub fn new(weights: Weights<R>, bias: Option<Bias<R>>, geometry: kernel::Conv2d) -> Self {
        Self { weights, bias, geometry, columns: Vec::new(), gradients: Vec::new() }
    }
}

impl<R: Real> Layer<R> for Conv2d<R> {
    fn kind(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, _pass: Pass) {
        let w = self.weights.used();
        let walk = Walk::new(&self.geometry, x, y);
        let (column, piece) = (w.ncols() * y.map_len(), x.images().div_ceil(PARTS));
        self.columns.resize(conv_pieces(x.images()) * column, R::zero());
        let parts = y.values.par_chunks_mut(piece * walk.image_out).zip(x.values.par_chunks(piece * walk.image_in));
        let bias = self.bias.as_ref().map(|bias| &*bias.value);
        parts.zip(self.columns.par_chunks_mut(column)).for_each(|((y, x), columns)| {
            for (y, x) in y.chunks_mut(walk.image_out).zip(x.chunks(walk.image_in)) {
                walk.forward(w, bias, x, columns, y);
            }
        });
    }

    fn backward(&mut self, x: &Maps<R>, _y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        let (gradient, used) = self.weights.gradient_and_used();
        let (filters, n) = gradient.dim();
        let walk = Walk::new(&self.geometry, x, dy);
        let piece = x.images().div_ceil(PARTS);
        let pieces = conv_pieces(x.images());
        self.columns.resize(pieces * n * dy.map_len(), R::zero());
        self.gradients.clear();
        self.gradients.resize(pieces * filters * n, R::zero());
        let parts = x.values.par_chunks(piece * walk.image_in).zip(dy.values.par_chunks(piece * walk.image_out));
        let parts = parts.zip(self.columns.par_chunks_mut(n * dy.map_len()));
        let parts = parts.zip(self.gradients.par_chunks_mut(filters * n));
        let parts = parts.map(|(((x, dy), columns), sum)| Piece { x, dy, columns, sum });
        match dx {
            Some(dx) => {
                let dx = dx.values.par_chunks_mut(piece * walk.image_in);
                parts.zip(dx).for_each(|(piece, dx)| piece.backward(&walk, used, Some(dx)));
            }
            None => parts.for_each(|piece| piece.backward(&walk, used, None)),
        }
        let (sums, rest) = self.gradients.split_at_mut(filters * n);
        sums.par_chunks_mut(4096).enumerate().for_each(|(i, sums)| {
            for part in rest.chunks(filters * n) {
                sums.iter_mut().zip(&part[i * 4096..]).for_each(|(sum, part)| *sum += *part);
            }
        });
        let each = filters / self.geometry.groups;
        for (mut gradient, sum) in gradient.axis_chunks_iter_mut(Axis(0), each).zip(sums.chunks(each * n)) {
            gradient.assign(&matrix(sum, [n, each]).t());
        }
        if let Some(bias) = &mut self.bias {
            bias.gradient.fill(R::zero());
            for image in dy.values.chunks(walk.image_out) {
                let maps = bias.gradient.iter_mut().zip(image.chunks(dy.map_len()));
                maps.for_each(|(sum, map)| *sum += map.iter().copied().sum());
            }
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Tensor<'_, R>)) {
        visit(Tensor::Weights(&mut self.weights));
        if let Some(Bias { name, value, gradient }) = &mut self.bias {
            visit(Tensor::Vector { name, value, gradient });
        }
    }
}

/// How the filters walk over an image, and how large it is.
struct Walk<'a> {
    geometry: &'a kernel::Conv2d,
    input: [usize; 2],
    output: [usize; 2],
    image_in: usize,
    image_out: usize,
}

impl<'a> Walk<'a> {
    fn new<R: Real>(geometry: &'a kernel::Conv2d, x: &Maps<R>, y: &Maps<R>) -> Self {
        let [input, output] = [x, y].map(|maps| [maps.shape[2], maps.shape[3]]);
        Self { geometry, input, output, image_in: x.image_len(), image_out: y.image_len() }
    }

    /// One image, group by group.
    fn forward<R: Real>(&self, w: &Array2<R>, bias: Option<&[R]>, x: &[R], columns: &mut [R], y: &mut [R]) {
        let ((filters, n), groups) = (w.dim(), self.geometry.groups);
        let (each, outputs) = (filters / groups, self.output[0] * self.output[1]);
        let images = x.chunks(self.image_in / groups).zip(y.chunks_mut(self.image_out / groups));
        for (group, (x, y)) in images.enumerate() {
            im2col(x, self.input, self.geometry, self.output, columns);
            let w = w.slice(s![group * each..(group + 1) * each, ..]);
            matmul(w, matrix(columns, [n, outputs]), matrix_mut(y, [each, outputs]), false);
        }
        let maps = y.chunks_mut(outputs).zip(bias.into_iter().flatten());
        maps.for_each(|(y, bias)| y.iter_mut().for_each(|y| *y += *bias));
    }
}

/// Some images of the batch.
struct Piece<'a, R> {
    x: &'a [R],
    dy: &'a [R],
    /// Room for one group of an unrolled image: n × outputs.
    columns: &'a mut [R],
    /// Their dW, zero at first.
    sum: &'a mut [R],
}

impl<R: Real> Piece<'_, R> {
    fn backward(self, walk: &Walk<'_>, w: &Array2<R>, mut dx: Option<&mut [R]>) {
        let Walk { geometry, input, output, image_in, image_out } = *walk;
        let ((filters, n), groups) = (w.dim(), geometry.groups);
        let outputs = output[0] * output[1];
        for (i, (x, dy)) in self.x.chunks(image_in).zip(self.dy.chunks(image_out)).enumerate() {
            for group in 0..groups {
                let rows = group * (filters / groups)..(group + 1) * (filters / groups);
                let channels = group * (image_in / groups)..(group + 1) * (image_in / groups);
                let dy = matrix(&dy[rows.start * outputs..rows.end * outputs], [rows.len(), outputs]);
                im2col(&x[channels.clone()], input, geometry, output, self.columns);
                let sum = matrix_mut(&mut self.sum[rows.start * n..rows.end * n], [n, rows.len()]);
                matmul(matrix(self.columns, [n, outputs]), dy.reversed_axes(), sum, true);
                let Some(dx) = &mut dx else { continue };
                let w = w.slice(s![rows, ..]);
                matmul(w.reversed_axes(), dy, matrix_mut(self.columns, [n, outputs]), false);
                col2im(self.columns, input, geometry, output, &mut dx[i * image_in..][channels]);
            }
        }
    }
}
