//! Any bytes as a BitNet checkpoint of Hugging Face transformers: up to the first zero the `config.json`, then the
//! safetensors file. What opens is read whole; codes are what the layout says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use twn_pack::{Error, Plan, Rules, convert, import};

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let directory = twn_pack_fuzz::directory();
    let at = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    std::fs::write(directory.path().join("config.json"), &data[..at]).unwrap();
    std::fs::write(directory.path().join("model.safetensors"), data.get(at + 1..).unwrap_or_default()).unwrap();
    let checkpoint = match import::open(directory.path().join("model.safetensors")) {
        Ok(checkpoint) => checkpoint,
        Err(error @ Error::Checkpoint { .. }) => {
            assert!(!error.to_string().is_empty());
            return;
        }
        Err(other) => panic!("{other}"),
    };
    for i in 0..checkpoint.len() {
        let (Some(ternary), packed) = (checkpoint.ternary(i), checkpoint.tensor(i).stored) else { continue };
        assert_eq!(ternary.filters() * ternary.filter_len(), packed.len() * 4, "{}", ternary.name);
        let (rows, mut codes) = (ternary.filters() / 4, vec![9; ternary.filter_len()]);
        for filter in 0..ternary.filters() {
            ternary.scale(filter, 0).expect("looked at on opening");
            let bytes = &packed[filter % rows * codes.len()..][..codes.len()];
            let expected: Vec<u8> = bytes.iter().map(|byte| byte >> (filter / rows * 2) & 3).collect();
            match ternary.codes(filter, &mut codes) {
                Ok(()) => assert_eq!(codes, expected, "{}", ternary.name),
                Err(message) => assert!(expected.contains(&3), "{message}"),
            }
        }
    }
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    match convert::measure(&checkpoint, &plan, &convert::Options::default()) {
        Ok(_) | Err(Error::Weights { .. }) => {}
        Err(other) => panic!("{other}"),
    }
});
