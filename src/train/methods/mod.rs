//! How weights become ternary while they learn: what the forward pass uses, and what of the loss's
//! derivatives reaches the float weights. One file per method; [`METHODS`] is the list. Not here:
//! thresholds and scales of the converter's methods ([`crate::ternarize`]), which are used as they are.

mod binary_connect;
mod esa;
mod straight_through;
#[cfg(test)]
mod tests;
mod tga;

use std::fmt::Debug;

use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};

use super::layers::Pass;
use super::maps::Real;
use crate::container::Granularity;
use crate::select::Settings;
use crate::{Error, Result};

/// One layer's method. `w` are its float weights, a row per filter; `used` is what is multiplied.
pub trait Method<R: Real>: Debug + Send {
    /// From float weights to the ones that this method learns on, once, before the first step.
    fn start(&mut self, _w: ArrayViewMut2<'_, R>) {}

    /// What is multiplied: for [`Pass::Evaluate`] ternary weights times their scale, for [`Pass::Train`] what
    /// takes their place while they learn.
    fn ternarize(&mut self, w: ArrayView2<'_, R>, used: ArrayViewMut2<'_, R>, pass: Pass);

    /// `gradient` comes in as the loss's derivatives by `used` and goes out as those by `w`. The
    /// default is the straight-through estimator: they are the same.
    fn backward(&mut self, _w: ArrayView2<'_, R>, _used: ArrayView2<'_, R>, _gradient: ArrayViewMut2<'_, R>) {}

    /// What the method learns besides weights, and the loss's derivatives by it.
    fn learned(&mut self) -> Option<(&mut [R], &mut [R])> {
        None
    }

    /// Everything that the method has to remember between steps besides [`Method::learned`].
    fn remembered(&mut self) -> Option<&mut [R]> {
        None
    }

    /// Called after every step of the optimizer: brings weights back into the range that the method allows,
    /// or goes `distance` down the slope of the method's own penalty.
    fn after_step(&mut self, _w: ArrayViewMut2<'_, R>, _distance: f64) {}

    /// How many weights are within 0.05 of the values to which they will be rounded; `None` where nothing is.
    fn settled(&self, _w: ArrayView2<'_, R>) -> Option<usize> {
        None
    }

    /// The settings by which the converter makes of a saved tensor just what [`Pass::Evaluate`] uses.
    fn settings(&self) -> Settings;

    /// Whether the saved tensor holds what [`Pass::Evaluate`] uses in place of the float weights, because
    /// no method of the converter finds that from them.
    fn saves_used(&self) -> bool {
        false
    }
}

/// What can be asked of a method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// `twn`: Δ = factor·mean|w|.
    pub factor: Option<f64>,
    /// Which weights share a scale; `None`: as the method's paper has it.
    pub granularity: Option<Granularity>,
    /// `esa`: the paper's controller of sparsity, from 0 to 2; `None`: 0.5.
    pub sparsity_alpha: Option<f64>,
}

/// A method that can be named.
#[derive(Debug, Clone, Copy)]
pub struct MethodInfo {
    /// Its name.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
}

/// Every method; `none` is full precision.
pub const METHODS: [MethodInfo; 8] = [
    MethodInfo { name: "none", summary: "full precision" },
    MethodInfo { name: "twn", summary: "Δ = 0.7·mean|w|, straight-through (Ternary Weight Networks)" },
    MethodInfo { name: "bwn", summary: "sign times mean|w|, straight-through (BWN; BPWN in TWN's tables)" },
    MethodInfo { name: "absmean", summary: "α = mean|w|, round and clip, straight-through (BitNet b1.58)" },
    MethodInfo { name: "optimal", summary: "the least squared error, straight-through" },
    MethodInfo { name: "tga", summary: "Δ is learned, α follows from a Gaussian (TGA)" },
    MethodInfo { name: "esa", summary: "tanh and a penalty that drives weights to −1, 0 and 1 (ESA)" },
    MethodInfo { name: "binaryconnect", summary: "sign without a scale, weights kept in ±1 (BinaryConnect)" },
];

/// The method of that name, for one layer; `None` for `none`.
///
/// # Errors
/// An unknown name, or a request that the method has no use for.
pub fn method<R: Real>(name: &str, request: &Request) -> Result<Option<Box<dyn Method<R>>>> {
    let info = METHODS.iter().find(|info| info.name == name).ok_or_else(|| {
        let names = METHODS.map(|info| info.name).join(", ");
        Error::Request(format!("unknown method `{name}`; there are {names}"))
    })?;
    let only = |given: bool, what: &str, methods: &[&str]| {
        if !given || methods.contains(&name) {
            return Ok(());
        }
        let does = if methods.len() == 1 { "does" } else { "do" };
        Err(Error::Request(format!("method `{name}` takes no {what}; only {} {does}", methods.join(", "))))
    };
    only(request.factor.is_some(), "factor", &["twn"])?;
    only(request.sparsity_alpha.is_some(), "sparsity alpha", &["esa"])?;
    only(request.granularity.is_some(), "granularity", &["twn", "bwn", "absmean", "optimal"])?;
    Ok(match info.name {
        "none" => None,
        "tga" => Some(Box::new(tga::Tga::new()?)),
        "esa" => Some(Box::new(esa::Esa::new(request.sparsity_alpha.unwrap_or(esa::SPARSITY_ALPHA))?)),
        "binaryconnect" => Some(Box::new(binary_connect::BinaryConnect)),
        name => Some(Box::new(straight_through::StraightThrough::new(name, request)?)),
    })
}
