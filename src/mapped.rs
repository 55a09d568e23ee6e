//! Files, opened and memory-mapped. Not here: what is in them.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// Opens a file for reading and refuses what is not a regular file (a pipe would wait for ever).
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !kind.is_file() {
        return Err(Error::Io {
            path: path.to_path_buf(),
            action: "open",
            source: std::io::Error::other("not a regular file"),
        });
    }
    File::open(path).map_err(Error::io(path, "open"))
}

/// Maps a file for reading.
pub(crate) fn map(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: a mapping is only sound while nobody shortens or rewrites the file; that is the
    // documented condition of `Checkpoint` and `Container`. Bytes that change under us can make
    // results wrong, but every value of every byte is handled: no length, offset or code is
    // trusted that was not copied out of the mapping and checked.
    unsafe { Mmap::map(file) }.map_err(Error::io(path, "map into memory"))
}
