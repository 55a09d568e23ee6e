//! `binaryconnect`: signs without a scale; float weights are cut off at ±1 after every step
//! (BinaryConnect, arXiv 1511.00363, algorithm 1). Straight-through.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::Method;
use super::straight_through::project;
use crate::select::Settings;
use crate::ternarize::Threshold;
use crate::train::layers::Pass;
use crate::train::maps::Real;

/// Nothing to remember.
#[derive(Debug)]
pub(super) struct BinaryConnect;

impl<R: Real> Method<R> for BinaryConnect {
    fn ternarize(&mut self, w: ArrayView2<'_, R>, mut used: ArrayViewMut2<'_, R>, _pass: Pass) {
        let (Some(w), Some(used)) = (w.as_slice(), used.as_slice_mut()) else { return };
        project(Threshold::Sign, R::one(), w, used);
    }

    fn after_step(&mut self, mut w: ArrayViewMut2<'_, R>, _distance: f64) {
        let one = R::one();
        w.mapv_inplace(|w| {
            if w > one {
                one
            } else if w < -one {
                -one
            } else {
                w
            }
        });
    }

    fn settings(&self) -> Settings {
        // The mean of ones is one.
        Settings { method: Some("bwn".to_owned()), ..Settings::default() }
    }

    fn saves_used(&self) -> bool {
        true
    }
}
