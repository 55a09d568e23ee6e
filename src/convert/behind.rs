//! Unmaps what a run has gone past, beside the work instead of at the end of the process: that takes a third of the time
//! of mapping it. Not here: what is read, and when.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, Scope};

use super::lock;
use crate::MappedFile;

/// Bytes that are unmapped at a time: whole pages of every kind, and few calls.
const STEP: usize = 32 << 20;

/// A part of a file.
type Part<'a> = (&'a MappedFile, Range<usize>);

/// How far a run is in files that it reads from their beginning to their end, one after another.
pub(super) struct Behind<'a> {
    place: Mutex<Place<'a>>,
    /// To the thread that unmaps; there is none where nothing is long enough, or the system has no more threads.
    queue: Option<Sender<Part<'a>>>,
}

struct Place<'a> {
    /// Those that are not done, the one at hand first.
    files: &'a [MappedFile],
    /// Bytes of that one that are done.
    done: usize,
}

impl<'a> Behind<'a> {
    pub fn new<'s>(files: &'a [MappedFile], scope: &'s Scope<'s, 'a>) -> Self {
        let (queue, parts) = channel::<Part<'a>>();
        let unmap = || parts.into_iter().for_each(|(file, part)| file.unmap(part));
        let long = files.iter().any(|file| file.len() >= STEP);
        let runs = long && Builder::new().name("unmap".to_owned()).spawn_scoped(scope, unmap).is_ok();
        Self { place: Mutex::new(Place { files, done: 0 }), queue: runs.then_some(queue) }
    }

    /// These bytes were read, and everything before them; what is read again all the same is mapped again.
    pub fn passed(&self, bytes: &[u8]) {
        if let Some(queue) = &self.queue
            && let Some(part) = lock(&self.place).pass(bytes)
        {
            // The thread takes messages until this is dropped.
            let _ = queue.send(part);
        }
    }
}

impl<'a> Place<'a> {
    /// What is done by now and was not before.
    fn pass(&mut self, bytes: &[u8]) -> Option<Part<'a>> {
        let found = bytes.as_ptr_range();
        let at = self.files.iter().position(|file| {
            let all = file.as_ptr_range();
            all.start <= found.start && found.end <= all.end
        })?;
        if at > 0 {
            (self.files, self.done) = (&self.files[at..], 0);
        }
        let file = &self.files[0];
        let end = (found.end as usize - file.as_ptr() as usize) / STEP * STEP;
        let part = self.done..end;
        self.done = self.done.max(end);
        (!part.is_empty()).then_some((file, part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two long files of zeros, and a short one between them.
    fn files() -> Vec<MappedFile> {
        let lengths = [3 * STEP + 5, 100, 2 * STEP];
        let file = |length: &usize| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(*length as u64).unwrap();
            MappedFile::of_temporary(file, "made").unwrap()
        };
        lengths.iter().map(file).collect()
    }

    #[test]
    fn whole_steps_are_told_once_and_in_order() {
        let (files, other) = (files(), [0; 100]);
        let mut place = Place { files: &files, done: 0 };
        let mut told = |bytes: &[u8]| place.pass(bytes).map(|(file, part)| (file.len(), part));
        assert_eq!(told(&files[0][..STEP - 1]), None);
        assert_eq!(told(&files[0][STEP - 1..STEP]), Some((3 * STEP + 5, 0..STEP)));
        assert_eq!(told(&other), None, "of none of these files");
        assert_eq!(told(&files[0][10..STEP]), None, "was told");
        assert_eq!(told(&files[0][2 * STEP..3 * STEP + 5]), Some((3 * STEP + 5, STEP..3 * STEP)));
        assert_eq!(told(&files[1]), None, "too short");
        assert_eq!(told(&files[2][..2 * STEP]), Some((2 * STEP, 0..2 * STEP)));
        assert_eq!(told(&files[0][..]), None, "done");
    }

    /// What was unmapped is there again for whoever looks.
    #[test]
    fn nothing_is_lost() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..STEP / 4 + 7).flat_map(|i| (i as u32).to_le_bytes()).collect();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let files = [MappedFile::of_temporary(file, "made").unwrap()];
        std::thread::scope(|scope| {
            let behind = Behind::new(&files, scope);
            for _ in 0..3 {
                for piece in files[0].chunks(1 << 20) {
                    behind.passed(piece);
                }
            }
            assert!(files[0][..] == bytes[..]);
        });
        assert!(files[0][..] == bytes[..]);
    }
}
