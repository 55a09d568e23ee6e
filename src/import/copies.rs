//! Tensors that cannot be mapped where they lie, since they are packed or do not lie side by side, copied once into a temporary
//! file, in bounded memory. Not here: any format.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use crate::source::Strided;
use crate::{Error, MappedFile, Result};

/// Bytes that are put in order at once.
const CHUNK: usize = 4 << 20;

/// A temporary file that nobody else sees, with tensors one behind the other.
pub(super) struct Copies<'a> {
    path: &'a Path,
    format: &'static str,
    file: Option<File>,
    len: u64,
    /// Bytes that are held against the limit.
    counted: u64,
    limit: u64,
}

impl<'a> Copies<'a> {
    /// Of tensors of the file at `path`, at most so many bytes.
    pub fn new(path: &'a Path, format: &'static str, limit: u64) -> Self {
        Self { path, format, file: None, len: 0, counted: 0, limit }
    }

    /// Adds the `length` bytes of a tensor, which `write` has to write; returns where they are.
    pub fn add<E>(
        &mut self,
        tensor: &str,
        length: u64,
        write: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<Range<usize>>
    where
        Failure: From<E>,
    {
        let counted = self.count(tensor, length)?;
        let io = |source| Error::Io {
            path: self.path.to_path_buf(),
            action: "write the temporary copy of its tensors (TMPDIR says where)",
            source,
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile().map_err(|source| Error::Io {
                path: std::env::temp_dir(),
                action: "make a temporary file there (TMPDIR says where)",
                source,
            })?),
        };
        match write(file).map_err(Failure::from) {
            Ok(()) => {}
            Err(Failure::Io(source)) => return Err(io(source)),
            Err(Failure::Content(message)) => return Err(self.foreign(tensor, &message)),
        }
        let begin = self.len;
        (self.len, self.counted) = (begin + length, counted);
        Ok(begin as usize..self.len as usize)
    }

    /// Counts the `length` bytes of a copy that a tensor shares as if it had its own.
    pub fn again(&mut self, tensor: &str, length: u64) -> Result<()> {
        self.counted = self.count(tensor, length)?;
        Ok(())
    }

    /// The bytes that are counted with so many more.
    fn count(&self, tensor: &str, length: u64) -> Result<u64> {
        let (counted, limit) = (self.counted, self.limit);
        let end = length.checked_add(counted).filter(|end| *end <= limit && usize::try_from(*end).is_ok());
        end.ok_or_else(|| {
            let message = format!(
                "a copy of {length} bytes is needed beside {counted} of others, all are limited to {limit}; save the values \
                 contiguous and unpacked"
            );
            self.foreign(tensor, &message)
        })
    }

    fn foreign(&self, tensor: &str, message: &str) -> Error {
        super::foreign(self.path, self.format, format!("tensor `{tensor}`: {message}"))
    }

    /// Adds a tensor, in C order. `bytes` has its values up to [`Strided::end`].
    pub fn add_strided(&mut self, name: &str, tensor: &Strided, bytes: &[u8]) -> Result<Range<usize>> {
        let length = tensor.shape.iter().try_fold(tensor.size as u64, |n, &d| n.checked_mul(d as u64));
        self.add(name, length.unwrap_or(u64::MAX), |file| {
            let (values, mut buffer) = (tensor.shape.iter().product(), Vec::new());
            for start in (0..values).step_by(CHUNK / tensor.size) {
                let range = start..values.min(start + CHUNK / tensor.size);
                buffer.resize(range.len() * tensor.size, 0);
                tensor.read(bytes, range, &mut buffer);
                file.write_all(&buffer)?;
            }
            Ok::<_, io::Error>(())
        })
    }

    /// The file, if there is anything in it.
    pub fn map(self) -> Result<Option<MappedFile>> {
        self.file.map(|file| MappedFile::of_temporary(file, self.path)).transpose()
    }
}

/// Why a tensor could not be copied.
pub(super) enum Failure {
    Io(io::Error),
    /// The tensor's own fault.
    Content(String),
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}
