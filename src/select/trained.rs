//! What training leaves in a checkpoint's metadata: by which settings each tensor was trained, so that
//! the converter makes of it just what the network learned with. Not here: training.

use std::collections::BTreeMap;

use super::Settings;
use crate::source::Checkpoint;
use crate::{Error, Result};

/// The metadata's key. Its value is a JSON object: settings by tensor name.
pub const TRAINED_KEY: &str = "twn-pack.trained";

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
