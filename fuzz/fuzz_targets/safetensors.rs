//! Any bytes as a checkpoint: one safetensors file, or (if they begin like JSON) the index over two
//! good shards. Opened, planned and measured; what is accepted has to be measured alike on every
//! instruction set.

#![no_main]

use libfuzzer_sys::fuzz_target;
use twn_pack::convert::{self, Options};
use twn_pack::{Checkpoint, Error, Isa, Plan, Report, Rules, Settings};
use twn_pack_fuzz::fixture;

const SHARDS: [(&str, &[u8]); 2] = [
    ("model-00001-of-00002.safetensors", fixture!("sharded/model-00001-of-00002.safetensors")),
    ("model-00002-of-00002.safetensors", fixture!("sharded/model-00002-of-00002.safetensors")),
];

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let directory = twn_pack_fuzz::directory();
    // A header of 123 bytes begins with `{` too, but then comes a zero.
    let index = data.first() == Some(&b'{') && data.get(1) != Some(&0);
    let path = directory.path().join(if index { "model.safetensors.index.json" } else { "model.safetensors" });
    if index {
        for (name, bytes) in SHARDS {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
    }
    std::fs::write(&path, data).unwrap();
    let checkpoint = match Checkpoint::open(&path) {
        Ok(checkpoint) => checkpoint,
        Err(error @ Error::Checkpoint { .. }) => {
            assert!(!error.to_string().is_empty());
            return;
        }
        // A shard name that no file system takes, or a directory.
        Err(Error::Io { .. }) if index => return,
        Err(other) => panic!("{other}"),
    };
    let mut bytes = 0;
    for tensor in checkpoint.tensors() {
        bytes += tensor.stored.len();
        assert_eq!(tensor.stored.len() * 8, tensor.elements() * tensor.dtype.bitsize(), "{}", tensor.name);
        assert!(checkpoint.by_name(tensor.name).is_some());
    }
    assert!(index || bytes <= data.len());
    measure(&checkpoint, &Rules::default());
    // Everything that can be ternary, in a way that depends on the input.
    const SETTINGS: [&str; 6] = [
        "",
        "granularity=tensor,encoding=t5",
        "method=optimal,granularity=group:3,axis=1",
        "method=bwn,granularity=tensor,scale-dtype=f16",
        "method=absmean,axis=1,encoding=t5",
        "method=optimal,granularity=tensor",
    ];
    let settings = Settings::parse(SETTINGS[data.len() % SETTINGS.len()]).unwrap();
    measure(&checkpoint, &Rules { settings, include: vec!["*".to_owned()], ..Rules::default() });
});

fn measure(checkpoint: &Checkpoint, rules: &Rules) {
    let plan = Plan::new(checkpoint, rules).expect("axes 0 and 1 are there wherever the rank is 2 or more");
    let report = Report::of_plan(checkpoint, &plan).expect("a new plan can be run");
    assert!(!report.to_json().is_empty() && !report.to_csv().is_empty());
    for keep_non_finite_dense in [false, true] {
        let results: Vec<_> = Isa::all()
            .into_iter()
            .map(|isa| {
                convert::measure(
                    checkpoint,
                    &plan,
                    &Options { isa: Some(isa), keep_non_finite_dense, ..Options::default() },
                )
            })
            .collect();
        for result in &results {
            match (result, &results[0]) {
                (Ok(report), Ok(first)) => {
                    assert_eq!(report.to_json(), first.to_json());
                    assert_eq!(report.to_csv(), first.to_csv());
                }
                (Err(error @ Error::Weights { .. }), Err(first)) => assert_eq!(error.to_string(), first.to_string()),
                (result, first) => panic!("{result:?}, but {first:?}"),
            }
        }
    }
}
