//! `.twn` → packed safetensors, read back by the safetensors crate and decoded by hand, as `docs/packed-safetensors.md`
//! says; and what every export has in common: refusals, outputs, damage. Not here: other formats.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use twn_pack::export::{self, Export, Line, Options, Part, WriteOptions};
use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, Settings, Tensor, convert, select};

/// Packs tensors by their settings.
fn pack(directory: &Path, tensors: &[(&str, &[usize], &str)]) -> Container {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32
    };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape, _)| (0..shape.iter().product()).flat_map(|_| random().to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let (input, output) = (directory.join("in.safetensors"), directory.join("in.twn"));
    std::fs::write(&input, safetensors::serialize(views, None).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&input).unwrap();
    let overrides = tensors.iter().map(|(name, _, settings)| select::Override {
        pattern: (*name).to_owned(),
        settings: Settings::parse(settings).unwrap(),
    });
    let rules = Rules { overrides: overrides.collect(), ..Rules::default() };
    let options = convert::Options { overwrite: true, ..convert::Options::default() };
    convert::pack(&checkpoint, &Plan::new(&checkpoint, &rules).unwrap(), &output, &options).unwrap();
    Container::open(output).unwrap()
}

const EVERYTHING: [(&str, &[usize], &str); 8] = [
    ("bias", &[7], ""),
    ("conv", &[4, 3, 3, 3], "granularity=tensor"),
    ("groups", &[5, 70], "granularity=group:32,scale-dtype=f16"),
    ("planes", &[6, 10], "planes=2"),
    ("trits", &[3, 11], "encoding=t5"),
    ("signs", &[2, 13], "method=bwn"),
    ("axis", &[8, 5], "axis=1"),
    ("bytes", &[3, 9], "keep=int8"),
];

/// One code of a packed filter, from the documentation alone.
fn code(encoding: &str, filter: &[u8], j: usize) -> f32 {
    match encoding {
        "t2" => f32::from(filter[j / 4] >> (2 * (j % 4)) & 3) - 1.0,
        "t5" => f32::from(filter[j / 5] / 3u8.pow((j % 5) as u32) % 3) - 1.0,
        "b1" => f32::from(filter[j / 8] >> (j % 8) & 1) * 2.0 - 1.0,
        "int8" => f32::from(filter[j] as i8),
        other => panic!("{other}"),
    }
}

#[test]
fn packed_safetensors_hold_everything() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(directory.path(), &EVERYTHING);
    let export = export::format("safetensors").unwrap().export(&container, &Options::default()).unwrap();
    let output = directory.path().join("out.safetensors");
    let length = export::write(&container, &export, &output, &WriteOptions::default()).unwrap();
    let bytes = std::fs::read(&output).unwrap();
    assert_eq!((length, export.len()), (bytes.len() as u64, bytes.len() as u64));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let described: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&header.metadata().as_ref().unwrap()["twn-pack.packed"]).unwrap();
    assert_eq!(described.len(), 7);
    for (name, tensor) in container.tensors() {
        let (expected, axis) = match tensor {
            Tensor::Dense(dense) => {
                assert_eq!(file.tensor(name).unwrap().data(), dense.data, "{name}");
                continue;
            }
            Tensor::Ternary(ternary) => (ternary.to_array().unwrap(), ternary.axis),
            Tensor::Int8(int8) => (int8.to_array().unwrap(), int8.axis),
        };
        let what = &described[name];
        assert_eq!(what["axis"], axis, "{name}");
        assert_eq!(what["shape"], serde_json::json!(expected.shape()), "{name}");
        let (codes, scales) =
            (file.tensor(&format!("{name}.codes")).unwrap(), file.tensor(&format!("{name}.scales")).unwrap());
        let scale = |i: usize| match scales.dtype() {
            Dtype::F32 => f32::from_le_bytes(scales.data()[4 * i..4 * i + 4].try_into().unwrap()),
            _ => half::f16::from_le_bytes(scales.data()[2 * i..2 * i + 2].try_into().unwrap()).to_f32(),
        };
        let encoding = what["encoding"].as_str().unwrap();
        let (planes, row) = match codes.shape() {
            [planes, _, row] => (*planes, *row),
            [_, row] => (1, *row),
            other => panic!("{name}: {other:?}"),
        };
        let (filters, n) = (expected.shape()[axis], expected.len() / expected.shape()[axis]);
        let per_filter = scales.data().len() / (scales.dtype().bitsize() / 8) / planes;
        let mut first = expected.clone();
        (0..axis).rev().for_each(|i| first.swap_axes(i, i + 1));
        for (i, &value) in first.iter().enumerate() {
            let (filter, j) = (i / n, i % n);
            let sum = (0..planes).fold(0.0, |sum, plane| {
                let at = match what["granularity"].as_str().unwrap() {
                    "tensor" => 0,
                    "filter" => filter,
                    group => {
                        let size: usize = group.strip_prefix("group:").unwrap().parse().unwrap();
                        filter * n.div_ceil(size) + j / size
                    }
                };
                let codes = &codes.data()[(plane * filters + filter) * row..][..row];
                sum + scale(plane * per_filter + at) * code(encoding, codes, j)
            });
            assert_eq!(sum, value, "{name}, weight {j} of filter {filter}");
        }
    }
}

