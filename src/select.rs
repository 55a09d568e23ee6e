//! Names and shapes → a plan: which tensors become ternary, along which axis, how, and why the
//! rest does not. Not here: any weight; a plan is made without reading one.

mod layers;
mod natural_order;
mod rules_file;
mod trained;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use self::natural_order::natural_order;
#[cfg(feature = "eval")]
pub(crate) use self::trained::trained_metadata;
pub use self::trained::{TRAINED_KEY, trained};
use crate::container::Granularity;
use crate::dtype::is_float;
use crate::limits::PACKED_PLANES;
use crate::pack::Encoding;
use crate::source::{Checkpoint, TensorView};
use crate::ternarize::{self, ScaleDtype, Ternarizer};
use crate::{Error, Result};

/// How one tensor becomes ternary.
#[derive(Debug, Clone)]
pub struct Treatment {
    /// Chooses threshold and scale.
    pub method: Arc<dyn Ternarizer>,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// The filter axis: one filter per index along it.
    pub axis: usize,
    /// How many planes: 1 to [`PACKED_PLANES`].
    pub planes: usize,
    /// How codes are packed.
    pub encoding: Encoding,
    /// The type of the scales.
    pub scale_dtype: ScaleDtype,
}

/// How one tensor becomes codes of 8 bits, with one scale per filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int8 {
    /// The filter axis: one filter per index along it.
    pub axis: usize,
    /// The type of the scales.
    pub scale_dtype: ScaleDtype,
}

/// How a tensor that is ternary in the checkpoint is stored: codes and scales are moved, nothing is estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// How codes are packed; not `b1`.
    pub encoding: Encoding,
    /// The type of the scales.
    pub scale_dtype: ScaleDtype,
}

/// What is to become of a tensor.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Ternary, in this way.
    Ternary(Treatment),
    /// 8 bits a weight.
    Int8(Int8),
    /// Ternary, as it is already.
    Moved(Moved),
    /// Kept bit by bit.
    Dense,
}

/// The method of tensors that were ternary in the checkpoint, in another program's layout.
pub const MOVED: &str = "as-packed";

/// The reason of what a budget decided; files keep it of ternary tensors too.
pub const BUDGET: &str = "budget";

/// A tensor's decision and the reason for it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The tensor's name.
    pub name: String,
    /// What is to become of it.
    pub decision: Decision,
    /// Why, in words for a report.
    pub reason: String,
    /// Whether its planes or its granularity were asked for by its name, or it was trained so: no budget changes them.
    pub fixed: bool,
}

/// What is to become of every tensor of a checkpoint, in its order. Edit it freely before running it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One entry per tensor of the checkpoint, in the same order.
    pub tensors: Vec<Planned>,
    /// What deserves a second look.
    pub warnings: Vec<String>,
}

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
    fn is_not_as(&self, trained: &Self) -> bool {
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
                "factor" => value.parse().map(toml::Value::Float).ok(),
                _ => None,
            }
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
            if table.insert(key.to_owned(), value).is_some() {
                return Err(Error::Request(format!("setting `{key}` is given twice")));
            }
        }
        table.try_into().map_err(|e| Error::Request(format!("settings `{text}`: {}", one_line(&e))))
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
            keep: self.keep.or(other.keep),
        }
    }

    /// With the defaults in place of what is not said: `twn`, one scale per filter along axis 0, `t2`.
    ///
    /// # Errors
    /// An unknown method, or settings that contradict each other.
    pub fn treatment(&self) -> Result<Treatment> {
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
        if !(1..=PACKED_PLANES).contains(&planes) {
            return Err(Error::Request(format!(
                "{planes} planes; expected 1 to {PACKED_PLANES} (more would take as many bits as int8), or keep=dense"
            )));
        }
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

impl Rules {
    /// Reads rules from a TOML file: settings, `include`, `exclude`, `keep-first-last`, and
    /// `[[override]]` tables with a `match` glob and settings.
    ///
    /// # Errors
    /// A file that cannot be read, or says what is not understood; with the line.
    pub fn from_toml_file(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read the rules in"))?;
        let text = String::from_utf8(text).map_err(|e| Error::Request(format!("{}: {e}", path.display())))?;
        rules_file::parse(&text).map_err(|message| Error::Request(format!("{}: {message}", path.display())))
    }
}

/// One line of a TOML error.
fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

/// A user's glob, compiled.
struct Pattern {
    text: String,
    matcher: GlobMatcher,
}

impl Pattern {
    fn new(text: &str) -> Result<Self> {
        let glob =
            GlobBuilder::new(text).build().map_err(|e| Error::Request(format!("pattern `{text}`: {}", e.kind())))?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }

    fn all(texts: &[String]) -> Result<Vec<Self>> {
        texts.iter().map(|text| Self::new(text)).collect()
    }
}

fn matching<'p>(patterns: &'p [Pattern], name: &str) -> Option<&'p Pattern> {
    patterns.iter().find(|pattern| pattern.matcher.is_match(name))
}

