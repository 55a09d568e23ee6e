//! GGUF files assembled, read and decoded by the format's description alone, and containers to export. Not here: what is
//! expected of either direction.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::TensorView;
use twn_pack::export::{self, Line, Options, WriteOptions};
use twn_pack::select::Override;
use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, Settings, convert, import};

use crate::common::{Random, golden};

pub const TYPES: [(&str, u32, usize, usize); 3] =
    [("tq1_0", 34, 256, 54), ("tq2_0", 35, 256, 66), ("q2_0", 42, 64, 18)];

/// A tensor of a file: dimensions innermost first, type number, bytes.
pub type Raw = (String, Vec<u64>, u32, Vec<u8>);

/// A file as the format's description has it. Keys are there in full.
pub fn assemble(alignment: usize, keys: &[Vec<u8>], tensors: &[Raw]) -> Vec<u8> {
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

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value].concat()
}

pub fn number(name: &str, value: u32) -> Vec<u8> {
    key(name, 4, &value.to_le_bytes())
}

pub fn raw(name: &str, dimensions: &[u64], kind: u32, bytes: Vec<u8>) -> Raw {
    (name.to_owned(), dimensions.to_vec(), kind, bytes)
}

/// A file read by the format's description: the bytes of each key, and the tensors. Panics at anything odd.
pub fn read(file: &[u8]) -> (BTreeMap<String, Vec<u8>>, Vec<Raw>) {
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
pub fn decode(kind: u32, block: &[u8], n: usize) -> (f32, i32) {
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

pub fn values(kind: u32, bytes: &[u8]) -> Vec<f32> {
    let &(_, _, weights, size) = TYPES.iter().find(|t| t.1 == kind).unwrap();
    let weight = |block: &[u8], n: usize| {
        let (scale, trit) = decode(kind, block, n);
        scale * trit as f32
    };
    bytes.chunks_exact(size).flat_map(|block| (0..weights).map(move |n| weight(block, n))).collect()
}

pub fn golden() -> (Vec<f32>, BTreeMap<u32, Vec<u8>>) {
    let blocks = TYPES.iter().map(|(name, kind, ..)| (*kind, golden::bytes(&format!("ggml_{name}")))).collect();
    (golden::trits().iter().map(|&trit| trit as f32).collect(), blocks)
}

/// A tensor of a checkpoint: name, type, shape, bytes, and the settings that it is packed with.
pub type Packed<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>, &'a str);

/// A checkpoint of those tensors, packed.
pub fn pack(directory: &Path, tensors: &[Packed<'_>], metadata: &[(&str, &str)]) -> Container {
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

pub fn convert(checkpoint: &Checkpoint, rules: &Rules, output: &Path) -> Container {
    let options = convert::Options { overwrite: true, ..convert::Options::default() };
    convert::pack(checkpoint, &Plan::new(checkpoint, rules).unwrap(), output, &options).unwrap();
    Container::open(output).unwrap()
}

pub fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

pub fn random(seed: u64, n: usize) -> Vec<u8> {
    f32s(Random(seed).gaussians(n).into_iter().map(|x| x as f32))
}

/// The lines and, if nothing is refused, the bytes.
pub fn export(container: &Container, format: &str, options: &Options) -> (Vec<Line>, twn_pack::Result<Vec<u8>>) {
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

pub fn write(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

pub fn open(directory: &Path, bytes: &[u8]) -> twn_pack::Result<Checkpoint> {
    import::open(write(directory, "model.gguf", bytes))
}

/// The codes t+1 and scales of a ternary tensor of a checkpoint.
pub fn moved(checkpoint: &Checkpoint, name: &str) -> Result<(Vec<u8>, Vec<f32>), String> {
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

pub fn export_lines(container: &Container, options: &Options) -> (Vec<Line>, Vec<String>) {
    let export = export::format("tq2_0").unwrap().export(container, options).unwrap();
    (export.tensors, export.warnings)
}
