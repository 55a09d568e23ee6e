//! From ONNX: initializers, ternary weights of our own export and of others, bytes that are no models. Not here: the way
//! out.

use tempfile::TempDir;
use twn_pack::export::Options;
use twn_pack::{Checkpoint, Dtype, Error, Plan, Rules, convert, import};

use crate::common::{self, Made};
use crate::model::*;
use crate::wire::*;

pub fn import(directory: &TempDir, file: &[u8]) -> twn_pack::Result<Checkpoint> {
    let path = directory.path().join("m.onnx");
    std::fs::write(&path, file).unwrap();
    import::open(path)
}

#[test]
fn initializers_are_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let halves =
        |values: &[f32]| values.iter().map(|&x| i64::from(half::f16::from_f32(x).to_bits())).collect::<Vec<_>>();
    let packed =
        |number, values: &[i64]| bytes(number, values.iter().flat_map(|&v| varint(v as u64)).collect::<Vec<_>>());
    let entry = |key: &str, value: &str| bytes(13, [bytes(1, key), bytes(2, value)].concat());
    let beside = [entry("location", "m.bin"), entry("offset", "3"), entry("length", "8"), int(14, 1)].concat();
    let constant = bytes(5, [bytes(1, "value"), bytes(5, raw("", FLOAT, &[1, 2], &[0; 8]))].concat());
    std::fs::write(directory.path().join("m.bin"), [&[1, 2, 3][..], &floats(&[5.0, 6.0])].concat()).unwrap();
    let file = model(
        9,
        &graph(
            &[node("Constant", &[], "c", &[constant])],
            &[
                raw("raw", FLOAT, &[2, 1], &floats(&[1.0, -2.0])),
                tensor("packed", FLOAT, &[2], &bytes(4, floats(&[3.0, 4.0]))),
                tensor("apart", FLOAT, &[3], &[float(4, 1.0), bytes(4, floats(&[2.0])), float(4, 3.0)].concat()),
                tensor("double", DOUBLE, &[1], &bytes(10, 0.1f64.to_le_bytes())),
                tensor("half", FLOAT16, &[2], &packed(5, &halves(&[0.5, -1.5]))),
                tensor("bf16", 16, &[1], &int(5, 0x3fc0)),
                tensor("int64", 7, &[3], &packed(7, &[-1, 5, i64::MIN])),
                tensor("int8", INT8, &[2], &packed(5, &[-1, 127])),
                tensor("uint64", 13, &[1], &int(11, -1)),
                tensor("bool", 9, &[2], &packed(5, &[1, 0])),
                tensor("beside", FLOAT, &[2], &beside),
                tensor("empty", FLOAT, &[0, 3], &[]),
                [bytes(1, [varint(2), varint(1)].concat()), tensor("dims", FLOAT, &[], &bytes(9, floats(&[1.0, 2.0])))]
                    .concat(),
                tensor("text", 8, &[1], &bytes(6, "x")),
                raw("int4", 22, &[2], &[0]),
            ],
        ),
    );
    let checkpoint = import(&directory, &file).unwrap();
    let expected: [(&str, Dtype, &[usize], Vec<u8>); 13] = [
        ("raw", Dtype::F32, &[2, 1], floats(&[1.0, -2.0])),
        ("packed", Dtype::F32, &[2], floats(&[3.0, 4.0])),
        ("apart", Dtype::F32, &[3], floats(&[1.0, 2.0, 3.0])),
        ("double", Dtype::F64, &[1], 0.1f64.to_le_bytes().to_vec()),
        ("half", Dtype::F16, &[2], common::encode(Dtype::F16, &[0.5, -1.5])),
        ("bf16", Dtype::BF16, &[1], vec![0xc0, 0x3f]),
        ("int64", Dtype::I64, &[3], [-1, 5, i64::MIN].iter().flat_map(|v: &i64| v.to_le_bytes()).collect()),
        ("int8", Dtype::I8, &[2], vec![0xff, 0x7f]),
        ("uint64", Dtype::U64, &[1], vec![0xff; 8]),
        ("bool", Dtype::BOOL, &[2], vec![1, 0]),
        ("beside", Dtype::F32, &[2], floats(&[5.0, 6.0])),
        ("empty", Dtype::F32, &[0, 3], vec![]),
        ("dims", Dtype::F32, &[2, 1], floats(&[1.0, 2.0])),
    ];
    for (name, dtype, shape, data) in &expected {
        let tensor = checkpoint.by_name(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!((tensor.dtype, tensor.shape, tensor.stored), (*dtype, *shape, &data[..]), "{name}");
    }
    assert_eq!(checkpoint.len(), expected.len());
    assert_eq!(
        checkpoint.warnings(),
        [
            "`text` (STRING), `int4` (INT4) are left out: types that are not read",
            "`c` are left out: constants, nested graphs or sparse tensors are not read",
        ]
    );
    let files: Vec<_> = checkpoint.files().map(|file| file.file_name().unwrap().to_owned()).collect();
    assert_eq!(files, ["m.onnx", "m.bin"]);
}

