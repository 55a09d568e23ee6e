//! A model's file with some initializers and nodes replaced: which bytes stay, which are new. Not here: what the new
//! ones say.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::find::Names;
use crate::MappedFile;
use crate::export::Part;
use crate::onnx::{Externals, Fields, Initializer, Message, Model, data_type, dtype, names_default_domain};

/// Bytes that a protobuf message has at most.
const LARGEST: u64 = i32::MAX as u64;

/// The IR version that has INT2, and the opset that decodes it.
const INT2: (i64, i64) = (13, 25);

/// New nodes and tensors.
#[derive(Debug, Default)]
pub(super) struct New<'a> {
    /// As fields of a graph.
    pub nodes: Vec<u8>,
    tensors: Vec<(Message, Part<'a>)>,
    /// What the new values are called.
    names: Vec<String>,
}

/// What is replaced.
#[derive(Debug, Default)]
pub(super) struct Rewrite<'a> {
    /// Nodes by where they begin, as the fields that replace them.
    pub nodes: BTreeMap<usize, Vec<u8>>,
    /// The opset that the new nodes need.
    pub opset: i64,
    /// Whether they need onnxruntime's own operations.
    pub microsoft: bool,
    /// Values that there are no more.
    pub gone: BTreeSet<String>,
    /// New nodes that stand before all others.
    first: Vec<u8>,
    /// Initializers by where they begin, as what replaces them.
    tensors: BTreeMap<usize, Vec<(Message, Part<'a>)>>,
    names: BTreeSet<String>,
    /// Bytes of the new tensors' data.
    pub bytes: u64,
    int2: bool,
}

/// Adds an attribute that is a number.
pub(super) fn attribute(node: Message, name: &str, value: i64) -> Message {
    node.message(5, &Message::default().bytes(1, name).int(3, value).int(20, 2))
}

/// Adds an attribute that is a list of numbers.
pub(super) fn attribute_list(node: Message, name: &str, values: &[i64]) -> Message {
    let list = values.iter().fold(Message::default().bytes(1, name), |list, &value| list.int(8, value));
    node.message(5, &list.int(20, 7))
}

impl<'a> New<'a> {
    /// Adds a node; `attributes` adds those.
    pub fn node(
        &mut self,
        op: &str,
        domain: &str,
        inputs: &[&str],
        output: &str,
        attributes: impl Fn(Message) -> Message,
    ) {
        let node = inputs.iter().fold(Message::default(), |node, input| node.bytes(1, input));
        let node = node.bytes(2, output).bytes(3, format!("{output}.{op}")).bytes(4, op);
        let node = attributes(if domain.is_empty() { node } else { node.bytes(7, domain) });
        self.nodes.extend(Message::default().message(1, &node).0);
        self.names.push(output.to_owned());
    }

    /// Adds the nodes for a sum, which are called `name` and a number; none where there is one summand.
    pub fn sum(&mut self, name: &str, summands: &[String], output: &str) {
        for i in 1..summands.len() {
            let before = if i == 1 { summands[0].clone() } else { format!("{name}.{}", i - 1) };
            let after = if i + 1 == summands.len() { output.to_owned() } else { format!("{name}.{i}") };
            self.node("Add", "", &[&before, &summands[i]], &after, |message| message);
        }
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, dims: &[u64], data_type: i32, data: Part<'a>) {
        let tensor = dims.iter().fold(Message::default(), |tensor, &dim| tensor.int(1, dim.cast_signed()));
        self.tensors.push((tensor.int(2, data_type.into()).bytes(8, name), data));
        self.names.push(name.to_owned());
    }
}

impl<'a> Rewrite<'a> {
    /// Puts nodes and tensors in place of an initializer.
    ///
    /// # Errors
    /// A new name that is taken.
    pub fn replace(
        &mut self,
        model: &Model<'_>,
        names: &Names<'_>,
        number: usize,
        new: New<'a>,
        opset: i64,
    ) -> Result<(), String> {
        let initializer = &model.initializers[number];
        let New { nodes, tensors, names: called } = new;
        for name in called.iter().filter(|name| *name != initializer.name) {
            if names.is_taken(name) || !self.names.insert(name.clone()) {
                return Err(format!("it needs the name `{name}`, which the model has already; rename that"));
            }
        }
        self.int2 |= opset == INT2.1;
        self.opset = self.opset.max(opset);
        self.first.extend(nodes);
        self.bytes += tensors.iter().map(|(_, part)| part.len()).sum::<u64>();
        self.tensors.insert(initializer.field.start, tensors);
        self.gone.insert(initializer.name.to_owned());
        Ok(())
    }

