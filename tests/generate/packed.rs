//! `.twn` files from the checkpoints: how each is made, and one with two planes.

use std::path::Path;

use twn_pack::container::{
    Body, ContainerWriter, Granularity, Index, MethodEntry, Producer, Spread, Stats, TensorEntry, TernaryEntry,
};
use twn_pack::select::Override;
use twn_pack::{Checkpoint, Encoding, Isa, Plan, Rules, ScaleDtype, Settings, convert};

/// A checkpoint, settings, and what they give.
pub struct Recipe {
    /// Path below `fixtures/`.
    pub input: String,
    /// As in `--set`.
    pub settings: String,
    /// Path below `fixtures/`, or only a name.
    pub output: String,
    /// Whether the result is kept as a file; of every result the checksum is kept.
    pub stored: bool,
}

pub fn recipes() -> Vec<Recipe> {
    let mut recipes = Vec::new();
    let mut add = |stored, input: &str, name: &str, settings: &str| {
        let stem = input.strip_suffix(".safetensors").unwrap_or(input);
        let (input, settings) = (input.to_owned(), settings.to_owned());
        recipes.push(Recipe { input, settings, output: format!("{stem}.{name}.twn"), stored });
    };
    for encoding in ["t2", "t5", "b1"] {
        let method = if encoding == "b1" { "bwn" } else { "twn" };
        for granularity in ["filter", "tensor", "group:7"] {
            for axis in [0, 1] {
                let name = format!("{encoding}-{}-axis{axis}", granularity.replace(':', ""));
                let settings = format!("method={method},encoding={encoding},granularity={granularity},axis={axis}");
                add(true, "layouts.safetensors", &name, &settings);
            }
        }
    }
    add(true, "layouts.safetensors", "t2-group7-f16", "granularity=group:7,scale-dtype=f16");
    for axis in [0, 1] {
        let settings = format!("keep=int8,axis={axis},scale-dtype={}", ["f32", "f16"][axis]);
        add(true, "layouts.safetensors", &format!("int8-axis{axis}"), &settings);
    }
    add(true, "every-dtype.safetensors", "t2", "");
    add(true, "odd-lengths.safetensors", "t5", "encoding=t5");
    add(true, "edges.safetensors", "t2", "");
    add(true, "unaligned.safetensors", "t2", "");
    add(true, "metadata.safetensors", "t2", "");
    add(true, "long-filter.safetensors", "t5", "encoding=t5");
    add(true, "no-tensors.safetensors", "t2", "");
    add(true, "sharded", "t2", "");
    for input in ["every-dtype", "odd-lengths", "ranks", "long-filter", "lenet5-mnist"] {
        add(false, &format!("{input}.safetensors"), "int8", "keep=int8");
    }
    for input in ["every-dtype", "odd-lengths", "edges", "ranks", "unaligned", "long-filter", "lenet5-mnist"] {
        let input = format!("{input}.safetensors");
        for method in ["twn", "optimal", "absmean", "bwn"] {
            for granularity in ["filter", "tensor", "group:64"] {
                // An axis 1 and f16 scales in turn, to have both with every method.
                let axis = usize::from(granularity == "tensor");
                let name = format!("{method}-{}", granularity.replace(':', ""));
                let scales = if granularity == "group:64" && input != "edges.safetensors" { "f16" } else { "f32" };
                let settings = format!("method={method},granularity={granularity},axis={axis},scale-dtype={scales}");
                add(false, &input, &name, &settings);
            }
        }
    }
    recipes
}