#[test]
fn bad_models_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let entry = |key: &str, value: &str| bytes(13, [bytes(1, key), bytes(2, value)].concat());
    let beside = |entries: &[Vec<u8>]| {
        let tensor = tensor("w", FLOAT, &[2], &[entries.concat(), int(14, 1)].concat());
        model(20, &graph(&[], &[tensor]))
    };
    std::fs::write(directory.path().join("m.bin"), [0; 12]).unwrap();
    let location = || entry("location", "m.bin");
    let deep = (0..40).fold(graph(&[], &[]), |inner, _| {
        graph(&[node("If", &[], "y", &[bytes(5, [bytes(1, "b"), bytes(6, inner)].concat())])], &[])
    });
    for (file, expected) in [
        (vec![], "0 graphs"),
        (b"{\"a\": 1}".to_vec(), "it is no checkpoint but JSON text"),
        (safetensors(), "it should be the protobuf"),
        ([int(1, 8), bytes(7, graph(&[], &[]))].concat(), "0 operator sets"),
        (model(20, &deep), "inside each other more than"),
        (model(20, &graph(&[], &[tensor("", FLOAT, &[1], &[])])), "has no name"),
        (model(20, &graph(&[], &[tensor("w", FLOAT, &[1], &int(1, -3))])), "dimension of -3"),
        (model(20, &graph(&[], &[raw("w", FLOAT, &[3], &[0; 8])])), "needs 12 bytes"),
        (model(20, &graph(&[], &[raw("w", FLOAT, &[1 << 40, 1 << 40], &[0; 8])])), "more than 2^63 bytes"),
        (model(20, &graph(&[], &[tensor("w", FLOAT, &[2], &bytes(4, [0; 7]))])), "needs 8 bytes"),
        (model(20, &graph(&[], &[tensor("w", FLOAT, &[1; 17], &bytes(9, [0; 4]))])), "rank is 17"),
        (model(20, &graph(&[], &[weights("w", &[1]), weights("w", &[1])])), "key `w` stands twice"),
        (model(20, &graph(&[], &[tensor("w", 7, &[1], &bytes(7, [0xff; 11]))])), "longer than ten bytes"),
        (model(20, &graph(&[], &[tensor("w", 7, &[2], &int(7, 1))])), "needs 16 bytes"),
        (model(20, &graph(&[], &[tensor("w", FLOAT, &[9], &[])])), "the initializer's data are 0 bytes"),
        (beside(&[location(), entry("length", "4")]), "its external data in \"m.bin\" are 4 bytes"),
        (beside(&[entry("location", "../m.bin")]), "own directory"),
        (beside(&[entry("location", "/etc/hostname")]), "own directory"),
        (beside(&[]), "own directory"),
        (beside(&[entry("location", "none.bin")]), "put it beside the model"),
        (beside(&[location(), entry("offset", "8")]), "lie outside"),
        (beside(&[location(), entry("offset", "18446744073709551615"), entry("length", "8")]), "lie outside"),
        (beside(&[location(), entry("offset", "-1")]), "should be a number"),
        (beside(&[location(), entry("length", "12")]), "needs 8 bytes"),
        ([model(20, &graph(&[], &[])), vec![0x0b]].concat(), "wire type 3"),
        ([model(20, &graph(&[], &[])), vec![0x00, 0x00]].concat(), "number 0"),
        ([model(20, &graph(&[], &[])), bytes(8, bytes(1, [0xff]))].concat(), "not UTF-8"),
    ] {
        let error = import(&directory, &file).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error} should say {expected:?}");
        // Words of safetensors.
        assert!(!error.to_string().contains("data_offsets"), "{error}");
    }
}

