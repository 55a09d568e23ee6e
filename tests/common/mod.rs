//! What the tests share: made-up weights, a tiny safetensors writer that owes nothing to the
//! crate, a plain reader of filters, and a way to run the binary.

#![allow(dead_code, reason = "every test file uses its own part")]

#[cfg(feature = "eval")]
pub mod networks;

pub mod golden;
pub mod zip;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, Settings, TensorView, Treatment, convert, select};

/// Deterministic random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// In (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub fn sign(&mut self) -> f64 {
        if self.bits() & 1 == 0 { 1.0 } else { -1.0 }
    }

    /// Standard normal (Box-Muller).
    pub fn gaussian(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Laplace with E|w| = 1.
    pub fn laplace(&mut self) -> f64 {
        -self.unit().ln() * self.sign()
    }

    pub fn gaussians(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.gaussian()).collect()
    }
}

/// The floating-point types that can become ternary.
pub const FLOATS: [Dtype; 6] = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2];

/// Values as little-endian bytes of that type, rounded to nearest.
pub fn encode(dtype: Dtype, values: &[f64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.bitsize() / 8);
    let table: Vec<f64> = match dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => (0..=255).map(|byte| float8(dtype, byte)).collect(),
        _ => Vec::new(),
    };
    for &x in values {
        match dtype {
            Dtype::F64 => bytes.extend(x.to_le_bytes()),
            Dtype::F32 => bytes.extend((x as f32).to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f64(x).to_le_bytes()),
            Dtype::BF16 => bytes.extend(half::bf16::from_f64(x).to_le_bytes()),
            _ => {
                let distance = |byte: &u8| (table[usize::from(*byte)] - x).abs();
                let finite = (0..=255u8).filter(|byte| table[usize::from(*byte)].is_finite());
                bytes.push(finite.min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap());
            }
        }
    }
    bytes
}

/// The exact values of little-endian bytes of that type.
pub fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks(dtype.bitsize() / 8)
        .map(|b| match dtype {
            Dtype::F64 => f64::from_le_bytes(b.try_into().unwrap()),
            Dtype::F32 => f64::from(f32::from_le_bytes(b.try_into().unwrap())),
            Dtype::F16 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f64(),
            Dtype::BF16 => half::bf16::from_le_bytes(b.try_into().unwrap()).to_f64(),
            other => float8(other, b[0]),
        })
        .collect()
}

fn float8(dtype: Dtype, byte: u8) -> f64 {
    if dtype == Dtype::F8_E4M3 {
        float8::F8E4M3::from_bits(byte).to_f64()
    } else {
        float8::F8E5M2::from_bits(byte).to_f64()
    }
}

/// All bytes of a tensor in C order.
pub fn c_order(tensor: &TensorView<'_>) -> Vec<u8> {
    tensor.read(0..tensor.stored.len(), &mut Vec::new()).to_vec()
}

/// One tensor of a made-up checkpoint.
#[derive(Clone, Debug)]
pub struct Made {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Made {
    pub fn new(name: &str, dtype: Dtype, shape: &[usize], values: &[f64]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), data: encode(dtype, values) }
    }

    pub fn gaussian(name: &str, dtype: Dtype, shape: &[usize], seed: u64) -> Self {
        Self::new(name, dtype, shape, &Random(seed).gaussians(shape.iter().product()))
    }

    pub fn values(&self) -> Vec<f64> {
        decode(self.dtype, &self.data)
    }
}

/// A safetensors file: length, JSON header, data in the order given.
pub fn safetensors(tensors: &[Made], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let map: serde_json::Map<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
        header.insert("__metadata__".to_owned(), map.into());
    }
    let mut at = 0;
    for t in tensors {
        let end = at + t.data.len();
        let entry = serde_json::json!({ "dtype": t.dtype.to_string(), "shape": t.shape, "data_offsets": [at, end] });
        header.insert(t.name.clone(), entry);
        at = end;
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    tensors.iter().for_each(|t| file.extend(&t.data));
    file
}

/// Writes a checkpoint and returns its path.
pub fn checkpoint(directory: &Path, name: &str, tensors: &[Made]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, safetensors(tensors, &[])).unwrap();
    path
}

