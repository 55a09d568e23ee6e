//! What is read: of transformers' layout, of our own exports, damaged and lying. Not here: what exports hold
//! ([`crate::export`]).

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use twn_pack::export::Options;
use twn_pack::{Checkpoint, Dtype, Fault, Rules, Tensor, import, verify};

use crate::common::{self, Made, golden, pack, safetensors};
use crate::*;

/// A directory with a packed checkpoint and its config.
struct Repository {
    directory: tempfile::TempDir,
}

impl Repository {
    fn new(tensors: &[Made], quantization: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        common::checkpoint(directory.path(), "model.safetensors", tensors);
        let repository = Self { directory };
        repository.config(&json!({ "torch_dtype": "float16", "quantization_config": quantization }));
        repository
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("model.safetensors")
    }

    fn config(&self, config: &Value) {
        std::fs::write(self.directory.path().join("config.json"), config.to_string()).unwrap();
    }

    fn open(&self) -> Checkpoint {
        let checkpoint = import::open(self.path()).unwrap();
        assert_eq!(import::open(self.directory.path()).unwrap().len(), checkpoint.len());
        checkpoint
    }

    fn refusal(&self) -> String {
        let error = import::open(self.path()).unwrap_err();
        assert_eq!(error.fault(), Fault::Input, "{error}");
        error.to_string()
    }
}

fn packed(name: &str, rows: usize, columns: usize, data: Vec<u8>) -> Made {
    Made { name: name.to_owned(), dtype: Dtype::U8, shape: vec![rows, columns], data }
}

fn weight_scale(name: &str, dtype: Dtype, value: f64) -> Made {
    Made::new(&format!("{name}_scale"), dtype, &[1], &[value])
}

fn bitnet(linear_class: &str) -> Value {
    json!({ "quant_method": "bitnet", "linear_class": linear_class })
}

#[test]
fn both_meanings_and_every_type_of_a_scale() {
    for (class, dtype, stored, alpha) in [
        ("autobitlinear", Dtype::F32, 0.3, 0.3f32),
        ("autobitlinear", Dtype::BF16, 0.0123, half::bf16::from_f32(0.0123).to_f32()),
        ("autobitlinear", Dtype::F16, 0.75, 0.75),
        ("bitlinear", Dtype::F32, 48.0, (1.0f64 / 48.0) as f32),
        ("bitlinear", Dtype::BF16, 64.0, 1.0 / 64.0),
        ("bitlinear", Dtype::F16, 1.0, 1.0),
    ] {
        let weight = packed("a.weight", 2, 32, golden::bytes("hf_bitnet_8x32"));
        // Bytes are bytes, with a sign or without.
        let weight = Made { dtype: if stored == 1.0 { Dtype::I8 } else { Dtype::U8 }, ..weight };
        let norm = Made::gaussian("n.weight", Dtype::BF16, &[32], 1);
        let repository = Repository::new(&[weight, weight_scale("a.weight", dtype, stored), norm], &bitnet(class));
        let checkpoint = repository.open();
        assert_eq!(checkpoint.warnings(), [""; 0], "{class}");
        assert_eq!(checkpoint.len(), 2, "{class}: the scale is in the weight");
        let index = checkpoint.tensors().position(|tensor| tensor.name == "a.weight").unwrap();
        let view = checkpoint.ternary(index).unwrap();
        assert_eq!((view.dtype, view.shape, view.unit_len()), (Dtype::F16, &[8, 32][..], 32));
        let expected = golden::trits();
        for (row, expected) in expected.chunks(32).enumerate() {
            let mut codes = [9; 32];
            view.codes(row, &mut codes).unwrap();
            assert_eq!(codes.map(|code| f64::from(code) - 1.0), expected, "{class}");
            assert_eq!(view.scale(row, 0).unwrap(), alpha, "{class} {dtype}");
        }
        assert!(checkpoint.ternary(1 - index).is_none());
        // And on to a `.twn`, with the one scale.
        let container = pack_checkpoint(&checkpoint, &Rules::default(), &repository.directory.path().join("m.twn"));
        let Some(Tensor::Ternary(ternary)) = container.by_name("a.weight") else { panic!("{class}") };
        assert_eq!(ternary.scales().collect::<Vec<_>>(), [alpha]);
        let values: Vec<f32> = expected.iter().map(|&t| t as f32 * alpha).collect();
        assert_eq!(ternary.to_array().unwrap().into_iter().collect::<Vec<_>>(), values);
        assert_eq!(verify::verify_against(&container, &checkpoint, None).unwrap().problems, [""; 0]);
    }
}

