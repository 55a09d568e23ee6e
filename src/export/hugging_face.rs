//! What exporters of Hugging Face checkpoints share: names of linear layers, the model's `config.json`, tensors that
//! go out as floats, and the safetensors file with its parts. Not here: how any format lays out codes.

use std::collections::BTreeSet;
use std::ops::Range;

use half::{bf16, f16};
use serde_json::{Map, Value};

use super::safetensors_file::{self, Written};
use super::{Export, Line, Part, as_floats, check_range, rounded, some};
use crate::container::{DenseTensor, TensorEntry, TernaryTensor};
use crate::source::config_text;
use crate::{Container, Dtype, Result, Tensor};

/// A file in the making: what becomes of each tensor so far, and the tensors of the new file.
#[derive(Default)]
pub(super) struct Checkpoint<'a> {
    lines: Vec<Line>,
    written: Vec<Written<'a>>,
    /// The linear layers whose weights are floats, or may be: of rank 2.
    pub dense: Vec<String>,
}

/// The layer whose weight has that name.
pub(super) fn layer(tensor: &str) -> Option<&str> {
    tensor.strip_suffix(".weight").filter(|layer| !layer.is_empty())
}

/// The layer that a ternary tensor is the weight of, if it can be that of an `nn.Linear`.
pub(super) fn linear<'n>(name: &'n str, ternary: &TernaryTensor<'_>) -> Result<&'n str, String> {
    let layer = layer(name).ok_or("is not called `….weight`, as weights of linear layers are")?;
    if ternary.shape.len() != 2 {
        return Err(format!("has rank {}, weights of linear layers have 2", ternary.shape.len()));
    }
    if ternary.axis != 0 {
        return Err(format!("its filters go along axis {}, not 0; pack it again with axis=0", ternary.axis));
    }
    if ternary.planes != 1 {
        return Err(format!("has {} planes, the format holds one; pack it again with planes=1", ternary.planes));
    }
    Ok(layer)
}

/// What is to be said of packed layers that are experts, if any are.
pub(super) fn experts<'l>(packed: impl Iterator<Item = &'l str>) -> Option<String> {
    let number = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
    let is_one = |layer: &&str| layer.split_once(".experts.").is_some_and(|(_, rest)| number(rest));
    let experts: Vec<_> = packed.filter(is_one).collect();
    (!experts.is_empty()).then(|| {
        format!(
            "transformers makes one tensor of a block's experts and does not load packed ones: {}; keep them dense when \
             packing (--exclude '*.experts.*')",
            some(&experts)
        )
    })
}

/// What is said of tensors of 8 bits.
pub(super) const INT8: &str = "has 8 bits a weight, the format 2; pack it again as ternary";

/// The largest relative error of scales that are rounded to `f16`.
pub(super) fn f16_rounding(scales: impl Iterator<Item = f32>) -> Result<f64, String> {
    scales.enumerate().try_fold(0.0_f64, |largest, (index, scale)| {
        let rounded = f16::from_f32(scale).to_f64();
        let off = if scale == 0.0 { rounded } else { (rounded / f64::from(scale) - 1.0).abs() };
        // Below the smallest numbers of F16 a scale changes by up to all of it.
        if !rounded.is_finite() || rounded < 0.0 || off > 0.25 {
            return Err(format!("scale {index} is {scale:e}, which F16 cannot hold"));
        }
        Ok(largest.max(off))
    })
}

impl<'a> Checkpoint<'a> {
    /// Begins the next tensor of the container; what is added from here on is its.
    pub fn begin(&mut self, name: &str) {
        self.lines.push(Line { tensor: name.to_owned(), becomes: Ok(String::new()), bytes: 0, rounding: 0.0 });
    }

