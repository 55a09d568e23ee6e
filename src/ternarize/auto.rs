//! `auto`: for weights that are ternary already, {−a, 0, +a} in floats, as natively ternary models are published. Such
//! tensors are packed without loss, all others stay dense. Not here: which are ternary; the run looks before it asks.

use std::sync::Arc;

use super::{Above, MethodInfo, Ternarizer, Threshold, Unit, no_factor};

pub(super) const INFO: MethodInfo = MethodInfo {
    name: "auto",
    summary: "packs what is ternary already, {−a, 0, +a}, without loss; keeps the rest dense",
    build: |factor| {
        no_factor(INFO.name, factor)?;
        Ok(Arc::new(Auto))
    },
};

/// Codes and scales of weights that are ternary already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Auto;

impl Ternarizer for Auto {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn lossless(&self) -> bool {
        true
    }

    /// Anywhere between 0 and a; what lies above is a.
    fn threshold(&self, weights: &Unit<'_>) -> Threshold {
        Threshold::Delta(weights.moments().max / 2.0)
    }

    fn scale(&self, weights: &Unit<'_>, _above: &Above) -> f64 {
        weights.moments().max
    }
}
