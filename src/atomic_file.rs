//! A file that appears whole or not at all: written beside its final path under a recognisable
//! name, synced, renamed. Not here: what is written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

#[cfg(feature = "train")]
pub(crate) use crate::write_behind::HELD;
use crate::write_behind::{WriteBehind, write_all_at};
use crate::{Error, Result};

/// How unfinished files end: `.NAME.RANDOM.twn-partial` beside the output. They are removed on
/// every error and on Ctrl-C; after a kill, a power cut, or an input that was cut short under its
/// mapping they stay, and can be deleted. Those of runs that may be resumed have no random part, and stay
/// until such a run has come to its end.
pub const PARTIAL_SUFFIX: &str = ".twn-partial";

/// An output that is not published yet. Dropping it removes it, unless it is kept to be resumed.
#[derive(Debug)]
pub struct AtomicFile {
    /// Not for files that are kept: what is said to be in those is in them.
    behind: Option<WriteBehind>,
    temporary: NamedTempFile,
    path: PathBuf,
    overwrite: bool,
    kept: bool,
}

/// The name of an output as it begins the names of what lies beside it.
fn stem(path: &Path) -> Result<String> {
    let name = path.file_name();
    let name = name.ok_or_else(|| Error::Request(format!("{}: the output needs a file name", path.display())))?;
    let name = name.to_string_lossy();
    let Some((cut, _)) = name.char_indices().nth(50) else { return Ok(format!(".{name}")) };
    // File names have 255 bytes at most; a suffix and a random part need some of them.
    Ok(format!(".{}-{:08x}", &name[..cut], crc32fast::hash(name.as_bytes())))
}

/// What belongs to an output and lies beside it: `.NAME` and the suffix.
pub(crate) fn beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    Ok(directory(path).join(stem(path)? + suffix))
}

/// Refuses an output that exists, unless `overwrite`, or that could not be written.
pub(crate) fn refuse_existing(path: &Path, overwrite: bool) -> Result<()> {
    let wrong = |source| Error::Io { path: path.to_path_buf(), action: "write", source };
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(wrong(io::Error::other("its name ends as a directory's; give the name of a file")));
    }
    if !directory(path).is_dir() {
        let directory = directory(path).display();
        return Err(wrong(io::Error::other(format!("there is no directory {directory}; make it first"))));
    }
    // A link to what the shell has opened: replacing it would take `/dev/stdout` from everybody.
    if ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|special| path.starts_with(special)) {
        return Err(wrong(io::Error::other(
            "that is no place for a file, and outputs are no streams; give a file's name",
        )));
    }
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => Err(wrong(error)),
        Ok(kind) if !kind.is_file() => Err(wrong(io::Error::other("it exists and is not a regular file"))),
        Ok(_) if !overwrite => Err(Error::OutputExists { path: path.to_path_buf() }),
        _ => Ok(()),
    }
}