    /// Gives an initializer other data; the rest of it stays.
    ///
    /// # Errors
    /// An initializer that cannot be read.
    pub fn replace_data(&mut self, model: &Model<'_>, number: usize, data: Part<'a>) -> Result<(), String> {
        let initializer = &model.initializers[number];
        self.bytes += data.len();
        self.tensors.insert(initializer.field.start, vec![(without_data(model, initializer)?, data)]);
        Ok(())
    }

    /// The bytes of the new file, and warnings. `opset` is what the model has to be of.
    ///
    /// # Errors
    /// A file over 2 GiB, or external data that are not where they should be.
    pub fn finish(
        mut self,
        file: &MappedFile,
        model: &Model<'_>,
        opset: i64,
    ) -> Result<(Vec<Part<'a>>, Vec<String>), String> {
        let mut warnings = Vec::new();
        let replaced = self.bytes + (file.len() as u64).saturating_sub(self.removed(model));
        let mut beside = self.external(file, model)?;
        let external: u64 = beside.iter().map(|(.., part)| part.len()).sum();
        if replaced.saturating_add(external) > LARGEST - (1 << 20) && external > 0 {
            beside.clear();
            warnings.push(
                "with its external data the model would be over 2 GiB: they stay in their files, which have to lie \
                 beside the new one too"
                    .to_owned(),
            );
        }
        for (start, message, part) in beside {
            self.tensors.insert(start, vec![(message, part)]);
        }
        let ir_version = self.ir_version(model);
        let graph = self.graph(file, model)?;
        let length: u64 = graph.iter().map(Part::len).sum();
        let (mut parts, mut graph) = (Parts::new(file), Some(graph));
        for field in Fields::new(file, 0..file.len()) {
            let field = field?;
            match field.number {
                1 => parts.new_bytes(Message::default().int(1, ir_version).0),
                8 if opset > model.opset() && is_default(file, field.bytes()?)? => {
                    parts.new_bytes(Message::default().message(8, &imports("", opset)).0);
                }
                7 => {
                    let mut begin = Message::default();
                    begin.begin(7, length);
                    parts.new_bytes(begin.0);
                    graph.take().into_iter().flatten().for_each(|part| parts.add(part));
                }
                _ => parts.keep(field.range),
            }
        }
        if self.microsoft && !model.opsets.iter().any(|(domain, _)| *domain == "com.microsoft") {
            parts.new_bytes(Message::default().message(8, &imports("com.microsoft", 1)).0);
        }
        let parts = parts.finish();
        let total: u64 = parts.iter().map(Part::len).sum();
        if total > LARGEST {
            return Err(format!(
                "the new file would have {total} bytes, protobuf allows {LARGEST}; keep fewer tensors dense, or split \
                 the model"
            ));
        }
        Ok((parts, warnings))
    }

    fn ir_version(&self, model: &Model<'_>) -> i64 {
        // From 4 on, initializers need not be inputs; 9 goes with opset 19 and 20.
        let needed = match (self.int2, self.opset) {
            (true, _) => INT2.0,
            (_, 1..) => 9,
            _ if self.microsoft => 4,
            _ => 0,
        };
        model.ir_version.max(needed)
    }

    /// Bytes of the file that are replaced.
    fn removed(&self, model: &Model<'_>) -> u64 {
        let initializers = model.initializers.iter();
        initializers.filter(|i| self.tensors.contains_key(&i.field.start)).map(|i| i.field.len() as u64).sum()
    }

