//! `twn-pack eval` as users and scripts meet it.

#![cfg(feature = "cli")]

mod common;

use std::path::Path;

use common::{expect, names};
use serde_json::Value;

const NET: [&str; 2] = ["--net", "lenet5"];

struct World {
    directory: tempfile::TempDir,
    checkpoint: String,
    data: String,
    twn: String,
}

impl World {
    fn new() -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let directory = tempfile::tempdir().unwrap();
        let twn = path(&directory.path().join("lenet5.twn"));
        let checkpoint = path(&fixtures.join("lenet5-mnist.safetensors"));
        expect(0, &[&checkpoint, "-o", &twn, "-q"]);
        Self { checkpoint, data: path(&fixtures.join("mnist64")), twn, directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn eval(&self, code: i32, file: &str, more: &[&str]) -> (String, String) {
        expect(code, &[&["eval", file, "--data", &self.data], &NET[..], more].concat())
    }

    fn json(&self, file: &str, more: &[&str]) -> Value {
        let (stdout, stderr) = self.eval(0, file, &[more, &["--json"]].concat());
        assert_eq!(stderr, "");
        serde_json::from_str(&stdout).unwrap()
    }

    fn predictions(&self, file: &str, more: &[&str]) -> Vec<String> {
        let path = self.path("predictions.txt");
        self.eval(0, file, &[more, &["--predictions", &path, "--force", "-q"]].concat());
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }
}

#[test]
fn it_says_how_good_how_fast_and_how_large() {
    let world = World::new();
    let (stdout, stderr) = world.eval(0, &world.checkpoint, &[]);
    assert_eq!(stderr, "");
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], format!("{}: lenet5, 0 of 4 weight layers packed", world.checkpoint));
    assert_eq!(lines[1..3], ["accuracy    100.00 %  64 of 64", "arithmetic  float"]);
    assert!(lines[3].starts_with("speed       ") && lines[3].ends_with(" s, batches of 100, 2 threads"), "{stdout}");
    assert!(lines[4].starts_with("memory      ") && lines[4].ends_with(" at most"), "{stdout}");
    assert_eq!((lines.len(), cfg!(target_os = "linux")), (5, !lines[4].contains("- resident")));

    let (stdout, _) = world.eval(0, &world.twn, &["--limit", "10", "--arithmetic", "int8", "--batch", "4"]);
    assert!(stdout.contains("4 of 4 weight layers packed") && stdout.contains(" of 10\n"), "{stdout}");
    assert!(stdout.contains("arithmetic  int8, ") && stdout.contains("batches of 4"), "{stdout}");
    assert_eq!(world.eval(0, &world.checkpoint, &["-q"]), Default::default());
}

#[test]
fn json_agrees_with_the_predictions() {
    let world = World::new();
    let labels = world.predictions(&world.checkpoint, &[]);
    assert_eq!((labels.len(), &labels[..5]), (64, &["7", "2", "1", "0", "4"].map(str::to_owned)[..]));
    for (more, arithmetic) in
        [(&["--float"][..], "float"), (&[], "exact"), (&["--arithmetic", "int8", "--batch", "7"], "int8")]
    {
        let json = world.json(&world.twn, more);
        // The float network is right on all 64, so its predictions are the labels.
        let correct = world.predictions(&world.twn, more).iter().zip(&labels).filter(|(a, b)| a == b).count();
        assert_eq!(json["correct"], correct);
        assert_eq!(json["accuracy"], correct as f64 / 64.0);
        assert_eq!(json["arithmetic"], arithmetic);
        assert_eq!(json["instruction_set"].is_null(), arithmetic == "float");
        assert_eq!(json["packed_layers"], if arithmetic == "float" { 0 } else { 4 });
        assert_eq!((&json["images"], &json["threads"]), (&64.into(), &2.into()));
        assert!(json["images_per_second"].as_f64().unwrap() > 0.0 && json["seconds"].as_f64().unwrap() > 0.0);
        if cfg!(target_os = "linux") {
            let [resident, peak] = ["resident_bytes", "peak_resident_bytes"].map(|key| json[key].as_u64().unwrap());
            assert!(1 << 20 < resident && resident <= peak && peak < 1 << 32, "{resident}, {peak}");
        }
    }
    assert_eq!(world.predictions(&world.twn, &[]), world.predictions(&world.twn, &["--float"]));
}

