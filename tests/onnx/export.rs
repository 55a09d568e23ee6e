//! Into ONNX: golden bytes, what comes out decoded as defined, every refusal. Not here: the way back.

use twn_pack::export::Options;
use twn_pack::{Container, Dtype, Tensor, export};

use crate::common::{self, Made, Random, golden};
use crate::model::*;
use crate::wire::*;

/// The golden vectors' trits, times a half.
fn golden_weights() -> Vec<f64> {
    golden::trits().iter().map(|trit| 0.5 * trit).collect()
}

#[test]
fn int2_is_the_golden_bytes() {
    // Filters of whole bytes and of half ones, along any axis, from every encoding.
    for (shape, settings) in [
        (vec![16, 16], "granularity=tensor"),
        (vec![16, 16], "granularity=tensor,axis=1"),
        (vec![16, 16], "granularity=tensor,encoding=t5"),
        (vec![128, 2], "granularity=tensor"),
        (vec![4, 8, 2, 4], "granularity=tensor,axis=1,encoding=t5"),
        (vec![64, 2, 2, 1], "granularity=tensor,axis=2"),
    ] {
        let packed = Packed::new(&[Made::new("w", Dtype::F32, &shape, &golden_weights())], settings);
        let out = read(&packed.export("onnx", &packed.with(&product("Conv", &shape, &[]))));
        let codes = (INT2, shape.clone(), golden::bytes("lsb_first_twos_complement"));
        assert_eq!(out.tensors["w.codes"], codes, "{shape:?} {settings}");
        assert_eq!(out.tensors["w.scales"], (FLOAT, vec![], floats(&[0.5])), "{shape:?} {settings}");
    }
}

#[test]
fn matmulnbits_is_the_golden_bytes() {
    for (shape, settings) in
        [([8, 32], ""), ([16, 16], "encoding=t5"), ([2, 128], "granularity=group:64"), ([1, 256], "")]
    {
        let packed = Packed::new(&[Made::new("w", Dtype::F32, &shape, &golden_weights())], settings);
        let options = packed.with(&product("Gemm", &shape, &[attribute_int("transB", 1)]));
        let out = read(&packed.export("onnx-nbits", &options));
        assert_eq!(out.tensors["w.codes"].2, golden::bytes("lsb_first_t_plus_2"), "{shape:?} {settings}");
        assert!(out.numbers("w.scales").iter().all(|&scale| scale == 0.5), "{shape:?} {settings}");
        assert_eq!(out.nbits(&out.nodes[0]), packed.values("w"));
    }
}

/// Odd sizes, any axis, every granularity, and every number of planes: by the operations' definitions the weight is
/// what the container says, bit for bit.
#[test]
fn decoded_as_defined_it_is_the_container() {
    let shapes = [vec![5, 7], vec![3, 5, 3, 3], vec![6, 4, 5], vec![4, 64], vec![1, 1], vec![270, 532]];
    for (seed, shape) in shapes.into_iter().enumerate() {
        for settings in
            ["granularity=filter", "granularity=tensor", "granularity=group:6", "granularity=group:9,planes=3"]
        {
            for axis in 0..shape.len().min(2) {
                for encoding in ["t2", "t5"] {
                    let settings = format!("{settings},axis={axis},encoding={encoding}");
                    let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &shape, seed as u64)], &settings);
                    let file = product("Conv", &shape, &[]);
                    let options = Options { planes_as_tensors: true, ..packed.with(&file) };
                    if shape.len() > 2 && axis == 1 && settings.contains("group") {
                        assert!(packed.refusal("onnx", &options).contains("axis 1 are no blocks"), "{settings}");
                        continue;
                    }
                    let out = read(&packed.export("onnx", &options));
                    let expected = packed.values("w");
                    assert_eq!(out.weight("w"), expected, "{shape:?} {settings}");
                    let planes = if settings.contains("planes") { 3 } else { 1 };
                    let decoders = out.ops().iter().filter(|op| *op == "DequantizeLinear").count();
                    assert_eq!((decoders, out.opsets[""], out.ir_version), (planes, 25, 13), "{settings}");
                }
            }
        }
    }
}

