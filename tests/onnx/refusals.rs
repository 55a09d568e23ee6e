//! What cannot go into an ONNX model, and what must not be written. Not here: models that cannot be read ([`crate::import`]).

use twn_pack::Dtype;
use twn_pack::export::{self, Options};

use crate::common::Made;
use crate::model::*;
use crate::wire::*;

#[test]
fn what_cannot_be_is_refused() {
    let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &[4, 4], 1)], "");
    let plain = |nodes: &[Vec<u8>]| graph(nodes, &[weights("w", &[4, 4])]);
    let op = |op: &str| node(op, &["x"], "z", &[]);
    let case = |file: &[u8], expected: &str| {
        let error = packed.refusal("onnx", &packed.with(file));
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    };
    assert!(packed.refusal("onnx", &Options::default()).contains("--into"));
    case(b"not protobuf", "protobuf of an ONNX model");
    case(b"", "is it an ONNX model");
    case(&[model(20, &plain(&[])), bytes(7, plain(&[]))].concat(), "2 graphs");
    case(&model(20, &graph(&[], &[weights("v", &[4, 4])])), "`w`: the model has no initializer");
    case(&model(20, &graph(&[], &[weights("w", &[4, 5])])), "[4, 5], should have [4, 4]");
    case(&model(20, &graph(&[], &[weights("w", &[4, 4]), weights("w", &[4, 4])])), "two of its initializers");
    case(&model(20, &graph(&[], &[raw("w", INT8, &[4, 4], &[0; 16])])), "is INT8, should be floats");
    case(&model(20, &graph(&[], &[weights("w", &[4, 4]), weights("w.codes", &[1])])), "`w.codes`, which the model has");
    let constant = bytes(5, [bytes(1, "value"), bytes(5, raw("", FLOAT, &[4, 4], &[])), int(20, 4)].concat());
    case(&model(20, &graph(&[node("Constant", &[], "w", &[constant])], &[])), "constant of a node");
    let branch =
        bytes(5, [bytes(1, "then_branch"), bytes(6, graph(&[op("Squeeze")], &[weights("w", &[4, 4])]))].concat());
    case(&model(20, &graph(&[node("If", &["x"], "y", std::slice::from_ref(&branch))], &[])), "nested graph");
    // Opsets.
    case(&model(6, &plain(&[])), "its opset is 6, should be at least 7");
    for (name, works) in [
        ("Squeeze", 13),
        ("ReduceSum", 13),
        ("ReduceMean", 18),
        ("Softmax", 13),
        ("Split", 18),
        ("RoiAlign", 16),
        ("GroupNormalization", 21),
        ("Upsample", 10),
        ("Slice", 10),
        ("GridSample", 20),
        ("Relu", 7),
        ("Gather", 7),
    ] {
        case_opset(&packed, &model(works, &plain(&[op(name)])), None);
        if works > 7 {
            case_opset(&packed, &model(works - 1, &plain(&[op(name)])), Some(name));
            // Another domain's operation of that name is its own business.
            let other = [op(name), bytes(7, "custom")].concat();
            case_opset(&packed, &[model(works - 1, &plain(&[other])), opset("custom", 1)].concat(), None);
        }
    }
    let nested = node("If", &["x"], "y", &[bytes(5, [bytes(1, "b"), bytes(6, graph(&[op("Squeeze")], &[]))].concat())]);
    case_opset(&packed, &model(12, &plain(&[nested])), Some("Squeeze"));
    case(&[model(20, &plain(&[])), bytes(25, "")].concat(), "functions of its own");
    case(&[model(20, &plain(&[])), bytes(20, "")].concat(), "graphs for training");
    case_opset(&packed, &[model(25, &plain(&[])), bytes(25, "")].concat(), None);
    // Planes.
    let planes = Packed::new(&[Made::gaussian("w", Dtype::F32, &[4, 4], 1)], "planes=2");
    assert!(planes.refusal("onnx", &planes.with(&model(20, &plain(&[])))).contains("--planes-as-tensors"));
    // A scale that f16 has no number for.
    let small = Packed::new(&[Made::new("w", Dtype::F32, &[1, 2], &[1e-9, -1e-9])], "");
    let file = model(20, &graph(&[], &[raw("w", FLOAT16, &[1, 2], &[0; 4])]));
    assert!(small.refusal("onnx", &small.with(&file)).contains("F16 cannot hold"));
    // Dense tensors of other types, missing ones, and two for one initializer.
    let dense = |dtype| Packed::new(&[Made::gaussian("dense", dtype, &[2, 2], 1)], "");
    for (dtype, data_type, expected) in [
        (Dtype::F32, FLOAT16, "the tensor F32"),
        (Dtype::F64, FLOAT, "the tensor F64"),
        (Dtype::F16, DOUBLE, "the tensor F16"),
    ] {
        let packed = dense(dtype);
        let error =
            packed.refusal("onnx", &packed.with(&model(20, &graph(&[], &[raw("dense", data_type, &[2, 2], &[0; 8])]))));
        assert!(error.contains(expected), "{error}");
    }
    let packed = dense(Dtype::F32);
    assert!(packed.refusal("onnx", &packed.with(&model(20, &plain(&[])))).contains("optimize=False"));
}

