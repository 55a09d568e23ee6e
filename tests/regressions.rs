//! Bugs that were there once; each test says which.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::Made;
use twn_pack::budget::{Ladder, Minimize};
use twn_pack::convert::Options;
use twn_pack::error::WeightsProblem;
use twn_pack::select::{Decision, Int8, Moved, Treatment};
use twn_pack::ternarize::{Above, Threshold, Unit};
use twn_pack::{
    Checkpoint, Container, Dtype, Encoding, Error, Granularity, Isa, Plan, Report, Rules, Settings, Tensor, TensorView,
    Ternarizer, convert, memory, unpack, verify,
};

#[cfg(unix)]
#[test]
fn inspect_does_not_wait_for_a_pipe() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    // It opened the pipe to look for the magic, for ever, and not even SIGTERM ended it.
    let directory = tempfile::tempdir().unwrap();
    for name in ["pipe", "pipe.twn"] {
        let path = directory.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut child = Command::new(common::BINARY).arg("inspect").arg(&path).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                None if start.elapsed() > Duration::from_secs(10) => child.kill().unwrap(),
                None => std::thread::sleep(Duration::from_millis(5)),
                Some(status) => break status,
            }
        };
        assert_eq!(status.code(), Some(4), "{name}");
    }
}

#[test]
fn treatments_that_contradict_themselves_are_refused() {
    // Zeros became -1 in b1 without a word, and groups of 0 weights divided by zero.
    let weights = ndarray::array![[1.0f32, 0.0, -1.0, 0.0]];
    let good = Settings::default().treatment().unwrap();
    let mut bad = good.clone();
    bad.encoding = Encoding::B1;
    assert!(memory::ternarize("w", &weights, &bad).unwrap_err().to_string().contains("b1"));
    let mut bad = good.clone();
    bad.granularity = Granularity::Group(0);
    assert!(memory::ternarize("w", &weights, &bad).unwrap_err().to_string().contains("groups of 0"));
    assert!(memory::ternarize("w", &weights, &good).is_ok());
}

#[test]
fn edited_plans_that_cannot_be_run_are_refused_by_whoever_takes_them() {
    // The report of a plan and the ladder of a budget divided by zero, and looked for axes that were not there.
    let directory = tempfile::tempdir().unwrap();
    let made = Made::gaussian("w", Dtype::F32, &[4, 4], 1);
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "in.safetensors", &[made])).unwrap();
    let good = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let treatment = common::treatment("");
    let group = Treatment { granularity: Granularity::Group(0), ..treatment.clone() };
    let (axis, planes) = (Treatment { axis: 2, ..treatment.clone() }, Treatment { planes: 5, ..treatment.clone() });
    let moved = Moved { encoding: Encoding::T2, scale_dtype: treatment.scale_dtype };
    for (decision, words) in [
        (Decision::Ternary(group), "groups of 0"),
        (Decision::Ternary(axis), "axis 2"),
        (Decision::Ternary(planes), "1 to 4"),
        (Decision::Int8(Int8 { axis: 7, scale_dtype: treatment.scale_dtype }), "axis 7"),
        (Decision::Moved(moved), "is not ternary in the checkpoint"),
    ] {
        let mut plan = good.clone();
        plan.tensors[0].decision = decision;
        let options = convert::Options::default();
        let of_plan = Report::of_plan(&checkpoint, &plan).unwrap_err();
        let measured = convert::measure(&checkpoint, &plan, &options).unwrap_err();
        let ladder = Ladder::measure(&checkpoint, &plan, Minimize::Relative, &options).unwrap_err();
        for error in [of_plan, measured, ladder] {
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }
    assert!(good.check(&checkpoint).is_ok());
}

#[test]
fn statistics_beyond_f64_are_refused_by_name() {
    // Found by fuzzing. They went into the index as null, which the writer refused as its own bad index.
    // All weights dropped, so no scale is too large; each filter's square is finite, their sum is not.
    let treatment = common::treatment("factor=10");
    match memory::ternarize("w", &ndarray::array![[1e154], [1e154]], &treatment) {
        Err(Error::Weights { problem: WeightsProblem::Statistics { what, found }, .. }) => {
            assert_eq!((what, found), ("‖W‖²", f64::INFINITY));
        }
        other => panic!("{other:?}"),
    }
    memory::ternarize("w", &ndarray::array![[1e154], [1e100]], &treatment).unwrap();
}

