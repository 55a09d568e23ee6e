//! Labelled images to run networks on. Not here: the networks ([`crate::net`]).

mod idx;

use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray::ArrayViewMut4;

use crate::error::DataProblem;
use crate::{Error, Result};

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What accuracy is measured on.
    Test,
    /// What is trained on.
    Train,
}

/// Labelled images, in memory, one byte per pixel and channel.
#[derive(Debug, Clone)]
pub struct DataSet {
    /// `[images][channels][height][width]`
    pixels: Vec<u8>,
    /// Channels, height and width; none is 0.
    shape: [usize; 3],
    labels: Vec<u8>,
    /// Where the labels were read.
    labels_path: PathBuf,
}

impl DataSet {
    /// Opens a directory of IDX files (MNIST, Fashion-MNIST and their kin), plain or `.gz`, by their
    /// usual names: `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte` for [`Split::Test`],
    /// `train-…` for [`Split::Train`]; `.idx3-ubyte` and `.idx1-ubyte` are found too.
    ///
    /// # Errors
    /// Files that are missing, cannot be read, or are not what they claim to be.
    pub fn open_idx(directory: impl AsRef<Path>, split: Split) -> Result<Self> {
        idx::open(directory.as_ref(), split)
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

    /// A class number per image.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Writes some of the images into `batch` of images × channels × height × width, scaled to 0..1.
    ///
    /// # Panics
    /// When there are no such images, or `batch` has another shape.
    pub fn read(&self, images: Range<usize>, mut batch: ArrayViewMut4<'_, f32>) {
        let [channels, height, width] = self.shape;
        assert_eq!(batch.shape(), [images.len(), channels, height, width], "shape of the batch");
        let size = channels * height * width;
        let pixels = &self.pixels[images.start * size..images.end * size];
        batch.iter_mut().zip(pixels).for_each(|(x, &pixel)| *x = f32::from(pixel) / 255.0);
    }

    /// Whether every one of the first `images` labels is one of `classes` classes, counted from 0.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_labels(&self, images: usize, classes: usize) -> Result<()> {
        match self.labels.iter().take(images).position(|&label| usize::from(label) >= classes) {
            None => Ok(()),
            Some(image) => Err(Error::Data {
                path: self.labels_path.clone(),
                problem: DataProblem::Label { found: self.labels[image], image, classes },
            }),
        }
    }
}
