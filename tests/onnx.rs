//! ONNX, in both directions: golden bytes, models put together here field by field, a plain decoder of what comes
//! out, files of PyTorch's own exporters, every refusal, and bytes that are no models. What onnxruntime makes of it:
//! `examples/interop/onnx_lenet5.py`.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Made, Random};
use tempfile::TempDir;
use twn_pack::export::{self, Export, Options};
use twn_pack::{Checkpoint, Container, Dtype, Error, Plan, Rules, Settings, Tensor, convert, import, select};

// A protobuf writer.

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
    bytes
}

fn int(number: u64, value: i64) -> Vec<u8> {
    [varint(number * 8), varint(value as u64)].concat()
}

fn bytes(number: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    [varint(number * 8 + 2), varint(value.as_ref().len() as u64), value.as_ref().to_vec()].concat()
}

fn float(number: u64, value: f32) -> Vec<u8> {
    [varint(number * 8 + 5), value.to_le_bytes().to_vec()].concat()
}

const FLOAT: i64 = 1;
const UINT8: i64 = 2;
const INT8: i64 = 3;
const FLOAT16: i64 = 10;
const DOUBLE: i64 = 11;
const INT2: i64 = 26;

/// A tensor without its data.
fn tensor(name: &str, data_type: i64, dims: &[usize], data: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|&d| int(1, d as i64)).collect();
    [dims, int(2, data_type), bytes(8, name), data.to_vec()].concat()
}

fn raw(name: &str, data_type: i64, dims: &[usize], data: &[u8]) -> Vec<u8> {
    tensor(name, data_type, dims, &bytes(9, data))
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Floats that say nothing.
fn weights(name: &str, dims: &[usize]) -> Vec<u8> {
    raw(name, FLOAT, dims, &floats(&vec![9.0; dims.iter().product()]))
}

fn attribute_int(name: &str, value: i64) -> Vec<u8> {
    bytes(5, [bytes(1, name), int(3, value), int(20, 2)].concat())
}

fn attribute_ints(name: &str, values: &[i64]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|&value| int(8, value)).collect();
    bytes(5, [bytes(1, name), values, int(20, 7)].concat())
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input)).collect();
    [inputs, bytes(2, output), bytes(3, format!("/{output}")), bytes(4, op), attributes.concat()].concat()
}

fn value(name: &str) -> Vec<u8> {
    bytes(1, name)
}

fn graph(nodes: &[Vec<u8>], initializers: &[Vec<u8>]) -> Vec<u8> {
    let fields = |number, messages: &[Vec<u8>]| messages.iter().flat_map(|m| bytes(number, m)).collect::<Vec<u8>>();
    let ends = [bytes(11, value("x")), bytes(12, value("y"))].concat();
    [fields(1, nodes), bytes(2, "g"), fields(5, initializers), ends].concat()
}

fn opset(domain: &str, version: i64) -> Vec<u8> {
    bytes(8, [bytes(1, domain), int(2, version)].concat())
}

fn model(opset_version: i64, graph: &[u8]) -> Vec<u8> {
    [int(1, 8), bytes(2, "by hand"), bytes(7, graph), opset("", opset_version)].concat()
}

// A protobuf reader.

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Int(i64),
    Bytes(Vec<u8>),
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Value)> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                return value;
            }
        }
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes);
        let value = match tag & 7 {
            0 => Value::Int(number(&mut bytes) as i64),
            kind => {
                let length = match kind {
                    2 => number(&mut bytes) as usize,
                    5 => 4,
                    1 => 8,
                    other => panic!("{other}"),
                };
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Value::Bytes(value.to_vec())
            }
        };
        fields.push((tag >> 3, value));
    }
    fields
}

fn all(message: &[u8], number: u64) -> Vec<Vec<u8>> {
    let found = fields(message).into_iter().filter(|(n, _)| *n == number);
    found.map(|(_, value)| if let Value::Bytes(bytes) = value { bytes } else { panic!("{value:?}") }).collect()
}

fn ints(message: &[u8], number: u64) -> Vec<i64> {
    let found = fields(message).into_iter().filter(|(n, _)| *n == number);
    found.map(|(_, value)| if let Value::Int(int) = value { int } else { panic!("{value:?}") }).collect()
}

fn text(message: &[u8], number: u64) -> String {
    all(message, number).pop().map_or_else(String::new, |bytes| String::from_utf8(bytes).unwrap())
}