/// The weights with the filter axis first: one vector per filter, index by index.
pub fn filters<T: Copy>(values: &[T], shape: &[usize], axis: usize) -> Vec<Vec<T>> {
    let mut rows = vec![Vec::new(); shape[axis]];
    let inner: usize = shape[axis + 1..].iter().product();
    for (i, &value) in values.iter().enumerate() {
        rows[i / inner % shape[axis]].push(value);
    }
    rows
}

/// Settings from `key=value,key=value`.
pub fn treatment(settings: &str) -> Treatment {
    Settings::parse(settings).unwrap().treatment().unwrap()
}

/// Packs each tensor by its settings, whatever it is called; without any it stays dense.
pub fn pack(directory: &Path, tensors: &[(Made, &str)]) -> Container {
    let made: Vec<Made> = tensors.iter().map(|(made, _)| made.clone()).collect();
    let checkpoint = Checkpoint::open(checkpoint(directory, "in.safetensors", &made)).unwrap();
    let overrides = tensors.iter().map(|(made, settings)| select::Override {
        pattern: made.name.clone(),
        settings: Settings::parse(if settings.is_empty() { "keep=dense" } else { settings }).unwrap(),
    });
    let include = tensors.iter().filter(|(_, settings)| !settings.is_empty()).map(|(made, _)| made.name.clone());
    let rules = Rules { overrides: overrides.collect(), include: include.collect(), ..Rules::default() };
    let (plan, output) = (Plan::new(&checkpoint, &rules).unwrap(), directory.join("in.twn"));
    let options = convert::Options { overwrite: true, ..convert::Options::default() };
    convert::pack(&checkpoint, &plan, &output, &options).unwrap();
    Container::open(output).unwrap()
}

/// A `.twn` with checksums of prefix and index put right again, as an attacker would.
pub fn reseal(bytes: &mut [u8]) {
    let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let index = u64_at(bytes, 16);
    let crc = crc32fast::hash(&bytes[index..]).to_le_bytes();
    bytes[40..44].copy_from_slice(&crc);
    let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
    bytes[60..64].copy_from_slice(&crc);
}

/// A `.twn` with other bytes in one of a tensor's sections, and good checksums.
pub fn with_section(good: &[u8], tensor: &str, part: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let index = Container::from_bytes("good.twn", good.to_vec()).unwrap().index().clone();
    let entry = index.tensors.iter().find(|t| t.name == tensor).unwrap();
    let section = entry.sections().nth(part).unwrap().1;
    let start = u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
    let mut bytes = good.to_vec();
    let range = section.offset as usize..(section.offset + section.length) as usize;
    change(&mut bytes[range.clone()]);
    let crc = crc32fast::hash(&bytes[range]);
    let text = String::from_utf8(bytes[start..].to_vec()).unwrap();
    let text = text.replace(&format!("\"crc32\":{}", section.crc32), &format!("\"crc32\":{crc}"));
    // The index is as long as it now is.
    bytes.truncate(start);
    bytes.extend(text.as_bytes());
    let length = bytes.len() as u64;
    bytes[24..32].copy_from_slice(&(text.len() as u64).to_le_bytes());
    bytes[32..40].copy_from_slice(&length.to_le_bytes());
    reseal(&mut bytes);
    bytes
}

/// Calls `check` with every byte of a file changed in four ways, one after another.
pub fn every_damage(whole: &[u8], mut check: impl FnMut(&[u8])) {
    let mut damaged = whole.to_vec();
    for at in 0..whole.len() {
        for change in [0x01, 0x80, 0xff, whole[at]] {
            damaged[at] = whole[at] ^ change;
            check(&damaged);
        }
        damaged[at] = whole[at];
    }
}

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_twn-pack");

/// Runs the binary with two threads.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    Command::new(BINARY).args(arguments).args(["-j", "2"]).output().unwrap()
}

/// Runs the binary and insists on its exit code; returns (stdout, stderr).
pub fn expect<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(code: i32, arguments: &[S]) -> (String, String) {
    let output = run(arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\nstdout: {stdout}\nstderr: {stderr}");
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
