//! `.twn` → GPTQ-style safetensors (version 1, symmetric, 2 bits), for the torch stacks that read it. Of each ternary
//! weight `X.weight` `[out, in]`, with groups of g inputs (or one, of all):
//!
//! ```text
//! X.qweight  I32 [in/16, out]    16 consecutive inputs of an output, the first in the low bits; t + 2
//! X.scales   F16 [in/g, out]     α
//! X.qzeros   I32 [in/g, out/16]  the zero, 2, less one, as this version has it, in every field
//! X.g_idx    I32 [in]            the group of each input
//! ```
//!
//! Not here: GPTQ itself (`--calibration`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use half::f16;
use serde_json::{Map, Value, json};

use super::hugging_face::{Checkpoint, INT8, config, experts, f16_rounding, file, linear};
use super::{Export, Exporter, Options, Part, some};
use crate::container::{TensorEntry, TernaryTensor};
use crate::source::model_config;
use crate::{Container, Dtype, Encoding, Error, Result, Tensor};

/// The format.
pub(super) struct Gptq;

/// Weights in a word.
const WORD: usize = 16;

/// What readers of the format have kernels for.
const GROUPS: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];

/// The blocks that optimum looks for in a model, the first of these by which the name of any module begins.
const BLOCKS: [&str; 8] = [
    "transformer.h",
    "model.decoder.layers",
    "gpt_neox.layers",
    "model.layers",
    "model.language_model.layers",
    "h",
    "decoder.layers",
    "layers",
];

/// Outputs whose words are made together: a line of the cache.
const BLOCK: usize = 16;

impl Exporter for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn about(&self) -> &'static str {
        "GPTQ safetensors of 2 bits, symmetric, for torch; --into the model's config.json"
    }

    fn export<'a>(&self, container: &'a Container, options: &Options) -> Result<Export<'a>> {
        if options.planes_as_tensors {
            let message = "a linear layer of this format has one plane: leave out --planes-as-tensors";
            return Err(Error::Request(message.to_owned()));
        }
        let config_before = options.into.as_deref().map(model_config).transpose()?;
        let tensors = options.tensors_with_scales(container)?;
        let group = group_size(&tensors);
        let names: Vec<&str> = tensors.iter().map(|(entry, _)| entry.name.as_str()).collect();
        let (mut checkpoint, mut packed) = (Checkpoint::default(), Vec::new());
        for (entry, tensor) in tensors {
            let name = entry.name.as_str();
            checkpoint.begin(name);
            match tensor {
                Tensor::Dense(dense) => checkpoint.dense(name, &dense),
                Tensor::Int8(_) => checkpoint.refuse(entry, tensor, INT8.to_owned(), options.refused_as_dense),
                Tensor::Ternary(ternary) => match fits(name, &ternary, group) {
                    Ok((layer, rounding)) => {
                        packed.push(layer.to_owned());
                        let group = group.unwrap_or(ternary.filter_len);
                        add(&mut checkpoint, layer, &ternary, group);
                        checkpoint.rounding(rounding);
                    }
                    Err(reason) => {
                        checkpoint.refuse(entry, Tensor::Ternary(ternary), reason, options.refused_as_dense);
                    }
                },
            }
        }
        let mut quantization = quantization(group, &packed, &checkpoint.dense);
        let mut export = checkpoint.finish(container);
        export.warnings.extend(for_transformers(&names, &packed, &mut quantization));
        export.inputs.extend(options.into.clone());
        export.beside.push(file("quantize_config.json", &quantization));
        match config_before {
            Some(before) => export.beside.push(config(before, &quantization)),
            None => export.warnings.push(
                "transformers reads `quantization_config` in the model's config.json: put quantize_config.json there, \
                 or give that config with --into"
                    .to_owned(),
            ),
        }
        Ok(export)
    }
}

/// The weights that share a scale, where they are fewer than a filter.
fn run(ternary: &TernaryTensor<'_>) -> Option<usize> {
    Some(ternary.scale_run()).filter(|&run| run < ternary.filter_len)
}

