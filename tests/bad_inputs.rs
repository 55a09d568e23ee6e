//! Every file of `fixtures/bad` is answered with exactly the words that `expected.toml` has for
//! it, by the library and by the program, and leaves no output behind.

#![cfg(feature = "cli")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde::Deserialize;
use tempfile::TempDir;
use twn_pack::{Checkpoint, Container, Error, Fault, Plan, Rules, convert, unpack, verify};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// The error, without the path in front.
    message: String,
    /// What notices it.
    #[serde(default)]
    noticed: Noticed,
    /// Whether `unpack`, which reads only what it needs, takes no harm.
    #[serde(default)]
    unpacks: bool,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Noticed {
    /// Opening the file.
    #[default]
    Open,
    /// Packing it: the weights are at fault.
    Pack,
    /// Looking at every byte.
    Verify,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join("bad")
}

fn expected() -> BTreeMap<String, Expected> {
    toml::from_str(&std::fs::read_to_string(directory().join("expected.toml")).unwrap()).unwrap()
}

fn containers() -> impl Iterator<Item = (PathBuf, Expected)> {
    all().filter(|(path, _)| path.extension().is_some_and(|e| e == "twn"))
}

fn checkpoints() -> impl Iterator<Item = (PathBuf, Expected)> {
    all().filter(|(path, _)| path.extension().is_none_or(|e| e != "twn"))
}

fn all() -> impl Iterator<Item = (PathBuf, Expected)> {
    expected().into_iter().map(|(name, expected)| (directory().join(name), expected))
}

/// Collects what does not hold, to show all of it at once.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, of: &Path, what: &str, found: T, expected: T) {
        if found != expected {
            let name = of.file_name().unwrap().to_string_lossy();
            self.0.push(format!("{name}: {what}\n      is {found:?}\n  should {expected:?}"));
        }
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "\n{}", self.0.join("\n"));
        }
    }
}

/// The words of an error, without the path where it has one.
fn words(error: &Error, path: &Path) -> String {
    let text = error.to_string();
    match error {
        Error::Weights { .. } => text,
        _ => text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&format!("no path: {text}")).to_owned(),
    }
}

fn is_empty(directory: &TempDir) -> bool {
    directory.path().read_dir().unwrap().next().is_none()
}

#[test]
fn every_file_has_its_expectation_and_every_expectation_its_file() {
    let on_disk: BTreeSet<String> =
        directory().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut named: BTreeSet<String> = expected().into_keys().collect();
    named.insert("expected.toml".to_owned());
    assert_eq!(on_disk, named);
}

#[test]
fn the_library_refuses_checkpoints() {
    let mut complaints = Complaints::default();
    for (path, expected) in checkpoints() {
        let scratch = tempfile::tempdir().unwrap();
        let checkpoint = match (Checkpoint::open(&path), &expected.noticed) {
            (Ok(checkpoint), Noticed::Pack) => checkpoint,
            (Ok(_), _) => {
                complaints.equal(&path, "opened", true, false);
                continue;
            }
            (Err(error), noticed) => {
                complaints.equal(&path, "refused by open", *noticed == Noticed::Open, true);
                complaints.equal(&path, "message", words(&error, &path), expected.message);
                complaints.equal(&path, "fault", error.fault(), Fault::Input);
                continue;
            }
        };
        let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        let output = scratch.path().join("out.twn");
        let error = convert::pack(&checkpoint, &plan, &output, &convert::Options::default()).unwrap_err();
        complaints.equal(&path, "message", words(&error, &path), expected.message);
        complaints.equal(&path, "fault", error.fault(), Fault::Input);
        complaints.equal(&path, "left nothing behind", is_empty(&scratch), true);
    }
}

#[test]
fn the_library_refuses_containers() {
    let mut complaints = Complaints::default();
    for (path, expected) in containers() {
        let container = match (Container::open(&path), &expected.noticed) {
            (Ok(container), Noticed::Verify) => container,
            (Ok(_), _) => {
                complaints.equal(&path, "opened", true, false);
                continue;
            }
            (Err(error), noticed) => {
                complaints.equal(&path, "refused by open", *noticed == Noticed::Open, true);
                complaints.equal(&path, "message", words(&error, &path), expected.message);
                complaints.equal(&path, "fault", error.fault(), Fault::Input);
                continue;
            }
        };
        let found = verify::verify(&container, None).unwrap();
        complaints.equal(&path, "problems", found.problems, vec![expected.message.clone()]);
        let scratch = tempfile::tempdir().unwrap();
        match unpack::unpack(&container, &scratch.path().join("out.safetensors"), &unpack::Options::default()) {
            Ok(_) => complaints.equal(&path, "unpacks", true, expected.unpacks),
            Err(error) => {
                complaints.equal(&path, "message of unpack", words(&error, &path), expected.message);
                complaints.equal(&path, "fault of unpack", error.fault(), Fault::Input);
                complaints.equal(&path, "left nothing behind", is_empty(&scratch), true);
            }
        }
    }
}

