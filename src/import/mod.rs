//! Checkpoints in any format that is read → a [`Checkpoint`], one format per file in this module, on the crate's
//! public interface alone. Floats are mapped where they lie; weights that are ternary already keep their codes
//! ([`TernaryLayout`](crate::source::TernaryLayout)). Not here: safetensors ([`crate::source`]), writing any of these
//! formats ([`crate::export`]).

mod bitnet;
mod gguf;
mod onnx;

use std::io::Read;
use std::path::Path;

use crate::{Checkpoint, Result};

/// Opens a checkpoint, whatever it is: by its first bytes, and by its name where a format has no magic number.
///
/// # Errors
/// A file that cannot be read, or that is not what it claims to be.
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
    let path = path.as_ref();
    if begins_with(path, &crate::gguf::MAGIC) {
        return gguf::open(path);
    }
    // Protobuf has no magic number.
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")) && !path.is_dir() {
        return onnx::open(path);
    }
    bitnet::recognise(Checkpoint::open(path)?)
}

/// Whether it is a regular file that begins so; what is wrong with one that cannot be read, its reader says.
fn begins_with<const N: usize>(path: &Path, magic: &[u8; N]) -> bool {
    let mut bytes = [0; N];
    path.is_file()
        && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).is_ok()
        && bytes == *magic
}
