//! Tensors that belong to weights which another program has quantized: ternary ones would ruin those. By their names, by
//! codes or 8-bit floats in the same module, or as the importer says. Not here: weights that are read as the ternary ones
//! that they are.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use super::decide::SEPARATORS;
use crate::Dtype;
use crate::dtype::is_float;
use crate::source::{Checkpoint, TensorView};

/// What scales are called (bitsandbytes, GPTQ, AWQ, compressed-tensors, FP8, HQQ, quanto, VPTQ), and what the weights are whose
/// scales they are: both stand behind the same name. A dot in front is any separator, or the beginning of a name.
const SUFFIXES: [(&str, &[&str]); 15] = [
    (".scales", &[".qweight"]),
    (".scale", &[".W_q", ".weight"]),
    (".zero", &[".W_q"]),
    ("_scale", &["", "_packed"]),
    ("_scales", &["", "_blocks"]),
    ("_scale_inv", &[""]),
    ("_scale_2", &["", "_packed"]),
    ("_zero_point", &["", "_packed"]),
    ("._scale", &["._data", "._data._data"]),
    ("._shift", &["._data", "._data._data"]),
    (".absmax", &[""]),
    (".SCB", &[".weight"]),
    (".input_scale", &[".weight"]),
    (".centroids.weight", &[".indices"]),
    (".res_centroids.weight", &[".indices"]),
];

/// What stands behind the name of weights of bitsandbytes, whose bytes may be stored as any type.
const STATES: [&str; 2] = [".quant_map", ".quant_state."];

/// How the names of masks and indices end, which ordinary modules have beside their floats.
const BUFFERS: [&str; 4] = ["bias", "mask", "index", "ids"];

/// A checkpoint's tensors, by name.
pub(super) struct Quantized<'c> {
    checkpoint: &'c Checkpoint,
    /// Made when a name asks for it.
    known: OnceCell<Known<'c>>,
    /// Weights that have a state beside them, likewise.
    packed: OnceCell<HashSet<&'c str>>,
}

#[derive(Default)]
struct Known<'c> {
    dtypes: HashMap<&'c str, Dtype>,
    /// The first codes of each module that directly holds some.
    codes: HashMap<&'c str, &'c str>,
    /// The first matrices of 8-bit floats, likewise.
    float8: HashMap<&'c str, &'c str>,
}

impl<'c> Quantized<'c> {
    pub fn new(checkpoint: &'c Checkpoint) -> Self {
        Self { checkpoint, known: OnceCell::new(), packed: OnceCell::new() }
    }

    fn known(&self) -> &Known<'c> {
        self.known.get_or_init(|| {
            let mut known = Known::default();
            for tensor in self.checkpoint.tensors() {
                known.dtypes.insert(tensor.name, tensor.dtype);
                let (module, last) = in_module(tensor.name);
                if are_codes(tensor, last) {
                    known.codes.entry(module).or_insert(tensor.name);
                } else if is_float8(tensor.dtype) && tensor.shape.len() >= 2 {
                    known.float8.entry(module).or_insert(tensor.name);
                }
            }
            known
        })
    }

    /// Why a tensor is to stay dense unless asked for, and whether it is the scales of something.
    pub fn reason(&self, tensor: TensorView<'_>) -> Option<(Cow<'static, str>, bool)> {
        if let Some(weights) = self.scales_of(tensor) {
            return Some((format!("scales of {weights}").into(), true));
        }
        let packed = is_float(tensor.dtype) && tensor.shape.len() >= 2 && self.is_packed(tensor.name);
        packed.then_some(("quantized, by what stands below its name".into(), false))
    }

    /// Whether a tensor is the bytes of quantized weights, whatever its type says.
    fn is_packed(&self, name: &str) -> bool {
        let packed = self.packed.get_or_init(|| {
            let names = self.checkpoint.tensors().map(|tensor| tensor.name);
            names.filter_map(|name| STATES.iter().find_map(|state| Some(name.split_once(state)?.0))).collect()
        });
        packed.contains(name)
    }

    /// The weights that the tensor has the scales of, in words.
    fn scales_of(&self, tensor: TensorView<'_>) -> Option<String> {
        let name = tensor.name;
        if self.checkpoint.is_scales(name) {
            return Some("quantized weights".to_owned());
        }
        let candidates = SUFFIXES.iter().filter_map(|(suffix, weights)| Some((stem(name, suffix)?, weights)));
        let mut weights = candidates.flat_map(|(stem, weights)| weights.iter().map(move |last| joined(stem, last)));
        weights.find(|name| self.is_quantized(name)).map(|name| format!("`{name}`")).or_else(|| self.beside(tensor))
    }

    fn is_quantized(&self, name: &str) -> bool {
        let dtype = self.known().dtypes.get(name);
        dtype.is_some_and(|&dtype| !is_float(dtype) || is_float8(dtype)) || self.is_packed(name)
    }

    /// The codes in the same module as a matrix of floats (MLX, AQLM, HIGGS, …): whatever it is called, it belongs to
    /// them; but floats that are called weights may stand beside a mask. What is called scales has some of any shape, and
    /// beside 8-bit floats, too, which ordinary networks may consist of; or stands below the weights themselves.
    fn beside(&self, tensor: TensorView<'_>) -> Option<String> {
        let (module, last) = in_module(tensor.name);
        let is_scale = last.to_lowercase().contains("scal");
        let may_be = is_scale || tensor.shape.len() >= 2 && !last.ends_with("weight");
        if module.is_empty() || !is_float(tensor.dtype) || !may_be {
            return None;
        }
        let known = self.known();
        let codes = known.codes.get(module).copied();
        let float8 = || known.float8.get(module).copied().filter(|_| is_scale && !is_float8(tensor.dtype));
        let above = || Some(module).filter(|module| is_scale && self.is_quantized(module));
        let weights = above().or(codes).or_else(float8)?;
        Some(format!("`{weights}`, or what else belongs to it"))
    }
}

/// The module of a tensor, empty where there is none, and what it is called there.
fn in_module(name: &str) -> (&str, &str) {
    name.rsplit_once(SEPARATORS).unwrap_or(("", name))
}

/// What stands before a suffix: with the separator, where the suffix begins with one.
fn stem<'n>(name: &'n str, suffix: &str) -> Option<&'n str> {
    let Some(last) = suffix.strip_prefix('.') else { return name.strip_suffix(suffix) };
    name.strip_suffix(last).filter(|stem| stem.is_empty() || stem.ends_with(SEPARATORS))
}

/// The name of weights behind a [`stem`].
fn joined(stem: &str, suffix: &str) -> String {
    match suffix.strip_prefix('.') {
        Some(last) => format!("{stem}{last}"),
        None => format!("{}{suffix}", stem.strip_suffix(SEPARATORS).unwrap_or(stem)),
    }
}

fn is_float8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// Whether a tensor may be weights that are quantized. I64 and BOOL are indices and masks; ternary tensors, which are moved,
/// have one dimension here.
fn are_codes(tensor: TensorView<'_>, last: &str) -> bool {
    use Dtype::{F4, F8_E8M0, I8, I16, I32, U8, U16, U32};
    matches!(tensor.dtype, U8 | I8 | U16 | I16 | U32 | I32 | F4 | F8_E8M0)
        && tensor.shape.len() >= 2
        && !BUFFERS.iter().any(|buffer| last.ends_with(buffer))
}