/// Exit code, stdout, stderr.
fn run(arguments: &[&Path]) -> (Option<i32>, String, String) {
    let output = Command::cargo_bin("twn-pack").unwrap().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_program_refuses_checkpoints() {
    let mut complaints = Complaints::default();
    for (path, expected) in checkpoints() {
        let scratch = tempfile::tempdir().unwrap();
        let output = scratch.path().join("out.twn");
        let answer = (Some(3), String::new(), format!("twn-pack: {}: {}\n", path.display(), expected.message));
        complaints.equal(&path, "pack", run(&[&path, "-o".as_ref(), &output]), answer.clone());
        complaints.equal(&path, "left nothing behind", is_empty(&scratch), true);
        if expected.noticed == Noticed::Open {
            complaints.equal(&path, "inspect", run(&["inspect".as_ref(), &path]), answer);
        }
    }
}

#[test]
fn the_program_refuses_containers() {
    let mut complaints = Complaints::default();
    for (path, expected) in containers() {
        let scratch = tempfile::tempdir().unwrap();
        let output = scratch.path().join("out.safetensors");
        let line = format!("{}: {}\n", path.display(), expected.message);
        let verdict = (Some(1), line.clone(), String::new());
        complaints.equal(&path, "verify", run(&["verify".as_ref(), &path]), verdict);
        let answer = (Some(3), String::new(), format!("twn-pack: {line}"));
        if !expected.unpacks {
            let unpacked = run(&["unpack".as_ref(), &path, "-o".as_ref(), &output]);
            complaints.equal(&path, "unpack", unpacked, answer.clone());
            complaints.equal(&path, "left nothing behind", is_empty(&scratch), true);
        }
        if expected.noticed == Noticed::Open {
            complaints.equal(&path, "inspect", run(&["inspect".as_ref(), &path]), answer);
        }
    }
}

/// Whether opening or looking at every byte finds something wrong.
fn is_noticed(bytes: Vec<u8>) -> bool {
    match Container::from_bytes("damaged", bytes) {
        Ok(container) => !verify::verify(&container, None).unwrap().is_good(),
        Err(error) => error.fault() == Fault::Input,
    }
}

#[test]
fn every_damaged_byte_and_every_cut_is_noticed() {
    let good = std::fs::read(directory().with_file_name("by-hand.twn")).unwrap();
    assert!(!is_noticed(good.clone()));
    for at in 0..good.len() {
        assert!(is_noticed(good[..at].to_vec()), "cut at byte {at}");
        for mask in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= mask;
            assert!(is_noticed(bytes), "byte {at} ^ {mask:#04x}");
        }
    }
}

/// Not every change to a checkpoint can be noticed, it has no checksums; but none may panic.
#[test]
fn a_damaged_header_is_an_answer_and_no_panic() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("damaged.safetensors");
    let good = std::fs::read(directory().with_file_name("edges.safetensors")).unwrap();
    for at in 0..good.len() {
        for byte in [b'9', good[at] ^ 0x80] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            std::fs::write(&path, bytes).unwrap();
            let Ok(checkpoint) = Checkpoint::open(&path) else { continue };
            let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
            let _ = convert::measure(&checkpoint, &plan, &convert::Options::default());
        }
    }
}

/// What was downloaded in place of a checkpoint, or around it.
#[test]
fn pages_and_archives_are_called_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let good = std::fs::read(self::directory().with_file_name("edges.safetensors")).unwrap();
    // gzip's fourth to seventh bytes are a time, often 0.
    let gzip = [b"\x1f\x8b\x08\0\0\0\0\0\0\x03", &*good].concat();
    let cases: [(&[u8], &str, &str); 5] = [
        (b"<!doctype html>\n<title>Sign in</title>", "a web page", "browser"),
        (&gzip, "gzip", "gunzip"),
        (b"\x28\xb5\x2f\xfd\x04\0\0\0\0\0", "zstd", "zstd -d"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08", "HDF5", "numpy.savez"),
        (b"{\"weight_map\": {}}", "JSON", "index.json"),
    ];
    for (bytes, what, way_out) in cases {
        for name in ["model.safetensors", "model.bin", "model"] {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = words(&twn_pack::import::open(&path).unwrap_err(), &path);
            assert!(error.contains(what) && error.contains(way_out), "{error}");
        }
    }
    // A header's length may be those same bytes.
    for length in [u64::from(b'<'), 0x8b1f] {
        let mut header = br#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.to_vec();
        header.resize(length as usize, b' ');
        let path = directory.path().join("good.safetensors");
        std::fs::write(&path, [&length.to_le_bytes(), &*header].concat()).unwrap();
        assert_eq!(twn_pack::import::open(&path).unwrap().tensors().len(), 1);
    }
}

/// Other readers take it for none.
#[test]
fn metadata_may_be_null() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("null.safetensors");
    let header = br#"{"__metadata__":null,"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), &header[..]].concat()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.metadata().is_empty() && checkpoint.tensors().len() == 1);
}

/// What a clone has where Git LFS fetched nothing, whatever it is called.
#[test]
fn pointers_of_git_lfs_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n";
    for name in ["model.safetensors", "pytorch_model.bin", "model.gguf", "model.onnx", "a.npz"] {
        let path = directory.path().join(name);
        std::fs::write(&path, pointer).unwrap();
        let error = twn_pack::import::open(&path).unwrap_err();
        assert!(error.to_string().contains(name) && words(&error, &path).contains("`git lfs pull`"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
    // One of several.
    std::fs::write(directory.path().join("model-00001-of-00002.safetensors"), pointer).unwrap();
    let error = twn_pack::import::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("model-00001-of-00002.safetensors"), "{error}");
}
