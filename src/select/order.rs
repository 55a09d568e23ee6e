//! Layers by their names, in the order in which data go through them. Not here: which names are looked at.

use std::cmp::Ordering;

use super::decide::{EMBEDDING, LANGUAGE_HEAD, exception};
use super::segments;

/// Embeddings and stems before all others, decoders after encoders, heads last; blocks by their numbers, and what a
/// transformer's block consists of by where it stands there. Without what all names begin with ([`common`]).
pub(super) fn of_layers(a: &str, b: &str) -> Ordering {
    stage(a).cmp(&stage(b)).then_with(|| natural_order(&staged(a), &staged(b)))
}

/// Bytes of the parts that all names begin with, such as `module.` and `backbone.`: they say nothing of the order.
pub(super) fn common<'n>(mut names: impl Iterator<Item = &'n str>) -> usize {
    let Some(first) = names.next() else { return 0 };
    // A name that is all of another one's beginning keeps its last part.
    let whole = |name: &str| name.rfind(['.', '/']).map_or(0, |dot| dot + 1);
    names.fold(whole(first), |common, name| {
        let equal = first.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        whole(&first[..first.floor_char_boundary(common.min(equal).min(whole(name)))])
    })
}

/// A head beside the network's own, which only training uses.
pub(super) fn is_auxiliary(name: &str) -> bool {
    segments(name).next().is_some_and(|first| first.starts_with("aux"))
}

