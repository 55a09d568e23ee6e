//! Which models may be declared to be of a newer opset: those whose operations mean the same in it. Compared were the
//! schemas of every version of every operation of ONNX 1.23: attributes that went or changed their default, inputs
//! that became required or others, and what the changelog says of meaning. Not here: converting operations.

use crate::onnx::{Model, Node, names_default_domain};

/// Operations, and the opset from which what was valid before means something else, or nothing.
const CHANGED: [(&str, i64); 31] = [
    ("Attention", 25),
    ("BatchNormalization", 9),
    ("Clip", 11),
    ("DFT", 20),
    ("Dropout", 12),
    ("GridSample", 20),
    ("GroupNormalization", 21),
    ("Hardmax", 13),
    ("LogSoftmax", 13),
    ("Pad", 11),
    ("ReduceL1", 18),
    ("ReduceL2", 18),
    ("ReduceLogSum", 18),
    ("ReduceLogSumExp", 18),
    ("ReduceMax", 18),
    ("ReduceMean", 18),
    ("ReduceMin", 18),
    ("ReduceProd", 18),
    ("ReduceSum", 13),
    ("ReduceSumSquare", 18),
    ("Resize", 13),
    ("RoiAlign", 16),
    ("Scan", 9),
    ("Scatter", 11),
    ("Slice", 10),
    ("Softmax", 13),
    ("Split", 13),
    ("Squeeze", 13),
    ("TopK", 10),
    ("Unsqueeze", 13),
    ("Upsample", 10),
];

/// Before this one, sums did not broadcast as they do now.
const OLDEST: i64 = 7;

/// Checks that a model may be declared to be of opset `to`.
///
/// # Errors
/// Why not, and how to convert it.
pub(super) fn check(model: &Model<'_>, to: i64) -> Result<(), String> {
    let from = model.opset();
    let convert = format!("convert it first, in Python: onnx.version_converter.convert_version(model, {to})");
    if from < OLDEST {
        return Err(format!("its opset is {from}, should be at least {OLDEST}; {convert}"));
    }
    if from >= to {
        return Ok(());
    }
    if model.functions || model.training {
        let what = if model.functions { "functions of its own" } else { "graphs for training" };
        return Err(format!(
            "its opset {from} has to become {to}, but it has {what}; export it without, or in opset {to} \
             (onnx.inliner.inline_local_functions puts functions into the graph)"
        ));
    }
    let own = model.nodes.iter().chain(&model.nested).filter(|node| names_default_domain(node.domain));
    let changed: std::collections::BTreeMap<_, _> =
        own.filter_map(|node| Some((node.op, changes(node, from, to)?))).collect();
    let Some(enough) = changed.values().max() else { return Ok(()) };
    let names: Vec<_> = changed.keys().copied().collect();
    Err(format!(
        "its opset {from} has to become {to}, in which {} would mean something else than in {from}; export it in opset \
         {enough} or newer, or {convert}",
        names.join(", ")
    ))
}

/// The opset from which what the node says means something else, if that is on the way.
fn changes(node: &Node<'_>, from: i64, to: i64) -> Option<i64> {
    let within = |version: &i64| from < *version && *version <= to;
    let special = match node.op {
        // Outputs that are there for training only.
        "BatchNormalization" if node.outputs.len() > 1 => Some(14),
        // Into equal parts: from 18 on their number has to be said.
        "Split" if node.inputs.len() < 2 => Some(18),
        _ => None,
    };
    let known = CHANGED.iter().filter(|(name, _)| *name == node.op).map(|(_, version)| *version);
    known.chain(special).filter(within).max()
}
