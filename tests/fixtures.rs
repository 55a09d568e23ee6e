//! The fixtures are what their generator makes, and packing them gives the bytes it always gave:
//! on every instruction set and number of threads, in agreement with other projects' layouts, with
//! another crate's 8-bit floats, and with the papers' equations written out plainly.

#[path = "generate/mod.rs"]
mod generate;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use generate::bytes::Safetensors;
use safetensors::SafeTensors;
use twn_pack::container::Granularity;
use twn_pack::select::Decision;
use twn_pack::{
    Checkpoint, Container, Dtype, Error, Isa, Plan, Rules, Settings, Tensor, TernaryTensor, convert, unpack, verify,
};

fn rules(settings: &str) -> Rules {
    Rules { settings: Settings::parse(settings).unwrap(), ..Rules::default() }
}

/// Packs a checkpoint into `scratch`.
fn pack(checkpoint: &Path, settings: &str, scratch: &Path) -> twn_pack::Result<Container> {
    let checkpoint = Checkpoint::open(checkpoint)?;
    let plan = Plan::new(&checkpoint, &rules(settings))?;
    let output = scratch.join("packed.twn");
    convert::pack(&checkpoint, &plan, &output, &convert::Options { overwrite: true, ..Default::default() })?;
    Container::open(output)
}

fn pack_bytes(checkpoint: &[u8], settings: &str, scratch: &Path) -> twn_pack::Result<Container> {
    let input = scratch.join("input.safetensors");
    std::fs::write(&input, checkpoint).unwrap();
    pack(&input, settings, scratch)
}

fn ternary<'a>(container: &'a Container, name: &str) -> TernaryTensor<'a> {
    match container.by_name(name) {
        Some(Tensor::Ternary(tensor)) => tensor,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn the_generator_makes_the_files_that_are_here() {
    let scratch = tempfile::tempdir().unwrap();
    let files = generate::all(scratch.path());
    for (name, bytes) in &files {
        let path = generate::directory().join(name);
        let stored = std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(stored == *bytes, "{name} is not what the generator makes; see fixtures/README.md");
    }
    let by_hand = [
        "README.md",
        "bad/expected.toml",
        "lenet5-mnist.safetensors",
        "mnist64/logits.safetensors",
        "mnist64/make_golden.py",
        "mnist64/t10k-images-idx3-ubyte.gz",
        "mnist64/t10k-labels-idx1-ubyte.gz",
        "residual/golden.safetensors",
        "residual/gradients.safetensors",
        "residual/make_golden.py",
        "residual/make_gradients.py",
        "residual/resnet18-cifar.safetensors",
        "residual/small.safetensors",
        "residual/small.toml",
        generate::packed::CHECKSUMS,
        "trits256.json",
    ];
    let known: BTreeSet<&str> = files.keys().map(String::as_str).chain(by_hand).collect();
    let mut stray = Vec::new();
    let mut directories = vec![generate::directory()];
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(generate::directory()).unwrap().to_str().unwrap().replace('\\', "/");
            if path.is_dir() {
                // Other programs' files have READMEs of their own.
                if name != "foreign" {
                    directories.push(path);
                }
            } else if !known.contains(name.as_str()) {
                stray.push(name);
            }
        }
    }
    assert!(stray.is_empty(), "nobody makes these: {stray:?}");
}

#[test]
fn every_instruction_set_and_number_of_threads_packs_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let golden = std::fs::read_to_string(generate::directory().join(generate::packed::CHECKSUMS)).unwrap();
    let recipes = generate::packed::recipes();
    assert_eq!(golden.lines().count(), recipes.len());
    for isa in Isa::all() {
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (recipe, golden) in recipes.iter().zip(golden.lines()) {
                let bytes = pool.install(|| recipe.pack(&generate::directory(), scratch.path(), isa));
                let found = generate::packed::checksum(&recipe.output, &bytes);
                assert_eq!(found, golden, "{}, {threads} threads", isa.name());
            }
        }
    }
}

fn stored_containers() -> Vec<PathBuf> {
    let files = generate::directory().read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut containers: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "twn")).collect();
    containers.sort();
    containers
}

