//! A size or an error that is asked for: sizes are kept to the byte, choices are the best there are (held against
//! every combination, packed one by one), and the file says what was chosen. Not here: the choice over numbers
//! alone (`src/budget/hull.rs`).

#![cfg(feature = "cli")]

mod common;

use std::path::{Path, PathBuf};

use common::{Made, Random};
use twn_pack::budget::{Ladder, Minimize, Target};
use twn_pack::container::Body;
use twn_pack::convert::{self, Options};
use twn_pack::select::{Decision, Override};
use twn_pack::{Calibration, Checkpoint, Container, Dtype, Plan, Rules, Settings, report, verify};

/// A model whose tensors differ in size, shape of their weights, and type.
fn model(directory: &Path) -> PathBuf {
    let mut random = Random(3);
    let heavy: Vec<f64> = (0..40 * 150).map(|_| 3.0 * random.laplace().powi(3)).collect();
    let tensors = [
        Made::gaussian("first.weight", Dtype::F32, &[16, 3, 3, 3], 1),
        Made::new("heavy.weight", Dtype::F32, &[40, 150], &heavy),
        Made::gaussian("half.weight", Dtype::F16, &[64, 100], 2),
        Made::gaussian("tiny.weight", Dtype::F32, &[2, 3], 4),
        Made::gaussian("fc.bias", Dtype::F32, &[64], 5),
    ];
    common::checkpoint(directory, "in.safetensors", &tensors)
}

fn pack(checkpoint: &Checkpoint, plan: &Plan, output: &Path) -> report::Report {
    convert::pack(checkpoint, plan, output, &Options { overwrite: true, ..Options::default() }).unwrap()
}

fn measured(checkpoint: &Checkpoint) -> Ladder<'_> {
    let plan = Plan::new(checkpoint, &Rules::default()).unwrap();
    Ladder::measure(checkpoint, &plan, Minimize::Relative, &Options::default()).unwrap()
}

/// The relative errors of the tensors that are not dense, added up.
fn error_of(report: &report::Report) -> f64 {
    report.tensors.iter().filter_map(|tensor| tensor.relative_squared_error).sum()
}

#[test]
fn sizes_are_kept_to_the_byte() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(model(directory.path())).unwrap();
    let ladder = measured(&checkpoint);
    let curve = ladder.budget(None).curve;
    let (smallest, largest) = (curve[0].file_bytes, curve.last().unwrap().file_bytes);
    assert_eq!(curve.last().unwrap().error, 0.0);
    assert!(curve.windows(2).all(|pair| pair[0].file_bytes < pair[1].file_bytes && pair[0].error > pair[1].error));
    let output = directory.path().join("out.twn");
    let steps = (0..=20).map(|i| smallest + (largest - smallest) * i / 20);
    for limit in steps.chain(curve.iter().map(|point| point.file_bytes)).chain([largest + 1000]) {
        let choice = ladder.choose(Target::Bytes(limit)).unwrap();
        let budget = ladder.budget(Some((Target::Bytes(limit), &choice)));
        let report = pack(&checkpoint, &ladder.plan(&choice), &output);
        assert_eq!(Some(report.totals.file_bytes), budget.chosen.as_ref().map(|chosen| chosen.file_bytes));
        assert!(report.totals.file_bytes <= limit, "{} {limit}", report.totals.file_bytes);
        assert_eq!(std::fs::metadata(&output).unwrap().len(), report.totals.file_bytes);
        let container = Container::open(&output).unwrap();
        assert!(verify::verify_against(&container, &checkpoint, None).unwrap().is_good());
        for (rung, entry) in budget.rungs.iter().zip(container.index().tensors.iter().filter(|e| e.shape.len() > 1)) {
            let reason = match entry.body() {
                Body::Dense(dense) => &dense.reason,
                Body::Int8(int8) => &int8.reason,
                Body::Ternary(ternary) => &ternary.reason,
            };
            assert_eq!((rung.tensor.as_str(), reason.as_str()), (entry.name.as_str(), "budget"));
        }
        if let Some(point) = curve.iter().find(|point| point.file_bytes == limit) {
            assert!(error_of(&report) <= 4.0 * point.error + 1e-12, "{point:?}");
        }
    }
    let error = ladder.choose(Target::Bytes(smallest - 1)).unwrap_err().to_string();
    assert!(error.contains(&format!("the smallest file that these rules allow has {smallest} bytes")), "{error}");
    let source: usize = checkpoint.tensors().map(|tensor| tensor.stored.len()).sum();
    let choice = ladder.choose(Target::Ratio(3.0)).unwrap();
    assert!(pack(&checkpoint, &ladder.plan(&choice), &output).totals.file_bytes * 3 <= source as u64);
    let choice = ladder.choose(Target::Bits(3.5)).unwrap();
    let bits = ladder.budget(Some((Target::Bits(3.5), &choice))).chosen.unwrap().bits_per_weight;
    assert!(bits <= 3.5 && bits > 2.5, "{bits}");
    for bad in [Target::Ratio(1e6), Target::Bits(0.5), Target::Bits(f64::NAN), Target::Error(-1.0), Target::Ratio(0.0)]
    {
        assert!(ladder.choose(bad).is_err(), "{bad}");
    }
}