#[test]
fn other_forms_are_decoded_alike() {
    let shape = [6, 10];
    let made = |dtype| Made::gaussian("w", dtype, &shape, 3);
    // int8 needs less of the runtime.
    for axis in [0, 1] {
        let packed = Packed::new(&[made(Dtype::F32)], &format!("keep=int8,axis={axis}"));
        let out = read(&packed.export(
            "onnx",
            &packed.with(&model(11, &graph(&[node("MatMul", &["x", "w"], "y", &[])], &[weights("w", &shape)]))),
        ));
        assert_eq!(out.weight("w"), packed.values("w"));
        assert_eq!((out.tensors["w.codes"].0, out.opsets[""]), (INT8, 13));
    }
    // Where the model computes in f16 scales are rounded, and it is said by how much.
    let packed = Packed::new(&[made(Dtype::F32)], "");
    let half = raw("w", FLOAT16, &shape, &[0; 120]);
    let options = packed.with(&model(20, &graph(&[node("MatMul", &["x", "w"], "y", &[])], &[half])));
    let rounding = packed.plan("onnx", &options).unwrap().tensors[0].rounding;
    assert!(rounding > 1e-6 && rounding < 1.0 / 2048.0, "{rounding}");
    let out = read(&packed.export("onnx", &options));
    out.weight("w").iter().zip(packed.values("w")).for_each(|(a, b)| assert!((a - b).abs() <= 5e-4 * b.abs()));
    // As floats, when asked.
    let double = raw("w", DOUBLE, &shape, &[0; 480]);
    let options = packed.with(&model(11, &graph(&[node("MatMul", &["x", "w"], "y", &[])], &[double])));
    assert!(packed.refusal("onnx", &options).contains("DOUBLE"));
    let options = Options { refused_as_dense: true, ..options };
    let out = read(&packed.export("onnx", &options));
    assert_eq!((out.weight("w"), out.opsets[""], out.ops()), (packed.values("w"), 11, vec!["MatMul".to_owned()]));
}

/// Each scale fits FLOAT16, their sum does not.
#[test]
fn sums_of_planes_are_held_to_the_type() {
    let large = Made::new("w", Dtype::F32, &[1, 4], &[70_000.0, 50_000.0, -70_000.0, -50_000.0]);
    let packed = Packed::new(&[large], "planes=2,method=optimal");
    let half = raw("w", FLOAT16, &[1, 4], &[0; 8]);
    let file = model(21, &graph(&[node("Relu", &["w"], "y", &[])], &[half]));
    let options = Options { refused_as_dense: true, ..packed.with(&file) };
    let export = packed.plan("onnx", &options).unwrap();
    assert!(export.tensors[0].becomes.as_ref().unwrap().contains("as floats"), "{:?}", export.tensors);
    let error = export::write(&packed.container, &export, &packed.directory.path().join("o.onnx"), &Default::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("weight 7e4 is more than F16 can hold"), "{error}");
}

