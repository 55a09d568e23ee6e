//! The tensors of a given GGUF file replaced by those of a container: its keys stay, and so do its other tensors, byte
//! for byte. Not here: what a tensor becomes (`tensor`).

use std::collections::BTreeMap;
use std::path::Path;

use super::tensor::{self, Made, Rows};
use super::{FILE_TYPE, QUANTIZATION_VERSION, Written, line, parts, warn_of_rounding};
use crate::error::CheckpointProblem;
use crate::export::{Export, Options, Part};
use crate::gguf::{Block, FORMAT, Header, Kind, number_pair};
use crate::{Container, Error, MappedFile, Result, Tensor};

pub(super) fn export<'a>(block: Block, container: &'a Container, into: &Path, options: &Options) -> Result<Export<'a>> {
    if options.planes_as_tensors {
        let message = "--planes-as-tensors makes tensors that no model has: leave it out, or --into";
        return Err(Error::Request(message.to_owned()));
    }
    let foreign = |message| Error::Checkpoint {
        path: into.to_path_buf(),
        problem: CheckpointProblem::Foreign { format: FORMAT, message },
    };
    let file = MappedFile::open(into)?;
    let header = Header::parse(&file).map_err(foreign)?;
    if let Some(count) = header.count("split.count").filter(|&count| count > 1) {
        return Err(foreign(format!("it is one of {count} files; merge them with llama-gguf-split --merge first")));
    }
    let numbers: BTreeMap<&str, usize> = header.tensors.iter().enumerate().map(|(i, t)| (t.name, i)).collect();
    // Even where nothing of its data goes into the new one.
    let inputs = vec![into.to_path_buf()];
    let (mut export, mut replaced) = (Export { inputs, ..Export::default() }, BTreeMap::new());
    for (entry, tensor) in options.tensors_with_scales(container)? {
        let name = entry.name.as_str();
        let made = find(name, &tensor, &header, &numbers)
            .and_then(|(number, rows)| replacement(name, &tensor, block, &header, number, rows, options));
        let made = made.and_then(|(number, rows, made)| match replaced.contains_key(&number) {
            true => Err(format!("`{}` is replaced by another tensor already", header.tensors[number].name)),
            false => Ok((vec![(number, made)], rows)),
        });
        let (made, rows) = made.map_or_else(|reason| (Err(reason), Rows::InOrder), |(made, rows)| (Ok(made), rows));
        export.tensors.push(line(name, made, |made| {
            let of_file = |(number, made): (usize, Made<'a>)| {
                let old = &header.tensors[number];
                let mut becomes = format!("{} {:?} in place of {}", made.kind.name, made.shape, old.kind.name);
                if old.name != name {
                    becomes += &format!(" `{}`", old.name);
                }
                if let Rows::Interleaved(_) = rows {
                    becomes += ", its rows in llama.cpp's order";
                }
                replaced.insert(number, made);
                becomes
            };
            made.into_iter().map(of_file).collect()
        }));
    }
    warn_of_rounding(&mut export);
    let mut keys: Vec<Vec<u8>> = header.keys.iter().map(|key| key.bytes.to_vec()).collect();
    if replaced.values().any(|made| made.kind.kind == Kind::Ternary(block)) {
        let mut set =
            |name: &str, pair: Vec<u8>, replace: bool| match header.keys.iter().position(|key| key.name == name) {
                Some(at) if replace => keys[at] = pair,
                Some(_) => {}
                None => keys.push(pair),
            };
        set(FILE_TYPE, number_pair(FILE_TYPE, block.file_type()), true);
        let (name, version) = QUANTIZATION_VERSION;
        set(name, number_pair(name, version), false);
    }
    let written = header.tensors.iter().enumerate().map(|(number, old)| {
        let (kind, part) = match replaced.remove(&number) {
            Some(made) => (made.kind, made.part),
            None => (old.kind, Part::of_file(&file, old.range.clone())),
        };
        Written { name: old.name.to_owned(), shape: old.shape.clone(), kind, part }
    });
    export.parts = parts(header.version, header.alignment, &keys, written.collect());
    Ok(export)
}

