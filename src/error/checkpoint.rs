//! What can be wrong with a checkpoint. Not here: its weights, or how an error is shown.

use safetensors::Dtype;

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
    /// What stands in place of a checkpoint: a pointer of Git LFS, a web page, an archive.
    #[error("it is no checkpoint but {what}; {way_out}")]
    StandsInstead {
        /// What it is.
        what: &'static str,
        /// The way from there to a checkpoint.
        way_out: &'static str,
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
    /// A checkpoint in another format than safetensors that is not what that format asks for, or asks for what is
    /// not done.
    #[error("not a {format} file that can be read: {message}")]
    Foreign {
        /// The format's name.
        format: &'static str,
        /// What was found and what was expected, and a way out.
        message: String,
    },
    /// A directory without a checkpoint, or with more than one.
    #[error("{0}")]
    Directory(String),
}
