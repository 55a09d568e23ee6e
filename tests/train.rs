//! `twn-pack train` as users meet it, on the 64 images of `fixtures/mnist64` and small networks. Not
//! here: gradients, which are held to finite differences and to PyTorch next to the layers.

#![cfg(feature = "cli")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::expect;
use serde_json::Value;
use twn_pack::data::{DataSet, Split};
use twn_pack::net::Description;
use twn_pack::train::{self, Setup};

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

#[test]
fn every_method_learns_and_is_packed_as_it_was_trained() {
    let world = World::new();
    for method in METHODS {
        let options = ["--method", method, "--epochs", "8", "--batch", "16", "--rate", "0.05", "-q"];
        world.train(0, method, &options);
        let metrics = world.metrics(method);
        assert_eq!(metrics.len(), 9, "the setup and eight epochs");
        let loss = |i: usize| metrics[i]["loss"].as_f64().unwrap();
        assert!(loss(8) < 0.8 * loss(1), "{method}: loss {} after {}", loss(8), loss(1));
        let accuracy = metrics[8]["test_accuracy"].as_f64().unwrap();
        // The same on the checkpoint with its method, on unpacked floats, and on the packed kernels.
        let (checkpoint, packed) = (format!("{method}.safetensors"), format!("{method}.twn"));
        let file = if method == "none" { &checkpoint } else { &packed };
        let predictions = world.predictions(file, &[]);
        assert_eq!(predictions, world.predictions(file, &["--float"]), "{method}");
        assert_eq!(predictions, world.predictions(&checkpoint, &[]), "{method}");
        assert_eq!(predictions, world.predictions(&checkpoint, &["--float"]), "{method}");
        let (stdout, _) =
            expect(0, &["eval", &world.path(file), "--net", &world.network, "--data", &world.data, "--json"]);
        let results: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(results["accuracy"].as_f64().unwrap(), accuracy, "{method}: what training said");
        let layers = if method == "none" { 0 } else { 3 };
        assert_eq!(results["packed_layers"], layers, "{method}");
        assert_eq!(metrics[8]["sparsity"].is_null(), method == "none");
        // And on what is unpacked again: floats that are ternary already, however they were found.
        if method != "none" {
            let unpacked = format!("{method}-unpacked.safetensors");
            expect(0, &["unpack", &world.path(&packed), "-o", &world.path(&unpacked), "-q"]);
            assert_eq!(predictions, world.predictions(&unpacked, &[]), "{method}: unpacked");
            let again = format!("{method}-again.twn");
            expect(0, &[&world.path(&unpacked), "-o", &world.path(&again), "-q"]);
            assert_eq!(predictions, world.predictions(&again, &[]), "{method}: unpacked and packed again");
        }
        // What is packed is without error where the method's own weights were written.
        if ["tga", "esa", "binaryconnect"].contains(&method) {
            let (stdout, _) = expect(0, &["inspect", &world.path(&packed), "--json"]);
            let report: Value = serde_json::from_str(&stdout).unwrap();
            assert_eq!(report["totals"]["relative_squared_error"].as_f64(), Some(0.0), "{method}");
        }
    }
}

/// Of several planes no method finds the same codes in the sum again: it stays a float tensor.
#[test]
fn planes_that_were_unpacked_stay_what_they_are() {
    let world = World::new();
    world.train(0, "run", &["--method", "absmean", "--epochs", "2", "--batch", "16", "--rate", "0.05", "-q"]);
    let (planes, unpacked) = (world.path("planes.twn"), world.path("unpacked.safetensors"));
    expect(0, &[&world.path("run.safetensors"), "--set", "block.*", "planes=2", "-o", &planes, "-q"]);
    expect(0, &["unpack", &planes, "-o", &unpacked, "-q"]);
    assert_eq!(world.predictions("planes.twn", &["--float"]), world.predictions("unpacked.safetensors", &["--float"]));
    let (stdout, _) = expect(0, &["inspect", &unpacked]);
    assert_eq!(stdout.matches("t2 optimal").count(), 2, "{stdout}");
}

/// A run that stops in its first epoch has a state, too: after a loss that is no number it goes on as was advised.
#[test]
fn a_run_that_stops_in_its_first_epoch_goes_on() {
    let world = World::new();
    for (method, optimizer) in [("twn", "sgd"), ("tga", "adam"), ("esa", "sgd")] {
        let fixed = ["--method", method, "--optimizer", optimizer, "--epochs", "2", "--batch", "32", "-q"];
        let (whole, run) = (format!("{method}-whole"), format!("{method}-run"));
        world.train(0, &whole, &[&fixed[..], &["--rate", "0.01"]].concat());
        let (_, stderr) = world.train(2, &run, &[&fixed[..], &["--rate", "1e30"]].concat());
        assert!(stderr.contains("the run's state is as it began"), "{stderr}");
        world.train(0, &run, &[&fixed[..], &["--rate", "0.01", "--resume", "--new-recipe"]].concat());
        let [whole, run] = [whole, run].map(|name| world.bytes(&format!("{name}.safetensors")));
        assert!(whole == run, "{method}");
    }
}

