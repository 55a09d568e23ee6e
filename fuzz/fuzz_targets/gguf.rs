//! Any bytes as a GGUF file. What opens is read through every view, packed, exported to every ternary type and read
//! again: codes stay, scales as f16 has them. And as a file that a small container is exported into: what comes out
//! has to open.

#![no_main]

use std::path::Path;

use half::f16;
use libfuzzer_sys::fuzz_target;
use twn_pack::convert::{self, Options};
use twn_pack::export::{self, WriteOptions};
use twn_pack::{Container, Error, Plan, Rules, Tensor, import};
use twn_pack_fuzz::fixture;

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let directory = twn_pack_fuzz::directory();
    let path = directory.path().join("model.gguf");
    // The magic number is not to be found out.
    let mut bytes = data.to_vec();
    let magic = bytes.len().min(4);
    bytes[..magic].copy_from_slice(&b"GGUF"[..magic]);
    std::fs::write(&path, &bytes).unwrap();
    into(directory.path(), &path);
    let checkpoint = match import::open(&path) {
        Ok(checkpoint) => checkpoint,
        Err(Error::Checkpoint { .. } | Error::Io { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    twn_pack_fuzz::read_ternary(&checkpoint);
    let Ok(plan) = Plan::new(&checkpoint, &Rules::default()) else { return };
    let output = directory.path().join("out.twn");
    match convert::pack(&checkpoint, &plan, &output, &Options::default()) {
        Ok(_) => exports(&Container::open(&output).unwrap(), directory.path()),
        Err(Error::Weights { .. } | Error::Request(_) | Error::Container { .. }) => {}
        Err(other) => panic!("{other}"),
    }
});

fn write(container: &Container, format: &str, options: &export::Options, output: &Path) -> bool {
    let Ok(export) = export::format(format).unwrap().export(container, options) else { return false };
    let written =
        export::write(container, &export, output, &WriteOptions { overwrite: true, ..WriteOptions::default() });
    assert_eq!(written.is_ok(), export.check().is_ok(), "{written:?}");
    written.is_ok()
}

fn exports(container: &Container, directory: &Path) {
    let output = directory.join("again.gguf");
    for format in ["tq1_0", "tq2_0", "q2_0"] {
        let options = export::Options { refused_as_dense: true, planes_as_tensors: true, ..export::Options::default() };
        if !write(container, format, &options, &output) {
            continue;
        }
        let again = import::open(&output).unwrap();
        assert_eq!(again.len(), container.index().tensors.len());
        for (i, tensor) in again.tensors().enumerate() {
            match (container.by_name(tensor.name).unwrap(), again.ternary(i)) {
                (Tensor::Ternary(old), Some(new)) => {
                    assert_eq!((&old.shape[..], old.dtype), (new.shape, new.dtype));
                    let [mut a, mut b] = [vec![8; old.filter_len], vec![9; old.filter_len]];
                    assert_eq!(old.planes, new.planes());
                    for (plane, filter) in (0..old.planes).flat_map(|p| (0..old.filters).map(move |f| (p, f))) {
                        let new = new.plane(plane);
                        old.codes(plane, filter, &mut a).unwrap();
                        new.codes(filter, &mut b).unwrap();
                        assert_eq!(a, b, "{format}, {}", tensor.name);
                        let scale = f16::from_f32(old.scale(plane, filter, 0)).to_f32();
                        assert_eq!(scale, new.scale(filter, 0).unwrap());
                    }
                }
                (Tensor::Dense(old), None) => assert_eq!((old.data, &old.shape[..]), (tensor.stored, tensor.shape)),
                (_, None) => {}
                (_, Some(_)) => panic!("{}", tensor.name),
            }
        }
    }
}

/// A container of one tensor, `w`, into the file.
fn into(directory: &Path, path: &Path) {
    let container = Container::from_bytes("small.twn", fixture!("by-hand.twn").to_vec()).unwrap();
    let options =
        export::Options { into: Some(path.to_path_buf()), refused_as_dense: true, ..export::Options::default() };
    let output = directory.join("into.gguf");
    if write(&container, "tq2_0", &options, &output) {
        // It may hold types that only the export passes on.
        match import::open(&output) {
            Ok(_) | Err(Error::Checkpoint { .. } | Error::Io { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}
