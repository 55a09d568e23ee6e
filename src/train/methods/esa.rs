//! `esa`: weights are s·tanh θ, and a penalty drives tanh θ to −1, 0 and 1 (sparsity-control TWN,
//! arXiv 2011.00580). At the end t = round(tanh θ).
//!
//! ```text
//! penalty Σ (a − w²)·w²  for w = tanh θ,   d/dθ = 2w·(a − 2w²)·(1 − w²)
//! ```
//!
//! Its minima are 0 and ±1 with a barrier at √(a/2), so that zeros grow with a (`sparsity_alpha`).
//!
//! What is not the paper's:
//!
//! - It has no scale, since batch norm takes it up. Here each filter has s, so that a layer without batch norm
//!   can have outputs of any size. s starts as TWN's α, so that ternary weights stay what they are, and is
//!   learned. What it gets of the derivative Σ g·w is divided by Σ w², and what θ gets by s (another s is in
//!   the derivative): both then move s·w about as far as plain float weights would go.
//! - θ takes the derivatives by w without tanh's factor 1 − w², which is mirror descent with tanh as the
//!   map (arXiv 1910.08237): weights near ±1 stay as mobile as all others, until the penalty holds them.
//!   And it takes [`FASTER`] times as much.
//! - The penalty is not added to the loss. θ goes down its slope by itself, behind the optimizer's step (as
//!   weight decay does in AdamW, arXiv 1711.05101), so that the penalty neither fades as the learning rate
//!   falls nor hangs on the optimizer: after some hundreds of steps nearly all weights have settled.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use super::Method;
use crate::select::Settings;
use crate::ternarize::{self, ScaleDtype, Twn};
use crate::train::layers::Pass;
use crate::train::maps::{Real, sum};
use crate::vector::Task;
use crate::{Error, Isa, Result};

/// a, where nobody asks for another.
pub(super) const SPARSITY_ALPHA: f64 = 0.5;
/// Where w/s is cut off at the start, for a up to 1: beyond, tanh hardly moves.
const STEEPEST: f64 = 0.8;
/// By how much θ is faster than float weights: with 1 it is behind `twn` in every epoch (docs/accuracy.md).
const FASTER: f64 = 4.0;
/// s stays above this share of what it was at the start: θ moves by 1/s.
const LEAST: f64 = 0.01;
/// A filter of so small a scale is one of zeros: θ would move by more than a number holds.
const DEAD: f64 = 1e-30;
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
    /// How s is to move.
    gradient: Vec<R>,
    /// What s does not go under: [`LEAST`] of where it started.
    least: Vec<R>,
}

impl<R: Real> Esa<R> {
    /// # Errors
    /// When `sparsity_alpha` is not between 0 and 2.
    pub fn new(sparsity_alpha: f64) -> Result<Self> {
        if sparsity_alpha > 0.0 && sparsity_alpha < 2.0 {
            let (twn, isa) = (Twn::new(Twn::FACTOR)?, Isa::detect()?);
            let [scales, gradient, least] = [const { Vec::new() }; 3];
            return Ok(Self { sparsity_alpha, twn, isa, scales, gradient, least });
        }
        Err(Error::Request(format!("sparsity alpha is {sparsity_alpha}; it must lie between 0 and 2, ends excluded")))
    }
}

/// Where w/s is cut off at the start. It has to lie beyond the barrier, or else all weights go to 0; for a over 1
/// it has as much of the way from there to 1 behind it as [`STEEPEST`] has for a = 1.
fn steepest(a: f64) -> f64 {
    if a <= 1.0 {
        return STEEPEST;
    }
    let share = (1.0 - STEEPEST) / (1.0 - 0.5f64.sqrt());
    1.0 - share * (1.0 - (a / 2.0).sqrt())
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

/// What of a filter is multiplied.
struct Used<'a, R> {
    theta: &'a [R],
    s: R,
    pass: Pass,
    /// As many as θ.
    used: &'a mut [R],
}

impl<R: Real> Task for Used<'_, R> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let Self { theta, s, pass, used } = self;
        match pass {
            Pass::Train => used.iter_mut().zip(theta).for_each(|(used, theta)| *used = s * theta.tanh()),
            Pass::Evaluate => used.iter_mut().zip(theta).for_each(|(used, theta)| *used = s * round(theta.tanh())),
        }
    }
}

/// A step down the slope of the penalty.
struct Slope<'a, R> {
    theta: &'a mut [R],
    a: R,
    /// Twice the distance.
    distance: R,
}

impl<R: Real> Task for Slope<'_, R> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let two = R::from_f64(2.0);
        for theta in self.theta {
            let w = theta.tanh();
            let square = w * w;
            *theta -= self.distance * w * (self.a - two * square) * (R::one() - square);
        }
    }
}

