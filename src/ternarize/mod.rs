//! Weights in, thresholds and scales out: W ≈ α·T with T = sign(W)·[|W| > Δ].
//! One file per method; [`METHODS`] is the list. Not here: where weights come from
//! ([`crate::source`]) and how codes are stored ([`crate::pack`]).

mod absmean;
mod auto;
mod bwn;
mod optimal;
pub(crate) mod planes;
mod twn;
mod unit;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::absmean::Absmean;
pub use self::auto::Auto;
pub use self::bwn::Bwn;
pub use self::optimal::Optimal;
pub(crate) use self::planes::PlanesFit;
use self::planes::fit_planes;
pub use self::twn::Twn;
pub use self::unit::Unit;
pub(crate) use self::unit::{LongWeights, Slice};
#[cfg(feature = "calibration")]
use crate::limits::PACKED_PLANES;
pub use crate::vector::block::{Above, Moments};
use crate::{Error, Result};

/// A way to choose the threshold Δ and the scale α for weights that share one scale.
///
/// The code of a weight follows from Δ alone: +1 above Δ, −1 below −Δ, 0 otherwise (|w| = Δ is
/// zero; TWN, arXiv 1605.04711, eq. 3). A method that has no zeros returns [`Threshold::Sign`].
///
/// Once a run is cancelled, sums over its long units are cut short and need not fit together; what
/// a method makes of them is thrown away, as long as it ends.
pub trait Ternarizer: fmt::Debug + Send + Sync {
    /// The method's name, as stored in the container.
    fn name(&self) -> &'static str;

    /// The method's parameters, as stored in the container.
    fn parameters(&self) -> BTreeMap<String, f64> {
        BTreeMap::new()
    }

    /// Whether codes are signs only, with no zeros (such tensors are stored as `b1`).
    fn binary(&self) -> bool {
        false
    }

    /// Whether it is only for tensors that are ternary already: those that it would change stay dense.
    fn lossless(&self) -> bool {
        false
    }

    /// Δ for these weights, in the weights' own unit. At least one weight, all finite.
    fn threshold(&self, weights: &Unit<'_>) -> Threshold;

    /// α ≥ 0 for these weights, once it is known what lies above Δ (for [`Threshold::Sign`]: all).
    /// The default is the least-squares scale for the codes: the mean of |w| above Δ (TWN, eq. 5).
    fn scale(&self, _weights: &Unit<'_>, above: &Above) -> f64 {
        if above.count == 0 { 0.0 } else { above.sum / above.count as f64 }
    }
}

/// How weights turn into codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// +1 above Δ, −1 below −Δ, 0 between. Δ ≥ 0.
    Delta(f64),
    /// +1 for w ≥ 0, −1 below; no zeros.
    Sign,
}

/// A method that can be named on the command line.
#[derive(Debug)]
pub struct MethodInfo {
    /// The name.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Builds it; the factor is `None` where the user gave none.
    build: fn(factor: Option<f64>) -> Result<Arc<dyn Ternarizer>>,
}

/// Every method, the default first.
pub const METHODS: &[MethodInfo] = &[twn::INFO, optimal::INFO, absmean::INFO, bwn::INFO, auto::INFO];

/// The name of the method that takes what is ternary already.
pub const AUTO: &str = auto::INFO.name;

/// The method of that name.
///
/// # Errors
/// An unknown name; a factor that is out of range, or given to a method that has none.
pub fn method(name: &str, factor: Option<f64>) -> Result<Arc<dyn Ternarizer>> {
    let info = METHODS.iter().find(|info| info.name == name).ok_or_else(|| {
        let names: Vec<_> = METHODS.iter().map(|info| info.name).collect();
        Error::Request(format!("unknown method `{name}`; there are {}", names.join(", ")))
    })?;
    (info.build)(factor)
}

/// For methods without parameters.
fn no_factor(name: &str, factor: Option<f64>) -> Result<()> {
    match factor {
        None => Ok(()),
        Some(_) => Err(Error::Request(format!("method `{name}` takes no factor; only `twn` does"))),
    }
}

/// The type in which scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleDtype {
    /// IEEE single precision, 4 bytes.
    #[default]
    F32,
    /// IEEE half precision, 2 bytes: groups of 64 then cost a quarter of a bit per weight.
    F16,
}

impl ScaleDtype {
    /// Bytes per scale.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// Its name, as stored in the container.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// The scale as stored, as `f32`: rounded to `f32`, and then to this type, ties to even. (From
    /// `f64` to half precision in one step, `half` rounds differently on different CPUs.)
    pub fn round(self, scale: f64) -> f32 {
        match self {
            Self::F32 => scale as f32,
            Self::F16 => half::f16::from_f32_const(scale as f32).to_f32_const(),
        }
    }
}

/// The scale and threshold of one unit, and what they cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// How weights turn into codes.
    pub threshold: Threshold,
    /// The scale before rounding.
    pub exact_scale: f64,
    /// The scale as stored, α.
    pub scale: f32,
    /// Weights that are not zero after ternarization: how many, and Σ|w|.
    pub above: Above,
    /// ‖W − αT‖², with the stored α.
    pub squared_error: f64,
    /// ‖W‖².
    pub squared_norm: f64,
}

impl Fit {
    /// Whether the stored scale keeps its order of magnitude: not infinite, and zero only if exact.
    /// Sums that overflow (huge `f64` weights) leave no scale that could be right.
    pub fn scale_fits(&self) -> bool {
        let finite = !matches!(self.threshold, Threshold::Delta(delta) if !delta.is_finite());
        finite
            && self.scale.is_finite()
            && (self.scale > 0.0 || self.exact_scale == 0.0)
            && self.squared_norm.is_finite()
    }

