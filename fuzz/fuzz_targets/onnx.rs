//! Any bytes as an ONNX model: read as a checkpoint, and exported into. What comes out has to be a model again.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use twn_pack::export::{self, Options, WriteOptions};
use twn_pack::{Checkpoint, Container, Error, Plan, Rules, convert, import};
use twn_pack_fuzz::fixture;

/// The weights of `linear-script.onnx`, packed.
fn container() -> &'static Container {
    static CONTAINER: OnceLock<Container> = OnceLock::new();
    CONTAINER.get_or_init(|| {
        let directory = twn_pack_fuzz::directory();
        let [model, packed] = ["m.onnx", "m.twn"].map(|name| directory.path().join(name));
        std::fs::write(&model, fixture!("foreign/onnx/linear-script.onnx")).unwrap();
        let checkpoint = import::open(model).unwrap();
        let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        convert::pack(&checkpoint, &plan, &packed, &convert::Options::default()).unwrap();
        Container::from_bytes("m.twn", std::fs::read(packed).unwrap()).unwrap()
    })
}

fn read(path: &std::path::Path) -> Option<Checkpoint> {
    match import::open(path) {
        Ok(checkpoint) => Some(checkpoint),
        Err(Error::Checkpoint { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let directory = twn_pack_fuzz::directory();
    let [path, out] = ["m.onnx", "out.onnx"].map(|name| directory.path().join(name));
    std::fs::write(&path, data).unwrap();
    if let Some(checkpoint) = read(&path) {
        for tensor in checkpoint.tensors() {
            assert_eq!(tensor.data.len() * 8, tensor.elements() * tensor.dtype.bitsize(), "{}", tensor.name);
        }
    }
    for format in ["onnx", "onnx-nbits"] {
        let options = Options { into: Some(path.clone()), planes_as_tensors: true, refused_as_dense: true };
        match export::format(format).unwrap().export(container(), &options) {
            Ok(export) if export.check().is_ok() => {
                let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
                assert_eq!(export::write(container(), &export, &out, &options).unwrap(), export.len());
                read(&out);
            }
            Ok(_) | Err(Error::Request(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
});
