//! The first 64 bytes of a `.twn` file. Not here: any I/O.
//!
//! ```text
//!  0  89 'T' 'W' 'N' 0D 0A 1A 0A    magic
//!  8  u32  version = 1
//! 12  u32  required-feature bits = 0
//! 16  u64  index offset             a multiple of 64
//! 24  u64  index length
//! 32  u64  file length              = index offset + index length
//! 40  u32  CRC-32 of the index
//! 44  16 × 00                       reserved
//! 60  u32  CRC-32 of bytes 0..60
//! ```

use super::ALIGNMENT;
use crate::error::ContainerProblem as Problem;
use crate::limits;

pub(crate) const LENGTH: usize = 64;
pub(crate) const MAGIC: [u8; 8] = *b"\x89TWN\r\n\x1a\n";
pub(crate) const VERSION: u32 = 1;

/// Where the index is. Everything else in the prefix is constant or a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub index_offset: u64,
    pub index_length: u64,
    pub index_crc32: u32,
}

impl Prefix {
    pub fn to_bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index_length.to_le_bytes());
        bytes[32..40].copy_from_slice(&(self.index_offset + self.index_length).to_le_bytes());
        bytes[40..44].copy_from_slice(&self.index_crc32.to_le_bytes());
        let crc32 = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc32.to_le_bytes());
        bytes
    }

    /// Reads and checks the prefix of a file of `found` bytes in all.
    pub fn parse(file: &[u8]) -> Result<Self, Problem> {
        let found = file.len() as u64;
        let bytes = file.first_chunk::<LENGTH>().ok_or(Problem::TooShort { found })?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let magic: [u8; 8] = std::array::from_fn(|i| bytes[i]);
        if magic != MAGIC {
            return Err(Problem::Magic(magic));
        }
        // The checksum's place is the same in every version, so that damage is told from novelty.
        let (expected, crc32) = (u32_at(60), crc32fast::hash(&bytes[..60]));
        if expected != crc32 {
            return Err(Problem::Checksum { what: "prefix".to_owned(), expected, found: crc32 });
        }
        if u32_at(8) != VERSION {
            return Err(Problem::Version { found: u32_at(8), known: VERSION });
        }
        if u32_at(12) != 0 {
            return Err(Problem::Features(u32_at(12)));
        }
        let prefix = Self { index_offset: u64_at(16), index_length: u64_at(24), index_crc32: u32_at(40) };
        let expected = u64_at(32);
        if expected != found {
            return Err(Problem::Length { expected, found });
        }
        let end = prefix.index_offset.checked_add(prefix.index_length);
        if end != Some(expected)
            || prefix.index_offset < LENGTH as u64
            || !prefix.index_offset.is_multiple_of(ALIGNMENT)
        {
            return Err(Problem::Prefix(format!(
                "index of {} bytes at {} in a file of {expected}; it has to end the file and begin at a multiple of 64; pack it again",
                prefix.index_length, prefix.index_offset
            )));
        }
        if prefix.index_length > limits::INDEX_BYTES {
            return Err(Problem::Prefix(format!(
                "index of {} bytes is over the limit of {}",
                prefix.index_length,
                limits::INDEX_BYTES
            )));
        }
        if bytes[44..60] != [0; 16] {
            return Err(Problem::Prefix(
                "reserved bytes 44 to 59 are not zero, should be in version 1; pack it again".to_owned(),
            ));
        }
        Ok(prefix)
    }
}
