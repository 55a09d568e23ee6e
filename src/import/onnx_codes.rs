//! INT2 codes of an ONNX model behind `DequantizeLinear`, as the ternary weights that they are: −1, 0, +1, one scale
//! for all, along an axis or in blocks. Not here: the floats of a model ([`super::onnx`]), `MatMulNBits`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use half::{bf16, f16};

use crate::onnx::{Data, Initializer, Model, Node, data_type, dtype};
use crate::source::TernaryLayout;
use crate::{Dtype, MappedFile};

/// Initializers that are read together as one ternary tensor.
#[derive(Debug)]
pub(super) struct Found<'m> {
    /// What the decoded weights are called.
    pub name: &'m str,
    /// Their shape.
    pub shape: Vec<usize>,
    /// The initializer of the codes.
    pub codes: &'m Initializer<'m>,
    /// That of the scales.
    pub scales: &'m Initializer<'m>,
    /// The shape of values behind the decoder, which nothing else needs.
    pub other: Option<&'m str>,
    /// How many bytes of codes there are.
    pub bytes: usize,
    order: Order,
}

/// In which order codes and scales lie.
#[derive(Debug, Clone, Copy)]
struct Order {
    axis: usize,
    /// Filters, and neighbours of one filter: codes are [outer][filters][inner].
    filters: usize,
    inner: usize,
    filter_len: usize,
    unit_len: usize,
    /// The scales lie [units][filters], not [filters][units].
    units_first: bool,
}

/// All that are ternary by their types and shapes, in the order of the graph's nodes.
pub(super) fn find<'m>(model: &'m Model<'m>) -> Vec<Found<'m>> {
    let initializers: BTreeMap<&str, &Initializer<'_>> =
        model.initializers.iter().map(|initializer| (initializer.name, initializer)).collect();
    let mut uses: BTreeMap<&str, Vec<&Node<'_>>> = BTreeMap::new();
    for node in &model.nodes {
        node.inputs.iter().for_each(|input| uses.entry(input).or_default().push(node));
    }
    let nested: BTreeSet<&str> = model.nested.iter().flat_map(|node| node.inputs.iter().copied()).collect();
    let elsewhere = |name: &str| nested.contains(name) || model.outputs.contains(&name);
    // What belongs to one decoder alone.
    let own = |name: &str| uses.get(name).is_some_and(|uses| uses.len() == 1) && !elsewhere(name);
    let decoders = model.nodes.iter().filter(|node| (node.op, node.domain) == ("DequantizeLinear", ""));
    let found = decoders.filter_map(|node| {
        let ([codes, scales], [output]) = (&node.inputs[..], &node.outputs[..]) else { return None };
        if !own(codes) || !own(scales) {
            return None;
        }
        let mut found = Found::new(node, output, initializers.get(codes)?, initializers.get(scales)?)?;
        if let (Some(&[next]), false) = (uses.get(output).map(Vec::as_slice), elsewhere(output)) {
            found.follow(next, |name| initializers.get(name).copied().filter(|_| own(name)), model.file);
        }
        Some(found)
    });
    found.collect()
}

