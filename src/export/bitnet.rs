//! `.twn` → a BitNet checkpoint of Hugging Face transformers (`quant_method` "bitnet"): of each ternary weight
//! `X.weight`, U8 `[out/4, in]`, whose byte (r, c) holds t+1 of rows r, r+R, r+2R, r+3R (R = out/4) in bits 0, 2, 4, 6,
//! and `X.weight_scale`, F32 `[1]`, the one α (`linear_class` "autobitlinear": nothing is inverted). Not here: reading
//! them ([`crate::import`]).

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::hugging_face::{Checkpoint, INT8, config, experts, file, layer, linear, shadowed};
use super::{Export, Exporter, Options, Part, some};
use crate::container::TernaryTensor;
use crate::pack::join_rows;
use crate::source::model_config;
use crate::{Container, Dtype, Encoding, Error, Isa, Result, Tensor};

/// The format.
pub(super) struct BitNet;

/// Heads as the modules of transformers are called that ties them to the embedding, so that files do not hold them:
/// linear layers all the same. By the ends of names; with `$`, whole ones, as other modules begin with these.
const HEADS: [&str; 15] = [
    "lm_head",
    "head.decoder",
    "lm_head.out_proj",
    "predictions.decoder",
    "mlm_score.decoder",
    "vocab_projector",
    "embed_out",
    "proj_out",
    "output_projection",
    "pred_layer.proj",
    "lm_loss",
    "ctc_head",
    "decoder$",
    "head$",
    "output$",
];

impl Exporter for BitNet {
    fn name(&self) -> &'static str {
        "bitnet"
    }

    fn about(&self) -> &'static str {
        "safetensors of Hugging Face BitNet, one scale per tensor; --into the model's config.json"
    }

    fn export<'a>(&self, container: &'a Container, options: &Options) -> Result<Export<'a>> {
        if options.planes_as_tensors {
            let message = "a linear layer of this format has one plane: leave out --planes-as-tensors";
            return Err(Error::Request(message.to_owned()));
        }
        let config_before = options.into.as_deref().map(model_config).transpose()?;
        let (mut checkpoint, mut packed) = (Checkpoint::default(), BTreeSet::new());
        for (entry, tensor) in options.tensors_with_scales(container)? {
            let name = entry.name.as_str();
            checkpoint.begin(name);
            match tensor {
                Tensor::Dense(dense) => checkpoint.dense(name, &dense),
                Tensor::Int8(_) => checkpoint.refuse(entry, tensor, INT8.to_owned(), options.refused_as_dense),
                Tensor::Ternary(ternary) => match alpha(name, &ternary) {
                    Ok((layer, alpha)) => {
                        packed.insert(layer);
                        let shape = [ternary.filters / 4, ternary.filter_len];
                        checkpoint.add(name.to_owned(), Dtype::U8, &shape, quarters(name, ternary));
                        let scale = Part::bytes(alpha.to_le_bytes().to_vec());
                        checkpoint.add(format!("{name}_scale"), Dtype::F32, &[1], scale);
                    }
                    Err(reason) => {
                        checkpoint.refuse(entry, Tensor::Ternary(ternary), reason, options.refused_as_dense);
                    }
                },
            }
        }
        let left_out = checkpoint.dense.clone();
        let dense: BTreeSet<&str> = left_out.iter().map(String::as_str).collect();
        checkpoint.refuse_by_name(|tensor| {
            let other = shadowed(layer(tensor).filter(|layer| packed.contains(layer))?, &dense)?;
            Some(format!(
                "transformers would take it for dense, because `{other}` is and begins or ends its name; make both dense \
                 (--exclude when packing) or both ternary"
            ))
        });
        // None by which a layer would be left out that is packed.
        let is_packed = |head: &str| match head.strip_suffix('$') {
            Some(whole) => packed.contains(whole),
            None => packed.iter().any(|layer| shadowed(layer, &BTreeSet::from([head])).is_some()),
        };
        let heads = HEADS.into_iter().filter(|head| !dense.contains(head) && !is_packed(head));
        let left_out: Vec<&str> = left_out.iter().map(String::as_str).chain(heads).collect();
        let mut quantization = json!({
            "linear_class": "autobitlinear", "modules_to_not_convert": left_out, "quant_method": "bitnet",
            "quantization_mode": "offline",
        });
        let mut export = checkpoint.finish(container);
        export.inputs.extend(options.into.clone());
        export.warnings.extend(experts(packed.iter().copied()));
        // Its class keeps them as they are, whatever the config says (`_keep_in_fp32_modules`).
        let of_t5: Vec<_> = packed.iter().copied().filter(|layer| layer.ends_with("DenseReluDense.wo")).collect();
        if !of_t5.is_empty() {
            export.warnings.push(format!(
                "transformers leaves `wo` of T5 dense and does not load packed ones: {}; keep them dense when packing \
                 (--exclude '*.wo.weight')",
                some(&of_t5)
            ));
        }
        match config_before {
            Some(before) => {
                keep_norm(&before, &mut quantization);
                export.beside.push(config(before, &quantization));
            }
            None => {
                export.beside.push(file("quantization_config.json", &quantization));
                export.warnings.push(
                    "transformers reads `quantization_config` in the model's config.json: put quantization_config.json \
                     there, or give that config with --into"
                        .to_owned(),
                );
            }
        }
        Ok(export)
    }
}

