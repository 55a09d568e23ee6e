//! The IDX files of MNIST: a magic number, dimensions, bytes. Not here: what the labels mean.
//!
//! ```text
//! images: 0x00000803, images, height, width   (u32, big endian), then a byte per pixel
//! labels: 0x00000801, labels                  (u32, big endian), then a byte per label
//! ```
//! Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".

use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::arrays::classes;
use super::image::{Element, Image, Images};
use super::{DataSet, Split};
use crate::error::DataProblem;
use crate::limits::IDX_BYTES;
use crate::mapped::open_regular;
use crate::{Error, Result};

const IMAGES: Kind = Kind { what: "images", magic: 0x0803, dimensions: ["images", "rows", "columns"].as_slice() };
const LABELS: Kind = Kind { what: "labels", magic: 0x0801, dimensions: ["labels"].as_slice() };

struct Kind {
    what: &'static str,
    magic: u32,
    dimensions: &'static [&'static str],
}

/// A file that was read: its dimensions, of which none is 0, and as many bytes as they make.
#[derive(Debug)]
struct Idx {
    path: PathBuf,
    dimensions: Vec<usize>,
    bytes: Vec<u8>,
}

/// Images and labels of a directory, as many of the one as of the other.
pub(super) fn open(directory: &Path, split: Split) -> Result<DataSet> {
    let images = read(find(directory, split, &IMAGES)?, &IMAGES)?;
    let labels = read(find(directory, split, &LABELS)?, &LABELS)?;
    if images.dimensions[0] != labels.bytes.len() {
        let count =
            DataProblem::Count { labels: labels.bytes.len(), images: images.dimensions[0], file: images.path.clone() };
        return Err(Error::Data { path: labels.path, problem: count });
    }
    let shape = [1, images.dimensions[1], images.dimensions[2]];
    let numbers: Vec<u32> = labels.bytes.iter().map(|&label| label.into()).collect();
    let classes = classes(&numbers);
    Ok(DataSet::of(images, shape, numbers, labels.path, classes))
}

impl Images for Idx {
    fn get(&self, number: usize) -> Result<Image<'_>> {
        let shape = [1, self.dimensions[1], self.dimensions[2]];
        let size = shape.iter().product::<usize>();
        Ok(Image::planar(&self.bytes[number * size..(number + 1) * size], Element::U8, shape))
    }

    fn path(&self, _: usize) -> PathBuf {
        self.path.clone()
    }
}

/// The name of a file of that split, if there is one.
pub(super) fn find_any(directory: &Path, split: Split) -> Option<String> {
    [&IMAGES, &LABELS].into_iter().flat_map(|kind| names(split, kind)).find(|name| directory.join(name).is_file())
}

/// What a file may be called.
fn names(split: Split, kind: &Kind) -> Vec<String> {
    let prefix = if split == Split::Test { "t10k" } else { "train" };
    let (what, rank) = (kind.what, kind.dimensions.len());
    let names = ["-", "."].map(|dot| format!("{prefix}-{what}{dot}idx{rank}-ubyte"));
    names.into_iter().flat_map(|name| [name.clone(), format!("{name}.gz")]).collect()
}

fn find(directory: &Path, split: Split, kind: &Kind) -> Result<PathBuf> {
    let names = names(split, kind);
    let (what, split) = (kind.what, if split == Split::Test { "test" } else { "training" });
    // That there is no such directory is the machine's answer, not the data set's.
    std::fs::read_dir(directory).map_err(Error::io(directory, "open the directory"))?;
    names.iter().map(|name| directory.join(name)).find(|path| path.is_file()).ok_or_else(|| Error::Data {
        path: directory.to_path_buf(),
        problem: DataProblem::NotFound { what: format!("{split} {what}"), names: names.join(", ") },
    })
}

fn read(path: PathBuf, kind: &Kind) -> Result<Idx> {
    let file = open_regular(&path)?;
    let zipped = path.extension().is_some_and(|extension| extension == "gz");
    let parsed = if zipped { parse(MultiGzDecoder::new(BufReader::new(file)), kind) } else { parse(file, kind) };
    match parsed {
        Ok((dimensions, bytes)) => Ok(Idx { path, dimensions, bytes }),
        Err(Failure::Data(problem)) => Err(Error::Data { path, problem }),
        // What the decompressor says of the bytes has no number of the operating system.
        Err(Failure::Io(error)) if zipped && error.raw_os_error().is_none() => {
            Err(Error::Data { path, problem: DataProblem::Gzip(error.to_string()) })
        }
        Err(Failure::Io(error)) => Err(Error::io(&path, "read")(error)),
    }
}

enum Failure {
    Data(DataProblem),
    Io(std::io::Error),
}

/// Memory grows with the bytes that are really there, and never over what the header promises.
fn parse(mut file: impl Read, kind: &Kind) -> Result<(Vec<usize>, Vec<u8>), Failure> {
    let header_bytes = 4 * (1 + kind.dimensions.len() as u64);
    // What kind of file it is comes first: another kind's header may be shorter.
    let magic = take(&mut file, 4, 0, || "the magic number".to_owned())?;
    let found = numbers(&magic)[0];
    if found != kind.magic {
        return Err(Failure::Data(DataProblem::Magic { expected: kind.magic, found, what: kind.what }));
    }
    let dimensions = numbers(&take(&mut file, header_bytes - 4, 4, || "the header".to_owned())?);
    let pairs = dimensions.iter().zip(kind.dimensions);
    let what = pairs.map(|(n, name)| format!("{n} {name}")).collect::<Vec<_>>().join(" × ");
    let size = dimensions.iter().try_fold(1u64, |product, &n| product.checked_mul(n.into()));
    let Some(size) = size.filter(|size| (1..=IDX_BYTES).contains(size)) else {
        return Err(Failure::Data(DataProblem::Size { what, limit: IDX_BYTES }));
    };
    let bytes = take(&mut file, size, header_bytes, || what.clone())?;
    // Reading on to the end also makes the decompressor look at its checksum.
    if file.read(&mut [0]).map_err(Failure::Io)? > 0 {
        return Err(Failure::Data(DataProblem::TooLong { expected: header_bytes + size, what }));
    }
    Ok((dimensions.into_iter().map(|n| n as usize).collect(), bytes))
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect()
}

/// The next `length` bytes; `before` of the file have been read.
fn take(file: &mut impl Read, length: u64, before: u64, what: impl Fn() -> String) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    match file.take(length).read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(Failure::Io(error)),
        _ => {}
    }
    if (bytes.len() as u64) < length {
        let found = before + bytes.len() as u64;
        return Err(Failure::Data(DataProblem::TooShort { expected: before + length, found, what: what() }));
    }
    Ok(bytes)
}
