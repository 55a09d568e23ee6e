//! Writes what many threads make of a file in whole chunks, on a thread of its own, so that none of them waits for the
//! disk: past the page cache where the system can (`O_DIRECT`: a copy less, and nothing left to sync), else as ever.
//! Not here: what the file is called, and when it is there ([`crate::atomic_file`]).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use memmap2::MmapMut;

/// Bytes of a chunk, which begins at a multiple of them.
const CHUNK: usize = 2 << 20;

/// Chunks that are being filled at the most; the one that has waited longest goes out as it is. Threads work side by
/// side, and each of a tensor's planes has codes and scales.
const OPEN: usize = 10;

/// Chunks that may wait for the disk; whoever fills one more waits as well.
const QUEUED: usize = 2;

/// Bytes that are held at the most while one thread writes a file from its beginning to its end: two chunks that are
/// being filled, those that wait, and the one that is written.
#[cfg(feature = "train")]
pub(crate) const HELD: usize = (QUEUED + 3) * CHUNK;

/// Pieces of a file on their way to it.
#[derive(Debug)]
pub(crate) struct WriteBehind {
    plain: File,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    /// Being filled, the one that has waited longest first.
    open: Vec<Chunk>,
    /// By number, what became of those that are not open.
    state: Vec<State>,
    /// What nobody writes: zeros, in order.
    gaps: Vec<Range<u64>>,
    worker: Option<Worker>,
    direct: Option<File>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum State {
    #[default]
    Untouched,
    /// Did not come here, or went out before it was full: the rest of it is written at once.
    InPart,
    /// Full, and with the worker.
    Sent,
}

#[derive(Debug)]
struct Worker {
    queue: SyncSender<Message>,
    spare: Receiver<Buffer>,
    failure: Arc<Mutex<Option<io::Error>>>,
    thread: JoinHandle<()>,
}

enum Message {
    Write(usize, Buffer),
    /// To be answered once everything before it is written.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
struct Chunk {
    number: usize,
    buffer: Buffer,
    /// What is filled, in order, no two of them touching.
    filled: Vec<Range<usize>>,
}

/// Memory of a chunk: whole pages, in one piece of the largest kind where the system has that.
#[derive(Debug)]
struct Buffer(MmapMut);

impl Buffer {
    fn new() -> io::Result<Self> {
        let memory = MmapMut::map_anon(CHUNK)?;
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self(memory))
    }
}

impl Chunk {
    /// Whether `range` is new.
    fn is_free(&self, range: &Range<usize>) -> bool {
        self.filled.iter().all(|filled| filled.end <= range.start || range.end <= filled.start)
    }

    fn fill(&mut self, range: Range<usize>) {
        let at = self.filled.partition_point(|filled| filled.start < range.start);
        self.filled.insert(at, range);
        self.filled.dedup_by(|next, before| {
            let touch = before.end == next.start;
            if touch {
                before.end = next.end;
            }
            touch
        });
    }

    /// Fills what there is of a gap in it.
    fn leave(&mut self, gap: &Range<u64>) {
        let (begin, end) = ((self.number * CHUNK) as u64, ((self.number + 1) * CHUNK) as u64);
        let (start, end) = (gap.start.clamp(begin, end) - begin, gap.end.clamp(begin, end) - begin);
        if start < end {
            let gap = start as usize..end as usize;
            self.buffer.0[gap.clone()].fill(0);
            self.fill(gap);
        }
    }

    fn is_full(&self) -> bool {
        self.filled.first() == Some(&(0..CHUNK))
    }
}

impl WriteBehind {
    /// To a file that is open, and has that path now.
    pub fn new(file: &File, path: &Path) -> io::Result<Self> {
        let table =
            Table { open: Vec::new(), state: Vec::new(), gaps: Vec::new(), worker: None, direct: direct(file, path) };
        Ok(Self { plain: file.try_clone()?, table: Mutex::new(table) })
    }

    /// Says that nobody writes these bytes, which are zeros; the places come in order.
    pub fn leave(&self, range: Range<u64>) {
        if !range.is_empty() {
            let table = &mut *lock(&self.table);
            table.open.iter_mut().for_each(|chunk| chunk.leave(&range));
            table.gaps.push(range);
        }
    }

