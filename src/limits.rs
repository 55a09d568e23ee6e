//! Limits on what is read and written. A file over one of them is refused by name.

/// Bytes of a safetensors header, as in the safetensors specification.
pub const HEADER_BYTES: u64 = 100_000_000;
/// Bytes of a `.twn` index.
pub const INDEX_BYTES: u64 = 100_000_000;
/// Bytes of a shard index, `model.safetensors.index.json`.
pub const SHARD_INDEX_BYTES: u64 = 100_000_000;
/// Bytes of the pickle in a PyTorch checkpoint.
pub const PICKLE_BYTES: usize = 100_000_000;
/// Values in a pickle, and of them on its stack and in its memo at once.
pub const PICKLE_VALUES: usize = 1 << 22;
/// Containers inside each other in a pickle, where tensors are looked for.
pub const PICKLE_DEPTH: usize = 64;
/// Bytes, over those of its storages, that tensors of a PyTorch checkpoint take together when they are copied
/// because they do not lie side by side: expanded ones have more values than their storage.
pub const EXPANDED_BYTES: u64 = 1 << 26;
/// Entries of a zip file.
pub const ZIP_ENTRIES: u64 = 1 << 20;
/// Bytes of the arrays of a `.npz` file that are unpacked into a temporary file.
pub const NPZ_COPIED_BYTES: u64 = 1 << 34;
/// Bytes of a tensor name.
pub const NAME_BYTES: usize = 4096;
/// Dimensions of a tensor.
pub const RANK: usize = 16;
/// Planes of a ternary tensor.
pub const PLANES: usize = 16;
/// Planes that a tensor is packed into at most: four take 8 bits a weight in `t2`, as int8 does.
pub const PACKED_PLANES: usize = 4;
/// Bytes of images or labels in an IDX file, unpacked.
pub const IDX_BYTES: u64 = 1 << 32;
/// Values that a layer of a network takes or gives per image, or that a convolution gathers for it.
pub const LAYER_VALUES: usize = 1 << 26;
/// Bytes of what stands between the layers in a forward pass, for all its images. One image always fits:
/// it needs `LAYER_VALUES` in front of a layer, behind it, gathered, and per depth of residual layers.
pub const FORWARD_BYTES: u64 = 1 << 32;
/// Residual layers of a network inside each other.
pub const RESIDUAL_DEPTH: usize = 8;
/// Bytes of a network's description.
pub const NETWORK_BYTES: u64 = 1 << 20;
/// Bytes of the header of a `.npy` file.
pub const NPY_HEADER_BYTES: u32 = 1 << 16;
/// Classes of a data set.
pub const CLASSES: usize = 1 << 20;
/// Bytes of an image's file.
pub const IMAGE_FILE_BYTES: u64 = 1 << 26;
/// Pixels that an image is high or wide.
pub const IMAGE_SIDE: u32 = 1 << 14;
/// Bytes that decoding an image takes.
pub const IMAGE_BYTES: u64 = 1 << 28;
