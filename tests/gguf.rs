//! GGUF out and in: against golden blocks of ggml, a file of gguf-py, and files assembled and decoded here from the
//! format's description alone. Not here: what the conversion does with ternary weights (`tests/import.rs`).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::Random;
use half::f16;
use safetensors::tensor::TensorView;
use twn_pack::export::{self, Line, Options, WriteOptions};
use twn_pack::select::Override;
use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, Settings, Tensor, convert, import, verify};

const TYPES: [(&str, u32, usize, usize); 3] = [("tq1_0", 34, 256, 54), ("tq2_0", 35, 256, 66), ("q2_0", 42, 64, 18)];

/// A tensor of a file: dimensions innermost first, type number, bytes.
type Raw = (String, Vec<u64>, u32, Vec<u8>);

/// A file as the format's description has it. Keys are there in full.
fn assemble(alignment: usize, keys: &[Vec<u8>], tensors: &[Raw]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    keys.iter().for_each(|key| file.extend(key));
    let mut data: Vec<u8> = Vec::new();
    for (name, dimensions, kind, bytes) in tensors {
        file.extend(text(name));
        file.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|dimension| file.extend(dimension.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(alignment), 0);
    }
    file.resize(file.len().next_multiple_of(alignment), 0);
    file.extend(data);
    file
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value].concat()
}

fn number(name: &str, value: u32) -> Vec<u8> {
    key(name, 4, &value.to_le_bytes())
}

fn raw(name: &str, dimensions: &[u64], kind: u32, bytes: Vec<u8>) -> Raw {
    (name.to_owned(), dimensions.to_vec(), kind, bytes)
}

/// A file read by the format's description: the bytes of each key, and the tensors. Panics at anything odd.
fn read(file: &[u8]) -> (BTreeMap<String, Vec<u8>>, Vec<Raw>) {
    struct Reader<'a>(&'a [u8], usize);
    impl<'a> Reader<'a> {
        fn take(&mut self, n: usize) -> &'a [u8] {
            self.1 += n;
            &self.0[self.1 - n..self.1]
        }
        fn u32(&mut self) -> u32 {
            u32::from_le_bytes(self.take(4).try_into().unwrap())
        }
        fn u64(&mut self) -> u64 {
            u64::from_le_bytes(self.take(8).try_into().unwrap())
        }
        fn text(&mut self) -> &'a [u8] {
            let n = self.u64() as usize;
            self.take(n)
        }
        fn value(&mut self, kind: u32) {
            match kind {
                0 | 1 | 7 => drop(self.take(1)),
                2 | 3 => drop(self.take(2)),
                4..=6 => drop(self.take(4)),
                8 => drop(self.text()),
                9 => {
                    let (kind, n) = (self.u32(), self.u64());
                    (0..n).for_each(|_| self.value(kind));
                }
                _ => drop(self.take(8)),
            }
        }
    }
    let mut reader = Reader(file, 0);
    assert_eq!((reader.take(4), reader.u32()), (&b"GGUF"[..], 3));
    let (tensors, keys) = (reader.u64(), reader.u64());
    let (mut found, mut alignment) = (BTreeMap::new(), 32);
    for _ in 0..keys {
        let name = String::from_utf8(reader.text().to_vec()).unwrap();
        let begin = reader.1;
        let kind = reader.u32();
        reader.value(kind);
        if name == "general.alignment" {
            alignment = u32::from_le_bytes(file[begin + 4..begin + 8].try_into().unwrap()) as usize;
        }
        assert!(found.insert(name, file[begin..reader.1].to_vec()).is_none());
    }
    let infos: Vec<_> = (0..tensors)
        .map(|_| {
            let name = String::from_utf8(reader.text().to_vec()).unwrap();
            assert!(name.len() < 64, "{name}");
            let dimensions: Vec<u64> = (0..reader.u32()).map(|_| reader.u64()).collect();
            (name, dimensions, reader.u32(), reader.u64() as usize)
        })
        .collect();
    let data = reader.1.next_multiple_of(alignment);
    let mut expected = 0;
    let tensors = infos.into_iter().map(|(name, dimensions, kind, offset)| {
        assert_eq!(offset, expected, "{name}");
        let (block, bytes) = TYPES.iter().find(|t| t.1 == kind).map_or_else(
            || {
                (
                    1,
                    [(0, 4), (1, 2), (24, 1), (25, 2), (27, 8), (28, 8), (30, 2)]
                        .into_iter()
                        .find(|t| t.0 == kind)
                        .map_or(144, |t| t.1),
                )
            },
            |t| (t.2, t.3),
        );
        let weights = dimensions.iter().product::<u64>() as usize;
        let length = if kind == 12 { weights / 256 * 144 } else { weights / block * bytes };
        expected = (offset + length).next_multiple_of(alignment);
        (name, dimensions, kind, file[data + offset..data + offset + length].to_vec())
    });
    let tensors = tensors.collect();
    assert_eq!(file.len(), data + expected, "padding at the end, and nothing behind it");
    (found, tensors)
}