#[test]
fn names_that_would_meet_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(directory.path(), &[("a", &[2, 8], ""), ("a.codes", &[3], "")]);
    let export = export::format("safetensors").unwrap().export(&container, &Options::default()).unwrap();
    let output = directory.path().join("out.safetensors");
    let error = export::write(&container, &export, &output, &WriteOptions::default()).unwrap_err().to_string();
    assert!(error.contains("two tensors would be called `a.codes`"), "{error}");
    assert!(!output.exists());
}

#[test]
fn an_export_appears_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(directory.path(), &EVERYTHING);
    let output = directory.path().join("out");
    let line = |becomes| Line { tensor: "w".to_owned(), becomes, bytes: 0, rounding: 0.0 };
    let write = |export: &Export<'_>, overwrite| {
        export::write(&container, export, &output, &WriteOptions { overwrite, ..WriteOptions::default() })
    };
    // Rows longer and shorter than a tile, beside plain bytes.
    let rows = |rows: usize, row_bytes: usize| {
        Part::rows("w", rows, row_bytes, move |range, bytes: &mut [u8]| {
            for (row, bytes) in range.zip(bytes.chunks_exact_mut(row_bytes)) {
                bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (row * 7 + i) as u8);
            }
            Ok(())
        })
    };
    let parts = vec![Part::bytes(&b"head"[..]), rows(3, 3 << 20), Part::padding(5, 8), rows(5_000_000, 3)];
    let export = Export { parts, beside: vec![("beside.json".to_owned(), b"{}".to_vec())], ..Export::default() };
    write(&export, false).unwrap();
    let bytes = std::fs::read(&output).unwrap();
    assert_eq!((&bytes[..4], bytes.len()), (&b"head"[..], 4 + (9 << 20) + 3 + 15_000_000));
    let (long, short) = (&bytes[4..4 + (9 << 20)], &bytes[4 + (9 << 20) + 3..]);
    assert!(long.iter().enumerate().all(|(i, &b)| b == ((i / (3 << 20)) * 7 + i % (3 << 20)) as u8));
    assert!(short.iter().enumerate().all(|(i, &b)| b == ((i / 3) * 7 + i % 3) as u8));
    assert_eq!(std::fs::read(directory.path().join("beside.json")).unwrap(), b"{}");
    // Now it is there.
    assert!(write(&export, false).unwrap_err().to_string().contains("exists already"));
    write(&export, true).unwrap();
    // What lies beside it cannot have its name.
    let named = directory.path().join("beside.json");
    let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let error = export::write(&container, &export, &named, &options).unwrap_err().to_string();
    assert!(error.contains("`beside.json` is written beside the output"), "{error}");
    // What was read is not replaced: neither by the output nor by what lies beside it.
    for (input, output) in [(&named, "another"), (&output, "out")] {
        let (inputs, output) = (vec![input.clone()], directory.path().join(output));
        let export = Export { beside: vec![("beside.json".to_owned(), b"new".to_vec())], inputs, ..Export::default() };
        let error = export::write(&container, &export, &output, &options).unwrap_err().to_string();
        assert!(error.contains("is an input; give another output"), "{error}");
    }
    assert_eq!(std::fs::read(&named).unwrap(), b"{}");
    // What fails leaves the old one.
    let bad = Export { parts: vec![Part::rows("w", 1, 1, |_, _| Err("no such code".to_owned()))], ..Export::default() };
    assert!(write(&bad, true).unwrap_err().to_string().contains("tensor `w`: no such code"));
    let refused =
        Export { tensors: vec![line(Ok(String::new())), line(Err("too odd".to_owned()))], ..Export::default() };
    let error = write(&refused, true).unwrap_err().to_string();
    assert!(error.contains("1 of 2 tensors cannot be exported") && error.contains("too odd"), "{error}");
    assert_eq!(std::fs::read(&output).unwrap().len(), bytes.len());
    // A damaged input is noticed, and told instead of codes that make no sense.
    let mut damaged = container.bytes().to_vec();
    damaged[64] ^= 1;
    let damaged = Container::from_bytes("damaged.twn", damaged).unwrap();
    let other = directory.path().join("other");
    let plain = Export { parts: vec![Part::bytes(&b"x"[..])], ..Export::default() };
    for export in [plain, bad] {
        let error = export::write(&damaged, &export, &other, &WriteOptions::default()).unwrap_err();
        assert!(error.to_string().contains("CRC"), "{error}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn the_command_exports_and_says_what_it_did() {
    let directory = tempfile::tempdir().unwrap();
    drop(pack(directory.path(), &EVERYTHING));
    let (input, output) = (directory.path().join("in.twn"), directory.path().join("out.safetensors"));
    let [input, output] = [&input, &output].map(|path| path.to_str().unwrap());
    let (table, _) = common::expect(0, &["export", input, "--to", "safetensors", "--dry-run"]);
    assert!(table.contains("t2 [2, 6, 3] and scales [2, 6]"), "{table}");
    assert!(!Path::new(output).exists());
    let (json, _) = common::expect(0, &["export", input, "--to", "safetensors", "-o", output, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["bytes"], std::fs::metadata(output).unwrap().len());
    common::expect(2, &["export", input, "--to", "safetensors", "-o", output]);
    // Its codes are no weights.
    let (_, error) = common::expect(3, &["inspect", output]);
    assert!(error.contains("packed weights, exported from a .twn file"), "{error}");
    common::expect(0, &["export", input, "--to", "safetensors", "-o", output, "--force", "-q"]);
    let (_, error) = common::expect(2, &["export", input, "--to", "nonsense", "-o", output]);
    assert!(error.contains("expected one of safetensors"), "{error}");
    common::expect(2, &["export", input, "--to", "safetensors", "-o", input, "--force"]);
}

/// A regression: the model's `config.json` was replaced where the output was to lie beside it, and with it the model
/// broken that it belongs to.
#[test]
fn the_config_that_is_exported_into_stays() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(directory.path(), &[("a.weight", &[16, 16], "granularity=tensor")]);
    let config = directory.path().join("config.json");
    std::fs::write(&config, "{}").unwrap();
    for format in ["bitnet", "gptq"] {
        let options = Options { into: Some(config.clone()), ..Options::default() };
        let export = export::format(format).unwrap().export(&container, &options).unwrap();
        let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
        for output in ["new.safetensors", "config.json"] {
            let output = directory.path().join(output);
            let error = export::write(&container, &export, &output, &options).unwrap_err().to_string();
            assert!(error.contains("config.json is an input; give another output"), "{format}: {error}");
        }
        assert_eq!(std::fs::read(&config).unwrap(), b"{}", "{format}");
    }
}