    /// What the method has given that it must not, in words.
    pub(crate) fn breach(&self, binary: bool) -> Option<&'static str> {
        match self.threshold {
            Threshold::Delta(delta) if delta.is_nan() || delta < 0.0 => Some("a threshold that is no Δ ≥ 0"),
            // Of sums that overflow it follows, and the scale with it.
            Threshold::Delta(f64::INFINITY) if self.exact_scale.is_finite() => Some("an infinite threshold Δ"),
            threshold if (threshold == Threshold::Sign) != binary => {
                Some("another kind of threshold than `binary` says")
            }
            _ => self.scale.is_sign_negative().then_some(NO_SCALE),
        }
    }

    /// From what lies above the threshold, the scale and the error.
    ///
    /// The error is expanded, ‖W‖² − 2αS + α²k, which is free once S and k are known; where that
    /// loses more than half of the digits (weights that are ternary already) it is summed again
    /// term by term, so that a lossless unit reports exactly 0.
    pub(crate) fn new(
        method: &dyn Ternarizer,
        unit: &Unit<'_>,
        threshold: Threshold,
        above: Above,
        dtype: ScaleDtype,
    ) -> Self {
        // Where Σ|w| overflows Δ is infinite and nothing lies above it: say so, do not call it zero.
        // Where Σw² underflows (tiny `f64` weights) nothing can be said of the error either.
        let Moments { sum, sum_of_squares, max } = unit.moments();
        let underflow = sum_of_squares == 0.0 && max > 0.0;
        let exact_scale = match sum.is_finite() {
            true if underflow => max,
            true => method.scale(unit, &above),
            false => f64::INFINITY,
        };
        let scale = dtype.round(exact_scale);
        let alpha = f64::from(scale);
        let squared_norm = unit.moments().sum_of_squares;
        let mut squared_error = squared_norm - 2.0 * alpha * above.sum + alpha * alpha * above.count as f64;
        if squared_error.is_nan() || squared_error < squared_norm * CANCELS {
            squared_error = unit.squared_error(threshold, alpha);
        }
        Self { threshold, exact_scale, scale, above, squared_error, squared_norm }
    }
}

const NO_SCALE: &str = "a scale that is no α ≥ 0";

/// An error below this share of ‖W‖², expanded, has lost more than five of its fifteen digits: it is summed again.
pub(crate) const CANCELS: f64 = 1e-5;

/// What was found for the weights of one unit.
#[derive(Debug, Clone)]
pub(crate) enum Fitted {
    /// One plane: threshold and scale.
    One(Fit),
    /// Several planes.
    Several(PlanesFit),
}

impl Fitted {
    /// Over `planes` planes. At least one weight, all finite.
    pub fn new(method: &dyn Ternarizer, unit: &Unit<'_>, planes: usize, dtype: ScaleDtype) -> Self {
        match planes {
            0 | 1 => Self::One(fit(method, unit, dtype)),
            _ => Self::Several(fit_planes(method, unit, planes, dtype)),
        }
    }

    /// As stored, one per plane.
    pub fn scales(&self) -> &[f32] {
        match self {
            Self::One(fit) => std::slice::from_ref(&fit.scale),
            Self::Several(fit) => &fit.scales,
        }
    }

    /// t per plane of a weight; 0 of planes that there are not.
    #[cfg(feature = "calibration")]
    pub fn codes(&self, weight: f64) -> [i8; PACKED_PLANES] {
        let sign = if weight < 0.0 { -1 } else { 1 };
        let mut codes = [0; PACKED_PLANES];
        match self {
            Self::One(Fit { threshold: Threshold::Delta(delta), .. }) => {
                codes[0] = sign * i8::from(weight.abs() > *delta)
            }
            Self::One(Fit { threshold: Threshold::Sign, .. }) => codes[0] = sign,
            Self::Several(fit) => codes = fit.levels.round(weight).1,
        }
        codes
    }

    /// ‖W − Ŵ‖² and ‖W‖².
    pub fn errors(&self) -> (f64, f64) {
        match self {
            Self::One(fit) => (fit.squared_error, fit.squared_norm),
            Self::Several(fit) => (fit.squared_error, fit.squared_norm),
        }
    }

    /// What the method has given that it must not, in words.
    pub fn breach(&self, binary: bool, planes: usize) -> Option<&'static str> {
        match self {
            Self::One(fit) => fit.breach(binary),
            Self::Several(fit) => {
                // Scales that cannot be stored are the weights' fault.
                let wrong = fit.scales.len() != planes || fit.scales.iter().any(|scale| scale.is_sign_negative());
                (wrong && fit.scale_fits()).then_some(NO_SCALE)
            }
        }
    }

    /// The first scale before rounding, if the stored scales are not what it says.
    pub fn misfit(&self) -> Option<f64> {
        let (fits, exact) = match self {
            Self::One(fit) => (fit.scale_fits(), fit.exact_scale),
            Self::Several(fit) => (fit.scale_fits(), fit.exact_scale),
        };
        (!fits).then_some(exact)
    }
}

/// Threshold, scale and error for weights that share one scale. Shape: any; `unit` holds at least
/// one weight and all are finite.
pub fn fit(method: &dyn Ternarizer, unit: &Unit<'_>, dtype: ScaleDtype) -> Fit {
    let threshold = method.threshold(unit);
    let above = match threshold {
        Threshold::Delta(delta) => unit.above(delta),
        Threshold::Sign => Above { count: unit.len() as u64, positive: 0, sum: unit.moments().sum },
    };
    Fit::new(method, unit, threshold, above, dtype)
}