/// The scale of a block and the code of one weight, from the formats' description, weight by weight.
fn decode(kind: u32, block: &[u8], n: usize) -> (f32, i32) {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    match kind {
        34 => {
            let (byte, power) = match n {
                0..160 => (block[n % 32], n / 32),
                160..240 => (block[32 + (n - 160) % 16], (n - 160) / 16),
                _ => (block[48 + (n - 240) % 4], (n - 240) / 4),
            };
            let shifted = (u32::from(byte) * 3u32.pow(power as u32)) & 255;
            (half(52), (shifted * 3 / 256) as i32 - 1)
        }
        35 => {
            let byte = block[32 * (n / 128) + n % 32];
            (half(64), i32::from(byte >> (2 * (n % 128 / 32)) & 3) - 1)
        }
        42 => (half(0), i32::from(block[2 + n / 4] >> (2 * (n % 4)) & 3) - 1),
        other => panic!("type {other}"),
    }
}

fn values(kind: u32, bytes: &[u8]) -> Vec<f32> {
    let &(_, _, weights, size) = TYPES.iter().find(|t| t.1 == kind).unwrap();
    let weight = |block: &[u8], n: usize| {
        let (scale, trit) = decode(kind, block, n);
        scale * trit as f32
    };
    bytes.chunks_exact(size).flat_map(|block| (0..weights).map(move |n| weight(block, n))).collect()
}

fn golden() -> (Vec<f32>, BTreeMap<u32, Vec<u8>>) {
    let json: BTreeMap<String, String> = serde_json::from_slice(include_bytes!("../fixtures/trits256.json")).unwrap();
    let hex =
        |text: &str| (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect();
    let blocks = TYPES.iter().map(|(name, kind, ..)| (*kind, hex(&json[&format!("ggml_{name}")]))).collect();
    let mut state = 1u32;
    let trits = (0..256).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) % 3) as f32 - 1.0
    });
    (trits.collect(), blocks)
}

/// A tensor of a checkpoint: name, type, shape, bytes, and the settings that it is packed with.
type Packed<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>, &'a str);