#[test]
fn a_scale_that_fits_the_other_meaning_only_is_never_guessed() {
    let tensors = |scale| {
        let weight = packed("a.weight", 1, 2, vec![0x55, 0xa2]);
        [weight, weight_scale("a.weight", Dtype::F32, scale)]
    };
    let unstated = json!({ "quant_method": "bitnet", "modules_to_not_convert": null });
    // Without linear_class it is bitlinear, as in transformers; what contradicts that is refused.
    let checkpoint = Repository::new(&tensors(40.0), &unstated).open();
    assert_eq!(checkpoint.ternary(0).unwrap().scale(0, 0).unwrap(), 1.0 / 40.0);
    let refusal = Repository::new(&tensors(0.02), &unstated).refusal();
    for part in
        ["`a.weight_scale` is 0.02", "as bitlinear α is 50", "as autobitlinear it would be 0.02", "linear_class"]
    {
        assert!(refusal.contains(part), "{refusal}");
    }
    // What is stated counts, with a warning that names both.
    for (class, scale, alpha, parts) in [
        ("bitlinear", 0.02, 50.0f32, ["as bitlinear α is 50", "it would be 0.02", "1 of 1"]),
        ("autobitlinear", 50.0, 50.0, ["as autobitlinear α is 50", "it would be 0.02", "correct linear_class"]),
    ] {
        let checkpoint = Repository::new(&tensors(scale), &bitnet(class)).open();
        assert_eq!(checkpoint.ternary(0).unwrap().scale(0, 0).unwrap(), alpha);
        let [warning] = checkpoint.warnings() else { panic!("{:?}", checkpoint.warnings()) };
        assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    }
    // About 1 is both; 0 is α of weights that are all zero, but no inverse.
    assert_eq!(Repository::new(&tensors(1.5), &unstated).open().warnings(), [""; 0]);
    assert_eq!(Repository::new(&tensors(0.0), &bitnet("autobitlinear")).open().warnings(), [""; 0]);
    for (class, scale) in
        [("bitlinear", -3.0), ("autobitlinear", f64::NAN), ("autobitlinear", -0.5), ("bitlinear", f64::INFINITY)]
    {
        let refusal = Repository::new(&tensors(scale), &bitnet(class)).refusal();
        assert!(refusal.contains("should be finite and positive"), "{class} {scale}: {refusal}");
    }
    // Another download would say the same.
    let refusal = Repository::new(&tensors(0.0), &bitnet("bitlinear")).refusal();
    assert!(refusal.contains("is 0: as bitlinear α is its inverse") && !refusal.contains("download"), "{refusal}");
    let refusal = Repository::new(&tensors(1.0), &bitnet("linear")).refusal();
    assert!(refusal.contains("linear_class is \"linear\", should be"), "{refusal}");
}

