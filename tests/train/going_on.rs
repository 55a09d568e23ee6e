//! Runs that stop, for whatever reason, and go on. Not here: what they learn.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use twn_pack::data::{DataSet, Split};
use twn_pack::net::Description;
use twn_pack::train::{self, Setup};

use crate::common::expect;
use crate::{NETWORK, World};

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
    let write = |count: usize, broken: Option<usize>| {
        let mut pixels: Vec<u8> =
            (0..count * 784).flat_map(|i| (((i * 7919) % 251) as f32 / 251.0).to_le_bytes()).collect();
        if let Some(image) = broken {
            pixels[image * 784 * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        let view =
            |dtype, shape: &[usize], bytes| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let images = view(safetensors::Dtype::F32, &[count, 1, 28, 28], &pixels);
        let labels = view(safetensors::Dtype::U8, &[count], &labels[..count]);
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
    write(64, None);
    train(0, "whole", &[]);
    write(64, Some(50));
    let stderr = train(3, "run", &[]);
    assert!(stderr.contains("image 50"), "{stderr}");
    let state = world.bytes("run.run/state.safetensors");
    let header = String::from_utf8_lossy(&state[8..4096.min(state.len())]).into_owned();
    assert!(header.contains("batches") && !header.contains(r#"\"batches\":0"#), "{header}");
    assert!(stderr.contains("--resume --new-data goes on"), "{stderr}");
    let state = world.bytes("run.run/state.safetensors");
    write(64, None);
    let stderr = train(2, "run", &["--resume"]);
    assert!(stderr.contains("the training images, or their labels"), "{stderr}");
    train(0, "run", &["--resume", "--new-data"]);
    assert!(world.bytes("whole.safetensors") == world.bytes("run.safetensors"));
    // The state knows of the new data at once.
    train(0, "run", &["--resume", "-f"]);
    // Images that cannot be read may be removed as well.
    std::fs::write(world.path("run.run/state.safetensors"), state).unwrap();
    write(7, None);
    train(2, "run", &["--resume", "-f"]);
    train(0, "run", &["--resume", "--new-data", "-f"]);
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
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
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

/// Whatever byte of a state is not as it was written, no run goes on from it.
#[test]
fn a_damaged_state_is_noticed() {
    let world = World::new();
    world.train(0, "run", &["--epochs", "1", "-q"]);
    let (path, whole) = (world.path("run.run/state.safetensors"), world.bytes("run.run/state.safetensors"));
    let behind = |what: &str| whole.windows(what.len()).position(|at| at == what.as_bytes()).unwrap() + what.len();
    // Of the metadata: the setup, how far it went, what an epoch found, a key; then a name, a type and values.
    let places = [
        behind(r#"\"seed\":"#),
        behind(r#"\"images\":"#),
        behind(r#"\"epoch\":"#),
        behind("twn-pack.crc3"),
        behind("twn-pack.ru"),
        behind("value/conv"),
        behind(r#""dtype":""#),
        behind("momenta/0000"),
        world.header("run.run/state.safetensors").1,
        whole.len() / 2,
        whole.len() - 1,
    ];
    for at in places {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let (_, stderr) = world.train(3, "run", &["--epochs", "1", "-q", "-f", "--resume"]);
        assert!(stderr.contains("state.safetensors: "), "{at}: {stderr}");
    }
    std::fs::write(&path, whole).unwrap();
    world.train(0, "run", &["--epochs", "1", "-q", "-f", "--resume"]);
}

/// Killed between its outputs, a run goes on: what it wrote itself is no reason to refuse that.
#[test]
fn a_run_that_was_killed_between_its_outputs_goes_on() {
    let world = World::new();
    let (run, resume) = (["--epochs", "1", "-q"], ["--epochs", "1", "-q", "--resume"]);
    world.train(0, "run", &run);
    let (float, packed) = (world.bytes("run.safetensors"), world.bytes("run.twn"));
    std::fs::remove_file(world.path("run.twn")).unwrap();
    world.train(0, "run", &resume);
    assert!(world.bytes("run.safetensors") == float && world.bytes("run.twn") == packed);
    std::fs::remove_file(world.path("run.twn")).unwrap();
    let mut other = float.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(world.path("run.safetensors"), &other).unwrap();
    let (_, stderr) = world.train(2, "run", &resume);
    assert!(stderr.contains("run.safetensors: exists already"), "{stderr}");
    assert!(world.bytes("run.safetensors") == other, "it stays");
    // Before the work where there is some left, since the run cannot have written it.
    let more = ["--epochs", "2", "-q", "--resume", "--new-recipe"];
    let (_, stderr) = world.train(2, "run", &more);
    assert!(stderr.contains("run.safetensors: exists already") && world.metrics("run").len() == 2, "{stderr}");
    // What is not there cannot go on.
    let (_, stderr) = world.train(2, "none", &resume);
    assert!(stderr.contains("there is no run to go on with"), "{stderr}");
    assert!(!Path::new(&world.path("run.twn")).exists());
}

/// A kill may leave half a line, or bytes that are none; what stands before is not lost without a word.
#[test]
fn broken_metrics_do_not_hold_up_a_run() {
    let world = World::new();
    world.train(0, "run", &["--epochs", "2", "-q"]);
    let (path, whole) = (world.path("run.run/metrics.jsonl"), world.bytes("run.run/metrics.jsonl"));
    let resume = ["--epochs", "2", "-q", "-f", "--resume"];
    for end in [&b"{\"epoch\":"[..], b"\xff\xfe\x00", b"\xff\n", b"{}"] {
        std::fs::write(&path, [&whole, end].concat()).unwrap();
        world.train(0, "run", &resume);
        assert!(world.bytes("run.run/metrics.jsonl") == whole);
    }
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for broken in [&b"\xff\n"[..], b"{}\n", b"\n"] {
        let bytes = [&whole[..second], broken, &whole[second..]].concat();
        std::fs::write(&path, &bytes).unwrap();
        let (_, stderr) = world.train(3, "run", &resume);
        assert!(stderr.contains("metrics.jsonl: ") && stderr.contains("line 2: "), "{stderr}");
        assert!(world.bytes("run.run/metrics.jsonl") == bytes, "it stays");
    }
    // Without the file, as that message advises.
    std::fs::remove_file(&path).unwrap();
    world.train(0, "run", &resume);
}
