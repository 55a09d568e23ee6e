//! Models put together by hand, what they hold by the definition of their operations, and containers to export into
//! them. Not here: what is expected of either direction.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use twn_pack::export::{self, Export, Options};
use twn_pack::{Checkpoint, Container, Plan, Rules, Settings, Tensor, convert, select};

use crate::common::{self, Made};
use crate::wire::*;

pub const FLOAT: i64 = 1;

pub const UINT8: i64 = 2;

pub const INT8: i64 = 3;

pub const FLOAT16: i64 = 10;

pub const DOUBLE: i64 = 11;

pub const INT2: i64 = 26;

/// A tensor without its data.
pub fn tensor(name: &str, data_type: i64, dims: &[usize], data: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|&d| int(1, d as i64)).collect();
    [dims, int(2, data_type), bytes(8, name), data.to_vec()].concat()
}

pub fn raw(name: &str, data_type: i64, dims: &[usize], data: &[u8]) -> Vec<u8> {
    tensor(name, data_type, dims, &bytes(9, data))
}

pub fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Floats that say nothing.
pub fn weights(name: &str, dims: &[usize]) -> Vec<u8> {
    raw(name, FLOAT, dims, &floats(&vec![9.0; dims.iter().product()]))
}

pub fn attribute_int(name: &str, value: i64) -> Vec<u8> {
    bytes(5, [bytes(1, name), int(3, value), int(20, 2)].concat())
}

pub fn attribute_ints(name: &str, values: &[i64]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|&value| int(8, value)).collect();
    bytes(5, [bytes(1, name), values, int(20, 7)].concat())
}

pub fn node(op: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input)).collect();
    [inputs, bytes(2, output), bytes(3, format!("/{output}")), bytes(4, op), attributes.concat()].concat()
}

pub fn value(name: &str) -> Vec<u8> {
    bytes(1, name)
}

pub fn graph(nodes: &[Vec<u8>], initializers: &[Vec<u8>]) -> Vec<u8> {
    let fields = |number, messages: &[Vec<u8>]| messages.iter().flat_map(|m| bytes(number, m)).collect::<Vec<u8>>();
    let ends = [bytes(11, value("x")), bytes(12, value("y"))].concat();
    [fields(1, nodes), bytes(2, "g"), fields(5, initializers), ends].concat()
}

pub fn opset(domain: &str, version: i64) -> Vec<u8> {
    bytes(8, [bytes(1, domain), int(2, version)].concat())
}

pub fn model(opset_version: i64, graph: &[u8]) -> Vec<u8> {
    [int(1, 8), bytes(2, "by hand"), bytes(7, graph), opset("", opset_version)].concat()
}

/// What a test looks at in a model.
pub struct Read {
    pub ir_version: i64,
    pub opsets: BTreeMap<String, i64>,
    pub nodes: Vec<Vec<u8>>,
    pub inputs: Vec<String>,
    /// Data type, shape, raw data.
    pub tensors: BTreeMap<String, (i64, Vec<usize>, Vec<u8>)>,
}

pub fn read(file: &[u8]) -> Read {
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
    pub fn producer(&self, name: &str) -> Option<&Vec<u8>> {
        self.nodes.iter().find(|node| texts(node, 2).contains(&name.to_owned()))
    }

    pub fn ops(&self) -> Vec<String> {
        self.nodes.iter().map(|node| text(node, 4)).collect()
    }

    pub fn attributes(node: &[u8]) -> BTreeMap<String, i64> {
        all(node, 5).iter().filter_map(|a| Some((text(a, 1), ints(a, 3).pop()?))).collect()
    }

    pub fn numbers(&self, name: &str) -> Vec<f32> {
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
    pub fn weight(&self, name: &str) -> Vec<f32> {
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
    pub fn nbits(&self, node: &[u8]) -> Vec<f32> {
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

pub struct Packed {
    pub directory: TempDir,
    pub container: Container,
}

impl Packed {
    /// What is named `w…` or `….weight` becomes ternary.
    pub fn new(tensors: &[Made], settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "m.safetensors", tensors)).unwrap();
        let rules = Rules {
            overrides: vec![select::Override { pattern: "*".to_owned(), settings: Settings::parse(settings).unwrap() }],
            include: vec!["w*".to_owned(), "*.weight".to_owned()],
            exclude: vec!["d*".to_owned()],
            ..Rules::default()
        };
        Self::of(&checkpoint, &rules, directory)
    }

    /// These become ternary.
    pub fn of_names(tensors: &[Made], ternary: &[impl AsRef<str>]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "m.safetensors", tensors)).unwrap();
        let keep = |pattern: &str, keep: &str| {
            let settings = Settings::parse(&format!("keep={keep}")).unwrap();
            select::Override { pattern: pattern.to_owned(), settings }
        };
        let named = ternary.iter().map(|name| keep(name.as_ref(), "ternary"));
        let overrides = [keep("*", "dense")].into_iter().chain(named).collect();
        Self::of(&checkpoint, &Rules { overrides, ..Rules::default() }, directory)
    }

    pub fn of(checkpoint: &Checkpoint, rules: &Rules, directory: tempfile::TempDir) -> Self {
        let (plan, out) = (Plan::new(checkpoint, rules).unwrap(), directory.path().join("m.twn"));
        convert::pack(checkpoint, &plan, &out, &convert::Options::default()).unwrap();
        let container = Container::open(out).unwrap();
        Self { directory, container }
    }

    pub fn with(&self, model: &[u8]) -> Options {
        let path = self.directory.path().join("model.onnx");
        std::fs::write(&path, model).unwrap();
        Options { into: Some(path), ..Options::default() }
    }

    pub fn plan(&self, to: &str, options: &Options) -> twn_pack::Result<Export<'_>> {
        export::format(to)?.export(&self.container, options)
    }

    pub fn export(&self, to: &str, options: &Options) -> Vec<u8> {
        let (export, out) = (self.plan(to, options).unwrap(), self.directory.path().join("out.onnx"));
        let options = export::WriteOptions { overwrite: true, ..Default::default() };
        let length = export::write(&self.container, &export, &out, &options).unwrap();
        let bytes = std::fs::read(out).unwrap();
        assert_eq!((length, export.len()), (bytes.len() as u64, bytes.len() as u64));
        bytes
    }

    pub fn refusal(&self, to: &str, options: &Options) -> String {
        self.plan(to, options).and_then(|export| export.check()).unwrap_err().to_string()
    }

    pub fn values(&self, name: &str) -> Vec<f32> {
        let array = match self.container.by_name(name).unwrap() {
            Tensor::Ternary(ternary) => ternary.to_array(),
            Tensor::Int8(int8) => int8.to_array(),
            Tensor::Dense(_) => panic!("{name} is dense"),
        };
        array.unwrap().iter().copied().collect()
    }
}

pub fn transpose<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A product with `w`.
pub fn product(op: &str, shape: &[usize], attributes: &[Vec<u8>]) -> Vec<u8> {
    model(20, &graph(&[node(op, &["x", "w"], "y", attributes)], &[weights("w", shape)]))
}