fn texts(message: &[u8], number: u64) -> Vec<String> {
    all(message, number).into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}

/// What a test looks at in a model.
struct Read {
    ir_version: i64,
    opsets: BTreeMap<String, i64>,
    nodes: Vec<Vec<u8>>,
    inputs: Vec<String>,
    /// Data type, shape, raw data.
    tensors: BTreeMap<String, (i64, Vec<usize>, Vec<u8>)>,
}

fn read(file: &[u8]) -> Read {
    let graph = all(file, 7).pop().unwrap();
    let tensors = all(&graph, 5).into_iter().map(|t| {
        let dims = ints(&t, 1).into_iter().map(|d| d as usize).collect();
        (text(&t, 8), (ints(&t, 2)[0], dims, all(&t, 9).pop().unwrap_or_default()))
    });
    Read {
        ir_version: ints(file, 1)[0],
        opsets: all(file, 8).iter().map(|o| (text(o, 1), ints(o, 2)[0])).collect(),
        nodes: all(&graph, 1),
        inputs: all(&graph, 11).iter().map(|i| text(i, 1)).collect(),
        tensors: tensors.collect(),
    }
}

impl Read {
    fn producer(&self, name: &str) -> Option<&Vec<u8>> {
        self.nodes.iter().find(|node| texts(node, 2).contains(&name.to_owned()))
    }

    fn ops(&self) -> Vec<String> {
        self.nodes.iter().map(|node| text(node, 4)).collect()
    }

    fn attributes(node: &[u8]) -> BTreeMap<String, i64> {
        all(node, 5).iter().filter_map(|a| Some((text(a, 1), ints(a, 3).pop()?))).collect()
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        let (data_type, dims, data) = &self.tensors[name];
        match *data_type {
            FLOAT => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            FLOAT16 => data.chunks(2).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            DOUBLE => data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
            INT8 => data.iter().map(|&b| f32::from(b as i8)).collect(),
            INT2 => (0..dims.iter().product())
                .map(|i: usize| [0.0, 1.0, -2.0, -1.0][usize::from(data[i / 4] >> (2 * (i % 4)) & 3)])
                .collect(),
            other => panic!("{other}"),
        }
    }

    /// The values of a weight, by the definition of the operations that make it.
    fn weight(&self, name: &str) -> Vec<f32> {
        let Some(node) = self.producer(name) else { return self.numbers(name) };
        let (inputs, attributes) = (texts(node, 1), Self::attributes(node));
        match text(node, 4).as_str() {
            "Add" => self.weight(&inputs[0]).iter().zip(self.weight(&inputs[1])).map(|(a, b)| a + b).collect(),
            "Reshape" => self.weight(&inputs[0]),
            "Transpose" => {
                assert_eq!(ints(&all(node, 5)[0], 8), [1, 0]);
                let codes = &texts(self.producer(&inputs[0]).unwrap(), 1)[0];
                transpose(&self.weight(&inputs[0]), self.tensors[codes].1[1])
            }
            "DequantizeLinear" => {
                let (dims, scales) = (&self.tensors[&inputs[0]].1, self.numbers(&inputs[1]));
                let scale_dims = &self.tensors[&inputs[1]].1;
                let axis = attributes.get("axis").map_or(1, |&axis| axis as usize);
                let block = attributes.get("block_size").map(|&block| block as usize);
                let scale = |i: usize| {
                    let index = |axis: usize| i / dims[axis + 1..].iter().product::<usize>() % dims[axis];
                    match (scale_dims.len(), block) {
                        (0, None) => scales[0],
                        (1, None) => scales[index(axis)],
                        (_, Some(block)) => {
                            let at = |a: usize| if a == axis { index(a) / block } else { index(a) };
                            scales[(0..dims.len()).fold(0, |n, a| n * scale_dims[a] + at(a))]
                        }
                        other => panic!("{other:?}"),
                    }
                };
                self.numbers(&inputs[0]).iter().enumerate().map(|(i, code)| code * scale(i)).collect()
            }
            other => panic!("{other}"),
        }
    }