/// What a BitNet config says of a norm in front of each layer changes what the model computes, so it stays.
fn keep_norm(before: &Map<String, Value>, quantization: &mut Value) {
    let Some(old) = before.get("quantization_config").filter(|old| old["quant_method"] == "bitnet") else { return };
    for key in ["rms_norm_eps", "use_rms_norm"] {
        if let Some(value) = old.get(key) {
            quantization[key] = value.clone();
        }
    }
}

/// The layer and its one scale.
fn alpha<'n>(name: &'n str, ternary: &TernaryTensor<'_>) -> Result<(&'n str, f32), String> {
    let layer = linear(name, ternary)?;
    if !ternary.filters.is_multiple_of(4) {
        return Err(format!("its {} rows are no multiple of 4", ternary.filters));
    }
    let mut scales = ternary.scales();
    match scales.next() {
        Some(first) if !first.is_finite() || first < 0.0 => Err(format!("its scale is {first}; pack it again")),
        Some(first) if scales.all(|scale| scale.to_bits() == first.to_bits()) => Ok((layer, first)),
        _ => Err(format!(
            "has one scale per {}, the format one per tensor; pack it again with granularity=tensor",
            ternary.granularity
        )),
    }
}

/// The rows of four quarters in one.
fn quarters<'a>(name: &str, ternary: TernaryTensor<'a>) -> Part<'a> {
    let (rows, columns) = (ternary.filters / 4, ternary.filter_len);
    Part::rows(name, rows, columns, move |range, bytes| {
        if ternary.encoding == Encoding::T2 && columns.is_multiple_of(4) {
            let isa = Isa::detect().unwrap_or(Isa::PORTABLE);
            let rows = |row: usize| [0, 1, 2, 3].map(|quarter| ternary.packed_filter(0, quarter * rows + row));
            let mut whole = range.zip(bytes.chunks_exact_mut(columns.max(1)));
            let valid = whole.all(|(row, out)| join_rows(isa, rows(row), out));
            return if valid {
                Ok(())
            } else {
                Err("a code is 3, should be 0, 1 or 2; run twn-pack verify".to_owned())
            };
        }
        let mut codes = vec![0; columns];
        for (row, bytes) in range.zip(bytes.chunks_exact_mut(columns.max(1))) {
            for quarter in 0..4 {
                ternary.codes(0, quarter * rows + row, &mut codes)?;
                bytes.iter_mut().zip(&codes).for_each(|(byte, code)| *byte |= code << (2 * quarter));
            }
        }
        Ok(())
    })
}
