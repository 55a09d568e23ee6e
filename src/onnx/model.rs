//! A model: its versions, the initializers and nodes of its graph, and the names in it. Not here: the data
//! themselves, shapes or types of what flows between nodes.

use std::collections::BTreeSet;
use std::ops::Range;

use super::initializer::{Initializer, may_be_weights};
use super::wire::{Field, Fields, Value, text_in};

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
            // What an attribute is where no node says it.
            if field.number == 11 {
                let (attribute, _, carries) = Attribute::parse(self.file, field.bytes()?)?;
                self.carried.extend(carries.then_some(attribute.name));
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
                (22 | 23, _) => tensor = true,
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
