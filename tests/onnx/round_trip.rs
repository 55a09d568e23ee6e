//! Out and back in: codes, scales and planes are those that were exported, and their export has the same bytes. Not here: weights
//! of others ([`crate::import`]).

use twn_pack::export::Options;
use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, Tensor, convert};

use crate::common::Made;
use crate::import::import;
use crate::model::*;
use crate::wire::*;

/// What the exporter writes as codes is read as codes, in every form that it has.
#[test]
fn int2_is_read_back_without_loss() {
    let conv = node("Conv", &["x", "w"], "y", &[]);
    let product = node("MatMul", &["x", "w"], "y", &[]);
    let half = |shape: &[usize]| raw("w", FLOAT16, shape, &vec![0; 2 * shape.iter().product::<usize>()]);
    for (shape, settings, node, initializer) in [
        (vec![6, 40], "", &conv, None),
        (vec![6, 37], "", &conv, None),
        (vec![6, 40], "granularity=tensor", &conv, None),
        (vec![6, 40], "axis=1", &conv, None),
        (vec![8, 50], "granularity=group:16", &conv, None),
        (vec![50, 8], "axis=1,granularity=group:16", &conv, None),
        (vec![6, 4, 3, 3], "", &conv, None),
        (vec![6, 4, 3, 3], "axis=1", &conv, None),
        (vec![6, 4, 3, 3], "granularity=group:12", &conv, None),
        (vec![6, 4, 3, 3], "granularity=tensor,axis=2", &conv, None),
        // Turned.
        (vec![40, 6], "axis=1", &product, None),
        (vec![40, 6], "axis=0", &product, None),
        (vec![40, 6], "axis=1,granularity=group:8", &product, None),
        (vec![40, 6], "granularity=tensor,axis=1", &product, None),
        (vec![6, 40], "encoding=t5", &conv, None),
        (vec![1030, 1036], "axis=1", &conv, None),
        (vec![301, 532], "axis=1,encoding=t5", &conv, None),
        (vec![301, 532], "axis=1,granularity=group:6", &conv, None),
        (vec![6, 40], "scale-dtype=f16", &conv, Some(half(&[6, 40]))),
    ] {
        let case = format!("{shape:?} {settings}");
        let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &shape, 5)], settings);
        let initializer = initializer.unwrap_or_else(|| weights("w", &shape));
        // Where the model quantizes activations, something stands between decoders and what may become whole numbers.
        for quantizes in [false, true] {
            let nodes = if quantizes { vec![quantizer(), node.clone()] } else { vec![node.clone()] };
            let file = model(25, &graph(&nodes, std::slice::from_ref(&initializer)));
            let exported = packed.export("onnx", &packed.with(&file));
            let apart = match quantizes {
                true if shape.len() > 2 => Some("Reshape"),
                true if *node == product => Some("Transpose"),
                _ => None,
            };
            let ops = read(&exported).ops();
            assert!(apart.is_none_or(|apart| ops.iter().any(|op| op == apart)), "{case}");
            let checkpoint = import(&packed.directory, &exported).unwrap();
            assert_eq!((checkpoint.len(), checkpoint.warnings().len()), (1, 0), "{case}: {:?}", checkpoint.warnings());
            let (_, back) = back(&packed, &exported);
            assert_same(&packed.container.by_name("w").unwrap(), &back.by_name("w").unwrap(), &case);
        }
    }
}

fn quantizer() -> Vec<u8> {
    node("QuantizeLinear", &["a", "s"], "b", &[])
}

/// Imports what was exported, and packs that.
fn back(packed: &Packed, exported: &[u8]) -> (Checkpoint, Container) {
    let checkpoint = import(&packed.directory, exported).unwrap();
    let (path, options) =
        (packed.directory.path().join("back.twn"), convert::Options { overwrite: true, ..Default::default() });
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    convert::pack(&checkpoint, &plan, &path, &options).unwrap();
    let container = Container::open(path).unwrap();
    let verified = twn_pack::verify::verify(&container, None).unwrap();
    assert!(verified.is_good(), "{:?}", verified.problems);
    let compared = twn_pack::verify::verify_against(&container, &checkpoint, None).unwrap();
    assert!(compared.is_good(), "{:?}", compared.problems);
    (checkpoint, container)
}

