//! Runs that are cut off and go on give the bytes of one that was not: after cancelling, after a kill at any time,
//! and with what lies beside the output damaged. What belongs to another run is refused.

#![cfg(feature = "cli")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::zip::{Entry, zip};
use common::{BINARY, Made, Random};
use twn_pack::budget::{Ladder, Minimize, Target};
use twn_pack::convert::{self, Options};
use twn_pack::select::Override;
use twn_pack::{Calibration, Checkpoint, Dtype, Error, Plan, Rules, Settings, import, verify};

/// A model with statistics of inputs for half of its tensors.
struct World {
    directory: tempfile::TempDir,
    input: PathBuf,
    statistics: PathBuf,
}

impl World {
    fn new(tensors: usize, n: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut made: Vec<Made> =
            (0..tensors).map(|i| Made::gaussian(&format!("layer{i}.weight"), Dtype::F32, &[40, n], i as u64)).collect();
        made.push(Made::gaussian("eight.weight", Dtype::BF16, &[30, n], 90));
        made.push(Made::gaussian("layer.bias", Dtype::F32, &[40], 91));
        let input = common::checkpoint(directory.path(), "in.safetensors", &made);
        let mut random = Random(5);
        let statistics: Vec<Made> = (0..tensors)
            .step_by(2)
            .map(|i| {
                // Dominated by its diagonal, so positive definite.
                let mut h = vec![0.0; n * n];
                for row in 0..n {
                    for column in 0..row {
                        let value = random.unit() - 0.5;
                        (h[row * n + column], h[column * n + row]) = (value, value);
                    }
                    h[row * n + row] = n as f64;
                }
                Made::new(&format!("layer{i}.weight.xtx"), Dtype::F64, &[n, n], &h)
            })
            .collect();
        let statistics = common::checkpoint(directory.path(), "stats.safetensors", &statistics);
        Self { directory, input, statistics }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What lies beside the output of that name.
    fn left(&self, name: &str) -> Vec<String> {
        let names = common::names(self.directory.path()).into_iter();
        names.filter(|file| file.starts_with(&format!(".{name}"))).collect()
    }
}

fn rules(planes: usize) -> Rules {
    let int8 = Override { pattern: "eight*".to_owned(), settings: Settings::parse("keep=int8").unwrap() };
    let settings = Settings { planes: Some(planes), ..Settings::default() };
    Rules { settings, overrides: vec![int8], ..Rules::default() }
}

/// Packs with `resume`; stops once so many bytes of the checkpoint are done. Also how much was done at the first sign.
fn run(world: &World, output: &Path, planes: usize, damping: f64, stop: u64) -> (Result<(), Error>, u64) {
    let checkpoint = Checkpoint::open(&world.input).unwrap();
    let plan = Plan::new(&checkpoint, &rules(planes)).unwrap();
    let calibration = Calibration::open(&world.statistics).unwrap().with_damping(damping).unwrap();
    let (cancel, first) = (AtomicBool::new(stop == 0), AtomicU64::new(0));
    let watch = |progress: convert::Progress<'_>| {
        let _ = first.compare_exchange(0, progress.done, Ordering::Relaxed, Ordering::Relaxed);
        cancel.fetch_or(progress.done >= stop, Ordering::Relaxed);
    };
    let options = Options {
        resume: true,
        calibration: Some(&calibration),
        progress: Some(&watch),
        cancel: Some(&cancel),
        ..Options::default()
    };
    let result = convert::pack(&checkpoint, &plan, output, &options).map(drop);
    (result, first.into_inner())
}

fn total(world: &World) -> u64 {
    Checkpoint::open(&world.input).unwrap().tensors().map(|tensor| tensor.stored.len() as u64).sum()
}

#[test]
fn a_run_goes_on_from_any_point() {
    let world = World::new(9, 60);
    let whole = world.path("whole.twn");
    run(&world, &whole, 2, 0.01, u64::MAX).0.unwrap();
    assert!(world.left("whole").is_empty());
    let (expected, total) = (std::fs::read(&whole).unwrap(), total(&world));
    for tenth in 0..8 {
        let name = format!("{tenth}.twn");
        let output = world.path(&name);
        let (result, _) = run(&world, &output, 2, 0.01, total * tenth / 10);
        assert!(matches!(result, Err(Error::Cancelled)), "{tenth}");
        assert!(!output.exists());
        assert_eq!(world.left(&name), [format!(".{name}.twn-journal"), format!(".{name}.twn-partial")]);
        // Once more cut off, then to the end.
        let _ = run(&world, &output, 2, 0.01, total * (tenth + 1) / 10);
        let (result, first) = run(&world, &output, 2, 0.01, u64::MAX);
        result.unwrap();
        assert!(std::fs::read(&output).unwrap() == expected, "{tenth}");
        assert!(world.left(&name).is_empty());
        assert!(tenth < 5 || first > 0);
    }
}

