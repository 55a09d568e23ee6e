//! Unmaps what a run has gone past, beside the work instead of at the end of the process: that takes a third of the time
//! of mapping it. It is told of whole steps of a file only, and of what is read piece by piece: not where filters lie
//! scattered, or where codes are moved. Not here: what is read, and when.

use std::ops::Range;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, Scope};

use crate::MappedFile;

/// Bytes that are unmapped at a time: whole pages of every kind, and few calls.
const STEP: usize = 32 << 20;

/// A part of a file.
type Part<'a> = (&'a MappedFile, Range<usize>);

/// How far a run is in files that it reads from their beginning to their end, one after another.
pub(super) struct Behind<'a, 'u> {
    /// Those that are not done, the one at hand first.
    files: &'a [MappedFile],
    /// Bytes of that one that are done.
    done: usize,
    unmap: &'u mut (dyn FnMut(Part<'a>) + Send),
}

impl<'a, 'u> Behind<'a, 'u> {
    /// Nothing is done yet.
    pub fn new(files: &'a [MappedFile], unmap: &'u mut (dyn FnMut(Part<'a>) + Send)) -> Self {
        Self { files, done: 0, unmap }
    }

    /// These bytes were read, and everything before them; what is read again all the same is mapped again.
    pub fn passed(&mut self, bytes: &[u8]) {
        let found = bytes.as_ptr_range();
        let at = self.files.iter().position(|file| {
            let all = file.as_ptr_range();
            all.start <= found.start && found.end <= all.end
        });
        let Some(at) = at else { return };
        if at > 0 {
            (self.files, self.done) = (&self.files[at..], 0);
        }
        let file = &self.files[0];
        let end = (found.end as usize - file.as_ptr() as usize) / STEP * STEP;
        if end > self.done {
            (self.unmap)((file, self.done..end));
            self.done = end;
        }
    }
}

/// Unmaps on a thread of its own. That one starts with the first part, so that those which a run cannot do without are
/// there; where the system has no more threads, everything stays mapped.
pub(super) fn unmapper<'s, 'a: 's>(scope: &'s Scope<'s, 'a>) -> impl FnMut(Part<'a>) + Send + 's {
    let mut queue: Option<Sender<Part<'a>>> = None;
    move |part| {
        let queue = queue.get_or_insert_with(|| {
            let (queue, parts) = channel::<Part<'a>>();
            let unmap = move || parts.into_iter().for_each(|(file, part)| file.unmap(part));
            let _ = Builder::new().name("unmap".to_owned()).spawn_scoped(scope, unmap);
            queue
        });
        let _ = queue.send(part);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Options, calibrated, run};
    use super::*;
    use crate::select::{Override, Plan, Rules, Settings};
    use crate::{Checkpoint, ReadAhead};

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
        let (files, other, mut told) = (files(), [0; 100], Vec::new());
        let mut tell = |(file, part): Part<'_>| told.push((file.len(), part));
        let mut behind = Behind::new(&files, &mut tell);
        behind.passed(&files[0][..STEP - 1]);
        behind.passed(&files[0][STEP - 1..STEP]);
        behind.passed(&other);
        behind.passed(&files[0][10..STEP]);
        behind.passed(&files[0][2 * STEP..3 * STEP + 5]);
        behind.passed(&files[1]);
        behind.passed(&files[2][..2 * STEP]);
        behind.passed(&files[0][..]);
        let length = 3 * STEP + 5;
        assert_eq!(told, [(length, 0..STEP), (length, STEP..3 * STEP), (2 * STEP, 0..2 * STEP)]);
    }

    /// 80 MiB of zeros, dense, ternary and in 8 bits: all of it but the rest of a step.
    #[test]
    fn a_run_tells_of_what_it_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.safetensors");
        let header = r#"{"a.weight":{"dtype":"F32","shape":[2048,4096],"data_offsets":[0,33554432]},
            "b.weight":{"dtype":"F32","shape":[2048,4096],"data_offsets":[33554432,67108864]},
            "c.weight":{"dtype":"F32","shape":[1024,4096],"data_offsets":[67108864,83886080]}}"#;
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(8 + header.len() as u64 + (80 << 20)).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let settings = Settings::parse("keep=int8").unwrap();
        let overrides = vec![Override { pattern: "c.*".to_owned(), settings }];
        let rules = Rules { exclude: vec!["a.*".to_owned()], overrides, ..Rules::default() };
        let plan = Plan::new(&checkpoint, &rules).unwrap();
        let (mut told, inputs) = (Vec::new(), (0..3).map(|i| checkpoint.input(i)));
        let mut tell = |(file, part): Part<'_>| told.push((file.path().to_owned(), part));
        let behind = Behind::new(checkpoint.mapped(), &mut tell);
        let options = Options::default();
        ReadAhead::during(&[], |ahead| {
            run(inputs.zip(&plan.tensors), None, None, &calibrated::shared(), Some((ahead, behind)), &options)
        })
        .unwrap();
        let expected: [(&Path, _); 2] = [(&path, 0..STEP), (&path, STEP..2 * STEP)];
        assert!(told.iter().map(|(path, part)| (&**path, part.clone())).eq(expected), "{told:?}");
    }

    /// Pages that were read are gone, and there again for whoever looks.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_unmapped_comes_back() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..STEP / 4 + 7).flat_map(|i| (i as u32).to_le_bytes()).collect();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let files = [MappedFile::of_temporary(file, "made").unwrap()];
        // KiB of the mapping that are there, from its entry in the list of them.
        let resident = || {
            let (list, start) = (std::fs::read_to_string("/proc/self/smaps").unwrap(), files[0].as_ptr() as usize);
            let entry = list.split_once(&format!("{start:x}-")).unwrap().1.split_once("Rss:").unwrap().1;
            entry.split_whitespace().next().unwrap().parse::<usize>().unwrap()
        };
        for _ in 0..2 {
            assert!(files[0][..] == bytes[..]);
            assert!(resident() >= STEP >> 10);
            std::thread::scope(|scope| {
                let mut unmap = unmapper(scope);
                let mut behind = Behind::new(&files, &mut unmap);
                files[0].chunks(1 << 20).for_each(|piece| behind.passed(piece));
            });
            assert!(resident() < 1 << 10, "{} KiB", resident());
        }
    }
}