/// A method that is cancelled while it looks at its weights, and counts what it is still shown.
#[derive(Debug, Default)]
struct Interrupted {
    cancel: AtomicBool,
    before: AtomicU64,
    after: AtomicU64,
}

impl Ternarizer for Interrupted {
    fn name(&self) -> &'static str {
        "interrupted"
    }

    fn threshold(&self, weights: &Unit<'_>) -> Threshold {
        self.before.store(weights.above(0.0).count, Ordering::Relaxed);
        self.cancel.store(true, Ordering::Relaxed);
        self.after.store(weights.above(0.0).count, Ordering::Relaxed);
        Threshold::Delta(0.0)
    }
}

#[test]
fn cancelling_does_not_wait_for_a_long_unit() {
    // One scale for a tensor of billions of weights: every pass over them went on to its end.
    let directory = tempfile::tempdir().unwrap();
    for (shape, axis) in [([2, 200_000], 0), ([200_000, 2], 1)] {
        let made = Made::new("w", Dtype::F32, &shape, &[1.0; 400_000]);
        let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "in.safetensors", &[made])).unwrap();
        let mut plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        let method = Arc::new(Interrupted::default());
        let Decision::Ternary(treatment) = &mut plan.tensors[0].decision else { panic!("{plan:?}") };
        treatment.method = method.clone();
        treatment.granularity = Granularity::Tensor;
        treatment.axis = axis;
        let options = convert::Options { cancel: Some(&method.cancel), ..Default::default() };
        let result = convert::measure(&checkpoint, &plan, &options);
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert_eq!((method.before.load(Ordering::Relaxed), method.after.load(Ordering::Relaxed)), (400_000, 0));
    }
}

#[test]
fn what_stays_dense_after_all_is_counted_to_the_end() {
    // Its second pass was in the total, as the tensors are looked at when they are due.
    let directory = tempfile::tempdir().unwrap();
    let bad = Made::new("a", Dtype::F32, &[2, 3], &[1.0, f64::NAN, 0.0, 1.0, 2.0, 3.0]);
    let made = [bad, Made::gaussian("b", Dtype::F32, &[4, 4], 1), Made::gaussian("c", Dtype::F16, &[4, 4], 2)];
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "in.safetensors", &made)).unwrap();
    for settings in ["granularity=tensor", "method=auto", ""] {
        let rules = Rules { settings: Settings::parse(settings).unwrap(), ..Rules::default() };
        let plan = Plan::new(&checkpoint, &rules).unwrap();
        let left = AtomicU64::new(u64::MAX);
        let watch = |progress: convert::Progress<'_>| {
            assert!(progress.done <= progress.total, "{settings}");
            left.fetch_min(progress.total - progress.done, Ordering::Relaxed); // threads may pass one another
        };
        let options = convert::Options { keep_non_finite_dense: true, progress: Some(&watch), ..Default::default() };
        let report = convert::measure(&checkpoint, &plan, &options).unwrap();
        assert_eq!((left.into_inner(), &report.tensors[0].became[..]), (0, "dense"), "{settings}");
    }
}