#[test]
fn a_network_of_ones_own_is_a_file() {
    let world = World::new();
    let net = world.path("net.toml");
    let text = twn_pack::net::NETWORKS[0].1;
    std::fs::write(&net, text).unwrap();
    let arguments = ["eval", &world.checkpoint, "--data", &world.data, "--net", &net];
    assert!(expect(0, &arguments).0.contains("64 of 64"));
    std::fs::write(&net, text.replace("kernel = 2", "kernel = 2, size = 2")).unwrap();
    let (_, stderr) = expect(2, &arguments);
    assert!(stderr.contains("net.toml: ") && stderr.contains("line 6") && stderr.contains("`size`"), "{stderr}");
    std::fs::write(&net, text.replace("fc2.bias", "fc3.bias")).unwrap();
    let (_, stderr) = expect(3, &arguments);
    assert!(stderr.contains("lenet5-mnist.safetensors: tensor `fc3.bias`: is missing"), "{stderr}");
    std::fs::write(&net, text.replace("outputs = 10", "outputs = 9")).unwrap();
    let (_, stderr) = expect(3, &arguments);
    assert!(stderr.contains("tensor `fc2.weight`: shape [10, 512], expected [9, 512]"), "{stderr}");
}

#[test]
fn a_built_in_network_can_have_another_size() {
    let world = World::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let checkpoint = fixtures.join("residual/resnet18-cifar.safetensors");
    let resnet = |code: i32, more: &[&str]| {
        let file = checkpoint.to_str().unwrap();
        let arguments = ["eval", file, "--net", "resnet18-cifar", "--data", &world.data, "--json"];
        expect(code, &[&arguments, more].concat())
    };
    let (_, stderr) = resnet(3, &["--width", "0.03125", "--classes", "7", "--input", "1x28x28"]);
    assert!(stderr.contains("tensor `conv1.weight`: shape [2, 3, 3, 3], expected [2, 1, 3, 3]"), "{stderr}");
    let (_, stderr) = resnet(3, &["--width", "0.03125"]);
    assert!(stderr.contains("tensor `fc.weight`: shape [7, 16], expected [10, 16]"), "{stderr}");
    let (_, stderr) = resnet(2, &["--width", "0.03125", "--classes", "7"]);
    assert!(stderr.contains("the network takes [3, 32, 32]"), "{stderr}");
    for (more, says) in [
        (["--input", "1x28"], "expected CxHxW, as 3x224x224"),
        (["--input", "1x28x-28"], "expected CxHxW, as 3x224x224"),
        (["--input", "1x28x28x1"], "expected CxHxW, as 3x224x224"),
        (["--width", "0.001"], "resnet18-cifar: layer 1 (conv2d): width = 0.001 makes 0 of 64 outputs"),
        (["--classes", "0"], "(linear): 0 × 1 × 1 values, expected at least 1"),
    ] {
        let (_, stderr) = resnet(2, &more);
        assert!(stderr.contains(says), "{more:?}: {stderr}");
    }
    // The width of what ran is told.
    let json = world.json(&world.checkpoint, &["--width", "1", "--classes", "10", "--input", "1x28x28"]);
    assert_eq!((&json["width"], &json["correct"]), (&1.0.into(), &64.into()));
}