/// What the message says is the smallest is kept when it is asked for: its numbers are not rounded to the wrong side.
#[test]
fn the_smallest_that_is_named_can_be_had() {
    let directory = tempfile::tempdir().unwrap();
    let named = |message: &str, end: &str| -> f64 {
        let before = message.split_once("rules allow has").unwrap().1.split_once(end).unwrap().0;
        before.split(' ').next_back().unwrap().parse().unwrap()
    };
    for seed in 0..12 {
        let lengths = [40, 150, 257, 130];
        let tensors: Vec<Made> = (0..4)
            .map(|i| {
                let shape = [2 + (7 * seed + 5 * i) % 23, lengths[(seed + i) % 4]];
                Made::gaussian(&format!("layer{i}.weight"), Dtype::F32, &shape, (4 * seed + i) as u64)
            })
            .collect();
        let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "in.safetensors", &tensors)).unwrap();
        let ladder = measured(&checkpoint);
        let bits = ladder.choose(Target::Bits(0.01)).unwrap_err().to_string();
        ladder.choose(Target::Bits(named(&bits, " bits per weight;"))).unwrap();
        let ratio = ladder.choose(Target::Ratio(1e6)).unwrap_err().to_string();
        ladder.choose(Target::Ratio(named(&ratio, " times smaller"))).unwrap();
        ladder.choose(Target::Bytes(named(&ratio, " bytes,") as u64)).unwrap();
    }
}

/// Two tensors, every combination of their rungs packed by the ordinary way: along the curve the budget's choice
/// is the best file of that size, and nowhere a smaller error fits by more than one step.
#[test]
fn no_combination_is_better() {
    let directory = tempfile::tempdir().unwrap();
    let tensors =
        [Made::gaussian("a.weight", Dtype::F32, &[30, 24], 1), Made::gaussian("b.weight", Dtype::BF16, &[8, 30], 2)];
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "in.safetensors", &tensors)).unwrap();
    let output = directory.path().join("out.twn");
    let rungs = ["planes=1", "planes=2", "planes=3", "planes=4", "keep=int8", "keep=dense"];
    let set =
        |pattern: &str, text: &str| Override { pattern: pattern.to_owned(), settings: Settings::parse(text).unwrap() };
    let mut files = Vec::new();
    for a in rungs {
        for b in rungs {
            let rules = Rules { overrides: vec![set("a*", a), set("b*", b)], ..Rules::default() };
            let mut plan = Plan::new(&checkpoint, &rules).unwrap();
            plan.tensors.iter_mut().for_each(|planned| planned.reason = "budget".into());
            let report = pack(&checkpoint, &plan, &output);
            files.push((report.totals.file_bytes, error_of(&report)));
        }
    }
    let ladder = measured(&checkpoint);
    let curve = ladder.budget(None).curve;
    let best = |limit: u64| {
        let fitting = files.iter().filter(|(bytes, _)| *bytes <= limit);
        fitting.map(|(_, error)| *error).min_by(f64::total_cmp).unwrap()
    };
    assert_eq!(files.iter().map(|(bytes, _)| *bytes).min(), Some(curve[0].file_bytes));
    for pair in curve.windows(2) {
        let at = |limit: u64| {
            let choice = ladder.choose(Target::Bytes(limit)).unwrap();
            error_of(&pack(&checkpoint, &ladder.plan(&choice), &output))
        };
        // Offsets take a digit more in some files: the next step may be missed by that.
        assert!(at(pair[0].file_bytes) <= best(pair[0].file_bytes) + 1e-12, "{pair:?} {:?}", best(pair[0].file_bytes));
        let between = u64::midpoint(pair[0].file_bytes, pair[1].file_bytes);
        let step = 2.0 * (pair[0].error - pair[1].error);
        assert!(at(between) - best(between) <= step + 1e-12, "{pair:?}");
    }
}

