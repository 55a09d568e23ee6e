//! Layers by their names, in the order in which data go through them. Not here: which names are looked at.

use std::cmp::Ordering;

use super::decide::{EMBEDDING, LANGUAGE_HEAD, exception};
use super::segments;

/// Embeddings before all others, heads after them; blocks by their numbers, and what a transformer's block consists of by
/// where it stands there.
pub(super) fn of_layers(a: &str, b: &str) -> Ordering {
    end(a).cmp(&end(b)).then_with(|| natural_order(&staged(a), &staged(b)))
}

/// A head beside the network's own, which only training uses.
pub(super) fn is_auxiliary(name: &str) -> bool {
    segments(name).next().is_some_and(|first| first.starts_with("aux"))
}

/// 0 for embeddings, 2 for heads, 1 for what stands between.
fn end(name: &str) -> u8 {
    const HEADS: [&str; 6] = ["fc", "classifier", "head", "heads", "logits", "output"];
    let head = segments(name).next().is_some_and(|first| HEADS.contains(&first.as_str()));
    match exception(name) {
        Some(LANGUAGE_HEAD) => 2,
        _ if head => 2,
        Some(EMBEDDING) => 0,
        _ => 1,
    }
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
        assert!(is_auxiliary("AuxLogits.fc.weight") && !is_auxiliary("Conv2d_1a_3x3.conv.weight"));
    }

    #[test]
    fn numbers_in_names_compare_as_numbers() {
        let mut names = ["l.10.w", "l.2.w", "l.02.v", "conv1", "conv", "l.1"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["conv", "conv1", "l.1", "l.02.v", "l.2.w", "l.10.w"]);
    }
}