#[test]
fn another_checkpoint_is_noticed_filter_by_filter() {
    // The sums of a whole tensor hid 63 of 64 filters behind one that is 10⁷ times as large.
    let directory = tempfile::tempdir().unwrap();
    let filters = |seed: u64| {
        let mut values = Made::gaussian("w", Dtype::F32, &[64, 256], 3).values();
        let others = Made::gaussian("w", Dtype::F32, &[64, 256], seed).values();
        values[..256].iter_mut().for_each(|value| *value *= 1e7);
        values[256..].copy_from_slice(&others[256..]);
        Made::new("w", Dtype::F32, &[64, 256], &values)
    };
    let [own, other] = [3, 4].map(|seed| {
        let path = common::checkpoint(directory.path(), &format!("{seed}.safetensors"), &[filters(seed)]);
        Checkpoint::open(path).unwrap()
    });
    for settings in
        ["", "method=optimal", "method=absmean", "method=bwn", "planes=3", "keep=int8", "granularity=tensor"]
    {
        let rules = Rules { settings: Settings::parse(settings).unwrap(), ..Rules::default() };
        let output = directory.path().join("out.twn");
        let options = convert::Options { overwrite: true, ..convert::Options::default() };
        convert::pack(&own, &Plan::new(&own, &rules).unwrap(), &output, &options).unwrap();
        let container = twn_pack::Container::open(&output).unwrap();
        let problems = |checkpoint| verify::verify_against(&container, checkpoint, None).unwrap().problems;
        assert_eq!(problems(&own), [""; 0], "{settings}");
        // With one scale for all, nothing but zeros is left of the small filters.
        if settings != "granularity=tensor" && settings != "method=absmean" {
            assert!(problems(&other).concat().contains("filter 1: against the checkpoint"), "{settings}");
        }
    }
}

/// Both squared sums were infinite, and so the same.
#[test]
fn an_infinite_weight_agrees_with_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for settings in ["", "method=bwn", "planes=2", "keep=int8", "granularity=tensor"] {
        let own = Made::gaussian("w", Dtype::F32, &[8, 16], 1);
        let mut values = own.values();
        values[5] = f64::INFINITY;
        let container = common::pack(directory.path(), &[(own, settings)]);
        let other =
            common::checkpoint(directory.path(), "inf.safetensors", &[Made::new("w", Dtype::F32, &[8, 16], &values)]);
        let other = Checkpoint::open(other).unwrap();
        assert_eq!(verify::verify_against(&container, &other, None).unwrap().problems.len(), 1, "{settings}");
    }
}

/// As those they got the bytes of floats, or none.
#[test]
fn weights_are_not_unpacked_as_integers() {
    let directory = tempfile::tempdir().unwrap();
    let container = common::pack(directory.path(), &[(Made::gaussian("w", Dtype::F32, &[4, 4], 1), "")]);
    let output = directory.path().join("out.safetensors");
    for dtype in [Dtype::I32, Dtype::I64, Dtype::F4] {
        let options = unpack::Options { dtype: Some(dtype), ..Default::default() };
        let error = unpack::unpack(&container, &output, &options).unwrap_err().to_string();
        assert!(error.contains("weights cannot be unpacked as") && !output.exists(), "{error}");
    }
}

#[test]
fn a_part_of_a_checkpoint_is_not_taken_for_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    let part = common::checkpoint(
        directory.path(),
        "model-00002-of-00003.safetensors",
        &[Made::gaussian("w", Dtype::F32, &[2, 4], 1)],
    );
    let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains("`model-00002-of-00003.safetensors`, but not `model-00001-of-00003.safetensors`"),
        "{error}"
    );
    assert_eq!(Checkpoint::open(part).unwrap().len(), 1);
}