/// A checkpoint of those tensors, packed.
fn pack(directory: &Path, tensors: &[Packed<'_>], metadata: &[(&str, &str)]) -> Container {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes, _)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let (input, output) = (directory.join("in.safetensors"), directory.join("in.twn"));
    std::fs::write(&input, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&input).unwrap();
    let overrides = tensors.iter().map(|(name, .., settings)| Override {
        pattern: (*name).to_owned(),
        settings: Settings::parse(settings).unwrap(),
    });
    let rules = Rules { overrides: overrides.collect(), ..Rules::default() };
    convert(&checkpoint, &rules, &output)
}

fn convert(checkpoint: &Checkpoint, rules: &Rules, output: &Path) -> Container {
    let options = convert::Options { overwrite: true, ..convert::Options::default() };
    convert::pack(checkpoint, &Plan::new(checkpoint, rules).unwrap(), output, &options).unwrap();
    Container::open(output).unwrap()
}

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn random(seed: u64, n: usize) -> Vec<u8> {
    f32s(Random(seed).gaussians(n).into_iter().map(|x| x as f32))
}

/// The lines and, if nothing is refused, the bytes.
fn export(container: &Container, format: &str, options: &Options) -> (Vec<Line>, twn_pack::Result<Vec<u8>>) {
    let export = export::format(format).unwrap().export(container, options).unwrap();
    let output = container.path().with_extension("gguf");
    let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let written = export::write(container, &export, &output, &options).map(|length| {
        let bytes = std::fs::read(&output).unwrap();
        assert_eq!((length, export.len()), (bytes.len() as u64, bytes.len() as u64));
        bytes
    });
    (export.tensors, written)
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn open(directory: &Path, bytes: &[u8]) -> twn_pack::Result<Checkpoint> {
    import::open(write(directory, "model.gguf", bytes))
}

/// The codes t+1 and scales of a ternary tensor of a checkpoint.
fn moved(checkpoint: &Checkpoint, name: &str) -> Result<(Vec<u8>, Vec<f32>), String> {
    let i = checkpoint.tensors().position(|tensor| tensor.name == name).unwrap();
    let view = checkpoint.ternary(i).unwrap();
    let (n, units) = (view.filter_len(), view.filter_len() / view.unit_len());
    let mut codes = vec![9; view.filters() * n];
    for (filter, codes) in codes.chunks_exact_mut(n).enumerate() {
        view.codes(filter, codes)?;
    }
    let scales = (0..view.filters()).flat_map(|filter| (0..units).map(move |unit| view.scale(filter, unit)));
    Ok((codes, scales.collect::<Result<_, _>>()?))
}

#[test]
fn golden_blocks_come_out() {
    let directory = tempfile::tempdir().unwrap();
    let (trits, blocks) = golden();
    for encoding in ["t2", "t5"] {
        let bytes = f32s(trits.iter().map(|trit| trit * 0.5));
        let settings = format!("method=auto,encoding={encoding}");
        let container = pack(directory.path(), &[("w", Dtype::F32, &[1, 256], bytes, &settings)], &[]);
        for (format, kind, ..) in TYPES {
            let (lines, file) = export(&container, format, &Options::default());
            let (_, tensors) = read(&file.unwrap());
            assert_eq!(tensors, [raw("w", &[256, 1], kind, blocks[&kind].clone())], "{format}, {encoding}");
            assert_eq!((lines[0].rounding, lines[0].bytes), (0.0, blocks[&kind].len() as u64));
        }
    }
}

#[test]
fn golden_blocks_go_in() {
    let directory = tempfile::tempdir().unwrap();
    let (trits, blocks) = golden();
    let codes: Vec<u8> = trits.iter().map(|trit| (trit + 1.0) as u8).collect();
    for (_, kind, weights, _) in TYPES {
        let file = assemble(32, &[], &[raw("w", &[256, 1], kind, blocks[&kind].clone())]);
        let checkpoint = open(directory.path(), &file).unwrap();
        assert_eq!(moved(&checkpoint, "w").unwrap(), (codes.clone(), vec![0.5; 256 / weights]));
        let container = convert(&checkpoint, &Rules::default(), &directory.path().join("out.twn"));
        let Some(Tensor::Ternary(tensor)) = container.by_name("w") else { panic!() };
        let mut found = vec![9; 256];
        tensor.codes(0, 0, &mut found).unwrap();
        assert_eq!((found, tensor.scales().collect::<Vec<_>>()), (codes.clone(), vec![0.5]));
        assert!(verify::verify_against(&container, &checkpoint, None).unwrap().is_good());
    }
}

/// Every encoding and granularity that a type takes; the values are those of the container but for the scales.
#[test]
fn values_are_those_of_the_container() {
    let directory = tempfile::tempdir().unwrap();
    let tensors: [(&str, &[usize], &str); 7] = [
        ("filter", &[5, 512], ""),
        ("tensor", &[3, 256], "granularity=tensor"),
        ("group", &[2, 1024], "granularity=group:512"),
        ("ragged group", &[2, 768], "granularity=group:512,encoding=t5"),
        ("t5", &[4, 256], "encoding=t5"),
        ("b1", &[3, 256], "method=bwn"),
        ("conv", &[3, 64, 2, 2], "scale-dtype=f16"),
    ];
    let made = tensors.map(|(name, shape, settings)| {
        (name, Dtype::F32, shape, random(name.len() as u64, shape.iter().product()), settings)
    });
    let container = pack(directory.path(), &made, &[]);
    for (format, kind, ..) in TYPES {
        let (lines, file) = export(&container, format, &Options::default());
        let (_, tensors) = read(&file.unwrap());
        for (((name, tensor), line), (as_name, dimensions, found, bytes)) in
            container.tensors().zip(&lines).zip(&tensors)
        {
            let Tensor::Ternary(ternary) = tensor else { panic!() };
            let expected = ternary.to_array().unwrap();
            assert_eq!((name, *found), (as_name.as_str(), kind));
            let n = ternary.filter_len as u64;
            assert_eq!(dimensions, &[n, ternary.filters as u64], "{name}");
            let values = values(kind, bytes);
            assert_eq!(values.len(), expected.len());
            let mut largest = 0.0f64;
            for (value, expected) in values.into_iter().zip(expected.iter()) {
                assert_eq!(value, f16::from_f32(*expected).to_f32(), "{format}, {name}");
                if value != 0.0 {
                    largest = largest.max((f64::from(value) / f64::from(*expected) - 1.0).abs());
                }
            }
            assert_eq!(line.rounding, largest, "{format}, {name}");
            assert!(largest < 1.0 / 2048.0);
        }
    }
}

#[test]
fn what_comes_back_is_the_same_tensor() {
    let directory = tempfile::tempdir().unwrap();
    let long = "encoder.".repeat(20) + "weight";
    let tensors: Vec<Packed<'_>> = vec![
        ("conv", Dtype::F32, &[4, 64, 2, 2], random(1, 1024), ""),
        ("bf16", Dtype::BF16, &[2, 256], vec![0x3e; 1024], "granularity=tensor"),
        ("group", Dtype::F32, &[2, 1024], random(2, 2048), "granularity=group:512"),
        (&long, Dtype::F32, &[3, 512], random(3, 1536), "granularity=group:256"),
        ("signs", Dtype::F32, &[3, 256], random(4, 768), "method=bwn"),
        ("bias", Dtype::F16, &[5], (0..10).collect(), ""),
        ("scalar", Dtype::I64, &[], vec![1, 2, 3, 4, 5, 6, 7, 8], ""),
        ("bytes", Dtype::U8, &[3], vec![1, 200, 3], ""),
        ("wide", Dtype::U64, &[2], vec![255; 16], ""),
        ("five", Dtype::I32, &[1, 2, 1, 2, 1], (0..16).collect(), ""),
        ("none", Dtype::F32, &[0, 3], vec![], ""),
    ];
    let container = pack(directory.path(), &tensors, &[("format", "pt"), ("note", "a \"quoted\" note")]);
    for (format, ..) in TYPES {
        let (lines, file) = export(&container, format, &Options::default());
        let said = |name: &str| lines.iter().find(|line| line.tensor == name).unwrap().becomes.clone().unwrap();
        assert_eq!((said("bytes"), said("five")), ("I8 [3] for U8".to_owned(), "I32 [4]".to_owned()));
        assert!(said(&long).contains("as `twn_pack.tensor."), "{}", said(&long));
        let file = file.unwrap();
        let checkpoint = open(directory.path(), &file).unwrap();
        assert_eq!(checkpoint.warnings(), [""; 0]);
        let back = convert(&checkpoint, &Rules::default(), &directory.path().join("back.twn"));
        assert_eq!(back.index().metadata, container.index().metadata, "{format}");
        assert_eq!(back.index().tensors.len(), container.index().tensors.len());
        for (name, tensor) in container.tensors() {
            match (tensor, back.by_name(name).unwrap()) {
                (Tensor::Dense(old), Tensor::Dense(new)) => {
                    assert_eq!((old.dtype, old.shape, old.data), (new.dtype, new.shape, new.data), "{name}");
                }
                (Tensor::Ternary(old), Tensor::Ternary(new)) => {
                    assert_eq!((old.dtype, &old.shape, old.axis), (new.dtype, &new.shape, new.axis), "{name}");
                    assert_eq!(old.granularity, new.granularity, "{format}, {name}");
                    let rounded = old.scales().map(|scale| f16::from_f32(scale).to_f32());
                    assert!(rounded.eq(new.scales()), "{name}");
                    for filter in 0..old.filters {
                        let [mut a, mut b] = [vec![8; old.filter_len], vec![9; old.filter_len]];
                        old.codes(0, filter, &mut a).unwrap();
                        new.codes(0, filter, &mut b).unwrap();
                        assert_eq!(a, b, "{name}, filter {filter}");
                    }
                }
                _ => panic!("{name}: another kind"),
            }
        }
    }
}

#[test]
fn what_a_type_cannot_hold_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let check = |shape: &[usize], settings: &str, scale: f32, format: &str, expected: &str| {
        let weights = random(1, shape.iter().product());
        let weights = weights.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) * scale);
        let tensor = ("w", Dtype::F32, shape, f32s(weights), settings);
        let container = pack(directory.path(), &[tensor], &[]);
        let (lines, file) = export(&container, format, &Options::default());
        let reason = lines[0].becomes.as_ref().unwrap_err();
        assert!(reason.contains(expected), "{settings}: {reason}");
        assert!(file.unwrap_err().to_string().contains(expected));
        // As floats, it goes; to the values that unpacking gives.
        let options = Options { refused_as_dense: true, ..Options::default() };
        let (lines, file) = export(&container, format, &options);
        let (_, tensors) = read(&file.unwrap());
        // And why is still said.
        let line = lines[0].becomes.as_ref().unwrap();
        assert!(line.contains(&format!(", as floats: {}", reason.split("; ").next().unwrap())), "{line}");
        let unpacked = match container.by_name("w").unwrap() {
            Tensor::Ternary(ternary) => ternary.to_array().unwrap(),
            Tensor::Int8(int8) => int8.to_array().unwrap(),
            Tensor::Dense(_) => panic!(),
        };
        let dimensions: Vec<u64> = shape.iter().rev().map(|&d| d as u64).collect();
        assert_eq!(tensors, [raw("w", &dimensions, 0, f32s(unpacked.iter().copied()))], "{settings}");
    };
    check(&[2, 320], "", 1.0, "tq2_0", "320 weights per filter, TQ2_0 takes multiples of 256; q2_0 takes it");
    check(&[2, 100], "", 1.0, "q2_0", "100 weights per filter, Q2_0 takes multiples of 64; keep it dense");
    check(&[2, 512], "granularity=group:64", 1.0, "tq1_0", "a scale for every 64 weights, TQ1_0 has one for every 256");
    check(&[2, 512], "granularity=group:384", 1.0, "tq2_0", "export to q2_0, or pack it with granularity=group:256");
    check(&[2, 128], "granularity=group:32", 1.0, "q2_0", "a scale for every 32 weights, Q2_0 has one for every 64");
    check(&[256, 2], "axis=1", 1.0, "tq2_0", "filters along axis 1");
    check(&[2, 8, 64], "axis=1", 1.0, "q2_0", "filters along axis 1");
    check(&[2, 256], "planes=2", 1.0, "tq2_0", "2 planes, TQ2_0 has one; give --planes-as-tensors");
    check(&[2, 256], "keep=int8", 1.0, "tq2_0", "int8, which has no GGUF type");
    check(&[2, 256], "", 1e6, "tq2_0", "f16 goes from 6.0e-8 to 65504");
    check(&[2, 256], "", 1e-9, "q2_0", "f16 goes from 6.0e-8 to 65504");
    check(&[2, 256], "granularity=tensor", 1e-9, "tq1_0", "scale 0 is");
    let error = export::format("tq3").err().unwrap().to_string();
    assert!(error.contains("tq1_0, tq2_0, q2_0"), "{error}");
}

