//! Tensors that are scales of weights which another program has quantized: ternary ones would ruin those. By their names,
//! or as the importer says. Not here: weights that are read as the ternary ones that they are.

use std::cell::OnceCell;
use std::collections::HashMap;

use crate::Dtype;
use crate::dtype::is_float;
use crate::source::Checkpoint;

/// What scales are called (bitsandbytes, GPTQ, AWQ, compressed-tensors, FP8, HQQ, quanto), and what the weights are whose
/// scales they are: both stand behind the same name.
const SUFFIXES: [(&str, &[&str]); 10] = [
    (".scales", &[".qweight"]),
    (".scale", &[".W_q", ".weight"]),
    (".zero", &[".W_q"]),
    ("_scale", &["", "_packed"]),
    ("_scales", &["", "_blocks"]),
    ("_scale_inv", &[""]),
    ("_scale_2", &["", "_packed"]),
    ("_zero_point", &["", "_packed"]),
    ("._scale", &["._data"]),
    (".absmax", &[""]),
];

/// The types of a checkpoint's tensors, by name.
pub(super) struct Quantized<'c> {
    checkpoint: &'c Checkpoint,
    /// Made when a name asks for it.
    dtypes: OnceCell<HashMap<&'c str, Dtype>>,
}

impl<'c> Quantized<'c> {
    pub fn new(checkpoint: &'c Checkpoint) -> Self {
        Self { checkpoint, dtypes: OnceCell::new() }
    }

    /// The weights that the tensor of that name has the scales of, in words.
    pub fn scales_of(&self, name: &str) -> Option<String> {
        if self.checkpoint.is_scales(name) {
            return Some("quantized weights".to_owned());
        }
        let candidates = SUFFIXES.iter().filter_map(|(suffix, weights)| Some((name.strip_suffix(suffix)?, weights)));
        let mut weights =
            candidates.flat_map(|(stem, weights)| weights.iter().map(move |weight| format!("{stem}{weight}")));
        let is_quantized = |dtype: &Dtype| !is_float(*dtype) || matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2);
        let dtypes = || self.checkpoint.tensors().map(|tensor| (tensor.name, tensor.dtype)).collect();
        let found = weights.find(|name| self.dtypes.get_or_init(dtypes).get(name.as_str()).is_some_and(is_quantized));
        found.map(|name| format!("`{name}`"))
    }
}
