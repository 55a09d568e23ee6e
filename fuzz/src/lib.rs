//! What the fuzz targets share.

use std::sync::Once;

use tempfile::TempDir;
use twn_pack::Checkpoint;

/// Bytes of the input, taken from the front; zeros once there are none left.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.u8()))
    }

    pub fn below(&mut self, n: usize) -> usize {
        let x = if n <= 256 { usize::from(self.u8()) } else { usize::from(self.u16()) };
        x % n.max(1)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }
}

/// All work on the calling thread: faster for small inputs, and the same coverage every time.
pub fn one_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global().expect("no pool yet");
    });
}

/// A directory for one run, in memory where there is such a place.
pub fn directory() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("twn-pack-fuzz.").tempdir_in(parent).expect("a directory")
}

/// Reads every code and scale of what is ternary in a checkpoint.
pub fn read_ternary(checkpoint: &Checkpoint) {
    let views = (0..checkpoint.len()).filter_map(|i| checkpoint.ternary(i));
    for view in views.flat_map(|view| (0..view.planes()).map(move |plane| view.plane(plane))) {
        let mut codes = vec![9; view.filter_len()];
        for filter in 0..view.filters() {
            if view.codes(filter, &mut codes).is_ok() {
                assert!(codes.iter().all(|&code| code <= 2), "{}", view.name);
            }
            for unit in 0..view.filter_len().div_ceil(view.unit_len()) {
                let _ = view.scale(filter, unit);
            }
        }
    }
}

/// The bits of a float, with every NaN the same.
pub fn bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// A zip file of these entries, stored.
pub fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (offset, size) = (file.len() as u32, data.len() as u32);
        let mut fixed = vec![10, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        [crc32fast::hash(data), size, size].iter().for_each(|x| fixed.extend(x.to_le_bytes()));
        fixed.extend([name.len() as u8, 0, 0, 0]);
        file.extend([b"PK\x03\x04", &fixed[..], name.as_bytes(), data].concat());
        directory
            .extend([b"PK\x01\x02\x0a\x00", &fixed[..], &[0; 10], &offset.to_le_bytes(), name.as_bytes()].concat());
    }
    let count = entries.len() as u8;
    let sizes = [(directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes()].concat();
    [&file[..], &directory, b"PK\x05\x06\0\0\0\0", &[count, 0, count, 0], &sizes, &[0, 0]].concat()
}

/// One file of `fixtures/`.
#[macro_export]
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/", $name)).as_slice()
    };
}
