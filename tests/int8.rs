//! Tensors of 8-bit codes, from the rules to what is read back. Not here: how a scale is chosen
//! (`src/int8.rs`), or files that break a rule (`fixtures/bad`).

mod common;

use common::Made;
use twn_pack::container::Body;
use twn_pack::convert::{self, Options};
use twn_pack::{Checkpoint, Container, Dtype, Isa, Plan, Rules, Settings, Tensor, select, unpack, verify};

fn rules(settings: &str) -> Rules {
    let settings = Settings::parse(&format!("keep=int8,{settings}")).unwrap();
    Rules { overrides: vec![select::Override { pattern: "*".to_owned(), settings }], ..Rules::default() }
}

/// Naively: ‖W − Ŵ‖² of one filter with the scale max|w|/127.
fn plain_error(weights: &[f64]) -> f64 {
    let scale = (weights.iter().fold(0.0f64, |max, w| max.max(w.abs())) / 127.0) as f32;
    let value = |w: f64| f64::from(scale * (w / f64::from(scale)).clamp(-127.0, 127.0).round_ties_even() as f32);
    weights.iter().map(|&w| (w - value(w)).powi(2)).sum()
}

/// Every type, along both axes, with long and scattered filters: the file is good, agrees with the checkpoint, is the
/// same on any instruction set, and no worse than the largest values make it.
#[test]
fn what_is_packed_is_read_back_and_no_worse_than_plain_rounding() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = [
        Made::gaussian("a", Dtype::F32, &[5, 3, 7], 1),
        Made::gaussian("b", Dtype::F64, &[4, 90], 2),
        Made::gaussian("c", Dtype::BF16, &[33, 20], 3),
        Made::gaussian("long", Dtype::F32, &[2, 300_001], 4),
        Made::gaussian("scattered", Dtype::F16, &[90_000, 40], 5),
    ];
    let input = common::checkpoint(directory.path(), "in.safetensors", &tensors);
    let checkpoint = Checkpoint::open(&input).unwrap();
    for settings in ["axis=0", "axis=1,scale-dtype=f16"] {
        let plan = Plan::new(&checkpoint, &rules(settings)).unwrap();
        let output = directory.path().join("out.twn");
        let pack = |isa: Isa| {
            let options = Options { overwrite: true, isa: Some(isa), ..Options::default() };
            let report = convert::pack(&checkpoint, &plan, &output, &options).unwrap();
            assert_eq!(report.totals.int8_tensors, 5);
            std::fs::read(&output).unwrap()
        };
        let bytes = pack(Isa::PORTABLE);
        assert!(bytes == pack(Isa::detect().unwrap()), "{settings}");
        let container = Container::open(&output).unwrap();
        for result in
            [verify::verify(&container, None).unwrap(), verify::verify_against(&container, &checkpoint, None).unwrap()]
        {
            assert_eq!(result.problems, Vec::<String>::new(), "{settings}");
        }
        for (entry, (name, tensor)) in container.index().tensors.iter().zip(container.tensors()) {
            let (Body::Int8(body), Tensor::Int8(tensor)) = (entry.body(), tensor) else { panic!("{name}") };
            assert_eq!(body.reason, "set by `*`");
            let relative = tensor.stats.relative_squared_error();
            assert!(relative < 1.5e-4, "{name}: {relative:e}");
        }
        if settings == "axis=0" {
            let Some(Tensor::Int8(tensor)) = container.by_name("long") else { panic!("long") };
            let made = tensors[3].data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
            let weights: Vec<f64> = made.collect();
            let plain: f64 = weights.chunks(300_001).map(plain_error).sum();
            assert!(tensor.stats.squared_error <= plain * (1.0 + 1e-9), "{:e} {plain:e}", tensor.stats.squared_error);
        }
        let unpacked = directory.path().join("back.safetensors");
        let options = unpack::Options { dtype: Some(Dtype::F32), overwrite: true, ..Default::default() };
        unpack::unpack(&container, &unpacked, &options).unwrap();
        let back = Checkpoint::open(&unpacked).unwrap();
        for (name, tensor) in container.tensors() {
            let Tensor::Int8(tensor) = tensor else { panic!("{name}") };
            let values = tensor.to_array().unwrap();
            let back = back.by_name(name).unwrap();
            assert_eq!(values.shape(), back.shape);
            let read = back.stored.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
            assert!(values.iter().map(|v| v.to_bits()).eq(read), "{name}");
        }
    }
}

