//! What changes biases and batch norms after packing, against plain loops in f64 over what was packed.

#![cfg(feature = "cli")]

mod common;

use std::path::Path;

use common::{Made, Random, expect};
use safetensors::SafeTensors;
use serde_json::Value;
use twn_pack::data::{DataSet, Split};
use twn_pack::{Container, Dtype, Tensor};

struct World {
    directory: tempfile::TempDir,
    checkpoint: String,
    data: String,
}

impl World {
    fn new() -> Self {
        let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let text = |name: &str| fixture(name).to_str().unwrap().to_owned();
        let directory = tempfile::tempdir().unwrap();
        Self { directory, checkpoint: text("lenet5-mnist.safetensors"), data: text("mnist64") }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn pack(&self, name: &str, options: &[&str]) -> Container {
        let output = self.path(name);
        expect(0, &[&[&self.checkpoint, "-o", &output, "-q", "-f"], options].concat());
        expect(0, &["verify", &output, "--against", &self.checkpoint, "-q"]);
        Container::open(output).unwrap()
    }

    fn reestimated(&self, name: &str, more: &[&str]) -> Container {
        let options = ["--net", "lenet5", "--reestimate-bn", &self.data, "--split", "test"];
        self.pack(name, &[&options, more].concat())
    }
}

fn values(container: &Container, name: &str) -> Vec<f64> {
    match container.by_name(name).unwrap() {
        Tensor::Dense(dense) => common::decode(dense.dtype, dense.data),
        Tensor::Int8(int8) => int8.to_array().unwrap().iter().map(|&w| f64::from(w)).collect(),
        Tensor::Ternary(ternary) => ternary.to_array().unwrap().iter().map(|&w| f64::from(w)).collect(),
    }
}

/// Images × channels × size × size.
#[derive(Clone)]
struct Maps {
    channels: usize,
    size: usize,
    values: Vec<f64>,
}

impl Maps {
    /// Without padding, kernel × kernel.
    fn conv(&self, weights: &[f64], filters: usize, kernel: usize) -> Self {
        let (size, plane) = (self.size - kernel + 1, self.size * self.size);
        let mut values = Vec::new();
        for image in self.values.chunks_exact(self.channels * plane) {
            for filter in weights.chunks_exact(weights.len() / filters) {
                for at in 0..size * size {
                    let (y, x) = (at / size, at % size);
                    let taps = filter.iter().enumerate().map(|(i, w)| {
                        let (c, dy, dx) = (i / (kernel * kernel), i / kernel % kernel, i % kernel);
                        w * image[c * plane + (y + dy) * self.size + x + dx]
                    });
                    values.push(taps.sum());
                }
            }
        }
        Self { channels: filters, size, values }
    }

    fn channel(&self, c: usize) -> impl Iterator<Item = usize> {
        let (channels, plane) = (self.channels, self.size * self.size);
        (0..self.values.len()).filter(move |at| at / plane % channels == c)
    }

    /// Mean and unbiased variance of each channel.
    fn statistics(&self) -> (Vec<f64>, Vec<f64>) {
        let of = |c: usize| {
            let n = self.channel(c).count() as f64;
            let mean = self.channel(c).map(|at| self.values[at]).sum::<f64>() / n;
            let squares = self.channel(c).map(|at| (self.values[at] - mean).powi(2)).sum::<f64>();
            (mean, squares / (n - 1.0))
        };
        (0..self.channels).map(of).unzip()
    }

    /// By its own statistics.
    fn normalized(&self, weight: &[f64], bias: &[f64]) -> Self {
        let (mean, variance) = self.statistics();
        let mut out = self.clone();
        for c in 0..self.channels {
            let n = self.channel(c).count() as f64;
            let scale = weight[c] / (variance[c] * (n - 1.0) / n + 1e-5).sqrt();
            self.channel(c).for_each(|at| out.values[at] = (self.values[at] - mean[c]) * scale + bias[c]);
        }
        out
    }