#[test]
fn products_are_replaced_where_they_can_be() {
    let (k, n) = (50, 8);
    let by_output = Packed::new(&[Made::gaussian("w", Dtype::F32, &[n, k], 1)], "");
    let by_input = Packed::new(&[Made::gaussian("w", Dtype::F32, &[k, n], 2)], "axis=1");
    let wrong_axis = Packed::new(&[Made::gaussian("w", Dtype::F32, &[k, n], 2)], "axis=0");
    let whole = Packed::new(&[Made::gaussian("w", Dtype::F32, &[k, n], 2)], "axis=0,granularity=tensor");
    let turned = attribute_int("transB", 1);
    let gemm = |packed: &Packed, shape: &[usize], inputs: &[&str], attributes: &[Vec<u8>], bias: &[usize]| {
        let bias = weights("b", bias);
        let file = model(13, &graph(&[node("Gemm", inputs, "y", attributes)], &[weights("w", shape), bias]));
        read(&packed.export("onnx-nbits", &packed.with(&file)))
    };
    // The bias is an input of the operation, where it is one per output; else it is added.
    for (bias, ops) in [(vec![n], vec!["MatMulNBits"]), (vec![1, n], vec!["MatMulNBits", "Add"])] {
        let out = gemm(&by_output, &[n, k], &["x", "w", "b"], std::slice::from_ref(&turned), &bias);
        assert_eq!(
            (out.ops(), out.opsets["com.microsoft"], out.opsets[""]),
            (ops.iter().map(|&op| op.into()).collect(), 1, 13)
        );
        assert_eq!(out.nbits(&out.nodes[0]), by_output.values("w"));
        let inputs = ["x", "w.codes", "w.scales", "", "", "b"];
        assert_eq!(texts(&out.nodes[0], 1), if ops.len() == 1 { &inputs[..] } else { &inputs[..3] });
        assert_eq!(texts(out.nodes.last().unwrap(), 2), ["y"]);
        assert!(!out.tensors.contains_key("w"));
    }
    let out = gemm(&by_input, &[k, n], &["x", "w"], &[], &[n]);
    assert_eq!(out.nbits(&out.nodes[0]), transpose(&by_input.values("w"), n));
    // One scale for all goes with any axis.
    let out = gemm(&whole, &[k, n], &["x", "w"], &[], &[n]);
    assert_eq!(out.nbits(&out.nodes[0]), transpose(&whole.values("w"), n));
    // Scales along the inputs; another factor than 1; a transposed input; a weight that is something else too.
    let alpha = bytes(5, [bytes(1, "alpha"), float(2, 2.0), int(20, 1)].concat());
    for (packed, inputs, attributes) in [
        (&wrong_axis, &["x", "w"][..], vec![]),
        (&by_input, &["x", "w"], vec![alpha]),
        (&by_input, &["x", "w"], vec![attribute_int("transA", 1)]),
        (&by_input, &["w", "w"], vec![]),
        (&by_input, &["w", "x"], vec![]),
        (&by_input, &["x", "x", "w"], vec![]),
    ] {
        let out = gemm(packed, &[k, n], inputs, &attributes, &[n]);
        // A product of two weights has its codes by output.
        let ops = if inputs == ["w", "w"] { "DequantizeLinear,Transpose,Gemm" } else { "DequantizeLinear,Gemm" };
        assert_eq!(out.ops().join(","), ops, "{inputs:?}");
        assert_eq!(out.weight("w"), packed.values("w"));
    }
    // Through a transposition, which is gone then; not if somebody else needs it.
    for (others, ops) in
        [(vec![], "MatMulNBits"), (vec![node("Relu", &["t"], "z", &[])], "DequantizeLinear,Transpose,MatMul,Relu")]
    {
        let nodes = [
            vec![
                node("Transpose", &["w"], "t", &[attribute_ints("perm", &[1, 0])]),
                node("MatMul", &["x", "t"], "y", &[]),
            ],
            others,
        ];
        let file = model(20, &[graph(&nodes.concat(), &[weights("w", &[n, k])]), bytes(13, value("t"))].concat());
        let bytes = by_output.export("onnx-nbits", &by_output.with(&file));
        let out = read(&bytes);
        assert_eq!(out.ops().join(","), ops);
        assert_eq!(all(&all(&bytes, 7)[0], 13).is_empty(), ops == "MatMulNBits");
    }
    // Planes are summed, after the products.
    let planes = Packed::new(&[Made::gaussian("w", Dtype::F32, &[k, n], 2)], "axis=1,planes=2");
    let file = model(20, &graph(&[node("MatMul", &["x", "w"], "y", &[])], &[weights("w", &[k, n])]));
    let out = read(&planes.export("onnx-nbits", &Options { planes_as_tensors: true, ..planes.with(&file) }));
    assert_eq!(out.ops(), ["MatMulNBits", "MatMulNBits", "Add"]);
    let sum: Vec<f32> = out.nbits(&out.nodes[0]).iter().zip(out.nbits(&out.nodes[1])).map(|(a, b)| a + b).collect();
    assert_eq!((sum, texts(&out.nodes[2], 2)), (transpose(&planes.values("w"), n), vec!["y".to_owned()]));
    // Groups that are no blocks of 16 and more.
    for (group, form) in [(16, "MatMulNBits"), (48, "MatMulNBits"), (40, "DequantizeLinear"), (8, "DequantizeLinear")] {
        let packed =
            Packed::new(&[Made::gaussian("w", Dtype::F32, &[n, 3 * k], 1)], &format!("granularity=group:{group}"));
        let out = read(
            &packed.export("onnx-nbits", &packed.with(&product("Gemm", &[n, 3 * k], std::slice::from_ref(&turned)))),
        );
        assert_eq!(out.ops()[0], form, "{group}");
        if form == "MatMulNBits" {
            assert_eq!(out.nbits(&out.nodes[0]), packed.values("w"), "{group}");
        }
    }
}