impl<R: Real> Method<R> for Esa<R> {
    fn start(&mut self, mut w: ArrayViewMut2<'_, R>) {
        self.scales.clear();
        self.least.clear();
        let of_filter = |filter: ArrayView1<'_, R>| {
            let weights = R::unit(self.isa, filter.as_slice().unwrap_or_default());
            f64::from(ternarize::fit(&self.twn, &weights, ScaleDtype::F32).scale)
        };
        let scales: Vec<f64> = w.rows().into_iter().map(of_filter).collect();
        // A filter of zeros learns, too: with the scale of the others, or that of random first weights.
        let (sum, count) = scales.iter().filter(|s| **s > DEAD).fold((0.0, 0.0), |(sum, n), s| (sum + s, n + 1.0));
        let usual = if count > 0.0 { sum / count } else { 1.0 / (w.ncols().max(1) as f64).sqrt() };
        let steepest = steepest(self.sparsity_alpha);
        for (mut filter, s) in w.rows_mut().into_iter().zip(scales) {
            let s = if s > DEAD { s } else { usual };
            self.scales.push(R::from_f64(s));
            self.least.push(R::from_f64(LEAST * s));
            filter.iter_mut().for_each(|w| *w = R::from_f64((w.to_f64() / s).clamp(-steepest, steepest).atanh()));
        }
    }

    fn ternarize(&mut self, w: ArrayView2<'_, R>, mut used: ArrayViewMut2<'_, R>, pass: Pass) {
        let n = w.ncols();
        let (Some(w), Some(used)) = (w.as_slice(), used.as_slice_mut()) else { return };
        let filters = used.par_chunks_mut(n).zip(w.par_chunks(n)).zip(&self.scales);
        filters.for_each(|((used, theta), &s)| self.isa.run(Used { theta, s, pass, used }));
    }

    fn backward(&mut self, _w: ArrayView2<'_, R>, used: ArrayView2<'_, R>, mut gradient: ArrayViewMut2<'_, R>) {
        let n = used.ncols();
        let (Some(used), Some(gradient)) = (used.as_slice(), gradient.as_slice_mut()) else { return };
        self.gradient.resize(self.scales.len(), R::zero());
        let filters = gradient.par_chunks_mut(n).zip(used.par_chunks(n)).zip(&self.scales).zip(&mut self.gradient);
        filters.filter(|((_, s), _)| **s > R::zero()).for_each(|(((gradient, used), &s), of_scale)| {
            // Of used = s·w the derivative by s is w.
            let along = sum(gradient, used, |g, used| g * used);
            let square = sum(used, used, |a, b| a * b);
            *of_scale = R::from_f64(if square > 0.0 { along / square * s.to_f64() } else { 0.0 });
            let faster = R::from_f64(FASTER) / s;
            gradient.iter_mut().for_each(|gradient| *gradient *= faster);
        });
    }

    fn learned(&mut self) -> Option<(&mut [R], &mut [R])> {
        self.gradient.resize(self.scales.len(), R::zero());
        Some((&mut self.scales, &mut self.gradient))
    }

    fn remembered(&mut self) -> Option<&mut [R]> {
        Some(&mut self.least)
    }

    fn after_step(&mut self, mut w: ArrayViewMut2<'_, R>, distance: f64) {
        self.scales.iter_mut().zip(&self.least).for_each(|(s, &least)| *s = if *s < least { least } else { *s });
        let Some(theta) = w.as_slice_mut() else { return };
        let [a, distance] = [self.sparsity_alpha, 2.0 * distance.min(FARTHEST)].map(R::from_f64);
        theta.par_chunks_mut(PIECE).for_each(|theta| self.isa.run(Slope { theta, a, distance }));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The seed decides, not the machine's instructions.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let start: Vec<f32> = (0..1001).map(|i| (i as f32 - 500.0) * 0.013).collect();
        let results = |isa: Isa| {
            let (mut theta, mut used) = (start.clone(), vec![f32::NAN; 2 * start.len()]);
            isa.run(Slope { theta: &mut theta, a: 0.7, distance: 0.1 });
            for (pass, used) in [Pass::Train, Pass::Evaluate].into_iter().zip(used.chunks_mut(start.len())) {
                isa.run(Used { theta: &theta, s: 0.03, pass, used });
            }
            theta.iter().chain(&used).map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let expected = results(Isa::PORTABLE);
        assert_ne!(expected[..start.len()], start.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        Isa::all().into_iter().for_each(|isa| assert!(results(isa) == expected, "{}", isa.name()));
    }
}
