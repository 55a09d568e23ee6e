//! Labelled images to train and to run networks on, from whatever data set a directory holds.
//!
//! ```text
//!  directory ──► kind ──► idx, cifar, arrays, folder ──► image ──► augment ──► normalization ──► batch
//!                which     where the bytes of an image    crop,     padded, cropped,   f32
//!                one?      are, and its label             resize    flipped at random
//! ```
//!
//! The kinds and their files are in `docs/data.md`. Not here: the networks ([`crate::net`]).

mod arrays;
#[cfg(feature = "train")]
mod augment;
mod cifar;
#[cfg(feature = "train")]
mod folder;
mod idx;
mod image;
mod kind;
mod normalization;
#[cfg(feature = "train")]
mod resample;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array4, ArrayViewMut4};
use rayon::prelude::*;

#[cfg(feature = "train")]
pub use self::augment::{Augmentation, Crop};
use self::image::Images;
pub use self::normalization::Normalization;
use crate::error::DataProblem;
use crate::limits::LAYER_VALUES;
use crate::{Error, Result};

/// Changes of images at random. There are none without the feature `train`.
#[cfg(not(feature = "train"))]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Augmentation {}

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What accuracy is measured on.
    Test,
    /// What is trained on.
    Train,
    /// All of a folder of images that has its classes directly in it, without `train` and `test`.
    Whole,
}

/// Labelled images, all of one shape once they are read. Files may be mapped into memory and must not
/// change while the data set is open; images of folders are decoded when they are asked for.
#[derive(Debug, Clone)]
pub struct DataSet {
    images: Arc<dyn Images>,
    /// Channels, height and width of what is read; none is 0.
    shape: [usize; 3],
    /// Whether images come in any size and are brought to that shape.
    resized: bool,
    /// One per image.
    labels: Arc<[u32]>,
    /// Where the labels were read.
    labels_path: PathBuf,
    /// More than the largest label.
    classes: usize,
    normalization: Option<Normalization>,
}

impl DataSet {
    /// Opens the data set of a directory, of whatever kind it is: IDX files (MNIST and its kin), the
    /// binary files of CIFAR-10 and CIFAR-100, arrays (`.safetensors` or `.npy`), or, with the feature
    /// `train`, a folder of images for each class. Sizes, headers and labels are checked.
    ///
    /// # Errors
    /// A directory with no data set or with more than one, files that are missing, cannot be read, or
    /// are not what they claim to be.
    pub fn open(directory: impl AsRef<Path>, split: Split) -> Result<Self> {
        kind::open(directory.as_ref(), split)
    }

    /// Opens a directory of IDX files (MNIST, Fashion-MNIST and their kin), plain or `.gz`, by their
    /// usual names: `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte` for [`Split::Test`],
    /// `train-…` for [`Split::Train`]; `.idx3-ubyte` and `.idx1-ubyte` are found too.
    ///
    /// # Errors
    /// Files that are missing, cannot be read, or are not what they claim to be.
    pub fn open_idx(directory: impl AsRef<Path>, split: Split) -> Result<Self> {
        idx::open(directory.as_ref(), split)
    }

    /// Of images that all have `shape`. `labels` has one per image, each less than `classes`.
    fn of(images: impl Images + 'static, shape: [usize; 3], labels: Vec<u32>, path: PathBuf, classes: usize) -> Self {
        Self {
            images: Arc::new(images),
            shape,
            resized: false,
            labels: labels.into(),
            labels_path: path,
            classes,
            normalization: None,
        }
    }

    /// The same images, brought to that height and width where they come in any size: folders of
    /// images, which are 224 × 224 without. Images of other data sets keep the size they have.
    ///
    /// # Errors
    /// A size of 0 or one over [`LAYER_VALUES`].
    pub fn with_size(mut self, height: usize, width: usize) -> Result<Self> {
        let values = height.checked_mul(width).and_then(|n| n.checked_mul(self.shape[0]));
        if !values.is_some_and(|n| (1..=LAYER_VALUES).contains(&n)) {
            return Err(Error::Request(format!(
                "images of {height} × {width} pixels, expected at least 1 × 1 and at most {LAYER_VALUES} values"
            )));
        }
        if self.resized {
            self.shape = [self.shape[0], height, width];
        }
        Ok(self)
    }

    /// The same images, of which every channel is moved and scaled after everything else.
    ///
    /// # Errors
    /// Other than one mean and one standard deviation per channel, or one that divides by 0.
    pub fn with_normalization(mut self, normalization: Normalization) -> Result<Self> {
        normalization.check(self.shape[0])?;
        self.normalization = Some(normalization);
        Ok(self)
    }

