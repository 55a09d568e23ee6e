//! `.twn` into an ONNX model: the initializers of the tensors' names become codes, which operations of the model's own
//! file decode (`docs/onnx.md`); everything else of it stays byte for byte. Not here: models without a file to put the
//! weights into, for a container has no graph; reading weights from a model ([`crate::import`]).

mod compare;
mod copies;
mod find;
mod opset;
mod products;
mod rewrite;
mod settle;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use self::compare::Likeness;
use self::copies::{Copies, Known};
use self::find::{By, FactorOf, Names, WITH_NAMES};
use self::rewrite::{New, Rewrite};
use self::values::Layout;
use super::{Export, Exporter, Line, Options, as_floats, check_range, float};
use crate::container::{DenseTensor, Int8Tensor, TernaryTensor};
use crate::onnx::{Data, Initializer, Message, Model, Node, data_type, dtype, type_name};
use crate::{Container, Dtype, Error, Granularity, MappedFile, Result, Tensor};

/// Codes in INT2 behind `DequantizeLinear`: for every operation.
pub(super) struct Onnx;

/// The same, and `MatMulNBits` for products.
pub(super) struct OnnxNbits;

impl Exporter for Onnx {
    fn name(&self) -> &'static str {
        "onnx"
    }

    fn about(&self) -> &'static str {
        "INT2 and DequantizeLinear in a given model (--into model.onnx), opset 25"
    }

    fn export<'a>(&self, container: &'a Container, options: &Options) -> Result<Export<'a>> {
        export(container, options, false)
    }
}

impl Exporter for OnnxNbits {
    fn name(&self) -> &'static str {
        "onnx-nbits"
    }

    fn about(&self) -> &'static str {
        "the same, with onnxruntime's MatMulNBits for products"
    }

    fn export<'a>(&self, container: &'a Container, options: &Options) -> Result<Export<'a>> {
        export(container, options, true)
    }
}

fn export<'a>(container: &'a Container, options: &Options, nbits: bool) -> Result<Export<'a>> {
    let Some(path) = &options.into else {
        let message = "a container has no graph: give the model's file with --into model.onnx";
        return Err(Error::Request(message.to_owned()));
    };
    let bad = |message| Error::Request(format!("{}: {message}", path.display()));
    let file = MappedFile::open(path)?;
    let model = Model::parse(&file).map_err(bad)?;
    let names = Names::new(&model).map_err(bad)?;
    let exported = options.tensors_with_scales(container)?;
    let own: BTreeSet<&str> = container.index().tensors.iter().map(|entry| entry.name.as_str()).collect();
    let kept: BTreeSet<&str> = exported.iter().map(|(entry, _)| entry.name.as_str()).collect();
    let is_folded = |name: &&&str| name.ends_with("running_mean") && names.initializer(name).is_none();
    let folded = own.difference(&kept).find(is_folded).copied();
    let mut planner = Planner {
        path,
        model: &model,
        names: &names,
        copies: Copies::new(path, &model, |name| {
            if kept.contains(name) {
                Known::Reserved
            } else if own.contains(name) || !names.is_used(name) {
                Known::Aside
            } else {
                Known::Unknown
            }
        }),
        options,
        nbits,
        folded,
        taken: BTreeMap::new(),
        merged: Vec::new(),
        missing: Vec::new(),
        rewrite: Rewrite::default(),
    };
    let mut tensors = Vec::new();
    for (number, (entry, tensor)) in exported.iter().enumerate() {
        let name = entry.name.as_str();
        let before = planner.rewrite.bytes;
        let planned = planner.plan(number, name, entry.dtype, tensor);
        let (becomes, rounding) = planned.map_or_else(|e| (Err(e), 0.0), |(becomes, rounding)| (Ok(becomes), rounding));
        tensors.push(Line { tensor: name.to_owned(), becomes, bytes: planner.rewrite.bytes - before, rounding });
    }
    planner.settle(&exported, &mut tensors);
    let stray = planner.stray();
    let rewrite = planner.rewrite;
    let raised = rewrite.opset.max(model.opset());
    opset::check(&model, raised).map_err(bad)?;
    let (parts, mut warnings) = rewrite.finish(&file, &model, raised).map_err(bad)?;
    warnings.extend(stray);
    let beside = model.initializers.iter().filter_map(|initializer| match initializer.data {
        Data::External { location, .. } => Some(path.with_file_name(location)),
        _ => None,
    });
    let inputs = beside.collect::<BTreeSet<_>>().into_iter().collect();
    Ok(Export { tensors, parts, warnings, inputs, ..Export::default() })
}

