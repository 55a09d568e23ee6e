//! What is warned of, refused, and shown. Not here: what is learned.

use std::path::Path;

use serde_json::Value;

use crate::common::{self, expect};
use crate::{NETWORK, World};

/// The loss need not tell of a variance that leaves the range of `f32`.
#[test]
fn a_statistic_that_breaks_is_told_with_its_batch() {
    let world = World::new();
    let data = world.path("arrays");
    std::fs::create_dir(&data).unwrap();
    let mut pixels: Vec<f32> = (0..64 * 784).map(|i| ((i * 7919) % 251) as f32 / 251.0).collect();
    pixels[..784].iter_mut().for_each(|pixel| *pixel *= 1e24);
    let pixels: Vec<u8> = pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let view =
        |dtype, shape: &[usize], bytes| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    let images = view(safetensors::Dtype::F32, &[64, 1, 28, 28], &pixels);
    let bytes =
        safetensors::serialize([("images", images), ("labels", view(safetensors::Dtype::U8, &[64], &[1; 64]))], None);
    for split in ["train", "test"] {
        std::fs::write(Path::new(&data).join(format!("{split}.safetensors")), bytes.as_ref().unwrap()).unwrap();
    }
    // The image is in another batch with every seed, and in the last one of 32 with one of them at the most.
    let batches: std::collections::BTreeSet<String> = (0..3)
        .map(|seed| {
            let output = world.path(&format!("run{seed}.safetensors"));
            let fixed = ["train", "--net", &world.network, "--data", &data, "-o", &output, "--batch", "2", "-q"];
            let (_, stderr) = expect(2, &[&fixed[..], &["--epochs", "1", "--seed", &seed.to_string()]].concat());
            assert!(stderr.contains("is not a finite number any more"), "{stderr}");
            stderr.split("batch ").nth(1).unwrap().split(':').next().unwrap().to_owned()
        })
        .collect();
    assert!(batches.len() > 1, "{batches:?}");
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
    let output = world.path("nothing.safetensors");
    let nothing = ["train", "--net", &world.network, "--data", &world.data, "-o", &output, "-m", "twn", "-x", "*"];
    let (_, stderr) = expect(0, &[&nothing[..], &quick[..4]].concat());
    assert!(stderr.contains("no layer is left for `twn`: the network is trained in full precision"), "{stderr}");
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
    // The file is a part of the memory that is said.
    let size = twn_pack::report::bytes(std::fs::metadata(&float).unwrap().len());
    assert!(stderr.contains(&format!(" of memory, {size} of it --init, mapped\n")), "{stderr}");
    assert!(stderr.contains("which are left out: lm_head.bias\n"), "{stderr}");
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

/// Elsewhere nobody says how much memory is free.
#[cfg(target_os = "linux")]
#[test]
fn a_network_that_memory_cannot_hold_is_refused() {
    let world = World::new();
    let (_, stderr) = world.train(2, "large", &["--epochs", "1", "--width", "4000"]);
    assert!(stderr.contains("of memory besides the images"), "{stderr}");
    assert!(!Path::new(&world.path("large.run")).exists());
}

/// Under a negative variance every logit is NaN, and no image is right.
#[test]
fn a_checkpoint_with_a_negative_variance_is_refused() {
    let world = World::new();
    world.train(0, "float", &["--method", "none", "--epochs", "1", "-q"]);
    let damaged = world.changed("float.safetensors", "block.bn.running_var", 1, &[-1.0]);
    let (_, stderr) = world.train(3, "tuned", &["--init", &damaged, "--epochs", "1", "-q"]);
    assert!(stderr.contains("tensor `block.bn.running_var`: element 1 is -1; expected a variance"), "{stderr}");
}

/// Weights that are no numbers are found before the first step.
#[test]
fn a_checkpoint_with_nan_is_refused() {
    let world = World::new();
    world.train(0, "float", &["--method", "none", "--epochs", "1", "-q"]);
    for (tensor, at) in [("conv1.weight", 149), ("lm_head.bias", 0)] {
        let damaged = world.changed("float.safetensors", tensor, at, &[f32::NAN]);
        let (_, stderr) = world.train(3, "tuned", &["--init", &damaged, "--epochs", "1", "-q"]);
        assert!(
            stderr.contains(&format!("tensor `{tensor}`: element {at} is NaN; expected finite numbers")),
            "{stderr}"
        );
    }
    assert!(!Path::new(&world.path("tuned.run")).exists());
}

/// Every line on stderr is JSON, with what a bar would show as numbers.
#[test]
fn progress_is_told_in_numbers() {
    let world = World::new();
    let (_, stderr) = world.train(0, "run", &["--epochs", "3", "--batch", "16", "--progress", "json"]);
    let lines: Vec<Value> = stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys = ["accuracy", "done", "epoch", "images_per_second", "loss", "seconds_left", "total"];
    for line in &lines {
        assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
        assert!(line.as_object().unwrap().values().all(Value::is_number), "{line}");
        assert!(line["images_per_second"].as_f64() > Some(0.0) && line["seconds_left"].as_f64() >= Some(0.0), "{line}");
    }
    let (first, last) = (&lines[0], lines.last().unwrap());
    assert_eq!([&first["done"], &first["epoch"], &first["total"]], [16, 1, 192]);
    assert_eq!([&last["done"], &last["epoch"], &last["total"]], [192, 3, 192]);
    assert_eq!(last["seconds_left"], 0.0);
    assert_eq!(last["loss"], world.metrics("run")[3]["loss"]);
    assert_eq!(last["accuracy"], world.metrics("run")[3]["train_accuracy"]);
}

#[test]
fn milestones_that_never_come_are_told() {
    let world = World::new();
    for (schedule, epochs, warned) in [("1,2,5/10", "2", Some("2, 5")), ("1,2/10", "3", None), ("cosine", "1", None)] {
        let name = format!("run{epochs}");
        let (_, stderr) = world.train(0, &name, &["--epochs", epochs, "--schedule", schedule, "--progress", "never"]);
        let warning =
            warned.map(|milestones| format!("not divided after epoch {milestones}: the run is over after {epochs}"));
        assert_eq!(stderr.matches("warning: ").count(), usize::from(warned.is_some()), "{stderr}");
        assert!(stderr.contains(&warning.unwrap_or_default()), "{stderr}");
    }
    let (_, stderr) = world.train(0, "few", &["--epochs", "3", "--recipe", "twn-cifar10", "--progress", "never"]);
    assert!(stderr.contains("divided more than once after epoch 2"), "{stderr}");
}

#[test]
fn a_plot_takes_metrics_and_leaves_them_alone() {
    let world = World::new();
    world.train(0, "run", &["--epochs", "1", "-q"]);
    let (run, metrics) = (world.path("run.run"), world.path("run.run/metrics.jsonl"));
    let before = std::fs::read(&metrics).unwrap();
    for given in [&run, &metrics] {
        let (_, stderr) = expect(2, &["plot", given, "-f", "-o", &metrics]);
        assert!(stderr.contains("is an input; give another output"), "{stderr}");
    }
    assert!(expect(2, &["plot", &run, "-o", "-"]).1.contains("-: outputs are files"));
    assert_eq!(std::fs::read(&metrics).unwrap(), before);
    // What a kill leaves of the last line is no epoch; runs of one name go by their paths.
    let other = world.path("other/run.run");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(format!("{other}/metrics.jsonl"), [&before[..], b"{\"epoch\": 2,\n"].concat()).unwrap();
    expect(0, &["plot", &run, &other, "-o", &world.path("both.svg")]);
    let svg = String::from_utf8(world.bytes("both.svg")).unwrap();
    assert!(svg.contains(&run) && svg.contains(&other), "{svg}");
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