/// The command: `--int8` gives names that stay dense by default 8 bits, `--set` behind it wins; NaN is refused, or
/// kept dense; training has no use for it.
#[test]
fn the_command_says_what_becomes_int8() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = vec![
        Made::gaussian("embed.weight", Dtype::F32, &[6, 8], 1),
        Made::gaussian("fc.weight", Dtype::F32, &[6, 8], 2),
        Made::gaussian("fc.bias", Dtype::F32, &[6], 3),
    ];
    let input = common::checkpoint(directory.path(), "in.safetensors", &tensors);
    let (input, output) = (input.to_str().unwrap(), directory.path().join("out.twn"));
    let output = output.to_str().unwrap();
    let pack = ["-o", output, "--int8", "embed*", "--int8", "*.bias"];
    let (table, _) = common::expect(0, &[&[input][..], &pack].concat());
    assert!(table.contains("int8 filter: set by `embed*`"), "{table}");
    assert!(table.contains("dense: rank 1") && table.contains("1 of 3 tensors ternary"), "{table}");
    assert!(table.contains("int8      1 tensor, 48 weights"), "{table}");
    let (table, _) = common::expect(0, &["inspect", output]);
    assert!(table.contains("int8 filter: set by `embed*`"), "{table}");
    let (table, _) = common::expect(0, &[input, "--dry-run", "--int8", "embed*", "--set", "embed*", "keep=dense"]);
    assert!(table.contains("dense: set by `embed*`"), "{table}");
    tensors[0].data[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let nan = common::checkpoint(directory.path(), "nan.safetensors", &tensors);
    let nan = nan.to_str().unwrap();
    let (_, error) = common::expect(3, &[nan, "-o", output, "-f", "--int8", "embed*"]);
    assert!(error.contains("tensor `embed.weight`: weight 1 of filter 0 is NaN"), "{error}");
    let (table, _) = common::expect(0, &[nan, "-o", output, "-f", "--int8", "embed*", "--non-finite", "dense"]);
    assert!(table.contains("dense: holds NaN or infinity"), "{table}");
}

/// The largest numbers there are: what is packed can be unpacked, although 127 times the nearest scale would be infinite.
#[test]
fn the_largest_numbers_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let values: Vec<f64> = (0..90).map(|i| f64::from(f32::MAX) * (1.0 - f64::from(i) / 45.0)).collect();
    let input =
        common::checkpoint(directory.path(), "in.safetensors", &[Made::new("w", Dtype::F32, &[3, 30], &values)]);
    let checkpoint = Checkpoint::open(&input).unwrap();
    let (packed, back) = (directory.path().join("out.twn"), directory.path().join("back.safetensors"));
    convert::pack(&checkpoint, &Plan::new(&checkpoint, &rules("")).unwrap(), &packed, &Options::default()).unwrap();
    unpack::unpack(&Container::open(&packed).unwrap(), &back, &unpack::Options::default()).unwrap();
    let back = Checkpoint::open(&back).unwrap();
    for (&w, b) in values.iter().zip(back.by_name("w").unwrap().stored.as_chunks().0) {
        assert!(
            (f64::from(f32::from_le_bytes(*b)) / f64::from(f32::MAX) - w / f64::from(f32::MAX)).abs() < 0.01,
            "{w:e}"
        );
    }
}
