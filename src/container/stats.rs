//! What the index says of tensors besides where they are: errors, counts, spreads, for reports. Nothing of it
//! is needed to decode. Not here: what is checked of it ([`super::index`]).

use serde::{Deserialize, Serialize};

use crate::strict_json::{object, optional_object};

/// Error over norm; 0 where both are 0.
pub(crate) fn relative([error, norm]: [f64; 2]) -> f64 {
    if error == 0.0 { 0.0 } else { error / norm }
}

/// What a report needs to know of an int8 tensor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Int8Stats {
    /// The stored scales.
    #[serde(deserialize_with = "object")]
    pub alpha: Spread,
    /// ‖W − Ŵ‖², with the stored scales.
    pub squared_error: f64,
    /// ‖W‖².
    pub squared_norm: f64,
}

impl Int8Stats {
    /// ‖W − Ŵ‖² / ‖W‖²; 0 where both are 0.
    pub fn relative_squared_error(&self) -> f64 {
        relative([self.squared_error, self.squared_norm])
    }
}

/// How statistics of inputs were used for codes and scales.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CalibrationEntry {
    /// λ / mean(diagonal) in H + λI, with a full second moment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub damping: Option<f64>,
    /// `full`, `diagonal`, or `none` where the run had no statistics for this tensor.
    pub kind: String,
    /// In which order columns were rounded: `natural`, or `diagonal` (largest first).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub order: Option<String>,
    /// Rows of inputs that were summed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rows: Option<u64>,
    /// Σ (w − ŵ)ᵀH(w − ŵ) over all filters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub squared_error: Option<f64>,
    /// Σ wᵀHw over all filters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub squared_norm: Option<f64>,
}

impl CalibrationEntry {
    /// [`CalibrationEntry::kind`] where all of XᵀX was known.
    pub const FULL: &str = "full";
    /// Where its diagonal was known.
    pub const DIAGONAL: &str = "diagonal";
    /// Where the run had statistics, but none that could be used for this tensor.
    pub const NONE: &str = "none";

    /// Σ (w − ŵ)ᵀH(w − ŵ) / Σ wᵀHw; 0 where both are 0.
    pub fn relative_squared_error(&self) -> Option<f64> {
        let (error, norm) = (self.squared_error?, self.squared_norm?);
        Some(relative([error, norm]))
    }
}

/// What a report needs to know of a ternary tensor. Counts are over the codes of all planes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// The stored scales.
    #[serde(deserialize_with = "object")]
    pub alpha: Spread,
    /// The thresholds; absent where codes are signs only.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "optional_object")]
    pub delta: Option<Spread>,
    /// How many codes are −1.
    pub negative: u64,
    /// How many codes are +1.
    pub positive: u64,
    /// ‖W − Ŵ‖², with the stored scales.
    pub squared_error: f64,
    /// ‖W‖².
    pub squared_norm: f64,
    /// How many codes are 0.
    pub zeros: u64,
}

impl Stats {
    /// ‖W − Ŵ‖² / ‖W‖²; 0 where both are 0.
    pub fn relative_squared_error(&self) -> f64 {
        relative([self.squared_error, self.squared_norm])
    }
}

/// Smallest, mean and largest of some values.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spread {
    /// The largest.
    pub max: f64,
    /// The arithmetic mean.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
}
