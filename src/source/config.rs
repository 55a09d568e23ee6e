//! The `config.json` of a model of Hugging Face transformers. Not here: what its entries mean.

use std::path::Path;

use serde_json::{Map, Value};

use super::MappedFile;
use crate::{Error, Result};

/// A `config.json` is a few kilobytes; this is plenty.
const CONFIG_BYTES: usize = 16 << 20;

/// Numbers as Python writes and reads them, which are no JSON.
const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Stands in front of those in strings that mean them: a character that no text has.
const MARK: char = '\u{fdd0}';

/// Reads the `config.json` of a model. Python's `NaN` and `Infinity` become strings that [`config_text`] writes as what
/// they were.
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
    serde_json::from_slice(&numbers_as_strings(text))
        .map_err(|error| refused(format!("is no JSON object ({error}); give the model's config.json")))
}

/// A small JSON file, such as a `config.json` that was read.
pub fn config_text(value: &Value) -> String {
    NUMBERS.iter().fold(format!("{value:#}\n"), |text, number| text.replace(&format!("\"{MARK}{number}\""), number))
}

fn numbers_as_strings(mut text: &[u8]) -> Vec<u8> {
    let (mut json, mut in_string) = (Vec::with_capacity(text.len()), false);
    while let Some(&byte) = text.first() {
        let number = NUMBERS.iter().find(|number| !in_string && text.starts_with(number.as_bytes()));
        let taken = match number {
            Some(number) => {
                json.extend(format!("\"{MARK}{number}\"").bytes());
                number.len()
            }
            None => {
                in_string ^= byte == b'"';
                let taken = if in_string && byte == b'\\' { text.len().min(2) } else { 1 };
                json.extend_from_slice(&text[..taken]);
                taken
            }
        };
        text = &text[taken..];
    }
    json
}
