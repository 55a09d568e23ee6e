//! `twn`: Δ = f·E|w|, α = the mean of |w| above Δ, with f = 0.7.
//! Source: Ternary Weight Networks, arXiv 1605.04711, eq. 3 and 5 and the rule after eq. 6
//! (0.7 in versions 1 and 2, 0.75 in version 3).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MethodInfo, Ternarizer, Threshold, Unit};
use crate::{Error, Result};

pub(super) const INFO: MethodInfo = MethodInfo {
    name: "twn",
    summary: "Δ = 0.7·mean|w|, α = mean of |w| above Δ (Ternary Weight Networks)",
    build: |factor| Ok(Arc::new(Twn::new(factor.unwrap_or(Twn::FACTOR))?)),
};

/// The threshold rule of Ternary Weight Networks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Twn {
    factor: f64,
}

impl Twn {
    /// The paper's factor.
    pub const FACTOR: f64 = 0.7;

    /// With Δ = `factor`·E|w|.
    ///
    /// # Errors
    /// A factor that is not a number from 0 to 1000.
    pub fn new(factor: f64) -> Result<Self> {
        if (0.0..=1000.0).contains(&factor) {
            Ok(Self { factor })
        } else {
            Err(Error::Request(format!("factor is {factor:?}; it must be a number from 0 to 1000 (0.7 in the paper)")))
        }
    }
}

impl Ternarizer for Twn {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn parameters(&self) -> BTreeMap<String, f64> {
        BTreeMap::from([("factor".to_owned(), self.factor)])
    }

    fn threshold(&self, weights: &Unit<'_>) -> Threshold {
        Threshold::Delta(self.factor * weights.mean())
    }
}
