//! Errors, sorted by who is at fault, each with what was expected, what was found and a way out.
//! Not here: how an error is shown; the command line maps [`Fault`] to an exit code.

use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. `Display` is one line that names the file and, where there is one, the tensor;
/// the operating system's own words are its `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: missing file, no permission, disk full.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted, as a verb phrase ("open", "write the temporary file").
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The input checkpoint is not what it claims to be.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The checkpoint file, or its index.
        path: PathBuf,
        /// What is wrong with it.
        problem: CheckpointProblem,
    },
    /// The `.twn` file is damaged, or needs a newer reader.
    #[error("{}: {problem}", path.display())]
    Container {
        /// The `.twn` file.
        path: PathBuf,
        /// What is wrong with it.
        problem: ContainerProblem,
    },
    /// The bytes are fine but these weights cannot become ternary.
    #[error("tensor `{tensor}`: {problem}")]
    Weights {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with its weights.
        problem: WeightsProblem,
    },
    /// A tensor of this file is not what a network needs.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Network {
        /// The `.twn` file or checkpoint.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: NetworkProblem,
    },
    /// A data set is not what it claims to be.
    #[error("{}: {problem}", path.display())]
    Data {
        /// Its file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: DataProblem,
    },
    /// What was asked for makes no sense: a rule, a setting, a combination.
    #[error("{0}")]
    Request(String),
    /// The output exists and nobody said that it may be replaced.
    #[error("{}: exists already; give another path, or --force to replace it", path.display())]
    OutputExists {
        /// The path that is taken.
        path: PathBuf,
    },
    /// The input changed between opening and the end of the run; the output was discarded.
    #[error("{}: changed while it was being read ({what}); the output was discarded, run again once the file is at rest", path.display())]
    InputChanged {
        /// The input file.
        path: PathBuf,
        /// What changed.
        what: &'static str,
    },
    /// The caller asked to stop; nothing was published.
    #[error("interrupted; no output was written")]
    Cancelled,
}

/// Who can mend an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller: a wrong option, an output that exists.
    Request,
    /// The input file: damaged, inconsistent, or weights that cannot become ternary.
    Input,
    /// The machine: files, permissions, space.
    Io,
    /// Nobody: the run was cancelled.
    Cancelled,
}

impl Error {
    /// Who can mend it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Io { .. } => Fault::Io,
            Self::Checkpoint { .. }
            | Self::Container { .. }
            | Self::Weights { .. }
            | Self::Network { .. }
            | Self::Data { .. }
            | Self::InputChanged { .. } => Fault::Input,
            Self::Request(_) | Self::OutputExists { .. } => Fault::Request,
            Self::Cancelled => Fault::Cancelled,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    pub(crate) fn checkpoint(path: &Path) -> impl Fn(CheckpointProblem) -> Self {
        let path = path.to_path_buf();
        move |problem| Self::Checkpoint { path: path.clone(), problem }
    }

    pub(crate) fn container(path: &Path) -> impl Fn(ContainerProblem) -> Self {
        let path = path.to_path_buf();
        move |problem| Self::Container { path: path.clone(), problem }
    }
}