#[test]
fn what_is_missing_or_odd_is_said() {
    let weight = || packed("a.weight", 1, 2, vec![0x55, 0xa2]);
    let scale = || weight_scale("a.weight", Dtype::BF16, 2.0);
    let class = bitnet("bitlinear");
    // No config, none that is JSON, or one that says nothing.
    let repository = Repository::new(&[weight(), scale()], &class);
    repository.config(&json!({ "torch_dtype": "float16" }));
    assert!(repository.refusal().contains("it has no `quantization_config`"), "{}", repository.refusal());
    for (method, says) in [(json!({}), "has no `quant_method`"), (json!({ "quant_method": "BitNet" }), "is \"BitNet\"")]
    {
        repository.config(&json!({ "quantization_config": method }));
        assert!(repository.refusal().contains(says), "{}", repository.refusal());
    }
    std::fs::write(repository.directory.path().join("config.json"), "{").unwrap();
    assert!(repository.refusal().ends_with("give the model's config.json"), "{}", repository.refusal());
    // Python writes such numbers.
    let text = format!("{{ \"rope\": [NaN, -Infinity], \"quantization_config\": {class} }}");
    std::fs::write(repository.directory.path().join("config.json"), text).unwrap();
    assert_eq!(repository.open().len(), 1);
    std::fs::remove_file(repository.directory.path().join("config.json")).unwrap();
    let refusal = repository.refusal();
    for part in ["`a.weight` is U8", "there is no such file", "linear_class", "\"autobitlinear\"", "\"bitlinear\""] {
        assert!(refusal.contains(part), "{refusal}");
    }
    // Another method's U8 is not ours, nor is one without a scale.
    repository.config(&json!({ "quantization_config": { "quant_method": "bitsandbytes" } }));
    assert_eq!(repository.open().len(), 2);
    let plain = Repository::new(&[weight()], &json!(null));
    assert_eq!(plain.open().len(), 1);
    plain.config(&json!({ "quantization_config": class }));
    assert!(plain.refusal().contains("has no `a.weight_scale`"), "{}", plain.refusal());

    let signed = || Made { dtype: Dtype::I8, ..weight() };
    assert_eq!(Repository::new(&[signed(), scale()], &json!(null)).open().len(), 2, "as others have it");
    let refusal = Repository::new(&[signed()], &class).refusal();
    assert!(refusal.contains("`a.weight` is I8 and has no `a.weight_scale`"), "{refusal}");

    let per_row = Made::new("a.weight_scale", Dtype::F32, &[4], &[1.0; 4]);
    let refusal = Repository::new(&[weight(), per_row], &class).refusal();
    assert!(refusal.contains("`a.weight_scale` is F32 [4], should be one"), "{refusal}");
    let bias = Made::gaussian("a.bias", Dtype::F32, &[3], 1);
    let refusal = Repository::new(&[weight(), scale(), bias], &class).refusal();
    assert!(refusal.contains("has 4 rows") && refusal.contains("its bias 3"), "{refusal}");
    let bias = Made::gaussian("a.bias", Dtype::F32, &[4], 1);
    assert_eq!(Repository::new(&[weight(), scale(), bias], &class).open().len(), 2);

    let wrong = packed("a.weight", 1, 2, vec![0x55, 0x75]);
    let repository = Repository::new(&[wrong, scale()], &class);
    let message = repository.open().ternary(0).unwrap().codes(2, &mut [0; 2]).unwrap_err();
    assert!(message.contains("packed row 0, column 1: byte 0x75 has code 3 in quarter 2"), "{message}");
    let plan = Plan::new(&repository.open(), &Rules::default()).unwrap();
    assert!(convert::measure(&repository.open(), &plan, &convert::Options::default()).is_err());

    let latent = Made::gaussian("a.weight", Dtype::BF16, &[4, 4], 1);
    let online = json!({ "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online" });
    let checkpoint = Repository::new(std::slice::from_ref(&latent), &online).open();
    assert!(checkpoint.warnings()[0].contains("--method absmean --granularity tensor"), "{:?}", checkpoint.warnings());
    assert_eq!((checkpoint.len(), checkpoint.tensor(0).dtype), (1, Dtype::BF16));
    let checkpoint = Repository::new(&[packed("a.weight", 1, 2, vec![0x55, 0xa2]), scale()], &online).open();
    assert!(checkpoint.warnings()[0].contains("they are taken as packed"), "{:?}", checkpoint.warnings());
    let checkpoint = Repository::new(std::slice::from_ref(&latent), &class).open();
    assert!(checkpoint.warnings()[0].contains("no weight is packed"), "{:?}", checkpoint.warnings());
    let checkpoint = Repository::new(&[latent, scale()], &class).open();
    assert!(checkpoint.warnings()[1].contains("the scale is not applied"), "{:?}", checkpoint.warnings());
}

