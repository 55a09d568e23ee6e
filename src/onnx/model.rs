//! A model: its versions, the initializers and nodes of its graph, and the names in it. Not here: the data
//! themselves, shapes or types of what flows between nodes.

use std::collections::BTreeSet;
use std::ops::Range;

use super::data_type;
use super::wire::{Field, Fields, Value};

/// Initializers or nodes, at most.
const ENTRIES: usize = 1 << 20;

/// Inputs, outputs and attributes of all nodes, and the integers in them, at most.
const PARTS: usize = 1 << 22;

/// Graphs inside each other, at most.
const DEPTH: usize = 32;

/// A model, borrowed from its file.
#[derive(Debug)]
pub struct Model<'f> {
    /// All of it.
    pub file: &'f [u8],
    /// The version of the file format.
    pub ir_version: i64,
    /// Operator sets: domain, version.
    pub opsets: Vec<(&'f str, i64)>,
    /// The graph's bytes.
    pub graph: Range<usize>,
    /// The tensors of the main graph, in the order of the file.
    pub initializers: Vec<Initializer<'f>>,
    /// Its operations, in the order of the file.
    pub nodes: Vec<Node<'f>>,
    /// Names of the graph's inputs, each with its whole field.
    pub inputs: Vec<(&'f str, Range<usize>)>,
    /// Names of its outputs.
    pub outputs: Vec<&'f str>,
    /// Every name that a value has, anywhere.
    pub names: BTreeSet<&'f str>,
    /// Nodes inside other nodes' graphs.
    pub nested: Vec<Node<'f>>,
    /// Names of tensors that are initializers of a nested graph, sparse, or constants that nodes carry.
    pub elsewhere: Vec<&'f str>,
    /// What else carries weights: other nodes, by their outputs, and nodes in the model's functions.
    pub carried: Vec<&'f str>,
    /// Whether it has functions of its own.
    pub functions: bool,
    /// Whether it has graphs for training.
    pub training: bool,
    /// What its nodes consist of, counted.
    parts: usize,
}

/// A tensor of the graph.
#[derive(Debug)]
pub struct Initializer<'f> {
    /// Its name, which is not empty.
    pub name: &'f str,
    /// Its shape, outermost dimension first.
    pub dims: Vec<u64>,
    /// One of [`data_type`](super::data_type), or another number.
    pub data_type: i32,
    /// Where its data are.
    pub data: Data<'f>,
    /// Its message in the file.
    pub message: Range<usize>,
    /// The same with what stands in front of it.
    pub field: Range<usize>,
}

/// Where a tensor's data are.
#[derive(Debug, Clone)]
pub enum Data<'f> {
    /// In the file, little-endian.
    Here(Range<usize>),
    /// In a file beside it.
    External {
        /// The file's path from the model's directory; [`Externals`](super::Externals) checks it.
        location: &'f str,
        /// Where they begin.
        offset: u64,
        /// How many bytes, where it says so.
        length: Option<u64>,
    },
    /// As numbers in fields of their own, which have to be decoded.
    Fields,
}

/// An operation.
#[derive(Debug)]
pub struct Node<'f> {
    /// Its name; often empty.
    pub name: &'f str,
    /// What it does: `MatMul`, …
    pub op: &'f str,
    /// Empty for the operations of ONNX itself.
    pub domain: &'f str,
    /// The values that go in; an empty name is one that is left out.
    pub inputs: Vec<&'f str>,
    /// The values that come out.
    pub outputs: Vec<&'f str>,
    /// Those of its attributes that are numbers.
    pub attributes: Vec<Attribute<'f>>,
    /// What PyTorch's exporter says of the module that it comes from.
    pub scopes: Option<&'f str>,
    /// The whole field in the file.
    pub field: Range<usize>,
}

/// An attribute that is a number or several.
#[derive(Debug, Default)]
pub struct Attribute<'f> {
    /// Its name.
    pub name: &'f str,
    /// Where it is an integer.
    pub int: Option<i64>,
    /// Where it is a float.
    pub float: Option<f32>,
    /// Where it is a list of integers.
    pub ints: Vec<i64>,
}