    /// Adds a tensor to the new file.
    pub fn add(&mut self, name: String, dtype: Dtype, shape: &[usize], part: Part<'a>) {
        let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
        let line = self.lines.len() - 1;
        let last = &mut self.lines[line];
        last.bytes += part.len();
        if let Ok(becomes) = &mut last.becomes {
            let comma = if becomes.is_empty() { "" } else { ", " };
            *becomes += &format!("{comma}{} {dtype} {shape:?}", name.rsplit('.').next().unwrap_or(&name));
        }
        self.written.push(Written { name, dtype, shape, part, line });
    }

    /// The largest relative error of the tensor's scales.
    pub fn rounding(&mut self, rounding: f64) {
        if let Some(last) = self.lines.last_mut() {
            last.rounding = rounding;
        }
    }

    /// A tensor that stays as it is.
    pub fn dense(&mut self, name: &str, dense: &DenseTensor<'a>) {
        self.add(name.to_owned(), dense.dtype, &dense.shape, Part::bytes(dense.data));
        self.is_dense(name, dense.shape.len());
    }

    /// A tensor that cannot be exported as codes, or goes out as floats for that. What holds for all of them is added
    /// to the reason.
    pub fn refuse(&mut self, entry: &TensorEntry, tensor: Tensor<'a>, reason: String, as_dense: bool) {
        let floats = as_dense.then(|| Floats::new(entry, tensor)).transpose();
        let last = self.lines.last_mut().filter(|line| line.tensor == entry.name);
        match (floats, last) {
            (Ok(Some((floats, rounding))), _) => {
                let (dtype, shape) = (floats.dtype, floats.shape.clone());
                self.is_dense(&entry.name, shape.len());
                self.add(entry.name.clone(), dtype, &shape, floats.part(&entry.name));
                self.rounding(rounding);
                if let Some(Line { becomes: Ok(becomes), .. }) = self.lines.last_mut() {
                    *becomes += &as_floats(&reason);
                }
            }
            (Ok(None), Some(line)) => {
                let or = if reason.contains("; ") { "," } else { ";" };
                line.becomes =
                    Err(format!("{reason}{or} keep it dense when packing (--exclude), or give --refused-as-dense"));
            }
            (Err(problem), Some(line)) => line.becomes = Err(format!("{reason}; and as floats: {problem}")),
            (_, None) => {}
        }
    }

    fn is_dense(&mut self, name: &str, rank: usize) {
        if let Some(layer) = layer(name).filter(|_| rank == 2) {
            self.dense.push(layer.to_owned());
        }
    }

    /// Refuses tensors for what the whole says of them: a reason for each name.
    pub fn refuse_by_name(&mut self, reason: impl Fn(&str) -> Option<String>) {
        for line in self.lines.iter_mut().filter(|line| line.becomes.is_ok()) {
            if let Some(reason) = reason(&line.tensor) {
                line.becomes = Err(reason);
            }
        }
    }

    /// The whole file.
    pub fn finish(mut self, container: &Container) -> Export<'a> {
        let mut metadata = container.index().metadata.clone();
        // Without it, some versions of transformers refuse the file.
        metadata.insert("format".to_owned(), "pt".to_owned());
        let parts = safetensors_file::parts(&mut self.lines, self.written, &metadata);
        Export { tensors: self.lines, parts, ..Export::default() }
    }
}

/// A quantized tensor as floats of its own type, or F32 where it had another than F32, F16 and BF16.
struct Floats<'a> {
    tensor: Tensor<'a>,
    dtype: Dtype,
    shape: Vec<usize>,
    axis: usize,
}