/// What can be wrong with a checkpoint: one `.safetensors` file, or an index over several.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum CheckpointProblem {
    /// The file is too short for its own header.
    #[error("not a safetensors file: it has {found} bytes, the header needs {expected}; was the download cut off?")]
    TooShort {
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The header's length is over the limit.
    #[error("header of {found} bytes is over the limit of {limit}; is this really a safetensors file?")]
    HeaderTooLong {
        /// Claimed length.
        found: u64,
        /// Limit, in bytes.
        limit: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("header is not valid: {0}; save the checkpoint again")]
    Header(String),
    /// A key stands twice.
    #[error("key `{0}` stands twice; readers differ in which they take, so remove one")]
    DuplicateKey(String),
    /// A tensor's data type is not one of the format's.
    #[error("tensor `{tensor}`: dtype: {message}; update twn-pack if the type is newer")]
    Dtype {
        /// Tensor name.
        tensor: String,
        /// The parser's words.
        message: String,
    },
    /// A tensor's shape does not fit its bytes, or overflows.
    #[error(
        "tensor `{tensor}`: shape {shape:?} of {dtype} needs {expected}, its data_offsets span {found} bytes; save the checkpoint again"
    )]
    Size {
        /// Tensor name.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its data type.
        dtype: Dtype,
        /// What shape and type need: "24 bytes", or in words where that is no number of bytes.
        expected: String,
        /// Bytes between its offsets.
        found: u64,
    },
    /// A tensor's offsets run past the end.
    #[error(
        "tensor `{tensor}`: data_offsets [{begin}, {end}) lie outside the {available} bytes of data; was the file cut off?"
    )]
    OutOfBounds {
        /// Tensor name.
        tensor: String,
        /// First byte.
        begin: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// A tensor's offsets run backwards.
    #[error(
        "tensor `{tensor}`: data_offsets [{begin}, {end}) run backwards, the end has to come last; save the checkpoint again"
    )]
    Backwards {
        /// Tensor name.
        tensor: String,
        /// First byte.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Bytes that belong to no tensor.
    #[error(
        "{length} bytes at data offset {offset} belong to no tensor, the format allows no holes; save the checkpoint again"
    )]
    Hole {
        /// Where the hole begins, relative to the data section.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "tensors `{first}` and `{second}` overlap, the format gives every byte to one tensor; save the checkpoint again"
    )]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The one that begins inside it.
        second: String,
    },
    /// A name or rank over this crate's limits.
    #[error(
        "tensor `{tensor}`: {what} is {found}, the limit is {limit}; reshape or rename it and save the checkpoint again"
    )]
    Limit {
        /// Tensor name (shortened).
        tensor: String,
        /// "rank" or "name length".
        what: &'static str,
        /// What was found.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The shard index is not valid.
    #[error("shard index is not valid: {0}; download it again")]
    Index(String),
    /// The index names a shard that is no plain file name.
    #[error("shard name {0:?} is not a plain file name; `..`, separators and absolute paths are refused")]
    ShardName(String),
    /// The index names a shard that is not there.
    #[error("the index names shard `{shard}`, which is not beside it; download that shard too")]
    MissingShard {
        /// Shard file name.
        shard: String,
    },
    /// The index promises a tensor that its shard does not hold.
    #[error("tensor `{tensor}` should be in `{shard}` but is not there; download that shard again")]
    MissingTensor {
        /// Tensor name.
        tensor: String,
        /// Shard file name.
        shard: String,
    },
    /// Two shards hold a tensor of the same name.
    #[error(
        "tensor `{tensor}` is in both `{first}` and `{second}`; remove one, or give an index that says which counts"
    )]
    DuplicateTensor {
        /// Tensor name.
        tensor: String,
        /// Shard file name.
        first: String,
        /// Shard file name.
        second: String,
    },
    /// A directory without a checkpoint, or with more than one.
    #[error("{0}")]
    Directory(String),
}