    fn pooled(&self) -> Self {
        let size = self.size / 2;
        let planes = self.values.chunks_exact(self.size * self.size);
        let values = planes.flat_map(|plane| {
            (0..size * size).map(|at| {
                let first = at / size * 2 * self.size + at % size * 2;
                [0, 1, self.size, self.size + 1].map(|by| plane[first + by]).into_iter().fold(f64::MIN, f64::max)
            })
        });
        Self { channels: self.channels, size, values: values.collect() }
    }

    fn relu(mut self) -> Self {
        self.values.iter_mut().for_each(|x| *x = x.max(0.0));
        self
    }
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    let size = expected.iter().fold(0.0, |size: f64, x| size.max(x.abs()));
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * size, "{what}[{i}]: {found}, expected {expected}");
    }
}

/// All three batch norms, layer by layer in f64, on all images at once.
#[test]
fn measured_again_is_what_plain_loops_find() {
    let world = World::new();
    let packed = world.reestimated("out.twn", &[]);
    let data = DataSet::open(&world.data, Split::Test).unwrap();
    let mut images = ndarray::Array4::<f32>::zeros((64, 1, 28, 28));
    data.read(&(0..64).collect::<Vec<_>>(), None, images.view_mut()).unwrap();
    let mut x = Maps { channels: 1, size: 28, values: images.iter().map(|&x| f64::from(x)).collect() };
    for (norm, weights, filters, kernel) in [("bn1", "conv1", 32, 5), ("bn2", "conv2", 64, 5), ("bn3", "fc1", 512, 4)] {
        x = x.conv(&values(&packed, &format!("{weights}.weight")), filters, kernel);
        let of = |name: &str| values(&packed, &format!("{norm}.{name}"));
        let (mean, variance) = x.statistics();
        close(&format!("{norm} mean"), &of("running_mean"), &mean, 1e-5);
        close(&format!("{norm} variance"), &of("running_var"), &variance, 1e-5);
        x = x.normalized(&of("weight"), &of("bias"));
        x = if x.size > 1 { x.pooled() } else { x }.relu();
    }
    // What has no batch norm behind it is the checkpoint's, and so are factors and offsets.
    let plain = world.pack("plain.twn", &[]);
    let same = |name: &str| values(&plain, name) == values(&packed, name);
    assert!(["fc2.bias", "bn1.weight", "bn3.bias", "fc1.weight"].into_iter().all(same));
    assert!(!["bn1.running_mean", "bn3.running_var"].into_iter().any(same));
}

/// Nearly the same in several batches, and on as few images as were asked for.
#[test]
fn batches_and_images_are_as_asked() {
    let world = World::new();
    let [whole, parts, few] =
        [("a.twn", &[][..]), ("b.twn", &["--batch", "30"]), ("c.twn", &["--images", "20"])].map(|(name, more)| {
            let file = world.reestimated(name, more);
            (values(&file, "bn1.running_var"), values(&file, "bn3.running_var"))
        });
    // The first one does not depend on batches, the last one a little.
    close("bn1", &parts.0, &whole.0, 1e-6);
    close("bn3", &parts.1, &whole.1, 0.4);
    assert!(parts.1 != whole.1 && few.0 != whole.0);
    let table = expect(0, &["inspect", &world.path("c.twn")]).0;
    assert!(table.contains("dense: rank 1, measured again on 20 images"), "{table}");
    let json = expect(0, &["inspect", &world.path("c.twn"), "--json"]).0;
    assert_eq!(json.matches("measured again on 20 images").count(), 6, "{json}");
    let verified = expect(0, &["verify", &world.path("c.twn"), "--against", &world.checkpoint]).0;
    assert!(verified.contains("in every dense byte but of 6 repaired tensors"), "{verified}");
    // The file unpacks to what it says.
    expect(0, &["unpack", &world.path("c.twn"), "-o", &world.path("c.safetensors"), "-q"]);
    let bytes = std::fs::read(world.path("c.safetensors")).unwrap();
    let unpacked = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(common::decode(Dtype::F32, unpacked.tensor("bn1.running_var").unwrap().data()), few.0);
}

