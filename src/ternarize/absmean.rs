//! `absmean`: α = E|w|, t = clip(round(w/α), −1, 1), so Δ = α/2.
//! Source: BitNet b1.58, arXiv 2402.17764, eq. 1 to 3 (there with one α per tensor). The scale is
//! not the least-squares one. A half rounds to even, so |w| = α/2 is zero.

use std::sync::Arc;

use super::{Above, MethodInfo, Ternarizer, Threshold, Unit, no_factor};

pub(super) const INFO: MethodInfo = MethodInfo {
    name: "absmean",
    summary: "α = mean|w|, round and clip (BitNet b1.58)",
    build: |factor| {
        no_factor(INFO.name, factor)?;
        Ok(Arc::new(Absmean))
    },
};

/// The rule of BitNet b1.58.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Absmean;

impl Ternarizer for Absmean {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn threshold(&self, weights: &Unit<'_>) -> Threshold {
        Threshold::Delta(0.5 * weights.mean())
    }

    fn scale(&self, weights: &Unit<'_>, _above: &Above) -> f64 {
        weights.mean()
    }
}