/// f16 has fewer bits below 6.1e-5.
#[test]
fn coarse_rounding_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let weights = f32s((0..256).map(|i| if i % 3 == 0 { 1e-6 } else { 0.0 }));
    let container = pack(directory.path(), &[("w", Dtype::F32, &[1, 256], weights, "method=auto")], &[]);
    let export = export::format("tq2_0").unwrap().export(&container, &Options::default()).unwrap();
    let expected = (f16::from_f32(1e-6).to_f64() / f64::from(1e-6_f32) - 1.0).abs();
    assert_eq!(export.tensors[0].rounding, expected);
    assert!(expected > 1e-3 && export.warnings[0].contains("`w`"), "{:?}", export.warnings);
}

#[test]
fn planes_become_tensors_whose_sum_is_the_weight() {
    let directory = tempfile::tempdir().unwrap();
    let tensor = ("w", Dtype::F32, &[2, 256][..], random(7, 512), "planes=2,scale-dtype=f16");
    let container = pack(directory.path(), std::slice::from_ref(&tensor), &[]);
    let options = Options { planes_as_tensors: true, ..Options::default() };
    let (_, file) = export(&container, "tq2_0", &options);
    let (_, tensors) = read(&file.unwrap());
    let names: Vec<_> = tensors.iter().map(|tensor| tensor.0.as_str()).collect();
    assert_eq!(names, ["w.plane0", "w.plane1"]);
    let planes: Vec<_> = tensors.iter().map(|tensor| values(35, &tensor.3)).collect();
    let Some(Tensor::Ternary(ternary)) = container.by_name("w") else { panic!() };
    let sum = planes[0].iter().zip(&planes[1]).map(|(a, b)| a + b);
    assert!(sum.eq(ternary.to_array().unwrap().iter().copied()));
    // Read, they are one tensor of two planes again, and that gives the same file.
    for (to, shape, settings) in [
        ("tq1_0", vec![2, 256], "planes=2,scale-dtype=f16"),
        ("q2_0", vec![4, 3, 8, 8], "planes=3,granularity=group:64"),
        ("tq2_0", vec![3, 512], "planes=4,granularity=tensor"),
    ] {
        let weights = random(9, shape.iter().product());
        let container = pack(directory.path(), &[("w", Dtype::F32, &shape, weights, settings)], &[]);
        let (_, file) = export(&container, to, &options);
        let (path, back) = (directory.path().join("planes.gguf"), directory.path().join("back.twn"));
        std::fs::write(&path, file.as_ref().unwrap()).unwrap();
        let checkpoint = import::open(&path).unwrap();
        assert_eq!(checkpoint.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["w"]);
        let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        let overwrite = convert::Options { overwrite: true, ..Default::default() };
        convert::pack(&checkpoint, &plan, &back, &overwrite).unwrap();
        let back = Container::open(back).unwrap();
        assert!(verify::verify(&back, None).unwrap().is_good());
        let [Some(Tensor::Ternary(old)), Some(Tensor::Ternary(new))] = [&container, &back].map(|c| c.by_name("w"))
        else {
            panic!()
        };
        assert_eq!((&new.shape, new.planes, new.granularity), (&old.shape, old.planes, old.granularity));
        assert_eq!(new.packed(), old.packed());
        assert!(new.scales().eq(old.scales().map(|scale| f16::from_f32(scale).to_f32())));
        // Sizes are known before: the index says what the file had.
        assert_eq!(back.index().tensors[0].source_bytes(), checkpoint.ternary(0).unwrap().bytes() as u64);
        let again = export(&back, to, &options).1.unwrap();
        assert!(read(&again).1 == read(file.as_ref().unwrap()).1, "{to}");
        // Beside another tensor of the weight's name, or without one of them, each is a tensor by itself.
        let (keys, mut tensors) = read(file.as_ref().unwrap());
        let keys: Vec<_> = keys.into_iter().map(|(name, value)| [&text(&name)[..], &value].concat()).collect();
        tensors.push(raw("w", &[1], 0, f32s([1.0])));
        std::fs::write(&path, assemble(32, &keys, &tensors)).unwrap();
        let checkpoint = import::open(&path).unwrap();
        assert_eq!((checkpoint.len(), checkpoint.warnings().len()), (old.planes + 1, 1));
        assert!(checkpoint.warnings()[0].contains("planes of `w` stay apart"), "{:?}", checkpoint.warnings());
        tensors.truncate(old.planes - 1);
        std::fs::write(&path, assemble(32, &keys, &tensors)).unwrap();
        let checkpoint = import::open(&path).unwrap();
        assert_eq!((checkpoint.len(), checkpoint.tensor(0).name), (old.planes - 1, "w.plane0"));
    }
    let into = Options { into: Some(directory.path().join("any")), ..options.clone() };
    let error = export::format("tq2_0").unwrap().export(&container, &into).unwrap_err().to_string();
    assert!(error.contains("leave it out, or --into"), "{error}");
    // Refused, it is one tensor of floats.
    let axis = ("w", Dtype::F32, &[256, 2][..], random(7, 512), "planes=2,axis=1");
    let container = pack(directory.path(), &[axis], &[]);
    let (lines, _) = export_lines(&container, &options);
    assert!(lines[0].becomes.as_ref().unwrap_err().contains("filters along axis 1"), "{lines:?}");
    let (_, file) = export(&container, "tq2_0", &Options { refused_as_dense: true, ..options.clone() });
    let Some(Tensor::Ternary(ternary)) = container.by_name("w") else { panic!() };
    let sum = f32s(ternary.to_array().unwrap().iter().copied());
    assert_eq!(read(&file.unwrap()).1, [raw("w", &[2, 256], 0, sum)]);
    let container = pack(directory.path(), &[tensor, ("w.plane1", Dtype::F32, &[2], random(1, 2), "")], &[]);
    let (lines, _) = export_lines(&container, &options);
    assert!(lines.iter().all(|line| line.becomes.as_ref().unwrap_err().contains("`w.plane1`")), "{lines:?}");
}

