//! What is exported, and what is refused. Not here: the way back ([`crate::import`]).

use safetensors::SafeTensors;
use serde_json::json;
use twn_pack::export::{self, Options};
use twn_pack::{Dtype, Fault, Tensor};

use crate::common::{self, Made, golden, pack};
use crate::*;

/// Heads that may be tied, and then are in no file.
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

#[test]
fn golden_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let made = ternary("a.weight", &[8, 32], &golden::trits(), 0.5);
    let container = pack(directory.path(), &[(made, EXACT)]);
    let bytes = std::fs::read(write(&container, &Options::default(), &directory.path().join("out"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let weight = file.tensor("a.weight").unwrap();
    assert_eq!((weight.dtype(), weight.shape()), (Dtype::U8, &[2, 32][..]));
    assert_eq!(weight.data(), golden::bytes("hf_bitnet_8x32"));
    let scale = file.tensor("a.weight_scale").unwrap();
    assert_eq!((scale.dtype(), scale.shape(), scale.data()), (Dtype::F32, &[1][..], &0.5f32.to_le_bytes()[..]));
    assert_eq!(file.len(), 2);
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn every_encoding_becomes_row_quarters_and_the_rest_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (norm, bias) =
        (Made::gaussian("n.weight", Dtype::BF16, &[33], 1), Made::gaussian("a.bias", Dtype::F16, &[12], 2));
    let (embedding, head) =
        (Made::gaussian("e.weight", Dtype::F32, &[5, 33], 3), Made::gaussian("h.weight", Dtype::F32, &[7, 12], 4));
    let container = pack(
        directory.path(),
        &[
            (ternary("a.weight", &[12, 33], &trits(396, 5), 0.3), EXACT),
            (ternary("b.weight", &[4, 70], &trits(280, 6), 0.7), "encoding=t5,method=optimal,granularity=tensor"),
            (Made::gaussian("c.weight", Dtype::BF16, &[8, 9], 7), "method=bwn,granularity=tensor"),
            (Made::gaussian("d.weight", Dtype::F32, &[4, 11], 8), "scale-dtype=f16,granularity=tensor"),
            // Filters whose scales happen to be equal are as good.
            (ternary("f.weight", &[4, 16], &[1.0; 64], 0.2), "method=optimal"),
            (norm.clone(), ""),
            (bias.clone(), ""),
            (embedding.clone(), ""),
            (head.clone(), ""),
        ],
    );
    let output = write(&container, &Options::default(), &directory.path().join("out"));
    let bytes = std::fs::read(&output).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut packed = 0;
    for (name, tensor) in container.tensors() {
        let Tensor::Ternary(ternary) = tensor else { continue };
        let expected: Vec<f32> = ternary.to_array().unwrap().into_iter().collect();
        let scale = file.tensor(&format!("{name}_scale")).unwrap();
        let alpha = f32::from_le_bytes(scale.data().try_into().unwrap());
        let data = file.tensor(name).unwrap();
        assert_eq!(unpacked(data.data(), ternary.shape[0], ternary.shape[1], alpha), expected, "{name}");
        packed += 1;
    }
    assert_eq!(packed, 5);
    for made in [norm, bias, embedding, head] {
        let tensor = file.tensor(&made.name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape(), tensor.data()), (made.dtype, &made.shape[..], &made.data[..]));
    }
    let config = json_file(&output.with_file_name("quantization_config.json"));
    let expected = json!({
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
        "modules_to_not_convert": ([&["e", "h"][..], &HEADS].concat()),
    });
    assert_eq!(config, expected);
}

#[test]
fn the_models_config_gets_what_is_new_and_keeps_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(
        directory.path(),
        &[
            (ternary("a.weight", &[8, 8], &trits(64, 1), 0.5), EXACT),
            (Made::gaussian("lm_head.weight", Dtype::F32, &[8, 8], 2), ""),
        ],
    );
    let config = directory.path().join("config.json");
    let options = Options { into: Some(config.clone()), ..Options::default() };
    let before = json!({
        "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "vocab_size": 8,
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "bitlinear", "use_rms_norm": true, "rms_norm_eps": 1e-7,
            "modules_to_not_convert": null,
        },
    });
    std::fs::write(&config, before.to_string()).unwrap();
    let output = write(&container, &options, &directory.path().join("out"));
    let mut expected = before;
    expected["quantization_config"] = json!({
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
        "modules_to_not_convert": HEADS, "use_rms_norm": true, "rms_norm_eps": 1e-7,
    });
    assert_eq!(json_file(&output.with_file_name("config.json")), expected);
    assert_eq!(common::names(&directory.path().join("out")), ["config.json", "model.safetensors"]);
    // What another method said of its own norms is not BitNet's.
    expected["quantization_config"]["quant_method"] = json!("other");
    std::fs::write(&config, expected.to_string()).unwrap();
    let export = export::format("bitnet").unwrap().export(&container, &options).unwrap();
    let after: Value = serde_json::from_slice(&export.beside[0].1).unwrap();
    assert_eq!(after["quantization_config"].get("use_rms_norm"), None);
    assert_eq!(after["quantization_config"]["quant_method"], "bitnet");
    std::fs::write(&config, "\u{feff}{}").unwrap();
    assert!(export::format("bitnet").unwrap().export(&container, &options).is_ok());
    // A regression: what Python writes was refused.
    let numbers = [r#""limit": ["#, "0.0", "Infinity", "-Infinity", "NaN", r#""NaN \\\" Infinity \\""#, "Infinity"];
    std::fs::write(&config, format!("{{{}{}]}}", numbers[0], numbers[1..].join(","))).unwrap();
    let export = export::format("bitnet").unwrap().export(&container, &options).unwrap();
    let text = std::str::from_utf8(&export.beside[0].1).unwrap();
    assert!(text.contains(&format!("{}\n    {}\n  ]", numbers[0], numbers[1..].join(",\n    "))), "{text}");
    for (bad, message) in [
        ("[]", "is no JSON object"),
        ("{", "give the model's"),
        ("", "is no JSON object"),
        (r#"{"limit": NaNs}"#, "is no JSON object"),
        (r#"{"limit": "\"#, "is no JSON object"),
    ] {
        std::fs::write(&config, bad).unwrap();
        let error = export::format("bitnet").unwrap().export(&container, &options).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn what_cannot_be_exported_is_refused_or_goes_out_as_floats() {
    let directory = tempfile::tempdir().unwrap();
    let gaussian = |name: &str, shape: &[usize]| Made::gaussian(name, Dtype::BF16, shape, 1);
    let cases = [
        (gaussian("filters.weight", &[8, 8]), "granularity=filter", "one scale per filter"),
        (gaussian("groups.weight", &[8, 8]), "granularity=group:4", "one scale per group:4"),
        (gaussian("rows.weight", &[6, 8]), "granularity=tensor", "6 rows are no multiple of 4"),
        (gaussian("axis.weight", &[8, 4]), "granularity=tensor,axis=1", "along axis 1"),
        (gaussian("conv.weight", &[4, 2, 3, 3]), "granularity=tensor", "rank 4"),
        (gaussian("transposed.weight", &[3, 4, 2, 2]), "granularity=filter,axis=1", "rank 4"),
        (gaussian("planes.weight", &[4, 8]), "granularity=tensor,planes=2", "2 planes"),
        (gaussian("int8.weight", &[4, 8]), "keep=int8", "8 bits a weight"),
        (gaussian("axis8.weight", &[4, 8]), "keep=int8,axis=1", "8 bits a weight"),
        (gaussian("matrix", &[4, 8]), "granularity=tensor", "not called `….weight`"),
    ];
    let tensors: Vec<(Made, &str)> = cases.iter().map(|(made, settings, _)| (made.clone(), *settings)).collect();
    let container = pack(directory.path(), &tensors);
    let format = export::format("bitnet").unwrap();
    let export = format.export(&container, &Options::default()).unwrap();
    for (made, _, expected) in &cases {
        let line = export.tensors.iter().find(|line| line.tensor == made.name).unwrap();
        let reason = line.becomes.as_ref().unwrap_err();
        assert!(reason.contains(expected), "{reason}");
        assert!(reason.contains("--exclude") && reason.contains("--refused-as-dense"), "{reason}");
    }
    let output = directory.path().join("out.safetensors");
    let error = export::write(&container, &export, &output, &WriteOptions::default()).unwrap_err();
    assert_eq!(error.fault(), Fault::Request, "{error}");
    assert!(!output.exists() && !output.with_file_name("quantization_config.json").exists());

    let options = Options { refused_as_dense: true, ..Options::default() };
    let bytes = std::fs::read(write(&container, &options, &directory.path().join("dense"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in container.tensors() {
        let values = match &tensor {
            Tensor::Ternary(ternary) => ternary.to_array().unwrap(),
            Tensor::Int8(int8) => int8.to_array().unwrap(),
            Tensor::Dense(_) => panic!("{name}"),
        };
        let expected: Vec<u8> = values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
        let written = file.tensor(name).unwrap();
        assert_eq!((written.dtype(), written.shape()), (Dtype::BF16, values.shape()), "{name}");
        assert_eq!(written.data(), expected, "{name}");
    }
    let config = json_file(&directory.path().join("dense/quantization_config.json"));
    let left_out: Vec<&str> =
        config["modules_to_not_convert"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for layer in ["filters", "groups", "rows", "axis", "planes", "int8", "axis8", "lm_head"] {
        assert!(left_out.contains(&layer), "{layer}: {left_out:?}");
    }
    let options = Options { planes_as_tensors: true, ..Options::default() };
    assert!(format.export(&container, &options).unwrap_err().to_string().contains("--planes-as-tensors"));
}

/// A regression: the tied head of BERT became a packed layer without weights, and a packed layer within RoBERTa's
/// head was refused.
#[test]
fn tied_heads_stay_linear_and_packed_ones_do_not() {
    let directory = tempfile::tempdir().unwrap();
    for (packed, left_out) in [
        ("bert.encoder.layer.0.output.dense", &HEADS[..]),
        ("lm_head.dense", &HEADS[1..]),
        ("lm_head.decoder", &HEADS[2..]),
        ("decoder", &[&HEADS[..12], &HEADS[13..]].concat()),
        ("model.decoder.layers.0.fc1", &HEADS),
    ] {
        let weights = ternary(&format!("{packed}.weight"), &[4, 4], &trits(16, 2), 1.0);
        let container = pack(directory.path(), &[(weights, EXACT)]);
        let export = export::format("bitnet").unwrap().export(&container, &Options::default()).unwrap();
        export.check().unwrap();
        let config: Value = serde_json::from_slice(&export.beside[0].1).unwrap();
        assert_eq!(config["modules_to_not_convert"], json!(left_out), "{packed}");
    }
}

/// A regression: such exports did not load, and nothing said so.
#[test]
fn what_transformers_does_not_load_is_said() {
    let directory = tempfile::tempdir().unwrap();
    for (packed, said) in [
        ("model.layers.0.mlp.experts.0.w1", Some("`model.layers.0.mlp.experts.0.w1`; keep them dense")),
        ("encoder.block.0.layer.1.DenseReluDense.wo", Some("`wo` of T5")),
        ("model.layers.0.attention.wo", None),
        ("model.layers.0.experts.gate", None),
    ] {
        let weights = ternary(&format!("{packed}.weight"), &[4, 4], &trits(16, 2), 1.0);
        let container = pack(directory.path(), &[(weights, EXACT)]);
        let warnings = export::format("bitnet").unwrap().export(&container, &Options::default()).unwrap().warnings;
        assert_eq!(warnings.len(), 1 + usize::from(said.is_some()), "{warnings:?}");
        assert!(said.is_none_or(|said| warnings[0].contains(said)), "{warnings:?}");
    }
}

#[test]
fn names_that_mean_more_than_one_layer_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (dense, packed, refused) in [
        ("fc", "model.fc", true),
        ("fc", "model.xfc", true),
        ("model.fc", "model.fc.inner", true),
        ("model.fc", "model.fc2", false),
        ("layers.1", "layers.11", false),
        ("a", "b", false),
    ] {
        let container = pack(
            directory.path(),
            &[
                (Made::gaussian(&format!("{dense}.weight"), Dtype::F32, &[4, 4], 1), ""),
                (ternary(&format!("{packed}.weight"), &[4, 4], &trits(16, 2), 1.0), EXACT),
            ],
        );
        let export = export::format("bitnet").unwrap().export(&container, &Options::default()).unwrap();
        let line = export.tensors.iter().find(|line| line.tensor == format!("{packed}.weight")).unwrap();
        assert_eq!(line.becomes.is_err(), refused, "{dense}, {packed}: {:?}", line.becomes);
    }
    // A head that is packed is not left out, and `a.weight_scale` may be somebody else's.
    let container = pack(directory.path(), &[(ternary("lm_head.weight", &[4, 4], &trits(16, 3), 1.0), EXACT)]);
    let export = export::format("bitnet").unwrap().export(&container, &Options::default()).unwrap();
    let config: Value = serde_json::from_slice(&export.beside[0].1).unwrap();
    assert_eq!(config["modules_to_not_convert"], json!(HEADS[1..]), "but for lm_head");
    let container = pack(
        directory.path(),
        &[
            (ternary("a.weight", &[4, 4], &trits(16, 3), 1.0), EXACT),
            (Made::gaussian("a.weight_scale", Dtype::F32, &[1], 1), ""),
        ],
    );
    let export = export::format("bitnet").unwrap().export(&container, &Options::default()).unwrap();
    assert!(export.check().unwrap_err().to_string().contains("would be called `a.weight_scale`"));
}
