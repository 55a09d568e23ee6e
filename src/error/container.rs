//! What can be wrong with a `.twn` file. Not here: how an error is shown.

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
