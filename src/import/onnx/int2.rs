//! INT2 codes of an ONNX model behind `DequantizeLinear`, as the ternary weights that they are: −1, 0, +1, one scale
//! for all, along an axis or in blocks; and sums of them that the exporter made of a weight's planes. Not here: the
//! floats of a model ([`super`]), `MatMulNBits` ([`super::nbits`]).

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Found, Graph, Order as Form, Plane, Scales, ScalesOf};
use crate::limits;
use crate::onnx::{Data, Initializer, Node, data_type};
use crate::source::TernaryLayout;

/// In which order codes and scales lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Order {
    axis: usize,
    /// Filters, and neighbours of one filter: codes are [outer][filters][inner].
    filters: usize,
    inner: usize,
    filter_len: usize,
    unit_len: usize,
    /// One scale for all.
    per_tensor: bool,
    /// The scales lie [units][filters], not [filters][units].
    units_first: bool,
}

/// What one decoder gives.
struct Decoded<'m> {
    name: &'m str,
    shape: Vec<usize>,
    order: Order,
    codes: &'m Initializer<'m>,
    bytes: usize,
    scales: ScalesOf<'m>,
}

/// All that are ternary by their types and shapes, in the order of the graph's nodes.
pub(super) fn find<'m>(graph: &Graph<'m>) -> Vec<Found<'m>> {
    let decoders = graph.model.nodes.iter().filter(|node| (node.op, node.domain) == ("DequantizeLinear", ""));
    let decoded: Vec<Decoded<'_>> = decoders.filter_map(|node| Decoded::new(graph, node)).collect();
    let by_name: BTreeMap<&str, &Decoded<'_>> = decoded.iter().map(|decoded| (decoded.name, decoded)).collect();
    let sums: Vec<_> = decoded.iter().filter_map(|decoded| planes(graph, decoded, &by_name)).collect();
    let summed: BTreeSet<&str> = sums.iter().flat_map(|(_, planes)| planes.iter().map(|plane| plane.name)).collect();
    let alone = decoded.iter().filter(|decoded| !summed.contains(decoded.name)).map(|one| (one.name, vec![one]));
    let mut found: Vec<_> = alone.chain(sums).map(|(name, planes)| found(graph, name, &planes)).collect();
    found.sort_by_key(|found| found.planes[0].codes.field.start);
    found
}

/// The name of the weight that this one is the first plane of, and all of them.
fn planes<'d, 'm>(
    graph: &Graph<'m>,
    first: &'d Decoded<'m>,
    by_name: &BTreeMap<&str, &'d Decoded<'m>>,
) -> Option<(&'m str, Vec<&'d Decoded<'m>>)> {
    let (names, sum) = graph.sum_of_planes(first.name).filter(|(names, _)| names.len() <= limits::PACKED_PLANES)?;
    let planes: Vec<_> = names.iter().map(|name| by_name.get(name).copied()).collect::<Option<_>>()?;
    let form = |decoded: &Decoded<'m>| (decoded.shape.clone(), decoded.order, decoded.scales.dtype);
    planes.iter().all(|plane| form(plane) == form(first)).then_some((sum, planes))
}

fn found<'m>(graph: &Graph<'m>, name: &'m str, planes: &[&Decoded<'m>]) -> Found<'m> {
    let (mut order, shape) = (planes[0].order, planes[0].shape.clone());
    let mut found = Found { name, shape, planes: Vec::new(), other: None };
    follow(graph, &mut found, &mut order);
    let plane = |decoded: &&Decoded<'m>| Plane {
        codes: decoded.codes,
        bytes: decoded.bytes,
        scales: decoded.scales,
        zeros: None,
        zero_bytes: 0,
        order: Form::Int2(order),
    };
    found.planes.extend(planes.iter().map(plane));
    found
}

/// What the exporter puts behind a decoder: a `Transpose` of `w.turned`, a `Reshape` of `w.flat`.
fn follow<'m>(graph: &Graph<'m>, found: &mut Found<'m>, order: &mut Order) {
    let Some(next) = graph.only_use(found.name) else { return };
    let &[output] = &next.outputs[..] else { return };
    let called = |suffix: &str| found.name.strip_suffix(suffix) == Some(output);
    match (next.op, next.domain, &next.inputs[..]) {
        ("Transpose", "", [_])
            if called(".turned")
                && found.shape.len() == 2
                && next.attribute("perm").is_some_and(|perm| perm.ints == [1, 0]) =>
        {
            found.shape.reverse();
            (order.axis, found.name) = (1 - order.axis, output);
        }
        ("Reshape", "", &[_, dims]) if called(".flat") && order.axis == 0 && found.shape.len() == 2 => {
            let own = graph.initializer(dims).filter(|_| graph.only_use(dims).is_some());
            let Some(initializer) = own.filter(|dims| dims.data_type == data_type::INT64) else { return };
            let Data::Here(range) = &initializer.data else { return };
            let dims = graph.model.file[range.clone()].as_chunks::<8>().0.iter();
            let dims: Option<Vec<usize>> = dims.map(|&dim| usize::try_from(i64::from_le_bytes(dim)).ok()).collect();
            let fits = |dims: &Vec<usize>| {
                let rest = dims.iter().skip(1).try_fold(1usize, |n, &d| n.checked_mul(d));
                dims.len() <= limits::RANK && dims.first() == Some(&order.filters) && rest == Some(order.filter_len)
            };
            if let Some(dims) = dims.filter(fits) {
                (found.shape, found.name, found.other) = (dims, output, Some(initializer.name));
            }
        }
        _ => {}
    }
}

