//! Any bytes as one of the files of a data set: `.npy` images or labels beside a good partner, a
//! `.safetensors` with both, CIFAR-10 or CIFAR-100. The first byte says which. What is accepted has as
//! many images as bytes allow, labels below the number of classes, and can be read from end to end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ndarray::Array4;
use twn_pack::Error;
use twn_pack::data::{DataSet, Split};

/// Images of 2 × 1 × 1 × 2 bytes, or their labels.
fn npy(shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), values].concat()
}

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let Some((&kind, bytes)) = data.split_first() else { return };
    let directory = twn_pack_fuzz::directory();
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    match kind % 5 {
        0 => {
            write("test-images.npy", bytes);
            write("test-labels.npy", &npy("(2,)", &[0, 1]));
        }
        1 => {
            write("test-images.npy", &npy("(2, 1, 1, 2)", &[1, 2, 3, 4]));
            write("test-labels.npy", bytes);
        }
        2 => write("test.safetensors", bytes),
        // Few inputs are thousands of bytes long: what is there is repeated.
        3 => write("test_batch.bin", &repeated(bytes, 3073)),
        _ => write("test.bin", &repeated(bytes, 3074)),
    }
    let data_set = match DataSet::open(directory.path(), Split::Test) {
        Ok(data_set) => data_set,
        Err(error @ (Error::Data { .. } | Error::Checkpoint { .. })) => {
            assert!(!error.to_string().is_empty());
            return;
        }
        Err(other) => panic!("{other}"),
    };
    let [channels, height, width] = data_set.shape();
    assert_eq!(data_set.len(), data_set.labels().len());
    assert!(data_set.len() * channels * height * width <= 2 * (data.len() + 3074));
    data_set.check_labels(data_set.len(), data_set.classes()).expect("labels below the number of classes");
    let indices: Vec<usize> = (0..data_set.len()).rev().collect();
    let mut batch = Array4::from_elem((data_set.len(), channels, height, width), f32::NAN);
    match data_set.read(&indices, None, batch.view_mut()) {
        Ok(()) => assert!(batch.iter().all(|x| x.is_finite())),
        Err(Error::Data { .. }) => {}
        Err(other) => panic!("{other}"),
    }
});

/// Bytes as they are, or, where there are fewer than a record, one record of them.
fn repeated(bytes: &[u8], record: usize) -> Vec<u8> {
    match bytes.len() {
        0 => Vec::new(),
        n if n < record => bytes.iter().copied().cycle().take(record).collect(),
        _ => bytes.to_vec(),
    }
}
