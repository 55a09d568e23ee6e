//! The safetensors file that several formats are: its tensors in the order that keeps them aligned, behind their
//! header. Not here: what a tensor of the container becomes.

use std::collections::BTreeMap;

use super::{Line, Part};
use crate::Dtype;
use crate::source::{safetensors_header, safetensors_order};

/// A tensor of the new file.
pub(super) struct Written<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub part: Part<'a>,
    /// The number of the line that it belongs to.
    pub line: usize,
}

/// The bytes of the file. Where two tensors would have one name, the lines of both are refused.
pub(super) fn parts<'a>(
    lines: &mut [Line],
    mut written: Vec<Written<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Vec<Part<'a>> {
    let mut names = BTreeMap::new();
    for written in &written {
        if let Some(other) = names.insert(written.name.as_str(), written.line) {
            let reason = format!("two tensors would be called `{}`; rename one and pack again", written.name);
            lines[other].becomes = Err(reason.clone());
            lines[written.line].becomes = Err(reason);
        }
    }
    written.sort_by(|a, b| safetensors_order((a.dtype, &a.name), (b.dtype, &b.name)));
    let tensors = written.iter().map(|written| (written.name.as_str(), written.dtype, &written.shape[..]));
    let header = Part::bytes(safetensors_header(tensors, metadata));
    std::iter::once(header).chain(written.into_iter().map(|written| written.part)).collect()
}
