//! BitNet checkpoints of Hugging Face transformers: safetensors whose `config.json` says `quant_method` "bitnet".
//! Of each ternary weight `[out, in]`, U8 (or I8) `X` `[out/4, in]` holds in byte (r, c) t+1 of rows r, r+R, r+2R, r+3R
//! (R = out/4) in bits 0, 2, 4, 6, and `X_scale` `[1]` is, by the config's `linear_class`, α ("autobitlinear") or 1/α
//! ("bitlinear"). Codes are moved, nothing is estimated. Not here: safetensors ([`crate::source`]), writing them
//! ([`crate::export`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Map, Value};

use crate::pack::part_row;
use crate::source::{CheckpointBuilder, TensorView, TernaryLayout, model_config};
use crate::{Checkpoint, Dtype, Error, Isa, MappedFile, Result};

const FORMAT: &str = "Hugging Face BitNet";

/// Scales of trained layers are about 1e-3 to 1; outside these bounds one is taken for its inverse, if that is inside.
const PLAUSIBLE: std::ops::RangeInclusive<f32> = 1e-5..=2.0;

/// Weights per byte, and rows per packed row.
const QUARTERS: usize = 4;

/// What follows the name of a weight in that of its scale.
const SCALE: &str = "_scale";

/// What a weight scale means.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meaning {
    /// `bitlinear`: 1/α; the outputs are divided by it.
    Inverse,
    /// `autobitlinear`: α; the outputs are multiplied by it.
    Alpha,
}

/// Row quarters, and one scale.
#[derive(Debug)]
struct RowQuarters {
    packed_rows: usize,
    columns: usize,
    alpha: f32,
    isa: Isa,
}

impl TernaryLayout for RowQuarters {
    fn unit_len(&self) -> usize {
        self.columns
    }

    fn codes(&self, data: &[u8], filter: usize, codes: &mut [u8]) -> Result<(), String> {
        let (quarter, row) = (filter / self.packed_rows.max(1), filter % self.packed_rows.max(1));
        let begin = row * self.columns;
        let bytes = data.get(begin..begin + self.columns).ok_or("its bytes end early")?;
        codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> (2 * quarter) & 3);
        // Looked for in all of them at once, and only then one by one.
        if codes.iter().fold(0, |bits, code| bits | (code & code >> 1)) == 0 {
            return Ok(());
        }
        let column = codes.iter().position(|&code| code == 3).unwrap_or_default();
        let at = format!("packed row {row}, column {column}");
        Err(format!("{at}: byte {:#04x} has code 3 in quarter {quarter}, should be 0, 1 or 2", bytes[column]))
    }

    fn t2(&self, data: &[u8], filter: usize, packed: &mut [u8]) -> bool {
        let (quarter, row) = (filter / self.packed_rows.max(1), filter % self.packed_rows.max(1));
        let bytes = data.get(row * self.columns..(row + 1) * self.columns).unwrap_or_default();
        // Rows that end within a byte are widened.
        let whole = self.columns.is_multiple_of(4) && bytes.len() == self.columns;
        if whole {
            part_row(self.isa, bytes, quarter, packed);
        }
        whole
    }

    fn scale(&self, _: &[u8], _: usize, _: usize) -> f32 {
        self.alpha
    }
}

