//! Trained weights in and out: any checkpoint whose names and shapes fit, and `.safetensors` with PyTorch's
//! names, which the converter packs as they were trained. Not here: the state of a run ([`super::state`]).

use std::path::Path;

use super::layers::{Pass, Tensor};
use super::network::Network;
use crate::net::{Source, Tensors};
use crate::select::trained_metadata;
use crate::source::write::{Raw, floats, write};
use crate::{Dtype, Error, Result};

impl Network<f32> {
    /// Takes weights, biases and statistics from a file, by name; ternary ones are unpacked.
    ///
    /// # Errors
    /// A tensor that is missing, damaged, or of another shape or type; numbers that are not finite, a negative
    /// variance.
    pub fn load(&mut self, source: &Source) -> Result<()> {
        let tensors = Tensors::new(source, true)?;
        let mut failed = Ok(());
        self.visit(&mut |tensor| {
            let squares = matches!(tensor, Tensor::Statistics { variance: true, .. });
            let (name, shape, values) = match tensor {
                Tensor::Weights(weights) => {
                    (&*weights.name, weights.shape.clone(), weights.value.as_slice_mut().unwrap_or_default())
                }
                Tensor::Vector { name, value, .. } | Tensor::Statistics { name, value, .. } => {
                    (name, vec![value.len()], value)
                }
            };
            if failed.is_ok() {
                failed = tensors.values(name, &shape).and_then(|found| {
                    let good = |x: &f32| x.is_finite() && (!squares || *x >= 0.0);
                    if let Some(at) = found.iter().position(|x| !good(x)) {
                        let (path, x) = (source.path().display(), found[at]);
                        let expected = if squares { "a variance, from 0 on" } else { "finite numbers" };
                        let message = format!("{path}: tensor `{name}`: element {at} is {x}; expected {expected}");
                        return Err(Error::Request(message));
                    }
                    values.copy_from_slice(&found);
                    Ok(())
                });
            }
        });
        failed
    }

    /// Writes `.safetensors` with the tensors' names and shapes. Where a method of the converter finds
    /// the ternary weights from the float ones, those are written, else what is used at evaluation;
    /// the metadata says which method makes of them just that. `steps` goes where PyTorch counts batches.
    ///
    /// # Errors
    /// An output that exists without `overwrite`, or cannot be written.
    pub fn save(&mut self, path: &Path, overwrite: bool, steps: u64) -> Result<()> {
        let metadata = trained_metadata(&self.settings())?;
        self.ternarize(Pass::Evaluate);
        let mut tensors: Vec<Raw> = Vec::new();
        self.visit(&mut |tensor| match tensor {
            Tensor::Weights(weights) => {
                let used = weights.method.as_ref().is_some_and(|method| method.saves_used());
                let values = if used { weights.used() } else { &weights.value };
                let values = values.as_slice().unwrap_or_default();
                tensors.push(floats(weights.name.clone(), weights.shape.clone(), values));
            }
            Tensor::Vector { name, value, .. } => {
                tensors.push(floats(name.to_owned(), vec![value.len()], value));
            }
            Tensor::Statistics { name, value, .. } => {
                tensors.push(floats(name.to_owned(), vec![value.len()], value));
                if let Some(layer) = name.strip_suffix("running_var") {
                    let name = format!("{layer}num_batches_tracked");
                    tensors.push((name, Dtype::I64, Vec::new(), steps.to_le_bytes().to_vec()));
                }
            }
        });
        write(path, overwrite, &tensors, metadata)
    }
}
