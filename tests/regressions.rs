//! Bugs that were there once; each test says which.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::Made;
use twn_pack::error::WeightsProblem;
use twn_pack::select::Decision;
use twn_pack::ternarize::{Threshold, Unit};
use twn_pack::{Checkpoint, Dtype, Encoding, Error, Granularity, Plan, Rules, Settings, Ternarizer, convert, memory};

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