/// They were taken as the bits of the type, or put one behind the other.
#[test]
fn numbers_in_fields_of_other_types_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = |number| bytes(number, [0; 4]);
    for (kind, data, expected) in [
        (FLOAT, data(5), "`w`: its data are in int32_data, those of FLOAT should be in float_data or raw_data"),
        (FLOAT, bytes(10, [0; 8]), "are in double_data, those of FLOAT should"),
        (FLOAT16, data(4), "are in float_data, those of FLOAT16 should be in int32_data or raw_data"),
        (FLOAT, [data(9), data(4)].concat(), "are in raw_data and float_data, those of FLOAT"),
        (FLOAT, [bytes(3, [int(1, 0), int(2, 1)].concat()), data(9)].concat(), "are in a segment and raw_data"),
        (7, int(5, 1), "are in int32_data, those of I64 should be in int64_data"),
        (12, int(7, 1), "are in int64_data, those of U32 should be in uint64_data"),
        (DOUBLE, float(4, 1.0), "are in float_data, those of DOUBLE should be in double_data"),
        (UINT8, data(6), "are in string_data, those of U8 should be in int32_data"),
    ] {
        let error = import(&directory, &model(20, &graph(&[], &[tensor("w", kind, &[1], &data)]))).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} should say {expected:?}");
    }
    // A field without bytes has no data.
    let file = model(20, &graph(&[], &[tensor("w", FLOAT, &[1], &[bytes(5, ""), data(4)].concat())]));
    assert_eq!(import(&directory, &file).unwrap().len(), 1);
}

/// Vectors, lists, other operations than constants and functions were passed over in silence.
#[test]
fn weights_that_nodes_carry_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let carries = |tensor: Vec<u8>| bytes(5, [bytes(1, "value"), bytes(5, tensor)].concat());
    let constant = |name: &str, tensor| node("Constant", &[], name, &[carries(tensor)]);
    let list = bytes(5, [bytes(1, "value_floats"), float(7, 1.0), float(7, 2.0)].concat());
    let one = bytes(5, [bytes(1, "value_floats"), float(7, 1.0)].concat());
    let nodes = [
        constant("bias", weights("", &[3])),
        constant("codes", raw("", INT8, &[2, 2], &[0; 4])),
        constant("shape", raw("", 7, &[2], &[0; 16])),
        constant("pads", raw("", 7, &[2, 2], &[0; 32])),
        constant("scalar", weights("", &[1, 1])),
        constant("none", weights("", &[0, 3])),
        node("Constant", &[], "list", &[list]),
        node("Constant", &[], "one", &[one]),
        node("Other", &["x"], "y", &[carries(weights("", &[2, 2]))]),
    ];
    let function = [bytes(1, "F"), bytes(7, constant("inner", weights("", &[2])))].concat();
    let file = [model(21, &graph(&nodes, &[])), bytes(25, function)].concat();
    assert_eq!(
        import(&directory, &file).unwrap().warnings(),
        [
            "`bias`, `codes`, `list`, `y` and 1 more are left out: constants, nested graphs or sparse tensors are not read"
        ]
    );
    // What says how large an image becomes is no weight; sparse tensors and a function's own values may be.
    let sparse = bytes(5, [bytes(1, "sparse_value"), bytes(22, "")].concat());
    let scales = constant("scales", weights("", &[4]));
    let nodes = [
        &nodes[2..6],
        &[scales, node("Resize", &["x", "", "scales"], "large", &[]), node("Constant", &[], "sparse", &[sparse])],
    ]
    .concat();
    let default = bytes(11, [bytes(1, "table"), bytes(5, weights("", &[2, 2]))].concat());
    let file = [model(21, &graph(&nodes, &[])), bytes(25, default)].concat();
    let warnings = import(&directory, &file).unwrap().warnings().to_vec();
    assert!(warnings.len() == 1 && warnings[0].starts_with("`sparse`, `table` are left out"), "{warnings:?}");
    let file = [model(21, &graph(&nodes[..4], &[])), bytes(25, bytes(7, constant("bias", weights("", &[3]))))].concat();
    let warnings = import(&directory, &file).unwrap().warnings().to_vec();
    assert!(warnings.len() == 1 && warnings[0].starts_with("`bias` are left out"), "{warnings:?}");
}