/// What can be wrong with a `.twn` file.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ContainerProblem {
    /// Shorter than the prefix.
    #[error("not a .twn file: it has {found} bytes, the prefix alone has 64; was it cut off?")]
    TooShort {
        /// Bytes there.
        found: u64,
    },
    /// Another magic number. A file whose writing was cut off has zeros here.
    #[error(
        "not a .twn file, or one whose writing was cut off: it begins with {0:02x?}, should with [89, 54, 57, 4e, 0d, 0a, 1a, 0a]; copy or pack it again"
    )]
    Magic([u8; 8]),
    /// Written by a later version of the format.
    #[error("version {found} of the format; this reader knows version {known}: update twn-pack")]
    Version {
        /// Version in the file.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// The file needs features that this reader does not have.
    #[error("needs features {0:#010x} that this reader does not know: update twn-pack")]
    Features(u32),
    /// A checksum does not match.
    #[error("{what}: CRC-32 is {found:08x}, should be {expected:08x}: the file is damaged; copy or pack it again")]
    Checksum {
        /// Which part.
        what: String,
        /// The stored checksum.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The file is longer or shorter than its prefix says.
    #[error("{found} bytes long, should be {expected}: the file was cut off or appended to; copy or pack it again")]
    Length {
        /// Length in the prefix.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
    /// The prefix contradicts itself.
    #[error("prefix is not valid: {0}")]
    Prefix(String),
    /// The index is not the JSON that the format asks for.
    #[error("index is not valid: {0}")]
    Index(String),
    /// A tensor's entry contradicts itself, or names something unknown.
    #[error("tensor `{tensor}`: {message}")]
    Entry {
        /// Tensor name.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// Sections that overlap or leave holes.
    #[error(
        "{what} begins at byte {found}, should begin at {expected}: sections leave no holes and do not overlap; pack it again"
    )]
    Tiling {
        /// Which section.
        what: String,
        /// Where it has to begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// A section that ends beyond the last byte before the index.
    #[error("{what} of {length} bytes at {offset} reaches beyond the data, which ends at {end}; pack it again")]
    Outside {
        /// Which section.
        what: String,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
        /// Where the data ends and the index begins.
        end: u64,
    },
    /// Padding between sections that is not zero.
    #[error("byte {offset} is padding and should be 0, it is {found}: the file is damaged; copy or pack it again")]
    Padding {
        /// Byte offset in the file.
        offset: u64,
        /// The byte.
        found: u8,
    },
    /// A code that stands for no weight, or a filter's last byte that is not filled up as it must be.
    #[error("tensor `{tensor}`: plane {plane}, filter {filter}: {message}; pack it again")]
    Code {
        /// Tensor name.
        tensor: String,
        /// Plane number.
        plane: usize,
        /// Filter number.
        filter: usize,
        /// What is wrong.
        message: String,
    },
    /// A scale that is negative, NaN or infinite.
    #[error("tensor `{tensor}`: scale {index} is {found}; it must be finite and not negative; pack it again")]
    Scale {
        /// Tensor name.
        tensor: String,
        /// Which scale, counted over `[planes][filters][groups]`.
        index: usize,
        /// Its value.
        found: f32,
    },
}

/// Why weights cannot become ternary.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum WeightsProblem {
    /// NaN or infinity.
    #[error(
        "weight {index} of filter {filter} is {value}; mend the checkpoint, or keep such tensors dense with --non-finite dense"
    )]
    NonFinite {
        /// Filter number.
        filter: usize,
        /// Position inside the filter.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A scale that its storage type cannot hold.
    #[error("filter {filter}: scale {scale:e} does not fit {dtype}; {advice}")]
    Scale {
        /// Filter number (0 where one scale serves the whole tensor).
        filter: usize,
        /// The scale.
        scale: f64,
        /// The storage type.
        dtype: &'static str,
        /// The way out.
        advice: &'static str,
    },
    /// A sum over the whole tensor that no `f64` holds, so that its file could not say it.
    #[error(
        "{what} is {found}, should be finite; keep the tensor dense with --exclude, rescale it, or take a smaller factor"
    )]
    Statistics {
        /// Which one.
        what: &'static str,
        /// Its value.
        found: f64,
    },
}

/// Why a tensor does not fit into a network.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum NetworkProblem {
    /// No tensor of that name.
    #[error("is missing, expected one of shape {expected:?}; is this a file of that network, with the same names?")]
    Missing {
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// Another shape.
    #[error("shape {found:?}, expected {expected:?}; is this a file of that network?")]
    Shape {
        /// The shape it should have.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// No floating-point type.
    #[error("dtype {found}, expected a floating-point type (F64, F32, F16, BF16, F8_E4M3, F8_E5M2)")]
    Dtype {
        /// Its type.
        found: Dtype,
    },
    /// Packed along an axis that is not the layer's outputs.
    #[error(
        "packed with filters along axis {found}, expected axis 0, the layer's outputs; pack it with --axis 0, or run it with --float"
    )]
    FilterAxis {
        /// The filter axis.
        found: usize,
    },
    /// Its codes do not unpack.
    #[error("{0}; pack it again")]
    Codes(String),
}

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
    #[error("label {found} of image {image}, expected 0 to {}: the network has {classes} outputs", classes - 1)]
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
         it, ask for the whole (--split whole)"
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