/// Whether that domain is ONNX's own.
pub fn names_default_domain(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

impl<'f> Model<'f> {
    /// Reads everything but the tensors' data.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn parse(file: &'f [u8]) -> Result<Self, String> {
        let (mut model, mut functions) = (Self::new(file), Vec::new());
        let graphs = model
            .read_fields(&mut functions)
            .map_err(|message| format!("{message}; it should be the protobuf of an ONNX model"))?;
        if graphs != 1 || model.ir_version < 1 || !model.opsets.iter().any(|(domain, _)| names_default_domain(domain)) {
            return Err(format!(
                "it has {graphs} graphs, IR version {} and {} operator sets, should have one graph, a version and ONNX's \
                 own operators; is it an ONNX model?",
                model.ir_version,
                model.opsets.len()
            ));
        }
        let graph = model.graph.clone();
        model.read_graph(graph, 0)?;
        functions.into_iter().try_for_each(|function| model.read_function(function))?;
        Ok(model)
    }

    fn new(file: &'f [u8]) -> Self {
        Self {
            file,
            ir_version: 0,
            opsets: Vec::new(),
            graph: 0..0,
            initializers: Vec::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            names: BTreeSet::new(),
            nested: Vec::new(),
            elsewhere: Vec::new(),
            carried: Vec::new(),
            functions: false,
            training: false,
            parts: 0,
        }
    }

    /// Reads what stands beside the graph; returns how many graphs there are.
    fn read_fields(&mut self, functions: &mut Vec<Range<usize>>) -> Result<usize, String> {
        let (file, mut graphs) = (self.file, 0);
        for field in Fields::new(file, 0..file.len()) {
            let field = field?;
            match field.number {
                1 => self.ir_version = field.int()?,
                7 => {
                    self.graph = field.bytes()?;
                    graphs += 1;
                }
                8 => self.opsets.push(opset(file, field.bytes()?)?),
                20 => self.training = true,
                25 => {
                    self.functions = true;
                    functions.push(field.bytes()?);
                }
                _ => {}
            }
            if self.opsets.len().max(functions.len()) > ENTRIES {
                return Err("it has over a million operator sets or functions".to_owned());
            }
        }
        Ok(graphs)
    }

    /// The version of ONNX's own operators.
    pub fn opset(&self) -> i64 {
        let own = self.opsets.iter().filter(|(domain, _)| names_default_domain(domain));
        own.map(|&(_, version)| version).max().unwrap_or_default()
    }

    fn read_graph(&mut self, graph: Range<usize>, depth: usize) -> Result<(), String> {
        if depth > DEPTH {
            return Err(format!("graphs stand inside each other more than {DEPTH} times"));
        }
        let file = self.file;
        for field in Fields::new(file, graph) {
            let field = field?;
            match field.number {
                1 => self.read_node(&field, depth)?,
                5 => {
                    let initializer = Initializer::parse(file, &field)?;
                    self.names.insert(initializer.name);
                    if depth == 0 { self.initializers.push(initializer) } else { self.elsewhere.push(initializer.name) }
                }
                11 | 12 => {
                    let name = text_in(file, field.bytes()?, 1)?;
                    self.names.insert(name);
                    match (depth, field.number) {
                        (0, 11) => self.inputs.push((name, field.range)),
                        (0, 12) => self.outputs.push(name),
                        _ => {}
                    }
                }
                15 => {
                    let values = Fields::new(file, field.bytes()?).find(|f| !matches!(f, Ok(f) if f.number != 1));
                    let name = values.transpose()?.map_or(Ok(""), |values| text_in(file, values.bytes()?, 8))?;
                    self.names.insert(name);
                    self.elsewhere.push(name);
                }
                _ => {}
            }
            self.check_entries()?;
        }
        Ok(())
    }

    fn check_entries(&self) -> Result<(), String> {
        let entries = [self.initializers.len(), self.nodes.len(), self.nested.len(), self.elsewhere.len()];
        let entries = entries.into_iter().chain([self.inputs.len(), self.outputs.len(), self.carried.len()]);
        match entries.into_iter().any(|count| count > ENTRIES) {
            true => Err(format!("it has over {ENTRIES} tensors, operations, inputs or outputs")),
            false => Ok(()),
        }
    }

    /// Looks for weights in a function, whose names mean something there only.
    fn read_function(&mut self, function: Range<usize>) -> Result<(), String> {
        for field in Fields::new(self.file, function) {
            let field = field?;
            if field.number == 7 {
                let mut inner = Self { parts: self.parts, ..Self::new(self.file) };
                inner.read_node(&field, 1)?;
                self.parts = inner.parts;
                self.carried.extend(inner.elsewhere.into_iter().chain(inner.carried));
                self.check_entries()?;
            }
        }
        Ok(())
    }

    fn read_node(&mut self, field: &Field, depth: usize) -> Result<(), String> {
        let file = self.file;
        let mut node = Node {
            name: "",
            op: "",
            domain: "",
            inputs: Vec::new(),
            outputs: Vec::new(),
            attributes: Vec::new(),
            scopes: None,
            field: field.range.clone(),
        };
        let mut carries = false;
        for field in Fields::new(file, field.bytes()?) {
            let field = field?;
            self.parts += usize::from(matches!(field.number, 1 | 2 | 5));
            match field.number {
                1 => node.inputs.push(field.text(file)?),
                2 => node.outputs.push(field.text(file)?),
                3 => node.name = field.text(file)?,
                4 => node.op = field.text(file)?,
                7 => node.domain = field.text(file)?,
                5 => {
                    let (attribute, graphs, tensor) = Attribute::parse(file, field.bytes()?)?;
                    self.parts += attribute.ints.len();
                    node.attributes.push(attribute);
                    carries |= tensor;
                    for graph in graphs {
                        self.read_graph(graph, depth + 1)?;
                    }
                }
                9 if text_in(file, field.bytes()?, 1)? == "pkg.torch.onnx.name_scopes" => {
                    node.scopes = Some(text_in(file, field.bytes()?, 2)?);
                }
                _ => {}
            }
            if self.parts > PARTS {
                return Err(format!("its operations have over {PARTS} inputs, outputs and attributes"));
            }
        }
        if names_default_domain(node.domain) {
            node.domain = "";
        }
        if let (true, [output, ..]) = (carries, &node.outputs[..]) {
            if node.op == "Constant" { self.elsewhere.push(output) } else { self.carried.push(output) }
        }
        self.names.extend(&node.outputs);
        if depth == 0 {
            self.nodes.push(node)
        } else {
            self.nested.push(node)
        }
        Ok(())
    }
}

