//! Images and labels as arrays, for data sets without a format of their own: two tensors of a
//! `.safetensors` file, or two `.npy` files. Not here: the header of `.npy` ([`NpyHeader`]).
//!
//! ```text
//! train.safetensors, test.safetensors: `images` [images, channels, height, width] of U8, F16 or F32
//!                                      `labels` [images] of U8, I32 or I64
//! {train,test}-images.npy, {train,test}-labels.npy: the same
//! ```

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::image::{Element, Image, Images};
use super::{DataSet, Split};
use crate::dtype::Dtype;
use crate::error::DataProblem;
use crate::limits::CLASSES;
use crate::mapped::{map, open_regular};
use crate::source::{Checkpoint, NpyHeader};
use crate::{Error, Result};

/// What the files of a split begin with, and what it is called.
fn words(split: Split) -> (&'static str, &'static str) {
    match split {
        Split::Test => ("test", "test"),
        _ => ("train", "training"),
    }
}

/// `train.safetensors` or `test.safetensors`.
pub(super) fn open_safetensors(directory: &Path, split: Split) -> Result<DataSet> {
    let (prefix, what) = words(split);
    let path = present(directory, &format!("{prefix}.safetensors"), &format!("{what} images and labels"))?;
    let checkpoint = Checkpoint::open(&path)?;
    let tensor = |name| {
        let tensor = checkpoint.by_name(name).ok_or_else(|| {
            let names = "`images` and `labels`".to_owned();
            Error::Data {
                path: path.clone(),
                problem: DataProblem::Missing { what: format!("tensor `{name}`"), names },
            }
        })?;
        Ok::<_, Error>((tensor.dtype, tensor.shape.to_vec(), tensor.stored))
    };
    let (dtype, shape, _) = tensor("images")?;
    let (element, count, image) = images(&path, dtype, &shape)?;
    let (dtype, shape, data) = tensor("labels")?;
    let labels = labels(&path, dtype, &shape, data)?;
    check_count(&path, &labels, &path, count)?;
    let number = checkpoint.tensors().position(|tensor| tensor.name == "images").unwrap_or_default();
    let classes = classes(&labels);
    let images = Arrays { path: path.clone(), bytes: Bytes::Tensor(checkpoint, number), element, image };
    Ok(DataSet::of(images, image, labels, path, classes))
}

/// `train-images.npy` and `train-labels.npy`, or `test-…`.
pub(super) fn open_npy(directory: &Path, split: Split) -> Result<DataSet> {
    let (prefix, what) = words(split);
    let open = |kind: &str| {
        let path = present(directory, &format!("{prefix}-{kind}.npy"), &format!("{what} {kind}"))?;
        let map = map(&open_regular(&path)?, &path)?;
        let wrong = |problem| Error::Data { path: path.clone(), problem };
        let header = NpyHeader::of_file(&map).map_err(wrong)?;
        if header.fortran_order {
            let expected = "C order, as of numpy.ascontiguousarray".to_owned();
            return Err(wrong(DataProblem::Npy { expected, found: "Fortran order".to_owned() }));
        }
        Ok((path, map, header))
    };
    let (path, map, header) = open("images")?;
    let (element, count, image) = images(&path, header.dtype, &header.shape)?;
    let (labels_path, labels_map, labels_header) = open("labels")?;
    let bytes = &labels_map[labels_header.len..];
    let labels = labels(&labels_path, labels_header.dtype, &labels_header.shape, bytes)?;
    check_count(&labels_path, &labels, &path, count)?;
    let classes = classes(&labels);
    let images = Arrays { path, bytes: Bytes::Mapped(map, header.len), element, image };
    Ok(DataSet::of(images, image, labels, labels_path, classes))
}

fn present(directory: &Path, name: &str, what: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let problem = DataProblem::NotFound { what: what.to_owned(), names: name.to_owned() };
    Err(Error::Data { path: directory.to_path_buf(), problem })
}

/// What images are made of, how many there are, and the shape of each.
fn images(path: &Path, dtype: Dtype, shape: &[usize]) -> Result<(Element, usize, [usize; 3])> {
    let element = match dtype {
        Dtype::U8 => Some(Element::U8),
        Dtype::F16 => Some(Element::F16),
        Dtype::F32 => Some(Element::F32),
        _ => None,
    };
    match (element, shape) {
        (Some(element), &[count, c, h, w]) if count > 0 && c > 0 && h > 0 && w > 0 => Ok((element, count, [c, h, w])),
        _ => Err(unfit(
            path,
            "images",
            dtype,
            shape,
            "U8, F16 or F32 of [images, channels, height, width], none of them 0",
        )),
    }
}

fn unfit(path: &Path, name: &'static str, dtype: Dtype, shape: &[usize], expected: &'static str) -> Error {
    let problem = DataProblem::Array { name, found: format!("{dtype} of {shape:?}"), expected };
    Error::Data { path: path.to_path_buf(), problem }
}

/// Every label, each less than [`CLASSES`].
fn labels(path: &Path, dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<Vec<u32>> {
    let label = |(image, found): (usize, i64)| match u32::try_from(found) {
        Ok(label) if (label as usize) < CLASSES => Ok(label),
        _ => Err(Error::Data {
            path: path.to_path_buf(),
            problem: DataProblem::LabelRange { what: "label", found, image, classes: CLASSES },
        }),
    };
    match (dtype, shape) {
        (Dtype::U8, [_]) => data.iter().map(|&x| i64::from(x)).enumerate().map(label).collect(),
        (Dtype::I32, [_]) => {
            data.as_chunks().0.iter().map(|x| i64::from(i32::from_le_bytes(*x))).enumerate().map(label).collect()
        }
        (Dtype::I64, [_]) => data.as_chunks().0.iter().map(|x| i64::from_le_bytes(*x)).enumerate().map(label).collect(),
        _ => Err(unfit(path, "labels", dtype, shape, "U8, I32 or I64 of [images]")),
    }
}

fn check_count(path: &Path, labels: &[u32], images: &Path, count: usize) -> Result<()> {
    if labels.len() == count {
        return Ok(());
    }
    let problem = DataProblem::Count { labels: labels.len(), images: count, file: images.to_path_buf() };
    Err(Error::Data { path: path.to_path_buf(), problem })
}

/// One more than the largest label.
pub(super) fn classes(labels: &[u32]) -> usize {
    labels.iter().max().map_or(0, |&label| label as usize + 1)
}

/// Images of one shape, one after the other.
#[derive(Debug)]
struct Arrays {
    path: PathBuf,
    bytes: Bytes,
    element: Element,
    image: [usize; 3],
}

/// Where they are.
#[derive(Debug)]
enum Bytes {
    /// That tensor of a checkpoint.
    Tensor(Checkpoint, usize),
    /// A file from that byte on.
    Mapped(Mmap, usize),
}

impl Images for Arrays {
    fn get(&self, number: usize) -> Result<Image<'_>> {
        let bytes = match &self.bytes {
            Bytes::Tensor(checkpoint, tensor) => checkpoint.tensor(*tensor).stored,
            Bytes::Mapped(map, start) => &map[*start..],
        };
        let size = self.image.iter().product::<usize>() * self.element.bytes();
        Ok(Image::planar(&bytes[number * size..(number + 1) * size], self.element, self.image))
    }

    fn path(&self, _: usize) -> PathBuf {
        self.path.clone()
    }
}