    /// The external data of initializers that stay, as they would be in the file.
    fn external<'f>(&self, file: &MappedFile, model: &Model<'f>) -> Result<Vec<(usize, Message, Part<'a>)>, String> {
        let (mut externals, mut found) = (Externals::of(file.path()), Vec::new());
        for initializer in model.initializers.iter().filter(|i| !self.tensors.contains_key(&i.field.start)) {
            let bits = match initializer.data_type {
                data_type::UINT4 | data_type::INT4 | data_type::FLOAT4E2M1 => Some(4),
                data_type::UINT2 | data_type::INT2 => Some(2),
                data_type::COMPLEX128 => Some(128),
                other => dtype(other).map(|dtype| dtype.bitsize() as u64),
            };
            let bytes = bits.and_then(|bits| Some(initializer.elements()?.checked_mul(bits)?.div_ceil(8)));
            if let Some((file, range)) = externals.find(initializer, bytes)? {
                let message = without_data(model, initializer)?;
                found.push((initializer.field.start, message, Part::of_file(&file, range)));
            }
        }
        Ok(found)
    }

    fn graph(&mut self, file: &MappedFile, model: &Model<'_>) -> Result<Vec<Part<'a>>, String> {
        let mut parts = Parts::new(file);
        parts.new_bytes(std::mem::take(&mut self.first));
        for field in Fields::new(file, model.graph.clone()) {
            let field = field?;
            let start = field.range.start;
            let gone = |name: Option<&str>| name.is_some_and(|name| self.gone.contains(name));
            match field.number {
                1 if self.nodes.contains_key(&start) => parts.new_bytes(self.nodes.remove(&start).unwrap_or_default()),
                5 if self.tensors.contains_key(&start) => {
                    for (message, data) in self.tensors.remove(&start).into_iter().flatten() {
                        let mut raw = Message::default();
                        raw.begin(9, data.len());
                        let length = (message.0.len() + raw.0.len()) as u64 + data.len();
                        let mut begin = Message::default();
                        begin.begin(5, length);
                        parts.new_bytes([begin.0, message.0, raw.0].concat());
                        parts.add(data);
                    }
                }
                // Inputs that an initializer was the default of, and the types of values that there are no more.
                11 if gone(name_of(file, field.bytes()?)?) => {}
                13 if gone(name_of(file, field.bytes()?)?) => {}
                _ => parts.keep(field.range),
            }
        }
        Ok(parts.finish())
    }
}

/// The message of an initializer but for its data.
fn without_data(model: &Model<'_>, initializer: &Initializer<'_>) -> Result<Message, String> {
    let mut message = Message::default();
    for field in Fields::new(model.file, initializer.message.clone()) {
        let field = field?;
        if !matches!(field.number, 4..=7 | 9..=11 | 13 | 14) {
            message.0.extend(&model.file[field.range]);
        }
    }
    Ok(message)
}

fn imports(domain: &str, version: i64) -> Message {
    let message = Message::default();
    if domain.is_empty() { message.int(2, version) } else { message.bytes(1, domain).int(2, version) }
}

fn is_default(file: &[u8], opset: Range<usize>) -> Result<bool, String> {
    Ok(names_default_domain(name_of(file, opset)?.unwrap_or_default()))
}

/// The string in the first field.
fn name_of(file: &[u8], message: Range<usize>) -> Result<Option<&str>, String> {
    let mut name = None;
    for field in Fields::new(file, message) {
        let field = field?;
        if field.number == 1 {
            name = Some(field.text(file)?);
        }
    }
    Ok(name)
}

/// Parts in order; what is kept in one piece stays one.
struct Parts<'a, 'f> {
    file: &'f MappedFile,
    parts: Vec<Part<'a>>,
    kept: Range<usize>,
    bytes: Vec<u8>,
}

impl<'a, 'f> Parts<'a, 'f> {
    fn new(file: &'f MappedFile) -> Self {
        Self { file, parts: Vec::new(), kept: 0..0, bytes: Vec::new() }
    }

    fn keep(&mut self, range: Range<usize>) {
        if !self.bytes.is_empty() {
            self.parts.push(Part::bytes(std::mem::take(&mut self.bytes)));
        }
        if self.kept.end == range.start && !self.kept.is_empty() {
            self.kept.end = range.end;
        } else {
            self.flush();
            self.kept = range;
        }
    }

    fn new_bytes(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            if self.bytes.is_empty() {
                self.flush();
            }
            self.bytes.extend(bytes);
        }
    }

    fn add(&mut self, part: Part<'a>) {
        self.flush();
        if !part.is_empty() {
            self.parts.push(part);
        }
    }

    fn flush(&mut self) {
        if !self.bytes.is_empty() {
            self.parts.push(Part::bytes(std::mem::take(&mut self.bytes)));
        }
        if !self.kept.is_empty() {
            self.parts.push(Part::of_file(self.file, std::mem::take(&mut self.kept)));
        }
    }

    fn finish(mut self) -> Vec<Part<'a>> {
        self.flush();
        self.parts
    }
}
