//! What a user asks for, on the command line or in a TOML file. Not here: which tensors that concerns
//! ([`super::decide`]).

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Treatment, rules_file};
use crate::container::Granularity;
use crate::limits::PACKED_PLANES;
use crate::pack::Encoding;
use crate::ternarize::{self, ScaleDtype};
use crate::{Error, Result};

/// Rules as a user gives them, on the command line or in a TOML file. What is `None` or empty is
/// left to the default.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// For every tensor without an override.
    pub settings: Settings,
    /// Where there are any, only tensors whose names match one become ternary, and the default
    /// exceptions by name (embeddings, norms, heads) do not count for them.
    pub include: Vec<String>,
    /// Tensors whose names match stay dense; stronger than `include`.
    pub exclude: Vec<String>,
    /// Keep the first and the last layer dense.
    pub keep_first_last: bool,
    /// Settings for some names; later ones win.
    pub overrides: Vec<Override>,
}

/// Settings for tensors whose names match a glob.
#[derive(Debug, Clone, Default)]
pub struct Override {
    /// The glob; `*` also matches dots.
    pub pattern: String,
    /// What is different for them.
    pub settings: Settings,
}

/// How tensors become ternary, as far as it is said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The method's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The method's factor (`twn`: Δ = factor·mean|w|).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Which weights share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Granularity>,
    /// How many planes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planes: Option<usize>,
    /// The filter axis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub axis: Option<usize>,
    /// How codes are packed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The type of the scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_dtype: Option<ScaleDtype>,
    /// Training with `esa`: the paper's controller of sparsity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity_alpha: Option<f64>,
    /// Ternary or int8 although the default exceptions speak against it, or dense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// A decision forced by an override.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Make it ternary.
    Ternary,
    /// Give it codes of 8 bits.
    Int8,
    /// Keep it dense.
    Dense,
}

impl Settings {
    /// Whether they say something that makes other weights than `trained` does.
    pub(super) fn is_not_as(&self, trained: &Self) -> bool {
        let differs = self.method.is_some() && self.method != trained.method
            || self.factor.is_some() && self.factor != trained.factor
            || self.granularity.is_some_and(|asked| asked != trained.granularity.unwrap_or_default())
            || self.planes.is_some_and(|planes| planes != trained.planes.unwrap_or(1))
            || self.axis.is_some_and(|axis| axis != trained.axis.unwrap_or_default());
        differs && trained.keep != Some(Keep::Dense)
    }

