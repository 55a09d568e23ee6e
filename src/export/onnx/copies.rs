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
            if let Some(count) = initializer.elements() {
                by_count.entry(count).or_default().push(i);
            }
        }
        Self { path, model, by_count, norms: BTreeMap::new() }
    }

    /// The first initializer not `known` that holds the very floats which a tensor was made of.
    pub fn find(&mut self, tensor: &Tensor<'_>, source: Dtype, known: impl Fn(usize) -> bool) -> Option<Found> {
        let shape = match tensor {
            // Vectors of zeros and ones are like many others.
            Tensor::Dense(dense) if dense.shape.len() < 2 => return None,
            Tensor::Dense(dense) => &dense.shape,
            Tensor::Int8(int8) => &int8.shape,
            Tensor::Ternary(ternary) => &ternary.shape,
        };
        let count: usize = shape.iter().product();
        let mut candidates = self.by_count.get(&(count as u64))?.iter().filter(|&&i| !known(i)).peekable();
        // Floats are summed up where there is something to compare them with.
        candidates.peek()?;
        let squared_norm = match tensor {
            Tensor::Dense(dense) => {
                (0..count).map(|i| Some(float(dense.dtype, dense.data, i)?.powi(2))).sum::<Option<f64>>()?
            }
            Tensor::Int8(int8) => int8.stats.squared_norm,
            Tensor::Ternary(ternary) => ternary.stats.squared_norm,
        };
        // All zeros are like all other zeros.
        if squared_norm == 0.0 {
            return None;
        }
        let (path, model) = (self.path, self.model);
        candidates.find_map(|&number| {
            let initializer = &model.initializers[number];
            let off = compare::tolerance(dtype(initializer.data_type)?, source) * squared_norm;
            let norm = || compare::squared_norm(path, model.file, initializer);
            (*self.norms.entry(number).or_insert_with(norm)).filter(|norm| (norm - squared_norm).abs() <= off)?;
            let likeness = compare::compare(path, model.file, initializer, tensor, source);
            likeness.and_then(Likeness::same).map(|transposed| Found { initializer: number, transposed })
        })
    }
}