/// A weight that is infinite makes NaN of a black pixel. It used to be class 0 that such an image got.
#[test]
fn images_without_a_largest_logit_have_no_class() {
    let world = World::new();
    let net = world.path("net.toml");
    let linear = r#"{ linear = { weight = "w", outputs = 10 } }"#;
    std::fs::write(&net, format!("input = [1, 28, 28]\nlayers = [\"flatten\", {linear}]")).unwrap();
    let pixel = 14 * 28 + 14;
    let values: Vec<f64> = (0..7840).map(|i| if i % 784 == pixel { f64::INFINITY } else { 0.0 }).collect();
    let tensors = [common::Made::new("w", twn_pack::Dtype::F32, &[10, 784], &values)];
    let file = common::checkpoint(world.directory.path(), "infinite.safetensors", &tensors);
    let data = twn_pack::data::DataSet::open_idx(&world.data, twn_pack::data::Split::Test).unwrap();
    let mut images = ndarray::Array4::zeros((64, 1, 28, 28));
    data.read(&(0..64).collect::<Vec<_>>(), None, images.view_mut()).unwrap();
    let black: Vec<bool> = images.outer_iter().map(|image| image[[0, 14, 14]] == 0.0).collect();
    let undecided = black.iter().filter(|black| **black).count();
    assert!(0 < undecided && undecided < 64);

    let predictions = world.path("predictions.txt");
    let file = file.to_str().unwrap();
    let arguments = ["eval", file, "--net", &net, "--data", &world.data, "--predictions", &predictions, "--force"];
    let (stdout, _) = expect(0, &arguments);
    let says = format!("\nundecided   {undecided} of 64: all their logits are NaN; counted as wrong\narithmetic");
    assert!(stdout.contains(&says), "{stdout}");
    let json: Value = serde_json::from_str(&expect(0, &[&arguments[..], &["--json"]].concat()).0).unwrap();
    assert_eq!(json["undecided"], undecided);
    let right = black.iter().zip(data.labels()).filter(|(black, label)| !**black && **label == 0).count();
    assert_eq!(json["correct"], right);
    let expected: String = black.iter().map(|black| if *black { "none\n" } else { "0\n" }).collect();
    assert_eq!(std::fs::read_to_string(&predictions).unwrap(), expected);
    // Of a network that knows what it sees, nothing is said.
    assert!(world.json(&world.checkpoint, &[]).get("undecided").is_none());
}

