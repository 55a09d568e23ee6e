//! Arrays that numpy wrote: `.npz`, a zip file with a `.npy` file per array, and a `.npy` file alone. Arrays stay
//! mapped where they lie; those that are packed are unpacked once into a temporary file. Not here: the header of `.npy`
//! ([`NpyHeader`]).

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use flate2::read::DeflateDecoder;

use super::copies::{Copies, Failure};
use super::zip::{Entry, shown};
use super::{Names, foreign};
use crate::error::DataProblem;
use crate::source::{CheckpointBuilder, NpyHeader};
use crate::{Checkpoint, MappedFile, Result, limits};

const FORMAT: &str = "numpy";

/// Whether these are the entries of a `.npz` file.
pub(super) fn is(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| entry.name.ends_with(".npy"))
}

/// Opens a `.npz` file with these entries: a tensor per array.
pub(super) fn open(path: &Path, file: MappedFile, entries: &[Entry]) -> Result<Checkpoint> {
    let mut builder = CheckpointBuilder::new(path);
    let number = builder.file(file.clone());
    let (mut arrays, mut others) = (Arrays::new(path), Names::default());
    for entry in entries {
        // What macOS lays beside files is called ._NAME.
        let of_macos = entry.name.rsplit('/').next().is_some_and(|last| last.starts_with("._"));
        let Some(name) = entry.name.strip_suffix(".npy").filter(|_| !of_macos) else {
            others.add(&entry.name);
            continue;
        };
        if entry.deflated {
            arrays.unpack(name, entry, &file[entry.range.clone()])?;
            continue;
        }
        let header = NpyHeader::of_file(&file[entry.range.clone()])
            .map_err(|problem| foreign(path, FORMAT, format!("array `{}`: {}", shown(name), words(problem))))?;
        add(&mut builder, name, &header, number, entry.range.start + header.len..entry.range.end)?;
    }
    arrays.finish(&mut builder)?;
    if others.count > 0 {
        let (count, examples) = (others.count, others.examples());
        builder.warn(format!("{count} zip entries that are no arrays are left out: {examples}"));
    }
    builder.finish()
}

/// Opens a `.npy` file: a tensor of the file's name.
pub(super) fn open_npy(path: &Path, file: MappedFile) -> Result<Checkpoint> {
    let header = NpyHeader::of_file(&file).map_err(|problem| foreign(path, FORMAT, words(problem)))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut builder = CheckpointBuilder::new(path);
    let values = header.len..file.len();
    let number = builder.file(file);
    add(&mut builder, &name, &header, number, values)?;
    builder.finish()
}

/// Adds an array whose values are the bytes `range` of that file.
fn add(
    builder: &mut CheckpointBuilder,
    name: &str,
    header: &NpyHeader,
    file: usize,
    range: Range<usize>,
) -> Result<()> {
    let NpyHeader { dtype, shape, .. } = header;
    if !header.fortran_order {
        return builder.tensor(name, *dtype, shape, file, range);
    }
    let order: Vec<usize> = (0..shape.len()).rev().collect();
    builder.permuted(name, *dtype, (shape, &order), file, range)
}

/// The arrays that are unpacked.
struct Arrays<'a> {
    copies: Copies<'a>,
    done: Vec<(String, NpyHeader, Range<usize>)>,
    path: &'a Path,
}

impl<'a> Arrays<'a> {
    fn new(path: &'a Path) -> Self {
        Self { copies: Copies::new(path, FORMAT, limits::NPZ_COPIED_BYTES), done: Vec::new(), path }
    }

    /// Unpacks an array, as many bytes as its header says and not one more.
    fn unpack(&mut self, name: &str, entry: &Entry, packed: &[u8]) -> Result<()> {
        let wrong = |message: String| foreign(self.path, FORMAT, format!("array `{}`: {message}", shown(name)));
        let mut inflated = Inflated { decoder: DeflateDecoder::new(packed), crc: crc32fast::Hasher::new() };
        let mut beginning = vec![0; 12];
        let read = inflated.fill(&mut beginning).map_err(wrong)?;
        beginning.truncate(read);
        // The rest of the header; how long it is stands in these bytes. The limit is 64 KiB.
        let length = header_len(&beginning).min(NpyHeader::MAX);
        if length > read {
            beginning.resize(length, 0);
            let more = inflated.fill(&mut beginning[read..]).map_err(wrong)?;
            beginning.truncate(read + more);
        }
        let header = NpyHeader::parse(&beginning).map_err(|problem| wrong(words(problem)))?;
        let expected = header.len as u64 + header.data_len;
        if expected != entry.size {
            let size = entry.size;
            return Err(wrong(format!(
                "{size} bytes unpacked, expected {expected} of its header; was the file damaged?"
            )));
        }
        // An array of a few bytes can be shorter than what was read so far.
        let rest = beginning[header.len.min(beginning.len())..].to_vec();
        let unpack = |file: &mut File| inflated.write(rest, &header, entry.crc, file);
        let range = self.copies.add(name, header.data_len, unpack)?;
        self.done.push((name.to_owned(), header, range));
        Ok(())
    }

    fn finish(self, builder: &mut CheckpointBuilder) -> Result<()> {
        let Some(file) = self.copies.map()? else { return Ok(()) };
        let number = builder.file(file);
        self.done.into_iter().try_for_each(|(name, header, range)| add(builder, &name, &header, number, range))
    }
}

fn words(problem: DataProblem) -> String {
    match problem {
        DataProblem::Npy { expected, found } => {
            format!("{found}, expected {expected}; save it so")
        }
        other => other.to_string(),
    }
}

/// How many bytes a header has, by its first 12; 0 where these are none.
fn header_len(beginning: &[u8]) -> usize {
    match *beginning {
        [_, _, _, _, _, _, 1, _, low, high, ..] => 10 + usize::from(u16::from_le_bytes([low, high])),
        [_, _, _, _, _, _, _, _, a, b, c, d] => (u32::from_le_bytes([a, b, c, d]) as usize).saturating_add(12),
        _ => 0,
    }
}

/// A packed array while it is unpacked.
struct Inflated<'a> {
    decoder: DeflateDecoder<&'a [u8]>,
    crc: crc32fast::Hasher,
}

impl Inflated<'_> {
    /// Reads until `buffer` is full or nothing is left; returns how many bytes.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) => return Err(format!("deflate: {e}; was the file damaged?")),
            }
        }
        self.crc.update(&buffer[..filled]);
        Ok(filled)
    }

    /// Writes the values, of which `rest` are the first, and checks that they end there.
    fn write(mut self, rest: Vec<u8>, header: &NpyHeader, crc: u32, out: &mut File) -> Result<(), Failure> {
        let short = |found: u64| Failure::Content(format!("{found} bytes of values, expected {}", header.data_len));
        let mut left = header.data_len.checked_sub(rest.len() as u64).ok_or_else(|| short(rest.len() as u64))?;
        out.write_all(&rest)?;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.fill(&mut buffer[..want]).map_err(Failure::Content)?;
            if read == 0 {
                return Err(short(header.data_len - left));
            }
            out.write_all(&buffer[..read])?;
            left -= read as u64;
        }
        if self.fill(&mut buffer[..1]).map_err(Failure::Content)? != 0 {
            return Err(Failure::Content("goes on behind its values; was the file damaged?".to_owned()));
        }
        match self.crc.finalize() {
            found if found == crc => Ok(()),
            found => Err(Failure::Content(format!("checksum {found:08x}, expected {crc:08x}; the file is damaged"))),
        }
    }
}