fn export_lines(container: &Container, options: &Options) -> (Vec<Line>, Vec<String>) {
    let export = export::format("tq2_0").unwrap().export(container, options).unwrap();
    (export.tensors, export.warnings)
}

/// The keys of a model, none of which may change but `general.file_type`.
fn model_keys() -> Vec<Vec<u8>> {
    let tokens: Vec<u8> = [&8u32.to_le_bytes()[..], &3u64.to_le_bytes(), &text("<s>"), &text(""), &text("a")].concat();
    vec![
        key("general.architecture", 8, &text("llama")),
        number("general.alignment", 64),
        number("general.file_type", 1),
        number("llama.attention.head_count", 4),
        number("llama.attention.head_count_kv", 2),
        key("tokenizer.ggml.tokens", 9, &tokens),
        key("tokenizer.ggml.scores", 9, &[&6u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0; 8]].concat()),
        key("odd", 12, &1.5f64.to_le_bytes()),
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
    check(&[("nothing", &[3, 256])], &keys, "no tensor of that name (its architecture is `llama`");
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

#[test]
fn a_file_of_gguf_py_is_read() {
    let checkpoint = import::open("fixtures/foreign/gguf/small.gguf").unwrap();
    for name in ["TQ1_0", "TQ2_0"] {
        let (codes, scales) = moved(&checkpoint, name).unwrap();
        let expected = checkpoint.by_name(&format!("{name}.values")).unwrap();
        assert_eq!((expected.shape, expected.dtype), (&[3, 512][..], Dtype::F32));
        let values = codes.iter().enumerate().map(|(i, &code)| scales[i / 256] * (f32::from(code) - 1.0));
        assert_eq!(f32s(values), expected.data, "{name}");
    }
    let (half, count) = (checkpoint.by_name("half").unwrap(), checkpoint.by_name("count").unwrap());
    assert_eq!((half.dtype, half.shape, half.data.len()), (Dtype::F16, &[2, 3, 5][..], 60));
    assert_eq!((count.dtype, count.data), (Dtype::I64, &7i64.to_le_bytes()[..]));
    let expected = [
        ("general.architecture", "none"),
        ("k.bool", "true"),
        ("k.f32", "0.1"),
        ("k.f64", "0.1"),
        ("k.i16", "-30000"),
        ("k.i32", "-2000000000"),
        ("k.i64", "-4611686018427387904"),
        ("k.i8", "-100"),
        ("k.string", "ä string"),
        ("k.u16", "60000"),
        ("k.u32", "4000000000"),
        ("k.u64", "9223372036854775808"),
        ("k.u8", "200"),
    ];
    let found: Vec<_> = checkpoint.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(found, expected);
    assert!(checkpoint.warnings()[0].contains("2 keys that are arrays (or no text) are not kept (`k.strings`"));
}

#[test]
fn files_in_parts_are_one_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let (_, blocks) = golden();
    for (number, name) in [(1u16, "a"), (2, "b")] {
        let keys = [key("split.no", 2, &(number - 1).to_le_bytes()), key("split.count", 2, &2u16.to_le_bytes())];
        let file = assemble(32, &keys, &[raw(name, &[256, 1], 35, blocks[&35].clone())]);
        write(directory.path(), &format!("m-x-{number:05}-of-00002.gguf"), &file);
    }
    for number in [1, 2] {
        let checkpoint = import::open(directory.path().join(format!("m-x-{number:05}-of-00002.gguf"))).unwrap();
        assert_eq!(checkpoint.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((checkpoint.files().count(), checkpoint.metadata().len()), (2, 0));
    }
    let renamed = directory.path().join("renamed.gguf");
    std::fs::copy(directory.path().join("m-x-00001-of-00002.gguf"), &renamed).unwrap();
    assert!(import::open(&renamed).unwrap_err().to_string().contains("one of 2 files"));
    // Another part, or none at all, under the name of the second.
    let [first, second] = [1, 2].map(|number| directory.path().join(format!("m-x-{number:05}-of-00002.gguf")));
    let alone = assemble(32, &[], &[raw("c", &[256, 1], 35, blocks[&35].clone())]);
    for (file, found) in [(std::fs::read(&first).unwrap(), "split.no is 0"), (alone, "split.no is missing")] {
        std::fs::write(&second, file).unwrap();
        let error = import::open(&first).unwrap_err().to_string();
        assert!(error.contains(found) && error.contains("expected 1 and 2"), "{error}");
    }
    std::fs::remove_file(second).unwrap();
    let error = import::open(directory.path().join("m-x-00001-of-00002.gguf")).unwrap_err().to_string();
    assert!(error.contains("m-x-00002-of-00002.gguf"), "{error}");
}

/// Version 2 has the same bytes but for its number; of version 1 and others it is said what to do.
#[test]
fn version_2_is_read_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (trits, blocks) = golden();
    let mut file = assemble(32, &[key("k", 8, &text("v"))], &[raw("w", &[256, 1], 35, blocks[&35].clone())]);
    file[4] = 2;
    let checkpoint = open(directory.path(), &file).unwrap();
    let codes: Vec<u8> = trits.iter().map(|trit| (1.0 + trit) as u8).collect();
    assert_eq!(moved(&checkpoint, "w").unwrap(), (codes, vec![0.5]));
    assert_eq!(checkpoint.metadata()["k"], "v");
    // Into such a file the tensors go as into any other, and it stays of its version.
    let container = pack(directory.path(), &[("w", Dtype::F32, &[1, 256], random(3, 256), "")], &[]);
    let into = write(directory.path(), "v2.gguf", &file);
    let (_, after) = export(&container, "tq2_0", &Options { into: Some(into), ..Options::default() });
    assert_eq!(after.unwrap()[4..8], [2, 0, 0, 0]);
    for version in [1, 4] {
        file[4] = version;
        let error = open(directory.path(), &file).unwrap_err().to_string();
        assert!(error.contains(&format!("version {version}")), "{error}");
    }
}