impl Plan {
    /// Decides for every tensor.
    ///
    /// # Errors
    /// A pattern or setting that is not valid, or asks for what a tensor cannot be.
    pub fn new(checkpoint: &Checkpoint, rules: &Rules) -> Result<Self> {
        let include = Pattern::all(&rules.include)?;
        let exclude = Pattern::all(&rules.exclude)?;
        let overrides =
            rules.overrides.iter().map(|o| Ok((Pattern::new(&o.pattern)?, &o.settings))).collect::<Result<Vec<_>>>()?;
        rules.settings.treatment()?;
        let trained = trained(checkpoint)?;
        let mut otherwise = Vec::new();
        let mut plan = Self { tensors: Vec::with_capacity(checkpoint.len()), warnings: Vec::new() };
        let mut overruled = None;
        for (i, tensor) in checkpoint.tensors().enumerate() {
            let hits = overrides.iter().filter(|(pattern, _)| pattern.matcher.is_match(tensor.name));
            let mut settings = rules.settings.clone();
            let (mut forced, mut fixed) = (None, false);
            for (pattern, its) in hits {
                fixed |= its.planes.is_some() || its.granularity.is_some();
                settings = (*its).clone().or(&settings);
                forced = its.keep.map(|_| pattern.text.as_str()).or(forced);
            }
            if let Some(ternary) = checkpoint.ternary(i) {
                let decision = Decision::Moved(moved(tensor, &settings, &exclude)?);
                let (name, reason) =
                    (tensor.name.to_owned(), format!("ternary in the checkpoint, {:?}", ternary.shape));
                let method = settings.method.as_deref().filter(|&method| method != ternarize::AUTO);
                overruled = overruled.or(method.map(|method| format!(
                    "`{name}` and others are ternary in the checkpoint: their codes are moved, `{method}` does not touch them"
                )));
                plan.tensors.push(Planned { name, decision, reason, fixed: true });
                continue;
            }
            let (before, says_method) = (trained.get(tensor.name), settings.method.is_some());
            if before.is_some_and(|before| settings.is_not_as(before)) {
                otherwise.push(tensor.name);
            }
            if let (Some(before), false) = (before, says_method) {
                settings = Settings { keep: settings.keep, ..settings.or(before) };
                fixed = true;
            }
            let before = before.filter(|_| !says_method).and_then(|before| before.keep);
            let (keep, reason) = decide(tensor, &settings, (forced, before), &include, &exclude);
            let decision = match keep {
                Keep::Dense => Decision::Dense,
                Keep::Ternary => Decision::Ternary(checked_treatment(tensor, &settings)?),
                Keep::Int8 => {
                    let Treatment { axis, scale_dtype, .. } = checked_treatment(tensor, &settings)?;
                    Decision::Int8(Int8 { axis, scale_dtype })
                }
            };
            plan.tensors.push(Planned { name: tensor.name.to_owned(), decision, reason, fixed });
        }
        plan.warnings.extend(overruled);
        if let Some(first) = otherwise.first() {
            let others = otherwise.len() - 1;
            plan.warnings.push(format!(
                "`{first}` and {others} others were trained in another way than is asked for: what is packed is not what \
                 was trained"
            ));
        }
        plan.warn_of_unused(checkpoint, include.iter().chain(&exclude).chain(overrides.iter().map(|o| &o.0)));
        plan.warn_of_transposed(checkpoint);
        if rules.keep_first_last {
            plan.keep_first_last();
        }
        Ok(plan)
    }

