//! Which initializer is which tensor of the container, and which nodes use it how. Not here: what becomes of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::onnx::{Initializer, Model, Node};

/// A model's names.
#[derive(Debug)]
pub(super) struct Names<'m> {
    model: &'m Model<'m>,
    by_name: BTreeMap<&'m str, usize>,
    /// Node and number of the input, of the main graph.
    uses: BTreeMap<&'m str, Vec<(usize, usize)>>,
    /// The same of nested graphs.
    nested: BTreeMap<&'m str, Vec<(&'m Node<'m>, usize)>>,
    /// What nested graphs use, and the graph's outputs.
    elsewhere: BTreeSet<&'m str>,
    /// Whether the model rounds what goes through it, so that a runtime may compute in whole numbers.
    pub quantizes: bool,
    /// The node of the main graph that a value comes from.
    makers: BTreeMap<&'m str, usize>,
    /// The initializers that are factors of the `MatMul`, or rows of the `Gather`, of a PyTorch module; `None` where it is not one alone.
    modules: BTreeMap<String, Option<usize>>,
}

/// How PyTorch's exporters leave weights and their names alone.
pub(super) const WITH_NAMES: &str = "with torch.onnx.export(…, dynamo=True, optimize=False), or (dynamo=False) \
                                     do_constant_folding=False and training=TrainingMode.PRESERVE";

/// An initializer that a tensor stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found {
    /// Its number.
    pub initializer: usize,
    /// Whether it is transposed.
    pub transposed: bool,
}

/// How an initializer was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum By {
    /// It is called like the tensor.
    Name,
    /// It is the factor of a product of the tensor's module.
    Module,
}

/// A product that a weight is the second factor of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub node: usize,
    /// Which axis of the weight, as it is stored, counts the outputs.
    pub output_axis: usize,
}

impl<'m> Names<'m> {
    /// Of that model.
    ///
    /// # Errors
    /// Two initializers of one name.
    pub fn new(model: &'m Model<'m>) -> Result<Self, String> {
        let mut by_name = BTreeMap::new();
        for (i, initializer) in model.initializers.iter().enumerate() {
            if by_name.insert(initializer.name, i).is_some() {
                return Err(format!("two of its initializers are called `{}`; export it again", initializer.name));
            }
        }
        let mut uses: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        let (mut modules, mut makers) = (BTreeMap::new(), BTreeMap::new());
        for (number, node) in model.nodes.iter().enumerate() {
            for (slot, input) in node.inputs.iter().enumerate() {
                uses.entry(input).or_default().push((number, slot));
            }
            makers.extend(node.outputs.iter().map(|&output| (output, number)));
            let weight = match (node.op, node.domain) {
                ("MatMul", "") => node.inputs.get(1),
                ("Gather", "") => node.inputs.first(),
                _ => None,
            };
            if let Some((module, &factor)) = module(node).zip(weight.and_then(|weight| by_name.get(weight))) {
                let known = modules.entry(module).or_insert(Some(factor));
                *known = known.filter(|&known| known == factor);
            }
        }
        let mut nested: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for node in &model.nested {
            node.inputs
                .iter()
                .enumerate()
                .for_each(|(slot, input)| nested.entry(input).or_default().push((node, slot)));
        }
        let elsewhere = nested.keys().copied().chain(model.outputs.iter().copied()).collect();
        let quantizes = model.nodes.iter().chain(&model.nested).any(|node| {
            matches!(node.op, "QuantizeLinear" | "DynamicQuantizeLinear")
                && node.inputs.first().is_some_and(|input| !by_name.contains_key(input))
        });
        Ok(Self { model, by_name, uses, nested, elsewhere, quantizes, makers, modules })
    }

