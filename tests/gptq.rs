//! `.twn` → GPTQ-style safetensors: golden bytes, a decoder written from the description of the layout, and what does
//! not fit. Not here: the torch stacks that read it (`examples/interop/gptq_dequantize.py`).

mod common;

use std::path::Path;

use common::{Made, golden, pack};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use twn_pack::export::{self, Options, WriteOptions};
use twn_pack::{Container, Dtype, Fault, Tensor, TernaryTensor};

/// The exported file and its `quantize_config.json`.
fn write(container: &Container, options: &Options, directory: &Path) -> (Vec<u8>, Value) {
    let export = export::format("gptq").unwrap().export(container, options).unwrap();
    let output = directory.join("model.safetensors");
    let write = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let length = export::write(container, &export, &output, &write).unwrap();
    let bytes = std::fs::read(&output).unwrap();
    assert_eq!(length, bytes.len() as u64);
    let config = std::fs::read(output.with_file_name("quantize_config.json")).unwrap();
    (bytes, serde_json::from_slice(&config).unwrap())
}

fn words(file: &SafeTensors<'_>, name: &str) -> (Vec<u32>, Vec<usize>) {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::I32, "{name}");
    let words = tensor.data().chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    (words.collect(), tensor.shape().to_vec())
}

/// The weights `[out][in]` of a layer, as readers of version 1 compute them: scale × (code − (zero + 1)).
fn dequantized(file: &SafeTensors<'_>, layer: &str) -> Vec<f32> {
    let (qweight, shape) = words(file, &format!("{layer}.qweight"));
    let (qzeros, zeros_shape) = words(file, &format!("{layer}.qzeros"));
    let (g_idx, inputs) = words(file, &format!("{layer}.g_idx"));
    let scales = file.tensor(&format!("{layer}.scales")).unwrap();
    let (inputs, outputs, groups) = (inputs[0], shape[1], zeros_shape[0]);
    assert_eq!((shape, zeros_shape), (vec![inputs / 16, outputs], vec![groups, outputs / 16]), "{layer}");
    assert_eq!((scales.dtype(), scales.shape()), (Dtype::F16, &[groups, outputs][..]), "{layer}");
    let scale = |at: usize| half::f16::from_le_bytes(scales.data()[2 * at..2 * at + 2].try_into().unwrap()).to_f32();
    let field = |words: &[u32], at: usize, of: usize| (words[at] >> (2 * of) & 3) as f32;
    let weight = |output: usize, input: usize| {
        let group = g_idx[input] as usize;
        let code = field(&qweight, input / 16 * outputs + output, input % 16);
        let zero = field(&qzeros, group * (outputs / 16) + output / 16, output % 16) + 1.0;
        scale(group * outputs + output) * (code - zero)
    };
    (0..outputs).flat_map(|output| (0..inputs).map(move |input| weight(output, input))).collect()
}

/// What `unpack` gives, with scales rounded to F16, and their largest relative error.
fn expected(ternary: &TernaryTensor<'_>) -> (Vec<f32>, f64) {
    let (mut weights, mut largest) = (Vec::new(), 0.0_f64);
    for filter in 0..ternary.filters {
        let mut codes = vec![0; ternary.filter_len];
        ternary.codes(0, filter, &mut codes).unwrap();
        for (j, code) in codes.into_iter().enumerate() {
            let (alpha, rounded) = (ternary.scale(0, filter, j), half::f16::from_f32(ternary.scale(0, filter, j)));
            weights.push(rounded.to_f32() * (f32::from(code) - 1.0));
            largest = largest.max((rounded.to_f64() / f64::from(alpha) - 1.0).abs());
        }
    }
    (weights, largest)
}

#[test]
fn golden_bytes() {
    let golden = golden::bytes("lsb_first_t_plus_2");
    let weights: Vec<f64> = golden::trits().iter().map(|trit| trit * 0.5).collect();
    let directory = tempfile::tempdir().unwrap();
    // 16 outputs of one word each, which lie side by side.
    let made = Made::new("a.weight", Dtype::F32, &[16, 16], &weights);
    let container = pack(directory.path(), &[(made, "method=optimal,granularity=tensor")]);
    let (bytes, _) = write(&container, &Options::default(), directory.path());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("a.qweight").unwrap().data(), golden);
    assert_eq!(file.tensor("a.scales").unwrap().data(), [0x00, 0x38].repeat(16));
    assert_eq!(file.tensor("a.qzeros").unwrap().data(), [0x55; 4]);
    assert_eq!(file.tensor("a.g_idx").unwrap().data(), [0; 64]);
    // All of them in each of 16 outputs: every column has the golden bytes from top to bottom.
    let made = Made::new("a.weight", Dtype::F32, &[16, 256], &weights.repeat(16));
    let container = pack(directory.path(), &[(made, "method=optimal")]);
    let (bytes, _) = write(&container, &Options::default(), directory.path());
    let (qweight, shape) = words(&SafeTensors::deserialize(&bytes).unwrap(), "a.qweight");
    assert_eq!(shape, [16, 16]);
    for output in 0..16 {
        let column: Vec<u8> = qweight.iter().skip(output).step_by(16).flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(column, golden, "output {output}");
    }
}