struct Planner<'m, 'a> {
    path: &'m Path,
    model: &'m Model<'m>,
    names: &'m Names<'m>,
    copies: Copies<'m>,
    options: &'m Options,
    nbits: bool,
    /// A batch norm's mean that is left out and not in the model as it is: it may be in other weights.
    folded: Option<&'a str>,
    /// The initializers that tensors stand for, and which.
    taken: BTreeMap<usize, usize>,
    /// Tensors that the model takes an initializer of another name for.
    merged: Vec<(usize, usize)>,
    /// Tensors that have no initializer for themselves.
    missing: Vec<usize>,
    rewrite: Rewrite<'a>,
}

/// An initializer and how the tensor lies in it.
#[derive(Clone, Copy)]
struct Target<'m> {
    number: usize,
    initializer: &'m Initializer<'m>,
    /// The filter axis, in the initializer.
    axis: usize,
    layout: Layout,
    /// What scales and values become.
    dtype: Dtype,
}

impl Target<'_> {
    fn name(&self) -> &str {
        self.initializer.name
    }

    /// A name for something that belongs to it.
    fn part(&self, part: &str, plane: usize, planes: usize) -> String {
        if planes == 1 { format!("{}.{part}", self.name()) } else { format!("{}.{part}.{plane}", self.name()) }
    }
}

/// What a tensor becomes, in words, and the rounding of its scales.
type Planned = Result<(String, f64), String>;

impl<'m, 'a> Planner<'m, 'a> {
    fn plan(&mut self, number: usize, name: &str, source: Dtype, tensor: &Tensor<'a>) -> Planned {
        let (shape, axis) = match tensor {
            Tensor::Dense(dense) => (&dense.shape, 0),
            Tensor::Int8(int8) => (&int8.shape, int8.axis),
            Tensor::Ternary(ternary) => (&ternary.shape, ternary.axis),
        };
        let shape64: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
        let is_turned = |initializer: &'m Initializer<'m>, by: By| {
            let likeness = compare::compare(self.path, self.model.file, initializer, tensor, source);
            if let Some(turned) = likeness.and_then(Likeness::same) {
                return Ok(turned);
            }
            if by == By::Module {
                return Err(format!(
                    "the floats that its module multiplies by (`{}`) are not those that were packed: the model has others, or \
                     something made of them; export the checkpoint that was packed, {WITH_NAMES}",
                    initializer.name
                ));
            }
            match likeness.and_then(Likeness::alike) {
                Some(turned) => Ok(turned),
                // The name says that it lies as in the model, unless what it is used for says otherwise.
                None if self.names.factor_of(initializer.name).products[1 - axis].is_empty() => Ok(false),
                None => Err(format!(
                    "the model's floats are others than were packed, so that they do not say which way this square matrix \
                     lies, and the model has the outputs along axis {}, not {axis}; give the model that was packed with \
                     --into",
                    1 - axis
                )),
            }
        };
        let found = match (self.names.find(name, &shape64, is_turned)?, tensor) {
            (Some(found), _) => found,
            // Counters of a training, which no graph has.
            (None, Tensor::Dense(dense)) if is_integer(dense.dtype) && !self.names.is_taken(name) => {
                return Ok(("nothing: the graph has no such integers".to_owned(), 0.0));
            }
            // Of equal tensors exporters keep one. What becomes of that is known when all are planned.
            (None, _) if let Some(merged) = self.names.merged(name) => {
                self.merged.push((number, merged));
                let same = self.model.initializers[merged].name;
                return Ok((format!("nothing: the model takes `{same}` for it, which is equal"), 0.0));
            }
            (None, _) => self.copies.find(tensor, source).ok_or_else(|| {
                self.missing.push(number);
                self.names.missing(name)
            })?,
        };
        let initializer: &'m Initializer<'m> = &self.model.initializers[found.initializer];
        if initializer.name == name {
            self.refuse_folded(initializer, tensor, source)?;
        }
        self.copies.take(found.initializer);
        if *self.taken.entry(found.initializer).or_insert(number) != number {
            self.missing.push(number);
            return Err(format!(
                "the model has one initializer, `{}`, for it and another tensor of the container; pack both in the same way, or the \
                 model's own file",
                initializer.name
            ));
        }
        let kind = type_name(initializer.data_type);
        let mut words = String::new();
        if initializer.name != name {
            words += &format!(" as `{}`", initializer.name);
        }
        if found.transposed {
            words += ", transposed";
        }
        let said = |planned: Planned| planned.map(|(becomes, rounding)| (becomes + &words, rounding));
        if let Tensor::Dense(dense) = tensor {
            return said(self.dense(name, dense, found.initializer, found.transposed));
        }
        let shape: Vec<usize> = if found.transposed { shape.iter().rev().copied().collect() } else { shape.clone() };
        let axis = if found.transposed { 1 - axis } else { axis };
        let Some(dtype) = dtype(initializer.data_type).filter(|dtype| is_float(*dtype)) else {
            return Err(format!("the initializer is {kind}, should be floats; export the model in FLOAT"));
        };
        let layout = Layout::new(&shape, axis);
        let target = Target { number: found.initializer, initializer, axis, layout, dtype };
        let planned = match tensor {
            Tensor::Ternary(ternary) => self.ternary(name, ternary, target),
            Tensor::Int8(int8) => self.int8(name, int8, target),
            Tensor::Dense(_) => return Err(String::new()),
        };
        match planned {
            Err(reason) if self.options.refused_as_dense => {
                said(self.floats(name, tensor, target)).map(|(words, rounding)| (words + &as_floats(&reason), rounding))
            }
            Err(reason) => Err(format!("{reason}, or --refused-as-dense")),
            planned => said(planned),
        }
    }

