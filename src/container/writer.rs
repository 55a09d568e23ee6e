//! Writes a `.twn` file as a stream: sections are reserved first, filled by any thread in any
//! order, then the index, and last of all the prefix. Not here: what the sections hold.

use std::path::Path;

use super::Container;
use super::align;
use super::index::{Index, Section, TensorEntry};
use super::prefix::{LENGTH, Prefix};
use crate::atomic_file::AtomicFile;
use crate::error::ContainerProblem;
use crate::{Error, Result};

/// New values for a tensor that is kept dense.
#[derive(Debug, Clone, PartialEq)]
pub struct Replacement {
    /// The tensor.
    pub name: String,
    /// All its values, in C order; they are rounded to the tensor's type.
    pub values: Vec<f32>,
    /// What they were found by; for people.
    pub by: String,
}

/// A `.twn` file that is being written. It appears under its name when [`ContainerWriter::finish`]
/// succeeds; dropping it before leaves nothing behind.
#[derive(Debug)]
pub struct ContainerWriter {
    file: AtomicFile,
    end: u64,
}

impl ContainerWriter {
    /// Starts a file beside `path`, which must not exist unless `overwrite`.
    ///
    /// # Errors
    /// An output that exists, or a directory that cannot be written to.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        let file = AtomicFile::create(path, overwrite)?;
        file.leave(0..LENGTH as u64);
        Ok(Self { file, end: LENGTH as u64 })
    }

    /// The same with what an interrupted run left of it, which stays beside `path` until the file is finished.
    pub(crate) fn resume(path: &Path, overwrite: bool) -> Result<Self> {
        Ok(Self { file: AtomicFile::resume(path, overwrite)?, end: LENGTH as u64 })
    }

    /// Throws away what is there.
    pub(crate) fn clear(&self) -> Result<()> {
        self.file.set_len(0)
    }

    /// Whether all sections of that tensor are there, with their checksums.
    pub(crate) fn holds(&self, entry: &TensorEntry) -> Result<bool> {
        for (_, section) in entry.sections() {
            if self.file.crc32_at(section.offset, section.length)? != Some(section.crc32) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reserves the next section. Its checksum is 0 until the caller sets it.
    ///
    /// # Errors
    /// A file of more than 2^63 bytes.
    pub fn reserve(&mut self, length: u64) -> Result<Section> {
        let offset = self.end;
        let end = offset.checked_add(length).and_then(align).filter(|&end| end <= i64::MAX as u64);
        self.end = end.ok_or_else(|| {
            Error::Request(format!("a section of {length} bytes at {offset} is too long for any file"))
        })?;
        self.file.leave(offset + length..self.end);
        Ok(Section { crc32: 0, length, offset })
    }

    /// Writes bytes at an offset inside a reserved section.
    ///
    /// # Errors
    /// When the disk is full, or otherwise refuses.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        debug_assert!(offset >= LENGTH as u64 && offset + bytes.len() as u64 <= self.end);
        self.file.write_at(bytes, offset)
    }

    /// Reserves and writes a section in one go, with its checksum.
    ///
    /// # Errors
    /// As [`ContainerWriter::write_at`].
    pub fn section(&mut self, bytes: &[u8]) -> Result<Section> {
        let section = self.reserve(bytes.len() as u64)?;
        self.write_at(bytes, section.offset)?;
        Ok(Section { crc32: crc32fast::hash(bytes), ..section })
    }

    /// The file as it is so far, as readers will see it, under its temporary name. Nothing may be written before
    /// the container is dropped.
    ///
    /// # Errors
    /// As [`ContainerWriter::finish`].
    pub(crate) fn draft(&self, index: &Index) -> Result<Container> {
        let prefix = self.write_index(index)?;
        self.file.write_at(&prefix.to_bytes(), 0)?;
        self.file.flush()?;
        Container::open_called(self.file.temporary(), self.file.path())
    }

    /// Writes index and prefix and publishes the file; returns its length in bytes.
    ///
    /// # Errors
    /// An index that readers would refuse (over the size limit, or that contradicts itself), or a
    /// disk that refuses.
    pub fn finish(self, index: &Index) -> Result<u64> {
        let prefix = self.write_index(index)?;
        self.file.sync()?;
        self.file.write_at(&prefix.to_bytes(), 0)?;
        self.file.publish()?;
        Ok(prefix.index_offset + prefix.index_length)
    }

    fn write_index(&self, index: &Index) -> Result<Prefix> {
        let problem = Error::container(self.file.path());
        let length = index.json_length();
        if length > crate::limits::INDEX_BYTES {
            return Err(problem(ContainerProblem::Index(format!(
                "{length} bytes for {} tensors is over the limit of {}",
                index.tensors.len(),
                crate::limits::INDEX_BYTES
            ))));
        }
        index.check_readable(self.end).map_err(&problem)?;
        let (mut at, mut crc32) = (self.end, crc32fast::Hasher::new());
        for json in index.json() {
            self.file.write_at(&json, at)?;
            crc32.update(&json);
            at += json.len() as u64;
        }
        if self.file.is_kept() {
            // Damage between the sections.
            for (_, section) in index.tensors.iter().flat_map(TensorEntry::sections) {
                let end = section.offset + section.length;
                self.write_at(&[0; 64][..(align(end).unwrap_or(end) - end) as usize], end)?;
            }
        }
        // What a run before, or a draft, had behind the index.
        self.file.set_len(self.end + length)?;
        Ok(Prefix { index_offset: self.end, index_length: length, index_crc32: crc32.finalize() })
    }
}
