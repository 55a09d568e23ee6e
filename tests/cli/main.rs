//! The command line as users and scripts meet it: options, exit codes, what goes to stdout and
//! what to stderr. What may be asked for: [`requests`].

#[path = "../common/mod.rs"]
mod common;
mod requests;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{BINARY, Made, expect, names};
use serde_json::Value;
use twn_pack::Dtype;

/// The tensors of a small ResNet, torchvision's names, and an odd name for quoting.
fn model(directory: &Path) -> PathBuf {
    let tensor = |name: &str, shape: &[usize], seed| Made::gaussian(name, Dtype::F32, shape, seed);
    let tensors = [
        tensor("bn1.weight", &[8], 1),
        tensor("conv1.weight", &[8, 3, 7, 7], 2),
        tensor("fc.bias", &[10], 3),
        tensor("fc.weight", &[10, 64], 4),
        tensor("layer1.0.conv1.weight", &[8, 8, 3, 3], 5),
        tensor("layer1.0.downsample.0.weight", &[8, 8, 1, 1], 6),
        tensor("layer10.0.conv1.weight", &[4, 8, 3, 3], 7),
        tensor("layer2.0.conv1.weight", &[16, 8, 3, 3], 8),
        tensor("odd,\"name\"", &[4, 4], 9),
    ];
    common::checkpoint(directory, "model.safetensors", &tensors)
}

