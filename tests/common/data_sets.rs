//! What the tests of data sets share: directories made of files, and how they are refused.

use std::path::Path;

use twn_pack::Fault;
use twn_pack::data::{DataSet, Split};

/// A directory with these files; names may have folders in front.
pub fn directory(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    directory
}

/// What is wrong with a directory, which is the files' fault.
pub fn refusal(directory: &Path, split: Split) -> String {
    let error = DataSet::open(directory, split).map(|data| data.len()).unwrap_err();
    assert_eq!(error.fault(), Fault::Input, "{error}");
    error.to_string()
}