fn opset(file: &[u8], message: Range<usize>) -> Result<(&str, i64), String> {
    let mut version = 0;
    for field in Fields::new(file, message.clone()) {
        let field = field?;
        if field.number == 2 {
            version = field.int()?;
        }
    }
    Ok((text_in(file, message, 1)?, version))
}

/// The string in a field of a message; empty where there is none. Of several the last counts.
fn text_in(file: &[u8], message: Range<usize>, number: u64) -> Result<&str, String> {
    let mut text = "";
    for field in Fields::new(file, message) {
        let field = field?;
        if field.number == number {
            text = field.text(file)?;
        }
    }
    Ok(text)
}

impl<'f> Attribute<'f> {
    /// The attribute, the graphs in it, and whether it has what may be weights.
    fn parse(file: &'f [u8], message: Range<usize>) -> Result<(Self, Vec<Range<usize>>, bool), String> {
        /// What is kept of lists: weights' axes and permutations are short.
        const INTS: usize = 64;
        let (mut attribute, mut graphs, mut tensor, mut floats) = (Self::default(), Vec::new(), false, 0);
        for field in Fields::new(file, message) {
            let field = field?;
            match (field.number, &field.value) {
                (1, _) => attribute.name = field.text(file)?,
                (2, Value::Fixed32(bits)) => attribute.float = Some(f32::from_bits(*bits)),
                (3, _) => attribute.int = Some(field.int()?),
                (5 | 10, _) => tensor |= may_be_weights(file, field.bytes()?)?,
                (7, Value::Bytes(range)) => floats += range.len() / 4,
                (7, _) => floats += 1,
                (6 | 11, _) => graphs.push(field.bytes()?),
                (8, Value::Varint(value)) if attribute.ints.len() < INTS => attribute.ints.push(value.cast_signed()),
                (8, Value::Bytes(range)) => {
                    let room = INTS.saturating_sub(attribute.ints.len());
                    for value in Fields::packed_varints(file, range.clone()).take(room) {
                        attribute.ints.push(value?.cast_signed());
                    }
                }
                _ => {}
            }
        }
        // Of other lists nobody knows whether they are weights.
        let several = floats > 1 && attribute.name == "value_floats";
        Ok((attribute, graphs, tensor || several))
    }
}