/// The last step fails: what was done is there for the next run.
#[test]
fn a_name_that_is_taken_meanwhile_loses_nothing() {
    let world = World::new(5, 60);
    let (whole, output) = (world.path("whole.twn"), world.path("o.twn"));
    run(&world, &whole, 2, 0.01, u64::MAX).0.unwrap();
    let checkpoint = Checkpoint::open(&world.input).unwrap();
    let plan = Plan::new(&checkpoint, &rules(2)).unwrap();
    let calibration = Calibration::open(&world.statistics).unwrap().with_damping(0.01).unwrap();
    for is_directory in [false, true] {
        let take = |_: convert::Progress<'_>| match is_directory {
            true => drop(std::fs::create_dir(&output)),
            false => std::fs::write(&output, "mine").unwrap(),
        };
        let options = Options { resume: true, calibration: Some(&calibration), ..Options::default() };
        let options = Options { progress: Some(&take), overwrite: is_directory, ..options };
        let error = convert::pack(&checkpoint, &plan, &output, &options).unwrap_err();
        assert!(is_directory || matches!(error, Error::OutputExists { .. }), "{error}");
        assert_eq!(world.left("o.twn"), [".o.twn.twn-journal", ".o.twn.twn-partial"]);
        let removed = if is_directory { std::fs::remove_dir(&output) } else { std::fs::remove_file(&output) };
        removed.unwrap();
    }
    // The run's own line, and one for each tensor.
    let journal = std::fs::read_to_string(world.path(".o.twn.twn-journal")).unwrap();
    assert_eq!(journal.lines().count(), 1 + checkpoint.len());
    run(&world, &output, 2, 0.01, u64::MAX).0.unwrap();
    assert!(std::fs::read(&output).unwrap() == std::fs::read(&whole).unwrap());
    assert!(world.left("o.twn").is_empty());
}

/// Names that anybody can foresee, in a directory that others may write to.
#[test]
#[cfg(unix)]
fn what_others_left_under_these_names_is_not_touched() {
    let world = World::new(2, 60);
    let victim = world.path("victim");
    std::fs::write(&victim, "not yours").unwrap();
    for name in [".o.twn.twn-partial", ".o.twn.twn-journal"] {
        let place = world.path(name);
        for fifo in [false, true] {
            if fifo {
                assert!(Command::new("mkfifo").arg(&place).status().unwrap().success());
            } else {
                std::os::unix::fs::symlink(&victim, &place).unwrap();
            }
            let (result, _) = run(&world, &world.path("o.twn"), 2, 0.01, u64::MAX);
            let error = result.unwrap_err();
            let error = format!("{error}: {}", std::error::Error::source(&error).unwrap());
            assert!(error.contains(name) && error.contains("not a regular file"), "{error}");
            assert_eq!(std::fs::read(&victim).unwrap(), b"not yours");
            std::fs::remove_file(&place).unwrap();
        }
    }
}

#[test]
fn what_is_damaged_is_done_anew() {
    let world = World::new(5, 40);
    let whole = world.path("whole.twn");
    run(&world, &whole, 1, 0.01, u64::MAX).0.unwrap();
    let expected = std::fs::read(&whole).unwrap();
    let output = world.path("out.twn");
    let (partial, journal) = (world.path(".out.twn.twn-partial"), world.path(".out.twn.twn-journal"));
    let mut random = Random(11);
    for case in 0..60 {
        let _ = run(&world, &output, 1, 0.01, total(&world) * 3 / 4);
        let file = if case % 2 == 0 { &partial } else { &journal };
        let mut bytes = std::fs::read(file).unwrap();
        match case / 2 % 5 {
            0 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
            1 => bytes.extend((0..5000).map(|_| random.bits() as u8)),
            2 => drop(std::fs::remove_file(file)),
            _ => {
                for _ in 0..1 + random.below(4) {
                    let at = random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << random.below(8);
                }
            }
        }
        if file.exists() {
            std::fs::write(file, &bytes).unwrap();
        }
        let (result, _) = run(&world, &output, 1, 0.01, u64::MAX);
        result.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert!(std::fs::read(&output).unwrap() == expected, "{case}");
        assert!(world.left("out").is_empty(), "{case}");
        std::fs::remove_file(&output).unwrap();
    }
}