/// The smallest rung within the error, for each tensor by itself; 0 keeps all dense.
#[test]
fn an_error_is_kept_by_every_tensor() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(model(directory.path())).unwrap();
    let ladder = measured(&checkpoint);
    let mut before = u64::MAX;
    for error in [0.0, 1e-5, 1e-3, 0.02, 0.1, 0.25, 1.0] {
        let choice = ladder.choose(Target::Error(error)).unwrap();
        let report = pack(&checkpoint, &ladder.plan(&choice), &directory.path().join("out.twn"));
        let worst = report.tensors.iter().filter_map(|t| t.relative_squared_error).fold(0.0, f64::max);
        assert!(worst <= error, "{worst} {error}");
        assert!(report.totals.file_bytes <= before);
        before = report.totals.file_bytes;
        let dense = ladder.plan(&choice).tensors.iter().all(|planned| matches!(planned.decision, Decision::Dense));
        assert!(if error == 0.0 { dense } else { !dense || error < 1e-3 }, "{error}");
    }
}

/// With statistics of inputs the error is that of the outputs; a tensor without any counts by its weights.
#[test]
fn with_statistics_the_outputs_error_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let input = model(directory.path());
    let n = 150;
    // Few inputs carry nearly all of the energy.
    let energy = |i: usize| if i.is_multiple_of(10) { 100.0 } else { 0.01 };
    let h: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { energy(at % n) } else { 0.0 }).collect();
    let stats = common::checkpoint(
        directory.path(),
        "stats.safetensors",
        &[Made::new("heavy.weight.xtx", Dtype::F64, &[n, n], &h)],
    );
    let calibration = Calibration::open(stats).unwrap();
    let options = Options { calibration: Some(&calibration), overwrite: true, ..Options::default() };
    let checkpoint = Checkpoint::open(input).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let ladder = Ladder::measure(&checkpoint, &plan, Minimize::Relative, &options).unwrap();
    let choice = ladder.choose(Target::Error(0.05)).unwrap();
    let report =
        convert::pack(&checkpoint, &ladder.plan(&choice), &directory.path().join("out.twn"), &options).unwrap();
    let heavy = report.tensors.iter().find(|tensor| tensor.name == "heavy.weight").unwrap();
    assert!(heavy.relative_output_error.unwrap() <= 0.05 && heavy.became.contains("calibrated"), "{heavy:?}");
    let half = report.tensors.iter().find(|tensor| tensor.name == "half.weight").unwrap();
    assert!(half.is_uncalibrated() && half.relative_squared_error.unwrap() <= 0.05, "{half:?}");
    assert!(Ladder::measure(&checkpoint, &plan, Minimize::Absolute, &options).is_err());
}

#[test]
fn sizes_as_people_write_them() {
    for (text, target) in [
        ("1500000", Target::Bytes(1_500_000)),
        ("12B", Target::Bytes(12)),
        ("40MB", Target::Bytes(40_000_000)),
        ("1.5 MiB", Target::Bytes(1_572_864)),
        ("2KiB", Target::Bytes(2048)),
        ("2.5bits", Target::Bits(2.5)),
    ] {
        assert_eq!(Target::size(text).unwrap(), target, "{text}");
    }
    for text in ["", "MB", "-3", "1e6", "12 parsecs", "1.2.3", "bits", "inf", "18446744073709551616", "20000000000GB"] {
        let error = Target::size(text).unwrap_err().to_string();
        assert!(error.contains(&format!("size `{text}`; expected bytes")), "{error}");
    }
}

