//! Trained weights in and out: any checkpoint whose names and shapes fit, and `.safetensors` with PyTorch's
//! names, which the converter packs as they were trained. Not here: the state of a run ([`super::state`]).

use std::collections::BTreeMap;
use std::path::Path;

use super::layers::{Pass, Tensor};
use super::network::Network;
use super::run::LayerMethod;
use crate::error::NetworkProblem;
use crate::net::{Source, Tensors};
use crate::select::trained_metadata;
use crate::source::write::{Raw, floats, write};
use crate::{Dtype, Error, Result};

/// The metadata's key for how each layer was trained: a JSON object by tensor name. Nothing depends on it.
const METHODS_KEY: &str = "twn-pack.methods";

impl Network<f32> {
    /// Takes weights, biases and statistics from a file, by name; ternary ones are unpacked.
    ///
    /// # Errors
    /// A tensor that is missing, damaged, or of another shape or type; numbers that are not finite, a negative
    /// variance.
    pub fn load(&mut self, source: &Source) -> Result<()> {
        let tensors = Tensors::new(source, true)?;
        let (mut failed, mut counted) = (Ok(()), BTreeMap::new());
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
                        let expected = if squares { "a variance, from 0 on" } else { "finite numbers" };
                        let problem = NetworkProblem::Value { at, found: found[at], expected };
                        return Err(Error::Network {
                            path: source.path().to_path_buf(),
                            tensor: name.to_owned(),
                            problem,
                        });
                    }
                    values.copy_from_slice(&found);
                    if let Some(name) = counter(name)
                        && let Some(count) = tensors.count(&name)?
                    {
                        counted.insert(name, count);
                    }
                    Ok(())
                });
            }
        });
        self.counted = counted;
        failed
    }

    /// Writes `.safetensors` with the tensors' names and shapes. Where a method of the converter finds
    /// the ternary weights from the float ones, those are written, else what is used at evaluation;
    /// the metadata says which method makes of them just that, and by which of `methods` ([`super::Setup::methods`]) they were
    /// trained. Where PyTorch counts batches, `steps` more stand there than in the file that was loaded, if it had them.
    ///
    /// # Errors
    /// An output that exists without `overwrite`, or cannot be written.
    pub fn save(
        &mut self,
        path: &Path,
        overwrite: bool,
        methods: &BTreeMap<String, LayerMethod>,
        steps: u64,
    ) -> Result<()> {
        let mut metadata = trained_metadata(&self.settings())?;
        let text = serde_json::to_string(methods).map_err(|e| Error::Request(format!("{}: {e}", path.display())))?;
        metadata.insert(METHODS_KEY.to_owned(), text);
        self.ternarize(Pass::Evaluate);
        let mut tensors: Vec<Raw> = Vec::new();
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        let counted = std::mem::take(&mut self.counted);
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
                if let Some(name) = counter(name) {
                    let count = counted.get(&name).map_or(steps, |before| before.saturating_add(steps));
                    tensors.push((name, Dtype::I64, Vec::new(), count.to_le_bytes().to_vec()));
                }
            }
        });
        self.counted = counted;
        write(path, overwrite, &tensors, metadata)
    }
}

/// Where PyTorch counts the batches that went into a variance of that name.
fn counter(variance: &str) -> Option<String> {
    variance.strip_suffix("running_var").map(|layer| format!("{layer}num_batches_tracked"))
}