impl<'m> Found<'m> {
    fn new(node: &Node<'_>, name: &'m str, codes: &'m Initializer<'m>, scales: &'m Initializer<'m>) -> Option<Self> {
        let shape: Vec<usize> = codes.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
        let weights = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&weights| weights > 0)?;
        let plain = |data: &Data<'_>| !matches!(data, Data::Fields);
        let floats = [data_type::FLOAT, data_type::FLOAT16, data_type::BFLOAT16];
        if codes.data_type != data_type::INT2 || !plain(&codes.data) || !floats.contains(&scales.data_type) {
            return None;
        }
        if !matches!(scales.data, Data::Here(_)) || !(2..=crate::limits::RANK).contains(&shape.len()) {
            return None;
        }
        let rank = shape.len();
        let axis = node.int("axis").unwrap_or(1);
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&axis| axis < rank);
        let block = usize::try_from(node.int("block_size").unwrap_or(0)).ok()?;
        let dims: Vec<usize> = scales.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
        let whole = scales.elements() == Some(1) && dims.len() <= 1 && block == 0;
        let (axis, unit_len, units_first) = match (&dims[..], axis) {
            _ if whole => (0, weights / shape[0], false),
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
        let (filter_len, bytes) = (weights / filters, weights.div_ceil(4));
        let size = dtype(scales.data_type)?.bitsize() / 8;
        let Data::Here(range) = &scales.data else { return None };
        if scales.elements().and_then(|count| count.checked_mul(size as u64)) != Some(range.len() as u64) {
            return None;
        }
        Some(Self {
            name,
            shape,
            codes,
            scales,
            other: None,
            bytes,
            order: Order { axis, filters, inner, filter_len, unit_len, units_first },
        })
    }

    /// What the exporter puts behind a decoder: a `Transpose` of `w.turned`, a `Reshape` of `w.flat`.
    fn follow(&mut self, next: &Node<'m>, own: impl Fn(&str) -> Option<&'m Initializer<'m>>, file: &[u8]) {
        let &[output] = &next.outputs[..] else { return };
        let called = |suffix: &str| self.name.strip_suffix(suffix) == Some(output);
        match (next.op, next.domain, &next.inputs[..]) {
            ("Transpose", "", [_])
                if called(".turned")
                    && self.shape.len() == 2
                    && next.attribute("perm").is_some_and(|perm| perm.ints == [1, 0]) =>
            {
                self.shape.reverse();
                (self.order.axis, self.name) = (1 - self.order.axis, output);
            }
            ("Reshape", "", &[_, dims]) if called(".flat") && self.order.axis == 0 && self.shape.len() == 2 => {
                let Some(initializer) = own(dims).filter(|dims| dims.data_type == data_type::INT64) else { return };
                let Data::Here(range) = &initializer.data else { return };
                let dims = file[range.clone()].as_chunks::<8>().0.iter();
                let dims: Option<Vec<usize>> = dims.map(|&dim| usize::try_from(i64::from_le_bytes(dim)).ok()).collect();
                let fits = |dims: &Vec<usize>| {
                    let rest = dims.iter().skip(1).try_fold(1usize, |n, &d| n.checked_mul(d));
                    dims.len() <= crate::limits::RANK
                        && dims.first() == Some(&self.order.filters)
                        && rest == Some(self.order.filter_len)
                };
                if let Some(dims) = dims.filter(fits) {
                    (self.shape, self.name, self.other) = (dims, output, Some(initializer.name));
                }
            }
            _ => {}
        }
    }

    /// How it lies in the bytes of its codes; the scales are in `file`.
    pub fn layout(&self, file: &MappedFile) -> Option<(Dtype, Box<dyn TernaryLayout>)> {
        let Data::Here(scales) = self.scales.data.clone() else { return None };
        let dtype = dtype(self.scales.data_type)?;
        let layout = Int2 {
            order: self.order,
            per_tensor: self.scales.elements() == Some(1),
            file: file.clone(),
            scales,
            dtype,
        };
        Some((dtype, Box::new(layout)))
    }
}

/// Four codes to a byte across the whole tensor, lowest bits first, in two's complement.
#[derive(Debug)]
struct Int2 {
    order: Order,
    per_tensor: bool,
    file: MappedFile,
    scales: Range<usize>,
    dtype: Dtype,
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
                return Err(format!(
                    "weight {j} of filter {filter} is -2, should be -1, 0 or 1; give the floats that the model was made from"
                ));
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
        let index = match (self.per_tensor, self.order.units_first) {
            (true, _) => 0,
            (_, true) => unit * self.order.filters + filter,
            (_, false) => filter * units + unit,
        };
        let size = self.dtype.bitsize() / 8;
        match (self.dtype, self.file[self.scales.clone()].get(index * size..(index + 1) * size)) {
            (Dtype::F32, Some(&[a, b, c, d])) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, Some(&[a, b])) => f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::BF16, Some(&[a, b])) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => f32::NAN,
        }
    }
}
