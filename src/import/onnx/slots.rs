//! Initializers that are scales or biases, by the inputs of operations that take them, also in nested graphs. Not here:
//! functions, and products of ternary codes, whose scales are parts of them ([`super::int2`], [`super::nbits`]).

use std::collections::{BTreeMap, BTreeSet};

use super::graph::Graph;
use crate::onnx::{Initializer, Model, Node, data_type};

/// What stands between a value and what is made of it, and changes no numbers.
const CARRIERS: [&str; 7] = ["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// Such operations behind each other, at most.
const STEPS: usize = 8;

/// The inputs that are scales of quantized values, or zero points, which may be floats.
fn scales_of(node: &Node<'_>) -> &'static [usize] {
    match node.op {
        "QuantizeLinear" | "DequantizeLinear" => &[1],
        "MatMulNBits" | "GatherBlockQuantized" | "DynamicQuantizeMatMul" => &[2, 3],
        "MatMulIntegerToFloat" => &[2, 3],
        "QAttention" => &[3, 4],
        "QGemm" => &[1, 4, 7],
        "QLinearConv" | "QLinearMatMul" => &[1, 4, 6],
        "DynamicQuantizeLSTM" => &[8, 10],
        "QMoE" => &[3, 6, 9, 11, 12, 13],
        // QONNX.
        "Quant" => &[1, 2],
        _ => &[],
    }
}

/// The inputs that are biases of more dimensions than one.
fn biases_of(node: &Node<'_>) -> &'static [usize] {
    match node.op {
        "LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM" => &[3],
        "MoE" => &[3, 5, 7],
        "QMoE" => &[4, 7, 10],
        _ => &[],
    }
}

/// Names of initializers by what they are for.
pub(super) struct Slots<'m> {
    pub scales: BTreeSet<&'m str>,
    pub biases: BTreeSet<&'m str>,
}

impl<'m> Slots<'m> {
    pub fn find(graph: &Graph<'m>) -> Self {
        let sources = Sources::new(graph);
        let (mut scales, mut biases) = (BTreeSet::new(), BTreeSet::new());
        for node in nodes(graph.model) {
            let sources_of = |slots: &[usize]| {
                let inputs = slots.iter().filter_map(|&slot| node.inputs.get(slot));
                inputs.filter_map(|input| sources.of(input, &CARRIERS)).collect::<Vec<_>>()
            };
            let floats =
                sources_of(scales_of(node)).into_iter().chain(sources.factor(node)).filter(|of| !are_codes(of));
            scales.extend(floats.map(|initializer| initializer.name));
            biases.extend(sources_of(biases_of(node)).iter().map(|initializer| initializer.name));
        }
        Self { scales, biases }
    }
}

fn nodes<'m>(model: &'m Model<'m>) -> impl Iterator<Item = &'m Node<'m>> {
    model.nodes.iter().chain(&model.nested)
}

/// Who makes which value.
struct Sources<'g, 'm> {
    graph: &'g Graph<'m>,
    makers: BTreeMap<&'m str, &'m Node<'m>>,
}

impl<'g, 'm> Sources<'g, 'm> {
    fn new(graph: &'g Graph<'m>) -> Self {
        let made = nodes(graph.model).flat_map(|node| node.outputs.iter().map(move |&output| (output, node)));
        Self { graph, makers: made.collect() }
    }

    /// The initializer that a value is, or that `operations` make it of, each of its first input.
    fn of(&self, value: &'m str, operations: &[&str]) -> Option<&'m Initializer<'m>> {
        let maker = |value: &&'m str| {
            let node = self.makers.get(value).filter(|node| operations.contains(&node.op) && node.domain.is_empty())?;
            node.inputs.first().copied()
        };
        let mut values = std::iter::successors(Some(value), maker).take(STEPS);
        values.find_map(|value| self.graph.initializer(value))
    }

    /// What codes are multiplied by, or what is taken from them, where the node does that in plain arithmetic: of several
    /// codes one number each, unlike a mask.
    fn factor(&self, node: &Node<'m>) -> Option<&'m Initializer<'m>> {
        let ([left, right], "Mul" | "Sub" | "Div", "") = (&node.inputs[..], node.op, node.domain) else { return None };
        [(left, right), (right, left)].into_iter().find_map(|(codes, factor)| {
            let codes = self.of(codes, &[&CARRIERS[..], &["Sub"]].concat()).filter(|of| are_codes(of))?;
            let factor = self.of(factor, &CARRIERS)?;
            (codes.dims.len() >= 2 && factor.elements()? < codes.elements()?).then_some(factor)
        })
    }
}

/// Whether they are integers that may be quantized weights; INT64 and BOOL are indices and masks.
fn are_codes(initializer: &Initializer<'_>) -> bool {
    use data_type::{INT2, INT4, INT8, INT16, INT32, UINT2, UINT4, UINT8, UINT16, UINT32};
    let types = [INT2, INT4, INT8, INT16, INT32, UINT2, UINT4, UINT8, UINT16, UINT32];
    types.contains(&initializer.data_type)
}
