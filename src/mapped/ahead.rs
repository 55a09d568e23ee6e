//! Reads files that are gone through in order ahead of the work, where the disk has to be asked for them, so that
//! it does not wait while their bytes are worked on. Not here: what is read, and when.

use std::hint::black_box;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use super::MappedFile;

/// Bytes that are looked after at a time: a page of the largest kind.
const STEP: usize = 2 << 20;

/// Bytes that are read before the work is there, at the most.
const AHEAD: u64 = 64 << 20;

/// Linux maps so many bytes at a time.
const AROUND: usize = 64 << 10;

/// How far the work is in files that are read from their beginning to their end, one after another. What it needs next
/// is read by a thread of its own, some 64 MiB ahead; what is in memory already is left alone.
#[derive(Debug)]
pub struct ReadAhead<'a> {
    files: &'a [MappedFile],
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug)]
struct State {
    /// The file that the work is in, and how many bytes there are before it in all.
    file: usize,
    before: u64,
    /// Up to where in all files that may be read ahead.
    until: u64,
}

impl<'a> ReadAhead<'a> {
    /// Runs `work`, and what it needs of `files` next is read meanwhile. Where the system has no more threads, it is not.
    pub fn during<T>(files: &'a [MappedFile], work: impl FnOnce(&Self) -> T) -> T {
        let state = State { file: 0, before: 0, until: AHEAD };
        let ahead = Self { files, state: Mutex::new(state), moved: Condvar::new() };
        std::thread::scope(|scope| {
            let _ = Builder::new().name("read-ahead".to_owned()).spawn_scoped(scope, || ahead.read());
            // Whatever becomes of the work, the thread ends.
            let _stop = Stop(&ahead);
            work(&ahead)
        })
    }

    /// The work is about to read these bytes, if they are some of the files'.
    pub fn reached(&self, bytes: &[u8]) {
        let mut state = self.state();
        let found = self.files[state.file.min(self.files.len())..].iter().enumerate().find_map(|(skipped, file)| {
            offset_in(file, bytes).map(|range| (skipped, range.end))
        });
        let Some((skipped, end)) = found else { return };
        state.before += self.files[state.file..][..skipped].iter().map(|file| file.len() as u64).sum::<u64>();
        state.file += skipped;
        let until = state.before + end as u64 + AHEAD;
        // Not for every piece.
        if until >= state.until.saturating_add(STEP as u64) {
            state.until = until;
            self.moved.notify_one();
        }
    }

    /// Reads until it is told to stop.
    fn read(&self) {
        let mut before = 0;
        for file in self.files {
            for step in file.chunks(STEP) {
                // Of what is there in part, little is missing.
                if !file.is_cached(&step[..1]) {
                    if !self.wait(before) {
                        return;
                    }
                    for byte in step.iter().step_by(AROUND) {
                        black_box(*byte);
                    }
                }
                before += step.len() as u64;
            }
        }
    }

    /// Waits until the byte of that number may be read; false where there is nothing more to do.
    fn wait(&self, at: u64) -> bool {
        let wait = self.moved.wait_while(self.state(), |state| state.until <= at && state.file < usize::MAX);
        wait.unwrap_or_else(PoisonError::into_inner).file < usize::MAX
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where in a file these bytes lie.
fn offset_in(file: &MappedFile, bytes: &[u8]) -> Option<Range<usize>> {
    let (all, found) = (file.as_ptr_range(), bytes.as_ptr_range());
    let start = all.start.addr();
    (all.start <= found.start && found.end <= all.end).then(|| found.start.addr() - start..found.end.addr() - start)
}

/// Ends the thread.
struct Stop<'s, 'a>(&'s ReadAhead<'a>);

impl Drop for Stop<'_, '_> {
    fn drop(&mut self) {
        self.0.state().file = usize::MAX;
        self.0.moved.notify_one();
    }
}