fn case_opset(packed: &Packed, file: &[u8], refused: Option<&str>) {
    let planned = packed.plan("onnx", &packed.with(file)).and_then(|export| export.check());
    match (planned, refused) {
        (Ok(()), None) => {}
        (Err(error), Some(name)) => {
            let error = error.to_string();
            assert!(error.contains(name) && error.contains("version_converter"), "{error}");
            // The way out is one.
            let enough = error.split("export it in opset ").nth(1).and_then(|rest| rest.split(' ').next());
            let enough: i64 = enough.and_then(|number| number.parse().ok()).expect("an opset");
            let graph = all(file, 7).pop().unwrap();
            let others = all(file, 8).into_iter().filter(|opset| !text(opset, 1).is_empty());
            let others: Vec<u8> = others.flat_map(|opset| bytes(8, opset)).collect();
            let raised = [model(enough, &graph), others].concat();
            let raised = packed.plan("onnx", &packed.with(&raised)).and_then(|export| export.check());
            assert!(raised.is_ok(), "{name} {enough}: {raised:?}");
        }
        (planned, refused) => panic!("{planned:?} {refused:?}"),
    }
}

#[test]
fn data_beside_the_model_are_not_replaced() {
    let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &[2, 2], 1)], "");
    let external = [bytes(13, [bytes(1, "location"), bytes(2, "e.data")].concat()), int(14, 1)].concat();
    let file = model(21, &graph(&[], &[tensor("w", FLOAT, &[2, 2], &external)]));
    let options = packed.with(&file);
    let data = packed.directory.path().join("e.data");
    std::fs::write(&data, floats(&[1.0; 4])).unwrap();
    let export = packed.plan("onnx", &options).unwrap();
    let overwrite = export::WriteOptions { overwrite: true, ..Default::default() };
    let error = export::write(&packed.container, &export, &data, &overwrite).unwrap_err().to_string();
    assert!(error.contains("is an input"), "{error}");
    assert_eq!(std::fs::read(&data).unwrap(), floats(&[1.0; 4]));
}

/// onnxruntime takes such scales for those of the outputs, without a word.
#[test]
fn scales_of_inputs_are_refused_where_activations_are_quantized() {
    let quantizer = node("QuantizeLinear", &["a", "s"], "b", &[]);
    for (op, shape, good_axis) in [("MatMul", vec![6, 10], 1), ("Conv", vec![6, 4, 3, 3], 0)] {
        for axis in [0, 1] {
            let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &shape, 1)], &format!("keep=int8,axis={axis}"));
            let product = node(op, &["x", "w"], "y", &[]);
            let plain = packed.with(&model(20, &graph(std::slice::from_ref(&product), &[weights("w", &shape)])));
            assert!(packed.plan("onnx", &plain).unwrap().check().is_ok());
            let quantized = packed.with(&model(20, &graph(&[quantizer.clone(), product], &[weights("w", &shape)])));
            match packed.plan("onnx", &quantized).unwrap().check() {
                Ok(()) => assert_eq!(axis, good_axis, "{op}"),
                Err(error) => {
                    assert_ne!(axis, good_axis, "{op}");
                    assert!(error.to_string().contains(&format!("pack with its axis = {good_axis}")), "{error}");
                }
            }
        }
    }
}

#[test]
fn tensors_are_left_out_on_request() {
    let packed = Packed::new(
        &[Made::gaussian("w", Dtype::F32, &[4, 4], 1), Made::gaussian("dense.other", Dtype::F32, &[2], 1)],
        "",
    );
    let mut options = packed.with(&model(21, &graph(&[], &[weights("w", &[4, 4])])));
    assert!(packed.refusal("onnx", &options).contains("`dense.other`: the model has no initializer"));
    options.leave_out = vec!["*.other".to_owned()];
    assert_eq!(packed.plan("onnx", &options).unwrap().tensors.len(), 1);
    packed.export("onnx", &options);
    options.leave_out.push("v*".to_owned());
    assert!(packed.plan("onnx", &options).unwrap_err().to_string().contains("called like `v*`"));
}