/// Cancelled before its first step, and again behind it, a run ends with the bytes of one that was not.
#[test]
fn a_run_that_is_cancelled_in_its_first_epoch_goes_on() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let world = World::new();
    let fixed = ["--method", "twn", "--epochs", "2", "--batch", "24", "--rate", "0.01", "-q"];
    world.train(0, "whole", &fixed);
    let lines = world.metrics("whole");
    let setup: Setup = serde_json::from_value(lines[0].clone()).unwrap();
    let description = Description::open(&world.network).unwrap();
    let [train, test] = [Split::Train, Split::Test].map(|split| DataSet::open(&world.data, split).unwrap());
    let directory = world.path("cut.run");
    let cancel = AtomicBool::new(true);
    for resume in [false, true] {
        let options = train::Options {
            init: None,
            directory: Path::new(&directory),
            resume,
            new_recipe: false,
            new_data: false,
            progress: Some(&|_| cancel.store(true, Ordering::Relaxed)),
            epoch: None,
            cancel: Some(&cancel),
        };
        let outcome = train::train(&description, (&train, &test), &setup, &options);
        let error = outcome.err().map(|error| error.to_string());
        assert_eq!(error, Some(twn_pack::Error::Cancelled.to_string()), "resumed: {resume}");
        cancel.store(false, Ordering::Relaxed);
    }
    world.train(0, "cut", &[&fixed[..], &["--resume"]].concat());
    assert!(world.bytes("whole.safetensors") == world.bytes("cut.safetensors"));
    // What is over is told again as it was.
    let (stdout, _) = world.train(0, "cut", &[&fixed[..], &["--resume", "-f", "--json"]].concat());
    let last: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(&last, world.metrics("cut").last().unwrap());
}