#[test]
fn names_do_not_begin_lines_of_errors() {
    let directory = tempfile::tempdir().unwrap();
    let name = "red\u{1b}[31m\nfake: all is well";
    let path = common::checkpoint(
        directory.path(),
        "m.safetensors",
        &[Made::new(name, Dtype::F32, &[1, 2], &[f64::NAN, 1.0])],
    );
    let output = directory.path().join("out.twn");
    let (_, stderr) = common::expect(3, &[path.to_str().unwrap(), "-o", output.to_str().unwrap()]);
    assert!(stderr.contains("\\u{1b}[31m\\nfake: all is well") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn a_directory_is_no_output() {
    // It was noticed when all the work was done.
    let directory = tempfile::tempdir().unwrap();
    let path = common::checkpoint(directory.path(), "m.safetensors", &[Made::gaussian("w", Dtype::F32, &[2, 4], 1)]);
    let output = format!("{}/new/", directory.path().display());
    let (_, stderr) = common::expect(4, &[path.to_str().unwrap(), "-o", &output]);
    assert!(stderr.contains("give the name of a file"), "{stderr}");
}

/// What a user's method may give that it must not.
#[derive(Debug, Clone, Copy)]
struct Broken {
    threshold: Threshold,
    scale: f64,
    binary: bool,
    parameter: f64,
}

impl Ternarizer for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn parameters(&self) -> BTreeMap<String, f64> {
        [("p".to_owned(), self.parameter)].into()
    }

    fn binary(&self) -> bool {
        self.binary
    }

    fn threshold(&self, _: &Unit<'_>) -> Threshold {
        self.threshold
    }

    fn scale(&self, _: &Unit<'_>, _: &Above) -> f64 {
        self.scale
    }
}

#[test]
fn methods_that_break_their_word_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let input = common::checkpoint(directory.path(), "in.safetensors", &[Made::gaussian("w", Dtype::F32, &[4, 64], 1)]);
    let checkpoint = Checkpoint::open(&input).unwrap();
    let good = Broken { threshold: Threshold::Delta(0.5), scale: 1.0, binary: false, parameter: 1.0 };
    let pack = |method: Broken, settings: &str| {
        let mut plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        let treatment = Treatment { method: Arc::new(method), ..common::treatment(settings) };
        plan.tensors[0].decision = Decision::Ternary(treatment);
        convert::pack(
            &checkpoint,
            &plan,
            &directory.path().join("out.twn"),
            &Options { overwrite: true, ..Options::default() },
        )
    };
    pack(good, "").unwrap();
    for settings in ["", "granularity=group:32", "granularity=group:5", "granularity=tensor", "encoding=t5"] {
        for (method, says) in [
            (Broken { scale: -0.0, ..good }, "a scale that is no α ≥ 0"),
            (Broken { scale: -1.0, ..good }, "a scale that is no α ≥ 0"),
            (Broken { threshold: Threshold::Delta(-1.0), ..good }, "a threshold that is no Δ ≥ 0"),
            (Broken { threshold: Threshold::Delta(f64::NAN), ..good }, "a threshold that is no Δ ≥ 0"),
            (Broken { threshold: Threshold::Delta(f64::INFINITY), ..good }, "an infinite threshold Δ"),
            (Broken { threshold: Threshold::Sign, ..good }, "another kind of threshold"),
            (Broken { parameter: f64::NAN, ..good }, "parameter `p` is NaN"),
        ] {
            let error = pack(method, settings).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("`broken`"), "{settings}: {error}");
        }
    }
    let signs = Broken { binary: true, ..good };
    assert!(pack(signs, "method=bwn,encoding=b1").unwrap_err().to_string().contains("another kind of threshold"));
    for planes in ["planes=2", "planes=3"] {
        let error = pack(Broken { threshold: Threshold::Delta(f64::NAN), ..good }, planes).unwrap_err().to_string();
        assert!(error.contains("`broken` gave"), "{error}");
    }
}

/// A reason is words for a report: what becomes of a tensor does not hang on it.
#[test]
fn the_words_of_a_plan_decide_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let made = [Made::gaussian("w", Dtype::F32, &[4, 64], 1)];
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "in.safetensors", &made)).unwrap();
    let mut plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let expected = convert::measure(&checkpoint, &plan, &Options::default()).unwrap().tensors;
    for reason in [convert::NON_FINITE, convert::NOT_NATIVE] {
        for keep_non_finite_dense in [false, true] {
            plan.tensors[0].reason = reason.into();
            let options = Options { keep_non_finite_dense, ..Options::default() };
            let found = convert::measure(&checkpoint, &plan, &options).unwrap().tensors;
            assert_eq!((&found[0].became, found[0].bytes), (&expected[0].became, expected[0].bytes), "{reason}");
        }
    }
    assert!(expected[0].became.contains("t2"), "{}", expected[0].became);
}

