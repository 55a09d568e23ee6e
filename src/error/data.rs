//! What can be wrong with a data set. Not here: how an error is shown.

use std::path::PathBuf;

/// What can be wrong with a data set.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum DataProblem {
    /// None of the usual file names is there.
    #[error("no {what} here, expected one of {names}; download the data set into this directory")]
    NotFound {
        /// "test images", "training labels".
        what: String,
        /// The names that were looked for.
        names: String,
    },
    /// Another magic number.
    #[error("magic number {found:#010x}, expected {expected:#010x}, {what} in IDX format; is this another file?")]
    Magic {
        /// The number of that kind of file.
        expected: u32,
        /// The number in the file.
        found: u32,
        /// "images" or "labels".
        what: &'static str,
    },
    /// The file ends too soon.
    #[error("ends after {found} bytes, expected {expected}: {what}; was the download cut off?")]
    TooShort {
        /// Bytes that the header promises, with the header.
        expected: u64,
        /// Bytes there.
        found: u64,
        /// What they are made of.
        what: String,
    },
    /// The file goes on where its header says that it ends.
    #[error("goes on after {expected} bytes, expected to end there: {what}; download it again")]
    TooLong {
        /// Bytes that the header promises, with the header.
        expected: u64,
        /// What they are made of.
        what: String,
    },
    /// Dimensions that no data set has.
    #[error("{what} in the header, expected at least 1 of each and at most {limit} bytes in all; download it again")]
    Size {
        /// The dimensions.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The gzip stream is damaged.
    #[error("gzip: {0}; download it again")]
    Gzip(String),
    /// Not as many labels as images.
    #[error("{labels} labels, expected {images}, one per image of {}; take both from one data set", file.display())]
    Count {
        /// How many labels.
        labels: usize,
        /// How many images.
        images: usize,
        /// Where the images are.
        file: PathBuf,
    },
    /// A label that the network has no output for.
    #[error(
        "label {found} of image {image}, expected 0 to {}: the network has {classes} outputs; mend the label, or give the \
         network more with --classes",
        classes - 1
    )]
    Label {
        /// The label.
        found: u32,
        /// Which image, from 0.
        image: usize,
        /// How many outputs there are. At least 1.
        classes: usize,
    },
    /// More than one kind of data set in one directory.
    #[error("holds more than one data set: {found}; give the directory of the one you mean, or move the others away")]
    Ambiguous {
        /// Each with one of its files.
        found: String,
    },
    /// Something is missing of what belongs together.
    #[error("no {what} here: {names} expected; is this all of the data set?")]
    Missing {
        /// "CIFAR-10 test images", "tensor `labels`".
        what: String,
        /// What is missing, or what belongs there.
        names: String,
    },
    /// A file of records that are not whole, or of none.
    #[error("{found} bytes, expected one or more records of {record} bytes; was the download cut off?")]
    Records {
        /// Bytes there.
        found: u64,
        /// Bytes of a record.
        record: u64,
    },
    /// A label that no data set of that kind has.
    #[error("{what} {found} of image {image}, expected 0 to {}; is this another kind of file, or damaged?", classes - 1)]
    LabelRange {
        /// "label", "fine label".
        what: &'static str,
        /// The label.
        found: i64,
        /// Which image of the file, from 0.
        image: usize,
        /// How many classes there can be.
        classes: usize,
    },
    /// Not a `.npy` file, or one of a form that is not read.
    #[error("not a .npy file that can be read: {found}, expected {expected}; save it with numpy.save")]
    Npy {
        /// What should stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// An array of another type or shape.
    #[error("`{name}` is {found}, expected {expected}; convert it")]
    Array {
        /// "images" or "labels".
        name: &'static str,
        /// Type and shape.
        found: String,
        /// Type and shape.
        expected: &'static str,
    },
    /// Pixels that are no numbers.
    #[error("image {image} has a NaN or an infinity, expected finite values; take it out or mend it")]
    NotFinite {
        /// Which image, from 0.
        image: usize,
    },
    /// A folder of classes where the splits should be.
    #[error(
        "has classes directly in it, expected folders train and val or test with the classes in them; to take all of \
         it, ask for the whole (--split whole, of eval and calibrate)"
    )]
    NoSplits,
    /// A folder without anything in it that is wanted.
    #[error("holds no {what}, expected {expected}")]
    Empty {
        /// "folder of a class", "image".
        what: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// A class that is not trained on.
    #[error("class `{class}` is not in {}, expected only classes that are; rename or remove it", train.display())]
    Class {
        /// The name of its folder.
        class: String,
        /// The folder of the other split.
        train: PathBuf,
    },
    /// An image that cannot be decoded.
    #[error("not an image that can be read: {0}; expected a whole JPEG or PNG of a bounded size, replace or remove it")]
    Image(String),
}
