//! A checkpoint that is small enough for memory, out as one `.safetensors` file. Not here: what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::header::{safetensors_header, safetensors_order};
use crate::atomic_file::AtomicFile;
use crate::dtype::byte_length;
use crate::{Dtype, Error, Result};

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
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by(|(a, x, ..), (b, y, ..)| safetensors_order((*x, a), (*y, b)));
    let shapes: Vec<Vec<u64>> =
        sorted.iter().map(|(_, _, shape, _)| shape.iter().map(|&n| n as u64).collect()).collect();
    let described = sorted.iter().zip(&shapes).map(|((name, dtype, ..), shape)| (name.as_str(), *dtype, &shape[..]));
    let header = safetensors_header(described.clone(), &metadata);
    for ((name, dtype, shape), (.., bytes)) in described.zip(&sorted) {
        let (expected, found) = (byte_length(dtype, shape), bytes.len() as u64);
        if expected != Some(found) {
            return Err(refused(format!("tensor `{name}`: {found} bytes of {dtype} cannot have the shape {shape:?}")));
        }
    }
    let file = AtomicFile::create(path, overwrite)?;
    file.write_at(&header, 0)?;
    let mut offset = header.len() as u64;
    for (.., bytes) in sorted {
        file.write_at(bytes, offset)?;
        offset += bytes.len() as u64;
    }
    file.publish()
}