/// A file that is alone in its directory needs no name.
#[test]
fn a_directory_with_one_file_is_that_file() {
    let directory = tempfile::tempdir().unwrap();
    let (_, blocks) = golden();
    let file = assemble(32, &[], &[raw("w", &[256, 1], 35, blocks[&35].clone())]);
    write(directory.path(), "m.gguf", &file);
    write(directory.path(), "README.md", b"words");
    assert_eq!(import::open(directory.path()).unwrap().len(), 1);
    write(directory.path(), "other.onnx", b"");
    let error = import::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("holds several checkpoints (`m.gguf`, `other.onnx`); give the file"), "{error}");
    // All parts of one file are one.
    let split = tempfile::tempdir().unwrap();
    for (number, name) in [(1u16, "a"), (2, "b")] {
        let keys = [key("split.no", 2, &(number - 1).to_le_bytes()), key("split.count", 2, &2u16.to_le_bytes())];
        let file = assemble(32, &keys, &[raw(name, &[256, 1], 35, blocks[&35].clone())]);
        write(split.path(), &format!("m-{number:05}-of-00002.gguf"), &file);
    }
    assert_eq!(import::open(split.path()).unwrap().len(), 2);
    let none = import::open(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(none.contains("holds no .safetensors file, nor one .gguf"), "{none}");
}