/// Two shards may differ in what they say, and call something as it is kept then.
#[test]
fn metadata_of_shards_is_all_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors");
    let taken = format!("k@{second}");
    for (name, tensor, metadata) in [(first, "a", &[("k", "1"), (&taken, "zzz")][..]), (second, "b", &[("k", "2")])] {
        let made = [Made::gaussian(tensor, Dtype::F32, &[4], 1)];
        std::fs::write(directory.path().join(name), common::safetensors(&made, metadata)).unwrap();
    }
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let kept: Vec<(&str, &str)> = checkpoint.metadata().iter().map(|(key, value)| (&key[..], &value[..])).collect();
    assert_eq!(kept, [("k", "1"), (&taken, "zzz"), (&format!("{taken}@{second}"), "2")]);
    assert!(checkpoint.warnings().concat().contains(&format!("kept as `{taken}@{second}` too")));
}

#[test]
fn plans_keep_the_order_of_their_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let made = ["a", "b"].map(|name| Made::gaussian(name, Dtype::F32, &[4, 6], 1));
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "in.safetensors", &made)).unwrap();
    let mut plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    plan.tensors.swap(0, 1);
    let error = convert::measure(&checkpoint, &plan, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("the plan has `b` in the place of tensor `a`"), "{error}");
}

/// Each scale fits the type, their sum does not; a small one may be lost.
#[test]
fn sums_of_planes_are_held_to_their_type() {
    let directory = tempfile::tempdir().unwrap();
    let unpacked = directory.path().join("out.safetensors");
    let unpack = |container: &Container, dtype| {
        unpack::unpack(container, &unpacked, &unpack::Options { dtype, overwrite: true, ..Default::default() })
    };
    let large = Made::new("w", Dtype::F32, &[1, 4], &[70_000.0, 50_000.0, -70_000.0, -50_000.0]);
    let container = common::pack(directory.path(), &[(large, "planes=2,method=optimal")]);
    let Some(Tensor::Ternary(tensor)) = container.by_name("w") else { panic!() };
    assert!(tensor.scales().all(|scale| scale < 65_504.0));
    let error = unpack(&container, Some(Dtype::F16)).unwrap_err().to_string();
    assert!(error.contains("weight 0 of filter 0 is 7e4 over all its planes, which F16 cannot hold"), "{error}");
    unpack(&container, None).unwrap();

    let two = [0.01, 0.010001, -0.01, -0.010001];
    let container = common::pack(directory.path(), &[(Made::new("w", Dtype::F32, &[1, 4], &two), "planes=2")]);
    let Some(Tensor::Ternary(tensor)) = container.by_name("w") else { panic!() };
    let smallest = tensor.scales().fold(f32::MAX, f32::min);
    assert!(smallest > 0.0 && half::f16::from_f32(smallest / 64.0).to_f32() == 0.0, "{smallest}");
    unpack(&container, Some(Dtype::F8_E5M2)).unwrap();
}

#[test]
fn an_error_of_a_filter_comes_before_those_of_the_next() {
    // The thresholds of two filters were made, and their weights checked, before the first one's scale was.
    let mut weights = vec![half::bf16::from_f32(1e6); 200];
    weights[107] = half::bf16::NAN;
    let data: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let tensor = TensorView::new("w", Dtype::BF16, &[2, 100], &data);
    for isa in Isa::all() {
        let error = convert::ternarize(tensor, &common::treatment("scale-dtype=f16"), isa).unwrap_err();
        let found = matches!(error, Error::Weights { problem: WeightsProblem::Scale { filter: 0, .. }, .. });
        assert!(found, "{}: {error}", isa.name());
    }
}

#[test]
fn a_factor_of_minus_zero_keeps_every_weight() {
    // The bits of −0 are above those of every magnitude: 16-bit weights all became zero.
    let weights: Vec<half::f16> = (1..=200).map(|i| half::f16::from_f32(i as f32 / 100.0)).collect();
    let data: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let tensor = TensorView::new("w", Dtype::F16, &[2, 100], &data);
    for isa in Isa::all() {
        let packed = convert::ternarize(tensor, &common::treatment("factor=-0"), isa).unwrap();
        let mut codes = [0; 100];
        for filter in 0..2 {
            packed.codes(0, filter, &mut codes).unwrap();
            assert!(codes.iter().all(|&code| code == 2), "{}", isa.name());
        }
    }
}
