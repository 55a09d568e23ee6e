//! A given model with other tensors in it. Not here: files of tensors alone.

use half::f16;
use twn_pack::export::{self, Options};
use twn_pack::{Dtype, Tensor};

use crate::common::Random;
use crate::file::*;

/// The keys of a model, none of which may change but `general.file_type`.
fn model_keys() -> Vec<Vec<u8>> {
    let tokens: Vec<u8> = [&8u32.to_le_bytes()[..], &3u64.to_le_bytes(), &text("<s>"), &text(""), &text("a")].concat();
    let nested_number = [&4u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[7, 0, 0, 0]].concat();
    let nested_text = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text("a")].concat();
    vec![
        key("general.architecture", 8, &text("llama")),
        number("general.alignment", 64),
        number("general.file_type", 1),
        number("llama.attention.head_count", 4),
        number("llama.attention.head_count_kv", 2),
        key("tokenizer.ggml.tokens", 9, &tokens),
        key("tokenizer.ggml.scores", 9, &[&6u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0; 8]].concat()),
        key("odd", 12, &1.5f64.to_le_bytes()),
        key("nested", 9, &[&9u32.to_le_bytes()[..], &2u64.to_le_bytes(), &nested_number, &nested_text].concat()),
    ]
}

fn model_tensors() -> Vec<Raw> {
    let bytes = |seed: u64, n: usize| (0..n).map(|i| (Random(seed + i as u64).bits() & 0x3b) as u8).collect();
    vec![
        raw("token_embd.weight", &[256, 3], 12, bytes(1, 3 * 144)),
        raw("blk.0.attn_q.weight", &[256, 16], 1, bytes(2, 8192)),
        raw("blk.0.attn_k.weight", &[256, 8], 1, bytes(3, 4096)),
        raw("blk.0.attn_norm.weight", &[256], 0, bytes(4, 1024)),
        raw("blk.0.ffn_down.weight", &[512, 3], 1, bytes(5, 3072)),
        raw("output_norm.weight", &[3], 0, bytes(6, 12)),
    ]
}

#[test]
fn into_keeps_every_other_byte() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(
        directory.path(),
        &[
            ("blk.0.ffn_down.weight", Dtype::F32, &[3, 512], random(1, 1536), ""),
            ("blk.0.attn_k.weight", Dtype::F32, &[8, 256], random(2, 2048), "granularity=tensor"),
            ("output_norm.weight", Dtype::BF16, &[3], vec![0x80, 0x3f, 0, 0x40, 0x40, 0x40], ""),
        ],
        &[],
    );
    let (keys, tensors) = (model_keys(), model_tensors());
    let into = write(directory.path(), "model.gguf", &assemble(64, &keys, &tensors));
    let options = Options { into: Some(into), ..Options::default() };
    let (lines, file) = export(&container, "tq2_0", &options);
    let (found_keys, found) = read(&file.unwrap());
    let expected = read(&assemble(64, &keys, &[])).0;
    assert_eq!(found_keys.len(), expected.len() + 1);
    for (name, value) in &expected {
        let expected = if name == "general.file_type" { &number("", 37)[8..] } else { value };
        assert_eq!(found_keys[name], expected, "{name}");
    }
    assert_eq!(found_keys["general.quantization_version"], &number("", 2)[8..]);
    assert_eq!(found.len(), tensors.len());
    for (old, new) in tensors.iter().zip(&found) {
        assert_eq!((&old.0, &old.1), (&new.0, &new.1));
        match old.0.as_str() {
            name @ ("blk.0.ffn_down.weight" | "blk.0.attn_k.weight") => {
                let Some(Tensor::Ternary(ternary)) = container.by_name(name) else { panic!() };
                let rounded = ternary.to_array().unwrap();
                let rounded = rounded.iter().map(|&value| f16::from_f32(value).to_f32());
                assert!(new.2 == 35 && rounded.eq(values(35, &new.3)), "{name}");
            }
            // llama.cpp wants norms in F32: widened, exactly.
            "output_norm.weight" => assert_eq!((new.2, &new.3), (0, &f32s([1.0, 2.0, 3.0]))),
            name => assert_eq!(old, new, "{name}"),
        }
    }
    assert!(lines[0].becomes.as_ref().unwrap().contains("in place of F"), "{lines:?}");
}

/// llama.cpp has no arithmetic for F64: rounded where that is asked for, and said.
#[test]
fn doubles_do_not_go_into_a_model_unasked() {
    let directory = tempfile::tempdir().unwrap();
    let into = write(directory.path(), "model.gguf", &assemble(64, &model_keys(), &model_tensors()));
    let of = |values: [f64; 3]| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        pack(directory.path(), &[("output_norm.weight", Dtype::F64, &[3], bytes, "")], &[])
    };
    let (container, mut options) = (of([1.0, -0.1, 3.0]), Options { into: Some(into), ..Options::default() });
    let (lines, _) = export(&container, "tq2_0", &options);
    assert!(lines[0].becomes.as_ref().unwrap_err().contains("--refused-as-dense rounds it to F32"), "{lines:?}");
    options.refused_as_dense = true;
    let (lines, file) = export(&container, "tq2_0", &options);
    assert!(lines[0].becomes.as_ref().unwrap().contains("rounded from F64"), "{lines:?}");
    let tensors = read(&file.unwrap()).1;
    assert_eq!((tensors[5].2, &tensors[5].3), (0, &f32s([1.0, -0.1, 3.0])));
    let (_, file) = export(&of([1e300, 1.0, 2.0]), "tq2_0", &options);
    assert!(file.unwrap_err().to_string().contains("1e300 is beyond F32"));
    // A file of tensors alone has the type.
    let (lines, _) = export(&container, "tq2_0", &Options::default());
    assert!(lines[0].becomes.as_ref().unwrap().contains("F64 [3]"), "{lines:?}");
}

