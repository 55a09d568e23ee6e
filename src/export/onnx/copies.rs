//! Initializers that hold the floats of a tensor under another name: exporters merge weights that are equal, and fold the
//! transposes of others. Not here: names and modules ([`super::find`]), or how floats are compared ([`super::compare`]).

use std::collections::BTreeMap;
use std::path::Path;

use super::compare::{self, Likeness};
use super::find::Found;
use crate::export::float;
use crate::onnx::{Model, dtype};
use crate::{Dtype, Tensor};

/// The initializers of a model, by how many numbers they have.
pub(super) struct Copies<'m> {
    path: &'m Path,
    model: &'m Model<'m>,
    by_count: BTreeMap<u64, Vec<usize>>,
    /// ‖W‖² of those that were looked at.
    norms: BTreeMap<usize, Option<f64>>,
}

impl<'m> Copies<'m> {
    pub fn new(path: &'m Path, model: &'m Model<'m>) -> Self {
        let mut by_count: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (i, initializer) in model.initializers.iter().enumerate() {
            if let Some(count) = initializer.dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim)) {
                by_count.entry(count).or_default().push(i);
            }
        }
        Self { path, model, by_count, norms: BTreeMap::new() }
    }

    /// The first initializer not `known` that holds the very floats which a tensor was made of.
    pub fn find(&mut self, tensor: &Tensor<'_>, source: Dtype, known: impl Fn(usize) -> bool) -> Option<Found> {
        let (count, squared_norm) = match tensor {
            // Vectors of zeros and ones are like many others.
            Tensor::Dense(dense) if dense.shape.len() < 2 => return None,
            Tensor::Dense(dense) => {
                let count = dense.shape.iter().product();
                let squares = (0..count).map(|i| Some(float(dense.dtype, dense.data, i)?.powi(2)));
                (count, squares.sum::<Option<f64>>()?)
            }
            Tensor::Int8(int8) => (int8.filters * int8.filter_len, int8.stats.squared_norm),
            Tensor::Ternary(ternary) => (ternary.filters * ternary.filter_len, ternary.stats.squared_norm),
        };
        let (path, model) = (self.path, self.model);
        // All zeros are like all other zeros.
        let of_that_count = self.by_count.get(&(count as u64)).filter(|_| squared_norm > 0.0);
        of_that_count.into_iter().flatten().filter(|&&i| !known(i)).find_map(|&number| {
            let initializer = &model.initializers[number];
            let off = compare::tolerance(dtype(initializer.data_type)?, source) * squared_norm;
            let norm = || compare::squared_norm(path, model.file, initializer);
            (*self.norms.entry(number).or_insert_with(norm)).filter(|norm| (norm - squared_norm).abs() <= off)?;
            let likeness = compare::compare(path, model.file, initializer, tensor, source);
            likeness.and_then(Likeness::same).map(|transposed| Found { initializer: number, transposed })
        })
    }
}