/// An image that cannot be read ends a run, but not what it has learned.
#[test]
fn a_broken_image_costs_no_step() {
    let world = World::new();
    let data = world.path("arrays");
    std::fs::create_dir(&data).unwrap();
    let labels: Vec<u8> = (0..64).map(|i| i % 10).collect();
    let write = |broken: Option<usize>| {
        let mut pixels: Vec<u8> =
            (0..64 * 784).flat_map(|i| (((i * 7919) % 251) as f32 / 251.0).to_le_bytes()).collect();
        if let Some(image) = broken {
            pixels[image * 784 * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        let view =
            |dtype, shape: &[usize], bytes| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let images = view(safetensors::Dtype::F32, &[64, 1, 28, 28], &pixels);
        let labels = view(safetensors::Dtype::U8, &[64], &labels);
        let bytes = safetensors::serialize([("images", images), ("labels", labels)], None).unwrap();
        for split in ["train", "test"] {
            std::fs::write(Path::new(&data).join(format!("{split}.safetensors")), &bytes).unwrap();
        }
    };
    let train = |code, name: &str, more: &[&str]| {
        let output = world.path(&format!("{name}.safetensors"));
        let fixed = ["train", "--net", &world.network, "--data", &data, "-o", &output, "--epochs", "1", "--batch", "4"];
        expect(code, &[&fixed[..], &["--progress", "never"], more].concat()).1
    };
    write(None);
    train(0, "whole", &[]);
    write(Some(50));
    let stderr = train(3, "run", &[]);
    assert!(stderr.contains("image 50"), "{stderr}");
    let state = world.bytes("run.run/state.safetensors");
    let header = String::from_utf8_lossy(&state[8..4096.min(state.len())]).into_owned();
    assert!(header.contains("batches") && !header.contains(r#"\"batches\":0"#), "{header}");
    assert!(stderr.contains("--resume --new-data goes on"), "{stderr}");
    write(None);
    let stderr = train(2, "run", &["--resume"]);
    assert!(stderr.contains("the training images, or their labels"), "{stderr}");
    train(0, "run", &["--resume", "--new-data"]);
    assert!(world.bytes("whole.safetensors") == world.bytes("run.safetensors"));
    // The state knows of the new data at once.
    train(0, "run", &["--resume", "-f"]);
}

/// A run belongs to all of its images and labels, not to the first.
#[test]
fn a_run_goes_on_with_its_own_labels_only() {
    let world = World::new();
    let labels = Path::new(&world.data).join("t10k-labels-idx1-ubyte");
    let zipped = labels.with_extension("gz");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(std::fs::File::open(&zipped).unwrap()), &mut bytes)
        .unwrap();
    std::fs::remove_file(&zipped).unwrap();
    std::fs::write(&labels, &bytes).unwrap();
    let run = |code, more: &[&str]| world.train(code, "run", &[&["--epochs", "1", "-q"], more].concat()).1;
    run(0, &["--test-images", "40"]);
    let resume = ["--test-images", "40", "--resume", "-f"];
    for (image, code) in [(39, 2), (63, 0)] {
        let mut changed = bytes.clone();
        changed[8 + image] = (changed[8 + image] + 1) % 10;
        std::fs::write(&labels, changed).unwrap();
        let stderr = run(code, &resume);
        assert_eq!(stderr.contains("data: the test images, or their labels"), code == 2, "{image}: {stderr}");
        assert!(!stderr.contains("the training images"), "{stderr}");
    }
}

/// Rules are those of packing, with training's methods; recipes bring theirs, and images are changed as was said.
#[test]
fn rules_recipes_and_augmentation_say_what_is_done() {
    let world = World::new();
    let rules = world.path("rules.toml");
    let text = "method = \"bwn\"\nexclude = [\"conv1.*\"]\n[[override]]\nmatch = \"lm_head.*\"\nmethod = \"tga\"\n";
    std::fs::write(&rules, text).unwrap();
    let quick = ["--epochs", "1", "--batch", "32", "-q"];
    let setup = |name: &str, more: &[&str]| {
        world.train(0, name, &[&quick[..], more].concat());
        world.metrics(name)[0].clone()
    };
    let found = setup("rules", &["--rules", &rules]);
    let methods = found["methods"].as_object().unwrap();
    assert_eq!(methods.keys().collect::<Vec<_>>(), ["block.conv.weight", "lm_head.weight"]);
    assert_eq!([&methods["block.conv.weight"]["name"], &methods["lm_head.weight"]["name"]], ["bwn", "tga"]);
    let found = setup("over", &["--rules", &rules, "--method", "optimal", "--augment", "pad:3"]);
    assert_eq!(found["methods"]["block.conv.weight"]["name"], "optimal");
    assert_eq!(found["recipe"]["augment"], serde_json::json!({ "pad": { "pixels": 3, "flip": false } }));
    let found = setup("recipe", &["--recipe", "binaryconnect", "--augment", "crop,flip"]);
    assert_eq!(found["methods"]["conv1.weight"]["name"], "binaryconnect");
    assert_eq!(found["recipe"]["augment"], "imagenet");
    assert_eq!(setup("other", &["--recipe", "tga-imagenet", "-m", "twn"])["methods"]["conv1.weight"]["name"], "twn");
    for (text, expected) in
        [("method = \"tgb\"", "line 1: unknown method `tgb`"), ("encoding = \"t5\"", "are for packing")]
    {
        std::fs::write(&rules, text).unwrap();
        let (_, stderr) = world.train(2, "bad", &[&quick[..], &["--rules", &rules]].concat());
        assert!(stderr.contains(expected), "{stderr}");
    }
    for augment in ["pad", "pad:0", "pad:x", "flip,flip", "pad:2,crop", "none,flip", ""] {
        let (_, stderr) = world.train(2, "bad", &[&quick[..], &["--augment", augment]].concat());
        assert!(stderr.contains("pad:N"), "{augment}: {stderr}");
    }
}

#[test]
fn what_a_checkpoint_has_for_no_layer_is_named() {
    let world = World::new();
    world.train(0, "float", &["--method", "none", "--epochs", "1", "-q"]);
    std::fs::write(&world.network, NETWORK.replace(", bias = \"lm_head.bias\"", "")).unwrap();
    let float = world.path("float.safetensors");
    let (_, stderr) = world.train(0, "tuned", &["--init", &float, "--epochs", "1"]);
    // The file is no part of the memory that is said, and that is said too.
    let size = twn_pack::report::bytes(std::fs::metadata(&float).unwrap().len());
    assert!(stderr.contains(&format!("besides the images and {size} of --init, mapped\n")), "{stderr}");
    assert!(stderr.contains("which are left out: lm_head.bias\n"), "{stderr}");
}

#[test]
fn the_seed_decides_and_threads_do_not() {
    let world = World::new();
    let options = |seed| ["--epochs", "2", "--batch", "24", "--seed", seed, "--augment", "cifar", "-q"];
    for (name, threads) in [("one", "1"), ("three", "3")] {
        let arguments = world.arguments(name, &[&options("7")[..], &["-j", threads]].concat());
        assert!(Command::new(env!("CARGO_BIN_EXE_twn-pack")).args(arguments).status().unwrap().success());
    }
    world.train(0, "other", &options("8"));
    assert!(world.bytes("one.safetensors") == world.bytes("three.safetensors"));
    assert!(world.bytes("one.twn") == world.bytes("three.twn"));
    assert!(world.bytes("one.safetensors") != world.bytes("other.safetensors"));
}

/// Killed at different moments, a run that goes on ends with the bytes of one that was never killed.
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let world = World::new();
    let options = ["--epochs", "12", "--batch", "5", "--method", "tga", "--optimizer", "adam", "--rate", "1e-3", "-q"];
    let start = std::time::Instant::now();
    world.train(0, "whole", &options);
    let whole = start.elapsed();
    let resume = [&options[..], &["--resume"]].concat();
    let mut kills = 0;
    for attempt in 0..100 {
        if Path::new(&world.path("killed.safetensors")).exists() {
            break;
        }
        // Killed before its first state was there, it begins anew.
        let begun = Path::new(&world.path("killed.run/state.safetensors")).exists();
        let mut child = Command::new(env!("CARGO_BIN_EXE_twn-pack"))
            .args(world.arguments("killed", if begun { &resume } else { &options[..] }))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::max(whole / 4, Duration::from_millis(30)) + Duration::from_millis(7 * attempt));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills > 0, "no run was killed");
    assert!(world.bytes("whole.safetensors") == world.bytes("killed.safetensors"));
    let epochs = |name| world.metrics(name).iter().skip(1).map(|m| (m["epoch"].clone(), m["loss"].clone())).collect();
    let (whole, killed): (Vec<_>, Vec<_>) = (epochs("whole"), epochs("killed"));
    assert_eq!(whole, killed);
}

/// Ctrl-C ends a run within an epoch, with its state saved.
#[cfg(unix)]
#[test]
fn an_interrupted_run_is_saved() {
    let world = World::new();
    let options = ["--epochs", "500", "--batch", "4", "-q"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_twn-pack"))
        .args(world.arguments("run", &options))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !std::fs::read_to_string(world.path("run.run/metrics.jsonl")).is_ok_and(|text| text.lines().count() > 2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!Path::new(&world.path("run.safetensors")).exists());
    let state = world.bytes("run.run/state.safetensors");
    let header = String::from_utf8_lossy(&state[8..4096.min(state.len())]).into_owned();
    assert!(header.contains("twn-pack.run"), "{header}");
    // Another setup cannot go on with it.
    let (_, stderr) = world.train(2, "run", &["--epochs", "500", "--batch", "8", "-q", "--resume"]);
    assert!(stderr.contains("recipe.batch: found 4, asked for 8"), "{stderr}");
    // Nor another network of that name.
    std::fs::write(&world.network, NETWORK.replace("stride = 2", "stride = 3, padding = 6")).unwrap();
    let (_, stderr) = world.train(2, "run", &[&options[..], &["--resume"]].concat());
    assert!(stderr.contains("layers: found"), "{stderr}");
}

#[test]
fn a_run_goes_on_with_another_recipe_if_it_is_told_to() {
    let world = World::new();
    let started = ["--epochs", "2", "--batch", "16", "--rate", "0.05", "--schedule", "constant", "-q"];
    world.train(0, "run", &started);
    let changed = |more: &[&'static str]| {
        let fixed = ["--epochs", "4", "--rate", "0.01", "--schedule", "constant", "-q", "-f", "--resume"];
        [&fixed[..], more].concat()
    };
    let (_, stderr) = world.train(2, "run", &changed(&["--batch", "16"]));
    assert!(stderr.contains("recipe.rate: found 0.05, asked for 0.01"), "{stderr}");
    let (_, stderr) = world.train(2, "run", &changed(&["--batch", "8", "--new-recipe"]));
    assert!(stderr.contains("batches of 16"), "{stderr}");
    world.train(0, "run", &changed(&["--batch", "16", "--new-recipe"]));
    let lines = world.metrics("run");
    let rates: Vec<Option<f64>> = lines.iter().map(|line| line["rate"].as_f64()).collect();
    assert_eq!(rates, [None, Some(0.05), Some(0.05), None, Some(0.01), Some(0.01)], "setups and epochs");
    assert_eq!(lines[3]["recipe"]["rate"], 0.01);
    // A plot takes that, and a line that is being written.
    let path = world.path("run.run/metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}{}", &text[..20])).unwrap();
    let plot = world.path("plot.svg");
    std::fs::create_dir(world.path("esa-0.2")).unwrap();
    std::fs::copy(&path, world.path("esa-0.2/metrics.jsonl")).unwrap();
    expect(0, &["plot", &world.path("run.run"), &world.path("esa-0.2"), "-o", &plot]);
    assert!(std::fs::read_to_string(&plot).unwrap().contains("esa-0.2\n"), "its whole name");
    assert!(std::fs::read_to_string(&plot).unwrap().contains("<polyline"));
    // Without metrics a run goes on, too; what is over is not known any more.
    std::fs::remove_file(&path).unwrap();
    let longer = ["--epochs", "5", "--rate", "0.01", "--schedule", "constant", "--batch", "16", "-q", "-f", "--resume"];
    world.train(0, "run", &[&longer[..], &["--new-recipe"]].concat());
    let epochs: Vec<Value> = world.metrics("run").iter().map(|line| line["epoch"].clone()).collect();
    assert_eq!(epochs, [Value::Null, Value::Null, 5.into()]);
    expect(0, &["plot", &world.path("run.run"), "-o", &plot, "-f"]);
    assert!(std::fs::read_to_string(&plot).unwrap().contains("<circle"), "one epoch is a point");
}

/// The state knows of a new recipe at once, not only when an epoch of it is over.
#[test]
fn a_new_recipe_is_in_the_state_before_its_first_step() {
    let world = World::new();
    let fixed = ["--batch", "32", "--schedule", "constant", "-q"];
    let run = |code, more: &[&str]| world.train(code, "run", &[&fixed[..], more].concat()).1;
    run(0, &["--epochs", "2"]);
    let broken = ["--epochs", "4", "--rate", "1e30", "-f", "--resume"];
    for more in [&["--new-recipe"][..], &[]] {
        let stderr = run(2, &[&broken[..], more].concat());
        assert!(stderr.contains("the run's state is that after epoch 2"), "{stderr}");
    }
    run(0, &["--epochs", "4", "--rate", "0.01", "-f", "--resume", "--new-recipe"]);
}

#[test]
fn esa_says_when_weights_were_rounded_before_they_had_settled() {
    let world = World::new();
    for (epochs, warns) in [("1", true), ("40", false)] {
        let options = ["-m", "esa", "--epochs", epochs, "--batch", "16", "--rate", "0.002", "--progress", "never"];
        let (_, stderr) = world.train(0, epochs, &options);
        assert_eq!(stderr.contains("had settled when they were rounded"), warns, "{stderr}");
    }
}

#[test]
fn options_of_every_command_have_a_heading_of_their_own() {
    for command in ["train", "eval", "verify"] {
        let (help, _) = expect(0, &[command, "-h"]);
        assert!(help.contains("Options of every command:\n  -j") && !help.contains("Repair without"), "{help}");
    }
}

#[test]
fn two_processes_do_not_train_in_one_directory() {
    let world = World::new();
    std::fs::create_dir(world.path("run.run")).unwrap();
    let lock = std::fs::File::create(world.path("run.run/lock")).unwrap();
    lock.lock().unwrap();
    let (_, stderr) = world.train(2, "run", &["--epochs", "1", "-q"]);
    assert!(stderr.contains("another process is training"), "{stderr}");
    drop(lock);
    // What a kill left of a state is gone with the next run; what is another's stays.
    let (left, other) = (".state.safetensors.a1B2c3.twn-partial", ".other.safetensors.a1B2c3.twn-partial");
    for name in [left, other] {
        std::fs::write(world.path(&format!("run.run/{name}")), "half").unwrap();
    }
    world.train(0, "run", &["--epochs", "1", "-q"]);
    assert_eq!([left, other].map(|name| Path::new(&world.path(&format!("run.run/{name}"))).exists()), [false, true]);
}

/// A folder of images in ImageNet's layout goes through all of it: random crops, a residual network, packing.
#[test]
fn a_folder_of_images_trains_a_residual_network() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for (split, count) in [("train", 16), ("val", 6)] {
        for (class, name) in ["n01-across", "n02-down"].into_iter().enumerate() {
            let folder = directory.path().join("data").join(split).join(name);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                // Stripes of some width and colour, in images of many sizes.
                let (width, height, period) = (40 + 7 * (i % 5), 44 + 5 * (i % 7), 6 + i % 5);
                let image = image::RgbImage::from_fn(width, height, |x, y| {
                    let on = if class == 0 { y } else { x } / period % 2 == 0;
                    image::Rgb([on, on, !on].map(|on| if on { 200 + (x * y * 31 % 40) as u8 } else { 10 * i as u8 }))
                });
                let file = folder.join(format!("{i}.{}", if i % 2 == 0 { "png" } else { "jpg" }));
                image.save(file).unwrap();
            }
        }
    }
    let (data, output, packed) = (path("data"), path("tuned.safetensors"), path("tuned.twn"));
    let network = ["--net", "resnet18", "--width", "0.0625", "--classes", "2", "--input", "3x48x48", "--data", &data];
    let recipe = ["--recipe", "twn-imagenet", "--epochs", "12", "--batch", "8", "--normalize", "imagenet", "-q"];
    expect(0, &[&["train", "-o", &output, "--pack", &packed][..], &network, &recipe].concat());
    let text = std::fs::read_to_string(path("tuned.run/metrics.jsonl")).unwrap();
    let epochs: Vec<Value> = text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let loss = |i: usize| epochs[i]["loss"].as_f64().unwrap();
    assert!(loss(11) < 0.7 * loss(0), "from {} to {}", loss(0), loss(11));
    let eval = |file: &str| {
        let (stdout, _) = expect(0, &[&["eval", file, "--json", "--normalize", "imagenet"][..], &network].concat());
        serde_json::from_str::<Value>(&stdout).unwrap()
    };
    let results = eval(&packed);
    assert_eq!(results["packed_layers"], 21);
    assert_eq!(results["accuracy"], epochs[11]["test_accuracy"], "what training said");
    assert_eq!(results["correct"], eval(&output)["correct"]);
    assert!(results["accuracy"].as_f64().unwrap() > 0.7, "{results}");
}

