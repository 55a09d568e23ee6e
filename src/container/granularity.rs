//! Which weights share a scale, and its one spelling. Not here: the index that holds it ([`super::index`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Granularity {
    /// Each filter has its own: one scale per output.
    #[default]
    Filter,
    /// One for the whole tensor.
    Tensor,
    /// Each run of so many weights within a filter; the last run may be shorter. At least 1.
    Group(u64),
}

impl Granularity {
    /// Scales per plane of a tensor of `filters` × `filter_len` weights.
    pub fn scales(self, filters: u64, filter_len: u64) -> u64 {
        match self {
            Self::Filter => filters,
            Self::Tensor => 1,
            Self::Group(size) => filters.saturating_mul(filter_len.div_ceil(size)),
        }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Filter => f.write_str("filter"),
            Self::Tensor => f.write_str("tensor"),
            Self::Group(size) => write!(f, "group:{size}"),
        }
    }
}

impl FromStr for Granularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Plain digits only: `parse` alone would also take `+7` and `007`.
        let digits = text.strip_prefix("group:").filter(|digits| digits.starts_with(|c| matches!(c, '1'..='9')));
        match (text, digits.map(str::parse)) {
            ("filter", _) => Ok(Self::Filter),
            ("tensor", _) => Ok(Self::Tensor),
            (_, Some(Ok(size))) => Ok(Self::Group(size)),
            _ => Err(format!(
                "granularity is `{text}`; it must be `filter`, `tensor` or `group:N` with N of 1 to 2⁶⁴ − 1"
            )),
        }
    }
}

impl TryFrom<String> for Granularity {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Granularity> for String {
    fn from(granularity: Granularity) -> Self {
        granularity.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_size_has_one_spelling() {
        let good =
            [("filter", Granularity::Filter), ("tensor", Granularity::Tensor), ("group:70", Granularity::Group(70))];
        for (text, granularity) in good {
            assert_eq!((text.parse(), granularity.to_string().as_str()), (Ok(granularity), text));
        }
        for text in ["group:", "group:0", "group:+7", "group:07", "group: 7", "group:-7", "group:18446744073709551616"]
        {
            let error = text.parse::<Granularity>().unwrap_err();
            assert!(error.contains("granularity"), "{error}");
        }
    }
}
