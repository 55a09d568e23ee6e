//! Any bytes as a calibration file, beside a small checkpoint with a linear layer, a convolution in
//! groups and one whose names the file may hit by chance. What is accepted is packed, and has to verify.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use twn_pack::convert::{self, Options};
use twn_pack::{Calibration, Checkpoint, Container, Error, Plan, Rules, Settings, verify};

/// `a` is 3 × 4, `b` 4 × 1 × 2 × 1: inputs of 4, and of 2 in up to 4 groups.
static CHECKPOINT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let header = r#"{"a":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]},"b":{"dtype":"F32","shape":[4,1,2,1],"data_offsets":[48,80]}}"#;
    let weights = (0..20u32).flat_map(|i| (((i * 7 + 3) % 11) as f32 / 4.0 - 1.3).to_le_bytes());
    (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(weights).collect()
});

const SETTINGS: [&str; 5] =
    ["", "planes=2,granularity=group:3", "method=bwn", "planes=3,scale-dtype=f16,encoding=t5", "granularity=tensor"];

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let directory = twn_pack_fuzz::directory();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("model.safetensors"), &*CHECKPOINT).unwrap();
    std::fs::write(path("stats.safetensors"), data).unwrap();
    let calibration = match Calibration::open(path("stats.safetensors")) {
        Ok(calibration) => calibration.with_act_order(data.len() % 2 == 0),
        Err(error @ Error::Checkpoint { .. }) => {
            assert!(!error.to_string().is_empty());
            return;
        }
        Err(other) => panic!("{other}"),
    };
    let checkpoint = Checkpoint::open(path("model.safetensors")).expect("a good file");
    calibration.warnings(&checkpoint);
    let settings = Settings::parse(SETTINGS[data.len() % SETTINGS.len()]).unwrap();
    let plan = Plan::new(&checkpoint, &Rules { settings, ..Rules::default() }).unwrap();
    let output = path("out.twn");
    match convert::pack(&checkpoint, &plan, &output, &Options { calibration: Some(&calibration), ..Options::default() })
    {
        Ok(_) => {
            let container = Container::open(&output).expect("what was packed opens");
            let verified = verify::verify(&container, None).unwrap();
            assert!(verified.is_good(), "{:?}", verified.problems);
            let against = verify::verify_against(&container, &checkpoint, None).unwrap();
            assert!(against.is_good(), "{:?}", against.problems);
        }
        Err(error @ (Error::Calibration { .. } | Error::Weights { .. })) => assert!(!error.to_string().is_empty()),
        Err(other) => panic!("{other}"),
    }
});