#[test]
fn stored_containers_verify_also_against_their_checkpoints() {
    for path in stored_containers() {
        let container = Container::open(&path).unwrap();
        assert_eq!(verify::verify(&container, None).unwrap().problems, [""; 0], "{}", path.display());
    }
    for recipe in generate::packed::recipes().into_iter().filter(|recipe| recipe.stored) {
        let container = Container::open(generate::directory().join(&recipe.output)).unwrap();
        let checkpoint = Checkpoint::open(generate::directory().join(&recipe.input)).unwrap();
        let found = verify::verify_against(&container, &checkpoint, None).unwrap();
        assert_eq!(found.problems, [""; 0], "{}", recipe.output);
        assert_eq!(container.index().metadata, *checkpoint.metadata(), "{}", recipe.output);
    }
}

#[test]
fn two_planes_add_up() {
    use generate::packed::{PLANES, SCALES};
    let container = Container::open(generate::directory().join("two-planes.twn")).unwrap();
    let tensor = ternary(&container, "weight");
    for filter in 0..2 {
        let mut codes = [0; 5];
        for (plane, expected) in PLANES.iter().enumerate() {
            tensor.codes(plane, filter, &mut codes).unwrap();
            assert_eq!(codes, expected[filter]);
        }
        let mut values = [0.0; 5];
        tensor.dequantize_filter(filter, &mut values).unwrap();
        let expected: [f32; 5] =
            std::array::from_fn(|j| (0..2).map(|p| SCALES[p][filter] * (f32::from(PLANES[p][filter][j]) - 1.0)).sum());
        assert_eq!(values, expected);
    }
}

/// The trits that `fixtures/trits256.json` holds in the layouts of several projects.
fn trits() -> Vec<i32> {
    let mut s = 1_u32;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((s >> 16) % 3) as i32 - 1
    };
    (0..256).map(|_| next()).collect()
}

#[test]
fn t2_is_the_layout_that_others_call_lsb_first() {
    let trits = trits();
    assert_eq!(trits[..16], [0, 1, 0, 0, -1, -1, 1, -1, -1, 0, -1, 1, 1, -1, -1, 1]);
    let json = std::fs::read_to_string(generate::directory().join("trits256.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let weights: Vec<f64> = trits.iter().map(|&t| f64::from(t) * 0.5).collect();
    let bytes = generate::bytes::floats("F32", &weights);
    let file = Safetensors::default().tensor("w", "F32", &[1, 256], &bytes).build();
    let scratch = tempfile::tempdir().unwrap();
    let container = pack_bytes(&file, "", scratch.path()).unwrap();
    let tensor = ternary(&container, "w");
    let hex: String = tensor.packed().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, json["lsb_first_t_plus_1"].as_str().unwrap());
    assert_eq!(tensor.scale_at(0), 0.5);
    assert_eq!((tensor.stats.negative, tensor.stats.zeros, tensor.stats.positive), (78, 94, 84));
    assert_eq!(tensor.stats.squared_error, 0.0);
}

/// What the papers' equations give for one unit, written out: (Δ or none for signs, α).
fn by_the_paper(method: &str, w: &[f64]) -> (Option<f64>, f64) {
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = values.fold((0.0, 0), |(sum, count), x| (sum + x, count + 1));
        if count == 0 { 0.0 } else { sum / f64::from(count) }
    };
    let mean_of_all = mean(&mut w.iter().map(|w| w.abs()));
    match method {
        "twn" => {
            let delta = 0.7 * mean_of_all;
            (Some(delta), mean(&mut w.iter().map(|w| w.abs()).filter(|w| *w > delta)))
        }
        "absmean" => (Some(mean_of_all / 2.0), mean_of_all),
        "bwn" => (None, mean_of_all),
        "optimal" => {
            let mut sorted: Vec<f64> = w.iter().map(|w| w.abs()).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let (mut best, mut delta, mut alpha, mut sum) = (0.0, 0.0, 0.0, 0.0);
            for (k, w) in (1..).zip(&sorted) {
                sum += w;
                let next = sorted.get(k).copied().unwrap_or(0.0);
                if sum * sum / k as f64 > best && (next < *w) {
                    (best, delta, alpha) = (sum * sum / k as f64, next, sum / k as f64);
                }
            }
            (Some(delta), alpha)
        }
        other => panic!("{other}"),
    }
}