#[test]
fn the_type_of_weights_is_the_models() {
    let tensors = [packed("a.weight", 1, 2, vec![0x55, 0xa2]), weight_scale("a.weight", Dtype::F32, 1.0)];
    let repository = Repository::new(&tensors, &json!(null));
    for (mut config, dtype) in [
        (json!({}), Dtype::BF16),
        (json!({ "torch_dtype": "bfloat16" }), Dtype::BF16),
        (json!({ "torch_dtype": "float32" }), Dtype::F32),
        (json!({ "dtype": "float16", "torch_dtype": "float32" }), Dtype::F16),
        (json!({ "text_config": { "dtype": "torch.float32" } }), Dtype::F32),
        (json!({ "torch_dtype": 7 }), Dtype::BF16),
    ] {
        config["quantization_config"] = bitnet("bitlinear");
        repository.config(&config);
        assert_eq!(repository.open().ternary(0).unwrap().dtype, dtype, "{config}");
    }
}

#[test]
fn shards_with_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let weight = packed("a.weight", 2, 32, golden::bytes("hf_bitnet_8x32"));
    common::checkpoint(directory.path(), "model-1.safetensors", &[weight]);
    common::checkpoint(directory.path(), "model-2.safetensors", &[weight_scale("a.weight", Dtype::F32, 0.5)]);
    let index = json!({ "weight_map": { "a.weight": "model-1.safetensors", "a.weight_scale": "model-2.safetensors" } });
    let path = directory.path().join("model.safetensors.index.json");
    std::fs::write(&path, index.to_string()).unwrap();
    let config = json!({ "quantization_config": bitnet("autobitlinear") });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    for path in [&path, directory.path()] {
        let checkpoint = import::open(path).unwrap();
        assert_eq!((checkpoint.len(), checkpoint.ternary(0).unwrap().scale(3, 0)), (1, Ok(0.5)));
    }
    // One of them by itself.
    let error = import::open(directory.path().join("model-1.safetensors")).unwrap_err().to_string();
    assert!(error.contains("has no `a.weight_scale`; of a checkpoint in several files give the directory"), "{error}");
}

