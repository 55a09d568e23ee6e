//! BitNet checkpoints of Hugging Face transformers, out and in: golden bytes, a decoder written from the description of
//! the layout, both meanings of `weight_scale`, and whatever else stands in such files. Not here: transformers itself
//! (`examples/interop/bitnet_unpack.py`).

#[path = "../common/mod.rs"]
mod common;

mod export;
mod import;

use std::path::{Path, PathBuf};

use common::{Made, Random};
use serde_json::Value;
use twn_pack::export::{Options, WriteOptions};
use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, convert};

fn trits(n: usize, seed: u64) -> Vec<f64> {
    let mut random = Random(seed);
    (0..n).map(|_| random.below(3) as f64 - 1.0).collect()
}

fn ternary(name: &str, shape: &[usize], trits: &[f64], alpha: f64) -> Made {
    Made::new(name, Dtype::F32, shape, &trits.iter().map(|t| t * alpha).collect::<Vec<_>>())
}

fn pack_checkpoint(checkpoint: &Checkpoint, rules: &Rules, output: &Path) -> Container {
    let options = convert::Options { overwrite: true, ..convert::Options::default() };
    convert::pack(checkpoint, &Plan::new(checkpoint, rules).unwrap(), output, &options).unwrap();
    Container::open(output).unwrap()
}

/// Writes the export as `model.safetensors` into the directory; returns its path.
fn write(container: &Container, options: &Options, directory: &Path) -> PathBuf {
    let export = twn_pack::export::format("bitnet").unwrap().export(container, options).unwrap();
    std::fs::create_dir_all(directory).unwrap();
    let output = directory.join("model.safetensors");
    let length = twn_pack::export::write(container, &export, &output, &WriteOptions::default()).unwrap();
    assert_eq!(length, std::fs::metadata(&output).unwrap().len());
    let bytes: u64 = export.tensors.iter().map(|line| line.bytes).sum();
    let header = u64::from_le_bytes(std::fs::read(&output).unwrap()[..8].try_into().unwrap());
    assert_eq!(bytes + header + 8, length);
    output
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

const EXACT: &str = "method=optimal,granularity=tensor";

/// The weights of a packed tensor, from the description of the layout alone.
fn unpacked(packed: &[u8], rows: usize, columns: usize, alpha: f32) -> Vec<f32> {
    let quarter = rows / 4;
    let weight = |row: usize, column: usize| {
        let byte = packed[row % quarter * columns + column];
        alpha * (f32::from(byte >> (2 * (row / quarter)) & 3) - 1.0)
    };
    (0..rows).flat_map(|row| (0..columns).map(move |column| weight(row, column))).collect()
}