    /// How many images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Channels, height and width of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// How many classes: what CIFAR has, the number of folders, else one more than the largest label.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// A class number per image, each less than [`DataSet::classes`].
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Writes the images of those numbers into `batch` of images × channels × height × width, in that
    /// order, on the threads of the caller's pool. Bytes are scaled to 0..1, floats stay as they are;
    /// then comes the normalization, if there is one.
    ///
    /// With an augmentation, what is random depends on the seed and on the image's number only, never
    /// on threads, on the batch or on its order: give every epoch another seed.
    ///
    /// # Errors
    /// A number that is too large, a batch of another shape, an augmentation that makes no sense, an image that cannot be read or decoded
    /// or is not finite: the first in the order of `indices`.
    pub fn read(
        &self,
        indices: &[usize],
        augmentation: Option<(&Augmentation, u64)>,
        mut batch: ArrayViewMut4<'_, f32>,
    ) -> Result<()> {
        let [channels, height, width] = self.shape;
        let expected = [indices.len(), channels, height, width];
        if batch.shape() != expected {
            let found = batch.shape();
            return Err(Error::Request(format!("a batch of {found:?}, expected {expected:?}")));
        }
        if let Some(image) = indices.iter().find(|image| **image >= self.len()) {
            return Err(Error::Request(format!("image {image}, expected 0 to {}", self.len() - 1)));
        }
        #[cfg(feature = "train")]
        augmentation.map_or(Ok(()), |(augmentation, _)| augmentation.check())?;
        if indices.is_empty() {
            return Ok(());
        }
        if let Some(slice) = batch.as_slice_mut() {
            return self.fill(indices, augmentation, slice);
        }
        // Memory order is another one, or there are gaps.
        let mut dense = Array4::zeros(batch.raw_dim());
        let slice = dense.as_slice_mut().ok_or_else(|| Error::Request("a batch without memory".to_owned()))?;
        self.fill(indices, augmentation, slice)?;
        batch.assign(&dense);
        Ok(())
    }

    /// [`DataSet::read`] into `[indices][channels][height][width]`.
    fn fill(&self, indices: &[usize], augmentation: Option<(&Augmentation, u64)>, batch: &mut [f32]) -> Result<()> {
        let size = self.shape.iter().product();
        let pairs = indices.par_iter().zip(batch.par_chunks_exact_mut(size));
        let failed = pairs.map(|(&image, out)| self.fill_one(image, augmentation, out)).find_first(Result::is_err);
        failed.unwrap_or(Ok(()))
    }

    fn fill_one(&self, number: usize, augmentation: Option<(&Augmentation, u64)>, out: &mut [f32]) -> Result<()> {
        let image = self.images.get(number)?;
        match augmentation {
            #[cfg(feature = "train")]
            Some((augmentation, seed)) => augmentation.apply(&image, self.shape, (seed, number as u64), out),
            #[cfg(not(feature = "train"))]
            Some((never, _)) => match *never {},
            None => image.write(self.shape, out),
        }
        if image.may_be_infinite() && !out.iter().all(|x| x.is_finite()) {
            return Err(Error::Data {
                path: self.images.path(number),
                problem: DataProblem::NotFinite { image: number },
            });
        }
        if let Some(normalization) = &self.normalization {
            normalization.apply(out, self.shape[0]);
        }
        Ok(())
    }

    /// A number that other images hardly have: a CRC-32 of the shape and the normalization, and of the labels and all
    /// bytes of the first `images`, as they are stored (a folder's are not decoded).
    ///
    /// # Errors
    /// An image that cannot be read.
    pub fn checksum(&self, images: usize) -> Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        self.shape.iter().for_each(|n| hasher.update(&(*n as u64).to_le_bytes()));
        let numbers = (0..images.min(self.len())).into_par_iter();
        let images: Vec<u32> = numbers.map(|number| self.images.checksum(number)).collect::<Result<_>>()?;
        self.labels.iter().zip(images).for_each(|(label, image)| {
            hasher.update(&label.to_le_bytes());
            hasher.update(&image.to_le_bytes());
        });
        let normalization = self.normalization.iter().flat_map(|Normalization { mean, std }| mean.iter().chain(&**std));
        normalization.for_each(|x| hasher.update(&x.to_le_bytes()));
        Ok(hasher.finalize())
    }

    /// Whether a network can take the images, which wants `[channels, height, width]`.
    ///
    /// # Errors
    /// When they have another shape.
    pub fn check_shape(&self, expected: [usize; 3]) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }
        let found = self.shape;
        Err(Error::Request(format!(
            "the images of {} are {found:?} (channels, height, width), the network takes {expected:?}; --input changes it",
            self.labels_path.display()
        )))
    }

    /// Whether every one of the first `images` labels is one of `classes` classes, counted from 0.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_labels(&self, images: usize, classes: usize) -> Result<()> {
        match self.labels.iter().take(images).position(|&label| label as usize >= classes) {
            None => Ok(()),
            Some(image) => Err(Error::Data {
                path: self.labels_path.clone(),
                problem: DataProblem::Label { found: self.labels[image], image, classes },
            }),
        }
    }
}