    /// Refuses other floats than were packed, where a batch norm that is left out may be in them.
    fn refuse_folded(&self, initializer: &Initializer<'_>, tensor: &Tensor<'a>, source: Dtype) -> Result<(), String> {
        let Some(folded) = self.folded else { return Ok(()) };
        let likeness = compare::compare(self.path, self.model.file, initializer, tensor, source);
        let is_matrix = initializer.dims.len() > 1 && dtype(initializer.data_type).is_some_and(is_float);
        if !is_matrix || likeness.and_then(Likeness::same).is_some() {
            return Ok(());
        }
        Err(format!(
            "the model's floats of that name are not seen to be those that were packed, and it has no `{folded}`, which is left \
             out: the exporter may have folded a batch norm into them; export the model {WITH_NAMES}"
        ))
    }

    fn dense(&mut self, name: &str, dense: &DenseTensor<'a>, number: usize, transposed: bool) -> Planned {
        let initializer = &self.model.initializers[number];
        let to = dtype(initializer.data_type);
        let widened = to == Some(Dtype::F32) && matches!(dense.dtype, Dtype::F16 | Dtype::BF16);
        if to != Some(dense.dtype) && !widened {
            return Err(format!(
                "the initializer is {}, the tensor {}; export the model in the type of its weights",
                type_name(initializer.data_type),
                dense.dtype
            ));
        }
        let part = if widened {
            let (data, dtype) = (dense.data, dense.dtype);
            let value = move |i: usize| float(dtype, data, i).unwrap_or(f64::NAN) as f32;
            let weights = data.len() / 2;
            let shape = [dense.shape.iter().product::<usize>(), 1];
            let (layout, columns) = if transposed {
                (Layout { filters: dense.shape[0], inner: 1, weights }, dense.shape[1])
            } else {
                (Layout::new(&shape, 0), 1)
            };
            values::floats(name, Dtype::F32, layout, move |row, range, out| {
                out.iter_mut().zip(range).for_each(|(out, column)| *out = value(row * columns + column));
                Ok(())
            })
        } else if transposed {
            if !dense.dtype.bitsize().is_multiple_of(8) {
                return Err(format!("{} cannot be transposed; export the model without folding", dense.dtype));
            }
            values::transposed(name, dense.data, dense.dtype.bitsize() / 8, dense.shape[1])
        } else {
            super::Part::bytes(dense.data)
        };
        self.rewrite.replace_data(self.model, number, part)?;
        Ok((format!("{} {:?}", type_name(initializer.data_type), initializer.dims), 0.0))
    }