    /// How many tensors are to become ternary.
    pub fn ternary_count(&self) -> usize {
        self.tensors.iter().filter(|t| matches!(t.decision, Decision::Ternary(_) | Decision::Moved(_))).count()
    }

    fn warn_of_unused<'p>(&mut self, checkpoint: &Checkpoint, patterns: impl Iterator<Item = &'p Pattern>) {
        for pattern in patterns {
            if !checkpoint.tensors().any(|tensor| pattern.matcher.is_match(tensor.name)) {
                self.warnings.push(format!("pattern `{}` matches no tensor", pattern.text));
            }
        }
    }

    /// GPT-2's Conv1D stores its weight as [inputs, outputs]; the name alone does not prove it.
    fn warn_of_transposed(&mut self, checkpoint: &Checkpoint) {
        const CONV1D: [&str; 3] = ["c_attn", "c_proj", "c_fc"];
        let suspects = self.tensors.iter().zip(checkpoint.tensors()).filter(|(planned, tensor)| {
            matches!(&planned.decision, Decision::Ternary(treatment) if treatment.axis == 0)
                && tensor.shape.len() == 2
                && segments(tensor.name).any(|segment| CONV1D.contains(&segment.as_str()))
        });
        if let Some((planned, _)) = suspects.into_iter().next() {
            self.warnings.push(format!(
                "`{}` looks like a Conv1D weight of shape [inputs, outputs]; if it is, add --set '*.c_*.weight' axis=1",
                planned.name
            ));
        }
    }

    /// The order of layers is not in a checkpoint: the first is the first by name (numbers in
    /// numeric order) that is no head, the last is the last head, or else the last by name.
    fn keep_first_last(&mut self) {
        const HEADS: [&str; 6] = ["fc", "classifier", "head", "heads", "logits", "output"];
        let is_head = |name: &str| segments(name).next().is_some_and(|first| HEADS.contains(&first.as_str()));
        let mut ternary: Vec<usize> =
            (0..self.tensors.len()).filter(|&i| matches!(self.tensors[i].decision, Decision::Ternary(_))).collect();
        ternary.sort_by(|&a, &b| {
            let (a, b) = (&self.tensors[a].name, &self.tensors[b].name);
            is_head(a).cmp(&is_head(b)).then_with(|| natural_order(a, b))
        });
        let ends = [(ternary.first(), "first"), (ternary.last(), "last")];
        for (i, end) in ends.into_iter().filter_map(|(i, end)| Some((*i?, end))) {
            self.tensors[i].decision = Decision::Dense;
            self.tensors[i].reason = format!("{end} layer, by name");
        }
    }
}

/// The rules in their order; the reason names the one that decided.
fn decide(
    tensor: TensorView<'_>,
    settings: &Settings,
    (forced, trained): (Option<&str>, Option<Keep>),
    include: &[Pattern],
    exclude: &[Pattern],
) -> (Keep, String) {
    let dense = |reason: String| (Keep::Dense, reason);
    let ternary = |reason: String| (Keep::Ternary, reason);
    if !is_float(tensor.dtype) {
        return dense(format!("{} does not become ternary", tensor.dtype));
    }
    if tensor.shape.len() < 2 {
        return dense(format!("rank {}", tensor.shape.len()));
    }
    if tensor.elements() == 0 {
        return dense("empty".to_owned());
    }
    if let Some(pattern) = matching(exclude, tensor.name) {
        return dense(format!("excluded by `{}`", pattern.text));
    }
    if let (Some(keep), Some(pattern)) = (settings.keep, forced) {
        return (keep, format!("set by `{pattern}`"));
    }
    if let (Some(keep), true) = (trained, include.is_empty()) {
        return (keep, "as it was trained".to_owned());
    }
    match (matching(include, tensor.name), exception(tensor.name)) {
        (Some(pattern), _) => ternary(format!("included by `{}`", pattern.text)),
        (None, _) if !include.is_empty() => dense("not included".to_owned()),
        (None, Some(reason)) => dense(reason.to_owned()),
        (None, None) => ternary("floating point, rank 2 or more".to_owned()),
    }
}

