//! Reads mapped files ahead of the work, where the disk has to be asked for them, so that it does not wait while their
//! bytes are worked on. Not here: what is read, and when.

use std::hint::black_box;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use super::{LARGE_PAGE as STEP, is_cached};

/// Bytes that are read before the work is there, at the most.
const AHEAD: u64 = 64 << 20;

/// Linux maps so many bytes at a time.
const AROUND: usize = 64 << 10;

/// How far the work is in parts of mapped files that it reads one after another. What it needs next is read by a thread of
/// its own, some 64 MiB ahead; what is in memory already is left alone.
#[derive(Debug)]
pub struct ReadAhead<'a> {
    parts: &'a [&'a [u8]],
    /// Of each part its address and how many bytes there are before it in all, by the addresses.
    places: Vec<(usize, usize, u64)>,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug)]
struct State {
    /// How many bytes of all parts may be read.
    until: u64,
    ended: bool,
}

impl<'a> ReadAhead<'a> {
    /// Runs `work`, and what it needs of `parts` next is read meanwhile. Where the system has no more threads, it is not.
    pub fn during<T>(parts: &'a [&'a [u8]], work: impl FnOnce(&Self) -> T) -> T {
        let mut before = 0;
        let place = |part: &&[u8]| {
            let place = (part.as_ptr().addr(), part.len(), before);
            before += part.len() as u64;
            place
        };
        let mut places: Vec<_> = parts.iter().map(place).collect();
        places.sort_unstable();
        let state = Mutex::new(State { until: AHEAD, ended: false });
        let ahead = Self { parts, places, state, moved: Condvar::new() };
        std::thread::scope(|scope| {
            let _ = Builder::new().name("read-ahead".to_owned()).spawn_scoped(scope, || ahead.read());
            // Whatever becomes of the work, the thread ends.
            let _end = End(&ahead);
            work(&ahead)
        })
    }

    /// The work is about to read these bytes, if they are some of a part.
    pub fn reached(&self, bytes: &[u8]) {
        let start = bytes.as_ptr().addr();
        let Some(&(address, length, before)) =
            self.places[..self.places.partition_point(|place| place.0 <= start)].last()
        else {
            return;
        };
        let end = start - address + bytes.len();
        let mut state = self.state();
        let until = before + end as u64 + AHEAD;
        // Not for every piece.
        if end <= length && until >= state.until + STEP as u64 {
            state.until = until;
            self.moved.notify_one();
        }
    }

    fn read(&self) {
        let mut before = 0;
        for part in self.parts {
            for step in part.chunks(STEP) {
                // The first byte stands for all: to ask for every page would take longer.
                if !is_cached(&step[..1]) {
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

    /// Waits until the byte of that number may be read; false where the work is done.
    fn wait(&self, at: u64) -> bool {
        let state = self.moved.wait_while(self.state(), |state| state.until <= at && !state.ended);
        !state.unwrap_or_else(PoisonError::into_inner).ended
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the thread.
struct End<'e, 'a>(&'e ReadAhead<'a>);

impl Drop for End<'_, '_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.moved.notify_one();
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::MappedFile;

    /// Zeros that are nowhere yet.
    fn nothing(length: u64) -> MappedFile {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        MappedFile::of_temporary(file, "made").unwrap()
    }

    /// Waits for what has to happen sooner or later.
    fn comes(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it never came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Three parts, not in the order in which they lie: each is read once the work is near enough, and no sooner.
    #[test]
    fn parts_are_read_in_their_order_and_so_far_ahead() {
        let (first, second) = (nothing(2 * AHEAD), nothing(AHEAD));
        let (front, back) = first.split_at(AHEAD as usize);
        let parts = [back, &second[..], front];
        let last = |part: &[u8]| is_cached(&part[part.len() - 1..]);
        ReadAhead::during(&parts, |ahead| {
            comes(|| last(back));
            assert!(!is_cached(&second[STEP..=STEP]) && !is_cached(&front[..1]));
            // Of no part; of one that is near the beginning.
            ahead.reached(&[0; 10]);
            ahead.reached(&back[..AHEAD as usize / 2]);
            comes(|| is_cached(&second[AHEAD as usize / 2 - 1..AHEAD as usize / 2]));
            assert!(!last(&second) && !is_cached(&front[..1]));
            ahead.reached(&second);
            comes(|| last(front));
            // Behind is behind.
            ahead.reached(back);
        });
    }

    #[test]
    fn it_ends_with_the_work() {
        let file = nothing(4 * AHEAD);
        let parts = [&file[..]];
        assert_eq!(ReadAhead::during(&parts, |_| 7), 7);
        let work = || ReadAhead::during(&parts, |_| panic!("as asked"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
        assert!(!is_cached(&file[file.len() - 1..]));
        assert_eq!(ReadAhead::during(&[], |ahead| ahead.reached(&file)), ());
    }
}
