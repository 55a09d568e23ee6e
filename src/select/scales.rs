//! Tensors that are scales of weights which another program has quantized: ternary ones would ruin those. By their names,
//! by codes in the same module, or as the importer says. Not here: weights that are read as the ternary ones that they are.

use std::cell::OnceCell;
use std::collections::HashMap;

use crate::Dtype;
use crate::dtype::is_float;
use crate::source::{Checkpoint, TensorView};

/// What scales are called (bitsandbytes, GPTQ, AWQ, compressed-tensors, FP8, HQQ, quanto, VPTQ), and what the weights are whose
/// scales they are: both stand behind the same name.
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

/// How the names of masks and indices end, which ordinary modules have beside their floats.
const BUFFERS: [&str; 4] = ["bias", "mask", "index", "ids"];

/// A checkpoint's tensors, by name.
pub(super) struct Quantized<'c> {
    checkpoint: &'c Checkpoint,
    /// Made when a name asks for it.
    known: OnceCell<Known<'c>>,
}

#[derive(Default)]
struct Known<'c> {
    dtypes: HashMap<&'c str, Dtype>,
    /// The first codes of each module that directly holds some.
    codes: HashMap<&'c str, &'c str>,
}

impl<'c> Quantized<'c> {
    pub fn new(checkpoint: &'c Checkpoint) -> Self {
        Self { checkpoint, known: OnceCell::new() }
    }

    fn known(&self) -> &Known<'c> {
        self.known.get_or_init(|| {
            let mut known = Known::default();
            for tensor in self.checkpoint.tensors() {
                known.dtypes.insert(tensor.name, tensor.dtype);
                if let Some((module, last)) = tensor.name.rsplit_once('.')
                    && are_codes(tensor, last)
                {
                    known.codes.entry(module).or_insert(tensor.name);
                }
            }
            known
        })
    }

    /// The weights that the tensor has the scales of, in words.
    pub fn scales_of(&self, tensor: TensorView<'_>) -> Option<String> {
        let name = tensor.name;
        if self.checkpoint.is_scales(name) {
            return Some("quantized weights".to_owned());
        }
        let candidates = SUFFIXES.iter().filter_map(|(suffix, weights)| Some((name.strip_suffix(suffix)?, weights)));
        let mut weights =
            candidates.flat_map(|(stem, weights)| weights.iter().map(move |weight| format!("{stem}{weight}")));
        let is_quantized = |dtype: &Dtype| !is_float(*dtype) || matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2);
        let found = weights.find(|name| self.known().dtypes.get(name.as_str()).is_some_and(is_quantized));
        found.map(|name| format!("`{name}`")).or_else(|| self.beside(tensor))
    }

    /// The codes in the same module as a tensor of floats (MLX, AQLM, HIGGS, …): whatever it is called, it belongs to
    /// them. Floats that are called weights may stand beside a mask.
    fn beside(&self, tensor: TensorView<'_>) -> Option<String> {
        let (module, last) = tensor.name.rsplit_once('.')?;
        if last.ends_with("weight") || !is_float(tensor.dtype) || tensor.shape.len() < 2 {
            return None;
        }
        self.known().codes.get(module).map(|codes| format!("`{codes}`, or what else belongs to it"))
    }
}

/// Whether a tensor may be weights that are quantized. I64 and BOOL are indices and masks; ternary tensors, which are moved,
/// have one dimension here.
fn are_codes(tensor: TensorView<'_>, last: &str) -> bool {
    use Dtype::{F4, F8_E8M0, I8, I16, I32, U8, U16, U32};
    matches!(tensor.dtype, U8 | I8 | U16 | I16 | U32 | I32 | F4 | F8_E8M0)
        && tensor.shape.len() >= 2
        && !BUFFERS.iter().any(|buffer| last.ends_with(buffer))
}
