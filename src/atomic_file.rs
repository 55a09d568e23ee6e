//! A file that appears whole or not at all: written beside its final path under a recognisable
//! name, synced, renamed. Not here: what is written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// How unfinished files end: `.NAME.RANDOM.twn-partial` beside the output. They are removed on
/// every error and on Ctrl-C; after a kill, a power cut, or an input that was cut short under its
/// mapping they stay, and can be deleted.
pub const PARTIAL_SUFFIX: &str = ".twn-partial";

/// An output that is not published yet. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    temporary: NamedTempFile,
    path: PathBuf,
    overwrite: bool,
}

impl AtomicFile {
    /// Refuses an existing output unless `overwrite`; then opens the temporary file, with the
    /// permissions that the umask gives.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::Request(format!("{}: the output needs a file name", path.display())))?;
        match std::fs::metadata(path) {
            Ok(kind) if !kind.is_file() => {
                let source = io::Error::other("it exists and is not a regular file");
                return Err(Error::Io { path: path.to_path_buf(), action: "write", source });
            }
            Ok(_) if !overwrite => {
                return Err(Error::OutputExists { path: path.to_path_buf() });
            }
            _ => {}
        }
        let mut builder = tempfile::Builder::new();
        // File names have 255 bytes at most; the suffix and the random part need some of them.
        let name: String = name.to_string_lossy().chars().take(50).collect();
        let prefix = format!(".{name}.");
        builder.prefix(&prefix).suffix(PARTIAL_SUFFIX);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temporary =
            builder.tempfile_in(directory(path)).map_err(Error::io(path, "create a temporary file beside"))?;
        Ok(Self { temporary, path: path.to_path_buf(), overwrite })
    }

    /// The final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is until it is published.
    pub fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Drops what is behind `length`.
    pub fn truncate(&self, length: u64) -> Result<()> {
        self.temporary.as_file().set_len(length).map_err(Error::io(&self.path, "write"))
    }

    /// Writes at that offset; any thread may, in any order.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        write_all_at(self.temporary.as_file(), bytes, offset).map_err(Error::io(&self.path, "write"))
    }

    /// Waits until everything written is on disk.
    pub fn sync(&self) -> Result<()> {
        self.temporary.as_file().sync_all().map_err(Error::io(&self.path, "sync to disk"))
    }

    /// Syncs, then gives the file its name: from here on it is there, and whole.
    pub fn publish(self) -> Result<()> {
        self.sync()?;
        let Self { temporary, path, overwrite } = self;
        if overwrite {
            temporary.persist(&path).map_err(|e| Error::io(&path, "rename the finished file to")(e.error))?;
        } else {
            temporary.persist_noclobber(&path).map_err(|e| match e.error.kind() {
                io::ErrorKind::AlreadyExists => Error::OutputExists { path: path.clone() },
                _ => Error::io(&path, "rename the finished file to")(e.error),
            })?;
        }
        // The name itself: a directory that cannot be synced (some network file systems) is no reason to fail.
        if let Ok(directory) = File::open(directory(&path)) {
            let _ = directory.sync_all();
        }
        Ok(())
    }
}

/// Writes a small file that appears whole or not at all.
///
/// # Errors
/// An output that exists without `overwrite`, or cannot be written.
pub fn write_atomically(path: impl AsRef<Path>, overwrite: bool, bytes: &[u8]) -> Result<()> {
    let file = AtomicFile::create(path.as_ref(), overwrite)?;
    file.write_at(bytes, 0)?;
    file.publish()
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
