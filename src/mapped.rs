//! Files, opened and memory-mapped. Not here: what is in them.

mod ahead;

use std::fs::{File, Metadata};
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
#[cfg(target_os = "linux")]
use memmap2::UncheckedAdvice;

pub use self::ahead::ReadAhead;
use crate::{Error, Result};

/// Opens a file for reading and refuses what is not a regular file (a pipe would wait for ever).
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !kind.is_file() {
        return Err(Error::Io {
            path: path.to_path_buf(),
            action: "open",
            source: std::io::Error::other("not a regular file"),
        });
    }
    File::open(path).map_err(Error::io(path, "open"))
}

/// Maps a file for reading.
pub(crate) fn map(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: a mapping is only sound while nobody shortens or rewrites the file; that is the
    // documented condition of `Checkpoint` and `Container`. Bytes that change under us can make
    // results wrong, but every value of every byte is handled: no length, offset or code is
    // trusted that was not copied out of the mapping and checked.
    unsafe { Mmap::map(file) }.map_err(Error::io(path, "map into memory"))
}

/// Maps a file that is gone through from its beginning to its end.
fn map_in_order(file: &File, path: &Path) -> Result<Mmap> {
    let map = map(file, path)?;
    // Where Linux would read 128 KiB from the disk at a time, it reads two pages of 2 MiB with this.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Bytes of the smallest pages that Linux has.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// Bytes of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Whether the page cache has all pages of a part of a mapping. Where the system does not tell, it has: elsewhere than on
/// Linux, and of files that this user may not write to.
fn is_cached(part: &[u8]) -> bool {
    #[cfg(target_os = "linux")]
    return cached_pages(part) == (part.as_ptr().addr() % PAGE + part.len()).div_ceil(PAGE);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = part;
        true
    }
}

/// How many pages of a part of a mapping the page cache has; all, where the system does not tell.
#[cfg(target_os = "linux")]
fn cached_pages(part: &[u8]) -> usize {
    let before = part.as_ptr().addr() % PAGE;
    let mut pages = vec![1; (before + part.len()).div_ceil(PAGE)];
    let start = part.as_ptr().wrapping_sub(before).cast_mut().cast();
    // SAFETY: the pages of `part` are mapped, and there is a byte for each of them, as PAGE is the smallest size that they
    // can have; an address that does not begin a page is refused.
    let told = unsafe { libc::mincore(start, before + part.len(), pages.as_mut_ptr()) };
    if told != 0 { pages.len() } else { pages.iter().filter(|&page| page & 1 == 1).count() }
}

/// Tells the system what becomes of those bytes of a file, whole pages; of all from there on, where there are none.
#[cfg(target_os = "linux")]
fn advise(file: &File, range: Range<usize>, advice: libc::c_int) {
    let (start, end) = (range.start / PAGE * PAGE, range.end.next_multiple_of(PAGE));
    let fd = std::os::fd::AsRawFd::as_raw_fd(file);
    // SAFETY: a file that is open; advice changes nothing of what is read.
    let _ = unsafe { libc::posix_fadvise(fd, start as libc::off_t, (end - start) as libc::off_t, advice) };
}