/// The file's tensor that has the same place in the model, and the order of rows there.
fn find(
    name: &str,
    tensor: &Tensor<'_>,
    header: &Header<'_>,
    numbers: &BTreeMap<&str, usize>,
) -> Result<(usize, Rows), String> {
    if let Some(&number) = numbers.get(name) {
        return Ok((number, Rows::InOrder));
    }
    let architecture = header.text("general.architecture").unwrap_or("?");
    let none = |known_as: &str| {
        let known = match architecture {
            "llama" => String::new(),
            other => format!(" (its architecture is `{other}`; names of Hugging Face are known for `llama` alone)"),
        };
        format!(
            "the file has no tensor of that name{known_as}{known}; leave it out with --leave-out, give the file of the \
             same model, or pack that file itself, whose names agree"
        )
    };
    let (known_as, heads) = llama_name(name).filter(|_| architecture == "llama").ok_or_else(|| none(""))?;
    let &number = numbers.get(known_as.as_str()).ok_or_else(|| none(&format!(", nor `{known_as}`")))?;
    let rows = match heads {
        None => Rows::InOrder,
        Some(key) => {
            let count = header.value(key).map_or("llama.attention.head_count", |_| key);
            let rows = match tensor {
                Tensor::Dense(dense) => dense.shape.first(),
                Tensor::Int8(int8) => int8.shape.first(),
                Tensor::Ternary(ternary) => ternary.shape.first(),
            };
            let rows = rows.copied().unwrap_or_default();
            let heads = header
                .count(count)
                .filter(|&heads| heads > 0 && heads < rows as u64 && (rows as u64).is_multiple_of(2 * heads));
            let heads = heads.ok_or_else(|| {
                let found = header.value(count).map_or("missing".to_owned(), |value| value.to_string());
                format!(
                    "its {rows} rows go to heads in another order in llama.cpp, and `{count}` is {found}, expected the \
                     number of heads, of an even number of rows each; convert the model anew, or pack that file itself, whose rows \
                     are in llama.cpp's order"
                )
            })?;
            Rows::Interleaved(rows / heads as usize)
        }
    };
    Ok((number, rows))
}

/// What a tensor of Llama is called in Hugging Face checkpoints and in GGUF; where its rows are reordered on the way, also the
/// key that says for how many heads.
fn llama_name(name: &str) -> Option<(String, Option<&'static str>)> {
    let whole = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Some((whole.to_owned(), None));
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    if !layer.bytes().all(|byte| byte.is_ascii_digit()) || !["weight", "bias"].contains(&part) {
        return None;
    }
    let (module, heads) = match module {
        "self_attn.q_proj" => ("attn_q", Some("llama.attention.head_count")),
        "self_attn.k_proj" => ("attn_k", Some("llama.attention.head_count_kv")),
        "self_attn.v_proj" => ("attn_v", None),
        "self_attn.o_proj" => ("attn_output", None),
        "mlp.gate_proj" => ("ffn_gate", None),
        "mlp.up_proj" => ("ffn_up", None),
        "mlp.down_proj" => ("ffn_down", None),
        "input_layernorm" => ("attn_norm", None),
        "post_attention_layernorm" => ("ffn_norm", None),
        _ => return None,
    };
    Some((format!("blk.{layer}.{module}.{part}"), heads))
}

/// The tensor in the place of that of the file.
fn replacement<'a>(
    name: &str,
    tensor: &Tensor<'a>,
    block: Block,
    header: &Header<'_>,
    number: usize,
    rows: Rows,
    options: &Options,
) -> Result<(usize, Rows, Made<'a>), String> {
    let old = &header.tensors[number];
    let made = tensor::make(name, tensor, 0, block, rows, Some(old.kind), options)?;
    if made.shape != old.shape {
        return Err(format!(
            "shape {:?}, the file's `{}` has {:?}; is it the file of the same model?",
            made.shape, old.name, old.shape
        ));
    }
    if matches!(made.kind.kind, Kind::Plain(_)) && made.dtype.is_some() {
        let dtype = made.dtype.map(|dtype| dtype.to_string()).unwrap_or_default();
        return Err(format!(
            "{dtype}, which GGUF has no type for; pack a checkpoint with another one, F32 for example"
        ));
    }
    made.kind.length(&made.shape).map_err(|_| {
        format!("rows of {:?} weights, {} takes multiples of {}", made.shape.last(), made.kind.name, made.kind.block)
    })?;
    Ok((number, rows, made))
}
