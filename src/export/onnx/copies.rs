//! Initializers that hold the floats of a tensor under another name: exporters merge weights that are equal, and fold
//! transposes, slices and other views of them. Not here: names and modules ([`super::find`]), or how floats are compared ([`super::compare`]).

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::compare::{self, Likeness};
use super::find::Found;
use super::is_float;
use crate::container::{DenseTensor, TernaryTensor};
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
    /// Made when every tensor has been planned.
    prints: OnceCell<BTreeSet<(u64, u64, usize)>>,
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
        let mut copies = Self { path, model, left, reserved, norms: BTreeMap::new(), prints: OnceCell::new() };
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

    /// The first initializer left that has the numbers of a given one, or of lines of it that lie next to one another, in
    /// whatever order. Nothing where a tensor leaves them as they are.
    pub fn again(&self, number: usize, tensor: &Tensor<'_>) -> Option<&'m str> {
        let initializer = &self.model.initializers[number];
        let dims: Vec<usize> = initializer.dims.iter().map(|&dim| dim as usize).collect();
        let count = initializer.elements().filter(|&count| count > 0)?;
        let line = |axis: usize| count / initializer.dims[axis];
        let prints = self.prints();
        let parts = prints.range((PART, 0, 0)..(count.max(PART), 0, 0));
        let parts: Vec<_> = parts.filter(|&&(part, ..)| (0..dims.len()).any(|axis| part % line(axis) == 0)).collect();
        let alike = prints.range((count, 0, 0)..=(count, u64::MAX, usize::MAX)).next();
        if alike.is_none() && parts.is_empty() {
            return None;
        }
        let name = |&(_, _, i): &(u64, u64, usize)| self.model.initializers[i].name;
        if alike.is_some() || matches!(tensor, Tensor::Dense(_)) {
            let own = self.read(number, compare::fingerprint)?;
            if let Tensor::Dense(dense) = tensor
                && compare::fingerprint(dense.dtype, dense.data) == Some(own)
            {
                return None;
            }
            if let Some(again) = prints.range((count, own, 0)..=(count, own, usize::MAX)).next() {
                return Some(name(again));
            }
        }
        (0..dims.len()).find_map(|axis| {
            let mut parts = parts.iter().filter(|(part, ..)| part % line(axis) == 0).peekable();
            parts.peek()?;
            // Of all lines before each one.
            let lines = self.read(number, |dtype, data| compare::fingerprints(dtype, data, &dims, axis))?;
            let ends = lines.iter().scan(0u64, |sum, &line| {
                *sum = sum.wrapping_add(line);
                Some(*sum)
            });
            let ends: Vec<u64> = [0].into_iter().chain(ends).collect();
            let has = |&&&(part, print, _): &&&(u64, u64, usize)| {
                let lines = (part / line(axis)) as usize;
                ends.windows(lines + 1).any(|ends| ends[lines].wrapping_sub(ends[0]) == print)
            };
            parts.find(has).map(|again| name(again))
        })
    }

    /// Of those that are left: how many numbers they have, what these have in common with the same ones in another order,
    /// and which they are.
    fn prints(&self) -> &BTreeSet<(u64, u64, usize)> {
        self.prints.get_or_init(|| {
            let left = self.left.iter().flat_map(|(&count, left)| left.iter().map(move |&number| (count, number)));
            left.filter_map(|(count, number)| Some((count, self.read(number, compare::fingerprint)?, number))).collect()
        })
    }

    fn read<T>(&self, number: usize, read: impl FnOnce(Dtype, &[u8]) -> Option<T>) -> Option<T> {
        compare::with_floats(self.path, self.model.file, &self.model.initializers[number], read)
    }

    /// Whether an initializer is that tensor, in one type or another.
    pub fn holds(&self, number: usize, dense: &DenseTensor<'_>) -> bool {
        let equal = |dtype, data: &[u8]| Some(compare::are_equal((dtype, data), (dense.dtype, dense.data)));
        let dims = self.model.initializers[number].dims.iter().copied();
        dims.eq(dense.shape.iter().map(|&dim| dim as u64)) && self.read(number, equal) == Some(true)
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
            let found = candidates.iter().find(|&&number| self.holds(number, dense));
            return found.map(|&initializer| Found { initializer, transposed: false });
        }
        let squared_norm = squared_norm(tensor)?;
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

/// ‖W‖² of what a tensor was made of; nothing where these are no floats.
fn squared_norm(tensor: &Tensor<'_>) -> Option<f64> {
    match tensor {
        Tensor::Dense(dense) => compare::squared_norm(dense.dtype, dense.data),
        Tensor::Int8(int8) => Some(int8.stats.squared_norm),
        Tensor::Ternary(ternary) => Some(ternary.stats.squared_norm),
    }
}

/// Whether two tensors of one shape were made of the same floats, as far as ‖W‖² tells.
pub(super) fn are_tied(a: &Tensor<'_>, b: &Tensor<'_>) -> bool {
    let norms = squared_norm(a).zip(squared_norm(b));
    norms.is_some_and(|(a, b)| (a - b).abs() <= 1e-9 * a)
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
