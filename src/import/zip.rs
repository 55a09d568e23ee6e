//! The entries of a zip file, where they lie in it. Not here: what is in them, or any decompression.
//!
//! What zip readers differ in is refused: entries that share bytes, two of one name, a local header that says another
//! name than the directory.

use std::collections::HashSet;
use std::ops::Range;

use rawzip::{CompressionMethod, ZipArchive};

use crate::limits;

/// One file in a zip file.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    /// Its bytes as they lie there, packed or not; inside the zip file.
    pub range: Range<usize>,
    /// Whether these are packed with deflate. If not, they are the file's own.
    pub deflated: bool,
    /// Bytes unpacked, as the directory says.
    pub size: u64,
    /// The checksum of the unpacked bytes, as the directory says.
    pub crc: u32,
}

/// Whether a file that begins so is a zip file. Of safetensors files, only those with a header of 67,324,752 bytes
/// begin so too; then comes its brace.
pub(super) fn is_zip(file: &[u8]) -> bool {
    file.starts_with(b"PK\x05\x06") || file.starts_with(b"PK\x03\x04") && file.get(8) != Some(&b'{')
}

/// Every entry but folders, in the order of the directory.
pub(super) fn entries(file: &[u8]) -> Result<Vec<Entry>, String> {
    let damaged = |e: rawzip::Error| format!("zip: {e}; was the download cut off?");
    let archive = ZipArchive::from_slice(file).map_err(damaged)?;
    let (count, limit) = (archive.entries_hint(), limits::ZIP_ENTRIES);
    if count > limit {
        return Err(format!("zip: {count} entries, expected at most {limit}"));
    }
    let mut entries = Vec::new();
    // Where each entry begins with its local header, and where its bytes end.
    let mut spans = Vec::new();
    let mut directory = archive.entries();
    let mut found = 0;
    while let Some(record) = directory.next_entry().map_err(damaged)? {
        found += 1;
        if found > count {
            break;
        }
        let raw = record.file_path();
        let name = std::str::from_utf8(raw.as_ref()).map_err(|_| "zip: a name that is not UTF-8".to_owned())?;
        let wrong = |what: String| format!("zip entry `{}`: {what}", shown(name));
        let data =
            archive.get_entry(record.wayfinder()).map_err(|e| wrong(format!("{e}; was the download cut off?")))?;
        if data.local_header().file_path().as_ref() != raw.as_ref() {
            return Err(wrong("has another name in its own header than in the directory".to_owned()));
        }
        let (begin, end) = data.compressed_data_range();
        spans.push((record.local_header_offset(), end));
        if record.is_dir() {
            continue;
        }
        if record.flags().is_encrypted() {
            return Err(wrong("is encrypted; write the file without a password".to_owned()));
        }
        let (packed, size) = (end - begin, record.uncompressed_size_hint());
        let deflated = match record.compression_method() {
            CompressionMethod::STORE if packed == size => false,
            CompressionMethod::STORE => {
                return Err(wrong(format!("{packed} bytes stored, the directory says {size}; write the file again")));
            }
            CompressionMethod::DEFLATE => true,
            other => return Err(wrong(format!("{other:?}, expected it to be stored or deflated"))),
        };
        let range = begin as usize..end as usize;
        entries.push(Entry { name: name.to_owned(), range, deflated, size, crc: record.crc32() });
    }
    if found != count {
        return Err(format!("zip: the directory promises {count} entries and holds others; write the file again"));
    }
    spans.push((archive.directory_offset(), archive.end_offset()));
    spans.sort_unstable();
    if spans.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err("zip: entries that share bytes; write the file again".to_owned());
    }
    let mut names = HashSet::new();
    match entries.iter().find(|entry| !names.insert(&entry.name)) {
        Some(twice) => Err(format!("zip: two entries `{}`; readers differ in which they take", shown(&twice.name))),
        None => Ok(entries),
    }
}

/// Of a name from a file, as much as a message needs.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}
