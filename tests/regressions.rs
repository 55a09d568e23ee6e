//! Bugs that were there once; each test says which.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::expect;
use twn_pack::container::{Index, MethodEntry, Producer, Section, Spread, Stats, TensorEntry, TernaryEntry};
use twn_pack::{ContainerWriter, Dtype, Encoding, Granularity, ScaleDtype};

/// A file of one ternary tensor that has 2^58 filters of no weights and takes no bytes.
fn filters_of_nothing(path: &Path) {
    let mut writer = ContainerWriter::create(path, false).unwrap();
    let nothing: Section = writer.section(&[]).unwrap();
    let entry = TernaryEntry {
        axis: 0,
        codes: nothing,
        encoding: Encoding::T2,
        granularity: Granularity::Group(64),
        method: MethodEntry { name: "twn".to_owned(), parameters: Default::default() },
        planes: 1,
        scale_dtype: ScaleDtype::F32,
        scales: nothing,
        stats: Stats {
            alpha: Spread::default(),
            delta: None,
            negative: 0,
            positive: 0,
            squared_error: 0.0,
            squared_norm: 0.0,
            zeros: 0,
        },
    };
    let tensors = vec![TensorEntry::ternary("t".to_owned(), Dtype::F32, vec![1 << 58, 0], entry)];
    writer.finish(&Index { metadata: Default::default(), producer: Producer::this(), tensors }).unwrap();
}

#[test]
fn filters_of_nothing_take_no_time() {
    // A file of some hundred bytes kept `unpack` and `verify --against` busy for years.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nothing.twn");
    filters_of_nothing(&path);
    let output = directory.path().join("out.safetensors");
    expect(0, &["unpack".as_ref(), path.as_os_str(), "-o".as_ref(), output.as_os_str()]);
    expect(0, &["verify".as_ref(), path.as_os_str(), "--against".as_ref(), output.as_os_str()]);
    expect(0, &["inspect".as_ref(), path.as_os_str()]);
}

#[cfg(unix)]
#[test]
fn inspect_does_not_wait_for_a_pipe() {
    // It opened the pipe to look for the magic, for ever, and not even SIGTERM ended it.
    let directory = tempfile::tempdir().unwrap();
    for name in ["pipe", "pipe.twn"] {
        let path = directory.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut child = Command::new(common::BINARY).arg("inspect").arg(&path).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                None if start.elapsed() > Duration::from_secs(10) => child.kill().unwrap(),
                None => std::thread::sleep(Duration::from_millis(5)),
                Some(status) => break status,
            }
        };
        assert_eq!(status.code(), Some(4), "{name}");
    }
}
