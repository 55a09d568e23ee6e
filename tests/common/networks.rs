//! What the tests of networks share: their tensors, packed and not, and comparing what comes out.

use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView4};
use twn_pack::kernel::{Arithmetic, Kernel};
use twn_pack::net::{Buffers, Network, Source};
use twn_pack::{Checkpoint, Container, Plan, Rules, Settings, convert};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

pub fn checkpoint(path: impl AsRef<Path>) -> Source {
    Source::Checkpoint(Checkpoint::open(path).unwrap())
}

/// The checkpoint, packed with `key=value,…` for all that becomes ternary.
pub fn packed(input: &Path, settings: &str) -> Source {
    let directory = tempfile::tempdir().unwrap();
    let (checkpoint, path) = (Checkpoint::open(input).unwrap(), directory.path().join("packed.twn"));
    let rules = Rules { settings: Settings::parse(settings).unwrap(), ..Default::default() };
    let plan = Plan::new(&checkpoint, &rules).unwrap();
    convert::pack(&checkpoint, &plan, &path, &convert::Options::default()).unwrap();
    Source::Container(Container::from_bytes("packed.twn", std::fs::read(&path).unwrap()).unwrap())
}

pub fn logits(network: &Network<'_>, arithmetic: Arithmetic, images: ArrayView4<'_, f32>) -> Array2<f32> {
    let kernel = Kernel::new(arithmetic).unwrap();
    network.forward(images, &kernel, &mut Buffers::default()).unwrap().to_owned()
}

pub fn classes(logits: &Array2<f32>) -> Vec<usize> {
    let largest = |row: ndarray::ArrayView1<'_, f32>| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
    logits.rows().into_iter().map(|row| largest(row).unwrap()).collect()
}

/// The largest difference, against the largest value.
pub fn difference<'a>(found: &Array2<f32>, expected: impl IntoIterator<Item = &'a f64>) -> f64 {
    let expected: Vec<f64> = expected.into_iter().copied().collect();
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1.0f64, |scale, x| scale.max(x.abs()));
    found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs() / scale).fold(0.0, f64::max)
}

pub fn f64s(logits: &Array2<f32>) -> Vec<f64> {
    logits.iter().map(|&x| x.into()).collect()
}