/// Each decoder looked at all others, and at all zero points.
#[test]
fn many_decoders_share_a_scale() {
    const COUNT: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..COUNT).map(|i| (format!("c{i}"), format!("w{i}"))).collect();
    let decoder = |(codes, weight): &(String, String)| node("DequantizeLinear", &[codes, "s", "z"], weight, &[]);
    let codes = names.iter().map(|(codes, _)| raw(codes, INT2, &[1, 4], &[0x4d]));
    // As numbers in a field: decoded once, too.
    let shared = [tensor("s", FLOAT, &[], &float(4, 0.5)), raw("z", INT2, &[4 * COUNT], &vec![0; COUNT])];
    let nodes: Vec<_> = names.iter().map(decoder).collect();
    let file = model(25, &graph(&nodes, &codes.chain(shared).collect::<Vec<_>>()));
    let start = std::time::Instant::now();
    let checkpoint = import(&directory, &file).unwrap();
    assert_eq!((checkpoint.len(), checkpoint.warnings()), (COUNT, &[][..]));
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

fn safetensors() -> Vec<u8> {
    common::safetensors(&[Made::gaussian("w", Dtype::F32, &[2, 2], 1)], &[])
}

/// Cut off anywhere, or with any byte another one: read or refused, in no time.
#[test]
fn no_bytes_are_too_bad() {
    let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &[3, 5], 1)], "");
    let then = bytes(5, [bytes(1, "b"), bytes(6, graph(&[node("Relu", &["w"], "r", &[])], &[]))].concat());
    let entry = bytes(13, [bytes(1, "location"), bytes(2, "m.bin")].concat());
    let good = model(
        20,
        &graph(
            &[node("MatMul", &["x", "w"], "y", &[attribute_ints("perm", &[1, 0])]), node("If", &["x"], "z", &[then])],
            &[
                weights("w", &[3, 5]),
                tensor("i", 7, &[2], &bytes(7, [1, 2])),
                tensor("e", FLOAT, &[1], &[entry, int(14, 1)].concat()),
            ],
        ),
    );
    std::fs::write(packed.directory.path().join("m.bin"), [0; 4]).unwrap();
    let attempt = |file: &[u8]| {
        let imported = import(&packed.directory, file);
        if let Ok(checkpoint) = &imported {
            checkpoint.tensors().for_each(|t| assert_eq!(t.stored.len() * 8, t.elements() * t.dtype.bitsize()));
        }
        let options = packed.with(file);
        let exported = packed.plan("onnx-nbits", &options);
        if let Ok(export) = &exported
            && export.check().is_ok()
        {
            packed.export("onnx-nbits", &options);
        }
        imported.is_ok() && exported.is_ok_and(|export| export.check().is_ok())
    };
    assert!(attempt(&good));
    let mut survived = 0;
    for length in 0..good.len() {
        survived += usize::from(attempt(&good[..length]));
    }
    assert!(survived < 3, "{survived}");
    for at in 0..good.len() {
        for flip in [0x01, 0x80] {
            let mut file = good.clone();
            file[at] ^= flip;
            attempt(&file);
        }
    }
    // Lengths that lie.
    for length in [u64::MAX, 1 << 62, 1 << 31] {
        assert!(!attempt(&[varint(7 * 8 + 2), varint(length), vec![0; 10]].concat()));
    }
}

