//! The weights of onnxruntime's `MatMulNBits` with two bits, as the ternary weights that they are: codes by output and
//! block of inputs, less a zero point (2 where there is none). Several planes of a weight are the products that the
//! exporter adds up. Not here: other numbers of bits, which are no ternary weights.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Bytes, Found, Graph, Order as Form, Plane, Scales, ScalesOf};
use crate::limits;
use crate::onnx::{Initializer, Node, data_type};
use crate::source::TernaryLayout;

/// In which order codes, scales and zero points lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Order {
    /// Outputs and inputs; codes are [outputs][blocks][block / 4], the last block of each output filled up.
    outputs: usize,
    inputs: usize,
    block: usize,
    /// The weight that was there is [inputs, outputs].
    turned: bool,
}

/// All that are ternary by their types and shapes, in the order of their codes; and the names of the codes that are not.
pub(super) fn find<'m>(graph: &Graph<'m>) -> (Vec<Found<'m>>, Vec<&'m str>) {
    let nodes = graph.model.nodes.iter().filter(|node| is_product(node));
    let names: BTreeSet<&str> = nodes.filter_map(|node| node.inputs.get(1).copied()).collect();
    let (mut planes, mut others) = (BTreeMap::new(), Vec::new());
    for name in names.into_iter().filter(|name| graph.initializer(name).is_some()) {
        match plane(graph, name) {
            Some(plane) => drop(planes.insert(name, plane)),
            None => others.push(name),
        }
    }
    let (mut found, mut given) = (Vec::new(), BTreeSet::new());
    while let Some((name, first)) = planes.pop_first() {
        let mut all = vec![first];
        let several = others_of(graph, name, &all[0], &planes);
        let weight = several.as_ref().map(|(weight, _)| *weight).or_else(|| name.strip_suffix(".codes"));
        all.extend(several.into_iter().flat_map(|(_, names)| names).filter_map(|name| planes.remove(name)));
        // What the exporter calls them; unless something else is called so.
        let weight = weight.map(|weight| weight.strip_suffix(".turned").map_or((weight, false), |name| (name, true)));
        let weight = weight.filter(|(weight, _)| !graph.model.names.contains(weight) && given.insert(*weight));
        let (weight, turned) = weight.unwrap_or((name, false));
        found.push((weight, turned, all));
    }
    let mut found: Vec<Found<'_>> =
        found.into_iter().map(|(name, turned, planes)| whole(name, turned, planes)).collect();
    found.sort_by_key(|found| found.planes[0].codes.field.start);
    (found, others)
}

fn is_product(node: &Node<'_>) -> bool {
    (node.op, node.domain) == ("MatMulNBits", "com.microsoft")
}

fn whole<'m>(name: &'m str, turned: bool, planes: Vec<(Plane<'m>, Order)>) -> Found<'m> {
    let order = Order { turned, ..planes[0].1 };
    let mut shape = vec![order.outputs, order.inputs];
    if turned {
        shape.reverse();
    }
    let planes = planes.into_iter().map(|(plane, _)| Plane { order: Form::Nbits(order), ..plane });
    Found { name, shape, planes: planes.collect(), other: None }
}

/// What codes are the weights of, if every node that uses them says the same.
fn plane<'m>(graph: &Graph<'m>, name: &'m str) -> Option<(Plane<'m>, Order)> {
    let nodes = graph.uses(name)?;
    let first = nodes.first()?;
    let number = |node: &Node<'_>, name| node.int(name).and_then(|value| usize::try_from(value).ok());
    let input = |node: &Node<'m>, slot: usize| node.inputs.get(slot).copied().filter(|name| !name.is_empty());
    let of = |node: &Node<'m>| {
        let sizes = ["N", "K", "block_size", "bits"].map(|name| number(node, name));
        (is_product(node), sizes, [1, 2, 3, 4].map(|slot| input(node, slot)))
    };
    let (true, [Some(outputs), Some(inputs), Some(block), Some(2)], [_, Some(scales), zeros, None]) = of(first) else {
        return None;
    };
    // Scales and zero points belong to these nodes alone.
    let own = |name: &str| graph.uses(name).is_some_and(|uses| uses.iter().all(|node| of(node) == of(first)));
    if !own(name) || !own(scales) || zeros.is_some_and(|zeros| !own(zeros)) {
        return None;
    }
    if first.int("weight_prepacked").is_some_and(|prepacked| prepacked != 0) || block == 0 || block % 4 != 0 {
        return None;
    }
    let blocks = inputs.div_ceil(block);
    let scale_count = outputs.checked_mul(blocks).filter(|&count| count > 0)?;
    let bytes = scale_count.checked_mul(block / 4)?;
    let zero_bytes = outputs.checked_mul(blocks.div_ceil(4))?;
    let of_bytes = |initializer: &Initializer<'_>, bytes: usize| {
        initializer.data_type == data_type::UINT8 && initializer.elements() == Some(bytes as u64)
    };
    let codes = graph.initializer(name).filter(|codes| of_bytes(codes, bytes))?;
    let scales = ScalesOf::new(graph.initializer(scales)?)?;
    let zeros = match zeros {
        None => None,
        Some(zeros) => Some(graph.initializer(zeros).filter(|zeros| of_bytes(zeros, zero_bytes))?),
    };
    outputs.checked_mul(inputs).filter(|_| scales.of.elements() == Some(scale_count as u64))?;
    let order = Order { outputs, inputs, block, turned: false };
    Some((Plane { codes, bytes, scales, zeros, zero_bytes, order: Form::Nbits(order) }, order))
}

