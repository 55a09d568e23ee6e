//! `bwn`: t = sign(w), α = E|w|: binary weights, the baseline of the ternary papers (BPWN).
//! Source: XNOR-Net, arXiv 1603.05279, section 3.1. sign(0) is +1.

use std::sync::Arc;

use super::{MethodInfo, Ternarizer, Threshold, Unit, no_factor};

pub(super) const INFO: MethodInfo = MethodInfo {
    name: "bwn",
    summary: "sign(w) times mean|w|, one bit per weight (binary weight network)",
    build: |factor| {
        no_factor(INFO.name, factor)?;
        Ok(Arc::new(Bwn))
    },
};

/// Binary weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bwn;

impl Ternarizer for Bwn {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn binary(&self) -> bool {
        true
    }

    fn threshold(&self, _weights: &Unit<'_>) -> Threshold {
        Threshold::Sign
    }
}