#[test]
fn everything_else_stays_byte_for_byte() {
    let packed = Packed::new(
        &[Made::gaussian("w", Dtype::F32, &[3, 5], 1), Made::new("dense", Dtype::F32, &[2], &[1.5, -2.0])],
        "",
    );
    let unknown = |n: u64| [bytes(n, "unknown"), float(n + 1, 0.25), int(n + 2, -1)].concat();
    let nodes = [node("MatMul", &["x", "w"], "y", &[unknown(300)])];
    let dense = tensor("dense", FLOAT, &[2], &[float(4, 7.0), float(4, 8.0), bytes(12, "about"), unknown(90)].concat());
    let other = tensor("other", FLOAT, &[1], &[unknown(80), bytes(9, [0; 4])].concat());
    let graph =
        [graph(&nodes, &[other.clone(), weights("w", &[3, 5]), dense]), bytes(11, value("w")), unknown(100)].concat();
    let before = [model(20, &graph), opset("custom", 3), unknown(200)].concat();
    let after = packed.export("onnx", &packed.with(&before));
    // In front, kept in its order, and behind.
    let kept = |file: &[u8]| fields(file).into_iter().filter(|(n, _)| ![1, 7, 8].contains(n)).collect::<Vec<_>>();
    assert_eq!(kept(&before), kept(&after));
    let (old, new) = (all(&before, 7)[0].clone(), all(&after, 7)[0].clone());
    let kept = |graph: &[u8]| fields(graph).into_iter().filter(|(n, _)| ![1, 5, 11].contains(n)).collect::<Vec<_>>();
    assert_eq!(kept(&old), kept(&new));
    assert_eq!(all(&new, 1)[2..], all(&old, 1)[..]);
    assert!(all(&new, 5).contains(&other));
    let dense =
        tensor("dense", FLOAT, &[2], &[bytes(12, "about"), unknown(90), bytes(9, floats(&[1.5, -2.0]))].concat());
    assert!(all(&new, 5).contains(&dense), "{:?}", fields(&new));
    let out = read(&after);
    assert_eq!(out.opsets, [("", 25), ("custom", 3)].map(|(d, v)| (d.to_owned(), v)).into());
    // What has become the output of an operation is no input any more.
    assert_eq!(out.inputs, ["x"]);
    // A second time there is nothing left to replace.
    let error = packed.refusal("onnx", &packed.with(&after));
    assert!(
        error.contains("`w`: it is no initializer of the model, but made by one of its nodes (Transpose)"),
        "{error}"
    );
}