/// The weight that `X.codes.0` is the first plane of, and the names of the others' codes: those of products with the
/// same values that the exporter adds up.
fn others_of<'m>(
    graph: &Graph<'m>,
    name: &'m str,
    (first, order): &(Plane<'m>, Order),
    planes: &BTreeMap<&'m str, (Plane<'m>, Order)>,
) -> Option<(&'m str, Vec<&'m str>)> {
    let weight = name.strip_suffix(".codes.0")?;
    let (mut count, nodes) = (None, graph.uses(name)?);
    for node in nodes {
        let (products, _) = graph.sum_of_planes(node.outputs.first()?)?;
        if *count.get_or_insert(products.len()) != products.len() {
            return None;
        }
    }
    let numbers = 1..count.filter(|&count| count <= limits::PACKED_PLANES)?;
    let mut others = Vec::new();
    for number in numbers {
        let (&codes, (plane, its)) = planes.get_key_value(&*format!("{weight}.codes.{number}"))?;
        let uses = graph.uses(codes)?;
        let beside = |(a, b): (&&Node<'m>, &&Node<'m>)| {
            let (a_out, b_out) = (a.outputs.first(), b.outputs.first());
            let called = |name: &&'m str, number| name.strip_suffix(&*format!(".plane.{number}"));
            a.inputs[0] == b.inputs[0]
                && a_out.and_then(|name| called(name, 0)) == b_out.and_then(|name| called(name, number))
        };
        let alike = its == order && plane.scales.dtype == first.scales.dtype && plane.zeros.is_none();
        if !alike || uses.len() != nodes.len() || !nodes.iter().zip(uses).all(beside) {
            return None;
        }
        others.push(codes);
    }
    first.zeros.is_none().then_some((weight, others))
}

/// Four codes to a byte, lowest bits first, each of them t + its zero point.
#[derive(Debug)]
pub(super) struct Nbits {
    pub order: Order,
    pub scales: Scales,
    pub zeros: Option<Bytes>,
}

impl Nbits {
    fn blocks(&self) -> usize {
        self.order.inputs.div_ceil(self.order.block)
    }

    fn zero(&self, filter: usize, block: usize) -> u8 {
        let Some((file, range)) = &self.zeros else { return 2 };
        let at = filter * self.blocks().div_ceil(4) + block / 4;
        file[range.clone()].get(at).map_or(2, |byte| byte >> (2 * (block % 4)) & 3)
    }

    fn signed_scale(&self, filter: usize, block: usize) -> f32 {
        self.scales.get(filter * self.blocks() + block)
    }

    /// The bytes of one filter.
    fn row<'a>(&self, data: &'a [u8], filter: usize) -> Option<&'a [u8]> {
        let bytes = self.blocks() * self.order.block / 4;
        data.get(filter * bytes..(filter + 1) * bytes)
    }
}

impl TernaryLayout for Nbits {
    fn axis(&self) -> usize {
        usize::from(self.order.turned)
    }

    fn unit_len(&self) -> usize {
        self.order.block.min(self.order.inputs)
    }

    fn codes(&self, data: &[u8], filter: usize, codes: &mut [u8]) -> Result<(), String> {
        let row = self.row(data, filter).ok_or("its bytes end early")?;
        let negative = self.scales.any_negative();
        for (block, codes) in codes.chunks_mut(self.order.block).enumerate() {
            let (zero, from) = (self.zero(filter, block), block * self.order.block);
            let negated = negative && self.signed_scale(filter, block).is_sign_negative();
            for (j, code) in (from..).zip(codes) {
                let found = row[j / 4] >> (2 * (j % 4)) & 3;
                *code = match (found + 1).checked_sub(zero) {
                    Some(code @ 0..=2) if negated => 2 - code,
                    Some(code @ 0..=2) => code,
                    _ => return Err(super::not_ternary(filter, j, i32::from(found) - i32::from(zero))),
                };
            }
        }
        Ok(())
    }

    fn t2(&self, data: &[u8], filter: usize, packed: &mut [u8]) -> bool {
        let (Some(row), None) = (self.row(data, filter), &self.zeros) else { return false };
        if !self.order.inputs.is_multiple_of(4) || self.scales.any_negative() {
            return false;
        }
        packed.iter_mut().zip(row).for_each(|(packed, &byte)| *packed = recode(byte));
        true
    }

    fn scale(&self, _: &[u8], filter: usize, unit: usize) -> f32 {
        self.signed_scale(filter, unit).abs()
    }

    fn scales(&self, _: &[u8], filter: usize, first: usize, scales: &mut [f32]) {
        self.scales.read(filter * self.blocks() + first, scales);
        scales.iter_mut().for_each(|scale| *scale = scale.abs());
    }
}

/// The codes t+1 of four codes t+2; 0, which is −2, becomes 3.
fn recode(byte: u8) -> u8 {
    let (low, high) = (byte & 0x55, byte >> 1 & 0x55);
    !low & 0x55 | (!(high ^ low) & 0x55) << 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_codes_at_once_are_four_codes() {
        for byte in 0..=255u8 {
            let one = |i: u8| ((byte >> (2 * i) & 3) + 3) & 3;
            assert_eq!(recode(byte), one(0) | one(1) << 2 | one(2) << 4 | one(3) << 6, "{byte:#04x}");
        }
    }
}