fn close(found: f64, expected: f64, tolerance: f64, what: &str) {
    let close = (found - expected).abs() <= tolerance * expected.abs();
    assert!(close, "{what}: {found:e}, should be {expected:e}");
}

#[test]
fn a_trained_network_agrees_with_the_papers_equations() {
    let path = generate::directory().join("lenet5-mnist.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let source = SafeTensors::deserialize(&bytes).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    for method in ["twn", "absmean", "bwn", "optimal"] {
        for granularity in [Granularity::Filter, Granularity::Tensor, Granularity::Group(50)] {
            let container = pack(&path, &format!("method={method},granularity={granularity}"), scratch.path()).unwrap();
            for name in ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"] {
                let what = format!("{name} {method} {granularity}");
                let view = source.tensor(name).unwrap();
                let weights: Vec<f64> =
                    view.data().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
                let tensor = ternary(&container, name);
                let n = weights.len() / view.shape()[0];
                assert_eq!((tensor.filters, tensor.filter_len), (view.shape()[0], n), "{what}");
                let filters = weights.chunks(n);
                let units: Vec<&[f64]> = match granularity {
                    Granularity::Tensor => vec![&weights],
                    Granularity::Filter => filters.collect(),
                    Granularity::Group(size) => filters.flat_map(|filter| filter.chunks(size as usize)).collect(),
                };
                let (mut error, mut norm, mut counts) = (0.0, 0.0, [0_u64; 3]);
                let mut codes = Vec::with_capacity(weights.len());
                assert_eq!(tensor.scales().len(), units.len(), "{what}");
                for (unit, stored) in units.iter().zip(tensor.scales()) {
                    let (delta, alpha) = by_the_paper(method, unit);
                    close(f64::from(stored), alpha, 1e-6, &what);
                    for &w in *unit {
                        let t = match delta {
                            Some(delta) if w.abs() <= delta => 0.0,
                            _ if w < 0.0 => -1.0,
                            _ => 1.0,
                        };
                        codes.push((t + 1.0) as u8);
                        counts[(t + 1.0) as usize] += 1;
                        error += (w - f64::from(stored) * t).powi(2);
                        norm += w * w;
                    }
                }
                let mut unpacked = vec![0; n];
                for (filter, expected) in codes.chunks(n).enumerate() {
                    tensor.codes(0, filter, &mut unpacked).unwrap();
                    assert_eq!(unpacked, expected, "{what}, filter {filter}");
                }
                let stats = &tensor.stats;
                assert_eq!([stats.negative, stats.zeros, stats.positive], counts, "{what}");
                close(stats.squared_norm, norm, 1e-12, &what);
                close(stats.relative_squared_error(), error / norm, 1e-9, &what);
            }
        }
    }
}

/// An 8-bit float type and another crate's idea of it.
struct Float8 {
    name: &'static str,
    decode: fn(u8) -> f32,
    encode: fn(f32) -> u8,
    largest: f32,
}

const FLOAT8: [Float8; 2] = [
    Float8 {
        name: "F8_E4M3",
        decode: |byte| float8::F8E4M3::from_bits(byte).to_f32(),
        encode: |x| float8::F8E4M3::from_f32(x).to_bits(),
        largest: 448.0,
    },
    Float8 {
        name: "F8_E5M2",
        decode: |byte| float8::F8E5M2::from_bits(byte).to_f32(),
        encode: |x| float8::F8E5M2::from_f32(x).to_bits(),
        largest: 57_344.0,
    },
];