/// As Hugging Face splits large models: a weight and its scale in different files, half of the layers in each.
#[test]
fn a_split_export_is_read_like_a_whole_one() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["a.weight", "b.weight"];
    let made = names.map(|name| (Made::gaussian(name, Dtype::BF16, &[8, 64], 1), "granularity=tensor"));
    let container = pack(directory.path(), &made);
    let config = directory.path().join("before.json");
    std::fs::write(&config, r#"{"dtype": "bfloat16"}"#).unwrap();
    let options = Options { into: Some(config), ..Options::default() };
    let whole = std::fs::read(write(&container, &options, &directory.path().join("whole"))).unwrap();
    let whole = SafeTensors::deserialize(&whole).unwrap();
    let split = directory.path().join("split");
    std::fs::create_dir(&split).unwrap();
    std::fs::copy(directory.path().join("whole/config.json"), split.join("config.json")).unwrap();
    let part = |name: &str| {
        let view = whole.tensor(name).unwrap();
        Made { name: name.to_owned(), dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().to_vec() }
    };
    let files = [["a.weight", "b.weight_scale"], ["b.weight", "a.weight_scale"]];
    let mut map = serde_json::Map::new();
    for (i, tensors) in files.iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        common::checkpoint(&split, &file, &tensors.map(part));
        map.extend(tensors.iter().map(|name| ((*name).to_owned(), json!(file))));
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(split.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let checkpoint = import::open(&split).unwrap();
    let back = pack_checkpoint(&checkpoint, &Rules::default(), &directory.path().join("back.twn"));
    for name in names {
        let (Some(Tensor::Ternary(a)), Some(Tensor::Ternary(b))) = (container.by_name(name), back.by_name(name)) else {
            panic!("{name}")
        };
        assert_eq!((a.packed(), a.granularity), (b.packed(), b.granularity), "{name}");
        assert!(a.scales().eq(b.scales()), "{name}");
    }
    // Without the file of a scale, it is said which one is missing.
    std::fs::remove_file(split.join("model-00002-of-00002.safetensors")).unwrap();
    let error = import::open(&split).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
}

#[test]
fn there_and_back_again() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["model.layers.0.q.weight", "model.layers.0.k.weight"];
    let container = pack(
        directory.path(),
        &[
            (Made::gaussian(names[0], Dtype::BF16, &[16, 37], 1), "granularity=tensor"),
            (Made::gaussian(names[1], Dtype::BF16, &[8, 37], 2), "granularity=tensor,method=absmean,encoding=t5"),
            (Made::gaussian("model.norm.weight", Dtype::BF16, &[37], 3), ""),
        ],
    );
    let config = directory.path().join("config.json");
    std::fs::write(&config, r#"{"dtype": "bfloat16"}"#).unwrap();
    let out = directory.path().join("out");
    let options = Options { into: Some(config), ..Options::default() };
    let output = write(&container, &options, &out);
    let checkpoint = import::open(&out).unwrap();
    assert_eq!(checkpoint.warnings(), [""; 0]);
    let back = pack_checkpoint(&checkpoint, &Rules::default(), &directory.path().join("back.twn"));
    for name in names {
        let (Some(Tensor::Ternary(a)), Some(Tensor::Ternary(b))) = (container.by_name(name), back.by_name(name)) else {
            panic!("{name}")
        };
        assert_eq!((a.dtype, &a.shape, a.granularity), (b.dtype, &b.shape, b.granularity), "{name}");
        assert!(a.scales().eq(b.scales()), "{name}");
        for filter in 0..a.filters {
            let (mut x, mut y) = (vec![0; a.filter_len], vec![0; a.filter_len]);
            a.codes(0, filter, &mut x).unwrap();
            b.codes(0, filter, &mut y).unwrap();
            assert_eq!(x, y, "{name}, filter {filter}");
        }
    }
    // And the same bytes a second time.
    let again = write(&back, &options, &directory.path().join("again"));
    assert_eq!(std::fs::read(output).unwrap(), std::fs::read(again).unwrap());
}

#[test]
fn the_command_does_both() {
    let directory = tempfile::tempdir().unwrap();
    pack(directory.path(), &[(ternary("a.weight", &[8, 32], &golden::trits(), 0.5), EXACT)]);
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("config.json"), r#"{"dtype": "float32", "vocab_size": 9}"#).unwrap();
    std::fs::create_dir(at("out")).unwrap();
    let arguments =
        ["export", &at("in.twn"), "--to", "bitnet", "--into", &at("config.json"), "-o", &at("out/model.safetensors")];
    let (stdout, _) = common::expect(0, &arguments);
    assert!(stdout.contains("a.weight  weight U8 [2, 32], weight_scale F32 [1], 68 B"), "{stdout}");
    // What lies beside it is listed, before it is written too.
    let listing = [&arguments[..6], &["--dry-run"]].concat();
    let (stdout, _) = common::expect(0, &listing);
    assert!(stdout.contains("beside it: config.json, "), "{stdout}");
    let (stdout, _) = common::expect(0, &[&listing[..], &["--json"]].concat());
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["beside"][0]["name"], "config.json");
    assert_eq!(json["beside"][0]["bytes"], std::fs::metadata(at("out/config.json")).unwrap().len());
    common::expect(0, &[at("out").as_str(), "-o", &at("back.twn")]);
    let (stdout, _) = common::expect(0, &["verify", &at("back.twn"), "--against", &at("out")]);
    assert!(stdout.contains("good"), "{stdout}");
    common::expect(0, &["unpack", &at("back.twn"), "-o", &at("floats.safetensors")]);
    let bytes = std::fs::read(at("floats.safetensors")).unwrap();
    let expected: Vec<u8> = golden::trits().iter().flat_map(|t| (*t as f32 * 0.5).to_le_bytes()).collect();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("a.weight").unwrap().data(), expected);
}