#[test]
fn another_run_is_refused_and_harms_nothing() {
    let world = World::new(5, 40);
    let whole = world.path("whole.twn");
    run(&world, &whole, 1, 0.01, u64::MAX).0.unwrap();
    let output = world.path("out.twn");
    let _ = run(&world, &output, 1, 0.01, total(&world) / 2);
    let refused = |result: Result<(), Error>, says: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(".out.twn.twn-journal: what is there to resume is of a run with"), "{error}");
        assert!(error.contains(says) && error.contains("remove this file to begin anew"), "{error}");
    };
    refused(run(&world, &output, 2, 0.01, u64::MAX).0, "another target or other rules");
    refused(run(&world, &output, 1, 0.02, u64::MAX).0, "other statistics of inputs, or another use of them");
    // The same bytes, written again.
    let before = std::fs::metadata(&world.input).unwrap().modified().unwrap();
    let touch = |time| std::fs::File::options().write(true).open(&world.input).unwrap().set_modified(time).unwrap();
    touch(before + Duration::from_secs(1));
    refused(run(&world, &output, 1, 0.01, u64::MAX).0, "another checkpoint, or one that was written to");
    // Set back, that time says nothing; the system keeps one that nobody can set.
    touch(before);
    if cfg!(unix) {
        refused(run(&world, &output, 1, 0.01, u64::MAX).0, "another checkpoint, or one that was written to");
    }
    let lock = std::fs::File::open(world.path(".out.twn.twn-journal")).unwrap();
    lock.lock().unwrap();
    let error = run(&world, &output, 1, 0.01, u64::MAX).0.unwrap_err().to_string();
    assert!(error.contains("another run is working on this output"), "{error}");
    drop(lock);
    // A run that was killed when its output had its name, and not yet been done with the journal, is no run to go on with.
    let journal = std::fs::read(world.path(".out.twn.twn-journal")).unwrap();
    std::fs::remove_file(world.path(".out.twn.twn-partial")).unwrap();
    run(&world, &output, 2, 0.01, u64::MAX).0.unwrap();
    run(&world, &world.path("two.twn"), 2, 0.01, u64::MAX).0.unwrap();
    assert!(std::fs::read(&output).unwrap() == std::fs::read(world.path("two.twn")).unwrap());
    std::fs::remove_file(&output).unwrap();
    std::fs::write(world.path(".out.twn.twn-journal"), journal).unwrap();
    run(&world, &output, 1, 0.01, u64::MAX).0.unwrap();
    assert!(world.left("out.twn").is_empty());
    assert!(std::fs::read(&output).unwrap() == std::fs::read(&whole).unwrap());
    let error = run(&world, &output, 1, 0.01, u64::MAX).0.unwrap_err();
    assert!(matches!(error, Error::OutputExists { .. }));
}

/// An index says in which shard a tensor lies, a `config.json` what scales are: neither may change between two runs that
/// are one, nor during a run.
#[test]
fn what_says_what_tensors_are_may_not_change() {
    let weights = |name: &str, seed| Made::gaussian(name, Dtype::F32, &[40, 50], seed);
    let index = |of_a: u8, ending: &str| {
        let shards = [("a.weight", of_a), ("b.weight", 1), ("c.weight", 2)];
        let map: BTreeMap<_, _> =
            shards.iter().map(|(name, shard)| (name, format!("pytorch_model-0000{shard}-of-00002.{ending}"))).collect();
        serde_json::json!({ "weight_map": map }).to_string()
    };
    let torch = |seed| {
        let names = ["a.weight", "b.weight", "c.weight"];
        let pickle: Vec<u8> = names.iter().flat_map(|name| torch_tensor(name)).collect();
        let pickle = [b"\x80\x02}(", &pickle[..], b"u."].concat();
        zip(&[Entry::new("m/data.pkl", &pickle), Entry::new("m/data/0", &weights("", seed).data)])
    };
    let shard = |seed| common::safetensors(&["a.weight", "b.weight", "c.weight"].map(|name| weights(name, seed)), &[]);
    let codes = Made { name: "a.weight".to_owned(), dtype: Dtype::U8, shape: vec![10, 50], data: vec![0x41; 500] };
    let scale = Made::new("a.weight_scale", Dtype::F32, &[1], &[0.5]);
    let packed = common::safetensors(&[codes, scale, weights("b.weight", 1), weights("c.weight", 2)], &[]);
    let config = |class: &str| {
        serde_json::json!({ "quantization_config": { "quant_method": "bitnet", "linear_class": class } }).to_string()
    };
    let both = |ending: &str, shards: [Vec<u8>; 2]| {
        let [first, second] = shards;
        [("1", first), ("2", second)]
            .map(|(i, bytes)| (format!("pytorch_model-0000{i}-of-00002.{ending}"), bytes))
            .to_vec()
    };
    for (files, beside, before, after) in [
        (vec![("m.safetensors".to_owned(), packed)], "config.json", config("autobitlinear"), config("bitlinear")),
        (
            both("safetensors", [shard(1), shard(2)]),
            "model.safetensors.index.json",
            index(1, "safetensors"),
            index(2, "safetensors"),
        ),
        (both("bin", [torch(1), torch(2)]), "pytorch_model.bin.index.json", index(1, "bin"), index(2, "bin")),
    ] {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        let (beside, outputs) = (directory.path().join(beside), tempfile::tempdir().unwrap());
        let output = outputs.path().join("out.twn");
        let pack = |resume, then: &(dyn Fn() + Sync), cancel: &AtomicBool| {
            let checkpoint = import::open(directory.path()).unwrap();
            let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
            let then = |_: convert::Progress<'_>| then();
            let options = Options { resume, progress: Some(&then), cancel: Some(cancel), ..Options::default() };
            convert::pack(&checkpoint, &plan, &output, &options)
        };
        let (cancel, never) = (AtomicBool::new(false), AtomicBool::new(false));
        std::fs::write(&beside, &before).unwrap();
        let result = pack(true, &|| cancel.store(true, Ordering::Relaxed), &cancel);
        assert!(matches!(result, Err(Error::Cancelled)), "{beside:?}");
        std::fs::write(&beside, &after).unwrap();
        let error = pack(true, &|| (), &never).unwrap_err().to_string();
        assert!(error.contains("another checkpoint, or one that was written to"), "{beside:?}: {error}");
        let change = || std::fs::write(&beside, format!("{before} ")).unwrap();
        let error = pack(false, &change, &never).unwrap_err();
        assert!(matches!(&error, Error::InputChanged { path, .. } if *path == beside), "{error}");
    }
}