#[test]
fn the_command_keeps_a_size_and_says_how() {
    let directory = tempfile::tempdir().unwrap();
    let input = model(directory.path());
    let (input, output) = (input.to_str().unwrap(), directory.path().join("out.twn"));
    let out = output.to_str().unwrap();
    let (table, _) = common::expect(0, &[input, "-o", out, "--target-size", "9KiB", "--int8", "first*"]);
    assert!(std::fs::metadata(&output).unwrap().len() <= 9216, "{table}");
    assert!(table.contains("budget    9216 bytes: ") && table.contains(": budget"), "{table}");
    assert!(table.contains("int8 filter: set by `first*`"), "{table}");
    let (json, _) = common::expect(0, &[input, "-o", out, "-f", "--target-ratio", "4", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["totals"]["ratio"].as_f64().unwrap() >= 4.0);
    assert_eq!(json["budget"]["chosen"]["file_bytes"], json["totals"]["file_bytes"]);
    assert_eq!(json["budget"]["rungs"].as_array().unwrap().len(), 4);
    common::expect(0, &[input, "-o", out, "-f", "--target-ratio", "3", "--minimize", "absolute"]);
    common::expect(0, &[input, "-o", out, "-f", "--target-error", "0.05"]);
    // What is asked for by name stays what it is.
    let fixed = ["--set", "heavy*", "planes=3", "--set", "half*", "granularity=group:16"];
    let (table, _) = common::expect(0, &[&[input, "-o", out, "-f", "--target-error", "0.9"], &fixed[..]].concat());
    assert!(table.contains("t2 twn filter planes 3") && table.contains("t2 twn group:16"), "{table}");
    let rules = directory.path().join("rules.toml");
    std::fs::write(&rules, "granularity = \"tensor\"").unwrap();
    let (sweep, _) = common::expect(0, &["sweep", input, "--json"]);
    let sweep: serde_json::Value = serde_json::from_str(&sweep).unwrap();
    assert_eq!(sweep["curve"], json["budget"]["curve"]);
    let (table, _) = common::expect(0, &["sweep", input]);
    assert!(table.starts_with("file") && table.contains("error of weights"));
    assert_eq!(table.lines().count(), 1 + sweep["curve"].as_array().unwrap().len());
    for (arguments, says) in [
        (&["--target-size", "1KB"][..], "cannot be kept: the smallest file that these rules allow has"),
        (&["--target-size", "1KB", "--target-ratio", "2"], "cannot be used with"),
        (&["--target-size", "9KiB", "--planes", "2"], "planes with a target or a sweep"),
        (&["--target-ratio", "2", "--rules", rules.to_str().unwrap()], "granularity with a target"),
        (&["--target-error", "0.1", "--minimize", "absolute"], "--minimize is for --target-size"),
        (&["--target-ratio", "-1"], "expected a positive number"),
        (&["--minimize", "absolute"], "--minimize is for --target-size"),
        (&["--target-error", "0.1", "--dry-run"], "--dry-run reads no weights"),
    ] {
        let (_, error) = common::expect(2, &[&[input, "-f", "-o", out][..], arguments].concat());
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
}

/// What repairs say of themselves in the index counts, too.
#[test]
fn a_size_is_kept_with_repairs() {
    let directory = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let (input, data) = (fixtures.join("lenet5-mnist.safetensors"), fixtures.join("mnist64"));
    let [input, data] = [&input, &data].map(|path| path.to_str().unwrap());
    let output = directory.path().join("out.twn");
    let out = output.to_str().unwrap();
    let measured = ["--reestimate-bn", data, "--split", "test"];
    for (size, repair) in [("164500", &["--adjust-bn"][..]), ("165000", &measured), ("190001", &measured)] {
        let arguments =
            [&[input, "-o", out, "-f", "--json", "--net", "lenet5", "--target-size", size], repair].concat();
        let (json, _) = common::expect(0, &arguments);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let length = std::fs::metadata(&output).unwrap().len();
        let limit: u64 = size.parse().unwrap();
        assert!(length <= limit, "{length} {limit}");
        assert_eq!(json["budget"]["chosen"]["file_bytes"], length);
        assert!(json["tensors"].as_array().unwrap().iter().filter(|tensor| !tensor["repaired"].is_null()).count() >= 6);
    }
}

/// A sweep shows every rung it measured, every step of the curve, of what the errors are, and what it knew nothing of.
#[test]
fn a_sweep_hides_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let tensors: Vec<Made> =
        (0..20).map(|i| Made::gaussian(&format!("l{i}.weight"), Dtype::F32, &[32, 200 + i as usize], 1 + i)).collect();
    let input = common::checkpoint(directory.path(), "in.safetensors", &tensors);
    let identity: Vec<f64> = (0..40_000).map(|at| f64::from(u8::from(at % 201 == 0))).collect();
    let known = [Made::new("l0.weight.xtx", Dtype::F32, &[200, 200], &identity)];
    let known = common::checkpoint(directory.path(), "stats.safetensors", &known);
    let [input, known] = [&input, &known].map(|path| path.to_str().unwrap());
    let (json, _) = common::expect(0, &["sweep", input, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["errors"], "weights");
    // 4 numbers of planes with a scale per filter; up to 8 bits also 3 of them per 128 weights and 2 per 32; int8, dense.
    assert_eq!(json["measured"].as_array().unwrap().len(), 20 * (4 + 3 + 2 + 2));
    let curve = json["curve"].as_array().unwrap();
    assert!(curve.len() > 64, "{}", curve.len());
    let changed = |tensor: &str| curve.iter().filter(|point| point["tensor"] == tensor).count();
    assert!((0..20).all(|i| changed(&format!("l{i}.weight")) > 2));
    let (table, warnings) = common::expect(0, &["sweep", input, "--calibration", known]);
    assert!(table.contains("error of outputs, or weights where no inputs are known"), "{table}");
    assert!(table.lines().count() <= 67, "{table}");
    assert!(warnings.contains("`l1.weight` and 18 more: no statistics"), "{warnings}");
}

#[test]
fn what_a_budget_cannot_change_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let mut broken = Made::gaussian("nan.weight", Dtype::F32, &[8, 64], 1);
    broken.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let tensors = [broken, Made::gaussian("good.weight", Dtype::F32, &[8, 64], 2)];
    let input = common::checkpoint(directory.path(), "in.safetensors", &tensors);
    let [input, output] = [input, directory.path().join("out.twn")].map(|path| path.to_str().unwrap().to_owned());
    let (table, _) = common::expect(0, &[&input[..], "-o", &output, "--non-finite", "dense", "--target-size", "4000"]);
    assert!(table.contains("dense: holds NaN or infinity"), "{table}");
    let fixed = ["--set", "good*", "planes=1", "--target-error", "0.01", "--non-finite", "dense", "-f"];
    let (_, warnings) = common::expect(0, &[&[&input[..], "-o", &output], &fixed[..]].concat());
    assert!(warnings.contains("`good.weight`: planned otherwise by the rules, with an error above 0.01"), "{warnings}");
}

/// Scales that f16 does not hold, too large or too small: such a tensor stayed dense, or took a rung that it would not
/// have had, without a word.
#[test]
fn rungs_that_a_tensor_cannot_have_are_said() {
    let directory = tempfile::tempdir().unwrap();
    let times = |name: &str, factor: f64| {
        let weights: Vec<f64> = Random(7).gaussians(8 * 64).into_iter().map(|w| factor * w).collect();
        Made::new(name, Dtype::F32, &[8, 64], &weights)
    };
    let tensors = [
        times("good.weight", 1.0),
        times("huge.weight", 1e9),
        times("large.weight", 1e6),
        times("small.weight", 1e-9),
        times("narrow.weight", 1e-7),
    ];
    let input = common::checkpoint(directory.path(), "in.safetensors", &tensors);
    let [input, output] = [input, directory.path().join("out.twn")].map(|path| path.to_str().unwrap().to_owned());
    let dense = |name: &str| format!("warning: `{name}` stays dense: filter 0: scale ");
    let advice = " does not fit f16; use --scale-dtype f32";
    let holds = |warnings: &str, arguments: &[&str]| {
        assert_eq!(warnings.lines().count(), 4, "{arguments:?}: {warnings}");
        let said = |begin: &str| warnings.lines().any(|line| line.starts_with(begin) && line.ends_with(advice));
        assert!(said(&dense("huge.weight")) && said(&dense("small.weight")), "{arguments:?}: {warnings}");
        // 8 bits have a scale that fits, or the other way round.
        assert!(said("warning: `large.weight` cannot become t2 twn filter, nor 6 others: filter "), "{warnings}");
        assert!(said("warning: `narrow.weight` cannot become int8 filter: filter "), "{warnings}");
    };
    let common = [&input[..], "-o", &output, "-f", "--scale-dtype", "f16"];
    for target in [["--target-error", "0.05"], ["--target-ratio", "1.2"], ["--target-size", "20bits"]] {
        let arguments = [&common[..], &target].concat();
        let (table, warnings) = common::expect(0, &arguments);
        holds(&warnings, &arguments);
        let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        for name in ["huge.weight", "small.weight"] {
            assert!(line(name).contains("dense: filter 0: scale ") && line(name).contains(advice), "{table}");
        }
        let container = Container::open(&output).unwrap();
        assert!(verify::verify(&container, None).unwrap().is_good());
    }
    let arguments = ["sweep", &input, "--scale-dtype", "f16", "--json"];
    let (json, warnings) = common::expect(0, &arguments);
    holds(&warnings, &arguments);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let impossible = json["impossible"].as_array().unwrap();
    // 7 ternary rungs and 8 bits of two tensors, and what one each cannot have of those.
    assert_eq!(impossible.len(), 2 * 8 + 7 + 1, "{impossible:?}");
    assert!(impossible.iter().all(|rung| rung["reason"].as_str().unwrap().contains(advice)));
    let (_, warnings) = common::expect(0, &[&input[..], "-o", &output, "-f", "--target-error", "0.05"]);
    assert_eq!(warnings, "");
}
