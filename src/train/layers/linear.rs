//! Linear layer: y = x·Wᵀ + bias. Not here: how W becomes ternary.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::{Bias, Layer, Pass, Tensor, Weights};
use crate::train::maps::{Maps, PARTS, Real};
use crate::train::matmul::matmul;

/// A row of W per output.
#[derive(Debug)]
pub struct Linear<R: Real> {
    pub weights: Weights<R>,
    pub bias: Option<Bias<R>>,
}

impl<R: Real> Layer<R> for Linear<R> {
    fn kind(&self) -> &'static str {
        "linear"
    }

    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, _pass: Pass) {
        product(x.rows(), self.weights.used().t(), y.rows_mut());
        if let Some(bias) = &self.bias {
            for mut row in y.rows_mut().rows_mut() {
                row.iter_mut().zip(&bias.value).for_each(|(y, bias)| *y += *bias);
            }
        }
    }

    fn backward(&mut self, x: &Maps<R>, _y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        let (gradient, used) = self.weights.gradient_and_used();
        // dW = dyᵀ·x, as its transpose, so that columns are the outputs and pieces of them are rows of dW.
        product(x.rows().reversed_axes(), dy.rows(), gradient.view_mut().reversed_axes());
        if let Some(dx) = dx {
            product(dy.rows(), used.view(), dx.rows_mut());
        }
        if let Some(bias) = &mut self.bias {
            bias.gradient.fill(R::zero());
            for row in dy.rows().rows() {
                bias.gradient.iter_mut().zip(row).for_each(|(sum, dy)| *sum += *dy);
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

/// C = A·B, some columns of C on each thread.
fn product<R: Real>(a: ArrayView2<'_, R>, b: ArrayView2<'_, R>, mut c: ArrayViewMut2<'_, R>) {
    let columns = c.ncols().div_ceil(PARTS).max(16);
    let pieces = c.axis_chunks_iter_mut(Axis(1), columns).into_par_iter();
    pieces.zip(b.axis_chunks_iter(Axis(1), columns)).for_each(|(c, b)| matmul(a, b, c, false));
}