/// On the fixture's 64 images: plain ternary weights are mostly wrong, repaired ones mostly right.
#[test]
fn repairs_bring_accuracy_back() {
    let world = World::new();
    let accuracy = |name: &str| {
        let json = expect(0, &["eval", &world.path(name), "--net", "lenet5", "--data", &world.data, "--json"]).0;
        serde_json::from_str::<Value>(&json).unwrap()["accuracy"].as_f64().unwrap()
    };
    let plain = world.pack("plain.twn", &[]);
    let adjusted = world.pack("adjusted.twn", &["--net", "lenet5", "--adjust-bn"]);
    let measured = world.reestimated("measured.twn", &[]);
    let [before, predicted, after] = ["plain.twn", "adjusted.twn", "measured.twn"].map(accuracy);
    assert!(before < 0.6 && predicted > 0.8 && after > 0.95, "{before} {predicted} {after}");
    // And predicted statistics are nearer to the measured ones than those of the float weights are.
    for name in ["bn1.running_var", "bn2.running_mean", "bn2.running_var", "bn3.running_mean", "bn3.running_var"] {
        let [plain, adjusted, measured] = [&plain, &adjusted, &measured].map(|file| values(file, name));
        let distance = |x: &[f64]| x.iter().zip(&measured).map(|(x, m)| (x - m).powi(2)).sum::<f64>();
        assert!(distance(&adjusted) < distance(&plain), "{name}: {} {}", distance(&adjusted), distance(&plain));
    }
}

/// A linear layer: afterwards its outputs have the mean that they had in floats, in whatever type biases are.
#[test]
fn corrected_biases_keep_the_mean_output() {
    let world = World::new();
    let (filters, n, groups) = (12, 30, 3);
    let mut random = Random(7);
    for (dtype, groups, tolerance) in [(Dtype::F32, 1, 1e-5), (Dtype::F64, groups, 1e-5), (Dtype::F16, 1, 2e-3)] {
        let weight = Made::gaussian("a.weight", dtype, &[filters, n], 3);
        let bias = Made::gaussian("a.bias", dtype, &[filters], 4);
        let mean: Vec<f64> = (0..groups * n).map(|_| random.gaussian() + 0.5).collect();
        let sums: Vec<f64> = mean.iter().map(|mean| 40.0 * mean).collect();
        let shape = if groups == 1 { vec![n] } else { vec![groups, n] };
        let rows =
            Made { name: "a.weight.rows".into(), dtype: Dtype::I64, shape: vec![], data: 40i64.to_le_bytes().into() };
        let statistics = [Made::new("a.weight.x_sum", Dtype::F64, &shape, &sums), rows];
        let model = common::checkpoint(world.directory.path(), "in.safetensors", &[weight.clone(), bias.clone()]);
        let statistics = common::checkpoint(world.directory.path(), "stats.safetensors", &statistics);
        let (model, output) = (model.to_str().unwrap(), world.path("out.twn"));
        let options = ["--calibration", statistics.to_str().unwrap(), "--correct-bias", "-f", "-q"];
        expect(0, &[&[model, "-o", &output][..], &options].concat());
        let packed = Container::open(&output).unwrap();
        let (ternary, corrected) = (values(&packed, "a.weight"), values(&packed, "a.bias"));
        let mut moved = 0.0f64;
        for (f, (w, t)) in weight.values().chunks(n).zip(ternary.chunks(n)).enumerate() {
            let mean = &mean[f / (filters / groups) * n..][..n];
            let dot = |w: &[f64]| w.iter().zip(mean).map(|(w, x)| w * x).sum::<f64>();
            let (float, packed) = (dot(w) + bias.values()[f], dot(t) + corrected[f]);
            assert!((float - packed).abs() < tolerance * (1.0 + float.abs()), "{dtype}, filter {f}: {float} {packed}");
            moved = moved.max((corrected[f] - bias.values()[f]).abs());
        }
        assert!(moved > 0.1);
    }
}

