//! `tga`: Δ is learned with the weights, one per layer, and α follows from it: the mean of |w|
//! beyond Δ if the weights were N(μ, σ²) (Truncated Gaussian Approximation, arXiv 1810.01018).
//!
//! ```text
//! a = (Δ−μ)/σ, b = (−Δ−μ)/σ, P₊ = 1−Φ(a), P₋ = Φ(b)
//! α(Δ) = (σ·(φ(a)+φ(b)) + μ·(P₊−P₋)) / (P₊+P₋)
//! dα/dΔ = (α−Δ)·(φ(a)+φ(b)) / (σ·(P₊+P₋))
//! dL/dΔ = Σ dL/d(α·t)·t·dα/dΔ
//! ```
//!
//! The straight-through derivatives are TWN's. Δ starts at 0.05·max|w|. The sum over a layer's n weights is
//! divided by n: to Adam, with which the paper trains, that is nothing; under plain SGD Δ would move n times
//! as far as a weight, and in a last layer without batch norm, where a larger α is always welcome, lose all
//! of its weights in the first epoch. The loss reaches Δ through α alone, and batch norm behind a layer takes
//! α out again: there Δ hardly moves under SGD, and it takes Adam, which does not mind how small a derivative is.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::Method;
use super::straight_through::project;
use crate::container::Granularity;
use crate::select::Settings;
use crate::ternarize::Threshold;
use crate::train::layers::Pass;
use crate::train::maps::Real;

/// Where Δ starts, of max|w|.
const START: f64 = 0.05;

/// Δ stays under so many σ: beyond, hardly a weight is left, and P₊+P₋ vanishes.
const LARGEST: f64 = 3.0;

/// One layer's threshold.
#[derive(Debug, Default)]
pub(super) struct Tga<R> {
    delta: [R; 1],
    gradient: [R; 1],
    /// dα/dΔ, of the last forward pass.
    slope: f64,
}

/// μ and σ.
fn moments<R: Real>(w: ArrayView2<'_, R>) -> [f64; 2] {
    let count = w.len() as f64;
    let mean = w.iter().map(|w| w.to_f64()).sum::<f64>() / count;
    let variance = w.iter().map(|w| (w.to_f64() - mean).powi(2)).sum::<f64>() / count;
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
    fn start(&mut self, w: ArrayViewMut2<'_, R>) {
        let max = w.iter().fold(0.0, |max: f64, w| max.max(w.abs().to_f64()));
        self.delta = [R::from_f64(START * max)];
    }

    fn ternarize(&mut self, w: ArrayView2<'_, R>, mut used: ArrayViewMut2<'_, R>, _pass: Pass) {
        let [mu, sigma] = moments(w);
        // Not clamp, which panics where σ is NaN; that is for the loss to say.
        let delta = self.delta[0].to_f64().min(LARGEST * sigma).max(0.0);
        self.delta = [R::from_f64(delta)];
        let [alpha, slope] = truncated([mu, sigma], delta);
        self.slope = slope;
        let (Some(w), Some(used)) = (w.as_slice(), used.as_slice_mut()) else { return };
        project(Threshold::Delta(self.delta[0].to_f64()), R::from_f64(alpha), w, used);
    }

    fn backward(&mut self, _w: ArrayView2<'_, R>, used: ArrayView2<'_, R>, gradient: ArrayViewMut2<'_, R>) {
        let signed = used.iter().zip(&gradient).map(|(used, gradient)| match used.to_f64() {
            0.0 => 0.0,
            used => gradient.to_f64() * used.signum(),
        });
        self.gradient = [R::from_f64(signed.sum::<f64>() * self.slope / used.len().max(1) as f64)];
    }

    fn learned(&mut self) -> Option<(&mut [R], &mut [R])> {
        Some((&mut self.delta, &mut self.gradient))
    }

    fn settings(&self) -> Settings {
        // Of what is ternary already, the optimum is what it is.
        Settings { method: Some("optimal".to_owned()), granularity: Some(Granularity::Tensor), ..Settings::default() }
    }

    fn saves_used(&self) -> bool {
        true
    }
}
