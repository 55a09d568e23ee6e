//! Initializers that hold the floats of a tensor under another name: exporters merge weights that are equal, and fold the
//! transposes of others. Not here: names and modules ([`super::find`]), or how floats are compared ([`super::compare`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::compare::{self, Likeness};
use super::find::Found;
use crate::container::TernaryTensor;
use crate::onnx::{Model, dtype};
use crate::{Dtype, Tensor};

/// The initializers that no tensor stands for, by how many numbers they have.
pub(super) struct Copies<'m> {
    path: &'m Path,
    model: &'m Model<'m>,
    by_count: BTreeMap<u64, BTreeSet<usize>>,
    /// ‖W‖² of those that were looked at.
    norms: BTreeMap<usize, Option<f64>>,
}

impl<'m> Copies<'m> {
    /// Of a model, without those that are `known` by their names.
    pub fn new(path: &'m Path, model: &'m Model<'m>, known: impl Fn(&str) -> bool) -> Self {
        let mut by_count: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
        for (i, initializer) in model.initializers.iter().enumerate() {
            if let Some(count) = initializer.elements().filter(|_| !known(initializer.name)) {
                by_count.entry(count).or_default().insert(i);
            }
        }
        Self { path, model, by_count, norms: BTreeMap::new() }
    }

    /// A tensor stands for that initializer.
    pub fn take(&mut self, number: usize) {
        let count = self.model.initializers[number].elements();
        if let Some(left) = count.and_then(|count| self.by_count.get_mut(&count)) {
            left.remove(&number);
        }
    }

    /// The first initializer left that holds the very floats which a tensor was made of.
    pub fn find(&mut self, tensor: &Tensor<'_>, source: Dtype) -> Option<Found> {
        let shape = match tensor {
            // Vectors of zeros and ones are like many others.
            Tensor::Dense(dense) if dense.shape.len() < 2 => return None,
            Tensor::Dense(dense) => &dense.shape,
            Tensor::Int8(int8) => &int8.shape,
            Tensor::Ternary(ternary) => &ternary.shape,
        };
        let count: usize = shape.iter().product();
        // Floats are summed up where there is something to compare them with.
        let candidates = self.by_count.get(&(count as u64)).filter(|left| !left.is_empty())?;
        let squared_norm = match tensor {
            Tensor::Dense(dense) => compare::squared_norm(dense.dtype, dense.data)?,
            Tensor::Int8(int8) => int8.stats.squared_norm,
            Tensor::Ternary(ternary) => ternary.stats.squared_norm,
        };
        // All zeros are like all other zeros.
        if squared_norm == 0.0 {
            return None;
        }
        let (path, model) = (self.path, self.model);
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
