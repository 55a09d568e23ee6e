//! Opens a `.twn` file: prefix and index are checked at once, sections are handed out as they lie.
//! Not here: the check of every byte ([`crate::verify`]).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::index::{Body, Index, Section, TensorEntry};
use super::int8::Int8Tensor;
use super::prefix::Prefix;
use super::tensor::{DenseTensor, TernaryTensor};
use crate::error::ContainerProblem;
use crate::mapped::{self, MappedFile};
use crate::{Error, Result};

/// A `.twn` file, memory-mapped. Opening checks prefix, index and that the sections tile the file;
/// the sections' own checksums are checked by [`crate::verify`] and [`Container::check_sections`].
#[derive(Debug)]
pub struct Container {
    path: PathBuf,
    bytes: Storage,
    index: Index,
    index_bytes: u64,
}

#[derive(Debug)]
enum Storage {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

/// A tensor of a container, borrowed from its mapping.
#[derive(Debug, Clone)]
pub enum Tensor<'a> {
    /// Kept bit by bit.
    Dense(DenseTensor<'a>),
    /// Codes of 8 bits and scales.
    Int8(Int8Tensor<'a>),
    /// Codes and scales.
    Ternary(TernaryTensor<'a>),
}

impl Container {
    /// Maps a file. It must not be written to while it is open.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or needs a newer reader.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_called(path.as_ref(), path.as_ref())
    }

    /// Maps a file that errors call `name`.
    pub(super) fn open_called(path: &Path, name: &Path) -> Result<Self> {
        let file = mapped::open_regular(path)?;
        Self::new(name, Storage::Mapped(MappedFile::of_open(file, path)?))
    }

    /// From bytes in memory; `path` is what errors call it.
    ///
    /// # Errors
    /// Bytes that are damaged or need a newer reader.
    pub fn from_bytes(path: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        Self::new(path.as_ref(), Storage::Owned(bytes))
    }

    fn new(path: &Path, bytes: Storage) -> Result<Self> {
        let problem = Error::container(path);
        let prefix = Prefix::parse(bytes.as_ref()).map_err(&problem)?;
        let json = &bytes.as_ref()[prefix.index_offset as usize..];
        let found = crc32fast::hash(json);
        if found != prefix.index_crc32 {
            let (what, expected) = ("index".to_owned(), prefix.index_crc32);
            return Err(problem(ContainerProblem::Checksum { what, expected, found }));
        }
        let index = Index::parse(json, prefix.index_offset).map_err(&problem)?;
        let index_bytes = prefix.index_length;
        Ok(Self { path: path.to_path_buf(), bytes, index, index_bytes })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its mapping; none where it was made from bytes in memory.
    pub fn mapped(&self) -> Option<&MappedFile> {
        match &self.bytes {
            Storage::Mapped(file) => Some(file),
            Storage::Owned(_) => None,
        }
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// What the file says of its tensors.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Bytes of the index.
    pub fn index_bytes(&self) -> u64 {
        self.index_bytes
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, Tensor<'_>)> {
        self.index.tensors.iter().map(|entry| (entry.name.as_str(), self.tensor(entry)))
    }

    /// The same for whoever looks at the scales of all ternary tensors before any codes: those that the disk has to be
    /// asked for, far from the others, are read by themselves ([`MappedFile::read_apart`]), as long as the copies take no
    /// more than 32 MiB. Their checksums are checked, and those that are damaged stay where they are.
    pub fn tensors_with_scales(&self) -> impl ExactSizeIterator<Item = (&str, Tensor<'_>)> {
        // Where codes take less, what is read around scales is those of the next tensors.
        const FAR: u64 = 1 << 20;
        let mut left = 32 << 20;
        let mut copied = move |scales: Section| {
            let range = scales.range();
            let file = self.mapped().filter(|_| range.len() <= left)?;
            let bytes = file.read_apart(range).filter(|bytes| crc32fast::hash(bytes) == scales.crc32)?;
            left -= bytes.len();
            Some(bytes)
        };
        self.index.tensors.iter().map(move |entry| {
            let tensor = match entry.body() {
                Body::Ternary(ternary) if ternary.codes.length >= FAR => {
                    let scales = copied(ternary.scales).map_or(self.section(ternary.scales).into(), Cow::Owned);
                    Tensor::Ternary(TernaryTensor::new(entry, ternary, self.section(ternary.codes), scales))
                }
                _ => self.tensor(entry),
            };
            (entry.name.as_str(), tensor)
        })
    }

    /// The tensor of that name.
    pub fn by_name(&self, name: &str) -> Option<Tensor<'_>> {
        let entry = self.index.tensors.iter().find(|entry| entry.name == name)?;
        Some(self.tensor(entry))
    }

    /// The view of an entry of this file's index.
    pub(crate) fn tensor<'a>(&'a self, entry: &'a TensorEntry) -> Tensor<'a> {
        match entry.body() {
            Body::Dense(dense) => Tensor::Dense(DenseTensor::new(entry, self.section(dense.section))),
            Body::Int8(int8) => {
                let (codes, scales) = (self.section(int8.codes), self.section(int8.scales));
                Tensor::Int8(Int8Tensor::new(entry, int8, codes, scales))
            }
            Body::Ternary(ternary) => {
                let (codes, scales) = (self.section(ternary.codes), self.section(ternary.scales));
                Tensor::Ternary(TernaryTensor::new(entry, ternary, codes, scales))
            }
        }
    }

    /// The bytes of a section of this file's index.
    ///
    /// # Panics
    /// When it is not one of this file.
    pub fn section(&self, section: Section) -> &[u8] {
        &self.bytes()[section.range()]
    }

    /// Checks the checksums of one tensor's sections.
    ///
    /// # Errors
    /// The section that is damaged.
    pub fn check_sections(&self, entry: &TensorEntry) -> Result<()> {
        for (part, section) in entry.sections() {
            let found = crc32fast::hash(self.section(section));
            if found != section.crc32 {
                let what = format!("tensor `{}`: {part}", entry.name);
                return Err(Error::container(&self.path)(ContainerProblem::Checksum {
                    what,
                    expected: section.crc32,
                    found,
                }));
            }
        }
        Ok(())
    }
}

impl AsRef<[u8]> for Storage {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
