//! Tensors whose values do not lie in C order, copied once into a temporary file, in bounded memory. Not here: any
//! format.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use crate::{Error, MappedFile, Result};

/// Bytes that are put in order at once, about.
const CHUNK: usize = 4 << 20;

/// How a tensor lies in memory: value (i₀, i₁, …) is number offset + i₀·stride₀ + i₁·stride₁ + … of those of `size`
/// bytes (1, 2, 4 or 8) each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Strided {
    pub size: usize,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Strided {
    /// One past the last value that it reaches; `None` where that overflows. Of no values: none.
    pub fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut last = self.offset;
        for (&dimension, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((dimension - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// Whether the values lie in C order without holes.
    pub fn is_contiguous(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let mut expected = Some(1usize);
        for (&dimension, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if dimension != 1 && Some(stride) != expected {
                return false;
            }
            expected = expected.and_then(|n| n.checked_mul(dimension));
        }
        true
    }

    /// Writes the values in C order. `bytes` has those up to [`Strided::end`], and none of the dimensions is 0.
    fn write(&self, bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
        let inner = |axis: usize| self.shape[axis + 1..].iter().fold(self.size, |n, &d| n.saturating_mul(d));
        // The first axis of which a piece is small enough; everything in front of it goes one by one.
        let axis = (0..self.shape.len()).find(|&axis| inner(axis) <= CHUNK).unwrap_or(0);
        let (row, rows) = (inner(axis), self.shape.get(axis).copied().unwrap_or(1));
        let step = (CHUNK / row.max(1)).clamp(1, rows);
        let mut buffer = vec![0; step * row];
        let mut outer = vec![0; axis];
        loop {
            let base: usize = outer.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
            for first in (0..rows).step_by(step) {
                let count = step.min(rows - first);
                let from = self.offset + base + first * self.strides.get(axis).copied().unwrap_or(0);
                let piece = &mut buffer[..count * row];
                self.gather(bytes, from, axis, count, piece);
                out.write_all(piece)?;
            }
            if !advance(&mut outer, &self.shape) {
                return Ok(());
            }
        }
    }

    /// The values of `count` indices along `axis` and all behind it, from value number `from`, in C order. Goes
    /// through the source in order, as far as that can be.
    fn gather(&self, bytes: &[u8], from: usize, axis: usize, count: usize, out: &mut [u8]) {
        // [length, stride in the source, stride in `out`], both in values.
        let mut axes = Vec::new();
        let mut stride = 1;
        for at in (axis..self.shape.len()).rev() {
            let length = if at == axis { count } else { self.shape[at] };
            if length > 1 {
                axes.push([length, self.strides[at], stride]);
            }
            stride *= length;
        }
        axes.sort_by_key(|&[_, source, _]| std::cmp::Reverse(source));
        let [length, source, target] = axes.pop().unwrap_or([1, 1, 1]);
        let lengths: Vec<usize> = axes.iter().map(|axis| axis[0]).collect();
        let mut indices = vec![0; axes.len()];
        let size = self.size;
        loop {
            let at = |which: usize| axes.iter().zip(&indices).map(|(axis, i)| axis[which] * i).sum::<usize>();
            let (read, write) = ((from + at(1)) * size, at(2) * size);
            if source == 1 && target == 1 {
                out[write..write + length * size].copy_from_slice(&bytes[read..read + length * size]);
            } else {
                let steps = [source * size, target * size];
                match size {
                    1 => copy::<1>(&bytes[read..], &mut out[write..], length, steps),
                    2 => copy::<2>(&bytes[read..], &mut out[write..], length, steps),
                    4 => copy::<4>(&bytes[read..], &mut out[write..], length, steps),
                    _ => copy::<8>(&bytes[read..], &mut out[write..], length, steps),
                }
            }
            if !advance(&mut indices, &lengths) {
                return;
            }
        }
    }
}

/// `count` values of N bytes, so many bytes apart on either side.
fn copy<const N: usize>(from: &[u8], to: &mut [u8], count: usize, [read, write]: [usize; 2]) {
    for i in 0..count {
        to[i * write..i * write + N].copy_from_slice(&from[i * read..i * read + N]);
    }
}

/// The next indices in C order; whether there are any.
fn advance(indices: &mut [usize], lengths: &[usize]) -> bool {
    for (i, &length) in indices.iter_mut().zip(lengths).rev() {
        *i += 1;
        if *i < length {
            return true;
        }
        *i = 0;
    }
    false
}

/// A temporary file that nobody else sees, with tensors one behind the other.
pub(super) struct Copies<'a> {
    path: &'a Path,
    format: &'static str,
    file: Option<File>,
    len: u64,
    limit: u64,
}

impl<'a> Copies<'a> {
    /// Of tensors of the file at `path`, at most so many bytes.
    pub fn new(path: &'a Path, format: &'static str, limit: u64) -> Self {
        Self { path, format, file: None, len: 0, limit }
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
        let foreign = |message: String| super::foreign(self.path, self.format, format!("tensor `{tensor}`: {message}"));
        let io = |source| Error::Io {
            path: self.path.to_path_buf(),
            action: "write the temporary copy of tensors that are packed or not in C order of",
            source,
        };
        let end = length.checked_add(self.len).filter(|end| *end <= self.limit);
        let Some(end) = end.filter(|end| usize::try_from(*end).is_ok()) else {
            let (len, limit) = (self.len, self.limit);
            return Err(foreign(format!(
                "a copy of {length} bytes is needed beside {len} of others, all are limited to {limit}; save the values \
                 contiguous and unpacked"
            )));
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile().map_err(io)?),
        };
        match write(file).map_err(Failure::from) {
            Ok(()) => {}
            Err(Failure::Io(source)) => return Err(io(source)),
            Err(Failure::Content(message)) => return Err(foreign(message)),
        }
        let range = self.len as usize..end as usize;
        self.len = end;
        Ok(range)
    }

    /// Adds a tensor in C order. `bytes` has its values up to [`Strided::end`].
    pub fn add_strided(&mut self, name: &str, tensor: &Strided, bytes: &[u8]) -> Result<Range<usize>> {
        let length = tensor.shape.iter().try_fold(tensor.size as u64, |n, &d| n.checked_mul(d as u64));
        self.add(name, length.unwrap_or(u64::MAX), |file| tensor.write(bytes, file))
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
