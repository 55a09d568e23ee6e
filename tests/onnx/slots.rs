//! What floats are for, by the inputs of the operations that take them: scales and biases stay dense. Not here: scales
//! of ternary codes, which are moved with them.

use twn_pack::{Plan, Rules};

use crate::import::import;
use crate::model::*;
use crate::wire::*;

fn of_domain(domain: &str, node: Vec<u8>) -> Vec<u8> {
    [node, bytes(7, domain)].concat()
}

/// Why `s` stays dense, and how many warnings there are; `w` is a plain weight, which becomes ternary.
fn reason(nodes: &[Vec<u8>], codes: (i64, &[usize]), s: &[usize]) -> (String, usize) {
    let directory = tempfile::tempdir().unwrap();
    let size = if codes.0 == FLOAT { 4 } else { 1 };
    let q = raw("q", codes.0, codes.1, &vec![1; codes.1.iter().product::<usize>() * size]);
    let file = model(21, &graph(nodes, &[q, weights("s", s), weights("w", &[8, 4])]));
    let checkpoint = import(&directory, &file).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let of = |name: &str| plan.tensors.iter().find(|planned| planned.name == name).unwrap().reason.to_string();
    assert!(of("w").starts_with("floating point"), "{}", of("w"));
    // Who asks for it gets it.
    let asked = Plan::new(&checkpoint, &Rules { include: vec!["s".to_owned()], ..Rules::default() }).unwrap();
    assert_eq!(asked.ternary_count(), 1);
    (of("s"), plan.warnings.len())
}

#[test]
fn scales_are_found_behind_casts_and_in_branches() {
    let decoder = |scale: &str| node("DequantizeLinear", &["q", scale], "d", &[]);
    let cast = |of: &str, to: &str| node("Cast", &[of], to, &[attribute_int("to", 1)]);
    // A branch that uses the main graph's initializers.
    let branch = |inner: Vec<u8>| {
        let then = bytes(5, [bytes(1, "then_branch"), bytes(6, bytes(1, inner)), int(20, 5)].concat());
        node("If", &["x"], "y", &[then])
    };
    let (int8, qonnx) = ((INT8, &[8, 4][..]), "qonnx.custom_op.general");
    let inputs = |slot: usize, name: &'static str| {
        let inputs = (0..slot).map(|i| if i == 1 { "q" } else { "x" });
        inputs.chain([name]).collect::<Vec<_>>()
    };
    let microsoft = |op: &str, slot: usize| of_domain("com.microsoft", node(op, &inputs(slot, "s"), "y", &[]));
    for (what, nodes) in [
        ("plain", vec![decoder("s")]),
        ("cast", vec![cast("s", "c"), decoder("c")]),
        ("reshaped", vec![cast("s", "c"), node("Reshape", &["c", "x"], "r", &[]), decoder("r")]),
        ("branch", vec![branch(decoder("s"))]),
        ("LSTM", vec![microsoft("DynamicQuantizeLSTM", 8)]),
        ("LSTM, R", vec![microsoft("DynamicQuantizeLSTM", 10)]),
        ("QMoE", vec![microsoft("QMoE", 3)]),
        ("QMoE, fc2", vec![microsoft("QMoE", 6)]),
        ("QONNX", vec![of_domain(qonnx, node("Quant", &["q", "s", "x", "x"], "y", &[]))]),
        ("product", vec![cast("q", "c"), node("Mul", &["c", "s"], "y", &[])]),
        ("product, the other way", vec![cast("q", "c"), node("Mul", &["s", "c"], "y", &[])]),
        ("difference", vec![cast("q", "c"), node("Sub", &["c", "x"], "z", &[]), node("Mul", &["z", "s"], "y", &[])]),
        ("zero points", vec![cast("q", "c"), node("Sub", &["c", "s"], "y", &[])]),
    ] {
        assert_eq!(reason(&nodes, int8, &[8, 1]), ("scales of quantized weights".to_owned(), 1), "{what}");
    }
    // Weights under a mask, floats that are multiplied, indices.
    let product = [cast("q", "c"), node("Mul", &["s", "c"], "y", &[])];
    for (codes, s) in
        [(int8, &[8, 4][..]), ((FLOAT, &[8, 4]), &[8, 1]), ((9, &[8, 4]), &[8, 1]), ((INT8, &[8]), &[2, 1])]
    {
        let (reason, warnings) = reason(&product, codes, s);
        assert!(reason.starts_with("floating point") && warnings == 0, "{codes:?} {s:?}: {reason}");
    }
    // Operations in a circle end.
    let circle = [node("Cast", &["b"], "a", &[]), node("Cast", &["a"], "b", &[]), decoder("a")];
    assert!(reason(&circle, int8, &[8, 1]).0.starts_with("floating point"));
}

#[test]
fn biases_of_recurrent_layers_and_experts_stay_dense() {
    for (op, slot) in [("LSTM", 3), ("GRU", 3), ("RNN", 3), ("MoE", 3), ("MoE", 5), ("QMoE", 4), ("QMoE", 10)] {
        let mut inputs = vec!["x"; slot];
        inputs.push("s");
        let layer = node(op, &inputs, "y", &[]);
        assert_eq!(reason(&[layer], (FLOAT, &[1, 2]), &[1, 8]), ("bias".to_owned(), 0), "{op} {slot}");
    }
    let layer = node("LSTM", &["x", "s", "w", "x"], "y", &[]);
    assert!(reason(&[layer], (FLOAT, &[1, 2]), &[1, 8]).0.starts_with("floating point"));
}