/// Elsewhere nobody says how much memory is free.
#[cfg(target_os = "linux")]
#[test]
fn a_network_that_memory_cannot_hold_is_refused() {
    let world = World::new();
    let (_, stderr) = world.train(2, "large", &["--epochs", "1", "--width", "4000"]);
    assert!(stderr.contains("of memory besides the images"), "{stderr}");
    assert!(!Path::new(&world.path("large.run")).exists());
}

#[test]
fn from_a_checkpoint() {
    let world = World::new();
    world.train(0, "float", &["--method", "none", "--epochs", "6", "--batch", "16", "--rate", "0.05", "-q"]);
    let float = world.path("float.safetensors");
    let tuned = ["--init", &float, "--epochs", "3", "--keep-first-last", "-q"];
    world.train(0, "tuned", &tuned);
    let (stdout, _) = expect(0, &["inspect", &world.path("tuned.twn")]);
    let reasons = stdout.matches("as it was trained").count();
    assert_eq!(reasons, 2, "the first and the last layer stay dense as they were trained: {stdout}");
    // A method that is given counts, whatever the training was.
    let packed = world.path("float.twn2");
    expect(0, &[&float, "-m", "optimal", "-i", "*.weight", "-o", &packed, "-q"]);
    let (stdout, _) = expect(0, &["inspect", &packed]);
    assert_eq!(stdout.matches("t2 optimal filter").count(), 3, "{stdout}");
    // It says so where that is not what was trained.
    let tuned = world.path("tuned.safetensors");
    for (options, warns) in [(["-g", "tensor"], true), (["-m", "bwn"], true), (["-g", "filter"], false)] {
        let (_, stderr) = expect(0, &[&[&*tuned, "-o", &world.path("other.twn"), "-f"], &options[..]].concat());
        assert_eq!(stderr.contains("what is packed is not what was trained"), warns, "{options:?}: {stderr}");
    }
    let (damaged, mut bytes) = (world.path("damaged.safetensors"), world.bytes("tuned.safetensors"));
    let method = br#"\"method\":\"twn"#; // JSON within JSON
    let at = bytes.windows(method.len()).position(|window| window == method).unwrap() + method.len() - 3;
    bytes[at..at + 3].copy_from_slice(b"tvn");
    std::fs::write(&damaged, bytes).unwrap();
    let (_, stderr) = expect(2, &[&damaged, "-o", &world.path("damaged.twn")]);
    assert!(stderr.contains("damaged.safetensors: metadata") && stderr.contains("unknown method `tvn`"), "{stderr}");
    // An epoch that starts from what it ends with is better than one from nothing.
    let first = |name: &str| world.metrics(name)[1]["loss"].as_f64().unwrap();
    assert!(first("tuned") < first("float"));
    // PyTorch's names are all there.
    let bytes = world.bytes("tuned.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in ["bn1.num_batches_tracked", "block.bn.running_var", "block.conv.weight", "lm_head.bias"] {
        assert!(file.names().contains(&name), "{name}");
    }
}