/// The opcodes of an item of a dict: float32 of shape [40, 50], storage `0`.
fn torch_tensor(name: &str) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let storage = [&text("storage")[..], b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), b"M\xd0\x07tQ"].concat();
    let rest = b"K\0(K\x28K\x32t(K\x32K\x01t\x89ccollections\nOrderedDict\n)RtR";
    [&text(name)[..], b"ctorch._utils\n_rebuild_tensor_v2\n((", &storage, rest].concat()
}

/// What was measured for a target counts, for another target too; the file is that of a run which was not cut off.
#[test]
fn measuring_for_a_target_goes_on() {
    let world = World::new(7, 60);
    let checkpoint = Checkpoint::open(&world.input).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let calibration = Calibration::open(&world.statistics).unwrap();
    let output = world.path("out.twn");
    // Measures and packs until so many tensors were measured; also how many there were.
    let run = |stop: usize, target: Target, resume: bool| {
        let (cancel, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        let watch = |_: convert::Progress<'_>| {
            let seen = seen.fetch_add(1, Ordering::Relaxed) + 1;
            cancel.fetch_or(seen >= stop as u64, Ordering::Relaxed);
        };
        let options = Options {
            resume,
            overwrite: true,
            calibration: Some(&calibration),
            progress: Some(&watch),
            cancel: Some(&cancel),
            ..Options::default()
        };
        let mut ladder = Ladder::measure_for(&output, &checkpoint, &plan, Minimize::Relative, &options)?;
        let choice = ladder.choose(target)?;
        let options = Options { cancel: None, ..options };
        convert::pack(&checkpoint, &ladder.plan(&choice), &output, &options)?;
        ladder.forget();
        std::fs::read(&output).map_err(|e| Error::Request(e.to_string()))
    };
    let never = usize::MAX;
    let target = Target::Bits(3.0);
    let (expected, other) = (run(never, target, false).unwrap(), run(never, Target::Bits(4.0), false).unwrap());
    assert!(world.left("out").is_empty() && expected != other);
    assert!(matches!(run(4, target, true), Err(Error::Cancelled)));
    assert_eq!(world.left("out"), [".out.twn.twn-measured"]);
    let lines = |journal: &Path| std::fs::read_to_string(journal).unwrap().lines().count();
    let journal = world.path(".out.twn.twn-measured");
    assert!(lines(&journal) > 2, "{}", lines(&journal));
    // A size that cannot be kept costs no measurement.
    assert!(run(never, Target::Bits(0.1), true).is_err());
    let all = lines(&journal);
    assert_eq!(all, 1 + 8, "one line says which run, then one per tensor with a choice");
    assert!(run(never, Target::Bits(0.2), true).is_err());
    assert_eq!(lines(&journal), all, "nothing is measured twice");
    // Half a line more, as a kill leaves it, and one that is damaged.
    let text = std::fs::read_to_string(&journal).unwrap();
    let at = text.len() - 40;
    std::fs::write(&journal, format!("{}#{}", &text[..at], &text[at + 1..])).unwrap();
    assert!(run(never, Target::Bits(4.0), true).unwrap() == other);
    assert!(world.left("out").is_empty());
    assert!(run(never, target, true).unwrap() == expected);
    // Statistics used in another way are refused.
    assert!(matches!(run(4, target, true), Err(Error::Cancelled)));
    let calibration = Calibration::open(&world.statistics).unwrap().with_damping(0.5).unwrap();
    let options = Options { resume: true, calibration: Some(&calibration), ..Options::default() };
    let error = Ladder::measure_for(&output, &checkpoint, &plan, Minimize::Relative, &options).unwrap_err();
    assert!(error.to_string().contains("other statistics of inputs"), "{error}");
    assert!(error.to_string().contains("or remove this file to begin anew"), "{error}");
    // Of a run that was packing already there are two.
    let packed = world.path(".out.twn.twn-journal");
    std::fs::write(&packed, "").unwrap();
    let error = Ladder::measure_for(&output, &checkpoint, &plan, Minimize::Relative, &options).unwrap_err();
    let both = format!("remove this file and {} to begin anew", packed.display());
    assert!(error.to_string().contains(&both), "{error}");
}

