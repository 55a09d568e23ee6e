//! `twn`, `bwn`, `absmean`, `optimal`: the forward pass uses α·t as the converter would store it, and
//! the derivatives by α·t are taken for those by the float weights; α and Δ count as constants
//! (TWN, arXiv 1605.04711, section 2.4; BWN, arXiv 1603.05279). Not here: how Δ and α are found.

use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use super::{Method, Request};
use crate::container::Granularity;
use crate::select::Settings;
use crate::ternarize::{self, ScaleDtype, Ternarizer, Threshold};
use crate::train::layers::Pass;
use crate::train::maps::Real;
use crate::{Isa, Result};

/// A method of the converter, in the loop.
#[derive(Debug)]
pub(super) struct StraightThrough {
    method: Arc<dyn Ternarizer>,
    settings: Settings,
    isa: Isa,
}

impl StraightThrough {
    pub fn new(name: &str, request: &Request) -> Result<Self> {
        let settings = Settings {
            method: Some(name.to_owned()),
            factor: request.factor,
            granularity: Some(request.granularity.unwrap_or_default()),
            ..Settings::default()
        };
        Ok(Self { method: ternarize::method(name, request.factor)?, settings, isa: Isa::detect()? })
    }
}

impl<R: Real> Method<R> for StraightThrough {
    fn ternarize(&mut self, w: ArrayView2<'_, R>, mut used: ArrayViewMut2<'_, R>, _pass: Pass) {
        let n = w.ncols();
        let unit: usize = match self.settings.granularity.unwrap_or_default() {
            Granularity::Filter => n,
            Granularity::Tensor => w.len(),
            Granularity::Group(size) => usize::try_from(size).unwrap_or(n).min(n),
        };
        let (Some(w), Some(used)) = (w.as_slice(), used.as_slice_mut()) else { return };
        // Groups end with their filter.
        let piece = if unit > n { w.len() } else { n };
        let work = |(used, w): (&mut [R], &[R])| {
            for (used, w) in used.chunks_mut(unit).zip(w.chunks(unit)) {
                let fit = ternarize::fit(&*self.method, &R::unit(self.isa, w), ScaleDtype::F32);
                project(fit.threshold, R::from_f64(f64::from(fit.scale)), w, used);
            }
        };
        used.par_chunks_mut(piece).zip(w.par_chunks(piece)).with_min_len((1 << 14) / piece + 1).for_each(work);
    }

    fn settings(&self) -> Settings {
        self.settings.clone()
    }
}

/// α·t for every weight.
pub(super) fn project<R: Real>(threshold: Threshold, alpha: R, w: &[R], used: &mut [R]) {
    let minus = -alpha;
    match threshold {
        Threshold::Delta(delta) => used.iter_mut().zip(w).for_each(|(used, &w)| {
            let wide = w.to_f64();
            *used = if wide > delta {
                alpha
            } else if wide < -delta {
                minus
            } else {
                R::zero()
            };
        }),
        Threshold::Sign => {
            used.iter_mut().zip(w).for_each(|(used, &w)| *used = if w >= R::zero() { alpha } else { minus });
        }
    }
}
