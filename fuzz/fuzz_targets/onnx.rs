//! Any bytes as an ONNX model: read as a checkpoint, packed, and exported into. What comes out has to be a model again,
//! and to pack like what went in.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use twn_pack::export::{self, Options, WriteOptions};
use twn_pack::{Checkpoint, Container, Error, Plan, Rules, Tensor, convert, import};
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

/// What was packed from a model goes back into it, and comes out again with the same weights.
fn there_and_back(container: &Container, model: &std::path::Path, out: &std::path::Path) {
    let problems = twn_pack::verify::verify(container, None).unwrap().problems;
    assert!(problems.is_empty(), "{problems:?}");
    for format in ["onnx", "onnx-nbits"] {
        let options = Options {
            into: Some(model.to_path_buf()),
            planes_as_tensors: true,
            refused_as_dense: true,
            ..Default::default()
        };
        let Ok(export) = export::format(format).unwrap().export(container, &options) else { continue };
        if export.check().is_err() {
            continue;
        }
        let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
        export::write(container, &export, out, &options).unwrap();
        let Some(again) = read(out) else { continue };
        for (name, ternary) in container.tensors().filter_map(|(name, tensor)| match tensor {
            Tensor::Ternary(ternary) => Some((name, ternary)),
            _ => None,
        }) {
            let found = (0..again.len()).filter_map(|i| again.ternary(i)).find(|view| view.name == name);
            let Some(found) = found.filter(|found| found.axis() == ternary.axis) else { continue };
            assert_eq!((found.shape, found.planes()), (&ternary.shape[..], ternary.planes), "{name}");
            let [mut a, mut b] = [vec![8; ternary.filter_len], vec![9; ternary.filter_len]];
            for (plane, filter) in (0..ternary.planes).flat_map(|p| (0..ternary.filters).map(move |f| (p, f))) {
                ternary.codes(plane, filter, &mut a).unwrap();
                found.plane(plane).codes(filter, &mut b).unwrap();
                assert_eq!(a, b, "{format}, {name}");
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let directory = twn_pack_fuzz::directory();
    let [path, out] = ["m.onnx", "out.onnx"].map(|name| directory.path().join(name));
    std::fs::write(&path, data).unwrap();
    if let Some(checkpoint) = read(&path) {
        for tensor in checkpoint.tensors() {
            assert_eq!(tensor.stored.len() * 8, tensor.elements() * tensor.dtype.bitsize(), "{}", tensor.name);
        }
        twn_pack_fuzz::read_ternary(&checkpoint);
        let packed = directory.path().join("m.twn");
        // More would be the converter's work, which other targets look at.
        let small = checkpoint.tensors().map(|tensor| tensor.elements()).sum::<usize>() < 1 << 16;
        if let (true, Ok(plan)) = (small, Plan::new(&checkpoint, &Rules::default())) {
            match convert::pack(&checkpoint, &plan, &packed, &convert::Options::default()) {
                Ok(_) => there_and_back(&Container::open(&packed).unwrap(), &path, &out),
                Err(Error::Weights { .. } | Error::Request(_) | Error::Container { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    for format in ["onnx", "onnx-nbits"] {
        let options =
            Options { into: Some(path.clone()), planes_as_tensors: true, refused_as_dense: true, ..Default::default() };
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
