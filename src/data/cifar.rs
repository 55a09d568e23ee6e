//! The binary files of CIFAR-10 and CIFAR-100: records of a label or two and an image, nothing else.
//!
//! ```text
//! CIFAR-10:  label,                    1024 bytes of red, 1024 of green, 1024 of blue
//! CIFAR-100: coarse label, fine label, 1024 bytes of red, 1024 of green, 1024 of blue
//! ```
//! Each colour is 32 rows of 32 pixels. Source: Krizhevsky, "Learning Multiple Layers of Features from
//! Tiny Images"; <https://www.cs.toronto.edu/~kriz/cifar.html>. Of CIFAR-100 the fine label is taken.

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::image::{Element, Image, Images};
use super::{DataSet, Split};
use crate::error::DataProblem;
use crate::mapped::{map, open_regular};
use crate::{Error, Result};

const SHAPE: [usize; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;

/// One of the two.
#[derive(Debug)]
pub(super) struct Cifar {
    pub name: &'static str,
    /// Where its archive unpacks to.
    pub directory: &'static str,
    /// What the labels of a record are called, and how many classes there are. The last is used.
    labels: &'static [(&'static str, u8)],
    train: &'static [&'static str],
    test: &'static [&'static str],
}

pub(super) const CIFAR10: Cifar = Cifar {
    name: "CIFAR-10",
    directory: "cifar-10-batches-bin",
    labels: &[("label", 10)],
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    test: &["test_batch.bin"],
};
pub(super) const CIFAR100: Cifar = Cifar {
    name: "CIFAR-100",
    directory: "cifar-100-binary",
    labels: &[("coarse label", 20), ("fine label", 100)],
    train: &["train.bin"],
    test: &["test.bin"],
};

impl Cifar {
    /// Its files.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.train.iter().chain(self.test).copied()
    }

    /// Where its files are, if there is one of them: there, or in the directory of the archive.
    pub fn find(&self, directory: &Path) -> Option<PathBuf> {
        let places = [directory.to_path_buf(), directory.join(self.directory)];
        places.into_iter().find(|place| self.names().any(|name| place.join(name).is_file()))
    }

    /// Opens the files of a directory: a split consists of all of them.
    pub fn open(&self, directory: &Path, split: Split) -> Result<DataSet> {
        let (names, what) = match split {
            Split::Test => (self.test, "test images"),
            _ => (self.train, "training images"),
        };
        let missing: Vec<&str> = names.iter().copied().filter(|name| !directory.join(name).is_file()).collect();
        if !missing.is_empty() {
            let problem = DataProblem::Missing { what: format!("{} {what}", self.name), names: missing.join(", ") };
            return Err(Error::Data { path: directory.to_path_buf(), problem });
        }
        let record = self.labels.len() + PIXELS;
        let (mut files, mut labels) = (Vec::new(), Vec::new());
        for name in names {
            let path = directory.join(name);
            let map = map(&open_regular(&path)?, &path)?;
            if map.is_empty() || map.len() % record != 0 {
                let problem = DataProblem::Records { found: map.len() as u64, record: record as u64 };
                return Err(Error::Data { path, problem });
            }
            for (number, bytes) in map.chunks_exact(record).enumerate() {
                for (&found, &(what, classes)) in bytes.iter().zip(self.labels) {
                    if found >= classes {
                        let (found, classes) = (found.into(), classes.into());
                        let problem = DataProblem::LabelRange { what, found, image: number, classes };
                        return Err(Error::Data { path, problem });
                    }
                }
                labels.push(bytes[self.labels.len() - 1].into());
            }
            files.push(Records { first: labels.len() - map.len() / record, path, map });
        }
        let classes = self.labels.last().map_or(0, |(_, classes)| usize::from(*classes));
        let images = Batches { labels: self.labels.len(), files };
        Ok(DataSet::of(images, SHAPE, labels, directory.to_path_buf(), classes))
    }
}

/// The files of a split, none of them empty.
#[derive(Debug)]
struct Batches {
    /// Labels of a record.
    labels: usize,
    files: Vec<Records>,
}

#[derive(Debug)]
struct Records {
    /// The number of its first image.
    first: usize,
    path: PathBuf,
    map: Mmap,
}

impl Batches {
    /// The file with that image.
    fn file(&self, number: usize) -> &Records {
        &self.files[self.files.partition_point(|file| file.first <= number) - 1]
    }
}

impl Images for Batches {
    fn get(&self, number: usize) -> Result<Image<'_>> {
        let file = self.file(number);
        let from = (number - file.first) * (self.labels + PIXELS) + self.labels;
        Ok(Image::planar(&file.map[from..from + PIXELS], Element::U8, SHAPE))
    }

    fn path(&self, number: usize) -> PathBuf {
        self.file(number).path.clone()
    }
}
