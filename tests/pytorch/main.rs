//! Checkpoints of `torch.save`: files that PyTorch wrote against what the safetensors library wrote of the same
//! tensors, and files by hand that lie, are cut off, or want to run something.

#[path = "../common/mod.rs"]
mod common;

mod archives;
mod nested;
mod pickles;
mod written;

use std::path::{Path, PathBuf};

use common::zip::{Entry, zip};
use twn_pack::{Checkpoint, Fault, import};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/foreign/pytorch").join(name)
}

fn refusal(name: &str) -> String {
    let error = import::open(fixture(name)).unwrap_err();
    assert_eq!(error.fault(), Fault::Input, "{error}");
    error.to_string()
}

/// Of a file with these bytes.
fn open_bytes(bytes: &[u8]) -> twn_pack::Result<Checkpoint> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.pt");
    std::fs::write(&path, bytes).unwrap();
    import::open(&path)
}

/// A file with this pickle and these storages.
fn file(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut entries = vec![Entry::new("model/data.pkl", pickle)];
    entries.extend(storages.iter().map(|(key, bytes)| Entry::new(&format!("model/data/{key}"), bytes)));
    zip(&entries)
}

fn state(pickle: &[u8], storages: &[(&str, &[u8])]) -> twn_pack::Result<Checkpoint> {
    open_bytes(&file(pickle, storages))
}

/// The opcodes that make a number.
fn int(value: i64) -> Vec<u8> {
    [&[0x8a, 8], &value.to_le_bytes()[..]].concat()
}

fn tuple(values: &[i64]) -> Vec<u8> {
    [b"(", &values.iter().flat_map(|v| int(*v)).collect::<Vec<u8>>()[..], b"t"].concat()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The opcodes that make a tensor of float32, of storage `0` with so many values.
fn tensor(count: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage =
        [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), &int(count), b"tQ"].concat();
    let ordered = b"ccollections\nOrderedDict\n)R";
    let parts = [&storage[..], &int(offset), &tuple(shape), &tuple(strides), b"\x89", ordered].concat();
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", &parts[..], b"tR"].concat()
}

/// The pickle of a dict.
fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"\x80\x02}(", &items[..], b"u."].concat()
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}
