//! What is asked for, and how people write it. Not here: how it is kept ([`super`]).

use crate::{Error, Result};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Each tensor as small as its relative squared error allows; 0 or more.
    Error(f64),
    /// Bytes of the whole file, at most.
    Bytes(u64),
    /// Bits per weight of codes and scales, at most, over the tensors that the rules make ternary.
    Bits(f64),
    /// Bytes of all tensors in the checkpoint over bytes of the file, at least.
    Ratio(f64),
}

impl Target {
    /// A size as people write it: bytes (`1500000`), with a unit (`40MB`, `1.5MiB`), or bits per weight (`2.5bits`).
    ///
    /// # Errors
    /// Text that is none of these.
    pub fn size(text: &str) -> Result<Self> {
        const UNITS: [(&str, f64); 9] = [
            ("", 1.0),
            ("B", 1.0),
            ("KB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
            ("bits", 0.0),
        ];
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = UNITS.iter().find(|(name, _)| *name == unit.trim());
        match (number.parse::<f64>(), unit) {
            (Ok(bits), Some(("bits", _))) if bits.is_finite() => Ok(Self::Bits(bits)),
            (Ok(number), Some((_, factor))) if number * factor < 2f64.powi(64) => {
                Ok(Self::Bytes((number * factor) as u64))
            }
            _ => Err(Error::Request(format!(
                "size `{text}`; expected bytes, fewer than 2^64, with a unit or without (1500000, 40MB, 1.5MiB), or bits per weight (2.5bits)"
            ))),
        }
    }

    pub(super) fn check(self) -> Result<()> {
        let (what, number) = match self {
            Self::Bytes(_) => return Ok(()),
            Self::Error(0.0) => return Ok(()),
            Self::Error(error) => ("error", error),
            Self::Bits(bits) => ("number of bits per weight", bits),
            Self::Ratio(ratio) => ("ratio", ratio),
        };
        if number.is_finite() && number > 0.0 {
            return Ok(());
        }
        let expected = if what == "error" { "0 or a positive number" } else { "a positive number" };
        Err(Error::Request(format!("the {what} asked for is {number:?}, expected {expected}")))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Error(error) => write!(f, "error {error} per tensor"),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Self::Bits(bits) => write!(f, "{bits} bits per weight"),
            Self::Ratio(ratio) => write!(f, "{ratio} times smaller"),
        }
    }
}