/// A safetensors checkpoint, its BitNet weights as what they are.
pub(super) fn recognise(mut checkpoint: Checkpoint) -> Result<Checkpoint> {
    let path = beside(checkpoint.path());
    let packed = checkpoint.tensors().any(|tensor| is_packed(&tensor));
    if let (true, Ok(file)) = (packed, MappedFile::open(&path)) {
        let mut builder = CheckpointBuilder::from_checkpoint(checkpoint);
        builder.depends_on(file);
        checkpoint = builder.finish()?;
    }
    let (config, unread) = match model_config(&path) {
        Ok(config) => (config, None),
        Err(error) => (Map::new(), Some(error)),
    };
    let quantization = config.get("quantization_config").and_then(Value::as_object);
    let method = quantization.and_then(|quantization| quantization.get("quant_method"));
    match (quantization, method.and_then(Value::as_str)) {
        (Some(quantization), Some("bitnet")) => {
            let pairs = pairs(&checkpoint, is_packed);
            take(checkpoint, &pairs, &config, quantization)
        }
        // Another method's: bytes mean something else there.
        (Some(_), Some(other)) if !other.eq_ignore_ascii_case("bitnet") => Ok(checkpoint),
        // I8 with a scale is what others have, too.
        _ => match pairs(&checkpoint, |tensor| tensor.dtype == Dtype::U8 && is_packed(tensor)).first_key_value() {
            None => Ok(checkpoint),
            Some((weight, _)) => {
                let says = |what: &str| {
                    format!(
                        "{}: {what}; its quantization_config has to say that quant_method is \"bitnet\" and in \
                         linear_class whether scales are α (\"autobitlinear\") or 1/α (\"bitlinear\")",
                        path.display()
                    )
                };
                let reason = match (unread, quantization, method) {
                    (Some(error), ..) if path.exists() => error.to_string(),
                    (Some(_), ..) => says("there is no such file"),
                    (_, None, _) => says("it has no `quantization_config`"),
                    (.., None) => says("its quantization_config has no `quant_method`"),
                    (.., Some(found)) => says(&format!("its quant_method is {found}")),
                };
                Err(foreign(
                    checkpoint.path(),
                    format!(
                        "tensor `{weight}` is U8 with `{weight}{SCALE}` beside it, as BitNet weights are, but {reason}"
                    ),
                ))
            }
        },
    }
}