    /// The weights [outputs][inputs] of a `MatMulNBits`.
    fn nbits(&self, node: &[u8]) -> Vec<f32> {
        let (inputs, attributes) = (texts(node, 1), Self::attributes(node));
        let [n, k, block] = ["N", "K", "block_size"].map(|name| attributes[name] as usize);
        assert_eq!((text(node, 7), attributes["bits"]), ("com.microsoft".to_owned(), 2));
        let (data_type, dims, codes) = &self.tensors[&inputs[1]];
        let blocks = k.div_ceil(block);
        assert_eq!((*data_type, &dims[..]), (UINT8, &[n, blocks, block / 4][..]));
        let scales = self.numbers(&inputs[2]);
        let code = |row: usize, at: usize| {
            let byte = codes[row * blocks * block / 4 + at / 4];
            f32::from(byte >> (2 * (at % 4)) & 3) - 2.0
        };
        // Zeros fill up the last block.
        (0..n).for_each(|row| (k..blocks * block).for_each(|at| assert_eq!(code(row, at), 0.0)));
        (0..n * k).map(|i| code(i / k, i % k) * scales[i / k * blocks + i % k / block]).collect()
    }
}

// Containers, and exports of them.

struct Packed {
    directory: TempDir,
    container: Container,
}

impl Packed {
    /// What is named `w…` or `….weight` becomes ternary.
    fn new(tensors: &[Made], settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "m.safetensors", tensors)).unwrap();
        let rules = Rules {
            overrides: vec![select::Override { pattern: "*".to_owned(), settings: Settings::parse(settings).unwrap() }],
            include: vec!["w*".to_owned(), "*.weight".to_owned()],
            exclude: vec!["d*".to_owned()],
            ..Rules::default()
        };
        let (plan, out) = (Plan::new(&checkpoint, &rules).unwrap(), directory.path().join("m.twn"));
        convert::pack(&checkpoint, &plan, &out, &convert::Options::default()).unwrap();
        let container = Container::open(out).unwrap();
        Self { directory, container }
    }

    fn with(&self, model: &[u8]) -> Options {
        let path = self.directory.path().join("model.onnx");
        std::fs::write(&path, model).unwrap();
        Options { into: Some(path), ..Options::default() }
    }

    fn plan(&self, to: &str, options: &Options) -> twn_pack::Result<Export<'_>> {
        export::format(to)?.export(&self.container, options)
    }

    fn export(&self, to: &str, options: &Options) -> Vec<u8> {
        let (export, out) = (self.plan(to, options).unwrap(), self.directory.path().join("out.onnx"));
        let options = export::WriteOptions { overwrite: true, ..Default::default() };
        let length = export::write(&self.container, &export, &out, &options).unwrap();
        let bytes = std::fs::read(out).unwrap();
        assert_eq!((length, export.len()), (bytes.len() as u64, bytes.len() as u64));
        bytes
    }

    fn refusal(&self, to: &str, options: &Options) -> String {
        self.plan(to, options).and_then(|export| export.check()).unwrap_err().to_string()
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let array = match self.container.by_name(name).unwrap() {
            Tensor::Ternary(ternary) => ternary.to_array(),
            Tensor::Int8(int8) => int8.to_array(),
            Tensor::Dense(_) => panic!("{name} is dense"),
        };
        array.unwrap().iter().copied().collect()
    }
}

fn transpose<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn golden(layout: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(fixture("trits256.json")).unwrap();
    let hex = serde_json::from_str::<BTreeMap<String, String>>(&text).unwrap()[layout].clone();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// The golden vectors' 256 trits, times a half.
fn golden_weights() -> Vec<f64> {
    let mut s = 1u32;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from((s >> 16) % 3) - 1.0
    };
    (0..256).map(|_| 0.5 * next()).collect()
}

/// A product with `w`.
fn product(op: &str, shape: &[usize], attributes: &[Vec<u8>]) -> Vec<u8> {
    model(20, &graph(&[node(op, &["x", "w"], "y", attributes)], &[weights("w", shape)]))
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
        let codes = (INT2, shape.clone(), golden("lsb_first_twos_complement"));
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
        assert_eq!(out.tensors["w.codes"].2, golden("lsb_first_t_plus_2"), "{shape:?} {settings}");
        assert!(out.numbers("w.scales").iter().all(|&scale| scale == 0.5), "{shape:?} {settings}");
        assert_eq!(out.nbits(&out.nodes[0]), packed.values("w"));
    }
}

