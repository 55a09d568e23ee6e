//! Who uses which value of a model, and the ternary tensors that are found in it. Not here: what makes one
//! ([`super::int2`], [`super::nbits`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::OnceLock;

use half::{bf16, f16};

use crate::onnx::{Initializer, Model, Node, data_type};
use crate::source::TernaryLayout;
use crate::{Dtype, Isa, MappedFile};

/// A model's names.
pub(super) struct Graph<'m> {
    pub model: &'m Model<'m>,
    initializers: BTreeMap<&'m str, &'m Initializer<'m>>,
    uses: BTreeMap<&'m str, Vec<&'m Node<'m>>>,
    /// What nested graphs use, and the graph's outputs.
    elsewhere: BTreeSet<&'m str>,
}

impl<'m> Graph<'m> {
    pub fn new(model: &'m Model<'m>) -> Self {
        let mut uses: BTreeMap<&str, Vec<&Node<'_>>> = BTreeMap::new();
        for node in &model.nodes {
            node.inputs.iter().for_each(|input| uses.entry(input).or_default().push(node));
        }
        let nested = model.nested.iter().flat_map(|node| node.inputs.iter().copied());
        Self {
            model,
            initializers: model.initializers.iter().map(|initializer| (initializer.name, initializer)).collect(),
            uses,
            elsewhere: nested.chain(model.outputs.iter().copied()).collect(),
        }
    }

    /// The initializer of that name.
    pub fn initializer(&self, name: &str) -> Option<&'m Initializer<'m>> {
        self.initializers.get(name).copied()
    }

    /// The nodes that use a value, once for each input; `None` where a nested graph does, or it is an output.
    pub fn uses(&self, name: &str) -> Option<&[&'m Node<'m>]> {
        let uses = self.uses.get(name).map_or(&[][..], Vec::as_slice);
        (!self.elsewhere.contains(name)).then_some(uses)
    }

    /// The one node that uses a value, where there is just one.
    pub fn only_use(&self, name: &str) -> Option<&'m Node<'m>> {
        match self.uses(name) {
            Some(&[node]) => Some(node),
            _ => None,
        }
    }

    /// Whether a value does nothing but say how large images become.
    pub fn is_size(&self, name: &str) -> bool {
        let says = |node: &&Node<'_>| {
            let weighs = node.inputs.first() == Some(&name);
            !weighs && matches!((node.op, node.domain), ("Resize" | "Upsample", ""))
        };
        self.uses(name).is_some_and(|uses| !uses.is_empty() && uses.iter().all(says))
    }

    /// The planes of a weight, or of a product with one, as the exporter adds them up: `X.plane.0` + `X.plane.1` + …, used
    /// for nothing else; and what the sum is called.
    pub fn sum_of_planes(&self, first: &'m str) -> Option<(Vec<&'m str>, &'m str)> {
        let of = first.strip_suffix(".plane.0")?;
        let (mut sum, mut planes) = (first, vec![first]);
        while let Some(add) = self.only_use(sum).filter(|add| (add.op, add.domain) == ("Add", "")) {
            let (&[left, right], &[output]) = (&add.inputs[..], &add.outputs[..]) else { break };
            let next = right.strip_prefix(of) == Some(&*format!(".plane.{}", planes.len()));
            if left != sum || !next || self.only_use(right).is_none() {
                break;
            }
            planes.push(right);
            sum = output;
        }
        (planes.len() > 1).then_some((planes, sum))
    }
}

/// Planes that are read together as one ternary tensor.
#[derive(Debug)]
pub(super) struct Found<'m> {
    pub name: &'m str,
    pub shape: Vec<usize>,
    pub planes: Vec<Plane<'m>>,
    /// The shape of values behind a decoder, which nothing else needs.
    pub other: Option<&'m str>,
}

