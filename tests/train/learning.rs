//! What is learned, by which method, and what is written of it. Not here: runs that stop.

use std::process::Command;

use serde_json::Value;

use crate::common::{self, expect};
use crate::{METHODS, World};

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

/// θ = w/s was infinite where a filter's scale is a denormal, and stood still where it is 0.
#[test]
fn esa_learns_from_filters_of_zeros_and_denormals() {
    let world = World::new();
    world.train(0, "float", &["--method", "none", "--epochs", "1", "-q"]);
    let filters = [[0.0f32; 25], [1e-40; 25], [-1e-44; 25]].concat();
    let init = world.changed("float.safetensors", "conv1.weight", 25, &filters);
    world.train(0, "esa", &["--init", &init, "--method", "esa", "--epochs", "2", "--batch", "16", "-q"]);
    let (header, start) = world.header("esa.safetensors");
    let bytes = world.bytes("esa.safetensors");
    for (name, entry) in header.as_object().unwrap().iter().filter(|(_, entry)| entry["dtype"] == "F32") {
        let [from, to] = [0, 1].map(|i| start + entry["data_offsets"][i].as_u64().unwrap() as usize);
        let mut values = bytes[from..to].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        assert!(values.all(f32::is_finite), "{name}");
    }
    assert!(world.metrics("esa")[2]["loss"].is_f64());
}

#[test]
fn a_checkpoint_says_how_each_layer_was_trained() {
    let world = World::new();
    let options = ["--epochs", "1", "--factor", "0.6", "-x", "block.*", "-q"];
    world.train(0, "run", &[&options[..], &["--set", "lm_head.*", "method=esa,sparsity-alpha=0.3"]].concat());
    let (header, _) = world.header("run.safetensors");
    let text = header["__metadata__"]["twn-pack.methods"].as_str().unwrap();
    let methods: Value = serde_json::from_str(text).unwrap();
    let expected = serde_json::json!({
        "conv1.weight": { "name": "twn", "factor": 0.6, "granularity": null, "sparsity_alpha": null },
        "lm_head.weight": { "name": "esa", "factor": null, "granularity": null, "sparsity_alpha": 0.3 },
    });
    assert_eq!(methods, expected);
    // And its curve lies in the run's directory.
    let svg = std::fs::read_to_string(world.path("run.run/accuracy.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("test accuracy, %"), "{svg}");
}

/// PyTorch counts on from what a checkpoint says, over a packed file and an interruption, too.
#[test]
fn batches_are_counted_from_the_first() {
    let world = World::new();
    world.train(0, "float", &["--method", "none", "--epochs", "3", "--batch", "16", "-q"]);
    assert_eq!(world.batches("float.safetensors", "bn1"), 12);
    let float = world.path("float.safetensors");
    world.train(0, "tuned", &["--init", &float, "--epochs", "2", "--batch", "24", "-q"]);
    assert_eq!(world.batches("tuned.safetensors", "bn1"), 18);
    // The state knows it, for whoever goes on without the checkpoint.
    let tuned = world.bytes("tuned.safetensors");
    world.train(0, "tuned", &["--epochs", "2", "--batch", "24", "-q", "-f", "--resume"]);
    assert!(world.bytes("tuned.safetensors") == tuned);
    world.train(0, "again", &["--init", &world.path("tuned.twn"), "--epochs", "1", "--batch", "64", "-q"]);
    assert_eq!(world.batches("again.safetensors", "block.bn"), 19);
}