struct World {
    directory: tempfile::TempDir,
    model: String,
    twn: String,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = model(directory.path()).to_str().unwrap().to_owned();
        let twn = directory.path().join("model.twn").to_str().unwrap().to_owned();
        Self { directory, model, twn }
    }

    fn packed(more: &[&str]) -> Self {
        let world = Self::new();
        expect(0, &[&[&world.model, "-o", &world.twn], more].concat());
        world
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// What each tensor would become, by a dry run.
    fn plan(&self, more: &[&str]) -> Vec<(String, String, String)> {
        let (stdout, _) = expect(0, &[&[&self.model, "--dry-run", "--json"], more].concat());
        let text = |t: &Value, key: &str| t[key].as_str().unwrap().to_owned();
        tensors(&json(&stdout)).iter().map(|t| (text(t, "name"), text(t, "became"), text(t, "reason"))).collect()
    }

    /// Names of those that would become ternary.
    fn ternary(&self, more: &[&str]) -> Vec<String> {
        self.plan(more).into_iter().filter(|t| t.1 != "dense").map(|t| t.0).collect()
    }

    fn became(&self, more: &[&str], name: &str) -> String {
        self.plan(more).into_iter().find(|t| t.0 == name).unwrap().1
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn tensors(report: &Value) -> Vec<Value> {
    report["tensors"].as_array().unwrap().clone()
}

fn column(report: &Value, key: &str) -> Vec<Value> {
    tensors(report).iter().map(|t| t[key].clone()).collect()
}

#[test]
fn a_dry_run_reads_no_weights_and_writes_nothing() {
    let world = World::new();
    // NaN everywhere: whoever looked at a weight would stop.
    let path = world.path("nan.safetensors");
    let tensors = [Made::new("w", Dtype::F32, &[4, 4], &[f64::NAN; 16])];
    std::fs::write(&path, common::safetensors(&tensors, &[])).unwrap();
    let before = names(world.directory.path());
    let (stdout, stderr) = expect(0, &[&path, "--dry-run", "-o", &world.twn]);
    assert!(stdout.contains("t2 twn filter") && stderr.is_empty(), "{stdout}{stderr}");
    // An output that is there is said, and stays.
    std::fs::write(&world.twn, "old").unwrap();
    let (_, stderr) = expect(0, &[&path, "-n", "-o", &world.twn]);
    assert!(stderr.contains("model.twn exists already: the run will need --force"), "{stderr}");
    assert!(!expect(0, &[&path, "-n", "-f", "-o", &world.twn]).1.contains("exists already"));
    assert_eq!(std::fs::read_to_string(&world.twn).unwrap(), "old");
    std::fs::remove_file(&world.twn).unwrap();
    let (stdout, _) = expect(0, &[&path, "-n", "--json"]);
    assert_eq!(json(&stdout)["plan"], true);
    assert_eq!(names(world.directory.path()), before);
    let (_, stderr) = expect(3, &[&path, "-o", &world.twn]);
    assert!(stderr.contains("`w`"), "{stderr}");
    assert_eq!(names(world.directory.path()), before);
    expect(0, &[&path, "-o", &world.twn, "--non-finite", "dense"]);
}

#[test]
fn json_of_pack_and_inspect_agree() {
    for settings in [&["-m", "optimal"][..], &["-m", "twn", "-g", "group:16", "--scale-dtype", "f16"], &["-m", "bwn"]] {
        let world = World::new();
        let (packed, stderr) = expect(0, &[&[&world.model, "-o", &world.twn, "--json"], settings].concat());
        assert_eq!(stderr, "");
        let (inspected, _) = expect(0, &["inspect", &world.twn, "--json"]);
        assert_eq!(packed, inspected);
        // Of the checkpoint all but the length of the index is known before.
        let (measured, _) = expect(0, &[&["inspect", &world.model, "--json"], settings].concat());
        let without_reasons = |text: &str| {
            let mut tensors = tensors(&json(text));
            tensors.iter_mut().for_each(|t| t["reason"] = Value::Null);
            tensors
        };
        assert_eq!(without_reasons(&measured), without_reasons(&packed));
        let totals = json(&packed)["totals"].clone();
        assert_eq!(totals["file_bytes"], std::fs::metadata(&world.twn).unwrap().len());
        assert_eq!((totals["tensors"].clone(), totals["ternary_tensors"].clone()), (9.into(), 7.into()));
    }
}

#[test]
fn csv_has_a_line_per_tensor_and_quotes() {
    let world = World::packed(&[]);
    let (csv, _) = expect(0, &["inspect", &world.twn, "--csv"]);
    let lines: Vec<&str> = csv.split("\r\n").collect();
    assert_eq!((lines.len(), lines[10]), (11, ""), "a header, nine tensors, nothing");
    let fields = lines[0].split(',').count();
    for line in &lines[1..10] {
        let (name, rest) = line.strip_prefix("\"odd,\"\"name\"\"\",").map_or(("", *line), |rest| ("odd", rest));
        assert_eq!(rest.split(',').count(), fields - usize::from(name == "odd"), "{line}");
    }
    assert_eq!(lines.iter().filter(|line| line.starts_with("\"odd,\"\"name\"\"\",4x4,F32,t2 twn filter,")).count(), 1);
    let (_, stderr) = expect(2, &["inspect", &world.twn, "--csv", "--json"]);
    assert!(stderr.contains("--csv"), "{stderr}");
}

#[test]
fn inspect_sorts_and_filters() {
    let world = World::packed(&[]);
    let inspect = |more: &[&str]| json(&expect(0, &[&["inspect", &world.twn, "--json"], more].concat()).0);
    let all = inspect(&[]);
    for (by, key) in [
        ("error", "relative_squared_error"),
        ("sparsity", "sparsity"),
        ("entropy", "entropy"),
        ("bytes", "bytes"),
        ("ratio", "ratio"),
    ] {
        let sorted = inspect(&["--sort", by]);
        let values: Vec<f64> = column(&sorted, key).iter().filter_map(Value::as_f64).collect();
        assert!(values.len() >= 7 && values.is_sorted_by(|a, b| a >= b), "{by}: {values:?}");
        let mut reversed = column(&inspect(&["--sort", by, "--reverse"]), key);
        reversed.reverse();
        assert_eq!(reversed, column(&sorted, key), "{by}");
        assert_eq!(sorted["totals"], all["totals"]);
    }
    let names = column(&inspect(&["--sort", "name"]), "name");
    assert!(names.is_sorted_by_key(|name| name.as_str().unwrap().to_owned()), "{names:?}");
    assert_eq!(column(&inspect(&["--filter", "fc.*"]), "name"), ["fc.bias", "fc.weight"]);
    assert_eq!(column(&inspect(&["--filter", "fc.bias", "--filter", "bn?.*"]), "name"), ["bn1.weight", "fc.bias"]);
    assert_eq!(tensors(&inspect(&["--only", "dense"])).len(), 2);
    assert_eq!(tensors(&inspect(&["--only", "ternary"])).len(), 7);
    assert!(column(&inspect(&["--only", "ternary"]), "became").iter().all(|b| b != "dense"));
    assert_eq!(inspect(&["--filter", "nothing"])["totals"], all["totals"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_told_from_a_full_disk() {
    let world = World::new();
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let output = Command::new(BINARY).args([&world.model, "-o", &world.twn]).stdout(full()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr.contains("model.twn is written: cannot write to standard output: "), "{stderr}");
    expect(0, &["verify", &world.twn]);
}

#[test]
fn quiet_is_quiet_and_progress_is_json() {
    let world = World::new();
    assert_eq!(expect(0, &[&world.model, "-o", &world.twn, "--quiet", "-x", "none*"]), Default::default());
    assert_eq!(expect(0, &["verify", &world.twn, "-q"]), Default::default());
    let back = world.path("back.safetensors");
    assert_eq!(expect(0, &["unpack", &world.twn, "-o", &back, "-q"]), Default::default());

    for command in [&["verify", &world.twn][..], &["unpack", &world.twn, "-o", &back, "--force"]] {
        let (_, stderr) = expect(0, &[command, &["--progress", "json"]].concat());
        let last = json(stderr.lines().last().unwrap());
        assert!(last["done"] == last["total"] && last["done"].as_u64() > Some(0), "{command:?}: {stderr}");
    }
    let (_, stderr) = expect(3, &[&world.twn, "-o", &back]);
    assert!(stderr.contains("packed already"), "{stderr}");

    let (_, stderr) = expect(0, &[&world.model, "-o", &world.twn, "--force", "--progress", "json"]);
    let lines: Vec<Value> = stderr.lines().map(json).collect();
    let last = lines.last().unwrap();
    assert_eq!(last["done"], last["total"]);
    assert!(lines.iter().all(|line| line["tensor"].is_string() && line["done"].as_u64() <= line["total"].as_u64()));
}

#[test]
fn verify_tells_good_from_bad() {
    let world = World::packed(&["-m", "optimal"]);
    let (stdout, _) = expect(0, &["verify", &world.twn, "--against", &world.model]);
    assert!(stdout.contains("good: 9 tensors") && stdout.contains("agrees with"), "{stdout}");
    let (stdout, _) = expect(0, &["verify", &world.twn, "--json"]);
    assert_eq!(json(&stdout)["problems"], Value::Array(vec![]));
    let mut bytes = std::fs::read(&world.twn).unwrap();
    bytes[64] ^= 1;
    let bad = world.path("bad.twn");
    std::fs::write(&bad, &bytes).unwrap();
    let (stdout, _) = expect(1, &["verify", &bad]);
    assert!(stdout.contains("bad.twn: tensor `bn1.weight`: data: CRC-32"), "{stdout}");
    assert_eq!(json(&expect(1, &["verify", &bad, "--json"]).0)["problems"].as_array().unwrap().len(), 1);
    std::fs::write(&bad, &bytes[..100]).unwrap();
    expect(1, &["verify", &bad]);
    expect(3, &["inspect", &bad]);
    expect(4, &["verify", &world.path("missing.twn")]);
}

#[test]
fn completions_and_manual_are_there() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(expect(0, &["completions", shell]).0.contains("keep-first-last"), "{shell}");
    }
    let page = expect(0, &["man"]).0;
    let pages = tempfile::tempdir().unwrap();
    expect(0, &["man", "--to", pages.path().to_str().unwrap()]);
    let verify = std::fs::read_to_string(pages.path().join("twn-pack-verify.1")).unwrap();
    assert!(verify.contains("against") && pages.path().join("twn-pack.1").exists());
    assert!(page.starts_with(".TH") || page.starts_with(".ie"), "{}", &page[..40]);
    assert!(page.contains(".TH twn-pack"));
    assert!(expect(0, &["--help"]).0.contains("Exit codes"));
    assert!(expect(0, &["--version"]).0.starts_with("twn-pack "));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let world = World::new();
    // More than a pipe holds, so that a write fails.
    let many: Vec<Made> = (0..3000).map(|i| Made::new(&format!("layer.{i}"), Dtype::F32, &[1], &[1.0])).collect();
    let path = common::checkpoint(world.directory.path(), "many.safetensors", &many);
    expect(0, &[path.to_str().unwrap(), "-o", &world.twn, "-q"]);
    for arguments in [&["inspect", &world.twn][..], &["inspect", &world.twn, "--json"], &["man"]] {
        let mut child =
            Command::new(BINARY).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 10];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]), "{arguments:?}");
    }
}

