//! `twn-pack train` as users meet it, on the 64 images of `fixtures/mnist64` and small networks. Not
//! here: gradients, which are held to finite differences and to PyTorch next to the layers.

#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;

mod going_on;
mod learning;
mod told;

use std::path::Path;

use common::expect;
use serde_json::Value;

/// A convolution with batch norm, a residual block, and a linear layer.
const NETWORK: &str = r#"
input = [1, 28, 28]
layers = [
    { conv2d = { weight = "conv1.weight", filters = 6, kernel = 5, stride = 2 } },
    { batch_norm = "bn1" },
    "relu",
    { max_pool = { kernel = 2 } },
    { residual = { body = [
        { conv2d = { weight = "block.conv.weight", filters = 6, kernel = 3, padding = 1 } },
        { batch_norm = "block.bn" },
    ] } },
    "relu",
    "flatten",
    # A name that the converter would keep dense.
    { linear = { weight = "lm_head.weight", bias = "lm_head.bias", outputs = 10 } },
]
"#;

const METHODS: [&str; 8] = ["none", "twn", "bwn", "absmean", "optimal", "tga", "esa", "binaryconnect"];

struct World {
    directory: tempfile::TempDir,
    data: String,
    network: String,
}

impl World {
    fn new() -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mnist64");
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        for what in ["images-idx3", "labels-idx1"] {
            for split in ["t10k", "train"] {
                let from = fixtures.join(format!("t10k-{what}-ubyte.gz"));
                std::fs::copy(from, data.join(format!("{split}-{what}-ubyte.gz"))).unwrap();
            }
        }
        let network = directory.path().join("small.toml");
        std::fs::write(&network, NETWORK).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Self { data: text(&data), network: text(&network), directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// The arguments of a run that writes `NAME.safetensors` and, if it is ternary, `NAME.twn`.
    fn arguments(&self, name: &str, more: &[&str]) -> Vec<String> {
        let (output, packed) = (self.path(&format!("{name}.safetensors")), self.path(&format!("{name}.twn")));
        let fixed = ["train", "--net", &self.network, "--data", &self.data, "-o", &output];
        let pack: &[&str] = if more.contains(&"none") { &[] } else { &["--pack", &packed] };
        fixed.iter().chain(pack).chain(more).map(|&argument| argument.to_owned()).collect()
    }

    fn train(&self, code: i32, name: &str, more: &[&str]) -> (String, String) {
        expect(code, &self.arguments(name, more))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The header of a checkpoint, and where its values begin.
    fn header(&self, file: &str) -> (Value, usize) {
        let bytes = self.bytes(file);
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        (serde_json::from_slice(&bytes[8..start]).unwrap(), start)
    }

    /// Writes a checkpoint like that one, but for these values of a tensor from element `at` on; where it is.
    fn changed(&self, file: &str, tensor: &str, at: usize, values: &[f32]) -> String {
        let ((header, start), mut bytes) = (self.header(file), self.bytes(file));
        let at = start + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 4 * at;
        let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        bytes[at..at + values.len()].copy_from_slice(&values);
        let changed = self.path("changed.safetensors");
        std::fs::write(&changed, bytes).unwrap();
        changed
    }

    /// What PyTorch would say of how many batches a batch norm has seen.
    fn batches(&self, file: &str, layer: &str) -> i64 {
        let ((header, start), bytes) = (self.header(file), self.bytes(file));
        let entry = &header[format!("{layer}.num_batches_tracked")];
        let at = start + entry["data_offsets"][0].as_u64().unwrap() as usize;
        assert_eq!((&entry["dtype"], &entry["shape"]), (&"I64".into(), &serde_json::json!([])));
        i64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn metrics(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(&format!("{name}.run/metrics.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn predictions(&self, file: &str, more: &[&str]) -> Vec<String> {
        let (file, predictions) = (self.path(file), self.path("predictions.txt"));
        let fixed = ["eval", &file, "--net", &self.network, "--data", &self.data, "-q", "-f", "--predictions"];
        expect(0, &[&fixed[..], &[&predictions], more].concat());
        std::fs::read_to_string(predictions).unwrap().lines().map(str::to_owned).collect()
    }
}