impl<'f> Node<'f> {
    /// That number, if the node has it.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name)?.int
    }

    /// The attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&Attribute<'f>> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }
}

/// Whether a tensor is several floats, or codes of several dimensions: no shape, no index and no scalar.
fn may_be_weights(file: &[u8], message: Range<usize>) -> Result<bool, String> {
    use data_type::{BOOL, INT32, INT64, STRING, UINT32, UINT64};
    let (mut dims, mut kind) = (Vec::new(), 0);
    for field in Fields::new(file, message) {
        let field = field?;
        match field.number {
            1 => push_dims(file, &field, &mut dims)?,
            2 => kind = i32::try_from(field.int()?).unwrap_or_default(),
            _ => {}
        }
    }
    let several = !dims.contains(&0) && dims.iter().any(|&dim| dim > 1);
    let floats = super::dtype(kind).is_some_and(crate::dtype::is_float);
    Ok(several && (floats || dims.len() > 1 && ![BOOL, INT32, INT64, STRING, UINT32, UINT64].contains(&kind)))
}

/// Adds to a tensor's shape, which is cut off where no tensor has so many dimensions.
fn push_dims(file: &[u8], field: &Field, dims: &mut Vec<u64>) -> Result<(), String> {
    let most = crate::limits::RANK + 1;
    let left = most.saturating_sub(dims.len());
    match &field.value {
        Value::Varint(value) if left > 0 => dims.push(*value),
        Value::Bytes(range) => {
            for value in Fields::packed_varints(file, range.clone()).take(left) {
                dims.push(value?);
            }
        }
        _ => {}
    }
    Ok(())
}

/// The field that has the numbers of that type, where they are not raw; `None` for types that nobody knows.
fn data_field(kind: i32) -> Option<u64> {
    use data_type::{COMPLEX64, COMPLEX128, DOUBLE, FLOAT, INT2, INT64, STRING, UINT8, UINT32, UINT64};
    Some(match kind {
        FLOAT | COMPLEX64 => 4,
        STRING => 6,
        INT64 => 7,
        DOUBLE | COMPLEX128 => 10,
        UINT32 | UINT64 => 11,
        UINT8..=INT2 => 5,
        _ => return None,
    })
}

/// What a field of a tensor that has to do with its data is called.
fn field_name(number: u64) -> &'static str {
    match number {
        3 => "a segment",
        4 => "float_data",
        5 => "int32_data",
        6 => "string_data",
        7 => "int64_data",
        9 => "raw_data",
        10 => "double_data",
        _ => "uint64_data",
    }
}