impl AtomicFile {
    /// Refuses an existing output unless `overwrite`; then opens the temporary file, with the
    /// permissions that the umask gives.
    ///
    /// # Errors
    /// An output that exists, or a directory that cannot be written to.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        let prefix = stem(path)? + ".";
        refuse_existing(path, overwrite)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(PARTIAL_SUFFIX);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // Without the random name, which says nothing to anybody.
        let plain = |error: io::Error| error.raw_os_error().map_or(error, io::Error::from_raw_os_error);
        let temporary = builder.tempfile_in(directory(path)).map_err(plain);
        let temporary = temporary.map_err(Error::io(path, "create a temporary file beside"))?;
        let behind = WriteBehind::new(temporary.as_file(), temporary.path());
        let behind = Some(behind.map_err(Error::io(path, "write"))?);
        Ok(Self { behind, temporary, path: path.to_path_buf(), overwrite, kept: false })
    }

    /// The same with what is there of it, under a name without a random part: `.NAME.twn-partial`. Until it is
    /// published it stays, whatever happens.
    pub(crate) fn resume(path: &Path, overwrite: bool) -> Result<Self> {
        let partial = beside(path, PARTIAL_SUFFIX)?;
        refuse_existing(path, overwrite)?;
        let open = || {
            let mut temporary = NamedTempFile::from_parts(open_kept(&partial)?, TempPath::try_from_path(&partial)?);
            temporary.disable_cleanup(true);
            Ok(temporary)
        };
        let temporary = open().map_err(Error::io(&partial, "open the partial output"))?;
        Ok(Self { behind: None, temporary, path: path.to_path_buf(), overwrite, kept: true })
    }

    /// Whether it may hold what an earlier run wrote.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Cuts it off, or fills it up with zeros.
    pub(crate) fn set_len(&self, length: u64) -> Result<()> {
        self.flush()?;
        self.temporary.as_file().set_len(length).map_err(Error::io(&self.path, "write"))
    }

    /// The CRC-32 of so many bytes at that offset; `None` where the file ends before.
    pub(crate) fn crc32_at(&self, mut offset: u64, length: u64) -> Result<Option<u32>> {
        let (mut hasher, mut left) = (crc32fast::Hasher::new(), length);
        let mut bytes = vec![0; length.min(1 << 20) as usize];
        while left > 0 {
            let part = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = read_at(self.temporary.as_file(), &mut bytes[..part], offset);
            let read = read.map_err(Error::io(&self.path, "read the partial output of"))?;
            if read == 0 {
                return Ok(None);
            }
            hasher.update(&bytes[..read]);
            offset += read as u64;
            left -= read as u64;
        }
        Ok(Some(hasher.finalize()))
    }

    /// The final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is until it is published.
    pub(crate) fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes at that offset, now or at some time before [`AtomicFile::publish`] is done; any thread may, in any order,
    /// but what is written to the same place twice has to be written in order.
    ///
    /// # Errors
    /// A disk that is full, or broken: of this write or of one before.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match &self.behind {
            Some(behind) => behind.write_at(bytes, offset),
            None => write_all_at(self.temporary.as_file(), bytes, offset),
        }
        .map_err(Error::io(&self.path, "write"))
    }

    /// Says that nobody writes these bytes, which are to be zeros; behind all that was left so before.
    pub(crate) fn leave(&self, range: std::ops::Range<u64>) {
        if let Some(behind) = &self.behind {
            behind.leave(range);
        }
    }

    /// Waits until everything is in the file, for whoever reads it there.
    pub(crate) fn flush(&self) -> Result<()> {
        self.behind.as_ref().map_or(Ok(()), WriteBehind::flush).map_err(Error::io(&self.path, "write"))
    }

    /// Waits until everything written is on disk.
    ///
    /// # Errors
    /// A disk that is full, or broken.
    pub fn sync(&self) -> Result<()> {
        self.flush()?;
        self.temporary.as_file().sync_all().map_err(Error::io(&self.path, "sync to disk"))
    }

    /// Syncs, then gives the file its name: from here on it is there, and whole.
    ///
    /// # Errors
    /// A disk that is full, or a name that was taken meanwhile.
    pub fn publish(self) -> Result<()> {
        self.sync()?;
        let Self { behind, temporary, path, overwrite, .. } = self;
        drop(behind);
        // What is kept stays where this fails.
        let published = if overwrite { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        published.map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists if !overwrite => Error::OutputExists { path: path.clone() },
            _ => Error::io(&path, "give the finished file its name")(e.error),
        })?;
        // The name itself: a directory that cannot be synced (some network file systems) is no reason to fail.
        if let Ok(directory) = File::open(directory(&path)) {
            let _ = directory.sync_all();
        }
        Ok(())
    }
}

/// Opens what an earlier run may have left under a name that anybody can foresee: a file of its own, or none yet.
pub(crate) fn open_kept(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let foreign = || io::Error::other("it is not a regular file, so no run of ours has left it; remove it");
    if std::fs::symlink_metadata(path).is_ok_and(|kind| !kind.is_file()) {
        return Err(foreign());
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(foreign()) }
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
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, offset)
}