/// Where a layer stands in the network, as far as the first parts of its name say so.
fn stage(name: &str) -> Stage {
    const STEMS: [&str; 4] = ["conv_in", "feature_extractor", "patch_embed", "stem"];
    const HEADS: [&str; 10] =
        ["classifier", "conv_out", "fc", "head", "heads", "logits", "out", "output", "qa_outputs", "score"];
    let mut first = segments(name).take(2);
    let (first, second) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let is = |names: &[&str]| [&first, &second].iter().any(|part| names.contains(&part.as_str()));
    let is_head = HEADS.contains(&first.as_str()) || first.ends_with("_head");
    match exception(name) {
        Some(LANGUAGE_HEAD) => Stage::Head,
        _ if is_head => Stage::Head,
        Some(EMBEDDING) => Stage::Embedding,
        _ if is(&STEMS) => Stage::Stem,
        _ if is(&["decoder"]) => Stage::Decoder,
        _ => Stage::Between,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Embedding,
    Stem,
    Between,
    Decoder,
    Head,
}

/// The name, with the place in a numbered block of a transformer in front of what has one.
fn staged(name: &str) -> String {
    /// Attention and what it consists of, then the other half.
    const STAGES: [&[&str]; 8] = [
        &[
            "self",
            "self_attn",
            "self_attention",
            "attention",
            "attn",
            "q_proj",
            "query",
            "q",
            "q_lin",
            "c_attn",
            "qkv",
            "in_proj",
            "in_proj_weight",
            "gate_proj",
            "w1",
        ],
        &["k_proj", "key", "k", "k_lin", "up_proj", "w3", "c_fc", "fc1", "lin1"],
        &["v_proj", "value", "v", "v_lin"],
        &["o_proj", "out_proj", "o", "out_lin", "down_proj", "w2", "c_proj", "fc2", "lin2"],
        &["cross_attn", "encoder_attn", "crossattention"],
        &["intermediate"],
        &["mlp", "feed_forward", "ffn", "ff"],
        &["output"],
    ];
    let stage = |part: &str| STAGES.iter().position(|names| names.contains(&part));
    let mut in_block = false;
    let parts = name.split('.').map(|part| {
        in_block |= part.bytes().all(|byte| byte.is_ascii_digit());
        let stage = stage(&part.to_lowercase()).filter(|_| in_block);
        stage.map_or_else(|| part.to_owned(), |stage| format!("{stage}{part}"))
    });
    parts.collect::<Vec<_>>().join(".")
}

/// Compares names with runs of digits as numbers: layer.2 before layer.10.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (x, y) = (leading_number(a), leading_number(b));
        let (order, skip_a, skip_b) = match (x, y) {
            (Some((p, i)), Some((q, j))) => (p.len().cmp(&q.len()).then_with(|| p.cmp(q)), i, j),
            _ => match (a.chars().next(), b.chars().next()) {
                (Some(p), Some(q)) => (p.cmp(&q), p.len_utf8(), q.len_utf8()),
                (p, q) => return p.cmp(&q),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (&a[skip_a..], &b[skip_b..]);
    }
}

/// The digits at the beginning without leading zeros, and how many bytes they take with them.
fn leading_number(text: &str) -> Option<(&str, usize)> {
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    (length > 0).then(|| (text[..length].trim_start_matches('0'), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_stand_in_the_order_of_the_network() {
        for names in [
            &[
                "model.embed_tokens.weight",
                "model.layers.0.self_attn.q_proj.weight",
                "model.layers.0.self_attn.v_proj.weight",
                "model.layers.0.self_attn.o_proj.weight",
                "model.layers.0.mlp.up_proj.weight",
                "model.layers.0.mlp.down_proj.weight",
                "model.layers.10.mlp.down_proj.weight",
                "lm_head.weight",
            ][..],
            &[
                "encoder.layer.0.attention.self.query.weight",
                "encoder.layer.0.attention.output.dense.weight",
                "encoder.layer.0.intermediate.dense.weight",
                "encoder.layer.0.output.dense.weight",
                "classifier.weight",
            ],
            &[
                "transformer.wte.weight",
                "transformer.h.0.attn.c_attn.weight",
                "transformer.h.0.mlp.c_fc.weight",
                "transformer.h.0.mlp.c_proj.weight",
            ],
            &[
                "conv1.weight",
                "layer1.0.conv1.weight",
                "layer1.0.conv2.weight",
                "layer2.0.downsample.0.weight",
                "fc.weight",
            ],
        ] {
            let mut sorted = names.to_vec();
            sorted.reverse();
            sorted.sort_by(|a, b| of_layers(a, b));
            assert_eq!(sorted, names);
        }
        assert_eq!(of_layers("conv1.weight", "fc1.weight"), Ordering::Less);
        for (names, [first, last]) in [
            (&["module.conv1.w", "module.fc.w", "module.layer4.1.conv2.w"][..], ["module.conv1.w", "module.fc.w"]),
            (&["module.head.w", "module.layer1.w", "module.stem.w"], ["module.stem.w", "module.head.w"]),
            (&["h.0.attn.c_attn.w", "h.10.mlp.c_proj.w", "score.w"], ["h.0.attn.c_attn.w", "score.w"]),
            (
                &["decoder.block.0.w", "decoder.block.5.w", "encoder.block.0.w"],
                ["encoder.block.0.w", "decoder.block.5.w"],
            ),
            (
                &["wav2vec2.encoder.layers.0.w", "wav2vec2.feature_extractor.conv_layers.0.w", "classifier.w"],
                ["wav2vec2.feature_extractor.conv_layers.0.w", "classifier.w"],
            ),
            (&["head.fc.w", "stages.0.blocks.0.conv_dw.w", "stem.0.w"], ["stem.0.w", "head.fc.w"]),
            (&["conv_in.w", "conv_out.w", "down_blocks.0.w", "up_blocks.3.conv2.w"], ["conv_in.w", "conv_out.w"]),
            (
                &["decoder.0.w", "decoder.2.w", "segmentation_head.w", "encoder.0.w"],
                ["encoder.0.w", "segmentation_head.w"],
            ),
        ] {
            let mut sorted = names.to_vec();
            let skip = common(sorted.iter().copied());
            sorted.sort_by(|a, b| of_layers(&a[skip..], &b[skip..]));
            assert_eq!([sorted[0], sorted[names.len() - 1]], [first, last]);
        }
        assert_eq!(common(["a.b.c", "a.b.d", "a.bc.e"].into_iter()), 2);
        assert_eq!(common(["ä.b", "å.b"].into_iter()), 0);
        assert_eq!(common(["a.b.c", "a.b"].into_iter()), 2);
        assert!(is_auxiliary("AuxLogits.fc.weight") && !is_auxiliary("Conv2d_1a_3x3.conv.weight"));
    }

    #[test]
    fn numbers_in_names_compare_as_numbers() {
        let mut names = ["l.10.w", "l.2.w", "l.02.v", "conv1", "conv", "l.1"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["conv", "conv1", "l.1", "l.02.v", "l.2.w", "l.10.w"]);
    }
}