/// −d with codes t is d with codes −t.
#[test]
fn negative_scales_negate_codes() {
    let directory = tempfile::tempdir().unwrap();
    let (trits, blocks) = golden();
    for (_, kind, weights, size) in TYPES {
        let at = [(34, 52), (35, 64), (42, 0)].into_iter().find(|t| t.0 == kind).unwrap().1;
        let mut block = blocks[&kind].clone();
        block.chunks_exact_mut(size).for_each(|block| block[at + 1] |= 0x80);
        let checkpoint = open(directory.path(), &assemble(32, &[], &[raw("w", &[256, 1], kind, block)])).unwrap();
        let codes: Vec<u8> = trits.iter().map(|trit| (1.0 - trit) as u8).collect();
        assert_eq!(moved(&checkpoint, "w").unwrap(), (codes, vec![0.5; 256 / weights]));
    }
}

#[test]
fn what_is_not_ternary_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_, blocks) = golden();
    for (kind, at, weight) in [(35, 40, 128 + 8), (42, 20, 64)] {
        let mut block = blocks[&kind].clone();
        block[at] |= 3;
        let checkpoint = open(directory.path(), &assemble(32, &[], &[raw("w", &[256, 1], kind, block)])).unwrap();
        let error = moved(&checkpoint, "w").unwrap_err();
        assert!(error.contains(&format!("filter 0: weight {weight} has code 3")), "{error}");
    }
    let mut block = blocks[&35].clone();
    block[65] = 0x7c;
    let checkpoint = open(directory.path(), &assemble(32, &[], &[raw("w", &[256, 1], 35, block)])).unwrap();
    assert!(moved(&checkpoint, "w").unwrap_err().contains("scale 0 is inf"));
}

/// A block of TQ2_0, and what is said of it.
fn described(json: &str) -> Vec<u8> {
    let (_, blocks) = golden();
    let mut bytes = blocks[&35].repeat(2);
    bytes[66 + 64] = 1;
    assemble(32, &[key("twn_pack.tensors", 8, &text(json))], &[raw("w", &[512, 1], 35, bytes)])
}

