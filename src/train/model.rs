//! Trained weights in and out: any checkpoint whose names and shapes fit, and `.safetensors` with PyTorch's
//! names, which the converter packs as they were trained. Not here: the state of a run ([`super::state`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::tensor::TensorView;

use super::layers::{Pass, Tensor};
use super::network::Network;
use crate::net::{Source, Tensors};
use crate::select::TRAINED_KEY;
use crate::{Dtype, Error, Result, write_atomically};

/// A tensor to be written: name, type, shape, little-endian bytes in C order.
pub(super) type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

/// A tensor of floats.
pub(super) fn floats(name: String, shape: Vec<usize>, values: &[f32]) -> Raw {
    (name, Dtype::F32, shape, bytemuck::cast_slice(values).to_vec())
}

/// Writes tensors and metadata as one file, which appears whole or not at all.
pub(super) fn write(path: &Path, overwrite: bool, tensors: Vec<Raw>, metadata: BTreeMap<String, String>) -> Result<()> {
    let refused = |what: String| Error::Request(format!("{}: {what}", path.display()));
    let mut names = BTreeSet::new();
    if let Some((name, ..)) = tensors.iter().find(|(name, ..)| name == "__metadata__" || !names.insert(name)) {
        return Err(refused(format!("two tensors would be called `{name}`, or that name is not free")));
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes);
        view.map(|view| (name, view)).map_err(|e| refused(format!("tensor `{name}`: {e}")))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    // The crate writes metadata in random order; with one key there is only one.
    debug_assert!(metadata.len() <= 1, "reproducible only with one key");
    let metadata = (!metadata.is_empty()).then(|| metadata.into_iter().collect());
    let bytes = safetensors::serialize(views, metadata).map_err(|e| refused(e.to_string()))?;
    write_atomically(path, overwrite, &bytes)
}

impl Network<f32> {
    /// Takes weights, biases and statistics from a file, by name; ternary ones are unpacked.
    ///
    /// # Errors
    /// A tensor that is missing, damaged, or of another shape or type.
    pub fn load(&mut self, source: &Source) -> Result<()> {
        let tensors = Tensors::new(source, true)?;
        let mut failed = Ok(());
        self.visit(&mut |tensor| {
            let (name, shape, values) = match tensor {
                Tensor::Weights(weights) => {
                    (&*weights.name, weights.shape.clone(), weights.value.as_slice_mut().unwrap_or_default())
                }
                Tensor::Vector { name, value, .. } | Tensor::Statistics { name, value } => {
                    (name, vec![value.len()], value)
                }
            };
            if failed.is_ok() {
                failed = tensors.values(name, &shape).and_then(|found| {
                    if let Some(at) = found.iter().position(|x| !x.is_finite()) {
                        let path = source.path().display();
                        let message =
                            format!("{path}: tensor `{name}`: element {at} is {}; expected finite numbers", found[at]);
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
        let settings = self.settings();
        let text = serde_json::to_string(&settings).map_err(|e| Error::Request(e.to_string()))?;
        let metadata = (!settings.is_empty()).then(|| (TRAINED_KEY.to_owned(), text));
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
            Tensor::Statistics { name, value } => {
                tensors.push(floats(name.to_owned(), vec![value.len()], value));
                if let Some(layer) = name.strip_suffix("running_var") {
                    let name = format!("{layer}num_batches_tracked");
                    tensors.push((name, Dtype::I64, Vec::new(), steps.to_le_bytes().to_vec()));
                }
            }
        });
        write(path, overwrite, tensors, metadata.into_iter().collect())
    }
}