#[test]
fn every_granularity_and_encoding() {
    let directory = tempfile::tempdir().unwrap();
    let gaussian = |name: &str, shape: &[usize], seed| Made::gaussian(name, Dtype::BF16, shape, seed);
    let embedding = gaussian("e.weight", &[6, 64], 9);
    for (settings, group) in [
        (["granularity=tensor", "granularity=filter", "granularity=filter,encoding=t5"], -1),
        (["granularity=group:32", "granularity=filter", "granularity=group:64,scale-dtype=f16"], 32),
        (["granularity=group:16,encoding=t5", "granularity=group:1024", "method=bwn,granularity=tensor"], 16),
        (["granularity=group:64", "granularity=group:64", "granularity=group:64,encoding=t5"], 64),
    ] {
        let container = pack(
            directory.path(),
            &[
                (gaussian("a.weight", &[16, 64], 1), settings[0]),
                (gaussian("b.weight", &[48, 192], 2), settings[1]),
                // More rows than are made at once.
                (gaussian("c.weight", &[4112, 1344], 3), settings[2]),
                (embedding.clone(), ""),
            ],
        );
        let export = export::format("gptq").unwrap().export(&container, &Options::default()).unwrap();
        let (bytes, config) = write(&container, &Options::default(), directory.path());
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (name, line) in [("a.weight", 0), ("b.weight", 1), ("c.weight", 2)]
            .map(|(name, _)| (name, export.tensors.iter().find(|line| line.tensor == name).unwrap()))
        {
            let Some(Tensor::Ternary(ternary)) = container.by_name(name) else { panic!("{name}") };
            let (weights, rounding) = expected(&ternary);
            assert!(dequantized(&file, &name[..1]) == weights, "{name}, {settings:?}");
            assert_eq!(line.rounding, rounding, "{name}, {settings:?}");
            assert!(rounding < 1.0 / 2048.0);
        }
        assert_eq!(file.tensor("e.weight").unwrap().data(), embedding.data);
        assert_eq!(file.len(), 13);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        for (key, value) in [
            ("bits", json!(2)),
            ("group_size", json!(group)),
            ("desc_act", json!(false)),
            ("sym", json!(true)),
            ("quant_method", json!("gptq")),
            ("checkpoint_format", json!("gptq")),
            ("lm_head", json!(false)),
            ("dynamic", json!({ "-:^e$": {} })),
            ("modules_in_block_to_quantize", json!([["a", "b", "c"]])),
        ] {
            assert_eq!(config[key], value, "{key}, {settings:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_or_goes_out_as_floats() {
    let directory = tempfile::tempdir().unwrap();
    let gaussian = |name: &str, shape: &[usize]| Made::gaussian(name, Dtype::F32, shape, 1);
    let scaled = |name: &str, scale: f64| Made::new(name, Dtype::F32, &[16, 32], &[scale; 512]);
    let cases = [
        (gaussian("inputs.weight", &[16, 40]), "granularity=filter", "40 inputs are no multiple of 16"),
        (gaussian("outputs.weight", &[8, 32]), "granularity=filter", "8 outputs are no multiple of 16"),
        (gaussian("odd.weight", &[16, 96]), "granularity=group:48", "no groups of 48"),
        (gaussian("small.weight", &[16, 64]), "granularity=group:8", "no groups of 8"),
        (gaussian("mixed.weight", &[16, 48]), "granularity=filter", "48 inputs are no multiple of 32, the group size"),
        (gaussian("tail.weight", &[16, 80]), "granularity=group:32", "80 inputs are no multiple of 32"),
        (gaussian("planes.weight", &[16, 32]), "planes=2", "2 planes"),
        (gaussian("axis.weight", &[32, 16]), "axis=1", "along axis 1"),
        (gaussian("conv.weight", &[16, 16, 1, 1]), "granularity=filter", "rank 4"),
        (gaussian("int8.weight", &[16, 16]), "keep=int8", "8 bits a weight"),
        (gaussian("matrix", &[16, 16]), "granularity=filter", "not called"),
        (scaled("large.weight", 70_000.0), "method=optimal", "scale 0 is 7e4, which F16 cannot hold"),
        (scaled("tiny.weight", 1e-9), "method=optimal", "which F16 cannot hold"),
    ];
    // Where nothing else says what the file's group size is.
    let alone = pack(directory.path(), &[(gaussian("tail.weight", &[16, 96]), "granularity=group:64")]);
    let export = export::format("gptq").unwrap().export(&alone, &Options::default()).unwrap();
    let reason = export.tensors[0].becomes.as_ref().unwrap_err();
    assert!(reason.contains("96 inputs are no multiple of 64, its group size"), "{reason}");
    let mut tensors: Vec<(Made, &str)> = cases.iter().map(|(made, settings, _)| (made.clone(), *settings)).collect();
    tensors.push((gaussian("good.weight", &[16, 64]), "granularity=group:32"));
    let container = pack(directory.path(), &tensors);
    let export = export::format("gptq").unwrap().export(&container, &Options::default()).unwrap();
    for (made, _, expected) in &cases {
        let line = export.tensors.iter().find(|line| line.tensor == made.name).unwrap();
        let reason = line.becomes.as_ref().unwrap_err();
        assert!(reason.contains(expected) && (reason.contains("pack") || reason.contains("leave")), "{reason}");
    }
    for reason in export.tensors.iter().filter_map(|line| line.becomes.as_ref().err()) {
        assert!(reason.contains("--exclude") && reason.contains("--refused-as-dense"), "{reason}");
    }
    assert_eq!(export.tensors.iter().filter(|line| line.becomes.is_ok()).count(), 1);
    let output = directory.path().join("refused.safetensors");
    let error = export::write(&container, &export, &output, &WriteOptions::default()).unwrap_err();
    assert_eq!(error.fault(), Fault::Request, "{error}");
    assert!(!output.exists());

    let options = Options { refused_as_dense: true, ..Options::default() };
    let lines = export::format("gptq").unwrap().export(&container, &options).unwrap().tensors;
    let line = lines.iter().find(|line| line.tensor == "odd.weight").unwrap().becomes.as_ref().unwrap();
    assert!(line.ends_with("F32 [16, 96], as floats: readers of the format know no groups of 48"), "{line}");
    let (bytes, config) = write(&container, &options, directory.path());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (made, _, _) in &cases {
        let values = match container.by_name(&made.name).unwrap() {
            Tensor::Ternary(ternary) => ternary.to_array().unwrap(),
            Tensor::Int8(int8) => int8.to_array().unwrap(),
            Tensor::Dense(_) => panic!("{}", made.name),
        };
        let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(file.tensor(&made.name).unwrap().data(), expected, "{}", made.name);
    }
    assert_eq!(config["modules_in_block_to_quantize"], json!([["good"]]));
    assert_eq!(config["dynamic"]["-:^mixed$"], json!({}));
    let options = Options { planes_as_tensors: true, ..Options::default() };
    let error = export::format("gptq").unwrap().export(&container, &options).unwrap_err();
    assert!(error.to_string().contains("--planes-as-tensors"), "{error}");
}

/// The size for the whole file is that of the layers that are in it.
#[test]
fn what_is_refused_has_no_say_in_the_group_size() {
    let directory = tempfile::tempdir().unwrap();
    let gaussian = |name: &str, shape: &[usize]| Made::gaussian(name, Dtype::F32, shape, 1);
    let container = pack(
        directory.path(),
        &[
            (gaussian("refused.weight", &[8, 64]), "granularity=group:16"),
            (gaussian("good.weight", &[16, 64]), "granularity=group:64"),
            (gaussian("better.weight", &[16, 128]), "granularity=group:64"),
        ],
    );
    let options = Options { refused_as_dense: true, ..Options::default() };
    let (bytes, config) = write(&container, &options, directory.path());
    assert_eq!(config["group_size"], 64);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("better.scales").unwrap().shape(), [2, 16]);
    // One whose own groups do not fill it.
    let container = pack(
        directory.path(),
        &[
            (gaussian("refused.weight", &[16, 80]), "granularity=group:64"),
            (gaussian("good.weight", &[16, 256]), "granularity=group:128"),
        ],
    );
    let (bytes, config) = write(&container, &options, directory.path());
    assert_eq!(config["group_size"], 128);
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("good.scales").unwrap().shape(), [2, 16]);
}

/// A regression: blocks that optimum does not find, or that transformers calls otherwise than the file, got random
/// weights without a word, as did heads and experts.
#[test]
fn blocks_are_found_and_what_transformers_does_not_load_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let (llava, bert) = ("language_model.model.layers.0.mlp.up_proj", "bert.encoder.layer.0.output.dense");
    let (expert, head) = ("model.layers.1.mlp.experts.0.w1", "lm_head");
    let own = "cls.predictions.transform.dense";
    let llama = "model.layers.10.mlp.up_proj";
    let dense = "model.decoder.layers.0.norm";
    for (packed, dense, short, block, said) in [
        (&[llama][..], "model.norm", &["layers.10.mlp.up_proj"][..], None, &[][..]),
        (&["model.decoder.layers.0.fc1"], dense, &["layers.0.fc1"], None, &[]),
        (&["transformer.h.2.fc"], "transformer.norm", &["h.2.fc"], None, &[]),
        (&[llava], "vision_tower.norm", &["layers.0.mlp.up_proj"], None, &[]),
        (&[bert], "bert.norm", &["layer.0.output.dense"], Some("bert.encoder.layer"), &["`block_name_to_quantize`"]),
        // What it would find has none of them.
        (&["encoder.block.0.fc"], "h.norm", &["block.0.fc"], Some("encoder.block"), &["`encoder.block`"]),
        (
            &[bert, own],
            "bert.norm",
            &["layer.0.output.dense", own],
            Some("bert.encoder.layer"),
            &["`bert.encoder.layer`", "random weights there: `cls.predictions.transform.dense`; keep"],
        ),
        (&[llama, head], "a.norm", &["layers.10.mlp.up_proj", head], None, &["random weights there: `lm_head`; keep"]),
        (&[head], "model.layers.0.norm", &[head], None, &["`lm_head`; keep"]),
        (&[expert], "a.norm", &["layers.1.mlp.experts.0.w1"], None, &["`model.layers.1.mlp.experts.0.w1`; keep them"]),
    ] {
        let weights = packed.iter().map(|layer| Made::gaussian(&format!("{layer}.weight"), Dtype::F32, &[16, 16], 1));
        let mut tensors: Vec<_> = weights.map(|made| (made, "granularity=filter")).collect();
        tensors.push((Made::gaussian(&format!("{dense}.weight"), Dtype::F32, &[16], 1), ""));
        let container = pack(directory.path(), &tensors);
        let export = export::format("gptq").unwrap().export(&container, &Options::default()).unwrap();
        let config: Value = serde_json::from_slice(&export.beside[0].1).unwrap();
        let mut names: Vec<_> = short.to_vec();
        let mut written: Vec<&str> =
            config["modules_in_block_to_quantize"][0].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        names.sort_unstable();
        written.sort_unstable();
        assert_eq!(written, names, "{packed:?}");
        assert_eq!(config.get("block_name_to_quantize").and_then(Value::as_str), block, "{packed:?}");
        // The last one is about config.json.
        let warnings = &export.warnings[..export.warnings.len() - 1];
        assert_eq!(warnings.len(), said.len(), "{warnings:?}");
        assert!(warnings.iter().zip(said).all(|(warning, said)| warning.contains(said)), "{warnings:?}");
    }
    // Names are many.
    let experts: Vec<_> = (0..9).map(|i| format!("model.layers.0.experts.{i}.w1.weight")).collect();
    let made = experts.iter().map(|name| (Made::gaussian(name, Dtype::F32, &[16, 16], 1), "granularity=filter"));
    let container = pack(directory.path(), &made.collect::<Vec<_>>());
    let export = export::format("gptq").unwrap().export(&container, &Options::default()).unwrap();
    assert!(export.warnings[0].contains("experts.2.w1` and 6 others; keep them dense"), "{:?}", export.warnings);
}

#[test]
fn the_models_config_and_names_as_regular_expressions() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(
        directory.path(),
        &[
            (Made::gaussian("lm_head.weight", Dtype::F32, &[16, 16], 1), "granularity=filter"),
            (Made::gaussian("model.layers.1.q-proj.weight", Dtype::F32, &[4, 4], 1), ""),
        ],
    );
    let config = directory.path().join("before.json");
    std::fs::write(&config, r#"{"vocab_size": 16}"#).unwrap();
    let options = Options { into: Some(config), ..Options::default() };
    let (_, quantization) = write(&container, &options, directory.path());
    let after: Value = serde_json::from_slice(&std::fs::read(directory.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(after, json!({ "vocab_size": 16, "quantization_config": quantization }));
    assert_eq!(quantization["lm_head"], true);
    assert_eq!(quantization["dynamic"], json!({ r"-:^model\.layers\.1\.q-proj$": {} }));
}