/// Runs the command with `--resume`, killed again and again, each time a little later; `watch` is called after each kill
/// that left no output. Whether the last run came to its end by itself.
fn killed(arguments: &[String], output: &Path, mut watch: impl FnMut()) -> bool {
    let (mut kills, mut wait) = (0, 4);
    loop {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--resume").stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        let to_its_end = child.wait().unwrap().success();
        // Killed behind the renaming, the output is there already: whole, as its caller holds.
        if to_its_end || output.exists() {
            assert!(kills > 1, "too fast to be killed");
            return to_its_end;
        }
        watch();
        (kills, wait) = (kills + 1, wait + 6);
        assert!(kills < 500, "it never comes to its end");
    }
}

impl World {
    /// Packing into that file with statistics.
    fn arguments(&self, output: &Path, more: &[&str]) -> Vec<String> {
        let [input, output, statistics] = [&self.input, output, &self.statistics].map(|path| path.to_str().unwrap());
        let arguments = [input, "-o", output, "--quiet", "--int8", "eight*", "--calibration", statistics];
        arguments.iter().chain(more).map(|&argument| argument.to_owned()).collect()
    }
}

#[test]
fn a_killed_command_goes_on() {
    let world = World::new(12, 160);
    let (whole, output) = (world.path("whole.twn"), world.path("out.twn"));
    common::expect(0, &world.arguments(&whole, &["--planes", "2"]));
    let to_its_end = killed(&world.arguments(&output, &["--planes", "2"]), &output, || {});
    assert!(std::fs::read(&output).unwrap() == std::fs::read(&whole).unwrap());
    assert!(!to_its_end || world.left("out").is_empty());
    let checkpoint = Checkpoint::open(&world.input).unwrap();
    let container = twn_pack::Container::open(&output).unwrap();
    assert!(verify::verify_against(&container, &checkpoint, None).unwrap().is_good());
}

/// Killed while it measures for a target, and while it packs: what was measured before a kill stays, and the file is
/// that of a run which was not killed.
#[test]
fn a_killed_measuring_goes_on() {
    let world = World::new(8, 100);
    let (whole, output) = (world.path("whole.twn"), world.path("out.twn"));
    let target = ["--target-size", "3.5bits"];
    common::expect(0, &world.arguments(&whole, &target));
    let (mut measured, mut while_measuring) = (0, 0);
    let to_its_end = killed(&world.arguments(&output, &target), &output, || {
        let journal = std::fs::read(world.path(".out.twn.twn-measured")).unwrap_or_default();
        let lines = journal.iter().filter(|&&byte| byte == b'\n').count();
        assert!(lines >= measured, "{lines} lines of {measured} are left");
        // The first line says which run it is of; of 8 tensors not all are measured.
        if (2..9).contains(&lines) {
            assert_eq!(world.left("out"), [".out.twn.twn-measured"]);
            while_measuring += usize::from(lines > measured);
        }
        measured = lines;
    });
    assert!(while_measuring > 1, "killed {while_measuring} times between two tensors");
    assert!(std::fs::read(&output).unwrap() == std::fs::read(&whole).unwrap());
    assert!(!to_its_end || world.left("out").is_empty());
}