impl Recipe {
    /// Packs on the current threads; inputs are below `from`, the output appears below `to`.
    pub fn pack(&self, from: &Path, to: &Path, isa: Isa) -> Vec<u8> {
        let checkpoint = Checkpoint::open(from.join(&self.input)).unwrap();
        let settings = Settings::parse(&self.settings).unwrap();
        // `keep` counts for names only.
        let forced = settings.keep.map(|_| Override { pattern: "*".to_owned(), settings: settings.clone() });
        let rules = Rules { settings, overrides: forced.into_iter().collect(), ..Rules::default() };
        let plan = Plan::new(&checkpoint, &rules).unwrap();
        let options = convert::Options { isa: Some(isa), overwrite: true, ..convert::Options::default() };
        let output = to.join(&self.output);
        convert::pack(&checkpoint, &plan, &output, &options).unwrap_or_else(|e| panic!("{}: {e}", self.output));
        std::fs::read(output).unwrap()
    }
}

/// Codes t+1 of both planes: [planes][filters][weights].
pub const PLANES: [[[u8; 5]; 2]; 2] = [[[2, 0, 1, 2, 0], [1, 1, 2, 2, 0]], [[0, 2, 1, 1, 2], [2, 0, 1, 1, 1]]];
/// Their scales: [planes][filters].
pub const SCALES: [[f32; 2]; 2] = [[0.5, 1.0], [0.125, 0.25]];

/// A tensor of two planes, for which there is no method yet, through the public writer.
/// W = Σ_p α_p·T_p exactly, so the errors are 0.
pub fn two_planes(scratch: &Path) -> Vec<u8> {
    let path = scratch.join("two-planes.twn");
    let mut writer = ContainerWriter::create(&path, true).unwrap();
    let pack = |codes: &[u8; 5]| {
        let first = codes[..4].iter().rev().fold(0, |byte, code| byte << 2 | code);
        [first, codes[4] | 0b0101_0100]
    };
    let codes: Vec<u8> = PLANES.iter().flatten().flat_map(pack).collect();
    let scales: Vec<u8> = SCALES.iter().flatten().flat_map(|scale| scale.to_le_bytes()).collect();
    let (codes, scales) = (writer.section(&codes).unwrap(), writer.section(&scales).unwrap());
    let count = |code: u8| PLANES.iter().flatten().flatten().filter(|c| **c == code).count() as u64;
    let value = |filter: usize, j: usize| -> f64 {
        (0..2).map(|p| f64::from(SCALES[p][filter]) * (f64::from(PLANES[p][filter][j]) - 1.0)).sum()
    };
    let entry = TernaryEntry {
        axis: 0,
        calibration: None,
        codes,
        encoding: Encoding::T2,
        granularity: Granularity::Filter,
        method: MethodEntry { name: "by-hand".to_owned(), parameters: [("planes".to_owned(), 2.0)].into() }.into(),
        planes: 2,
        reason: String::new(),
        scale_dtype: ScaleDtype::F32,
        scales,
        source_bytes: None,
        stats: Stats {
            alpha: Spread { max: 1.0, mean: 0.46875, min: 0.125 },
            delta: None,
            negative: count(0),
            positive: count(2),
            squared_error: 0.0,
            squared_norm: (0..2).flat_map(|i| (0..5).map(move |j| value(i, j).powi(2))).sum(),
            zeros: count(1),
        },
    };
    let tensor = TensorEntry::ternary("weight".to_owned(), twn_pack::Dtype::F32, vec![2, 5], entry);
    assert!(matches!(tensor.body(), Body::Ternary(_)));
    let producer = Producer { name: "by-hand".to_owned(), version: "1".to_owned() };
    let index = Index { metadata: [].into(), producer, tensors: vec![tensor] };
    writer.finish(&index).unwrap();
    std::fs::read(path).unwrap()
}

/// The list of checksums, below `fixtures/`.
pub const CHECKSUMS: &str = "packed.crc32";

/// A line of that list. The length and the CRC-32 of everything behind the prefix: with its own
/// checksum at its end, the prefix would add nothing to a CRC.
pub fn checksum(name: &str, bytes: &[u8]) -> String {
    format!("{:08x} {:8} {name}", crc32fast::hash(&bytes[64..]), bytes.len())
}
