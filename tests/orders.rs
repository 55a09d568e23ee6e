//! Tensors whose axes are nested in another order than C's are packed, measured and verified as their copies in C order
//! are, byte by byte.

mod common;

use std::path::Path;

use common::Random;
use twn_pack::convert::{self, Options};
use twn_pack::source::CheckpointBuilder;
use twn_pack::{Checkpoint, Container, Dtype, MappedFile, Plan, Rules, Settings, verify};

/// The elements of a tensor in C order, taken one by one from where `order` has them.
fn in_c_order(stored: &[u8], size: usize, shape: &[usize], order: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(stored.len());
    for i in 0..stored.len() / size {
        let (mut indices, mut rest) = (vec![0; shape.len()], i);
        for (index, length) in indices.iter_mut().zip(shape).rev() {
            (*index, rest) = (rest % length, rest / length);
        }
        let at = order.iter().fold(0, |at, &axis| at * shape[axis] + indices[axis]);
        bytes.extend(&stored[at * size..][..size]);
    }
    bytes
}

fn checkpoint(path: &Path, bytes: &[u8], dtype: Dtype, shape: &[usize], order: &[usize]) -> Checkpoint {
    std::fs::write(path, bytes).unwrap();
    let mut builder = CheckpointBuilder::new(path);
    let file = builder.file(MappedFile::open(path).unwrap());
    builder.permuted("w", dtype, (shape, order), file, 0..bytes.len()).unwrap();
    builder.finish().unwrap()
}

#[test]
fn every_order_is_packed_as_its_copy_in_c_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name| directory.path().join(name);
    let mut seed = 0;
    for (shape, order) in [
        // Transposed matrices: long filters, which are held in memory together, and short ones.
        (&[9, 250_001][..], &[1, 0][..]),
        (&[3001, 7], &[1, 0]),
        (&[1, 5000], &[1, 0]),
        // Fortran's order, channels last, and others.
        (&[70, 4100, 3, 3], &[3, 2, 1, 0]),
        (&[40, 33, 3, 5], &[0, 2, 3, 1]),
        (&[40, 33, 3, 5], &[1, 0, 3, 2]),
        (&[6, 50, 70], &[2, 0, 1]),
        (&[1, 50, 70], &[2, 0, 1]),
        (&[30, 1, 70], &[2, 0, 1]),
    ] {
        let long = shape.iter().product::<usize>() > 1 << 20;
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::F8_E4M3] {
            seed += 1;
            let (size, gaussians) = (dtype.bitsize() / 8, Random(seed).gaussians(shape.iter().product()));
            let stored = common::encode(dtype, &gaussians);
            let ours = checkpoint(&path("ours.bin"), &stored, dtype, shape, order);
            let copied = in_c_order(&stored, size, shape, order);
            let c: Vec<usize> = (0..shape.len()).collect();
            let theirs = checkpoint(&path("theirs.bin"), &copied, dtype, shape, &c);
            assert!(theirs.tensor(0).order.is_none());
            assert!(common::c_order(&ours.tensor(0)) == copied, "{dtype} {shape:?} {order:?}");
            let settings = [
                "method=twn",
                "method=optimal,granularity=tensor",
                "method=twn,granularity=group:64,encoding=t5",
                "method=bwn,axis=1",
                "method=absmean,axis=1,granularity=tensor,scale-dtype=f16",
                "method=twn,planes=2",
                "dense",
            ];
            // Long tensors with some of these each.
            for settings in
                settings.iter().skip(if long { seed as usize % 4 } else { 0 }).step_by(if long { 4 } else { 1 })
            {
                let case = format!("{dtype} {shape:?} {order:?} {settings}");
                let rules = match *settings {
                    "dense" => Rules { exclude: vec!["w".to_owned()], ..Rules::default() },
                    words => {
                        let settings = Settings::parse(words).unwrap();
                        Rules { settings, include: vec!["*".to_owned()], ..Rules::default() }
                    }
                };
                let packed = [&ours, &theirs].map(|checkpoint| {
                    let (plan, output) = (Plan::new(checkpoint, &rules).unwrap(), path("out.twn"));
                    for options in [Options::default(), Options { keep_non_finite_dense: true, ..Options::default() }] {
                        let report = convert::measure(checkpoint, &plan, &options).unwrap();
                        assert_eq!(report.tensors[0].became == "dense", *settings == "dense", "{case}");
                    }
                    convert::pack(checkpoint, &plan, &output, &Options { overwrite: true, ..Options::default() })
                        .unwrap();
                    let container = Container::open(&output).unwrap();
                    let verification = verify::verify_against(&container, checkpoint, None).unwrap();
                    assert!(verification.is_good(), "{case}: {verification:?}");
                    std::fs::read(&output).unwrap()
                });
                assert!(packed[0] == packed[1], "{case}");
            }
        }
    }
}