impl<'m> Found<'m> {
    /// The initializers that are no tensors of their own, then.
    pub fn parts(&self) -> impl Iterator<Item = &'m str> {
        let of_planes = self.planes.iter().flat_map(|plane| [Some(plane.codes), Some(plane.scales.of), plane.zeros]);
        of_planes.flatten().map(|initializer| initializer.name).chain(self.other)
    }
}

/// The initializers of a plane and how they lie.
#[derive(Debug, Clone)]
pub(super) struct Plane<'m> {
    pub codes: &'m Initializer<'m>,
    /// How many bytes of codes there are.
    pub bytes: usize,
    pub scales: ScalesOf<'m>,
    /// The zero points, where there are any, and their bytes are as many as `zero_bytes`.
    pub zeros: Option<&'m Initializer<'m>>,
    pub zero_bytes: usize,
    pub order: Order,
}

/// In which form and order codes and scales lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Order {
    Int2(super::int2::Order),
    Nbits(super::nbits::Order),
}

impl Order {
    /// The layout of bytes of codes with these scales and zero points.
    pub fn layout(self, scales: Scales, zeros: Option<Bytes>) -> Box<dyn TernaryLayout> {
        match self {
            Self::Int2(order) => {
                let isa = Isa::detect().unwrap_or(Isa::PORTABLE);
                Box::new(super::int2::Int2 { order, scales, isa })
            }
            Self::Nbits(order) => Box::new(super::nbits::Nbits { order, scales, zeros }),
        }
    }
}

/// Bytes of a file.
pub(super) type Bytes = (MappedFile, Range<usize>);

/// An initializer that is scales.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScalesOf<'m> {
    pub of: &'m Initializer<'m>,
    pub dtype: Dtype,
    /// How many bytes it has to have.
    pub bytes: usize,
}

impl<'m> ScalesOf<'m> {
    /// Where its type and data are those of scales.
    pub fn new(of: &'m Initializer<'m>) -> Option<Self> {
        let dtype = match of.data_type {
            data_type::FLOAT => Dtype::F32,
            data_type::FLOAT16 => Dtype::F16,
            data_type::BFLOAT16 => Dtype::BF16,
            _ => return None,
        };
        let count = usize::try_from(of.elements()?).ok()?;
        Some(Self { of, dtype, bytes: count.checked_mul(dtype.bitsize() / 8)? })
    }
}

/// Scales, where they lie. A negative one negates its codes.
#[derive(Debug)]
pub(super) struct Scales {
    bytes: Bytes,
    dtype: Dtype,
    negative: OnceLock<bool>,
}

impl Scales {
    pub fn new(bytes: Bytes, dtype: Dtype) -> Self {
        Self { bytes, dtype, negative: OnceLock::new() }
    }

    /// Whether one of them has a sign. They are looked at when that is needed first: a look at those of every tensor while
    /// the file is opened would keep pages of it from being read as large ones.
    pub fn any_negative(&self) -> bool {
        *self.negative.get_or_init(|| {
            let count = self.bytes.1.len() / (self.dtype.bitsize() / 8);
            (0..count).any(|index| self.get(index).is_sign_negative())
        })
    }

    /// One of them; NaN where there are not so many.
    pub fn get(&self, index: usize) -> f32 {
        let mut scale = [0.0];
        self.read(index, &mut scale);
        scale[0]
    }

    /// As many as `scales` has, from `first` on; NaN where there are not so many.
    pub fn read(&self, first: usize, scales: &mut [f32]) {
        let (file, range) = &self.bytes;
        let bytes = file[range.clone()].get(first * self.dtype.bitsize() / 8..).unwrap_or_default();
        scales.fill(f32::NAN);
        match self.dtype {
            Dtype::F16 => decode(bytes, scales, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => decode(bytes, scales, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => decode(bytes, scales, f32::from_le_bytes),
        }
    }
}

fn decode<const N: usize>(bytes: &[u8], scales: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    scales.iter_mut().zip(bytes.as_chunks().0).for_each(|(scale, bytes)| *scale = decode(*bytes));
}
