//! Checkpoints in any format that is read → a [`Checkpoint`], one format per file in this module, on the crate's
//! public interface alone. Floats are mapped where they lie; weights that are ternary already keep their codes
//! ([`TernaryLayout`](crate::source::TernaryLayout)). Not here: safetensors ([`crate::source`]), writing any of these
//! formats ([`crate::export`]).

mod onnx;

use std::path::Path;

use crate::{Checkpoint, Result};

/// Opens a checkpoint, whatever it is: by its first bytes, and by its name where a format has no magic number.
///
/// # Errors
/// A file that cannot be read, or that is not what it claims to be.
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
    let path = path.as_ref();
    // Protobuf has no magic number.
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")) && !path.is_dir() {
        return onnx::open(path);
    }
    Checkpoint::open(path)
}
