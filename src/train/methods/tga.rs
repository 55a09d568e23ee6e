//! `tga`: Δ = f·σ, where f is learned with the weights, one per layer, and α follows from Δ: the mean of |w|
//! beyond it if the weights were N(μ, σ²) (Truncated Gaussian Approximation, arXiv 1810.01018).
//!
//! ```text
//! a = (Δ−μ)/σ, b = (−Δ−μ)/σ, P₊ = 1−Φ(a), P₋ = Φ(b)
//! α(Δ) = (σ·(φ(a)+φ(b)) + μ·(P₊−P₋)) / (P₊+P₋)
//! dα/dΔ = (α−Δ)·(φ(a)+φ(b)) / (σ·(P₊+P₋))
//! dL/df = σ·Σ dL/d(α·t)·t·dα/dΔ
//! ```
//!
//! The straight-through derivatives are TWN's. f starts at 0.6, TWN's threshold for Gaussian weights (arXiv 1605.04711,
//! section 2.2), and Δ follows the weights as they spread. The paper learns Δ itself, from 0.05·max|w| of a trained
//! network; of random weights, which are uniform and have no tails, that is 0.09·σ, and since Δ hardly moves under SGD
//! next to no weight becomes zero from there.
//!
//! The sum over a layer's n weights is divided by n: to Adam, with which the paper trains, that is nothing; under plain
//! SGD f would move n times as far as a weight, and in a last layer without batch norm, where a larger α is always
//! welcome, lose all of its weights in the first epoch. The loss reaches f through α alone, and batch norm behind a layer
//! takes α out again: there f hardly moves under SGD, and it takes Adam, which does not mind how small a derivative is.

use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use super::Method;
use super::straight_through::project;
use crate::container::Granularity;
use crate::select::Settings;
use crate::ternarize::Threshold;
use crate::train::layers::Pass;
use crate::train::maps::Real;
use crate::vector::Task;
use crate::{Isa, Result};

/// Where f starts.
const START: f64 = 0.6;

/// f stays under this: beyond, hardly a weight is left, and P₊+P₋ vanishes.
const LARGEST: f64 = 3.0;

/// Weights per piece of work.
const PIECE: usize = 1 << 14;

/// One layer's threshold.
#[derive(Debug)]
pub(super) struct Tga<R> {
    isa: Isa,
    /// f, which is Δ over σ.
    factor: [R; 1],
    gradient: [R; 1],
    /// dα/df, of the last forward pass.
    slope: f64,
}

impl<R: Real> Tga<R> {
    pub fn new() -> Result<Self> {
        Ok(Self { isa: Isa::detect()?, factor: [R::from_f64(START)], gradient: [R::zero()], slope: 0.0 })
    }
}

/// Σ f over pairs of values, in lanes: the same bits for every instruction set.
struct Sum<'a, R, F> {
    a: &'a [R],
    /// As many as `a`.
    b: &'a [R],
    f: F,
}

impl<R: Real, F: Fn(f64, f64) -> f64> Task for Sum<'_, R, F> {
    type Output = f64;

    #[inline(always)]
    fn portable(self) -> f64 {
        let mut lanes = [0.0; 16];
        let ((a, a_rest), (b, b_rest)) = (self.a.as_chunks::<16>(), self.b.as_chunks::<16>());
        for (a, b) in a.iter().zip(b) {
            for i in 0..16 {
                lanes[i] += (self.f)(a[i].to_f64(), b[i].to_f64());
            }
        }
        let rest = a_rest.iter().zip(b_rest).map(|(a, b)| (self.f)(a.to_f64(), b.to_f64()));
        lanes.iter().sum::<f64>() + rest.sum::<f64>()
    }
}

/// Σ f, piece by piece on all threads, added up in their order.
fn sum<R: Real>(isa: Isa, a: &[R], b: &[R], f: impl Fn(f64, f64) -> f64 + Copy + Send + Sync) -> f64 {
    let pieces = a.par_chunks(PIECE).zip(b.par_chunks(PIECE)).map(|(a, b)| isa.run(Sum { a, b, f }));
    pieces.collect::<Vec<f64>>().iter().sum()
}

/// μ and σ.
fn moments<R: Real>(isa: Isa, w: &[R]) -> [f64; 2] {
    let count = w.len() as f64;
    let mean = sum(isa, w, w, |w, _| w) / count;
    let variance = sum(isa, w, w, |w, _| (w - mean) * (w - mean)) / count;
    [mean, variance.sqrt()]
}

/// α(Δ) and its derivative.
pub(super) fn truncated([mu, sigma]: [f64; 2], delta: f64) -> [f64; 2] {
    if sigma == 0.0 {
        return [mu.abs(), 0.0];
    }
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let above = |x: f64| 0.5 * libm::erfc(x / std::f64::consts::SQRT_2);
    let (a, b) = ((delta - mu) / sigma, (-delta - mu) / sigma);
    let (plus, minus) = (above(a), above(-b));
    let densities = density(a) + density(b);
    let alpha = (sigma * densities + mu * (plus - minus)) / (plus + minus);
    [alpha, (alpha - delta) * densities / (sigma * (plus + minus))]
}

impl<R: Real> Method<R> for Tga<R> {
    fn ternarize(&mut self, w: ArrayView2<'_, R>, mut used: ArrayViewMut2<'_, R>, _pass: Pass) {
        let (Some(w), Some(used)) = (w.as_slice(), used.as_slice_mut()) else { return };
        let [mu, sigma] = moments(self.isa, w);
        let factor = self.factor[0].to_f64().clamp(0.0, LARGEST);
        self.factor = [R::from_f64(factor)];
        let delta = factor * sigma;
        let [alpha, slope] = truncated([mu, sigma], delta);
        self.slope = slope * sigma;
        let (threshold, alpha) = (Threshold::Delta(delta), R::from_f64(alpha));
        used.par_chunks_mut(PIECE).zip(w.par_chunks(PIECE)).for_each(|(used, w)| project(threshold, alpha, w, used));
    }

    fn backward(&mut self, _w: ArrayView2<'_, R>, used: ArrayView2<'_, R>, gradient: ArrayViewMut2<'_, R>) {
        let (Some(used), Some(gradient)) = (used.as_slice(), gradient.as_slice()) else { return };
        // By the sign of what was used.
        let signed = sum(self.isa, used, gradient, |used, gradient| {
            let plus = if used > 0.0 { gradient } else { 0.0 };
            if used < 0.0 { -gradient } else { plus }
        });
        self.gradient = [R::from_f64(signed * self.slope / used.len().max(1) as f64)];
    }

    fn learned(&mut self) -> Option<(&mut [R], &mut [R])> {
        Some((&mut self.factor, &mut self.gradient))
    }

    fn settings(&self) -> Settings {
        // Of what is ternary already, the optimum is what it is.
        Settings { method: Some("optimal".to_owned()), granularity: Some(Granularity::Tensor), ..Settings::default() }
    }

    fn saves_used(&self) -> bool {
        true
    }
}
