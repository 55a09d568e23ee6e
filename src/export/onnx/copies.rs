//! Initializers that hold the floats of a tensor under another name: exporters merge weights that are equal, and fold the
//! transposes of others. Not here: names and modules ([`super::find`]), or how floats are compared ([`super::compare`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::compare::{self, Likeness};
use super::find::Found;
use super::is_float;
use crate::container::TernaryTensor;
use crate::onnx::{Initializer, Model, dtype};
use crate::{Dtype, Tensor};

/// The initializers that no tensor stands for.
pub(super) struct Copies<'m> {
    path: &'m Path,
    model: &'m Model<'m>,
    /// By how many numbers they have.
    left: BTreeMap<u64, BTreeSet<usize>>,
    /// Those of the names of tensors that have not been planned.
    reserved: BTreeSet<usize>,
    /// ‖W‖² of those that were looked at.
    norms: BTreeMap<usize, Option<f64>>,
    fingerprints: BTreeMap<usize, Option<u64>>,
}

/// How many numbers a slice has at least: fewer may be the same by chance.
const PART: u64 = 8;

/// What a name is to the copies.
pub(super) enum Known {
    /// It stays as it is whatever it holds.
    Aside,
    /// A tensor is called so.
    Reserved,
    Unknown,
}

impl<'m> Copies<'m> {
    pub fn new(path: &'m Path, model: &'m Model<'m>, known: impl Fn(&str) -> Known) -> Self {
        let (left, reserved) = (BTreeMap::new(), BTreeSet::new());
        let mut copies = Self { path, model, left, reserved, norms: BTreeMap::new(), fingerprints: BTreeMap::new() };
        for (number, initializer) in model.initializers.iter().enumerate() {
            match known(initializer.name) {
                Known::Aside => {}
                Known::Reserved => drop(copies.reserved.insert(number)),
                Known::Unknown => copies.leave(number),
            }
        }
        copies
    }

    fn leave(&mut self, number: usize) {
        if let Some(count) = self.model.initializers[number].elements() {
            self.left.entry(count).or_default().insert(number);
        }
    }

    /// A tensor stands for that initializer.
    pub fn take(&mut self, number: usize) {
        self.reserved.remove(&number);
        let count = self.model.initializers[number].elements();
        if let Some(left) = count.and_then(|count| self.left.get_mut(&count)) {
            left.remove(&number);
        }
    }

    /// Every tensor has been planned: what is called like one that stands for another is left as well.
    pub fn release(&mut self) {
        std::mem::take(&mut self.reserved).into_iter().for_each(|number| self.leave(number));
    }

    /// The floats of two dimensions or more that are left.
    pub fn matrices(&self) -> impl Iterator<Item = &'m Initializer<'m>> {
        let left = self.left.values().flatten().map(|&number| &self.model.initializers[number]);
        left.filter(|initializer| {
            initializer.dims.iter().filter(|&&dim| dim > 1).count() > 1
                && dtype(initializer.data_type).is_some_and(is_float)
        })
    }