/// Odd sizes, any axis, every granularity, and every number of planes: by the operations' definitions the weight is
/// what the container says, bit for bit.
#[test]
fn decoded_as_defined_it_is_the_container() {
    let shapes = [vec![5, 7], vec![3, 5, 3, 3], vec![6, 4, 5], vec![4, 64], vec![1, 1]];
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
    assert!(error.contains("`w`: the model has no initializer of that name"), "{error}");
}

/// Both exporters give transposed weights names of their own.
#[test]
fn pytorch_models_are_recognised() {
    let shapes = [("blocks.0.0", [12, 8]), ("blocks.0.2", [8, 12]), ("blocks.1.0", [12, 8]), ("blocks.1.2", [8, 12])];
    let mut tensors = Vec::new();
    for (i, (module, shape)) in shapes.iter().enumerate() {
        tensors.push(Made::gaussian(&format!("{module}.weight"), Dtype::F32, shape, i as u64));
    }
    tensors.push(Made::gaussian("blocks.0.0.bias", Dtype::F32, &[12], 10));
    tensors.push(Made::gaussian("blocks.1.0.bias", Dtype::F32, &[12], 11));
    tensors.push(Made {
        name: "blocks.num_batches_tracked".to_owned(),
        dtype: Dtype::I64,
        shape: vec![],
        data: vec![0; 8],
    });
    let packed = Packed::new(&tensors, "");
    for (file, names) in [
        ("linear-script.onnx", ["onnx::MatMul_21", "onnx::MatMul_22", "onnx::MatMul_23", "onnx::MatMul_24"]),
        ("linear-dynamo.onnx", ["val_0", "val_2", "val_3", "val_5"]),
    ] {
        let options = Options { into: Some(fixture(&format!("foreign/onnx/{file}"))), ..Options::default() };
        let lines = packed.plan("onnx", &options).unwrap().tensors;
        let becomes = |tensor: &str| lines.iter().find(|line| line.tensor == tensor).unwrap().becomes.clone().unwrap();
        assert!(becomes("blocks.num_batches_tracked").starts_with("nothing"));
        assert_eq!(becomes("blocks.1.0.bias"), "FLOAT [12]");
        let (int2, nbits) = (read(&packed.export("onnx", &options)), read(&packed.export("onnx-nbits", &options)));
        for (name, (module, shape)) in names.iter().zip(shapes) {
            let weight = format!("{module}.weight");
            let [rows, columns] = shape;
            let expected = format!("INT2 [{columns}, {rows}] and scales [{rows}] along axis 1 as `{name}`, transposed");
            assert_eq!(becomes(&weight), expected);
            assert_eq!(int2.weight(name), transpose(&packed.values(&weight), columns), "{file} {weight}");
            let node = nbits
                .nodes
                .iter()
                .find(|node| {
                    texts(node, 1).contains(&format!("{name}.codes"))
                        || texts(node, 1).contains(&format!("{name}.turned.codes"))
                })
                .unwrap();
            assert_eq!(nbits.nbits(node), packed.values(&weight), "{file} {weight}");
        }
        let bias = packed.container.by_name("blocks.1.0.bias").unwrap();
        let Tensor::Dense(bias) = bias else { panic!("{bias:?}") };
        assert_eq!(int2.tensors["blocks.1.0.bias"].2, bias.data);
        // The other way: the same files as checkpoints.
        let checkpoint = import::open(fixture(&format!("foreign/onnx/{file}"))).unwrap();
        assert_eq!(checkpoint.by_name(names[0]).unwrap().shape, [8, 12]);
    }
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
        }
        (planned, refused) => panic!("{planned:?} {refused:?}"),
    }
}

// Import.