/// The values of tensor `w` after packing one filter per row and unpacking.
fn there_and_back(file: &[u8], dtype: Option<Dtype>, scratch: &Path) -> twn_pack::Result<Vec<u8>> {
    let container = pack_bytes(file, "", scratch)?;
    let output = scratch.join("unpacked.safetensors");
    unpack::unpack(&container, &output, &unpack::Options { dtype, overwrite: true, ..Default::default() })?;
    let bytes = std::fs::read(output).unwrap();
    Ok(SafeTensors::deserialize(&bytes).unwrap().tensor("w").unwrap().data().to_vec())
}

#[test]
fn eight_bit_floats_decode_as_another_crate_decodes_them() {
    let scratch = tempfile::tempdir().unwrap();
    for float in FLOAT8 {
        for byte in 0..=255 {
            // A filter of one weight is its own scale: nothing is lost.
            let file = Safetensors::default().tensor("w", float.name, &[1, 1], &[byte]).build();
            let value = (float.decode)(byte);
            let found = there_and_back(&file, Some(Dtype::F32), scratch.path());
            if value.is_finite() {
                let found = f32::from_le_bytes(found.unwrap().try_into().unwrap());
                // Code 0 has no sign.
                assert_eq!(found, value, "{} {byte:#04x}", float.name);
                let same = there_and_back(&file, None, scratch.path()).unwrap();
                assert_eq!(same, [if value == 0.0 { 0 } else { byte }], "{} {byte:#04x}", float.name);
            } else {
                let error = found.unwrap_err();
                assert!(matches!(error, Error::Weights { .. }), "{} {byte:#04x}: {error}", float.name);
            }
        }
    }
}

#[test]
fn eight_bit_floats_are_rounded_as_another_crate_rounds_them() {
    let scratch = tempfile::tempdir().unwrap();
    for float in FLOAT8 {
        let largest = (float.encode)(float.largest);
        for byte in 8..largest {
            // Filters (a, b), (a, a, b) and (a, b, b) of neighbours: their mean is a tie, a third or two.
            for filter in [vec![byte, byte + 1], vec![byte, byte, byte + 1], vec![byte, byte + 1, byte + 1]] {
                let file = Safetensors::default().tensor("w", float.name, &[1, filter.len()], &filter).build();
                let sum: f64 = filter.iter().map(|&b| f64::from((float.decode)(b))).sum();
                let expected = (float.encode)((sum / filter.len() as f64) as f32);
                let found = there_and_back(&file, None, scratch.path()).unwrap();
                assert_eq!(found, vec![expected; filter.len()], "{} of {filter:x?}", float.name);
            }
        }
    }
}

/// Panicked: a division by the filter length.
#[test]
fn an_empty_tensor_in_an_edited_plan_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(generate::directory().join("edges.safetensors")).unwrap();
    let mut plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let treatment = Settings::default().treatment().unwrap();
    let empty = plan.tensors.iter_mut().find(|planned| planned.name == "zero_size.columns").unwrap();
    empty.decision = Decision::Ternary(treatment);
    let output = scratch.path().join("out.twn");
    let error = convert::pack(&checkpoint, &plan, &output, &convert::Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "tensor `zero_size.columns` is empty, it cannot be ternary; keep it dense");
}

/// Every fixture with `t5` or `b1` unpacks to the same values as with `t2`.
#[test]
fn the_encoding_changes_no_value() {
    let scratch = tempfile::tempdir().unwrap();
    for input in ["odd-lengths.safetensors", "layouts.safetensors", "ranks.safetensors"] {
        let path = generate::directory().join(input);
        for (method, other) in [("twn", "t5"), ("bwn", "b1")] {
            let values = |encoding: &str| -> Vec<Vec<u32>> {
                let settings = format!("method={method},encoding={encoding}");
                let container = pack(&path, &settings, scratch.path()).unwrap();
                let tensors = container.tensors().filter_map(|(_, tensor)| match tensor {
                    Tensor::Ternary(tensor) => Some(tensor.to_array().unwrap().iter().map(|v| v.to_bits()).collect()),
                    Tensor::Dense(_) | Tensor::Int8(_) => None,
                });
                tensors.collect()
            };
            assert_eq!(values("t2"), values(other), "{input}");
        }
    }
}