/// A bias beyond its own type was written as infinity, without a word.
#[test]
fn repaired_values_fit_their_type() {
    let world = World::new();
    let model = [Made::gaussian("a.weight", Dtype::F16, &[3, 8], 1), Made::gaussian("a.bias", Dtype::F16, &[3], 2)];
    let rows = Made { name: "a.weight.rows".into(), dtype: Dtype::I64, shape: vec![], data: 1i64.to_le_bytes().into() };
    let statistics = [Made::new("a.weight.x_sum", Dtype::F64, &[8], &[1e6; 8]), rows];
    let model = common::checkpoint(world.directory.path(), "in.safetensors", &model);
    let statistics = common::checkpoint(world.directory.path(), "stats.safetensors", &statistics);
    let (model, statistics, output) = (model.to_str().unwrap(), statistics.to_str().unwrap(), world.path("out.twn"));
    let (_, stderr) = expect(2, &[model, "-o", &output, "--calibration", statistics, "--correct-bias"]);
    assert!(stderr.contains("`a.bias`") && stderr.contains("does not fit F16"), "{stderr}");
    assert!(!Path::new(&output).exists());
}

#[test]
fn what_cannot_be_repaired_is_said() {
    let world = World::new();
    let output = world.path("no.twn");
    let refused = |options: &[&str], expected: &str| {
        let (_, stderr) = expect(2, &[&[&world.checkpoint, "-o", &output], options].concat());
        assert!(stderr.contains(expected), "{options:?}: {stderr}");
        assert!(!Path::new(&output).exists() && common::names(world.directory.path()).is_empty(), "{options:?}");
    };
    refused(&["--net", "lenet5"], "--net is for --reestimate-bn");
    refused(&["--adjust-bn"], "--net");
    refused(&["--images", "5"], "--reestimate-bn");
    refused(&["--width", "2"], "--net");
    refused(&["--correct-bias"], "--calibration");
    refused(&["--net", "lenet5", "--adjust-bn", "--reestimate-bn", &world.data], "cannot be used with");
    // Before anything is packed.
    for (net, expected) in [
        (&["--net", "lenet5", "--width", "2"][..], "`conv1.weight`: shape [32, 1, 5, 5], expected [64, 1, 5, 5]"),
        (&["--net", "vgg7"], "expected [128, 3, 3, 3]"),
    ] {
        let (_, stderr) = expect(3, &[&[&world.checkpoint, "-o", &output, "--adjust-bn"], net].concat());
        assert!(stderr.contains(expected) && !Path::new(&output).exists(), "{stderr}");
    }
    // No bias, and no sums.
    let statistics = world.path("stats.safetensors");
    let calibrate = ["calibrate", &world.checkpoint, "--net", "lenet5", "--data", &world.data, "--split", "test"];
    expect(0, &[&calibrate[..], &["--images", "8", "-o", &statistics, "-q"]].concat());
    let options = ["-o", &output, "--calibration", &statistics, "--correct-bias"];
    let (_, stderr) = expect(0, &[&[&world.checkpoint[..]], &options[..]].concat());
    assert!(stderr.contains("`conv1.weight` and 2 more: no bias to correct"), "{stderr}");
    // Two repairs: each is done, one on top of the other.
    let measured = ["--net", "lenet5", "--reestimate-bn", &world.data, "--split", "test", "--json", "-q", "-f"];
    let (json, _) = expect(0, &[&[&world.checkpoint[..]], &options[..], &measured].concat());
    assert_eq!(json.matches("corrected for the mean input").count(), 1, "{json}");
    assert_eq!(json.matches("measured again on 64 images").count(), 6, "{json}");
    assert!(values(&Container::open(&output).unwrap(), "fc2.bias").iter().all(|b| b.is_finite()));
}