impl<'a> Floats<'a> {
    /// With the largest relative error of a scale.
    fn new(entry: &TensorEntry, tensor: Tensor<'a>) -> Result<(Self, f64), String> {
        let dtype = match entry.dtype {
            Dtype::F16 | Dtype::BF16 => entry.dtype,
            _ => Dtype::F32,
        };
        let (axis, scales): (usize, Vec<f32>) = match &tensor {
            Tensor::Ternary(ternary) => (ternary.axis, ternary.scales().collect()),
            Tensor::Int8(int8) => (int8.axis, int8.scales().map(|scale| scale * 127.0).collect()),
            Tensor::Dense(_) => (0, Vec::new()),
        };
        // Of several planes the values say whether their sums can be held.
        let several = matches!(&tensor, Tensor::Ternary(ternary) if ternary.planes > 1);
        let mut rounding = 0.0_f64;
        for scale in scales {
            let rounded = rounded(dtype, scale);
            if !several && (!rounded.is_finite() || (rounded == 0.0) != (scale == 0.0)) {
                return Err(format!("scale {scale:e} is nothing that {dtype} can hold"));
            }
            if scale != 0.0 && matches!(&tensor, Tensor::Ternary(_)) {
                rounding = rounding.max((f64::from(rounded) / f64::from(scale) - 1.0).abs());
            }
        }
        let shape = entry.shape.iter().map(|&d| d as usize).collect();
        Ok((Self { tensor, dtype, shape, axis }, rounding))
    }

    fn part(self, name: &str) -> Part<'a> {
        let size = self.dtype.bitsize() / 8;
        let filters = self.shape[self.axis];
        let outer: usize = self.shape[..self.axis].iter().product();
        let inner: usize = self.shape[self.axis + 1..].iter().product();
        // In the order of the file: [outer][filters][inner]. With the filters outermost, a row is a filter.
        if self.axis == 0 {
            return Part::rows(name, filters, inner * size, move |rows, bytes| {
                let mut values = vec![0.0; inner];
                for (filter, bytes) in rows.zip(bytes.chunks_exact_mut((inner * size).max(1))) {
                    self.values(filter, 0..inner, &mut values)?;
                    self.encode(&values, bytes)?;
                }
                Ok(())
            });
        }
        Part::rows(name, outer, filters * inner * size, move |rows, bytes| {
            let weights = rows.start * inner..rows.end * inner;
            let mut values = vec![0.0; weights.len()];
            for filter in 0..filters {
                self.values(filter, weights.clone(), &mut values)?;
                for (row, values) in values.chunks_exact(inner.max(1)).enumerate() {
                    self.encode(values, &mut bytes[(row * filters + filter) * inner * size..][..inner * size])?;
                }
            }
            Ok(())
        })
    }

    fn values(&self, filter: usize, range: Range<usize>, values: &mut [f32]) -> Result<(), String> {
        match &self.tensor {
            Tensor::Ternary(ternary) => ternary.dequantize_range(filter, range, values),
            Tensor::Int8(int8) => int8.dequantize_range(filter, range, values),
            Tensor::Dense(_) => Err("is dense".to_owned()),
        }
    }

    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), String> {
        match self.dtype {
            Dtype::F16 => store(values, bytes, |value| f16::from_f32(value).to_le_bytes()),
            Dtype::BF16 => store(values, bytes, |value| bf16::from_f32(value).to_le_bytes()),
            _ => store(values, bytes, f32::to_le_bytes),
        }
        check_range(self.dtype, values)
    }
}

fn store<const N: usize>(values: &[f32], bytes: &mut [u8], stored: impl Fn(f32) -> [u8; N]) {
    bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, &value)| *bytes = stored(value));
}

/// A model's `config.json` with another `quantization_config`, as it lies beside the weights.
pub(super) fn config(mut config: Map<String, Value>, quantization: &Value) -> (String, Vec<u8>) {
    config.insert("quantization_config".to_owned(), quantization.clone());
    file("config.json", &Value::Object(config))
}

/// A small JSON file.
pub(super) fn file(name: &str, value: &Value) -> (String, Vec<u8>) {
    (name.to_owned(), config_text(value).into_bytes())
}

/// The layer of `dense` by whose name transformers would also leave `layer` dense: it compares the beginning, up to
/// a dot, and the end, anywhere.
pub(super) fn shadowed<'d>(layer: &str, dense: &'d BTreeSet<&str>) -> Option<&'d str> {
    let ends = layer.char_indices().map(|(at, _)| &layer[at..]);
    let beginnings = layer.match_indices('.').map(|(at, _)| &layer[..at]);
    ends.chain(beginnings).find_map(|name| dense.get(name).copied())
}