impl<'m> Decoded<'m> {
    fn new(graph: &Graph<'m>, node: &'m Node<'m>) -> Option<Self> {
        let ([codes, scales], &[name]) = (&node.inputs[..], &node.outputs[..]) else { return None };
        // What belongs to this decoder alone.
        graph.only_use(codes).and(graph.only_use(scales))?;
        let (codes, scales) = (graph.initializer(codes)?, ScalesOf::new(graph.initializer(scales)?)?);
        let shape: Vec<usize> = codes.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
        let weights = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&weights| weights > 0)?;
        let plain = codes.data_type == data_type::INT2 && !matches!(codes.data, Data::Fields);
        if !plain || !(2..=limits::RANK).contains(&shape.len()) {
            return None;
        }
        let rank = shape.len();
        let axis = node.int("axis").unwrap_or(1);
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&axis| axis < rank);
        let block = usize::try_from(node.int("block_size").unwrap_or(0)).ok()?;
        let dims: Vec<usize> = scales.of.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
        let per_tensor = scales.of.elements() == Some(1) && dims.len() <= 1 && block == 0;
        let (axis, unit_len, units_first) = match (&dims[..], axis) {
            _ if per_tensor => (0, weights / shape[0], false),
            (&[count], Some(axis)) if block == 0 && count == shape[axis] => (axis, weights / count, false),
            // Blocks along one axis of a matrix: filters go along the other.
            (&[rows, columns], Some(along)) if rank == 2 && block > 0 => {
                let units = shape[along].div_ceil(block);
                let expected = if along == 1 { [shape[0], units] } else { [units, shape[1]] };
                if [rows, columns] != expected {
                    return None;
                }
                (1 - along, block.min(shape[along]), along == 0)
            }
            _ => return None,
        };
        let (filters, inner) = (shape[axis], shape[axis + 1..].iter().product());
        let per_tensor = scales.of.elements() == Some(1);
        let order = Order { axis, filters, inner, filter_len: weights / filters, unit_len, per_tensor, units_first };
        Some(Self { name, shape, order, codes, bytes: weights.div_ceil(4), scales })
    }
}

/// Four codes to a byte across the whole tensor, lowest bits first, in two's complement.
#[derive(Debug)]
pub(super) struct Int2 {
    pub order: Order,
    pub scales: Scales,
}

/// The codes t+1 of four numbers of two bits; −2 becomes 3.
fn recode(byte: u8) -> u8 {
    let (low, high) = (byte & 0x55, byte >> 1 & 0x55);
    !low & 0x55 | (high ^ low) << 1
}

impl TernaryLayout for Int2 {
    fn axis(&self) -> usize {
        self.order.axis
    }

    fn unit_len(&self) -> usize {
        self.order.unit_len
    }

    fn codes(&self, data: &[u8], filter: usize, codes: &mut [u8]) -> Result<(), String> {
        for (j, code) in codes.iter_mut().enumerate() {
            let at = (j / self.order.inner * self.order.filters + filter) * self.order.inner + j % self.order.inner;
            let byte = *data.get(at / 4).ok_or("its bytes end early")?;
            *code = recode(byte) >> (2 * (at % 4)) & 3;
            if *code == 3 {
                return Err(super::not_ternary(filter, j, -2));
            }
        }
        Ok(())
    }

    fn t2(&self, data: &[u8], filter: usize, packed: &mut [u8]) -> bool {
        // Filters that follow one another, each on bytes of its own.
        if self.order.inner != self.order.filter_len || !self.order.filter_len.is_multiple_of(4) {
            return false;
        }
        let Some(bytes) = data.get(filter * packed.len()..(filter + 1) * packed.len()) else { return false };
        packed.iter_mut().zip(bytes).for_each(|(packed, &byte)| *packed = recode(byte));
        true
    }

    fn scale(&self, _: &[u8], filter: usize, unit: usize) -> f32 {
        let units = self.order.filter_len.div_ceil(self.order.unit_len.max(1));
        self.scales.get(match (self.order.per_tensor, self.order.units_first) {
            (true, _) => 0,
            (_, true) => unit * self.order.filters + filter,
            (_, false) => filter * units + unit,
        })
    }
}
