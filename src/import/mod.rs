//! Checkpoints in any format that is read → a [`Checkpoint`], one format per file in this module, on the crate's
//! public interface alone. Floats are mapped where they lie; weights that are ternary already keep their codes
//! ([`TernaryLayout`](crate::source::TernaryLayout)). Not here: safetensors ([`crate::source`]), writing any of these
//! formats ([`crate::export`]).

mod bitnet;
mod copies;
mod gguf;
mod npz;
mod onnx;
mod pickle;
mod pytorch;
mod zip;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::CheckpointProblem;
use crate::source::{NpyHeader, PACKED_KEY, stands_instead};
use crate::{Checkpoint, Error, MappedFile, Result};

/// What the formats are told apart by, read by itself: their readers have the file read in the pieces that suit them.
fn beginning(file: &MappedFile) -> Cow<'_, [u8]> {
    let range = 0..file.len().min(512);
    file.read_apart(range.clone()).map_or(Cow::Borrowed(&file[range]), Cow::Owned)
}

/// Opens a checkpoint, whatever it is: by its first bytes, and by its name where a format has no magic number.
///
/// # Errors
/// A file that cannot be read, or that is not what it claims to be.
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
    let path = path.as_ref();
    let checkpoint = recognised(path)?;
    // What is packed could not be read.
    if checkpoint.by_name("__metadata__").is_some() {
        let message = "tensor `__metadata__`: that name means something else in .safetensors and .twn files; rename it";
        return Err(foreign(path, "checkpoint", message.to_owned()));
    }
    Ok(checkpoint)
}

/// By what it begins with, or by its name.
fn recognised(path: &Path) -> Result<Checkpoint> {
    if let Some(checkpoint) = pytorch::open_shards(path)? {
        return bitnet::recognise(checkpoint);
    }
    if path.is_dir()
        && let Some(only) = only_file(path)?
    {
        return recognised(&only);
    }
    if path.is_dir() || path.extension().is_some_and(|extension| extension == "json") {
        return plain(Checkpoint::open(path)?);
    }
    let file = MappedFile::open(path)?;
    let begins = &*beginning(&file);
    if let Some(problem) = stands_instead(begins) {
        return Err(Error::Checkpoint { path: path.to_path_buf(), problem });
    }
    if begins.starts_with(&crate::gguf::MAGIC) {
        return gguf::open(path, file);
    }
    if zip::is_zip(begins) {
        return open_zip(path, file);
    }
    if NpyHeader::is_npy(begins) {
        return npz::open_npy(path, file);
    }
    // Protobuf has no magic number.
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")) {
        return onnx::open(path, &file);
    }
    if begins.starts_with(b"\x89TWN") {
        let message = "it is a .twn file, packed already; give the checkpoint it was made from, or unpack it first (twn-pack unpack)";
        return Err(foreign(path, "checkpoint", message.to_owned()));
    }
    if let Some(message) = pytorch::refusal(begins) {
        return Err(foreign(path, "PyTorch", message));
    }
    refuse_by_ending(path, begins, file.len())?;
    plain(Checkpoint::open(path)?)
}

/// What is called like another format's file, and is neither that nor safetensors, is no safetensors file to its owner.
fn refuse_by_ending(path: &Path, begins: &[u8], length: usize) -> Result<()> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let (format, expected) = match &*ending {
        "gguf" => ("GGUF", "`GGUF`"),
        "pt" | "pth" | "bin" => ("PyTorch", "`PK`, as a zip file does"),
        "npz" => ("numpy", "`PK`, as a zip file does"),
        "npy" => ("numpy", "0x93 and `NUMPY`"),
        _ => return Ok(()),
    };
    if begins.get(8) == Some(&b'{') {
        return Ok(());
    }
    let found = &begins[..begins.len().min(4)];
    let message = format!(
        "it has {length} bytes and begins with {found:02x?}, expected {expected}; was it cut off, or is it of another format?"
    );
    Err(foreign(path, format, message))
}

/// How checkpoints of the other formats are called.
const ENDINGS: [&str; 7] = ["gguf", "onnx", "pt", "pth", "bin", "npz", "npy"];

/// The one checkpoint of a directory without safetensors: a file of another format, or the first of several of GGUF.
///
/// # Errors
/// Several of them.
fn only_file(path: &Path) -> Result<Option<PathBuf>> {
    let io = |source| Error::Io { path: path.to_path_buf(), action: "list", source };
    let (mut found, mut safetensors) = (BTreeSet::new(), false);
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let ending = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with('.') || !file.is_file() {
            continue;
        }
        safetensors |= ending == "safetensors" || name.ends_with(".safetensors.index.json");
        if ENDINGS.contains(&&*ending) && (!name.contains("-of-") || name.contains("-00001-of-")) {
            found.insert(file);
        }
    }
    let mut names = found.iter().map(|file| file.file_name().unwrap_or_default().to_string_lossy());
    match (safetensors, names.next(), names.next()) {
        (false, Some(first), Some(second)) => {
            let message = format!("holds several checkpoints (`{first}`, `{second}`); give the file that you mean");
            Err(Error::Checkpoint { path: path.to_path_buf(), problem: CheckpointProblem::Directory(message) })
        }
        (false, Some(_), None) => Ok(found.pop_first()),
        _ => Ok(None),
    }
}

/// Safetensors: floats, or BitNet's weights; no export of ours, whose codes are no checkpoint.
fn plain(checkpoint: Checkpoint) -> Result<Checkpoint> {
    if checkpoint.metadata().contains_key(PACKED_KEY) {
        let message =
            "packed weights, exported from a .twn file: expected floats; give that file, or what it unpacks to";
        return Err(foreign(checkpoint.path(), "safetensors checkpoint", message.to_owned()));
    }
    bitnet::recognise(checkpoint)
}

/// A file of `torch.save`, or arrays of numpy.
fn open_zip(path: &Path, file: MappedFile) -> Result<Checkpoint> {
    let entries = file.glance(zip::entries).map_err(|message| foreign(path, "PyTorch or numpy", message))?;
    if pytorch::is(&entries) {
        return bitnet::recognise(pytorch::open(path, file, &entries)?);
    }
    if npz::is(&entries) {
        return npz::open(path, file, &entries);
    }
    let first = entries.first().map_or("none".to_owned(), |entry| format!("`{}`", zip::shown(&entry.name)));
    let message = format!(
        "a zip file of {} entries (the first: {first}), expected data.pkl of torch.save, or .npy files of numpy.savez; \
         unpack it and give the checkpoint that is in it",
        entries.len()
    );
    Err(foreign(path, "PyTorch or numpy", message))
}

/// What is left out: how many, and the names of some.
#[derive(Default)]
struct Names {
    count: usize,
    first: Vec<String>,
}

impl Names {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.first.len() < 4 {
            let name =
                if name.is_empty() { "one without a name".to_owned() } else { format!("`{}`", zip::shown(name)) };
            self.first.push(name);
        }
    }

    fn examples(&self) -> String {
        format!("{}{}", self.first.join(", "), if self.count > self.first.len() { ", …" } else { "" })
    }
}

/// A file that is not what its format asks for.
fn foreign(path: &Path, format: &'static str, message: String) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), problem: CheckpointProblem::Foreign { format, message } }
}
