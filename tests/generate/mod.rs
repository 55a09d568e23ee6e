//! Makes everything in `fixtures/` but the trained LeNet-5, the trits, and what is written by hand
//! (expectations and README). Shared by `examples/make_fixtures.rs` and the tests, which run it
//! again and compare. The same bytes every time: an own random generator, headers in sorted order.

pub mod bad;
pub mod bytes;
pub mod good;
pub mod packed;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Path below `fixtures/` → contents.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Where the fixtures are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Every generated file. `scratch` is an empty directory to pack in.
pub fn all(scratch: &Path) -> Files {
    let mut files = good::checkpoints();
    write(&files, scratch);
    for recipe in packed::recipes().into_iter().filter(|recipe| recipe.stored) {
        let bytes = recipe.pack(scratch, scratch, twn_pack::Isa::PORTABLE);
        files.insert(recipe.output, bytes);
    }
    files.insert("two-planes.twn".to_owned(), packed::two_planes(scratch));
    files.insert("by-hand.twn".to_owned(), bad::Twn::base().seal());
    files.extend(bad::files().into_iter().map(|(name, bytes)| (format!("bad/{name}"), bytes)));
    files
}

/// Writes files below a directory.
pub fn write(files: &Files, below: &Path) {
    for (name, bytes) in files {
        let path = below.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