#[test]
fn unpacked_files_are_read_by_others() {
    let world = World::packed(&["-g", "group:32"]);
    for (dtype, size) in [(None, 4), (Some("f16"), 2), (Some("bf16"), 2), (Some("f32"), 4), (Some("f64"), 8)] {
        let path = world.path("back.safetensors");
        let type_arguments = dtype.map_or(vec![], |dtype| vec!["--dtype", dtype]);
        expect(0, &[&["unpack", &world.twn, "-o", &path, "--force"], &type_arguments[..]].concat());
        let bytes = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), 9);
        let tensor = read.tensor("fc.weight").unwrap();
        assert_eq!((tensor.shape(), tensor.data().len()), (&[10, 64][..], 640 * size), "{dtype:?}");
        assert_eq!(tensor.dtype().to_string().to_lowercase(), dtype.unwrap_or("f32"));
        // Dense tensors never change.
        let source = std::fs::read(&world.model).unwrap();
        let source = safetensors::SafeTensors::deserialize(&source).unwrap();
        assert_eq!(read.tensor("fc.bias").unwrap().data(), source.tensor("fc.bias").unwrap().data());
        read_with_python(&path);
    }
    let (_, stderr) = expect(2, &["unpack", &world.twn, "-o", &world.path("back.safetensors")]);
    assert!(stderr.contains("--force"), "{stderr}");
}

/// Where Python has the reference implementation, it reads the same tensors.
fn read_with_python(path: &str) {
    let python = |script: &str| Command::new("python3").args(["-c", script, path]).output();
    if !python("import safetensors, numpy").is_ok_and(|output| output.status.success()) {
        println!("skipped: no Python with safetensors and numpy");
        return;
    }
    let script = "import sys, safetensors\n\
                  with safetensors.safe_open(sys.argv[1], 'np') as f:\n\
                  \x20   names = list(f.keys())\n\
                  \x20   assert len(names) == 9, names\n\
                  \x20   assert list(f.get_slice('fc.weight').get_shape()) == [10, 64]";
    let output = python(script).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused() {
    let world = World::packed(&[]);
    let (again, out) = (world.path("again.twn"), world.path("out.safetensors"));
    for arguments in [
        vec![&*world.model, "-o", &again],
        vec!["verify", &world.twn],
        vec!["export", &world.twn, "--to", "safetensors", "-o", &out],
    ] {
        let run = Command::new(BINARY).args(&arguments).env("TWN_PACK_ISA", "abacus").output().unwrap();
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains("instruction set `abacus` is not there"), "{stderr}");
    }
    assert!(!Path::new(&again).exists() && !Path::new(&out).exists());
}
