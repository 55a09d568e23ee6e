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

    /// Writes the values in C order. `bytes` has those up to [`Strided::end`]. There are dimensions, none of them 0.
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
        let inner = axes.pop().unwrap_or([1, 1, 1]);
        // Where neighbours in the source are none in `out`, those that are go beside them.
        let neighbours = axes.iter().position(|&[_, _, target]| target == 1);
        let [lines, apart, _] = neighbours.map_or([1, 1, 1], |at| axes.remove(at));
        let lengths: Vec<usize> = axes.iter().map(|axis| axis[0]).collect();
        let mut indices = vec![0; axes.len()];
        let size = self.size;
        loop {
            let at = |which: usize| axes.iter().zip(&indices).map(|(axis, i)| axis[which] * i).sum::<usize>();
            let (read, write) = ((from + at(1)) * size, at(2) * size);
            let (bytes, out) = (&bytes[read..], &mut out[write..]);
            match size {
                _ if inner[1] == 1 && inner[2] == 1 => {
                    out[..inner[0] * size].copy_from_slice(&bytes[..inner[0] * size]);
                }
                1 => copy::<1>(bytes, out, inner, [lines, apart]),
                2 => copy::<2>(bytes, out, inner, [lines, apart]),
                4 => copy::<4>(bytes, out, inner, [lines, apart]),
                _ => copy::<8>(bytes, out, inner, [lines, apart]),
            }
            if !advance(&mut indices, &lengths) {
                return;
            }
        }
    }
}

/// Values on the side of a tile.
const TILE: usize = 32;

/// Values of N bytes along two axes, the second of which has neighbours in `to`: `inner` is its length, its stride in `from`
/// and that in `to`, `across` the first two of these. Tile by tile, so that what lies far apart on either side is in the
/// cache while its neighbours are copied.
fn copy<const N: usize>(from: &[u8], to: &mut [u8], inner: [usize; 3], across: [usize; 2]) {
    let (from, to) = (from.as_chunks::<N>().0, to.as_chunks_mut::<N>().0);
    let mut tile = [[[0; N]; TILE]; TILE];
    for outer in (0..across[0]).step_by(TILE) {
        for first in (0..inner[0]).step_by(TILE) {
            let (count, lines) = (TILE.min(inner[0] - first), TILE.min(across[0] - outer));
            for (line, values) in tile[..lines].iter_mut().enumerate() {
                let from = &from[(outer + line) * across[1] + first * inner[1]..];
                match inner[1] {
                    1 => values[..count].copy_from_slice(&from[..count]),
                    stride => (0..count).for_each(|i| values[i] = from[i * stride]),
                }
            }
            for at in 0..count {
                let to = &mut to[(first + at) * inner[2] + outer..];
                to.iter_mut().zip(&tile[..lines]).for_each(|(to, line)| *to = line[at]);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Permuted, expanded and cut, over the side of a tile and under it, in every size: against plain indexing.
    #[test]
    fn any_strides_come_out_in_c_order() {
        for size in [1, 2, 4, 8] {
            for (shape, strides, offset) in [
                (vec![70, 40], vec![1, 70], 0),
                (vec![33, 5, 65], vec![5, 1, 165], 3),
                (vec![5, 65, 33], vec![1, 165, 5], 0),
                (vec![40, 3], vec![0, 1], 2),
                (vec![3, 40], vec![1, 0], 2),
                (vec![64, 33], vec![99, 3], 1),
                (vec![33, 64], vec![3, 99], 1),
                (vec![2, 3, 4, 5], vec![1, 40, 2, 8], 0),
                (vec![7], vec![9], 5),
            ] {
                let strided = Strided { size, offset, shape, strides };
                let source: Vec<u8> = (0..strided.end().unwrap() * size).map(|i| (i * 7919 % 251) as u8).collect();
                let (mut expected, mut indices) = (Vec::<u8>::new(), vec![0; strided.shape.len()]);
                loop {
                    let at = offset + indices.iter().zip(&strided.strides).map(|(i, s)| i * s).sum::<usize>();
                    expected.extend(&source[at * size..(at + 1) * size]);
                    if !advance(&mut indices, &strided.shape) {
                        break;
                    }
                }
                let mut found = Vec::<u8>::new();
                strided.write(&source, &mut found).unwrap();
                assert!(found == expected, "{strided:?}");
            }
        }
    }
}