/// The weights that look like BitNet's, by name, and their scales: bytes of rank 2, and one float.
fn pairs(checkpoint: &Checkpoint, is_packed: impl Fn(&TensorView<'_>) -> bool) -> BTreeMap<String, f32> {
    let weights: BTreeSet<&str> = checkpoint.tensors().filter(is_packed).map(|tensor| tensor.name).collect();
    if weights.is_empty() {
        return BTreeMap::new();
    }
    let scales = checkpoint.tensors().filter_map(|tensor| {
        let weight = tensor.name.strip_suffix(SCALE).filter(|weight| weights.contains(weight))?;
        Some((weight.to_owned(), single(&tensor)?))
    });
    scales.collect()
}

/// Transformers takes the bytes with or without a sign.
fn is_packed(tensor: &TensorView<'_>) -> bool {
    matches!(tensor.dtype, Dtype::U8 | Dtype::I8)
        && tensor.shape.len() == 2
        && tensor.order.is_none()
        && is_weight(tensor.name)
}

fn is_weight(name: &str) -> bool {
    name == "weight" || name.ends_with(".weight")
}

/// The value of a tensor of one float.
fn single(tensor: &TensorView<'_>) -> Option<f32> {
    match (tensor.dtype, tensor.stored) {
        (Dtype::F32, &[a, b, c, d]) => Some(f32::from_le_bytes([a, b, c, d])),
        (Dtype::F16, &[a, b]) => Some(f16::from_le_bytes([a, b]).to_f32()),
        (Dtype::BF16, &[a, b]) => Some(bf16::from_le_bytes([a, b]).to_f32()),
        _ => None,
    }
}

/// The `config.json` that belongs to a checkpoint.
fn beside(checkpoint: &Path) -> PathBuf {
    if checkpoint.is_dir() { checkpoint.join("config.json") } else { checkpoint.with_file_name("config.json") }
}

/// The type that the model computes in.
fn dtype(config: &Map<String, Value>) -> Dtype {
    let inner = config.get("text_config").and_then(Value::as_object);
    let name = [Some(config), inner].into_iter().flatten().find_map(|config| {
        let name = config.get("dtype").or_else(|| config.get("torch_dtype"))?.as_str()?;
        Some(name.trim_start_matches("torch."))
    });
    match name {
        Some("float32" | "float") => Dtype::F32,
        Some("float16" | "half") => Dtype::F16,
        _ => Dtype::BF16,
    }
}

/// Everything that is packed becomes ternary; scales go into it.
fn take(
    checkpoint: Checkpoint,
    pairs: &BTreeMap<String, f32>,
    config: &Map<String, Value>,
    quantization: &Map<String, Value>,
) -> Result<Checkpoint> {
    let path = checkpoint.path().to_path_buf();
    let (stated, meaning) = match quantization.get("linear_class") {
        None | Some(Value::Null) => (false, Meaning::Inverse),
        Some(class) if class == "bitlinear" => (true, Meaning::Inverse),
        Some(class) if class == "autobitlinear" => (true, Meaning::Alpha),
        Some(class) => {
            let message = format!("linear_class is {class}, should be \"bitlinear\" or \"autobitlinear\"");
            return Err(foreign(&path, message + "; correct the quantization_config in config.json"));
        }
    };
    check_complete(&checkpoint, pairs)?;
    let mut warnings = warnings(&checkpoint, pairs, quantization);
    let alphas = alphas(&path, pairs, meaning, stated, &mut warnings)?;
    let mut builder = CheckpointBuilder::from_checkpoint(checkpoint);
    let weights = builder.take(|tensor| alphas.contains_key(tensor.name));
    builder.take(|tensor| tensor.name.strip_suffix(SCALE).is_some_and(|weight| alphas.contains_key(weight)));
    let (dtype, isa) = (dtype(config), Isa::detect().unwrap_or(Isa::PORTABLE));
    for weight in weights {
        let [packed_rows, columns] = weight.shape[..] else { continue };
        let rows = packed_rows.checked_mul(QUARTERS).ok_or_else(|| {
            foreign(&path, format!("tensor `{}`: {packed_rows} rows of four are too many", weight.name))
        })?;
        let alpha = alphas.get(weight.name.as_str()).copied().unwrap_or_default();
        let layout = Box::new(RowQuarters { packed_rows, columns, alpha, isa });
        builder.ternary(&weight.name, (dtype, &[rows, columns]), layout, weight.file, weight.range)?;
    }
    warnings.into_iter().for_each(|warning| builder.warn(warning));
    builder.finish()
}

/// Every packed weight has a scale, and as many rows as its bias has elements.
fn check_complete(checkpoint: &Checkpoint, pairs: &BTreeMap<String, f32>) -> Result<()> {
    let path = checkpoint.path();
    let mut scales: BTreeMap<&str, TensorView<'_>> = BTreeMap::new();
    let mut biases: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        if let Some(weight) = tensor.name.strip_suffix(SCALE) {
            scales.insert(weight, tensor);
        } else if let Some(layer) = tensor.name.strip_suffix("bias") {
            biases.insert(layer, tensor.elements());
        }
    }
    for tensor in checkpoint.tensors().filter(is_packed) {
        let (name, rows) = (tensor.name, tensor.shape[0].saturating_mul(QUARTERS));
        if !pairs.contains_key(name) {
            let message = match scales.get(name) {
                Some(scale) => format!(
                    "`{name}{SCALE}` is {} {:?}, should be one F32, F16 or BF16: this method has one scale per tensor",
                    scale.dtype, scale.shape
                ),
                None => format!(
                    "tensor `{name}` is {} and has no `{name}{SCALE}`; of a checkpoint in several files give the directory \
                     or the model.safetensors.index.json, else download the checkpoint again",
                    tensor.dtype
                ),
            };
            return Err(foreign(path, message));
        }
        let bias = name.strip_suffix("weight").and_then(|layer| biases.get(layer));
        if let Some(bias) = bias.filter(|&&bias| bias != rows) {
            return Err(foreign(
                path,
                format!(
                    "tensor `{name}` has {rows} rows, four in each of {}, but its bias {bias}: rows that are no \
                     multiple of 4 were filled up, which transformers does not load either; export that layer dense",
                    tensor.shape[0]
                ),
            ));
        }
    }
    Ok(())
}