    /// The initializer for a tensor of that name and shape. Neither says which way a square matrix lies, nor what a product
    /// of the tensor's module takes: `is_turned` does, by name or not. Nothing where neither name nor module says one
    /// ([`Names::missing`] says why).
    ///
    /// # Errors
    /// It has another shape; what `is_turned` says.
    pub fn find(
        &self,
        name: &str,
        shape: &[u64],
        is_turned: impl Fn(&'m Initializer<'m>, By) -> Result<bool, String>,
    ) -> Result<Option<Found>, String> {
        let fits = |initializer: usize| {
            let dims = &self.model.initializers[initializer].dims;
            let turned = shape.len() == 2 && dims[..] == [shape[1], shape[0]];
            (dims == shape || turned).then_some(Found { initializer, transposed: dims != shape })
        };
        // PyTorch's exporters transpose the weights of linear layers and give them names of their own. A factor may also be
        // what the module makes of its weight. Of tied weights one has the name of another, which that one's module does not use.
        let module = name.strip_suffix(".weight");
        let factor = module.and_then(|module| *self.modules.get(module)?).filter(|_| shape.len() == 2);
        let own =
            |&initializer: &usize| factor.is_none_or(|factor| factor == initializer) || self.is_used_by(name, module);
        if let Some(&initializer) = self.by_name.get(name).filter(|number| own(number)) {
            let known = &self.model.initializers[initializer];
            if self.model.elsewhere.contains(&name) {
                return Err("a nested graph has a value of that name as well; rename one of them".to_owned());
            }
            let found = fits(initializer).ok_or_else(|| {
                let dims = &known.dims;
                format!("the initializer of that name has shape {dims:?}, should have {shape:?}; is it the same model?")
            })?;
            let is_square = matches!(shape, [rows, columns] if rows == columns);
            let transposed = if is_square { is_turned(known, By::Name)? } else { found.transposed };
            return Ok(Some(Found { transposed, ..found }));
        }
        let Some(found) = factor.and_then(fits) else { return Ok(None) };
        let transposed = is_turned(&self.model.initializers[found.initializer], By::Module)?;
        Ok(Some(Found { transposed, ..found }))
    }

    /// Why there is no initializer for a tensor of that name.
    pub fn missing(&self, name: &str) -> String {
        if self.model.elsewhere.contains(&name) {
            return "the model has it as a constant of a node, a sparse tensor or in a nested graph, which stay as they \
                    are; export the model with it as an initializer"
                .to_owned();
        }
        if let Some(node) = self.maker(name) {
            return format!(
                "it is no initializer of the model, but made by one of its nodes ({}); if it is quantized already, export into \
                 the model in floats",
                node.op
            );
        }
        format!(
            "the model has no initializer of that name; exporters fold batch norms and rename weights: export the model {WITH_NAMES}, or \
             pack the .onnx file itself and export that into it"
        )
    }

    /// The initializer that the model takes for a value by way of `Identity`.
    pub fn merged(&self, name: &str) -> Option<usize> {
        let node = self.maker(name).filter(|node| (node.op, node.domain) == ("Identity", ""))?;
        self.by_name.get(node.inputs.first()?).copied()
    }