/// Names that stay dense by default: what embeds, normalises, or maps to a vocabulary.
fn exception(name: &str) -> Option<&'static str> {
    const EMBEDDINGS: [&str; 4] = ["wte", "wpe", "cls_token", "relative_attention_bias"];
    const NORMS: [&str; 6] = ["ln", "bn", "ln_f", "ln_1", "ln_2", "rms"];
    const HEADS: [&str; 3] = ["lm_head", "embed_out", "output_projection"];
    for segment in segments(name) {
        let segment = segment.as_str();
        if segment.contains("embed") || EMBEDDINGS.contains(&segment) {
            return Some("embedding, by name");
        }
        if segment.contains("norm") || NORMS.contains(&segment) {
            return Some("normalisation, by name");
        }
        if HEADS.contains(&segment) {
            return Some("language-model head, by name");
        }
        if segment == "bias" {
            return Some("bias, by name");
        }
    }
    (name == "output.weight").then_some("language-model head, by name")
}

/// The dotted parts of a name, in lower case.
fn segments(name: &str) -> impl Iterator<Item = String> + '_ {
    name.split(['.', '/']).map(str::to_lowercase)
}

/// How a tensor that is ternary already is stored.
fn moved(tensor: TensorView<'_>, settings: &Settings, exclude: &[Pattern]) -> Result<Moved> {
    let name = tensor.name;
    if let Some(pattern) = matching(exclude, name) {
        return Err(Error::Request(format!(
            "tensor `{name}` is ternary in the checkpoint and has no floats that could stay dense; leave out --exclude \
             `{}`, and unpack it afterwards",
            pattern.text
        )));
    }
    let encoding = settings.encoding.unwrap_or(Encoding::T2);
    if encoding == Encoding::B1 || settings.planes.is_some_and(|planes| planes != 1) {
        return Err(Error::Request(format!(
            "tensor `{name}` is ternary in the checkpoint: one plane of t2 or t5 holds it; leave out the other encoding or \
             planes for it"
        )));
    }
    Ok(Moved { encoding, scale_dtype: settings.scale_dtype.unwrap_or_default() })
}

/// The treatment, if the tensor can have it.
fn checked_treatment(tensor: TensorView<'_>, settings: &Settings) -> Result<Treatment> {
    let treatment = settings.treatment()?;
    if treatment.axis >= tensor.shape.len() {
        return Err(Error::Request(format!(
            "tensor `{}`: filter axis {} of shape {:?}; there are axes 0 to {}",
            tensor.name,
            treatment.axis,
            tensor.shape,
            tensor.shape.len() - 1
        )));
    }
    Ok(treatment)
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Int8(int8) => f.write_str(&became_int8(int8.axis as u64)),
            Self::Moved(moved) => write!(f, "{} {MOVED}", moved.encoding.name()),
            Self::Ternary(t) => {
                f.write_str(&became(t.encoding, t.method.name(), t.granularity, t.planes as u64, t.axis as u64))
            }
        }
    }
}

/// What an int8 tensor is called in a report.
pub(crate) fn became_int8(axis: u64) -> String {
    let axis = if axis == 0 { String::new() } else { format!(" axis {axis}") };
    format!("int8 filter{axis}")
}

/// What a ternary tensor is called in a report: `t2 twn filter`, and what is out of the ordinary.
pub(crate) fn became(encoding: Encoding, method: &str, granularity: Granularity, planes: u64, axis: u64) -> String {
    let planes = if planes == 1 { String::new() } else { format!(" planes {planes}") };
    let axis = if axis == 0 { String::new() } else { format!(" axis {axis}") };
    format!("{} {method} {granularity}{planes}{axis}", encoding.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_exceptions_go_by_whole_segments() {
        for dense in [
            "model.embed_tokens.weight",
            "transformer.wte.weight",
            "lm_head.weight",
            "output.weight",
            "h.0.ln_1.weight",
        ] {
            assert!(exception(dense).is_some(), "{dense}");
        }
        for ternary in
            ["encoder.layer.0.output.dense.weight", "layers.1.mlp.up_proj.weight", "conv1.weight", "fc.weight"]
        {
            assert!(exception(ternary).is_none(), "{ternary}");
        }
    }
}