/// Every code and scale of two tensors, plane by plane.
fn assert_same(old: &Tensor<'_>, new: &Tensor<'_>, case: &str) {
    let (Tensor::Ternary(old), Tensor::Ternary(new)) = (old, new) else { panic!("{case}") };
    assert_eq!((&new.shape, new.planes, &*new.method.name), (&old.shape, old.planes, "as-packed"), "{case}");
    let values = |tensor: &twn_pack::TernaryTensor<'_>| tensor.to_array().unwrap();
    assert_eq!(values(old), values(new), "{case}");
    // A scale for all can go along any axis; the others have to be where they were.
    if old.granularity != twn_pack::Granularity::Tensor {
        assert_eq!((new.axis, new.granularity), (old.axis, old.granularity), "{case}");
        assert!(old.scales().eq(new.scales()), "{case}");
        let (mut a, mut b) = (vec![0; old.filter_len], vec![0; old.filter_len]);
        for (plane, filter) in (0..old.planes).flat_map(|p| (0..old.filters).map(move |f| (p, f))) {
            old.codes(plane, filter, &mut a).unwrap();
            new.codes(plane, filter, &mut b).unwrap();
            assert_eq!(a, b, "{case}: filter {filter} of plane {plane}");
        }
    }
    let stats = [&old.stats, &new.stats].map(|stats| (stats.negative, stats.zeros, stats.positive));
    assert_eq!(stats[0], stats[1], "{case}");
    assert_eq!(new.stats.squared_error, 0.0, "{case}");
    let norm: f64 = values(old).iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    assert!((new.stats.squared_norm / norm - 1.0).abs() < 1e-6, "{case}: {} {norm}", new.stats.squared_norm);
}

/// `MatMulNBits` in every form that the exporter has, square ones too; into the same model it gives the same bytes again.
#[test]
fn products_are_read_back_without_loss() {
    let by_row = attribute_int("transB", 1);
    let gemm = || vec![node("Gemm", &["x", "w"], "y", std::slice::from_ref(&by_row))];
    let product = || vec![node("MatMul", &["x", "w"], "y", &[])];
    let half = |shape: &[usize]| raw("w", FLOAT16, shape, &vec![0; 2 * shape.iter().product::<usize>()]);
    for (shape, settings, nodes, initializer) in [
        (vec![6, 40], "", gemm(), None),
        (vec![6, 37], "encoding=t5", gemm(), None),
        (vec![3, 300], "", gemm(), None),
        (vec![6, 300], "granularity=tensor", gemm(), None),
        (vec![5, 100], "granularity=group:16", gemm(), None),
        (vec![4, 200], "granularity=group:48", gemm(), None),
        (vec![4, 700], "granularity=group:256", gemm(), None),
        (vec![40, 6], "axis=1", product(), None),
        (vec![32, 32], "axis=1", product(), None),
        (vec![32, 32], "", gemm(), None),
        (vec![100, 5], "axis=1,granularity=group:32", product(), None),
        (vec![6, 40], "scale-dtype=f16", gemm(), Some(half(&[6, 40]))),
        (vec![6, 40], "planes=2", gemm(), None),
        (vec![40, 6], "axis=1,planes=4", product(), None),
        (vec![4, 200], "planes=3,granularity=group:48", gemm(), None),
        (vec![6, 300], "planes=2,granularity=tensor", gemm(), None),
        // Used twice, and with something added.
        (
            vec![6, 40],
            "planes=2",
            [gemm(), vec![node("Gemm", &["v", "w"], "z", std::slice::from_ref(&by_row))]].concat(),
            None,
        ),
        (vec![6, 40], "planes=2", vec![node("Gemm", &["x", "w", "x"], "y", std::slice::from_ref(&by_row))], None),
    ] {
        let case = format!("{shape:?} {settings}");
        let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &shape, 5)], settings);
        let initializer = initializer.unwrap_or_else(|| weights("w", &shape));
        let into = model(20, &graph(&nodes, &[initializer]));
        let options = Options { planes_as_tensors: true, ..packed.with(&into) };
        let exported = packed.export("onnx-nbits", &options);
        assert!(read(&exported).ops().contains(&"MatMulNBits".to_owned()), "{case}");
        let (checkpoint, container) = back(&packed, &exported);
        assert_eq!((checkpoint.len(), checkpoint.warnings()), (1, &[][..]), "{case}");
        assert_same(&packed.container.by_name("w").unwrap(), &container.by_name("w").unwrap(), &case);
        let again = Packed { container, ..packed };
        std::fs::write(again.directory.path().join("model.onnx"), &into).unwrap();
        assert!(again.export("onnx-nbits", &options) == exported, "{case}");
    }
}

