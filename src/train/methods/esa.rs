//! `esa`: weights are s·tanh θ, and a penalty drives tanh θ to −1, 0 and 1 (sparsity-control TWN,
//! arXiv 2011.00580). No gradient is estimated. At the end t = round(tanh θ).
//!
//! ```text
//! penalty Σ (a − w²)·w²  for w = tanh θ,   d/dθ = 2w·(a − 2w²)·(1 − w²)
//! ```
//!
//! Its minima are 0 and ±1 with a barrier at √(a/2), so that zeros grow with a (`sparsity_alpha`).
//!
//! Two things are not the paper's. It has no scale, since batch norm takes it up; here each filter has s,
//! the α that TWN gives it at the start, so that a layer without batch norm keeps its size, the first t is
//! about TWN's (0 up to s/2), and weights that are ternary already stay what they are. What θ gets of the
//! loss's derivatives is divided by s²: then a step moves s·tanh θ as far as one of plain float weights.
//! And it adds the penalty to the loss; here θ goes down the penalty's slope by itself, behind the
//! optimizer's step (as weight decay does in AdamW, arXiv 1711.05101), so that the penalty neither
//! fades as the learning rate falls nor hangs on the optimizer: all weights have settled at the end.

use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use super::Method;
use crate::select::Settings;
use crate::ternarize::{self, ScaleDtype, Twn};
use crate::train::layers::Pass;
use crate::train::maps::Real;
use crate::{Error, Isa, Result};

/// Where w/s is cut off at the start, so that tanh still moves.
const STEEPEST: f64 = 0.97;
/// How far one step goes down the penalty at most: up to 1/(2a) none goes beyond a minimum.
const FARTHEST: f64 = 0.25;
/// Weights per piece of work.
const PIECE: usize = 1 << 14;

/// One layer's scales.
#[derive(Debug)]
pub(super) struct Esa<R> {
    sparsity_alpha: f64,
    /// What finds s.
    twn: Twn,
    isa: Isa,
    /// s, per filter.
    scales: Vec<R>,
}

impl<R: Real> Esa<R> {
    /// # Errors
    /// When `sparsity_alpha` is not between 0 and 2.
    pub fn new(sparsity_alpha: f64) -> Result<Self> {
        if sparsity_alpha > 0.0 && sparsity_alpha < 2.0 {
            return Ok(Self { sparsity_alpha, twn: Twn::new(Twn::FACTOR)?, isa: Isa::detect()?, scales: Vec::new() });
        }
        Err(Error::Request(format!("sparsity alpha is {sparsity_alpha}; it must lie between 0 and 2, ends excluded")))
    }
}

/// −1, 0 or 1; ±½ go away from 0. (NaN gives 0; weights are looked at elsewhere.)
fn round<R: Real>(w: R) -> R {
    let half = R::from_f64(0.5);
    if w >= half {
        R::one()
    } else if w <= -half {
        -R::one()
    } else {
        R::zero()
    }
}

impl<R: Real> Method<R> for Esa<R> {
    fn start(&mut self, mut w: ArrayViewMut2<'_, R>) {
        self.scales.clear();
        for mut filter in w.rows_mut() {
            let weights = R::unit(self.isa, filter.as_slice().unwrap_or_default());
            let s = f64::from(ternarize::fit(&self.twn, &weights, ScaleDtype::F32).scale);
            self.scales.push(R::from_f64(s));
            let theta = |w: R| if s > 0.0 { (w.to_f64() / s).clamp(-STEEPEST, STEEPEST).atanh() } else { 0.0 };
            filter.iter_mut().for_each(|w| *w = R::from_f64(theta(*w)));
        }
    }

    fn ternarize(&mut self, w: ArrayView2<'_, R>, mut used: ArrayViewMut2<'_, R>, pass: Pass) {
        let n = w.ncols();
        let (Some(w), Some(used)) = (w.as_slice(), used.as_slice_mut()) else { return };
        let filters = used.par_chunks_mut(n).zip(w.par_chunks(n)).zip(&self.scales);
        filters.for_each(|((used, w), &s)| match pass {
            Pass::Train => used.iter_mut().zip(w).for_each(|(used, &w)| *used = s * w.tanh()),
            Pass::Evaluate => used.iter_mut().zip(w).for_each(|(used, &w)| *used = s * round(w.tanh())),
        });
    }

    fn backward(&mut self, _w: ArrayView2<'_, R>, used: ArrayView2<'_, R>, mut gradient: ArrayViewMut2<'_, R>) {
        // d(s·tanh θ)/dθ = s·(1 − tanh² θ), over s².
        let n = used.ncols();
        let (Some(used), Some(gradient)) = (used.as_slice(), gradient.as_slice_mut()) else { return };
        let filters = gradient.par_chunks_mut(n).zip(used.par_chunks(n)).zip(&self.scales);
        filters.filter(|(_, s)| **s > R::zero()).for_each(|((gradient, used), &s)| {
            let inverse = R::one() / s;
            gradient.iter_mut().zip(used).for_each(|(gradient, &used)| {
                let w = used * inverse;
                *gradient *= (R::one() - w * w) * inverse;
            });
        });
    }

    fn remembered(&mut self) -> Option<&mut [R]> {
        Some(&mut self.scales)
    }

    fn after_step(&self, mut w: ArrayViewMut2<'_, R>, distance: f64) {
        let Some(theta) = w.as_slice_mut() else { return };
        let [a, distance, two] = [self.sparsity_alpha, 2.0 * distance.min(FARTHEST), 2.0].map(R::from_f64);
        theta.par_chunks_mut(PIECE).for_each(|theta| {
            for theta in theta {
                let w = theta.tanh();
                let square = w * w;
                *theta -= distance * w * (a - two * square) * (R::one() - square);
            }
        });
    }

    fn settled(&self, w: ArrayView2<'_, R>) -> Option<usize> {
        let near = |theta: &&R| {
            let w = theta.tanh();
            (w - round(w)).to_f64().abs() <= 0.05
        };
        Some(w.iter().filter(near).count())
    }

    fn settings(&self) -> Settings {
        // Of what is ternary already, the optimum is what it is.
        Settings { method: Some("optimal".to_owned()), ..Settings::default() }
    }

    fn saves_used(&self) -> bool {
        true
    }
}
