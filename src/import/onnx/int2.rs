//! INT2 codes of an ONNX model behind `DequantizeLinear`, as the ternary weights that they are: −1, 0, +1, one scale
//! for all, along an axis or in blocks; and sums of them that the exporter made of a weight's planes. Not here: the
//! floats of a model ([`super`]), `MatMulNBits` ([`super::nbits`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::graph::{Found, Graph, Order as Form, Plane, Scales, ScalesOf};
use crate::onnx::{Data, Initializer, Node, data_type};
use crate::pack::transpose_t2;
use crate::source::TernaryLayout;
use crate::{Isa, limits};

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
    /// Zero points, all of them 0.
    zeros: Option<&'m Initializer<'m>>,
}

/// All that are ternary by their types and shapes, in the order of the graph's nodes; and why other codes of INT2 are not.
pub(super) fn find<'m>(graph: &Graph<'m>) -> (Vec<Found<'m>>, BTreeMap<&'m str, &'static str>) {
    let (mut decoded, mut others, mut zeros) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for node in graph.model.nodes.iter().filter(|node| (node.op, node.domain) == ("DequantizeLinear", "")) {
        let codes = node.inputs.first().and_then(|codes| graph.initializer(codes));
        let Some(codes) = codes.filter(|codes| codes.data_type == data_type::INT2) else { continue };
        match Decoded::new(graph, node, codes, &mut zeros) {
            Ok(one) => decoded.push(one),
            Err(reason) => drop(others.insert(codes.name, reason)),
        }
    }
    // What several decoders share is part of all of them, or stays.
    let known: BTreeSet<&str> = decoded.iter().map(|one| one.codes.name).collect();
    // Looked at once, however many share it.
    let mut shared = BTreeMap::new();
    let mut shared = |name: &'m str| {
        let all_known = || graph.uses(name).is_some_and(|uses| uses.iter().all(|node| known.contains(node.inputs[0])));
        *shared.entry(name).or_insert_with(all_known)
    };
    decoded.retain(|one: &Decoded<'_>| {
        let own = shared(one.scales.of.name) && one.zeros.is_none_or(|zeros| shared(zeros.name));
        if !own {
            others.insert(one.codes.name, "something else uses its scales or its zero points, too");
        }
        own
    });
    (sums_of(graph, &decoded), others)
}

/// All of them, those that are added up as one.
fn sums_of<'m>(graph: &Graph<'m>, decoded: &[Decoded<'m>]) -> Vec<Found<'m>> {
    let by_name: BTreeMap<&str, &Decoded<'_>> = decoded.iter().map(|decoded| (decoded.name, decoded)).collect();
    let sums: Vec<_> = decoded.iter().filter_map(|decoded| planes(graph, decoded, &by_name)).collect();
    let summed: BTreeSet<&str> = sums.iter().flat_map(|(_, planes)| planes.iter().map(|plane| plane.name)).collect();
    let alone = decoded.iter().filter(|one| !summed.contains(one.name)).map(|one| (one.name, vec![one]));
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
        zeros: decoded.zeros,
        zero_bytes: decoded.zeros.and_then(Initializer::elements).map_or(0, |count| count.div_ceil(4) as usize),
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
        ("Reshape", "", &[_, dims]) if called(".flat") => {
            let own = graph.initializer(dims).filter(|_| graph.only_use(dims).is_some());
            let Some(initializer) = own.filter(|dims| dims.data_type == data_type::INT64) else { return };
            let Data::Here(range) = &initializer.data else { return };
            let dims = graph.model.file[range.clone()].as_chunks::<8>().0.iter();
            let dims: Option<Vec<usize>> = dims.map(|&dim| usize::try_from(i64::from_le_bytes(dim)).ok()).collect();
            // Rows become filters of more dimensions, or nothing changes.
            let is_matrix = order.axis == 0 && found.shape.len() == 2;
            let fits = |dims: &Vec<usize>| {
                let rest = dims.iter().skip(1).try_fold(1usize, |n, &d| n.checked_mul(d));
                dims.len() <= limits::RANK && dims.first() == Some(&order.filters) && rest == Some(order.filter_len)
            };
            if let Some(dims) = dims.filter(|dims| *dims == found.shape || is_matrix && fits(dims)) {
                (found.shape, found.name, found.other) = (dims, output, Some(initializer.name));
            }
        }
        _ => {}
    }
}

