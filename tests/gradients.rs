//! Losses, gradients and steps of a residual network against PyTorch's, in `f64`:
//! `fixtures/residual/make_gradients.py`. Not here: single layers, which are held to finite differences
//! next to them.

#![cfg(feature = "train")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use twn_pack::net::Description;
use twn_pack::train::{Loss, Maps, Network, Optimizer, Request, Rule, Tensor, method};

type Tensors = BTreeMap<String, Vec<f64>>;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/residual")
}

fn read(name: &str) -> Tensors {
    let bytes = std::fs::read(directory().join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, tensor)| {
        let values = match tensor.dtype() {
            Dtype::F64 => tensor.data().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
            Dtype::F16 => {
                tensor.data().as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f64()).collect()
            }
            other => panic!("{name}: {other:?}"),
        };
        (name, values)
    });
    tensors.collect()
}

/// The network with its weights, and the images with their labels.
fn small(name: &str) -> (Network<f64>, Maps<f64>, Vec<usize>) {
    let text = std::fs::read_to_string(directory().join("small.toml")).unwrap();
    let description = Description::parse("small", &text).unwrap();
    let mut network = Network::new(&description, 1, &mut |_| method(name, &Request::default())).unwrap();
    let weights = read("small.safetensors");
    network.visit(&mut |tensor| match tensor {
        Tensor::Weights(w) => w.value.iter_mut().zip(&weights[&w.name]).for_each(|(w, value)| *w = *value),
        Tensor::Vector { name, value, .. } | Tensor::Statistics { name, value, .. } => {
            value.copy_from_slice(&weights[name])
        }
    });
    network.begin();
    let values = read("golden.safetensors")["small.images"].clone();
    let images = values.len() / description.input().iter().product::<usize>();
    let [channels, height, width] = description.input();
    (network, Maps { values, shape: [images, channels, height, width] }, (0..images).map(|i| i % 5).collect())
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1e-3, |max: f64, x| max.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * size, "{what}[{i}]: {found}, PyTorch {expected}");
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let golden = read("gradients.safetensors");
    for (name, loss) in
        [("cross-entropy", Loss::CrossEntropy), ("hinge", Loss::Hinge), ("squared-hinge", Loss::SquaredHinge)]
    {
        let (mut network, x, labels) = small("none");
        let step = network.learn(&x, &labels, loss);
        close(name, &[step.loss], &golden[&format!("{name}.loss")], 1e-12);
        let mut seen = 0;
        network.visit(&mut |tensor| {
            let (tensor, gradient) = match tensor {
                Tensor::Weights(w) => (w.name.clone(), w.gradient.iter().copied().collect::<Vec<_>>()),
                Tensor::Vector { name, gradient, .. } => (name.to_owned(), gradient.to_vec()),
                Tensor::Statistics { .. } => return,
            };
            close(&format!("{name} {tensor}"), &gradient, &golden[&format!("{name}.{tensor}")], 1e-10);
            seen += 1;
        });
        assert_eq!(seen, 15);
    }
}

#[test]
fn steps_are_those_of_pytorch() {
    let golden = read("gradients.safetensors");
    for name in ["twn", "bwn"] {
        let (mut network, x, labels) = small(name);
        let mut optimizer = Optimizer::new(Rule::Sgd { momentum: 0.9 }, 1e-3, 0);
        for _ in 0..3 {
            network.learn(&x, &labels, Loss::CrossEntropy);
            network.step(&mut optimizer, 0.05, 0.0);
        }
        // Scales are rounded to f32 before they are used.
        network.visit(&mut |tensor| {
            let (tensor, value) = match tensor {
                Tensor::Weights(w) => (w.name.clone(), w.value.iter().copied().collect::<Vec<_>>()),
                Tensor::Vector { name, value, .. } | Tensor::Statistics { name, value, .. } => {
                    (name.to_owned(), value.to_vec())
                }
            };
            close(&format!("{name} {tensor}"), &value, &golden[&format!("{name}.{tensor}")], 1e-6);
        });
    }
}