/// Data beside the model, which come into the new file, and dense tensors that are stored otherwise.
#[test]
fn external_data_come_in_and_dense_tensors_are_converted() {
    let packed = Packed::new(
        &[
            Made::gaussian("w", Dtype::F32, &[4, 4], 1),
            Made::gaussian("dense.bf16", Dtype::BF16, &[3], 2),
            Made::gaussian("dense.turned", Dtype::F32, &[2, 3], 3),
            Made::gaussian("dense.turned.f16", Dtype::F16, &[2, 3], 4),
        ],
        "",
    );
    let external = |name: &str, dims: &[usize], entries: &[(&str, &str)]| {
        let entry = |(key, value): &(&str, &str)| bytes(13, [bytes(1, key), bytes(2, value)].concat());
        tensor(name, FLOAT, dims, &[entries.iter().flat_map(entry).collect(), int(14, 1)].concat())
    };
    let file = model(
        20,
        &graph(
            &[node("Conv", &["x", "w"], "y", &[])],
            &[
                external("w", &[4, 4], &[("location", "gone.bin"), ("offset", "0"), ("length", "64")]),
                weights("dense.bf16", &[3]),
                weights("dense.turned", &[3, 2]),
                weights("dense.turned.f16", &[3, 2]),
                external("stays", &[2], &[("location", "beside.bin"), ("offset", "4"), ("length", "8")]),
                external("rest", &[1], &[("location", "./beside.bin")]),
            ],
        ),
    );
    std::fs::write(packed.directory.path().join("beside.bin"), floats(&[1.0, 2.0, 3.0])).unwrap();
    let out = read(&packed.export("onnx", &packed.with(&file)));
    assert_eq!((out.weight("stays"), out.weight("rest")), (vec![2.0, 3.0], vec![1.0]));
    let dense = |name: &str| match packed.container.by_name(name).unwrap() {
        Tensor::Dense(dense) => common::decode(dense.dtype, dense.data).iter().map(|&x| x as f32).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(out.weight("dense.bf16"), dense("dense.bf16"));
    assert_eq!(out.weight("dense.turned"), transpose(&dense("dense.turned"), 3));
    assert_eq!(out.weight("dense.turned.f16"), transpose(&dense("dense.turned.f16"), 3));
    for location in ["../beside.bin", "/beside.bin", "a/../../beside.bin", "", "a\\b"] {
        let stays = external("stays", &[2], &[("location", location)]);
        let file = model(20, &graph(&[], &[weights("w", &[4, 4]), stays]));
        let error = packed.refusal("onnx", &packed.with(&file));
        assert!(error.contains("own directory"), "{location}: {error}");
    }
}

/// Packed from its own file and put back into it.
#[test]
fn a_model_goes_through_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut random = Random(5);
    let mut values = |n: usize| floats(&(0..n).map(|_| random.gaussian() as f32).collect::<Vec<_>>());
    let file = model(
        20,
        &graph(
            &[node("Conv", &["x", "c"], "z", &[]), node("Gemm", &["z", "g", "b"], "y", &[attribute_int("transB", 1)])],
            &[
                raw("c", FLOAT, &[8, 3, 3, 3], &values(216)),
                raw("g", FLOAT, &[8, 32], &values(256)),
                raw("b", FLOAT, &[8], &values(8)),
            ],
        ),
    );
    std::fs::write(path("m.onnx"), &file).unwrap();
    common::expect(0, &[&path("m.onnx"), "-o", &path("m.twn")]);
    let (out, _) = common::expect(
        0,
        &["export", &path("m.twn"), "--to", "onnx-nbits", "--into", &path("m.onnx"), "-o", &path("o.onnx")],
    );
    assert!(
        out.contains("INT2 [8, 3, 3, 3] and scales [8] along axis 0")
            && out.contains("MatMulNBits of 8×32, blocks of 32"),
        "{out}"
    );
    let (container, out) = (Container::open(path("m.twn")).unwrap(), read(&std::fs::read(path("o.onnx")).unwrap()));
    let Some(Tensor::Ternary(conv)) = container.by_name("c") else { panic!("c") };
    assert_eq!(out.weight("c"), conv.to_array().unwrap().iter().copied().collect::<Vec<f32>>());
    assert_eq!(out.ops(), ["DequantizeLinear", "Conv", "MatMulNBits"]);
    let error = common::expect(2, &["export", &path("m.twn"), "--to", "onnx", "-o", &path("p.onnx")]).1;
    assert!(error.contains("--into"), "{error}");
    let error = common::expect(
        2,
        &["export", &path("m.twn"), "--to", "onnx", "--into", &path("m.onnx"), "-o", &path("m.onnx"), "--force"],
    )
    .1;
    assert!(error.contains("is an input"), "{error}");
}

/// onnxruntime (1.31) has no product of two INT2 decoders.
#[test]
fn codes_of_a_product_of_two_weights_lie_by_output() {
    let made = |name: &str, shape: &[usize]| Made::gaussian(name, Dtype::F32, shape, 2);
    let packed = Packed::new(&[made("wa", &[32, 64]), made("wb", &[64, 16])], "");
    let nodes = [node("MatMul", &["wa", "wb"], "p", &[]), node("Add", &["x", "p"], "y", &[])];
    let into = model(25, &graph(&nodes, &[weights("wa", &[32, 64]), weights("wb", &[64, 16])]));
    let out = read(&packed.export("onnx", &packed.with(&into)));
    assert_eq!(out.ops(), ["DequantizeLinear", "DequantizeLinear", "Transpose", "MatMul", "Add"]);
    for name in ["wa", "wb"] {
        assert_eq!(out.weight(name), packed.values(name), "{name}");
    }
}