/// Opens a checkpoint and, if that succeeds, reads all there is.
fn survives(path: &Path) {
    let Ok(checkpoint) = import::open(path) else { return };
    for i in 0..checkpoint.len() {
        let Some(view) = checkpoint.ternary(i) else { continue };
        let mut codes = vec![0; view.filter_len()];
        for filter in 0..view.filters() {
            let _ = (view.codes(filter, &mut codes), view.scale(filter, 0));
        }
    }
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let _ = convert::measure(&checkpoint, &plan, &convert::Options::default());
}

#[test]
fn damage_is_an_error_or_harmless() {
    let weight = packed("a.weight", 1, 2, vec![0x55, 0xa2]);
    let tensors = [weight, weight_scale("a.weight", Dtype::F32, 0.5)];
    let repository = Repository::new(&tensors, &bitnet("autobitlinear"));
    let (model, config) = (repository.path(), repository.directory.path().join("config.json"));
    for path in [&model, &config] {
        let good = std::fs::read(path).unwrap();
        for cut in 0..good.len() {
            std::fs::write(path, &good[..cut]).unwrap();
            assert!(import::open(&model).is_err(), "{} cut to {cut} bytes", path.display());
        }
        for at in 0..good.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                std::fs::write(path, &bytes).unwrap();
                survives(&model);
            }
        }
        std::fs::write(path, &good).unwrap();
    }
    assert_eq!(repository.open().warnings(), [""; 0]);
    // Empty dimensions, and rows that overflow once there are four times as many.
    for shape in [vec![0, 4], vec![4, 0], vec![1 << 62, 0], vec![0, 1 << 62]] {
        let weight = Made { shape, ..packed("a.weight", 0, 0, Vec::new()) };
        let bytes = safetensors(&[weight, weight_scale("a.weight", Dtype::F32, 0.5)], &[]);
        std::fs::write(&model, bytes).unwrap();
        assert!(import::open(&model).is_err());
    }
}

#[test]
fn many_tensors_are_no_trouble() {
    let tensors: Vec<Made> = (0..20_000)
        .flat_map(|i| {
            let weight = packed(&format!("{i}.weight"), 1, 1, vec![0x55]);
            [weight, weight_scale(&format!("{i}.weight"), Dtype::BF16, 0.5)]
        })
        .collect();
    let repository = Repository::new(&tensors, &bitnet("autobitlinear"));
    let start = std::time::Instant::now();
    assert_eq!(import::open(repository.path()).unwrap().len(), 20_000);
    assert!(start.elapsed().as_secs() < 200, "{:?}", start.elapsed());
}

/// As a file of PyTorch they are the same weights, and ask for the same config.
#[test]
fn weights_in_a_pytorch_file_are_read_alike() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pytorch_model.bin");
    std::fs::copy("fixtures/foreign/pytorch/bitnet.pt", &path).unwrap();
    for given in [&path, directory.path()] {
        let error = twn_pack::import::open(given).unwrap_err().to_string();
        assert!(error.contains("tensor `a.weight` is U8") && error.contains("there is no such file"), "{error}");
    }
    let config = r#"{"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"}}"#;
    std::fs::write(directory.path().join("config.json"), config).unwrap();
    for given in [&path, directory.path()] {
        let checkpoint = twn_pack::import::open(given).unwrap();
        let container = pack_checkpoint(&checkpoint, &Rules::default(), &directory.path().join("m.twn"));
        let twn_pack::Tensor::Ternary(tensor) = container.by_name("a.weight").unwrap() else { panic!("dense") };
        let mut values = [0.0; 12];
        (0..4).for_each(|row| tensor.dequantize_filter(row, &mut values[3 * row..3 * row + 3]).unwrap());
        assert_eq!(values, [-0.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0]);
    }
}