    /// Writes at that offset, now or later.
    ///
    /// # Errors
    /// What the disk says of this or of something before.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut bytes, mut offset) = (bytes, offset);
        while !bytes.is_empty() {
            let Ok(number) = usize::try_from(offset / CHUNK as u64) else {
                return write_all_at(&self.plain, bytes, offset);
            };
            let start = (offset % CHUNK as u64) as usize;
            let (part, rest) = bytes.split_at(bytes.len().min(CHUNK - start));
            self.part(part, number, start)?;
            offset += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn part(&self, bytes: &[u8], number: usize, start: usize) -> io::Result<()> {
        let mut table = lock(&self.table);
        table.check()?;
        let range = start..start + bytes.len();
        let mut open = table.open.iter().position(|chunk| chunk.number == number);
        if let Some(again) = open.take_if(|i| !table.open[*i].is_free(&range)) {
            let chunk = table.open.remove(again);
            table.write_parts(&self.plain, &chunk)?;
        }
        let state = table.state.get(number).copied().unwrap_or_default();
        if state == State::Sent {
            // What it replaces has to be there before.
            table.flush(&self.plain)?;
        }
        // Whoever has a whole chunk needs no copy of it.
        let whole = bytes.len() == CHUNK;
        if whole {
            table.set_state(number, State::InPart);
        }
        if whole || state != State::Untouched {
            return write_all_at(&self.plain, bytes, (number * CHUNK + start) as u64);
        }
        let open = match open {
            Some(open) => open,
            None => {
                if table.open.len() == OPEN {
                    let chunk = table.open.remove(0);
                    table.write_parts(&self.plain, &chunk)?;
                }
                let chunk = table.start(number)?;
                table.open.push(chunk);
                table.open.len() - 1
            }
        };
        let chunk = &mut table.open[open];
        chunk.buffer.0[range.clone()].copy_from_slice(bytes);
        chunk.fill(range);
        if !chunk.is_full() {
            return Ok(());
        }
        let chunk = table.open.remove(open);
        table.set_state(number, State::Sent);
        table.send(&self.plain, chunk)
    }

    /// Waits until everything is in the file (which does not mean on disk).
    ///
    /// # Errors
    /// What the disk says.
    pub fn flush(&self) -> io::Result<()> {
        lock(&self.table).flush(&self.plain)
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        if let Some(Worker { queue, thread, .. }) = lock(&self.table).worker.take() {
            drop(queue);
            let _ = thread.join();
        }
    }
}

impl Table {
    /// The error that the worker met, once; later ones are all alike.
    fn check(&self) -> io::Result<()> {
        let Some(worker) = &self.worker else { return Ok(()) };
        match &*lock(&worker.failure) {
            None => Ok(()),
            // An `io::Error` cannot be cloned.
            Some(error) => Err(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)),
        }
    }

    fn start(&self, number: usize) -> io::Result<Chunk> {
        let spare = self.worker.as_ref().and_then(|worker| worker.spare.try_recv().ok());
        let mut chunk = Chunk { number, buffer: spare.map_or_else(Buffer::new, Ok)?, filled: Vec::new() };
        let (begin, end) = ((number * CHUNK) as u64, ((number + 1) * CHUNK) as u64);
        let first = self.gaps.partition_point(|gap| gap.end <= begin);
        self.gaps[first..].iter().take_while(|gap| gap.start < end).for_each(|gap| chunk.leave(gap));
        Ok(chunk)
    }

    fn set_state(&mut self, number: usize, state: State) {
        if self.state.len() <= number {
            self.state.resize(number + 1, State::Untouched);
        }
        self.state[number] = state;
    }

    /// Writes what there is of a chunk at once.
    fn write_parts(&mut self, plain: &File, chunk: &Chunk) -> io::Result<()> {
        self.set_state(chunk.number, State::InPart);
        chunk.filled.iter().try_for_each(|range| {
            write_all_at(plain, &chunk.buffer.0[range.clone()], (chunk.number * CHUNK + range.start) as u64)
        })
    }

    fn send(&mut self, plain: &File, chunk: Chunk) -> io::Result<()> {
        if self.worker.is_none() {
            // Where the system has no more threads or files, whoever fills a chunk writes it.
            self.worker = plain.try_clone().and_then(|plain| Worker::start(plain, self.direct.take())).ok();
        }
        match &self.worker {
            // It takes messages until it is dropped.
            Some(worker) => drop(worker.queue.send(Message::Write(chunk.number, chunk.buffer))),
            None => write_all_at(plain, &chunk.buffer.0, (chunk.number * CHUNK) as u64)?,
        }
        Ok(())
    }

    fn flush(&mut self, plain: &File) -> io::Result<()> {
        for chunk in std::mem::take(&mut self.open) {
            self.write_parts(plain, &chunk)?;
        }
        if let Some(worker) = &self.worker {
            let (answer, answered) = sync_channel(1);
            if worker.queue.send(Message::Flush(answer)).is_ok() {
                let _ = answered.recv();
            }
        }
        self.check()
    }
}

impl Worker {
    fn start(plain: File, mut direct: Option<File>) -> io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUED);
        let (recycle, spare) = sync_channel(OPEN);
        let failure = Arc::new(Mutex::new(None));
        let failed = Arc::clone(&failure);
        let work = move || {
            let mut sound = true;
            for message in messages {
                match message {
                    Message::Write(number, buffer) => {
                        if sound && let Err(error) = write(&plain, &mut direct, &buffer.0, (number * CHUNK) as u64) {
                            sound = false;
                            *lock(&failed) = Some(error);
                        }
                        let _ = recycle.try_send(buffer);
                    }
                    Message::Flush(answer) => drop(answer),
                }
            }
        };
        let thread = std::thread::Builder::new().name("write-behind".to_owned()).spawn(work)?;
        Ok(Self { queue, spare, failure, thread })
    }
}

