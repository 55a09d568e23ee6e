//! A checkpoint that is small enough for memory, out as one `.safetensors` file. Not here: what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::tensor::TensorView;

use crate::{Dtype, Error, Result, write_atomically};

/// A tensor to be written: name, type, shape, little-endian bytes in C order.
pub(crate) type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

/// A tensor of floats.
pub(crate) fn floats(name: String, shape: Vec<usize>, values: &[f32]) -> Raw {
    (name, Dtype::F32, shape, bytemuck::cast_slice(values).to_vec())
}

/// Writes tensors and metadata as one file, which appears whole or not at all.
pub(crate) fn write(path: &Path, overwrite: bool, tensors: &[Raw], metadata: BTreeMap<String, String>) -> Result<()> {
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