    fn ternary(&mut self, name: &str, tensor: &TernaryTensor<'a>, target: Target<'m>) -> Planned {
        if tensor.planes > 1 && !self.options.planes_as_tensors {
            return Err(format!(
                "it has {} planes, of which these operations take one; --planes-as-tensors adds them up at run time",
                tensor.planes
            ));
        }
        check_scales(target)?;
        let rounding = values::rounding(target.dtype, tensor.scales())?;
        let planned = if self.nbits { self.as_products(name, tensor, target)? } else { None };
        let becomes = match planned {
            Some(becomes) => becomes,
            None => self.as_int2(name, tensor, target)?,
        };
        Ok((becomes, rounding))
    }

    /// INT2, decoded by `DequantizeLinear`: by axis, or by block along the other axis.
    fn as_int2(&mut self, name: &str, tensor: &TernaryTensor<'a>, target: Target<'m>) -> Result<String, String> {
        let dims = &target.initializer.dims;
        let (planes, per_plane) = (tensor.planes, tensor.scales_per_plane());
        let filters = tensor.filters;
        let group = match tensor.granularity {
            Granularity::Group(size) if tensor.scale_run() < tensor.filter_len => Some(size as usize),
            _ => None,
        };
        // A group goes on from row to row of a filter: blocks of the matrix that the filters make up.
        // Where activations are quantized as well, onnxruntime (to 1.32) makes operations of whole numbers of decoder and product, which
        // have no INT2; with something in between it does not.
        let quantizes = self.names.quantizes;
        let reshaped = dims.len() != 2 && (group.is_some() || quantizes);
        let flat = reshaped && target.axis == 0;
        if group.is_some() && dims.len() != 2 && target.axis != 0 {
            return Err(format!(
                "groups of weights of a tensor of {} dimensions whose filters go along axis {} are no blocks; pack \
                 with --granularity filter",
                dims.len(),
                target.axis
            ));
        }
        // Of codes [inputs, outputs] onnxruntime (to 1.32) makes its own MatMulNBits, which has wrong values where the
        // outputs are no multiple of 4, however hidden the product is; where the other factor has codes as well (to 1.31), an
        // operation without INT2.
        let FactorOf { products: [by_rows, by_columns], unknown } = self.names.factor_of(target.name());
        let of_weights = |node: &&Node<'_>| self.names.initializer(node.inputs[0]).is_some();
        let is_or_may_be = !by_columns.is_empty() || by_rows.is_empty() && unknown;
        let turned = dims.len() == 2
            && planes == 1
            && (is_or_may_be && (quantizes || !dims[1].is_multiple_of(4)) || by_columns.iter().any(of_weights));
        let (dims, axis, layout) = if turned {
            let (dims, axis) = (vec![dims[1], dims[0]], 1 - target.axis);
            let layout = Layout::new(&[dims[0] as usize, dims[1] as usize], axis);
            (dims, axis, layout)
        } else {
            (dims.clone(), target.axis, target.layout)
        };
        let code_dims = if flat { vec![filters as u64, tensor.filter_len as u64] } else { dims.clone() };
        let units = per_plane / filters.max(1);
        let scale_dims = match (tensor.granularity, group) {
            (Granularity::Tensor, _) => vec![],
            (_, None) => vec![filters as u64],
            (_, Some(_)) if axis == 0 => vec![filters as u64, units as u64],
            (_, Some(_)) => vec![units as u64, filters as u64],
        };
        let decode = |message: Message| match (tensor.granularity, group) {
            (Granularity::Tensor, _) => message,
            (_, None) => rewrite::attribute(message, "axis", axis as i64),
            (_, Some(size)) => {
                let message = rewrite::attribute(message, "axis", 1 - axis as i64);
                rewrite::attribute(message, "block_size", size as i64)
            }
        };
        let mut new = New::default();
        let whole = match (reshaped, turned) {
            (true, _) => format!("{}.flat", target.name()),
            (_, true) => format!("{}.turned", target.name()),
            _ => target.name().to_owned(),
        };
        let mut summands = Vec::new();
        for plane in 0..planes {
            let codes = target.part("codes", plane, planes);
            let scales = target.part("scales", plane, planes);
            let output = if planes == 1 { whole.clone() } else { format!("{}.plane.{plane}", target.name()) };
            new.node("DequantizeLinear", "", &[&codes, &scales], &output, decode);
            let part = values::int2(name, tensor, plane, layout);
            new.tensor(&codes, &code_dims, data_type::INT2, part);
            let (by_axis, of) = (axis == 0 || group.is_none(), tensor.clone());
            let part = values::scales(name, target.dtype, per_plane, move |i| {
                of.scale_at(plane * per_plane + if by_axis { i } else { i % filters * units + i / filters })
            });
            new.tensor(&scales, &scale_dims, target.initializer.data_type, part);
            summands.push(output);
        }
        new.sum(&format!("{}.sum", target.name()), &summands, &whole);
        if reshaped {
            let shape = format!("{}.shape", target.name());
            let values: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
            new.tensor(&shape, &[dims.len() as u64], data_type::INT64, super::Part::bytes(values));
            new.node("Reshape", "", &[&whole, &shape], target.name(), |message| message);
        }
        if turned {
            let transpose = |message| rewrite::attribute_list(message, "perm", &[1, 0]);
            new.node("Transpose", "", &[&whole], target.name(), transpose);
        }
        self.rewrite.replace(self.model, self.names, target.number, new, 25)?;
        let note = if turned { " and a Transpose" } else { "" };
        let scales = match (tensor.granularity, group) {
            (Granularity::Tensor, _) => "a scale".to_owned(),
            (_, None) => format!("scales [{filters}] along axis {axis}"),
            (_, Some(size)) => format!("scales {scale_dims:?} for blocks of {size}"),
        };
        Ok(format!("INT2 {code_dims:?} and {scales}{}{note}", of_planes(planes)))
    }

