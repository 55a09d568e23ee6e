//! The files beside an ONNX file that hold the data of its large tensors. Not here: what the data are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use super::initializer::{Data, Initializer};
use crate::{Error, MappedFile};

/// The files beside a model, each mapped once.
#[derive(Debug)]
pub struct Externals {
    directory: PathBuf,
    files: BTreeMap<String, MappedFile>,
}

impl Externals {
    /// Of the model at that path.
    pub fn of(model: &Path) -> Self {
        Self { directory: model.parent().unwrap_or(Path::new("")).to_path_buf(), files: BTreeMap::new() }
    }

    /// Where the bytes of an initializer with external data lie; `None` for others.
    ///
    /// # Errors
    /// A location outside the model's directory, a file that is not there, or bytes that are not.
    pub fn find(
        &mut self,
        initializer: &Initializer<'_>,
        bytes: Option<u64>,
    ) -> Result<Option<(MappedFile, Range<usize>)>, String> {
        let Data::External { location, offset, length } = &initializer.data else { return Ok(None) };
        let name = initializer.name;
        let plain =
            Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || location.contains('\\') || !plain {
            return Err(format!(
                "tensor `{name}`: its data are in {location:?}, should be in a file in the model's own directory; `..` \
                 and absolute paths are refused"
            ));
        }
        if !self.files.contains_key(*location) {
            let file = MappedFile::open(self.directory.join(location)).map_err(|error| match error {
                Error::Io { source, .. } => {
                    format!("tensor `{name}`: its data are in {location:?}, which cannot be opened ({source}); put it beside the model")
                }
                other => other.to_string(),
            })?;
            self.files.insert((*location).to_owned(), file);
        }
        let file = &self.files[*location];
        let (offset, found) = (*offset, file.len() as u64);
        let length = length.or(bytes).unwrap_or_else(|| found.saturating_sub(offset));
        match offset.checked_add(length).filter(|&end| end <= found) {
            Some(end) => Ok(Some((file.clone(), offset as usize..end as usize))),
            None => Err(format!(
                "tensor `{name}`: its {length} bytes at {offset} of {location:?} lie outside the {found} that are there; \
                 was the file cut off?"
            )),
        }
    }
}