impl<'m> Decoded<'m> {
    /// What that node makes of these codes, or why it is no ternary weight. `are_zeros`: what was found of zero points.
    fn new(
        graph: &Graph<'m>,
        node: &'m Node<'m>,
        codes: &'m Initializer<'m>,
        are_zeros: &mut BTreeMap<&'m str, bool>,
    ) -> Result<Self, &'static str> {
        const SHAPES: &str = "its scales are not one, one along an axis or one for each block of a matrix";
        let &[name] = &node.outputs[..] else { return Err("its decoder has several outputs") };
        graph.only_use(codes.name).ok_or("something else than one DequantizeLinear uses it")?;
        let scales = node.inputs.get(1).and_then(|scales| graph.initializer(scales)).and_then(ScalesOf::new);
        let scales = scales.ok_or("its scales are no initializer of FLOAT, FLOAT16 or BFLOAT16")?;
        if node.int("output_dtype").is_some_and(|kind| kind != 0 && kind != i64::from(scales.of.data_type)) {
            return Err("its decoder rounds to another type than that of its scales");
        }
        let zeros = match node.inputs.get(2).filter(|zeros| !zeros.is_empty()) {
            None => None,
            Some(zeros) => {
                let zeros = graph
                    .initializer(zeros)
                    .filter(|zeros| *are_zeros.entry(zeros.name).or_insert_with(|| are_zero(graph.model.file, zeros)));
                Some(zeros.ok_or("its zero points are not all 0")?)
            }
        };
        let size = |dims: &[u64]| dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<usize>>>();
        let shape = size(&codes.dims).filter(|shape| (2..=limits::RANK).contains(&shape.len()));
        let shape = shape.ok_or("weights have two dimensions or more")?;
        let weights = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&weights| weights > 0);
        let weights = weights.ok_or("it is empty, or larger than any memory")?;
        let rank = shape.len();
        let axis = node.int("axis").unwrap_or(1);
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&axis| axis < rank);
        let block =
            usize::try_from(node.int("block_size").unwrap_or(0)).map_err(|_| "its blocks are smaller than 0")?;
        let dims = size(&scales.of.dims).ok_or(SHAPES)?;
        let per_tensor = scales.of.elements() == Some(1) && dims.len() <= 1 && block == 0;
        let (axis, unit_len, units_first) = match (&dims[..], axis) {
            _ if per_tensor => (0, weights / shape[0], false),
            (&[count], Some(axis)) if block == 0 && count == shape[axis] => (axis, weights / count, false),
            // Blocks along one axis of a matrix: filters go along the other.
            (&[rows, columns], Some(along)) if rank == 2 && block > 0 => {
                let units = shape[along].div_ceil(block);
                let expected = if along == 1 { [shape[0], units] } else { [units, shape[1]] };
                if [rows, columns] != expected {
                    return Err(SHAPES);
                }
                (1 - along, block.min(shape[along]), along == 0)
            }
            _ => return Err(SHAPES),
        };
        let (filters, inner) = (shape[axis], shape[axis + 1..].iter().product());
        let per_tensor = scales.of.elements() == Some(1);
        let order = Order { axis, filters, inner, filter_len: weights / filters, unit_len, per_tensor, units_first };
        Ok(Self { name, shape, order, codes, bytes: weights.div_ceil(4), scales, zeros })
    }
}

/// Whether an initializer in the model's own file has nothing but zeros.
fn are_zero(file: &[u8], zeros: &Initializer<'_>) -> bool {
    let mut all = zeros.data_type == data_type::INT2;
    let mut look = |bytes: &[u8]| {
        all &= bytes.iter().all(|&byte| byte == 0);
        Ok(())
    };
    match &zeros.data {
        Data::Here(range) => look(&file[range.clone()]).is_ok() && all,
        Data::Fields => zeros.decode(file, look).is_ok() && all,
        Data::External { .. } => false,
    }
}

/// Four codes to a byte across the whole tensor, lowest bits first, in two's complement.
#[derive(Debug)]
pub(super) struct Int2 {
    pub order: Order,
    pub scales: Scales,
    pub isa: Isa,
}

impl Int2 {
    fn signed_scale(&self, filter: usize, unit: usize) -> f32 {
        let units = self.order.filter_len.div_ceil(self.order.unit_len.max(1));
        self.scales.get(match (self.order.per_tensor, self.order.units_first) {
            (true, _) => 0,
            (_, true) => unit * self.order.filters + filter,
            (_, false) => filter * units + unit,
        })
    }
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
        let (Order { filters, inner, .. }, negative) = (self.order, self.scales.any_negative());
        for (outer, codes) in codes.chunks_mut(inner.max(1)).enumerate() {
            let first = (outer * filters + filter) * inner;
            for ((code, at), j) in codes.iter_mut().zip(first..).zip(outer * inner..) {
                let byte = *data.get(at / 4).ok_or("its bytes end early")?;
                *code = recode(byte) >> (2 * (at % 4)) & 3;
                if *code == 3 {
                    return Err(super::not_ternary(filter, j, -2));
                }
                if negative && self.signed_scale(filter, j / self.order.unit_len).is_sign_negative() {
                    *code = 2 - *code;
                }
            }
        }
        Ok(())
    }

    fn t2(&self, data: &[u8], filter: usize, packed: &mut [u8]) -> bool {
        // Filters that follow one another, each on bytes of its own.
        if self.scales.any_negative()
            || self.order.inner != self.order.filter_len
            || !self.order.filter_len.is_multiple_of(4)
        {
            return false;
        }
        let Some(bytes) = data.get(filter * packed.len()..(filter + 1) * packed.len()) else { return false };
        packed.iter_mut().zip(bytes).for_each(|(packed, &byte)| *packed = recode(byte));
        true
    }

    fn t2_together(&self, data: &[u8], range: Range<usize>, packed: &mut [u8]) -> bool {
        let Order { filters, inner, filter_len, .. } = self.order;
        // A code of every filter in each row, which begins on a byte.
        if self.scales.any_negative()
            || inner != 1
            || !filters.is_multiple_of(4)
            || data.len() < filters / 4 * filter_len
        {
            return false;
        }
        transpose_t2(self.isa, data, filters / 4, filter_len, range, packed, filter_len.div_ceil(4));
        packed.iter_mut().for_each(|packed| *packed = recode(*packed));
        true
    }

    fn scale(&self, _: &[u8], filter: usize, unit: usize) -> f32 {
        self.signed_scale(filter, unit).abs()
    }
}