impl<'f> Initializer<'f> {
    fn parse(file: &'f [u8], field: &Field) -> Result<Self, String> {
        let message = field.bytes()?;
        let mut initializer = Self {
            name: "",
            dims: Vec::new(),
            data_type: 0,
            data: Data::Here(message.start..message.start),
            message: message.clone(),
            field: field.range.clone(),
        };
        let (mut external, mut entries) = (false, Vec::new());
        // The fields that hold data, and whether their bytes are the little-endian values.
        let (mut holders, mut packed, mut found) = (0usize, None, Vec::new());
        for field in Fields::new(file, message) {
            let field = field?;
            let holds = !matches!(&field.value, Value::Bytes(range) if range.is_empty());
            if holds && matches!(field.number, 3..=7 | 9..=11) && !found.contains(&field.number) {
                found.push(field.number);
            }
            match (field.number, &field.value) {
                (1, _) => push_dims(file, &field, &mut initializer.dims)?,
                (2, _) => initializer.data_type = i32::try_from(field.int()?).unwrap_or_default(),
                (8, _) => initializer.name = field.text(file)?,
                (14, _) => external = field.int()? == 1,
                // location, offset, length, checksum.
                (13, _) if entries.len() < 16 => entries.push(field.bytes()?),
                (4 | 9 | 10, Value::Bytes(range)) => {
                    holders += 1;
                    packed = Some(range.clone());
                }
                (4..=7 | 9..=11, _) => {
                    holders += 2;
                }
                _ => {}
            }
        }
        if initializer.name.is_empty() {
            return Err(format!("the tensor at byte {} has no name", initializer.field.start));
        }
        let name = initializer.name;
        if let Some(&negative) = initializer.dims.iter().find(|&&dim| dim > i64::MAX as u64) {
            return Err(format!("tensor `{name}`: it has a dimension of {}", negative.cast_signed()));
        }
        if let (false, Some(own)) = (external, data_field(initializer.data_type))
            && ![&[][..], &[9][..], &[own][..]].contains(&&found[..])
        {
            let found: Vec<_> = found.into_iter().map(field_name).collect();
            return Err(format!(
                "tensor `{name}`: its data are in {}, those of {} should be in {} or raw_data alone; save the model again",
                found.join(" and "),
                super::type_name(initializer.data_type),
                field_name(own)
            ));
        }
        initializer.data = match (external, holders, packed) {
            (true, ..) => {
                let (mut location, mut offset, mut length) = ("", 0, None);
                for entry in entries {
                    let (key, value) = (text_in(file, entry.clone(), 1)?, text_in(file, entry, 2)?);
                    let number = || {
                        value.parse().map_err(|_| format!("tensor `{name}`: {key} is {value:?}, should be a number"))
                    };
                    match key {
                        "location" => location = value,
                        "offset" => offset = number()?,
                        "length" => length = Some(number()?),
                        _ => {}
                    }
                }
                Data::External { location, offset, length }
            }
            (false, 0, _) => initializer.data,
            (false, 1, Some(range)) => Data::Here(range),
            _ => Data::Fields,
        };
        Ok(initializer)
    }

    /// How many elements; `None` where that overflows.
    pub fn elements(&self) -> Option<u64> {
        let product = self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)))?;
        Some(if self.dims.contains(&0) { 0 } else { product })
    }

    /// Appends what its fields of numbers hold, little-endian.
    ///
    /// # Errors
    /// Fields that hold no numbers of its type, or that cannot be written.
    pub fn decode(&self, file: &[u8], mut write: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
        let bytes = match self.data_type {
            // A byte of several to each number.
            data_type::INT2 | data_type::UINT2 | data_type::INT4 | data_type::UINT4 => 1,
            other => super::dtype(other).map_or(0, |dtype| dtype.bitsize() / 8),
        };
        for field in Fields::new(file, self.message.clone()) {
            let field = field?;
            match (field.number, &field.value) {
                (4, Value::Fixed32(value)) => write(&value.to_le_bytes())?,
                (10, Value::Fixed64(value)) => write(&value.to_le_bytes())?,
                (4 | 9 | 10, Value::Bytes(range)) => write(&file[range.clone()])?,
                (5 | 7 | 11, Value::Varint(value)) => write(&value.to_le_bytes()[..bytes])?,
                (5 | 7 | 11, Value::Bytes(range)) => {
                    for value in Fields::packed_varints(file, range.clone()) {
                        write(&value?.to_le_bytes()[..bytes])?;
                    }
                }
                (4..=7 | 9..=11, other) => {
                    return Err(format!("tensor `{}`: field {} of it is {other:?}", self.name, field.number));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
