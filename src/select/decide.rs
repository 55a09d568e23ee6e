//! The rules for one tensor, in their order, and the exceptions by name. Not here: the plan of all of them
//! ([`super`]).

use std::borrow::Cow;

use globset::{GlobBuilder, GlobMatcher};

use super::{Keep, Moved, Settings, Treatment};
use crate::dtype::is_float;
use crate::pack::Encoding;
use crate::source::{Checkpoint, TensorView};
use crate::{Error, Result};

/// A user's glob, compiled.
pub(super) struct Pattern {
    pub text: String,
    pub matcher: GlobMatcher,
}

impl Pattern {
    pub fn new(text: &str) -> Result<Self> {
        let glob =
            GlobBuilder::new(text).build().map_err(|e| Error::Request(format!("pattern `{text}`: {}", e.kind())))?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }

    pub fn all(texts: &[String]) -> Result<Vec<Self>> {
        texts.iter().map(|text| Self::new(text)).collect()
    }
}

pub(super) fn matching<'p>(patterns: &'p [Pattern], name: &str) -> Option<&'p Pattern> {
    patterns.iter().find(|pattern| pattern.matcher.is_match(name))
}

/// The rules in their order; the reason names the one that decided.
pub(super) fn decide(
    tensor: TensorView<'_>,
    settings: &Settings,
    (forced, trained): (Option<&str>, Option<Keep>),
    stays: Option<Cow<'static, str>>,
    include: &[Pattern],
    exclude: &[Pattern],
) -> (Keep, Cow<'static, str>) {
    let dense = |reason: Cow<'static, str>| (Keep::Dense, reason);
    let ternary = |reason: Cow<'static, str>| (Keep::Ternary, reason);
    if !is_float(tensor.dtype) {
        return dense(format!("{} does not become ternary", tensor.dtype).into());
    }
    if tensor.shape.len() < 2 {
        return dense(format!("rank {}", tensor.shape.len()).into());
    }
    if tensor.elements() == 0 {
        return dense("empty".into());
    }
    if let Some(pattern) = matching(exclude, tensor.name) {
        return dense(format!("excluded by `{}`", pattern.text).into());
    }
    if let (Some(keep), Some(pattern)) = (settings.keep, forced) {
        return (keep, format!("set by `{pattern}`").into());
    }
    if let (Some(keep), true) = (trained, include.is_empty()) {
        return (keep, "as it was trained".into());
    }
    match (matching(include, tensor.name), exception(tensor.name)) {
        (Some(pattern), _) => ternary(format!("included by `{}`", pattern.text).into()),
        (None, _) if !include.is_empty() => dense("not included".into()),
        (None, Some(reason)) => dense(reason.into()),
        (None, None) if let Some(reason) = stays => dense(reason),
        (None, None) => ternary("floating point, rank 2 or more".into()),
    }
}

/// Whether a tensor is a layer's weights that nobody has to ask for.
pub(super) fn is_layer(tensor: TensorView<'_>) -> bool {
    is_float(tensor.dtype) && tensor.shape.len() >= 2 && tensor.elements() > 0 && exception(tensor.name).is_none()
}

/// Why what embeds stays dense.
pub(super) const EMBEDDING: &str = "embedding, by name";
/// Why what maps to a vocabulary does.
pub(super) const LANGUAGE_HEAD: &str = "language-model head, by name";

/// Names that stay dense by default: what embeds, normalises, or maps to a vocabulary.
pub(super) fn exception(name: &str) -> Option<&'static str> {
    const LANGUAGE_HEADS: [&str; 4] = ["lm_head", "embed_out", "output_projection", "output_layer"];
    const EMBEDDINGS: [&str; 6] = ["wte", "wpe", "emb", "token_types", "cls_token", "relative_attention_bias"];
    // llama.cpp's names of biases by distance and of tables of angles.
    const POSITIONS: [&str; 3] = ["attn_rel_b", "cross_attn_rel_b", "rope_freqs"];
    for segment in segments(name) {
        let segment = segment.as_str();
        if segment.contains("embed") || segment.contains("embd") || EMBEDDINGS.contains(&segment) {
            return Some(EMBEDDING);
        }
        if POSITIONS.contains(&segment) || segment.starts_with("rope_factors") {
            return Some("positions, by name");
        }
        if is_norm(segment) {
            return Some("normalisation, by name");
        }
        if LANGUAGE_HEADS.contains(&segment) {
            return Some(LANGUAGE_HEAD);
        }
        if segment == "bias" || segment == "exp_probs_b" {
            return Some("bias, by name");
        }
        // What PyTorch's weight normalisation multiplies each filter by; Mamba's matrix A, whose exponential is taken.
        if segment == "weight_g" || segment == "original0" {
            return Some("lengths of filters, by name");
        }
        if segment == "a_log" || segment == "ssm_a" {
            return Some("state space, by name");
        }
    }
    // Those of experts have two dimensions. A module of such a name has weights.
    if segments(name).last().is_some_and(|last| last.ends_with("_bias")) {
        return Some("bias, by name");
    }
    // T5 and BART share one between encoder and decoder.
    if name == "shared.weight" || name.ends_with(".shared.weight") {
        return Some(EMBEDDING);
    }
    let head = name == "output.weight" || name.ends_with("predictions.decoder.weight");
    head.then_some(LANGUAGE_HEAD)
}