    fn maker(&self, name: &str) -> Option<&Node<'m>> {
        self.makers.get(name).map(|&number| &self.model.nodes[number])
    }

    fn is_used_by(&self, value: &str, module: Option<&str>) -> bool {
        let mut uses = self.uses.get(value).into_iter().flatten();
        uses.any(|&(node, _)| self::module(&self.model.nodes[node]).as_deref() == module)
    }

    /// Whether anything takes that value.
    pub fn is_used(&self, value: &str) -> bool {
        self.uses.contains_key(value) || self.elsewhere.contains(value)
    }

    /// Whether any value is called that.
    pub fn is_taken(&self, name: &str) -> bool {
        self.model.names.contains(name)
    }

    /// The initializer of that name.
    pub fn initializer(&self, name: &str) -> Option<&Initializer<'m>> {
        self.by_name.get(name).map(|&i| &self.model.initializers[i])
    }

    /// The products that a weight is used for, and the nodes that only transpose it for them; `None` where it is used
    /// otherwise too.
    pub fn products(&self, weight: &str) -> Option<(Vec<Product>, Vec<usize>)> {
        let (mut products, mut transposes) = (Vec::new(), Vec::new());
        for &(number, slot) in self.only_uses(weight)? {
            let node = &self.model.nodes[number];
            if let ("Transpose", "", [output]) = (node.op, node.domain, &node.outputs[..]) {
                let turns = node.attribute("perm").is_none_or(|perm| perm.ints == [1, 0]);
                for &(number, slot) in self.only_uses(output).filter(|_| turns)? {
                    let product = self.product(number, slot)?;
                    products.push(Product { output_axis: 1 - product.output_axis, ..product });
                }
                transposes.push(number);
            } else {
                products.push(self.product(number, slot)?);
            }
        }
        (!products.is_empty()).then_some((products, transposes))
    }

    /// What a matrix is a factor of, as it is, transposed, or by way of what a runtime may optimize away; in nested graphs, too.
    pub fn factor_of(&self, matrix: &'m str) -> FactorOf<'m> {
        let (mut found, mut values, mut seen) = (FactorOf::default(), vec![(matrix, false)], HashSet::new());
        while let Some((value, turned)) = values.pop() {
            if !seen.insert((value, turned)) {
                continue;
            }
            let uses =
                self.uses.get(value).into_iter().flatten().map(|&(number, slot)| (&self.model.nodes[number], slot));
            let nested = self.nested.get(value).into_iter().flatten().copied();
            for (node, slot) in uses.chain(nested) {
                let turns = match (node.op, node.domain) {
                    _ if let Some(axis) = output_axis(node, slot) => {
                        found.products[if turned { 1 - axis } else { axis }].push(node);
                        continue;
                    }
                    ("MatMul" | "Gemm" | "Gather" | "Conv" | "ConvTranspose", "") => continue,
                    ("Add" | "Cast" | "CastLike" | "Div" | "Dropout" | "Expand" | "Identity" | "Mul" | "Sub", "") => {
                        false
                    }
                    ("Transpose", "") => node.attribute("perm").is_none_or(|perm| perm.ints == [1, 0]),
                    _ => {
                        found.unknown = true;
                        continue;
                    }
                };
                values.extend(node.outputs.first().map(|&output| (output, turned ^ turns)));
            }
        }
        found
    }

    /// Whether filters along that axis are the inputs of a product or a convolution.
    pub fn is_scaled_by_inputs(&self, weight: &Initializer<'m>, axis: usize) -> bool {
        match weight.dims.len() {
            2 => !self.factor_of(weight.name).products[1 - axis].is_empty(),
            _ => {
                let mut uses = self.uses.get(weight.name).into_iter().flatten();
                axis != 0 && uses.any(|&(node, slot)| (self.model.nodes[node].op, slot) == ("Conv", 1))
            }
        }
    }

    fn only_uses(&self, value: &str) -> Option<&[(usize, usize)]> {
        if self.elsewhere.contains(value) { None } else { self.uses.get(value).map(Vec::as_slice) }
    }

    fn product(&self, number: usize, slot: usize) -> Option<Product> {
        let node = &self.model.nodes[number];
        let is = |name, expected: f32| {
            node.attribute(name).is_none_or(|attribute| attribute.float.unwrap_or_default() == expected)
        };
        let added = node.inputs.get(2).is_some_and(|input| !input.is_empty());
        let plain = match node.op {
            "MatMul" => node.inputs.len() == 2,
            _ => is("alpha", 1.0) && (is("beta", 1.0) || !added) && node.int("transA").unwrap_or(0) == 0,
        };
        let output_axis = output_axis(node, slot).filter(|_| plain && node.outputs.len() == 1)?;
        (node.inputs[0] != node.inputs[1]).then_some(Product { node: number, output_axis })
    }
}

/// The products that a matrix is the second factor of.
#[derive(Debug, Default)]
pub(super) struct FactorOf<'m> {
    /// With the outputs along its rows, and along its columns.
    pub products: [Vec<&'m Node<'m>>; 2],
    /// Whether it also goes into operations that may hide a product.
    pub unknown: bool,
}

/// Which axis of a product's second factor counts the outputs; nothing for other inputs and operations.
fn output_axis(node: &Node<'_>, slot: usize) -> Option<usize> {
    match (node.op, node.domain, slot) {
        ("MatMul", "", 1) => Some(1),
        ("Gemm", "", 1) => Some(usize::from(node.int("transB").unwrap_or(0) == 0)),
        _ => None,
    }
}

/// The PyTorch module that a node comes from.
fn module(node: &Node<'_>) -> Option<String> {
    if let Some(scopes) = node.scopes {
        // ['', 'blocks.0', 'blocks.0.0', 'linear']: the module's whole name comes before the operation's.
        let mut scopes = scopes.trim_matches(['[', ']']).rsplit(", ").skip(1);
        return scopes.next().map(|scope| scope.trim_matches('\'').to_owned());
    }
    // /blocks.0/blocks.0.0/MatMul: a module in a container repeats the container's name.
    let (path, _) = node.name.strip_prefix('/')?.rsplit_once('/')?;
    let mut modules: Vec<&str> = Vec::new();
    for part in path.split('/') {
        let repeats =
            modules.last().is_some_and(|last| part.strip_prefix(last).is_some_and(|rest| rest.starts_with('.')));
        if repeats {
            modules.pop();
        }
        modules.push(part);
    }
    Some(modules.join("."))
}