/// The same of models whose weights are codes: whatever changes, every plane can be read or says why not.
#[test]
fn damaged_codes_never_panic() {
    let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &[3, 20], 1)], "planes=2,granularity=group:16");
    let attempt = |file: &[u8]| {
        let Ok(checkpoint) = import(&packed.directory, file) else { return 0 };
        let views = (0..checkpoint.len()).filter_map(|i| checkpoint.ternary(i));
        let planes = views.flat_map(|view| (0..view.planes()).map(move |plane| view.plane(plane)));
        let read = planes.map(|view| {
            let mut codes = vec![9; view.filter_len()];
            let good = (0..view.filters()).filter(|&filter| view.codes(filter, &mut codes).is_ok());
            let units = view.filter_len().div_ceil(view.unit_len());
            let scales = (0..view.filters()).flat_map(|filter| (0..units).map(move |unit| (filter, unit)));
            good.count() + scales.filter(|&(filter, unit)| view.scale(filter, unit).is_ok()).count()
        });
        read.sum()
    };
    for to in ["onnx", "onnx-nbits"] {
        let into = product("Gemm", &[3, 20], &[attribute_int("transB", 1)]);
        let good = packed.export(to, &Options { planes_as_tensors: true, ..packed.with(&into) });
        // Three filters of two scales each, in two planes.
        assert_eq!(attempt(&good), 2 * (3 + 6), "{to}");
        for length in 0..good.len() {
            attempt(&good[..length]);
        }
        let mut other = 0;
        for (at, flip) in (0..good.len()).flat_map(|at| [0x01, 0x02, 0x40, 0x80].map(|flip| (at, flip))) {
            let mut file = good.clone();
            file[at] ^= flip;
            other += usize::from(attempt(&file) != 2 * (3 + 6));
        }
        assert!(other > good.len() / 4, "{to}: {other} of {}", 4 * good.len());
    }
}

