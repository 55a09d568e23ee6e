//! Checkpoints of several files of `torch.save`: an index, or a directory. Not here: safetensors, which a directory
//! is opened as where it holds any.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::super::{beginning, foreign, zip};
use super::{FORMAT, add};
use crate::error::CheckpointProblem as Problem;
use crate::source::{CheckpointBuilder, ShardIndex, missing_shard};
use crate::{Checkpoint, Error, MappedFile, Result};

const INDEX: &str = ".bin.index.json";

/// Opens an index over files of `torch.save`, or a directory that holds such files and no safetensors; `None` for
/// anything else.
pub fn open(path: &Path) -> Result<Option<Checkpoint>> {
    if name(path).ends_with(INDEX) && path.is_file() {
        return indexed(path, path).map(Some);
    }
    if !path.is_dir() {
        return Ok(None);
    }
    let io = |source| Error::Io { path: path.to_path_buf(), action: "list", source };
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        // macOS lays `._NAME` beside NAME.
        if !name(&file).starts_with('.') {
            files.insert(file);
        }
    }
    let ending = |suffix: &str| files.iter().filter(|file| name(file).ends_with(suffix)).cloned().collect::<Vec<_>>();
    let mut bins = ending(".bin");
    bins.retain(|file| name(file).starts_with("pytorch_model"));
    let indexes = ending(INDEX);
    if bins.is_empty() && indexes.is_empty() {
        return Ok(None);
    }
    if !ending(".safetensors").is_empty() || !ending(".safetensors.index.json").is_empty() {
        let mut builder = CheckpointBuilder::from_checkpoint(Checkpoint::open(path)?);
        builder.warn("holds safetensors and PyTorch files; the safetensors are taken".to_owned());
        return builder.finish().map(Some);
    }
    match indexes.as_slice() {
        [] => match missing_shard(&bins) {
            Some(message) => Err(Error::Checkpoint { path: path.to_path_buf(), problem: Problem::Directory(message) }),
            None => shards(CheckpointBuilder::new(path), path, &bins, None).map(Some),
        },
        [index] => indexed(path, index).map(Some),
        [first, second, ..] => {
            let (first, second) = (name(first), name(second));
            let message = format!("holds several indexes (`{first}`, `{second}`); give the one you mean");
            Err(Error::Checkpoint { path: path.to_path_buf(), problem: Problem::Directory(message) })
        }
    }
}

fn indexed(path: &Path, index: &Path) -> Result<Checkpoint> {
    let ShardIndex { file, files, weight_map } = ShardIndex::open(index)?;
    let mut builder = CheckpointBuilder::new(path);
    builder.depends_on(file);
    shards(builder, path, &files, Some(&weight_map))
}

/// The tensors of all these files; where there is an index, of each the one that it takes.
fn shards(
    mut builder: CheckpointBuilder,
    path: &Path,
    files: &[PathBuf],
    weight_map: Option<&BTreeMap<String, String>>,
) -> Result<Checkpoint> {
    for file in files {
        let shard = name(file);
        let mapped = MappedFile::open(file)?;
        if let Some(message) = super::refusal(&beginning(&mapped)) {
            return Err(foreign(file, FORMAT, message));
        }
        let entries = mapped.glance(zip::entries).map_err(|message| foreign(file, FORMAT, message))?;
        if !super::is(&entries) {
            return Err(foreign(file, FORMAT, "it has no data.pkl, expected a file of torch.save".to_owned()));
        }
        add(&mut builder, mapped, &entries, |builder, tensor| match weight_map.map(|map| map.get(tensor)) {
            Some(Some(owner)) if *owner != shard => {
                builder.warn(format!("tensor `{tensor}` in `{shard}` is ignored: the index takes it from `{owner}`"));
                false
            }
            Some(None) => {
                builder.warn(format!("tensor `{tensor}` in `{shard}` is not in the index; taken all the same"));
                true
            }
            _ => true,
        })?;
    }
    let checkpoint = builder.finish()?;
    let present: BTreeSet<&str> = checkpoint.tensors().map(|tensor| tensor.name).collect();
    let missing = weight_map.into_iter().flatten().find(|(tensor, _)| !present.contains(tensor.as_str()));
    if let Some((tensor, shard)) = missing {
        let problem = Problem::MissingTensor { tensor: tensor.clone(), shard: shard.clone() };
        return Err(Error::Checkpoint { path: path.to_path_buf(), problem });
    }
    Ok(checkpoint)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