/// What is said for --method does not get in the way of a layer with another one.
#[test]
fn each_layer_has_the_method_that_was_asked_for() {
    let world = World::new();
    let options = ["--epochs", "1", "--batch", "16", "--method", "twn", "--factor", "0.6", "--granularity", "tensor"];
    world.train(0, "mixed", &[&options[..], &["--set", "lm_head.weight", "method=esa", "-q"]].concat());
    let report = expect(0, &["inspect", &world.path("mixed.twn"), "--json"]).0;
    let report: Value = serde_json::from_str(&report).unwrap();
    let became = |name: &str| {
        let tensors = report["tensors"].as_array().unwrap();
        tensors.iter().find(|tensor| tensor["name"] == name).unwrap()["became"].as_str().unwrap().to_owned()
    };
    assert_eq!(became("block.conv.weight"), "t2 twn tensor");
    assert_eq!(became("lm_head.weight"), "t2 optimal filter");
    // a is said for all layers with esa, and for some.
    let options = ["--epochs", "1", "-q", "--sparsity-alpha", "0.9", "--set", "lm_head.*", "method=esa"];
    let own = ["--set", "block.*", "method=esa,sparsity-alpha=0.3"];
    world.train(0, "alpha", &[&options[..], &own].concat());
    let setup = &world.metrics("alpha")[0];
    let alpha = |name: &str| setup["methods"][name]["sparsity_alpha"].as_f64();
    assert_eq!(["conv1.weight", "block.conv.weight", "lm_head.weight"].map(alpha), [None, Some(0.3), Some(0.9)]);
    let (float, packed) = (world.path("alpha.safetensors"), world.path("alpha.twn"));
    let (_, stderr) = expect(2, &[&float, "-o", &packed, "-f", "--set", "*", "sparsity-alpha=0.5"]);
    assert!(stderr.contains("for training with esa"), "{stderr}");
    let refused = world.arguments("bad", &["--epochs", "1", "--set", "lm_head.weight", "sparsity-alpha=0.5"]);
    let stderr = String::from_utf8(common::run(&refused).stderr).unwrap();
    assert!(stderr.contains("method `twn` takes no sparsity alpha"), "{stderr}");
    // But what is said for that layer has to make sense.
    let refused = world.arguments("bad", &["--epochs", "1", "--set", "lm_head.weight", "method=esa,factor=0.6"]);
    let stderr = String::from_utf8(common::run(&refused).stderr).unwrap();
    assert!(stderr.contains("method `esa` takes no factor"), "{stderr}");
}