/// Other programs' `MatMulNBits`: zero points, more bits, permutations, and codes that are not ternary.
#[test]
fn products_of_others_are_ternary_or_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let sizes = |bits| {
        [("K", 20), ("N", 2), ("block_size", 16), ("bits", bits)]
            .map(|(name, value)| attribute_int(name, value))
            .concat()
    };
    let product =
        |inputs: &[&str], bits| [node("MatMulNBits", inputs, "y", &[sizes(bits)]), bytes(7, "com.microsoft")].concat();
    // Two outputs of two blocks; the second block has 4 inputs.
    let codes = |bytes: [u8; 16]| raw("q", UINT8, &[2, 2, 4], &bytes);
    let scales = raw("s", FLOAT, &[4], &floats(&[0.5, 0.25, 1.0, 2.0]));
    // Zero points 1 and 2, then 2 and 3.
    let zeros = raw("z", UINT8, &[2], &[0b10_01, 0b11_10]);
    let good = codes([0x46, 0x46, 0x46, 0x46, 0x9b, 0, 0, 0, 0x9b, 0x9b, 0x9b, 0x9b, 0xef, 0, 0, 0]);
    let file = model(21, &graph(&[product(&["x", "q", "s", "z"], 2)], &[good.clone(), scales.clone(), zeros.clone()]));
    let checkpoint = import(&directory, &file).unwrap();
    assert_eq!((checkpoint.len(), checkpoint.warnings()), (1, &[][..]));
    let view = checkpoint.ternary(0).unwrap();
    assert_eq!((view.name, view.shape, view.axis(), view.unit_len()), ("q", &[2, 20][..], 0, 16));
    let mut row = [9; 20];
    view.codes(0, &mut row).unwrap();
    // 0x46 is 2, 1, 0, 1 around 1, 0x9b is 3, 2, 1, 2 around 2, 0xef is 3, 3, 2, 3 around 3.
    assert_eq!((&row[..4], &row[16..]), (&[2, 1, 0, 1][..], &[2, 1, 0, 1][..]));
    view.codes(1, &mut row).unwrap();
    assert_eq!((&row[..4], &row[16..]), (&[2, 1, 0, 1][..], &[1, 1, 0, 1][..]));
    assert_eq!((view.scale(0, 1), view.scale(1, 0), view.scale(1, 1)), (Ok(0.25), Ok(1.0), Ok(2.0)));
    // A negative scale negates its block's codes, with zero points and without.
    let negative = raw("s", FLOAT, &[4], &floats(&[-0.5, 0.25, 1.0, -2.0]));
    let file = model(21, &graph(&[product(&["x", "q", "s", "z"], 2)], &[good.clone(), negative.clone(), zeros]));
    let checkpoint = import(&directory, &file).unwrap();
    let view = checkpoint.ternary(0).unwrap();
    view.codes(0, &mut row).unwrap();
    assert_eq!((&row[..4], &row[16..], view.scale(0, 0)), (&[0, 1, 2, 1][..], &[2, 1, 0, 1][..], Ok(0.5)));
    let plain = codes([[0x9b; 4], [0x9b, 0, 0, 0], [0x9b; 4], [0x9b, 0, 0, 0]].concat().try_into().unwrap());
    let file = model(21, &graph(&[product(&["x", "q", "s"], 2)], &[plain, negative]));
    let packed = Packed::of(&import(&directory, &file).unwrap(), &Rules::default(), tempfile::tempdir().unwrap());
    let values = |from: usize| packed.values("q")[from..from + 4].to_vec();
    assert_eq!((values(0), values(16)), (vec![-0.5, 0.0, 0.5, 0.0], vec![0.25, 0.0, -0.25, 0.0]));
    assert_eq!((values(20), values(36)), (vec![1.0, 0.0, -1.0, 0.0], vec![-2.0, 0.0, 2.0, 0.0]));
    // Without zero points the first block has a 0, which is −2.
    let file = model(21, &graph(&[product(&["x", "q", "s"], 2)], &[good.clone(), scales.clone()]));
    let checkpoint = import(&directory, &file).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let error = convert::pack(&checkpoint, &plan, &directory.path().join("o.twn"), &convert::Options::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("weight 2 of filter 0 is -2, should be -1, 0 or 1; give the floats"), "{error}");
    // No ternary weights: they stay integers, and a warning says so.
    let float_zeros = raw("z", FLOAT, &[4], &floats(&[2.0; 4]));
    let order = raw("g", 6, &[20], &[0; 80]);
    let relu = node("Relu", &["s"], "r", &[]);
    for (nodes, tensors) in [
        (vec![product(&["x", "q", "s", "z"], 2)], vec![good.clone(), scales.clone(), float_zeros]),
        (vec![product(&["x", "q", "s", "", "g"], 2)], vec![good.clone(), scales.clone(), order]),
        (vec![product(&["x", "q", "s"], 4)], vec![raw("q", UINT8, &[2, 2, 8], &[0; 32]), scales.clone()]),
        (vec![product(&["x", "q", "s"], 2)], vec![good.clone(), raw("s", FLOAT, &[3], &floats(&[1.0; 3]))]),
        (vec![product(&["x", "q", "s"], 2)], vec![raw("q", UINT8, &[2, 7], &[0; 14]), scales.clone()]),
        (vec![product(&["x", "q", "s"], 2), relu], vec![good.clone(), scales.clone()]),
        (vec![product(&["x", "q", "s"], 2), product(&["x", "q", "s"], 4)], vec![good.clone(), scales.clone()]),
    ] {
        let checkpoint = import(&directory, &model(21, &graph(&nodes, &tensors))).unwrap();
        assert!((0..checkpoint.len()).all(|i| checkpoint.ternary(i).is_none()));
        assert!(checkpoint.warnings()[0].contains("`q` are codes of MatMulNBits"), "{:?}", checkpoint.warnings());
        let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        assert_eq!(plan.ternary_count(), 0, "{:?}", plan.tensors);
    }
    // Data that are not there.
    let short = raw("q", UINT8, &[2, 2, 4], &[0; 15]);
    let error = import(&directory, &model(21, &graph(&[product(&["x", "q", "s"], 2)], &[short, scales]))).unwrap_err();
    assert!(error.to_string().contains("`q`: 15 bytes of U8, shape [2, 2, 4] needs 16"), "{error}");
}

