//! Layers that learn nothing and mix nothing: ReLU and flatten. Not here: pooling.

use rayon::prelude::*;

use super::{Layer, Pass};
use crate::train::maps::{Maps, Real};

/// Values per piece of work.
const PIECE: usize = 1 << 14;

/// max(0, x); NaN stays.
#[derive(Debug)]
pub struct Relu;

impl<R: Real> Layer<R> for Relu {
    fn kind(&self) -> &'static str {
        "relu"
    }

    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, _pass: Pass) {
        y.values.par_chunks_mut(PIECE).zip(x.values.par_chunks(PIECE)).for_each(|(y, x)| {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = if x < R::zero() { R::zero() } else { x });
        });
    }

    fn backward(&mut self, _x: &Maps<R>, y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        let Some(dx) = dx else { return };
        let pieces = dx.values.par_chunks_mut(PIECE).zip(dy.values.par_chunks(PIECE)).zip(y.values.par_chunks(PIECE));
        pieces.for_each(|((dx, dy), y)| {
            let values = dx.iter_mut().zip(dy).zip(y);
            values.for_each(|((dx, &dy), &y)| *dx = if y > R::zero() { dy } else { R::zero() });
        });
    }
}

/// The same values, in one row per image.
#[derive(Debug)]
pub struct Flatten;

impl<R: Real> Layer<R> for Flatten {
    fn kind(&self) -> &'static str {
        "flatten"
    }

    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, _pass: Pass) {
        y.values.copy_from_slice(&x.values);
    }

    fn backward(&mut self, _x: &Maps<R>, _y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        if let Some(dx) = dx {
            dx.values.copy_from_slice(&dy.values);
        }
    }
}