/// What packing makes ternary of the network's float weights, training does under the same options.
#[test]
fn the_same_options_choose_the_same_layers_as_packing() {
    let world = World::new();
    world.train(0, "float", &["--method", "none", "--epochs", "1", "-q"]);
    let float = world.path("float.safetensors");
    let rules = world.path("rules.toml");
    std::fs::write(&rules, "include = [\"*.weight\"]\n[[override]]\nmatch = \"conv1.*\"\nkeep = \"dense\"\n").unwrap();
    let [conv1, block, head] = ["conv1.weight", "block.conv.weight", "lm_head.weight"];
    let cases: [(&[&str], &[&str]); 7] = [
        (&["-i", "*.weight"], &[block, conv1, head]),
        (&["-i", "block.*"], &[block]),
        (&["-i", "*.weight", "-x", "conv1.*"], &[block, head]),
        (&["-i", "block.*", "--set", "conv1.*", "keep=ternary"], &[block, conv1]),
        (&["-i", "*.weight", "--set", "block.*", "keep=dense"], &[conv1, head]),
        (&["-i", "*.weight", "-x", "[bl]*", "--set", "*", "keep=ternary"], &[conv1]),
        (&["--rules", &rules, "-x", "lm_head.*"], &[block]),
    ];
    for (i, (options, expected)) in cases.into_iter().enumerate() {
        let name = format!("case{i}");
        world.train(0, &name, &[&["--epochs", "1", "-q"], options].concat());
        let setup = &world.metrics(&name)[0];
        let trained: Vec<&str> = setup["methods"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(trained, expected, "{options:?}");
        let report = expect(0, &[&["inspect", &float, "--json"], options].concat()).0;
        let report: Value = serde_json::from_str(&report).unwrap();
        let ternary = |tensor: &&Value| tensor["became"].as_str().unwrap().starts_with("t2 ");
        let packed = report["tensors"].as_array().unwrap().iter().filter(ternary);
        let mut packed: Vec<&str> = packed.map(|tensor| tensor["name"].as_str().unwrap()).collect();
        packed.sort_unstable();
        assert_eq!(packed, expected, "packing, {options:?}");
    }
}

/// Under a negative variance every logit is NaN, and no image is right.
#[test]
fn a_checkpoint_with_a_negative_variance_is_refused() {
    let world = World::new();
    world.train(0, "float", &["--method", "none", "--epochs", "1", "-q"]);
    let mut bytes = world.bytes("float.safetensors");
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let at = start + header["block.bn.running_var"]["data_offsets"][0].as_u64().unwrap() as usize + 4;
    bytes[at..at + 4].copy_from_slice(&(-1.0f32).to_le_bytes());
    let damaged = world.path("damaged.safetensors");
    std::fs::write(&damaged, bytes).unwrap();
    let (_, stderr) = world.train(2, "tuned", &["--init", &damaged, "--epochs", "1", "-q"]);
    assert!(stderr.contains("tensor `block.bn.running_var`: element 1 is -1; expected a variance"), "{stderr}");
}

#[test]
fn a_plot_takes_metrics_and_leaves_them_alone() {
    let world = World::new();
    world.train(0, "run", &["--epochs", "1", "-q"]);
    let (run, metrics) = (world.path("run.run"), world.path("run.run/metrics.jsonl"));
    let before = std::fs::read(&metrics).unwrap();
    for given in [&run, &metrics] {
        let (_, stderr) = expect(2, &["plot", given, "-f", "-o", &metrics]);
        assert!(stderr.contains("those are the metrics of"), "{stderr}");
    }
    assert_eq!(std::fs::read(&metrics).unwrap(), before);
    for (given, says) in [("/dev/zero", "not a regular file"), (&*world.path("run.safetensors"), "no text")] {
        let (_, stderr) = expect(2, &["plot", given, "-o", &world.path("plot.svg")]);
        assert!(stderr.contains(says) && stderr.contains("expected the metrics of a run"), "{stderr}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let world = World::new();
    let damaged = world.path("damaged.toml");
    std::fs::write(&damaged, NETWORK.replace("block.conv", "conv1")).unwrap();
    let spelt = format!("{}/./bad.safetensors", world.directory.path().display());
    std::fs::create_dir(world.path("folder")).unwrap();
    let cases: [(&[&str], &str); 19] = [
        (&["--epochs", "1", "--run", &spelt], "different paths"),
        (&["--epochs", "1", "--run", &world.path("folder"), "-f", "--rate", "1e30"], "conv2d `block.conv.weight`"),
        (&["--epochs", "1", "--penalty", "1", "2"], "--penalty is for esa"),
        (&["--epochs", "1", "--set", "*", "encoding=t5"], "are for packing"),
        (&["--epochs", "1", "--run", &world.path("bad.safetensors")], "different paths"),
        (&["--epochs", "1", "--pack", &world.path("bad.safetensors")], "cannot be used multiple times"),
        (&["--epochs", "1", "--batch", "64", "--rate", "1e300", "--schedule", "constant", "-m", "tga"], "lower --rate"),
        (&["--epochs", "1", "--batch", "64", "--rate", "1e300", "--schedule", "constant"], "lower --rate"),
        (&[], "say how to train"),
        (&["--epochs", "0"], "at least 1 of each"),
        (&["--epochs", "1", "--method", "twm"], "unknown method `twm`"),
        (&["--epochs", "1", "--method", "bwn", "--factor", "0.7"], "takes no factor"),
        (&["--epochs", "1", "--sparsity-alpha", "0.5"], "sparsity-alpha is for esa"),
        (&["--epochs", "1", "--method", "esa", "--sparsity-alpha", "2"], "between 0 and 2"),
        (&["--epochs", "1", "--momentum", "1.5"], "momentum 1.5"),
        (&["--epochs", "1", "--train-images", "65"], "65 images, expected 1 to 64"),
        (&["--recipe", "mnist"], "unknown recipe `mnist`"),
        (&["--epochs", "1", "--classes", "3"], "label"),
        (&["--epochs", "1", "--rate", "1e30"], "lower --rate"),
    ];
    for (options, expected) in cases {
        let arguments = world.arguments("bad", options);
        let output = common::run(&arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(expected), "{options:?}: {stderr}");
        assert!(matches!(output.status.code(), Some(2 | 3)), "{options:?}");
        assert!(!Path::new(&world.path("bad.safetensors")).exists());
        let _ = std::fs::remove_dir_all(world.path("bad.run"));
    }
    // Two layers with one tensor.
    let arguments =
        ["train", "--net", &damaged, "--data", &world.data, "--epochs", "1", "-o", &world.path("bad.safetensors")];
    let (_, stderr) = expect(2, &arguments);
    assert!(stderr.contains("two layers have a tensor `conv1.weight`"), "{stderr}");
    let null = ["train", "--net", &world.network, "--data", &world.data, "--epochs", "1", "-f", "-o", "/dev/null"];
    let (_, stderr) = expect(2, &null);
    assert!(stderr.contains("/dev/null: expected a regular file"), "{stderr}");
    for (name, instead) in [("block.bn.num_batches_tracked", "lm_head.bias"), ("__metadata__", "conv1.weight")] {
        std::fs::write(&damaged, NETWORK.replace(instead, name)).unwrap();
        let (_, stderr) = expect(2, &arguments);
        assert!(stderr.contains(&format!("a tensor `{name}` cannot be written")), "{stderr}");
    }
    let folder = world.path("folder");
    let arguments = ["train", "--net", &world.network, "--data", &world.data, "--epochs", "1", "-f", "-o", &folder];
    let (_, stderr) = expect(2, &arguments);
    assert!(stderr.contains("is a directory"), "{stderr}");
    world.train(0, "twice", &["--epochs", "1", "-q"]);
    let (_, stderr) = world.train(2, "twice", &["--epochs", "1", "-q"]);
    assert!(stderr.contains("exists"), "{stderr}");
    let (_, stderr) = world.train(2, "twice", &["--epochs", "1", "-q", "-f"]);
    assert!(stderr.contains("--resume"), "{stderr}");
}