#[test]
fn requests_that_make_no_sense_and_files_that_are_wrong() {
    let world = World::new();
    for (code, file, more, says) in [
        (2, &world.twn, &["--float", "--arithmetic", "int8"][..], "cannot be used with"),
        (2, &world.checkpoint, &["--arithmetic", "int8"], "--arithmetic int8 is for packed layers, and "),
        (2, &world.twn, &["--batch", "0"], "0 is not in"),
        (2, &world.twn, &["--limit", "0"], "0 is not in"),
        (2, &world.twn, &["--arithmetic", "int4"], "int4"),
        (3, &world.checkpoint, &["--split", "train"], "no training images here, expected one of train-images-idx3"),
        (4, &world.path("missing.twn"), &[], "missing.twn"),
    ] {
        let (stdout, stderr) = world.eval(code, file, more);
        assert!(stdout.is_empty() && stderr.contains(says), "{more:?}: {stderr}");
    }
    // Weights that are ternary in another format are packed first.
    let gguf = world.path("lenet5.gguf");
    expect(0, &["export", &world.twn, "--to", "tq2_0", "--refused-as-dense", "-o", &gguf, "-q"]);
    let (_, stderr) = world.eval(3, &gguf, &[]);
    assert!(
        stderr.contains("`fc1.weight`: is ternary in the checkpoint already, F32 of shape [512, 1024]"),
        "{stderr}"
    );
    assert!(stderr.contains("--method auto"), "{stderr}");
    let packed = world.path("packed.twn");
    expect(0, &[&gguf, "-o", &packed, "--method", "auto", "-q"]);
    assert_eq!(world.json(&packed, &[])["accuracy"], world.json(&world.twn, &[])["accuracy"]);
    [gguf, packed].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    // Codes that are none give no accuracy, behind good checksums either.
    let bad = world.path("bad.twn");
    let good = std::fs::read(&world.twn).unwrap();
    std::fs::write(&bad, common::with_section(&good, "fc1.weight", 0, |codes| codes[1000] = 0xff)).unwrap();
    for more in [&[][..], &["--float"]] {
        let (stdout, stderr) = world.eval(3, &bad, more);
        assert!(stdout.is_empty() && stderr.contains("`fc1.weight`: byte 232 is 0xff"), "{more:?}: {stderr}");
    }
    std::fs::remove_file(bad).unwrap();
    // Outputs are there whole, or not at all, and nothing is replaced unasked.
    let path = world.path("kept.txt");
    std::fs::write(&path, "kept").unwrap();
    let (_, stderr) = world.eval(2, &world.checkpoint, &["--predictions", &path]);
    assert!(stderr.contains("kept.txt: exists already") && stderr.contains("--force"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
    world.eval(4, &world.checkpoint, &["--predictions", &world.path("no/such/directory.txt")]);
    assert_eq!(names(world.directory.path()), ["kept.txt", "lenet5.twn"]);
}

/// The same digits as arrays, and what does not fit a network.
#[test]
fn every_kind_of_data_set_is_opened() {
    let world = World::new();
    let eval = |code: i32, data: &str, more: &[&str]| {
        expect(code, &[&["eval", &world.checkpoint, "--data", data], &NET[..], more].concat())
    };
    let unpacked = |name: &str, from: usize| {
        let file = std::fs::File::open(Path::new(&world.data).join(name)).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut bytes).unwrap();
        bytes.split_off(from)
    };
    let npy = |shape: &str, values: Vec<u8>| {
        let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n");
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &values].concat()
    };
    let arrays = world.directory.path().join("arrays");
    std::fs::create_dir(&arrays).unwrap();
    let images = npy("(64, 1, 28, 28)", unpacked("t10k-images-idx3-ubyte.gz", 16));
    std::fs::write(arrays.join("test-images.npy"), images).unwrap();
    std::fs::write(arrays.join("test-labels.npy"), npy("(64,)", unpacked("t10k-labels-idx1-ubyte.gz", 8))).unwrap();
    let arrays = arrays.to_str().unwrap();
    assert!(eval(0, arrays, &[]).0.contains("64 of 64"));
    let (_, stderr) = eval(2, arrays, &["--normalize", "imagenet"]);
    assert!(stderr.contains("a normalization of 3 means and 3 standard deviations, expected 1 of each"), "{stderr}");
    // Pictures are brought to the size of the network, but they have three channels.
    let class = world.directory.path().join("pictures/a");
    std::fs::create_dir_all(&class).unwrap();
    image::RgbImage::new(40, 30).save(class.join("1.png")).unwrap();
    let pictures = world.path("pictures");
    let (_, stderr) = eval(2, &pictures, &["--split", "whole", "--normalize", "cifar10"]);
    assert!(stderr.contains("pictures are [3, 28, 28] (channels, height, width)"), "{stderr}");
    let (_, stderr) = eval(3, &pictures, &[]);
    assert!(stderr.contains("has classes directly in it") && stderr.contains("--split whole"), "{stderr}");
}

/// Many black images, so that there is time to interrupt.
#[cfg(unix)]
#[test]
fn progress_is_told_and_an_interruption_leaves_nothing() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    let world = World::new();
    let data = world.directory.path().join("many");
    std::fs::create_dir(&data).unwrap();
    let count = 60_000u32;
    let header = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
    let images = [header(&[0x803, count, 28, 28]), vec![0; 784 * count as usize]].concat();
    std::fs::write(data.join("t10k-images-idx3-ubyte"), images).unwrap();
    let labels = [header(&[0x801, count]), vec![0; count as usize]].concat();
    std::fs::write(data.join("t10k-labels-idx1-ubyte"), labels).unwrap();
    let data = data.to_str().unwrap();
    let predictions = world.path("predictions.txt");
    let mut child = Command::new(common::BINARY)
        .args(["eval", &world.checkpoint, "--net", "lenet5", "--data", data, "--progress", "json", "-j", "1"])
        .args(["--predictions", &predictions])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    stderr.read_line(&mut first).unwrap();
    let line: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&line["done"], &line["total"]), (&100.into(), &count.into()));
    Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("interrupted"), "{rest}");
    assert_eq!(names(world.directory.path()), ["lenet5.twn", "many"]);
}
