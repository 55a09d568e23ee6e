//! Limits on what is read and written. A file over one of them is refused by name.

/// Bytes of a safetensors header, as in the safetensors specification.
pub const HEADER_BYTES: u64 = 100_000_000;
/// Bytes of a `.twn` index.
pub const INDEX_BYTES: u64 = 100_000_000;
/// Bytes of a shard index, `model.safetensors.index.json`.
pub const SHARD_INDEX_BYTES: u64 = 100_000_000;
/// Bytes of a tensor name.
pub const NAME_BYTES: usize = 4096;
/// Dimensions of a tensor.
pub const RANK: usize = 16;
/// Planes of a ternary tensor.
pub const PLANES: usize = 16;