/// onnxruntime has wrong products of codes [inputs, outputs] whose outputs are no multiple of 4.
#[test]
fn codes_of_odd_columns_lie_by_output() {
    let product = |op: &str, attributes: &[Vec<u8>]| vec![node(op, &["x", "w"], "y", attributes)];
    let through = |op: &str, attributes: &[Vec<u8>]| {
        let turn = node("Transpose", &["w"], "t", &[attribute_ints("perm", &[1, 0])]);
        vec![turn, node(op, &["x", "t"], "y", attributes)]
    };
    // What onnxruntime optimizes away, it looks through.
    let by_way_of = |ops: &[&str]| {
        let value = |i: usize| if i == 0 { "w".to_owned() } else { format!("w{i}") };
        let nodes = ops.iter().enumerate().map(|(i, op)| node(op, &[&value(i)], &value(i + 1), &[]));
        nodes.chain([node("MatMul", &["x", &value(ops.len())], "y", &[])]).collect::<Vec<_>>()
    };
    let by_row = attribute_int("transB", 1);
    let in_a_branch = |op: &str, attributes: &[Vec<u8>]| {
        let branch =
            [bytes(1, node(op, &["x", "w"], "inner", attributes)), bytes(2, "branch"), bytes(12, value("inner"))];
        let branch = bytes(5, [bytes(1, "then_branch"), bytes(6, branch.concat()), int(20, 5)].concat());
        vec![node("If", &["condition"], "y", &[branch])]
    };
    let doubled = bytes(5, [bytes(1, "alpha"), float(2, 2.0), int(20, 1)].concat());
    let also = || [product("MatMul", &[]), vec![node("Relu", &["w"], "z", &[])]].concat();
    for (nodes, columns, turned) in [
        (product("MatMul", &[]), 6, true),
        (product("MatMul", &[]), 8, false),
        (product("Gemm", &[]), 7, true),
        (product("Gemm", std::slice::from_ref(&by_row)), 7, false),
        (product("Gemm", &[doubled]), 6, true),
        (through("MatMul", &[]), 6, false),
        (through("Gemm", std::slice::from_ref(&by_row)), 6, true),
        (also(), 6, true),
        (by_way_of(&["Identity"]), 6, true),
        (by_way_of(&["Cast", "Dropout"]), 6, true),
        (by_way_of(&["Transpose", "Identity", "Transpose"]), 6, true),
        (by_way_of(&["Transpose", "Identity"]), 6, false),
        (by_way_of(&["Expand", "CastLike"]), 6, true),
        (by_way_of(&["Add", "Mul", "Div", "Sub"]), 6, true),
        (by_way_of(&["Add", "Mul", "Transpose"]), 6, false),
        // What may hide one.
        (by_way_of(&["Identity", "Concat"]), 6, true),
        (in_a_branch("MatMul", &[]), 6, true),
        (in_a_branch("Gemm", std::slice::from_ref(&by_row)), 6, false),
        (vec![node("Gather", &["w", "x"], "y", &[])], 6, false),
        (vec![node("Conv", &["x", "w"], "y", &[])], 6, false),
    ] {
        for settings in ["axis=1", "axis=0", "granularity=tensor", "axis=1,granularity=group:16", "granularity=group:2"]
        {
            let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &[50, columns], 2)], settings);
            let options = packed.with(&model(25, &graph(&nodes, &[weights("w", &[50, columns])])));
            let line = packed.plan("onnx", &options).unwrap().tensors[0].becomes.clone().unwrap();
            let out = read(&packed.export("onnx", &options));
            let dims = if turned { [columns, 50] } else { [50, columns] };
            assert_eq!(out.tensors["w.codes"].1, dims, "{settings} {:?}", out.ops());
            assert_eq!(
                (out.weight("w"), line.ends_with("and a Transpose")),
                (packed.values("w"), turned),
                "{settings}"
            );
        }
    }
}