/// Codes that are not ternary, and decoders that say something else.
#[test]
fn int2_that_is_not_ternary_is_refused_or_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let decoder = |inputs: &[&str], attributes: &[Vec<u8>]| node("DequantizeLinear", inputs, "w", attributes);
    let codes = |byte: u8| raw("c", INT2, &[2, 4], &[0x4d, byte]);
    let scales = |n: usize| raw("s", FLOAT, &[n], &floats(&vec![0.5; n]));
    let axis = attribute_int("axis", 0);
    let good = model(25, &graph(&[decoder(&["c", "s"], std::slice::from_ref(&axis))], &[codes(0x01), scales(2)]));
    let checkpoint = import(&directory, &good).unwrap();
    let view = checkpoint.ternary(0).unwrap();
    let mut row = [9; 4];
    view.codes(0, &mut row).unwrap();
    assert_eq!((row, view.shape, view.name, view.scale(1, 0)), ([2, 0, 1, 2], &[2, 4][..], "w", Ok(0.5)));
    // −2.
    for (along, number, said) in [(0, 2, "weight 2 of filter 1 is -2"), (1, 4, "weight 1 of filter 2 is -2")] {
        let decoder = decoder(&["c", "s"], &[attribute_int("axis", along)]);
        let file = model(25, &graph(&[decoder], &[codes(0x20), scales(number)]));
        let checkpoint = import(&directory, &file).unwrap();
        let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        let error = convert::pack(&checkpoint, &plan, &directory.path().join("o.twn"), &convert::Options::default());
        assert!(error.unwrap_err().to_string().contains(said), "{along}");
    }
    // Bytes that are not there.
    let short = raw("c", INT2, &[2, 4], &[0x4d]);
    let file = model(25, &graph(&[decoder(&["c", "s"], std::slice::from_ref(&axis))], &[short, scales(2)]));
    let error = import(&directory, &file).unwrap_err().to_string();
    assert!(error.contains("`c`: 1 bytes of INT2, shape [2, 4] needs 2"), "{error}");
    let one = raw("z", INT2, &[2], &[1]);
    for (nodes, scales) in [
        // A zero point of 1, another number of scales, a block of nothing, scales that somebody else needs, two decoders.
        (vec![decoder(&["c", "s", "z"], std::slice::from_ref(&axis))], scales(2)),
        (vec![decoder(&["c", "s"], std::slice::from_ref(&axis))], scales(3)),
        (vec![decoder(&["c", "s"], &[axis.clone(), attribute_int("block_size", -1)])], scales(2)),
        (vec![decoder(&["c", "s"], &[attribute_int("axis", 7)])], scales(2)),
        // Products that are rounded.
        (vec![decoder(&["c", "s"], &[axis.clone(), attribute_int("output_dtype", FLOAT16)])], scales(2)),
        (vec![decoder(&["c", "s"], std::slice::from_ref(&axis)), node("Relu", &["s"], "y", &[])], scales(2)),
        (vec![decoder(&["c", "s"], std::slice::from_ref(&axis)), node("Relu", &["c"], "y", &[])], scales(2)),
        (vec![], scales(2)),
    ] {
        let checkpoint = import(&directory, &model(25, &graph(&nodes, &[codes(0x01), scales, one.clone()]))).unwrap();
        assert!((0..checkpoint.len()).all(|i| checkpoint.ternary(i).is_none()), "{:?}", checkpoint.warnings());
        assert!(checkpoint.warnings()[0].contains("`c` (INT2)"), "{:?}", checkpoint.warnings());
    }
}

