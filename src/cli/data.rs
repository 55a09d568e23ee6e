//! The arguments of every command that reads a data set. Not here: what kinds there are; that is the
//! library's.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use twn_pack::Result;
use twn_pack::data::{DataSet, Normalization, Split};

/// Which data set, and how its values are scaled.
#[derive(Debug, Args)]
pub(super) struct DataArgs {
    /// Directory of the data set: MNIST's files (.gz or not), CIFAR's .bin files, arrays (.safetensors,
    /// .npy), or train/ and val/ or test/ with a folder of images per class
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// How every channel is normalized; without, pixels are 0 to 1
    #[arg(long, value_name = "HOW", default_value = "none")]
    normalize: NormalizationName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum NormalizationName {
    None,
    /// By ImageNet's means and standard deviations
    Imagenet,
    /// By CIFAR-10's
    Cifar10,
    /// By CIFAR-100's
    Cifar100,
}

/// What of it to evaluate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SplitName {
    Test,
    Train,
    /// All of a folder that has its classes directly in it
    Whole,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Test => Self::Test,
            SplitName::Train => Self::Train,
            SplitName::Whole => Self::Whole,
        }
    }
}

impl DataArgs {
    /// The data set, its images for a network that takes `[channels, height, width]`.
    pub(super) fn open(&self, split: Split, input: [usize; 3]) -> Result<DataSet> {
        self.normalize.open(&self.data, split, input)
    }
}

impl NormalizationName {
    /// The data set in that directory, its images for a network that takes `[channels, height, width]`.
    pub fn open(self, directory: &Path, split: Split, [_, height, width]: [usize; 3]) -> Result<DataSet> {
        let data = DataSet::open(directory, split)?.with_size(height, width)?;
        match self {
            Self::None => Ok(data),
            Self::Imagenet => data.with_normalization(Normalization::IMAGENET),
            Self::Cifar10 => data.with_normalization(Normalization::CIFAR10),
            Self::Cifar100 => data.with_normalization(Normalization::CIFAR100),
        }
    }
}
