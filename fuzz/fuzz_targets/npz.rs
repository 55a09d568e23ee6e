//! Any bytes as a `.npz` or `.npy` file; or, behind a zero, as an array in one, stored. What is read has as many bytes
//! as its types and shapes say.

#![no_main]

use libfuzzer_sys::fuzz_target;
use twn_pack::{Error, import};

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let bytes = match data.split_first() {
        Some((0, array)) => twn_pack_fuzz::zip(&[("w.npy", array)]),
        _ => data.to_vec(),
    };
    let directory = twn_pack_fuzz::directory();
    let path = directory.path().join("model.npz");
    std::fs::write(&path, &bytes).unwrap();
    match import::open(&path) {
        Ok(checkpoint) => {
            for tensor in checkpoint.tensors() {
                assert_eq!(tensor.stored.len() * 8, tensor.elements() * tensor.dtype.bitsize(), "{}", tensor.name);
                let length = tensor.stored.len();
                assert_eq!(tensor.read(0..length, &mut Vec::new()).len(), length, "{}", tensor.name);
            }
        }
        Err(error @ Error::Checkpoint { .. }) => assert!(!error.to_string().is_empty()),
        Err(other) => panic!("{other}"),
    }
});