/// What other programs write that says the same: numbers in fields, zero points of 0, shared and negative scales.
#[test]
fn int2_of_others_is_ternary() {
    let directory = tempfile::tempdir().unwrap();
    let decoder = |inputs: &[&str], output: &str| node("DequantizeLinear", inputs, output, &[attribute_int("axis", 0)]);
    // [1, −1, 0, 1] and [1, 0, 0, 0], as two bytes of four.
    let codes = |name: &str| raw(name, INT2, &[2, 4], &[0x4d, 0x01]);
    let in_fields = tensor("c", INT2, &[2, 4], &[int(5, 0x4d), int(5, 0x01)].concat());
    let scales = |of: [f32; 2]| raw("s", FLOAT, &[2], &floats(&of));
    let scales_in_fields = tensor("s", FLOAT, &[2], &[float(4, 0.5), float(4, 2.0)].concat());
    let zero = raw("z", INT2, &[2], &[0]);
    let plain = vec![decoder(&["c", "s"], "w")];
    let shared = vec![decoder(&["c", "s", "z"], "w"), decoder(&["d", "s", "z"], "v")];
    let typed = [attribute_int("axis", 0), attribute_int("output_dtype", FLOAT)];
    let typed = vec![node("DequantizeLinear", &["c", "s"], "w", &typed)];
    for (nodes, tensors, count, expected) in [
        (plain.clone(), vec![in_fields, scales([0.5, 2.0])], 1, [[0.5, -0.5, 0.0, 0.5], [2.0, 0.0, 0.0, 0.0]]),
        (plain.clone(), vec![codes("c"), scales_in_fields], 1, [[0.5, -0.5, 0.0, 0.5], [2.0, 0.0, 0.0, 0.0]]),
        (typed, vec![codes("c"), scales([0.5, 2.0])], 1, [[0.5, -0.5, 0.0, 0.5], [2.0, 0.0, 0.0, 0.0]]),
        (plain, vec![codes("c"), scales([0.5, -2.0])], 1, [[0.5, -0.5, 0.0, 0.5], [-2.0, 0.0, 0.0, 0.0]]),
        (
            shared,
            vec![codes("c"), codes("d"), scales([0.5, 2.0]), zero],
            2,
            [[0.5, -0.5, 0.0, 0.5], [2.0, 0.0, 0.0, 0.0]],
        ),
    ] {
        let checkpoint = import(&directory, &model(25, &graph(&nodes, &tensors))).unwrap();
        assert_eq!((checkpoint.len(), checkpoint.warnings()), (count, &[][..]));
        for i in 0..count {
            let view = checkpoint.ternary(i).unwrap();
            for (filter, expected) in expected.iter().enumerate() {
                let (mut row, scale) = ([9; 4], view.scale(filter, 0).unwrap());
                view.codes(filter, &mut row).unwrap();
                assert_eq!(row.map(|code| scale * (f32::from(code) - 1.0)), *expected);
            }
        }
    }
}

#[test]
fn nodes_of_endless_parts_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let many = [bytes(1, ""), bytes(5, "")].concat().repeat((1 << 21) + 1);
    let error = import(&directory, &model(21, &graph(&[many], &[]))).unwrap_err().to_string();
    assert!(error.contains("inputs, outputs and attributes"), "{error}");
}
