//! What training leaves in a checkpoint's metadata: by which settings each tensor was trained, so that
//! the converter makes of it just what the network learned with. Not here: training.

use std::collections::BTreeMap;

use super::{Keep, Settings};
use crate::container::Granularity;
use crate::pack::Encoding;
use crate::source::Checkpoint;
use crate::ternarize::ScaleDtype;
use crate::{Error, Result};

/// The metadata's key. Its value is a JSON object: settings by tensor name.
pub const TRAINED_KEY: &str = "twn-pack.trained";

/// What a file of tensors with those settings says of them; nothing where none is ternary: then it is for
/// the converter to say what becomes so.
pub(crate) fn trained_metadata(settings: &BTreeMap<String, Settings>) -> Result<BTreeMap<String, String>> {
    if settings.values().all(|settings| settings.keep == Some(Keep::Dense)) {
        return Ok(BTreeMap::new());
    }
    let text = serde_json::to_string(settings).map_err(|e| Error::Request(e.to_string()))?;
    Ok(BTreeMap::from([(TRAINED_KEY.to_owned(), text)]))
}

/// By which settings the converter finds the codes of dequantized weights again. Of what is ternary already,
/// the optimum is what it is; and so are signs, of what has no zeros.
pub(crate) fn found_again(encoding: Encoding, granularity: Granularity) -> Settings {
    let method = if encoding == Encoding::B1 { "bwn" } else { "optimal" };
    Settings {
        method: Some(method.to_owned()),
        granularity: Some(granularity),
        encoding: Some(encoding),
        keep: Some(Keep::Ternary),
        ..Settings::default()
    }
}

/// The same of dequantized codes of 8 bits.
pub(crate) fn found_again_as_int8(axis: u64, scale_dtype: ScaleDtype) -> Settings {
    Settings {
        axis: Some(axis as usize).filter(|axis| *axis != 0),
        scale_dtype: Some(scale_dtype).filter(|dtype| *dtype != ScaleDtype::default()),
        keep: Some(Keep::Int8),
        ..Settings::default()
    }
}

/// What stays as floats.
pub(crate) fn stays_dense() -> Settings {
    Settings { keep: Some(Keep::Dense), ..Settings::default() }
}

/// The settings by tensor name; empty for a checkpoint that says nothing of them.
///
/// # Errors
/// Metadata of that key that is not understood.
pub fn trained(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Settings>> {
    let Some(text) = checkpoint.metadata().get(TRAINED_KEY) else { return Ok(BTreeMap::new()) };
    let refused = |what: String| {
        let path = checkpoint.path().display();
        Error::Request(format!("{path}: metadata `{TRAINED_KEY}`: {what}; expected settings by tensor name"))
    };
    let found: BTreeMap<String, Settings> = serde_json::from_str(text).map_err(|e| refused(e.to_string()))?;
    for (name, settings) in &found {
        settings.treatment().map_err(|e| refused(format!("tensor `{name}`: {e}")))?;
    }
    Ok(found)
}