    /// Parses `key=value,key=value`.
    ///
    /// # Errors
    /// An unknown key or a value that does not fit it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut table = toml::Table::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| Error::Request(format!("setting `{part}` is not of the form key=value")))?;
            let (key, value) = (key.trim(), value.trim());
            let value = match key {
                "axis" | "planes" => value.parse().map(toml::Value::Integer).ok(),
                "factor" | "sparsity-alpha" => value.parse().map(toml::Value::Float).ok(),
                _ => None,
            }
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
            if table.insert(key.to_owned(), value).is_some() {
                return Err(Error::Request(format!("setting `{key}` is given twice")));
            }
        }
        let wrong = |what: String| Error::Request(format!("settings `{text}`: {what}"));
        let settings: Self = table.try_into().map_err(|e| wrong(one_line(&e)))?;
        settings.check_keep().map_err(wrong)?;
        Ok(settings)
    }

    /// What one rule says has to be of use together.
    pub(super) fn check_keep(&self) -> Result<(), String> {
        let (keep, alone) = match self.keep {
            Some(Keep::Dense) => ("dense", true),
            Some(Keep::Int8) => ("int8", false),
            _ => return Ok(()),
        };
        let others = [
            ("method", self.method.is_some()),
            ("factor", self.factor.is_some()),
            ("granularity", self.granularity.is_some()),
            ("planes", self.planes.is_some()),
            ("encoding", self.encoding.is_some()),
            ("sparsity-alpha", self.sparsity_alpha.is_some()),
            ("axis", alone && self.axis.is_some()),
            ("scale-dtype", alone && self.scale_dtype.is_some()),
        ];
        match others.into_iter().find(|(_, said)| *said) {
            Some((key, _)) => Err(format!("`{key}` is of no use with keep={keep}; leave out one of them")),
            None => Ok(()),
        }
    }

    /// These settings where they say something, else `other`'s.
    pub fn or(self, other: &Self) -> Self {
        // Another method brings its own default factor along.
        let factor = if self.method.is_some() { self.factor } else { self.factor.or(other.factor) };
        Self {
            factor,
            method: self.method.or_else(|| other.method.clone()),
            granularity: self.granularity.or(other.granularity),
            planes: self.planes.or(other.planes),
            axis: self.axis.or(other.axis),
            encoding: self.encoding.or(other.encoding),
            scale_dtype: self.scale_dtype.or(other.scale_dtype),
            sparsity_alpha: self.sparsity_alpha.or(other.sparsity_alpha),
            keep: self.keep.or(other.keep),
        }
    }

    /// With the defaults in place of what is not said: `twn`, one scale per filter along axis 0, `t2`.
    ///
    /// # Errors
    /// An unknown method, settings that contradict each other, or one that is for training alone.
    pub fn treatment(&self) -> Result<Treatment> {
        if self.sparsity_alpha.is_some() {
            return Err(Error::Request(
                "sparsity-alpha is for training with esa; packing has no use for it".to_owned(),
            ));
        }
        let name = self.method.as_deref().unwrap_or(ternarize::METHODS[0].name);
        let method = ternarize::method(name, self.factor)?;
        let encoding = self.encoding.unwrap_or(if method.binary() { Encoding::B1 } else { Encoding::T2 });
        if encoding == Encoding::B1 && !method.binary() {
            return Err(Error::Request(format!("encoding b1 has no zeros, method `{name}` needs them; use t2 or t5")));
        }
        let planes = self.planes.unwrap_or(1);
        if method.lossless() && planes != 1 {
            return Err(Error::Request(format!(
                "method `{name}` takes what is ternary already: one plane, not {planes}"
            )));
        }
        check_planes(planes)?;
        Ok(Treatment {
            method,
            planes,
            granularity: self.granularity.unwrap_or_default(),
            axis: self.axis.unwrap_or(0),
            encoding,
            scale_dtype: self.scale_dtype.unwrap_or_default(),
        })
    }
}

impl Override {
    /// 8 bits a weight for what matches, whatever its name.
    pub fn int8(pattern: String) -> Self {
        Self { pattern, settings: Settings { keep: Some(Keep::Int8), ..Settings::default() } }
    }
}

impl Rules {
    /// Reads rules from a TOML file: settings, `include`, `exclude`, `int8` (globs whose tensors get `keep = "int8"`, as if
    /// before all others), `keep-first-last`, and `[[override]]` tables with a `match` glob and settings.
    ///
    /// # Errors
    /// A file that cannot be read, or says what is not understood; with the line.
    pub fn from_toml_file(path: &Path) -> Result<Self> {
        Self::from_toml_file_with(path, &|method, factor| ternarize::method(method, factor).map(drop))
    }

    /// The same where other methods can be named: `check` says what is wrong with one and its factor.
    ///
    /// # Errors
    /// Those of [`Rules::from_toml_file`].
    pub fn from_toml_file_with(path: &Path, check: &dyn Fn(&str, Option<f64>) -> Result<()>) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read the rules in"))?;
        let text = String::from_utf8(text).map_err(|e| Error::Request(format!("{}: {e}", path.display())))?;
        rules_file::parse(&text, check).map_err(|message| Error::Request(format!("{}: {message}", path.display())))
    }
}

/// So many planes can be packed.
pub(super) fn check_planes(planes: usize) -> Result<()> {
    match planes {
        1..=PACKED_PLANES => Ok(()),
        _ => Err(Error::Request(format!(
            "{planes} planes; expected 1 to {PACKED_PLANES} (more would take as many bits as int8), or keep=dense"
        ))),
    }
}

/// One line of a TOML error.
pub(super) fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}
