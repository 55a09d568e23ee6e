//! Bugs that were there once; each test says which.

#![cfg(unix)]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