    fn int8(&mut self, name: &str, tensor: &Int8Tensor<'a>, target: Target<'m>) -> Planned {
        check_scales(target)?;
        if self.names.quantizes && self.names.is_scaled_by_inputs(target.initializer, target.axis) {
            return Err(format!(
                "the model quantizes activations, and onnxruntime would take scales along axis {} for those of the outputs; pack \
                 with its axis = {}",
                target.axis,
                usize::from(target.axis == 0)
            ));
        }
        let rounding = values::rounding(target.dtype, tensor.scales())?;
        let (codes, scales) = (target.part("codes", 0, 1), target.part("scales", 0, 1));
        let mut new = New::default();
        new.node("DequantizeLinear", "", &[&codes, &scales], target.name(), |message| {
            rewrite::attribute(message, "axis", target.axis as i64)
        });
        let dims = &target.initializer.dims;
        new.tensor(&codes, dims, data_type::INT8, values::int8(name, tensor, target.layout));
        let of: Vec<f32> = tensor.scales().collect();
        let part = values::scales(name, target.dtype, of.len(), move |i| of[i]);
        new.tensor(&scales, &[tensor.filters as u64], target.initializer.data_type, part);
        let opset = if target.dtype == Dtype::F32 { 13 } else { 19 };
        self.rewrite.replace(self.model, self.names, target.number, new, opset)?;
        Ok((format!("INT8 {dims:?} and scales [{}] along axis {}", tensor.filters, target.axis), rounding))
    }

    /// The values that `unpack` gives, in the initializer's type.
    fn floats(&mut self, name: &str, tensor: &Tensor<'a>, target: Target<'m>) -> Planned {
        let (part, rounding) = match tensor.clone() {
            Tensor::Ternary(ternary) => {
                let rounding = values::rounding(target.dtype, ternary.scales())?;
                let read = move |filter, range, out: &mut [f32]| {
                    ternary.dequantize_range(filter, range, out)?;
                    let in_floats = |error| format!("{error}; export the model in FLOAT");
                    check_range(target.dtype, out).map_err(in_floats)
                };
                (values::floats(name, target.dtype, target.layout, read), rounding)
            }
            Tensor::Int8(int8) => {
                let rounding = values::rounding(target.dtype, int8.scales())?;
                let read = move |filter, range, out: &mut [f32]| int8.dequantize_range(filter, range, out);
                (values::floats(name, target.dtype, target.layout, read), rounding)
            }
            Tensor::Dense(_) => return Err(String::new()),
        };
        self.rewrite.replace_data(self.model, target.number, part)?;
        let dims = &target.initializer.dims;
        Ok((format!("{} {dims:?}", type_name(target.initializer.data_type)), rounding))
    }
}

fn of_planes(planes: usize) -> String {
    if planes == 1 { String::new() } else { format!(", for each of {planes} planes") }
}

fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// `DequantizeLinear` gives these types only.
fn check_scales(target: Target<'_>) -> Result<(), String> {
    if target.dtype == Dtype::F64 {
        return Err(
            "the initializer is DOUBLE, which no operation decodes codes to; export the model in FLOAT".to_owned()
        );
    }
    Ok(())
}