/// One size for all layers: the smallest, which divides the others; none where every filter has one scale.
fn group_size(tensors: &[(&TensorEntry, Tensor<'_>)]) -> Option<usize> {
    let sizes = tensors.iter().filter_map(|(entry, tensor)| match tensor {
        // What is refused has no say.
        Tensor::Ternary(ternary) => run(ternary).filter(|&run| fits(&entry.name, ternary, Some(run)).is_ok()),
        _ => None,
    });
    sizes.min()
}

/// The layer and the largest relative error of its scales.
fn fits<'n>(name: &'n str, ternary: &TernaryTensor<'_>, group: Option<usize>) -> Result<(&'n str, f64), String> {
    let layer = linear(name, ternary)?;
    let (inputs, outputs) = (ternary.filter_len, ternary.filters);
    for (what, count) in [("inputs", inputs), ("outputs", outputs)] {
        if !count.is_multiple_of(WORD) {
            return Err(format!("its {count} {what} are no multiple of {WORD}"));
        }
    }
    if let Some(run) = run(ternary).filter(|run| !GROUPS.contains(run)) {
        return Err(format!(
            "readers of the format know no groups of {run}; pack it again with granularity=filter or group:n, n one \
             of {GROUPS:?}"
        ));
    }
    // What is refused has no say in the size of the file's groups.
    if let Some(run) = run(ternary).filter(|run| !inputs.is_multiple_of(*run)) {
        return Err(format!(
            "its {inputs} inputs are no multiple of {run}, its group size; pack it again with granularity=filter or \
             group:n, n one of {GROUPS:?} that divides them"
        ));
    }
    if let Some(group) = group.filter(|group| !inputs.is_multiple_of(*group)) {
        return Err(format!(
            "its {inputs} inputs are no multiple of {group}, the group size of the whole file; pack it again with \
             another granularity"
        ));
    }
    Ok((layer, f16_rounding(ternary.scales())?))
}

fn add<'a>(checkpoint: &mut Checkpoint<'a>, layer: &str, ternary: &TernaryTensor<'a>, group: usize) {
    let (inputs, outputs) = (ternary.filter_len, ternary.filters);
    let groups = inputs / group;
    let name = |of: &str| format!("{layer}.{of}");
    let tensor = ternary.clone();
    let qweight = Part::rows(&name("weight"), inputs / WORD, outputs * 4, move |rows, bytes| {
        // A block of outputs at a time, as codes [BLOCK][inputs of these rows].
        let (from, inputs) = (rows.start * WORD, rows.len() * WORD);
        if tensor.encoding == Encoding::T2 {
            return turn(&tensor, rows, bytes);
        }
        let mut codes = vec![0; BLOCK * inputs];
        for first in (0..outputs).step_by(BLOCK) {
            for (output, codes) in (first..outputs).zip(codes.chunks_exact_mut(inputs)) {
                tensor.codes_range(0, output, from..from + inputs, codes)?;
            }
            for (row, bytes) in bytes.chunks_exact_mut(outputs * 4).enumerate() {
                let words = bytes[first * 4..].chunks_exact_mut(4);
                for (codes, bytes) in codes.chunks_exact(inputs).zip(words) {
                    let codes = &codes[row * WORD..][..WORD];
                    let word = codes.iter().rev().fold(0, |word, &code| word << 2 | u32::from(code + 1));
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        Ok(())
    });
    let tensor = ternary.clone();
    let scales = Part::rows(&name("weight"), groups, outputs * 2, move |rows, bytes| {
        for (row, bytes) in rows.zip(bytes.chunks_exact_mut(outputs * 2)) {
            for (output, bytes) in bytes.chunks_exact_mut(2).enumerate() {
                bytes.copy_from_slice(&f16::from_f32(tensor.scale(0, output, row * group)).to_le_bytes());
            }
        }
        Ok(())
    });
    let qzeros = Part::rows(&name("weight"), groups, outputs / WORD * 4, |_, bytes| {
        bytes.fill(0x55);
        Ok(())
    });
    let g_idx = Part::rows(&name("weight"), inputs, 4, move |rows, bytes| {
        for (input, bytes) in rows.zip(bytes.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&((input / group) as u32).to_le_bytes());
        }
        Ok(())
    });
    checkpoint.add(name("qweight"), Dtype::I32, &[inputs / WORD, outputs], qweight);
    checkpoint.add(name("scales"), Dtype::F16, &[groups, outputs], scales);
    checkpoint.add(name("qzeros"), Dtype::I32, &[groups, outputs / WORD], qzeros);
    checkpoint.add(name("g_idx"), Dtype::I32, &[inputs], g_idx);
}

/// The words of codes t+2 from those of `t2`, [outputs][words] to [words][outputs].
fn turn(tensor: &TernaryTensor<'_>, rows: Range<usize>, bytes: &mut [u8]) -> Result<(), String> {
    let (outputs, mut threes) = (tensor.filters, 0);
    // Blocks of lines of the cache, through a place where they do not push each other out of it.
    for first in (0..outputs).step_by(BLOCK) {
        for from in rows.clone().step_by(BLOCK) {
            let count = BLOCK.min(rows.end - from);
            let mut block = [[0_u32; BLOCK]; BLOCK];
            for output in 0..BLOCK {
                let words = &tensor.packed_filter(0, first + output)[from * 4..][..count * 4];
                for (row, word) in block.iter_mut().zip(words.as_chunks::<4>().0) {
                    row[output] = u32::from_le_bytes(*word);
                }
            }
            for (row, words) in block[..count].iter().enumerate() {
                let at = ((from - rows.start + row) * outputs + first) * 4;
                for (out, word) in bytes[at..at + BLOCK * 4].as_chunks_mut::<4>().0.iter_mut().zip(words) {
                    threes |= word & word >> 1 & 0x5555_5555;
                    *out = word.wrapping_add(0x5555_5555).to_le_bytes();
                }
            }
        }
    }
    if threes == 0 { Ok(()) } else { Err("a code is 3, should be 0, 1 or 2; run twn-pack verify".to_owned()) }
}

/// What readers are to be told: `modules_in_block_to_quantize` is for transformers with optimum, `dynamic` (what to
/// leave as it is, as regular expressions) for GPTQModel.
fn quantization(group: Option<usize>, packed: &[String], dense: &[String]) -> Value {
    let skipped: Map<_, _> = dense.iter().map(|layer| (format!("-:^{}$", escaped(layer)), json!({}))).collect();
    let in_blocks: Vec<&str> = packed.iter().map(|layer| in_block(layer)).collect();
    json!({
        "bits": 2, "checkpoint_format": "gptq", "damp_percent": 0.01, "desc_act": false, "dynamic": skipped,
        "format": "gptq", "group_size": group.map_or(json!(-1), |group| json!(group)),
        "lm_head": packed.iter().any(|layer| layer == "lm_head"),
        "meta": { "quantizer": [concat!("twn-pack:", env!("CARGO_PKG_VERSION"))] },
        "modules_in_block_to_quantize": [in_blocks], "pack_dtype": "int32", "quant_method": "gptq",
        "static_groups": false, "sym": true, "true_sequential": true,
    })
}

/// The part of a layer's name that begins with the block's last word, as `layers.0.mlp.up_proj`: transformers may
/// have others in front of it than the file, and optimum compares ends.
fn in_block(layer: &str) -> &str {
    let block = block(layer).unwrap_or_default();
    &layer[block.rfind('.').map_or(0, |dot| dot + 1)..]
}

/// What stands before the first number in a layer's name: `model.layers` of `model.layers.0.mlp.up_proj`.
fn block(layer: &str) -> Option<&str> {
    let number = |rest: &str| rest.split('.').next().is_some_and(|word| word.parse::<u32>().is_ok());
    layer.match_indices('.').find(|(dot, _)| number(&layer[dot + 1..])).map(|(dot, _)| &layer[..dot])
}

/// A name as transformers has it, of those that differ in the file.
fn module(name: &str) -> Cow<'_, str> {
    match name.strip_prefix("language_model.model.") {
        Some(rest) => format!("model.language_model.{rest}").into(),
        None => name.into(),
    }
}

/// Names the block for transformers with optimum, if optimum does not find it; returns what deserves a second look.
fn for_transformers(names: &[&str], packed: &[String], quantization: &mut Value) -> Vec<String> {
    let modules: Vec<_> = packed.iter().map(|layer| module(layer)).collect();
    let found = BLOCKS.into_iter().find(|block| names.iter().any(|name| module(name).starts_with(block)));
    let found = found.filter(|block| modules.iter().any(|module| module.starts_with(block)));
    let mut blocks = BTreeMap::new();
    modules.iter().filter_map(|module| block(module)).for_each(|block| *blocks.entry(block).or_insert(0) += 1);
    let most = blocks.into_iter().max_by_key(|(_, layers)| *layers).map(|(block, _)| block);
    let mut warnings = Vec::new();
    if let (None, Some(block)) = (found, most) {
        quantization["block_name_to_quantize"] = json!(block);
        warnings.push(format!(
            "transformers does not find this model's blocks: `block_name_to_quantize` in the config names `{block}`, as \
             the file does; where the class that loads it has another name (then it reports weights as missing), put \
             that there"
        ));
    }
    let outside = |module: &str| !found.or(most).is_some_and(|block| module.starts_with(block));
    let outside: Vec<_> =
        packed.iter().zip(&modules).filter(|(_, m)| outside(m)).map(|(layer, _)| layer.as_str()).collect();
    if !outside.is_empty() {
        warnings.push(format!(
            "transformers loads packed layers of the model's blocks alone, others get random weights there: {}; keep \
             them dense when packing (--exclude), or load with GPTQModel where it knows the model",
            some(&outside)
        ));
    }
    warnings.extend(
        experts(packed.iter().map(String::as_str))
            .map(|warning| warning + ", or load with GPTQModel where it knows the model"),
    );
    warnings
}

/// A name as a regular expression.
fn escaped(name: &str) -> String {
    let special = |c: char| !c.is_alphanumeric() && c != '_' && c != '-';
    name.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}