    /// The first initializer left that has the numbers of a given one, or of lines of it that lie next to one another, in whatever
    /// order: exporters fold transposes, slices and other views. Nothing where a tensor leaves them as they are.
    pub fn again(&mut self, number: usize, tensor: &Tensor<'_>) -> Option<&'m str> {
        let model = self.model;
        let initializer = &model.initializers[number];
        let dims: Vec<usize> = initializer.dims.iter().map(|&dim| dim as usize).collect();
        let count = initializer.elements()?;
        // Of one axis those lines are the whole.
        let line = |axis: usize| count / initializer.dims[axis].max(1);
        let axes: Vec<usize> = (0..dims.len()).filter(|&axis| dims.len() == 1 || dims[axis] > 1).collect();
        let is_part = |part: u64| axes.iter().any(|&axis| part.is_multiple_of(line(axis).max(1)));
        let parts = self.left.range(1..=count).filter(|&(&part, _)| part == count || part >= PART && is_part(part));
        let left: Vec<(u64, usize)> = parts.flat_map(|(&part, left)| left.iter().map(move |&i| (part, i))).collect();
        let left: Vec<(u64, u64, usize)> =
            left.into_iter().filter_map(|(part, i)| Some((part, self.fingerprint(i)?, i))).collect();
        left.first()?;
        let own = self.fingerprint(number)?;
        if let Tensor::Dense(dense) = tensor
            && compare::fingerprint(dense.dtype, dense.data) == Some(own)
        {
            return None;
        }
        let name = |i: usize| model.initializers[i].name;
        if let Some(&(.., again)) = left.iter().find(|&&(part, other, _)| part == count && other == own) {
            return Some(name(again));
        }
        for axis in axes {
            let parts: Vec<_> =
                left.iter().filter(|(part, ..)| *part < count && part.is_multiple_of(line(axis))).collect();
            if parts.is_empty() {
                continue;
            }
            let lines = |dtype, data: &[u8]| compare::fingerprints(dtype, data, &dims, axis);
            let lines = compare::with_floats(self.path, model.file, initializer, lines)?;
            let ends = lines.iter().scan(0u64, |sum, &line| {
                *sum = sum.wrapping_add(line);
                Some(*sum)
            });
            let ends: Vec<u64> = [0].into_iter().chain(ends).collect();
            let has = |&&&(part, other, _): &&&(u64, u64, usize)| {
                let lines = (part / line(axis)) as usize;
                ends.windows(lines + 1).any(|ends| ends[lines].wrapping_sub(ends[0]) == other)
            };
            if let Some(&&(.., again)) = parts.iter().find(has) {
                return Some(name(again));
            }
        }
        None
    }

    fn fingerprint(&mut self, number: usize) -> Option<u64> {
        let (path, model) = (self.path, self.model);
        let look = || compare::with_floats(path, model.file, &model.initializers[number], compare::fingerprint);
        *self.fingerprints.entry(number).or_insert_with(look)
    }

    /// The first initializer left that holds the very floats which a tensor was made of.
    pub fn find(&mut self, tensor: &Tensor<'_>, source: Dtype) -> Option<Found> {
        let shape = match tensor {
            Tensor::Dense(dense) => &dense.shape,
            Tensor::Int8(int8) => &int8.shape,
            Tensor::Ternary(ternary) => &ternary.shape,
        };
        let count: usize = shape.iter().product();
        // Floats are summed up where there is something to compare them with.
        let candidates = self.left.get(&(count as u64)).filter(|left| !left.is_empty())?;
        let (path, model) = (self.path, self.model);
        if let (Tensor::Dense(dense), true) = (tensor, shape.len() < 2) {
            // Vectors of zeros and ones are like many others.
            is_distinct(tensor).then_some(())?;
            let same = |dtype, data: &[u8]| Some(compare::are_equal((dtype, data), (dense.dtype, dense.data)));
            let is = |&number: &usize| {
                let initializer = &model.initializers[number];
                initializer.dims.len() == shape.len()
                    && compare::with_floats(path, model.file, initializer, same) == Some(true)
            };
            return candidates.iter().copied().find(is).map(|initializer| Found { initializer, transposed: false });
        }
        let squared_norm = match tensor {
            Tensor::Dense(dense) => compare::squared_norm(dense.dtype, dense.data)?,
            Tensor::Int8(int8) => int8.stats.squared_norm,
            Tensor::Ternary(ternary) => ternary.stats.squared_norm,
        };
        // All zeros are like all other zeros.
        if squared_norm == 0.0 {
            return None;
        }
        candidates.iter().find_map(|&number| {
            let initializer = &model.initializers[number];
            let off = compare::tolerance(dtype(initializer.data_type)?, source) * squared_norm;
            let norm = || compare::with_floats(path, model.file, initializer, compare::squared_norm);
            (*self.norms.entry(number).or_insert_with(norm)).filter(|norm| (norm - squared_norm).abs() <= off)?;
            let likeness = compare::compare(path, model.file, initializer, tensor, source);
            likeness.and_then(Likeness::same).map(|transposed| Found { initializer: number, transposed })
        })
    }
}

/// Whether a tensor has numbers that no other has by chance.
pub(super) fn is_distinct(tensor: &Tensor<'_>) -> bool {
    match tensor {
        Tensor::Dense(dense) => compare::fingerprint(dense.dtype, dense.data).is_some(),
        Tensor::Int8(int8) => int8.stats.squared_norm > 0.0,
        Tensor::Ternary(ternary) => ternary.stats.squared_norm > 0.0,
    }
}

/// Whether two tensors of a container are one in all that an export takes of them.
pub(super) fn are_equal(a: &Tensor<'_>, b: &Tensor<'_>) -> bool {
    match (a, b) {
        (Tensor::Dense(a), Tensor::Dense(b)) => {
            a.shape == b.shape && compare::are_equal((a.dtype, a.data), (b.dtype, b.data))
        }
        (Tensor::Int8(a), Tensor::Int8(b)) => {
            (&a.shape, a.axis, a.codes()) == (&b.shape, b.axis, b.codes()) && a.scales().eq(b.scales())
        }
        (Tensor::Ternary(a), Tensor::Ternary(b)) => {
            let form = |t: &TernaryTensor<'_>| (t.shape.clone(), t.axis, t.granularity, t.planes, t.encoding);
            form(a) == form(b) && a.packed() == b.packed() && a.scales().eq(b.scales())
        }
        _ => false,
    }
}