/// Past the page cache while that goes.
fn write(plain: &File, direct: &mut Option<File>, bytes: &[u8], offset: u64) -> io::Result<()> {
    if let Some(file) = direct {
        match write_all_at(file, bytes, offset) {
            // Asks for another alignment than is usual.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => *direct = None,
            done => return done,
        }
    }
    write_all_at(plain, bytes, offset)
}

#[cfg(unix)]
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// The same file, to be written past the page cache, if the system and the file system can.
#[cfg(target_os = "linux")]
fn direct(file: &File, path: &Path) -> Option<File> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
    let (it, this) = (file.metadata().ok()?, direct.metadata().ok()?);
    ((it.dev(), it.ino()) == (this.dev(), this.ino())).then_some(direct)
}

#[cfg(not(target_os = "linux"))]
fn direct(_file: &File, _path: &Path) -> Option<File> {
    None
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::NamedTempFile, WriteBehind) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let behind = WriteBehind::new(file.as_file(), file.path()).unwrap();
        (file, behind)
    }

    /// Pieces of every length from several threads, in another order than they lie: what is there is what was written.
    #[test]
    fn pieces_in_any_order_make_the_file() {
        let length = 20 * CHUNK + 12_345;
        let expected: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
        for (step, threads) in [(61_440, 3), (CHUNK, 2), (3 * CHUNK + 7, 1), (4093, 4)] {
            let (file, behind) = scratch();
            let mut pieces: Vec<usize> = (0..length).step_by(step).collect();
            // Neighbours swapped, and one far from its place.
            pieces.chunks_mut(2).for_each(<[usize]>::reverse);
            let far = pieces.remove(1);
            pieces.push(far);
            let next = std::sync::atomic::AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while let Some(&at) = pieces.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                            behind.write_at(&expected[at..length.min(at + step)], at as u64).unwrap();
                        }
                    });
                }
            });
            behind.flush().unwrap();
            assert!(std::fs::read(file.path()).unwrap() == expected, "pieces of {step}");
        }
    }

    /// More chunks begun than are held at once, gaps that nobody writes, and bytes that are written again: in an open
    /// chunk, in a full one, in one that went out in part.
    #[test]
    fn what_is_written_last_is_there() {
        let (file, behind) = scratch();
        let length = 40 * CHUNK;
        let mut expected = vec![0; length];
        let gap = 3 * CHUNK - 10..3 * CHUNK + 54;
        behind.leave(gap.start as u64..gap.end as u64);
        let mut write = |at: usize, bytes: &[u8]| {
            behind.write_at(bytes, at as u64).unwrap();
            expected[at..at + bytes.len()].copy_from_slice(bytes);
        };
        (0..40).for_each(|chunk| write(chunk * CHUNK, &[chunk as u8 + 1; 100]));
        write(2 * CHUNK + 100, &vec![7; CHUNK - 110]);
        write(3 * CHUNK + 54, &vec![8; CHUNK - 54]);
        write(30 * CHUNK + 100, &vec![9; CHUNK - 100]);
        write(39 * CHUNK + 50, &[10; 100]);
        write(30 * CHUNK + 500, &[11; 100]);
        write(2 * CHUNK + 500, &[12; 100]);
        write(length - 1, &[13]);
        behind.flush().unwrap();
        assert!(std::fs::read(file.path()).unwrap() == expected);
    }

    /// Places are reserved while others are written: a gap may come to a chunk that is open.
    #[test]
    fn a_gap_in_an_open_chunk_is_filled() {
        let (file, behind) = scratch();
        behind.write_at(&[1; 100], 10).unwrap();
        behind.leave(0..10);
        behind.leave(110..200);
        behind.leave(CHUNK as u64 - 10..CHUNK as u64 + 10);
        behind.write_at(&vec![2; CHUNK - 210], 200).unwrap();
        assert_eq!(lock(&behind.table).state, [State::Sent]);
        behind.write_at(&[3; 10], CHUNK as u64 + 10).unwrap();
        behind.flush().unwrap();
        let expected = [&[0; 10][..], &[1; 100], &[0; 90], &vec![2; CHUNK - 210], &[0; 20], &[3; 10]].concat();
        assert!(std::fs::read(file.path()).unwrap() == expected);
    }

    /// A disk that refuses: the error comes with a later piece or with the flush, not never.
    #[test]
    fn errors_are_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read_only = File::open(file.path()).unwrap();
        // No other path to the file either.
        let behind = WriteBehind::new(&read_only, Path::new("/nowhere")).unwrap();
        let piece = vec![1; CHUNK / 2];
        let told = (0..40).find_map(|i| behind.write_at(&piece, i * piece.len() as u64).err());
        assert!(told.is_some() || behind.flush().is_err());
        assert!(behind.flush().is_err(), "and again");
    }
}