/// `norm`, `layernorm`, `batch_norm2d`, `normalization`, but not `enormous` or `normal_conv`.
fn is_norm(segment: &str) -> bool {
    const NORMS: [&str; 6] = ["ln", "bn", "ln_f", "ln_1", "ln_2", "rms"];
    let part = |part: &str| {
        let part = part.strip_suffix(['d']).filter(|rest| rest.ends_with(|c: char| c.is_ascii_digit())).unwrap_or(part);
        part.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with("norm")
            || part.starts_with("normaliz")
            || part.starts_with("normalis")
    };
    NORMS.contains(&segment) || segment.split(['_', '-']).any(part)
}

/// What stands between the parts of a name.
pub(super) const SEPARATORS: [char; 2] = ['.', '/'];

/// The parts of a name, in lower case.
pub(super) fn segments(name: &str) -> impl Iterator<Item = String> + '_ {
    name.split(SEPARATORS).map(str::to_lowercase)
}

/// How a tensor that is ternary already, in `its` planes, is stored.
pub(super) fn moved(tensor: TensorView<'_>, its: usize, settings: &Settings, exclude: &[Pattern]) -> Result<Moved> {
    let name = tensor.name;
    if let Some(pattern) = matching(exclude, name) {
        return Err(Error::Request(format!(
            "tensor `{name}` is ternary in the checkpoint and has no floats that could stay dense; leave out --exclude \
             `{}`, and unpack it afterwards",
            pattern.text
        )));
    }
    if matches!(settings.keep, Some(Keep::Dense | Keep::Int8)) {
        return Err(Error::Request(format!(
            "tensor `{name}` is ternary in the checkpoint and has no floats that could be dense or int8; leave out that \
             setting for it"
        )));
    }
    let encoding = settings.encoding.unwrap_or(Encoding::T2);
    if encoding == Encoding::B1 || settings.planes.is_some_and(|planes| planes != its) {
        return Err(Error::Request(format!(
            "tensor `{name}` is ternary in the checkpoint: {its} plane(s) of t2 or t5 hold it; leave out the other encoding \
             or planes for it"
        )));
    }
    Ok(Moved { encoding, scale_dtype: settings.scale_dtype.unwrap_or_default() })
}

/// The treatment, if the tensor can have it. `last` is what was made of the settings before: equal ones share it.
pub(super) fn checked_treatment(
    checkpoint: &Checkpoint,
    tensor: TensorView<'_>,
    settings: &Settings,
    last: &mut Option<(Settings, Treatment)>,
) -> Result<Treatment> {
    let wrong = |what| Error::Request(format!("{}: tensor `{}`: {what}", checkpoint.path().display(), tensor.name));
    let treatment = match last {
        Some((its, treatment)) if its == settings => treatment.clone(),
        _ => {
            let treatment = settings.treatment().map_err(|error| match error {
                Error::Request(message) => wrong(message),
                other => other,
            })?;
            last.insert((settings.clone(), treatment)).1.clone()
        }
    };
    if treatment.axis >= tensor.shape.len() {
        let (axis, shape) = (treatment.axis, tensor.shape);
        return Err(wrong(format!("filter axis {axis} of shape {shape:?}; there are axes 0 to {}", shape.len() - 1)));
    }
    Ok(treatment)
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
            "shared.weight",
            "model.shared.weight",
            "emb.weight",
            "transformer.output_layer.weight",
            "cls.predictions.decoder.weight",
            "encoder.LayerNorm.weight",
            "layers.0.post_attention_layernorm.weight",
            "features.batch_norm2d.weight",
            "blocks.0.norm1.weight",
            "decoder.conv_pre.weight_g",
            "conv.parametrizations.weight.original0",
            "backbone.layers.0.mixer.A_log",
            "model.layers.0.mlp.experts.gate_up_proj_bias",
            "blk.0.ssm_a",
            "blk.0.exp_probs_b",
            "enc.blk.0.attn_rel_b.weight",
            "dec.blk.0.cross_attn_rel_b.weight",
            "rope_factors_long.weight",
            "rope_freqs.weight",
        ] {
            assert!(exception(dense).is_some(), "{dense}");
        }
        for ternary in [
            "encoder.layer.0.output.dense.weight",
            "layers.1.mlp.up_proj.weight",
            "conv1.weight",
            "decoder.conv_pre.weight_v",
            "conv.parametrizations.weight.original1",
            "fc.weight",
            "enormous.weight",
            "normal_conv.weight",
            "mlp.shared_expert.up_proj.weight",
            "blocks.0.attention_pair_bias.to_q.weight",
            "blk.0.ssm_alpha.weight",
            "blk.0.attn_q_b.weight",
        ] {
            assert!(exception(ternary).is_none(), "{ternary}");
        }
    }
}