/// Asks for large pages for memory that nobody has written to yet.
pub(crate) fn in_large_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        let range = memory.as_mut_ptr_range();
        let start = range.start.addr().next_multiple_of(PAGE);
        let length = range.end.addr().saturating_sub(start) / PAGE * PAGE;
        // SAFETY: whole pages of memory that is the caller's; what they hold stays as it is.
        let _ = unsafe { libc::madvise(range.start.with_addr(start).cast(), length, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// A file, memory-mapped; clones share the mapping. It must not be written to while it is open: a file
/// that is cut short under a mapping ends the process with SIGBUS.
#[derive(Debug, Clone)]
pub struct MappedFile(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Made by this process: nobody else can reach it.
    temporary: bool,
}

impl MappedFile {
    /// Maps a regular file.
    ///
    /// # Errors
    /// A file that cannot be opened, or is not a regular one.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::of(open_regular(path.as_ref())?, path.as_ref(), false)
    }

    /// Maps a file that has no name of its own, made while reading the one at `path`.
    ///
    /// # Errors
    /// A file that cannot be mapped.
    pub fn of_temporary(file: File, path: impl AsRef<Path>) -> Result<Self> {
        Self::of(file, path.as_ref(), true)
    }

    /// Maps a regular file that is open already, and was by that path.
    pub(crate) fn of_open(file: File, path: &Path) -> Result<Self> {
        Self::of(file, path, false)
    }

    fn of(file: File, path: &Path, temporary: bool) -> Result<Self> {
        let metadata = file.metadata().map_err(Error::io(path, "read the size of"))?;
        let map = map_in_order(&file, path)?;
        Ok(Self(Arc::new(Opened { path: path.to_path_buf(), map, metadata, temporary })))
    }

    /// Unmaps the pages of those bytes, where the system can; whoever looks at them has them mapped again.
    pub(crate) fn unmap(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        // SAFETY: this is a shared mapping of a file, which is not written to through it: nothing is thrown away.
        let _ = unsafe { self.0.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    /// A copy of a small part of the file if the disk has to be asked for it: without what lies around, which comes
    /// with what is looked at in the mapping (4 MiB), and so that the pages around come in one piece later. `None`
    /// where it is in memory already, and where the system cannot say so or cannot read it.
    ///
    /// # Panics
    /// When it is not a part of the file.
    pub fn read_apart(&self, range: Range<usize>) -> Option<Vec<u8>> {
        let mapped = &self[range.clone()];
        if is_cached(mapped) { None } else { self.read_without_trace(range) }
    }

    /// Runs `look` on the file's bytes, of which it looks at a few here and there. Where the file is on the disk, as
    /// a byte of each 2 MiB says, no more is read around each of them than the system does by itself, and if that was little of
    /// the file, the page cache lets go of it, so that the rest comes in large pieces later.
    pub fn glance<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        #[cfg(target_os = "linux")]
        if self.chunks(LARGE_PAGE).all(|chunk| !is_cached(&chunk[..1]))
            && let Some(file) = self.open_again()
            && let Ok(map) = map(&file, self.path())
            && map.len() == self.len()
        {
            let found = look(&map);
            drop(map);
            let cached: usize = self.chunks(64 << 20).map(cached_pages).sum();
            if cached * PAGE < self.len() / 8 {
                advise(&file, 0..self.len(), libc::POSIX_FADV_DONTNEED);
            }
            return found;
        }
        look(self)
    }

    /// The same file, if it is by that path still, and nobody wrote to it.
    #[cfg(target_os = "linux")]
    fn open_again(&self) -> Option<File> {
        use std::os::unix::fs::MetadataExt;
        let file = open_regular(self.path()).ok()?;
        let what = |of: &Metadata| (of.dev(), of.ino(), of.len(), of.mtime(), of.mtime_nsec());
        (what(&self.0.metadata) == what(&file.metadata().ok()?)).then_some(file)
    }

    #[cfg(target_os = "linux")]
    fn read_without_trace(&self, range: Range<usize>) -> Option<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let file = self.open_again()?;
        let mut bytes = vec![0; range.len()];
        advise(&file, 0..0, libc::POSIX_FADV_RANDOM);
        file.read_exact_at(&mut bytes, range.start as u64).ok()?;
        advise(&file, range, libc::POSIX_FADV_DONTNEED);
        Some(bytes)
    }

    #[cfg(not(target_os = "linux"))]
    fn read_without_trace(&self, _: Range<usize>) -> Option<Vec<u8>> {
        None
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether it has no name of its own.
    pub fn is_temporary(&self) -> bool {
        self.0.temporary
    }

    /// Notices a file that was written to since it was opened.
    ///
    /// # Errors
    /// [`Error::InputChanged`] when its length or modification time is another one.
    pub fn check_unchanged(&self) -> Result<()> {
        if self.0.temporary {
            return Ok(());
        }
        let now = std::fs::metadata(self.path()).map_err(Error::io(self.path(), "look at the input again"))?;
        let changed = |what| Error::InputChanged { path: self.path().to_path_buf(), what };
        if now.len() != self.0.metadata.len() {
            return Err(changed("its length is another one"));
        }
        if now.modified().ok() != self.0.metadata.modified().ok() {
            return Err(changed("its modification time is another one"));
        }
        Ok(())
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that the page cache has let go of, where the system does that.
    fn forgotten(bytes: &[u8]) -> (tempfile::NamedTempFile, MappedFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        forget(file.as_file());
        let mapped = MappedFile::open(file.path()).unwrap();
        (file, mapped)
    }

    /// Has the page cache let go of a file, where the system does that.
    fn forget(file: &File) {
        file.sync_all().unwrap();
        #[cfg(target_os = "linux")]
        advise(file, 0..0, libc::POSIX_FADV_DONTNEED);
    }

    /// A part of what the disk has is read and nothing else; what is in memory, or is another file by now, is not.
    #[test]
    fn a_part_is_read_apart_where_the_disk_has_it() {
        let bytes: Vec<u8> = (0..1 << 20).map(|i| (i * 31 % 251) as u8).collect();
        for range in [0..1, 4095..4097, 10_000..300_000, (1 << 20) - 5..1 << 20] {
            let (file, mapped) = forgotten(&bytes);
            // A file system in memory forgets nothing.
            if !is_cached(&mapped[range.clone()]) {
                assert!(mapped.read_apart(range.clone()).unwrap() == bytes[range.clone()], "{range:?}");
                assert!(mapped.chunks(PAGE).all(|page| !is_cached(page)), "{range:?}: pages are left");
                let other = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(other.path(), vec![0; bytes.len()]).unwrap();
                other.persist(file.path()).unwrap();
                assert_eq!(mapped.read_apart(range.clone()), None, "{range:?}: of another file");
            }
            assert!(mapped[range.clone()] == bytes[range.clone()]);
            assert_eq!(mapped.read_apart(range.clone()), None, "{range:?}: in memory");
        }
    }

    /// Little that was looked at does not stay, much does, and what was in memory before stays.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_glance_leaves_nothing_behind() {
        let bytes: Vec<u8> = (0..64 << 20).map(|i| (i * 31 % 251) as u8).collect();
        let look = |file: &[u8]| [1, 5 << 20, 63 << 20].map(|at| file[at]);
        let (_file, mapped) = forgotten(&bytes);
        if !is_cached(&mapped[..1]) {
            assert_eq!(mapped.glance(look), look(&bytes));
            // Where the system reads much around, it stays.
            let cached = cached_pages(&mapped) * PAGE;
            assert!(cached == 0 || cached >= bytes.len() / 8, "{cached}");
            assert!(mapped.glance(|file| file == bytes));
            assert_eq!(cached_pages(&mapped) * PAGE, bytes.len());
        }
        assert_eq!(mapped.glance(look), look(&bytes));
        assert!(mapped[..] == bytes);
        assert_eq!(mapped.glance(look), look(&bytes));
        assert_eq!(cached_pages(&mapped) * PAGE, bytes.len());
    }

    /// What was added to a file since it was opened is nothing that may be looked at.
    #[test]
    fn a_file_that_grew_is_looked_at_as_it_was() {
        let (mut file, mapped) = forgotten(&[1; 10_000]);
        std::io::Seek::seek(file.as_file_mut(), std::io::SeekFrom::End(0)).unwrap();
        std::io::Write::write_all(file.as_file_mut(), &[2; 10_000]).unwrap();
        forget(file.as_file());
        assert_eq!(mapped.glance(<[u8]>::len), 10_000);
        forget(file.as_file());
        assert_eq!(mapped.read_apart(0..10), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_in_memory_is_known() {
        let (_file, mapped) = forgotten(&[7; 10 * PAGE]);
        if !is_cached(&mapped[..1]) {
            assert_eq!(mapped[5 * PAGE], 7);
            assert!(is_cached(&mapped[5 * PAGE..6 * PAGE]) && is_cached(&mapped[6 * PAGE - 1..6 * PAGE]));
        }
        assert!(mapped.iter().all(|&byte| byte == 7));
        assert!(is_cached(&mapped) && is_cached(&mapped[10..8 * PAGE + 1]));
    }
}