/// The order of rows, as `permute` of llama.cpp's converter has it:
/// `reshape(heads, 2, rows / heads / 2, …).swapaxes(1, 2)`.
#[test]
fn names_of_hugging_face_are_found_and_rows_reordered() {
    let directory = tempfile::tempdir().unwrap();
    let row = |i: usize| std::iter::repeat_n((i + 1) as f32, 256);
    let rows = |n: usize| f32s((0..n).flat_map(row));
    let container = pack(
        directory.path(),
        &[
            ("model.layers.0.self_attn.q_proj.weight", Dtype::F32, &[16, 256], rows(16), "method=auto"),
            ("model.layers.0.self_attn.k_proj.weight", Dtype::F32, &[8, 256], rows(8), "keep=dense"),
            ("model.layers.0.mlp.down_proj.weight", Dtype::F32, &[3, 512], random(1, 1536), ""),
            ("model.norm.weight", Dtype::F32, &[3], random(1, 3), ""),
        ],
        &[],
    );
    let into = write(directory.path(), "model.gguf", &assemble(64, &model_keys(), &model_tensors()));
    let options = Options { into: Some(into), ..Options::default() };
    let (lines, file) = export(&container, "q2_0", &options);
    let (keys, tensors) = read(&file.unwrap());
    assert_eq!(keys["general.file_type"], &number("", 41)[8..]);
    let firsts = |values: Vec<f32>| values.chunks(256).map(|row| row[0] as usize - 1).collect::<Vec<_>>();
    let permuted = |heads: usize, rows: usize| {
        let half = rows / heads / 2;
        (0..heads).flat_map(|h| (0..half).flat_map(move |j| [0, 1].map(|s| (h * 2 + s) * half + j))).collect::<Vec<_>>()
    };
    assert_eq!(permuted(2, 8), [0, 2, 1, 3, 4, 6, 5, 7]);
    assert_eq!((tensors[1].2, firsts(values(42, &tensors[1].3))), (42, permuted(4, 16)));
    let dense: Vec<f32> = tensors[2].3.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!((tensors[2].2, firsts(dense)), (0, permuted(2, 8)));
    assert_eq!(tensors[4].2, 42);
    let said: String = lines.iter().map(|line| line.becomes.clone().unwrap()).collect();
    assert!(said.contains("`blk.0.attn_q.weight`, its rows in llama.cpp's order"), "{said}");
}

#[test]
fn what_has_no_place_in_the_model_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let check = |tensors: &[(&str, &[usize])], keys: &[Vec<u8>], expected: &str| {
        let made: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| (*name, Dtype::F32, *shape, random(1, shape.iter().product()), ""))
            .collect();
        let container = pack(directory.path(), &made, &[]);
        let into = write(directory.path(), "model.gguf", &assemble(64, keys, &model_tensors()));
        let options = Options { into: Some(into), ..Options::default() };
        let (lines, file) = export(&container, "tq2_0", &options);
        let reasons: Vec<_> = lines.iter().filter_map(|line| line.becomes.as_ref().err()).collect();
        assert!(reasons.iter().any(|reason| reason.contains(expected)), "{reasons:?}");
        assert!(file.is_err());
    };
    let keys = model_keys();
    let other = |at: usize, key: Vec<u8>| {
        let mut keys = keys.clone();
        keys[at] = key;
        keys
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    check(&[("nothing", &[3, 256])], &keys, "no tensor of that name; leave it out with --leave-out");
    check(&[("model.layers.1.mlp.up_proj.weight", &[3, 256])], &keys, "nor `blk.1.ffn_up.weight`");
    check(
        &[("blk.0.attn_q.weight", &[8, 512])],
        &keys,
        "shape [8, 512], the file's `blk.0.attn_q.weight` has [16, 256]",
    );
    check(&[("blk.0.attn_q.weight", &[16, 256]), (q, &[16, 256])], &keys, "replaced by another tensor already");
    let qwen = other(0, key("general.architecture", 8, &text("qwen3")));
    check(&[(q, &[16, 256])], &qwen, "known for `llama` alone");
    check(&[(q, &[16, 256])], &other(3, number("llama.attention.head_count", 3)), "is 3, expected the number of heads");
    check(&[(q, &[16, 256])], &other(3, number("llama.attention.head_count", 0)), "is 0, expected the number of heads");
    let each =
        key("llama.attention.head_count", 9, &[&4u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[4, 0, 0, 0]].concat());
    check(&[(q, &[16, 256])], &other(3, each), "is an array of 1, expected");
    let container = pack(directory.path(), &[("w", Dtype::F32, &[1, 256], random(1, 256), "")], &[]);
    for (bytes, expected) in [
        (assemble(32, &[key("split.count", 2, &3u16.to_le_bytes())], &[]), "one of 3 files"),
        (b"GGUF".to_vec(), "cut off"),
    ] {
        let options = Options { into: Some(write(directory.path(), "model.gguf", &bytes)), ..Options::default() };
        let error = export::format("tq2_0").unwrap().export(&container, &options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Onto the model itself.
    let into = write(directory.path(), "in.gguf", &assemble(64, &keys, &model_tensors()));
    let container =
        pack(directory.path(), &[("blk.0.attn_q.weight", Dtype::F32, &[16, 256], random(1, 4096), "")], &[]);
    let (_, file) = export(&container, "tq2_0", &Options { into: Some(into), ..Options::default() });
    assert!(file.unwrap_err().to_string().contains("is an input"));
}
