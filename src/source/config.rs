//! The `config.json` of a model of Hugging Face transformers. Not here: what its entries mean.

use std::path::Path;

use serde_json::{Map, Value};

use super::MappedFile;
use crate::{Error, Result};

/// A `config.json` is a few kilobytes; this is plenty.
const CONFIG_BYTES: usize = 16 << 20;

/// Reads the `config.json` of a model.
///
/// # Errors
/// A file that cannot be read, or is no JSON object.
pub fn model_config(path: &Path) -> Result<Map<String, Value>> {
    let refused = |what: String| Error::Request(format!("{}: {what}", path.display()));
    let file = MappedFile::open(path)?;
    if file.len() > CONFIG_BYTES {
        return Err(refused(format!("{} bytes are no config.json; give the model's", file.len())));
    }
    // Some editors put a byte order mark before it.
    let text = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&file);
    serde_json::from_slice(text).map_err(|error| {
        let line = text.split(|&byte| byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
        let has = |word: &[u8]| line.windows(word.len()).any(|part| part == word);
        let way_out = if error.is_syntax() && (has(b"NaN") || has(b"Infinity")) {
            "NaN and Infinity, as Python writes them, are no JSON: put null or a number there"
        } else {
            "give the model's config.json"
        };
        refused(format!("is no JSON object ({error}); {way_out}"))
    })
}