fn import(directory: &TempDir, file: &[u8]) -> twn_pack::Result<Checkpoint> {
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
    let constant = bytes(5, [bytes(1, "value"), bytes(5, raw("", FLOAT, &[1, 1], &[0; 4]))].concat());
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
        assert_eq!((tensor.dtype, tensor.shape, tensor.data), (*dtype, *shape, &data[..]), "{name}");
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
        (b"{\"a\": 1}".to_vec(), "it should be the protobuf"),
        (safetensors(), "it should be the protobuf"),
        ([int(1, 8), bytes(7, graph(&[], &[]))].concat(), "0 operator sets"),
        (model(20, &deep), "inside each other more than"),
        (model(20, &graph(&[], &[tensor("", FLOAT, &[1], &[])])), "has no name"),
        (model(20, &graph(&[], &[tensor("w", FLOAT, &[1], &int(1, -3))])), "dimension of -3"),
        (model(20, &graph(&[], &[raw("w", FLOAT, &[3], &[0; 8])])), "needs 12 bytes"),
        (model(20, &graph(&[], &[raw("w", FLOAT, &[1 << 40, 1 << 40], &[0; 8])])), "more than 2^63 bytes"),
        (model(20, &graph(&[], &[tensor("w", FLOAT, &[2], &bytes(4, [0; 7]))])), "needs 8 bytes"),
        (model(20, &graph(&[], &[tensor("w", FLOAT, &[1; 17], &bytes(9, [0; 4]))])), "rank is 17"),
        (model(20, &graph(&[], &[weights("w", &[1]), weights("w", &[1])])), "`w` is in both"),
        (model(20, &graph(&[], &[tensor("w", 7, &[1], &bytes(7, [0xff; 11]))])), "longer than ten bytes"),
        (model(20, &graph(&[], &[tensor("w", 7, &[2], &int(7, 1))])), "needs 16 bytes"),
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
    }
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
            checkpoint.tensors().for_each(|t| assert_eq!(t.data.len() * 8, t.elements() * t.dtype.bitsize()));
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
        (vec![6, 40], "scale-dtype=f16", &conv, Some(half(&[6, 40]))),
    ] {
        let case = format!("{shape:?} {settings}");
        let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &shape, 5)], settings);
        let initializer = initializer.unwrap_or_else(|| weights("w", &shape));
        let exported =
            packed.export("onnx", &packed.with(&model(25, &graph(std::slice::from_ref(node), &[initializer]))));
        let checkpoint = import(&packed.directory, &exported).unwrap();
        assert_eq!((checkpoint.len(), checkpoint.warnings().len()), (1, 0), "{case}: {:?}", checkpoint.warnings());
        let (_, back) = back(&packed, &exported);
        assert_same(&packed.container.by_name("w").unwrap(), &back.by_name("w").unwrap(), &case);
    }
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
    let file = model(25, &graph(&[decoder(&["c", "s"], std::slice::from_ref(&axis))], &[codes(0x20), scales(2)]));
    let checkpoint = import(&directory, &file).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let error = convert::pack(&checkpoint, &plan, &directory.path().join("o.twn"), &convert::Options::default());
    assert!(error.unwrap_err().to_string().contains("weight 2 of filter 1 is -2"));
    // Bytes that are not there.
    let short = raw("c", INT2, &[2, 4], &[0x4d]);
    let file = model(25, &graph(&[decoder(&["c", "s"], std::slice::from_ref(&axis))], &[short, scales(2)]));
    let error = import(&directory, &file).unwrap_err().to_string();
    assert!(error.contains("`c`: 1 bytes of INT2, shape [2, 4] needs 2"), "{error}");
    let zero = raw("z", INT2, &[2], &[0]);
    for (nodes, scales) in [
        // A zero point, another number of scales, a block of nothing, scales that somebody else needs, two decoders.
        (vec![decoder(&["c", "s", "z"], std::slice::from_ref(&axis))], scales(2)),
        (vec![decoder(&["c", "s"], std::slice::from_ref(&axis))], scales(3)),
        (vec![decoder(&["c", "s"], &[axis.clone(), attribute_int("block_size", -1)])], scales(2)),
        (vec![decoder(&["c", "s"], &[attribute_int("axis", 7)])], scales(2)),
        (vec![decoder(&["c", "s"], std::slice::from_ref(&axis)), node("Relu", &["s"], "y", &[])], scales(2)),
        (vec![decoder(&["c", "s"], std::slice::from_ref(&axis)), node("Relu", &["c"], "y", &[])], scales(2)),
        (vec![], scales(2)),
    ] {
        let checkpoint = import(&directory, &model(25, &graph(&nodes, &[codes(0x01), scales, zero.clone()]))).unwrap();
        assert!((0..checkpoint.len()).all(|i| checkpoint.ternary(i).is_none()), "{:?}", checkpoint.warnings());
        assert!(checkpoint.warnings()[0].contains("`c` (INT2)"), "{:?}", checkpoint.warnings());
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
    let by_row = attribute_int("transB", 1);
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