/// Of such a name the importer could not say which way the weight lay.
#[test]
fn names_that_say_something_else_become_int2() {
    let weight = "w.turned";
    for (op, attributes, settings, expected) in [
        ("Gemm", vec![attribute_int("transB", 1)], "", "DequantizeLinear"),
        ("MatMul", vec![], "axis=1", "MatMulNBits"),
    ] {
        let packed = Packed::new(&[Made::gaussian(weight, Dtype::F32, &[32, 32], 5)], settings);
        let into = model(25, &graph(&[node(op, &["x", weight], "y", &attributes)], &[weights(weight, &[32, 32])]));
        let exported = packed.export("onnx-nbits", &packed.with(&into));
        assert_eq!(read(&exported).ops()[0], expected);
        let (_, container) = back(&packed, &exported);
        assert_same(&packed.container.by_name(weight).unwrap(), &container.by_name(weight).unwrap(), op);
    }
}

/// Planes behind decoders are one tensor again; those of another's sum stay what they are.
#[test]
fn planes_are_read_back_as_one_tensor() {
    let nodes = [node("Conv", &["x", "w"], "y", &[])];
    for (shape, settings) in [
        (vec![6, 40], "planes=2"),
        (vec![6, 37], "planes=3,axis=1"),
        (vec![290, 516], "planes=2,axis=1"),
        (vec![6, 40], "planes=4,granularity=tensor"),
        (vec![8, 50], "planes=2,granularity=group:16"),
        (vec![6, 4, 3, 3], "planes=2"),
        (vec![6, 4, 3, 3], "planes=3,granularity=group:12"),
    ] {
        let case = format!("{shape:?} {settings}");
        let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &shape, 5)], settings);
        let into = model(25, &graph(&nodes, &[weights("w", &shape)]));
        let options = Options { planes_as_tensors: true, ..packed.with(&into) };
        let exported = packed.export("onnx", &options);
        let (checkpoint, container) = back(&packed, &exported);
        assert_eq!((checkpoint.len(), checkpoint.warnings()), (1, &[][..]), "{case}");
        assert_eq!(checkpoint.ternary(0).unwrap().planes(), packed_planes(&packed), "{case}");
        assert_same(&packed.container.by_name("w").unwrap(), &container.by_name("w").unwrap(), &case);
        let again = Packed { container, ..packed };
        assert!(again.export("onnx", &options) == exported, "{case}");
        // Somebody else uses a plane, or a sum.
        for used in ["w.plane.0", "w.plane.1"] {
            let also = bytes(7, bytes(1, node("Relu", &[used], "z", &[])));
            let checkpoint = import(&again.directory, &merged(&exported, &also)).unwrap();
            assert!(checkpoint.by_name("w.plane.0").is_some() && checkpoint.by_name("w").is_none(), "{case} {used}");
        }
    }
}

fn packed_planes(packed: &Packed) -> usize {
    match packed.container.by_name("w").unwrap() {
        Tensor::Ternary(ternary) => ternary.planes,
        other => panic!("{other:?}"),
    }
}

/// The model with the fields of another graph in its own.
fn merged(file: &[u8], graph: &[u8]) -> Vec<u8> {
    let (own, more) = (all(file, 7).pop().unwrap(), all(graph, 7).pop().unwrap());
    let rest = [int(1, ints(file, 1)[0]), all(file, 8).iter().flat_map(|opset| bytes(8, opset)).collect()].concat();
    [rest, bytes(7, [own, more].concat())].concat()
}
