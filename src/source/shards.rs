//! Which safetensors files make up a checkpoint: a path, a directory, or a shard index.
//! Not here: what is in the files ([`super::header`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::file_name;
use super::header::json_problem;

use crate::error::CheckpointProblem as Problem;
use crate::mapped::MappedFile;
use crate::strict_json::{UniqueMap, object};
use crate::{Error, Result, limits};

/// The files of a checkpoint, sorted by name, and what the index says of them.
#[derive(Debug)]
pub(super) struct Shards {
    pub files: Vec<PathBuf>,
    /// Tensor → file name; `None` without an index.
    pub weight_map: Option<BTreeMap<String, String>>,
    pub index: Option<MappedFile>,
    /// Safetensors files of the directory that its index does not name.
    pub left_out: Vec<String>,
}

pub(super) fn find(path: &Path) -> Result<Shards> {
    let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    if kind.is_dir() {
        in_directory(path)
    } else if path.extension().is_some_and(|ext| ext == "json") {
        from_index(path)
    } else {
        Ok(Shards { files: vec![path.to_path_buf()], weight_map: None, index: None, left_out: Vec::new() })
    }
}

/// The one index of a directory, or every safetensors file in it.
fn in_directory(path: &Path) -> Result<Shards> {
    let problem = |text: String| Error::checkpoint(path)(Problem::Directory(text));
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path, "list"))? {
        let entry = entry.map_err(Error::io(path, "list"))?;
        names.insert(entry.path());
    }
    let ending = |suffix: &'static str| {
        names
            .iter()
            .filter(move |p| file_name(p).ends_with(suffix) && !file_name(p).starts_with('.'))
            .cloned()
            .collect::<Vec<_>>()
    };
    let indexes = ending(".safetensors.index.json");
    match indexes.as_slice() {
        [] => {}
        [index] => {
            let mut shards = from_index(index)?;
            let others = ending(".safetensors").into_iter().filter(|file| !shards.files.contains(file));
            shards.left_out = others.map(|file| file_name(&file)).collect();
            return Ok(shards);
        }
        [first, second, ..] => {
            let (first, second) = (file_name(first), file_name(second));
            return Err(problem(format!("holds several indexes (`{first}`, `{second}`); give the one you mean")));
        }
    }
    let files = ending(".safetensors");
    if files.is_empty() {
        return Err(problem(
            "holds no .safetensors file, nor one .gguf, .onnx, .pt, .pth, .bin, .npz or .npy; give the file or directory \
             that is the checkpoint".to_owned(),
        ));
    }
    match missing_shard(&files) {
        Some(message) => Err(problem(message)),
        None => Ok(Shards { files, weight_map: None, index: None, left_out: Vec::new() }),
    }
}

/// Of files that are called as parts of a whole, `NAME-00002-of-00003.EXTENSION`, what is said of the first part that is
/// not there.
pub fn missing_shard(files: &[PathBuf]) -> Option<String> {
    let names: BTreeSet<String> = files.iter().map(|file| file_name(file)).collect();
    let numeric = |text: &str| !text.is_empty() && text.len() < 8 && text.bytes().all(|b| b.is_ascii_digit());
    // Of each whole the first file that is there, and how many parts it should have.
    let mut wholes = BTreeMap::new();
    for name in &names {
        let Some((stem, rest)) = name.rsplit_once("-of-") else { continue };
        let (Some((stem, number)), Some(count)) = (stem.rsplit_once('-'), rest.split('.').next()) else { continue };
        if let (true, true, Ok(count)) = (numeric(number), numeric(count), count.parse::<usize>()) {
            wholes.entry((stem, number.len(), rest)).or_insert((name, count));
        }
    }
    wholes.into_iter().find_map(|((stem, width, rest), (name, count))| {
        let mut parts = (1..=count).map(|part| format!("{stem}-{part:0width$}-of-{rest}"));
        let part = parts.find(|part| !names.contains(part))?;
        Some(format!("holds `{name}`, but not `{part}`; get that too, or give the files that are there by themselves"))
    })
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap,
}

fn from_index(path: &Path) -> Result<Shards> {
    let ShardIndex { file, files, weight_map } = ShardIndex::open(path)?;
    Ok(Shards { files, weight_map: Some(weight_map), index: Some(file), left_out: Vec::new() })
}

/// What an index over shards says, `model.safetensors.index.json` or another in that form.
#[derive(Debug)]
pub struct ShardIndex {
    /// The index itself.
    pub file: MappedFile,
    /// The shards, sorted by name. They are beside the index.
    pub files: Vec<PathBuf>,
    /// Tensor → file name.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads and checks an index.
    ///
    /// # Errors
    /// An index that cannot be read or is none, that names no tensor, or names a shard that is no plain file name or
    /// is not there.
    pub fn open(path: &Path) -> Result<Self> {
        let problem = Error::checkpoint(path);
        let file = MappedFile::open(path)?;
        let length = file.len() as u64;
        if length > limits::SHARD_INDEX_BYTES {
            let limit = limits::SHARD_INDEX_BYTES;
            return Err(problem(Problem::Index(format!("it has {length} bytes, expected at most {limit}"))));
        }
        let mut json = serde_json::Deserializer::from_slice(&file);
        let index: Result<RawIndex, _> = object(&mut json).and_then(|index| json.end().map(|()| index));
        let index = index.map_err(|e| match json_problem(&e) {
            Problem::Header(text) => problem(Problem::Index(text)),
            other => problem(other),
        })?;
        let weight_map = index.weight_map.0;
        if weight_map.is_empty() {
            return Err(problem(Problem::Index("weight_map names no tensor".to_owned())));
        }
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let mut files = Vec::new();
        for shard in shards {
            if !is_plain_file_name(shard) {
                return Err(problem(Problem::ShardName(shard.clone())));
            }
            let file = path.with_file_name(shard);
            if !file.exists() {
                return Err(problem(Problem::MissingShard { shard: shard.clone() }));
            }
            files.push(file);
        }
        Ok(Self { file, files, weight_map })
    }
}

/// Exactly one normal path component, on any operating system.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['/', '\\', ':', '\0'])
}