#[test]
fn headers_that_lie_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let check = |file: &[u8], expected: &str| {
        let error = open(directory.path(), file).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("model.gguf"), "{expected}: {error}");
    };
    let good = assemble(32, &[number("k", 1)], &[raw("w", &[2, 2], 0, vec![0; 16])]);
    open(directory.path(), &good).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    check(&with(4, &[1]), "version 1");
    check(&with(4, &[4]), "version 4");
    check(&with(4, &[0, 0, 0, 3]), "big-endian");
    for huge in [u64::MAX, 1 << 62, 1 << 40, 1000] {
        check(&with(8, &huge.to_le_bytes()), "");
        check(&with(16, &huge.to_le_bytes()), "");
        check(&with(24, &huge.to_le_bytes()), "");
    }
    // Key: 24 length, 32 `k`, 33 type, 37 value; tensor: 41 length, 49 `w`, 50 rank, 54 dimensions, 70 type, 74 offset.
    check(&with(33, &[13]), "type 13");
    check(&with(50, &[5]), "rank 5");
    check(&with(54, &[255; 16]), "2^63");
    check(&with(54, &(1u64 << 40).to_le_bytes()), "cut off");
    check(&with(70, &[36]), "bitnet.cpp");
    check(&with(70, &[99]), "type 99");
    check(&with(70, &[12]), "rows of 2 weights, Q4_K takes multiples of 256");
    check(&with(74, &[32]), "offset 32, expected 0");
    let zero = |dims: &[u64]| assemble(32, &[], &[raw("w", dims, 0, vec![])]);
    open(directory.path(), &zero(&[0, 5])).unwrap();
    check(&zero(&[0, 1 << 62, 1 << 62]), "2^63");
    let q4 = raw("w", &[256], 12, vec![0; 144]);
    check(&assemble(32, &[], &[q4]), "tensor `w`: type Q4_K, which is neither ternary nor plain numbers");
    check(&assemble(32, &[], &[raw("w", &[256], 35, vec![0; 66])]), "expected filters along the first dimension");
    let w = || raw("w", &[1], 0, vec![0; 4]);
    check(&assemble(32, &[], &[w(), w()]), "tensor `w` stands twice");
    check(&assemble(32, &[number("k", 1), number("k", 2)], &[]), "key `k` stands twice");
    for alignment in [0, 3, 1 << 17] {
        check(&assemble(32, &[number("general.alignment", alignment)], &[]), "general.alignment is");
    }
    check(&assemble(32, &[key("k", 9, &[&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())], &[]), "cut off");
    check(&assemble(32, &[key("k", 9, &[&10u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())], &[]), "limit");
    check(
        &assemble(32, &[key("k", 9, &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat())], &[]),
        "array of type 9",
    );
    // A fork's Q2_0 has blocks of 34 bytes for 128.
    let fork = [raw("a", &[2048, 1], 42, vec![0; 2048 / 128 * 34]), w()];
    check(&assemble(32, &[], &fork), "groups of 128");
    check(&described("{"), "`twn_pack.tensors` is not what twn-pack writes");
    check(&described(r#"{"w": {"shape": [3, 256]}}"#), "shape [1, 512], but `twn_pack.tensors` says [3, 256]");
    check(&described(r#"{"w": {"shape": [4, 128]}}"#), "multiple of 256");
    check(&described(r#"{"w": {"axis": 1}}"#), "axis Some(1)");
    check(&described(r#"{"w": {"dtype": "I64"}}"#), "I64 of shape [1, 512] cannot be ternary");
    check(&described(r#"{"w": {"granularity": "group:100"}}"#), "group:100, expected a multiple of 256");
    check(&described(r#"{"w": {"granularity": "rows"}}"#), "granularity is `rows`");
    let checkpoint = open(directory.path(), &described(r#"{"w": {"granularity": "filter"}}"#)).unwrap();
    assert!(moved(&checkpoint, "w").unwrap_err().contains("blocks 0 and 1 have different scales"));
}

/// Whatever is in the file: an error, or a checkpoint that can be read.
#[test]
fn damage_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let json = text(r#"{"w":{"shape":[2,4,64],"granularity":"filter","name":"other","dtype":"F16"}}"#);
    let (_, blocks) = golden();
    let keys = [
        key("twn_pack.tensors", 8, &json),
        number("general.alignment", 32),
        key("a", 9, &[&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text("x")].concat()),
    ];
    let tensors = [raw("w", &[256, 2], 34, blocks[&34].repeat(2)), raw("b", &[3], 1, vec![1; 6])];
    let file = assemble(32, &keys, &tensors);
    let (mut refused, mut read) = (0, 0);
    let mut check = |bytes: &[u8]| match open(directory.path(), bytes) {
        Ok(checkpoint) => {
            for i in 0..checkpoint.len() {
                if let Some(view) = checkpoint.ternary(i) {
                    drop(moved(&checkpoint, view.name));
                }
            }
            read += 1;
        }
        Err(error) => {
            assert!(error.to_string().len() < 1000);
            refused += 1;
        }
    };
    for length in 0..file.len() {
        check(&file[..length]);
    }
    for at in 0..file.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = file.clone();
            bytes[at] ^= flip;
            check(&bytes);
        }
    }
    assert!(refused > file.len() && read > 100, "{refused} refused, {read} read");
}

#[test]
fn the_command_goes_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(directory.path(), &[("w", Dtype::F32, &[2, 512], random(1, 1024), "")], &[]);
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (twn, gguf, back) = (path("in.twn"), path("out.gguf"), path("back.twn"));
    let (table, _) = common::expect(0, &["export", &twn, "--to", "tq2_0", "-o", &gguf]);
    assert!(table.contains("TQ2_0 [2, 512]") && table.contains("scales rounded by up to"), "{table}");
    common::expect(0, &[&gguf, "-o", &back]);
    let (Some(Tensor::Ternary(old)), back) = (container.by_name("w"), Container::open(&back).unwrap()) else {
        panic!()
    };
    let Some(Tensor::Ternary(new)) = back.by_name("w") else { panic!() };
    assert_eq!(old.packed(), new.packed());
    let (_, error) =
        common::expect(2, &["export", &twn, "--to", "tq2_0", "-o", &path("x"), "--into", &gguf, "--planes-as-tensors"]);
    assert!(error.contains("--into"), "{error}");
}