/// What looks odd about a checkpoint with such a config.
fn warnings(checkpoint: &Checkpoint, pairs: &BTreeMap<String, f32>, config: &Map<String, Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    let online = config.get("quantization_mode").is_some_and(|mode| mode == "online");
    if online && !pairs.is_empty() {
        warnings.push(
            "quantization_mode is \"online\", as for weights that learn, but weights are packed; they are taken as packed"
                .to_owned(),
        );
    } else if online {
        warnings.push(
            "quantization_mode is \"online\": the weights are those that learn, the network computes with \
             mean|W|·round(W / mean|W|) per tensor; pack with --method absmean --granularity tensor"
                .to_owned(),
        );
    } else if pairs.is_empty() {
        warnings.push("config.json says quant_method \"bitnet\", but no weight is packed; taken as floats".to_owned());
    }
    let floats: BTreeSet<&str> =
        checkpoint.tensors().filter(|tensor| !is_packed(tensor) && is_weight(tensor.name)).map(|t| t.name).collect();
    let mut scaled = checkpoint.tensors().filter_map(|tensor| tensor.name.strip_suffix(SCALE));
    if let Some(weight) = scaled.find(|weight| floats.contains(weight)) {
        warnings.push(format!(
            "`{weight}` has a `{weight}{SCALE}` but is not packed; both are taken as they are, the scale is not applied"
        ));
    }
    warnings
}

/// α of every weight. A scale that makes sense with the other meaning only is refused where the config does not state
/// one, and named where it does.
fn alphas<'p>(
    path: &Path,
    pairs: &'p BTreeMap<String, f32>,
    meaning: Meaning,
    stated: bool,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<&'p str, f32>> {
    let mut alphas = BTreeMap::new();
    let mut odd: Option<(usize, String)> = None;
    for (weight, &scale) in pairs {
        let inverse = (1.0 / f64::from(scale)) as f32;
        let (name, alpha, other_name, other) = match meaning {
            Meaning::Inverse => ("bitlinear", inverse, "autobitlinear", scale),
            Meaning::Alpha => ("autobitlinear", scale, "bitlinear", inverse),
        };
        if scale.is_finite() && scale >= 0.0 && !alpha.is_finite() {
            return Err(foreign(
                path,
                format!(
                    "`{weight}{SCALE}` is {scale}: as {name} α is its inverse, which is not finite; if scales are α, put \
                     linear_class \"autobitlinear\" into config.json's quantization_config, else give the floats that the \
                     checkpoint was made from"
                ),
            ));
        }
        if !scale.is_finite() || scale < 0.0 {
            return Err(foreign(
                path,
                format!("`{weight}{SCALE}` is {scale}, should be finite and positive; download the checkpoint again"),
            ));
        }
        // Zero says nothing: the weights of an all-zero tensor are zero either way.
        if alpha != 0.0 && !PLAUSIBLE.contains(&alpha) && PLAUSIBLE.contains(&other) {
            let count = odd.as_ref().map_or(0, |(count, _)| *count) + 1;
            let first = odd.take().map(|(_, first)| first);
            let words = || {
                format!(
                    "`{weight}{SCALE}` is {scale}: as {name} α is {alpha}, as {other_name} it would be {other}, which \
                     trained layers have"
                )
            };
            odd = Some((count, first.unwrap_or_else(words)));
        }
        alphas.insert(weight.as_str(), alpha);
    }
    match odd {
        Some((count, first)) if stated => {
            let of = pairs.len();
            warnings.push(format!(
                "{first}; {count} of {of} scales are like that. If the model's outputs are wrong, correct linear_class \
                 in config.json"
            ));
        }
        Some((_, first)) => {
            let message = "; state linear_class in config.json's quantization_config (without it, it is bitlinear)";
            return Err(foreign(path, first + message));
        }
        None => {}
    }
    Ok(alphas)
}

fn foreign(path: &Path, message: String) -> Error {
    super::foreign(path, FORMAT, message)
}
