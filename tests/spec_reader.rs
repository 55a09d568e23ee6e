//! The Python reader in `spec/` shares no code with the crate: what both read has to be the same,
//! bit for bit, and what one refuses the other has to refuse. Without python3 these tests are
//! skipped, except in CI.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::tensor::TensorView as Source;
use twn_pack::container::{
    DenseEntry, Index, MethodEntry, Producer, Section, Spread, Stats, TensorEntry, TernaryEntry,
};
use twn_pack::select::Settings;
use twn_pack::source::Dtype;
use twn_pack::{
    Checkpoint, Container, ContainerWriter, Encoding, Granularity, Plan, Rules, ScaleDtype, Tensor, convert, unpack,
    verify,
};

/// What `cargo test -- --ignored write_example` writes; `spec/twn-v1.md` shows its bytes.
const EXAMPLE: &str = "spec/example.twn";

#[test]
fn both_readers_agree_on_every_stored_file() {
    let Some(python) = python() else { return };
    let mut files = Vec::new();
    find_twn(Path::new("fixtures"), &mut files);
    find_twn(Path::new("spec"), &mut files);
    assert!(files.iter().any(|file| file == Path::new(EXAMPLE)));
    for file in files {
        python.agrees(&file);
    }
}

#[test]
fn both_readers_agree_on_every_encoding() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = directory.path().join("all.safetensors");
    fs::write(&checkpoint, every_dtype()).unwrap();
    let checkpoint = Checkpoint::open(&checkpoint).unwrap();
    for method in ["method=twn,encoding=t2", "method=twn,encoding=t5", "method=bwn"] {
        for granularity in ["filter", "tensor", "group:7"] {
            for rest in ["axis=0", "axis=1", "axis=1,scale-dtype=f16"] {
                let text = format!("{method},granularity={granularity},{rest}");
                let rules = Rules { settings: Settings::parse(&text).unwrap(), ..Rules::default() };
                let plan = Plan::new(&checkpoint, &rules).unwrap();
                assert_eq!(plan.ternary_count(), 14, "{text}");
                let output = directory.path().join("all.twn");
                let options = convert::Options { overwrite: true, ..convert::Options::default() };
                convert::pack(&checkpoint, &plan, &output, &options).unwrap();
                python.agrees(&output);
            }
        }
    }
}

#[test]
fn both_readers_add_planes_in_order_and_round_each_time() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("planes.twn");
    write_planes(&path);
    python.agrees(&path);
    let container = Container::open(&path).unwrap();
    let Some(Tensor::Ternary(tensor)) = container.by_name("planes") else { panic!("ternary") };
    let values: Vec<f32> = tensor.to_array().unwrap().into_iter().collect();
    // 2^-24 is half a step at 1: added one by one both round away, together they would not.
    assert_eq!(values[0], 1.0);
    assert_eq!(values[1], f32::INFINITY);
    assert_eq!(values[2].to_bits(), (-0.0f32).to_bits());
    assert_eq!(values[3..], [-1.0, f32::MAX, 0.0]);
}

/// A format that takes more than an hour to read is not a simple one.
#[test]
fn the_second_reader_is_short() {
    assert!(include_str!("../spec/read_twn.py").lines().count() < 150);
}

#[test]
fn python_refuses_every_changed_byte() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let planes = directory.path().join("planes.twn");
    write_planes(&planes);
    let script = "
import sys; sys.path.insert(0, 'spec'); import read_twn
for path in sys.argv[1:]:
    good = open(path, 'rb').read(); read_twn.parse(good)
    bad = [(i, good[:i] + bytes((good[i] ^ mask,)) + good[i + 1:]) for i in range(len(good)) for mask in (1, 255)]
    bad += [(i, good[:i]) for i in range(len(good))] + [(len(good), good + bytes(1))]
    for i, data in bad:
        try: read_twn.parse(data)
        except ValueError: continue
        print(f'{path}: accepted with another byte {i}')
";
    let output = Command::new(python.0).args(["-B", "-c", script, EXAMPLE]).arg(planes).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Files whose checksums are right and whose content breaks a rule: (what, index edits, byte edits).
type Forgery = (&'static str, &'static [(&'static str, &'static str)], &'static [(usize, u8)]);

const FORGERIES: &[Forgery] = &[
    ("a key twice", &[(r#""planes":1"#, r#""planes":1,"planes":1"#)], &[]),
    ("a metadata key twice", &[(r#""format":"pt""#, r#""format":"pt","format":"pt""#)], &[]),
    ("a parameter twice", &[(r#""factor":0.7"#, r#""factor":0.7,"factor":0.7"#)], &[]),
    ("an unknown encoding", &[(r#""t2""#, r#""t3""#)], &[]),
    ("an unknown scale type", &[(r#""f32""#, r#""f64""#)], &[]),
    ("an unknown dtype", &[(r#""F32""#, r#""F31""#)], &[]),
    (
        "a dtype that cannot be ternary",
        &[(r#""dtype":"F32","name":"weight""#, r#""dtype":"I32","name":"weight""#)],
        &[],
    ),
    ("no granularity", &[(r#""granularity":"filter","#, "")], &[]),
    ("a group of none", &[(r#""filter""#, r#""group:0""#)], &[]),
    ("a group with a sign", &[(r#""filter""#, r#""group:+5""#)], &[]),
    ("another granularity", &[(r#""filter""#, r#""tensor""#)], &[]),
    ("an axis too far", &[(r#""axis":0"#, r#""axis":2"#)], &[]),
    ("a negative axis", &[(r#""axis":0"#, r#""axis":-1"#)], &[]),
    ("an axis that is no whole number", &[(r#""axis":0"#, r#""axis":0.0"#)], &[]),
    ("no planes", &[(r#""planes":1"#, r#""planes":0"#)], &[]),
    ("too many planes", &[(r#""planes":1"#, r#""planes":17"#)], &[]),
    ("another shape", &[("[2,5]", "[2,6]")], &[]),
    ("a shape that overflows", &[("[2,5]", "[4294967296,4294967296]")], &[]),
    ("a shape that overflows beside a zero", &[("[2]", "[0,4294967296,4294967296]")], &[]),
    ("a rank of 17", &[("[2,5]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2,5]")], &[]),
    ("a name twice", &[(r#""name":"weight""#, r#""name":"bias""#)], &[]),
    ("the name of the metadata", &[(r#""name":"weight""#, r#""name":"__metadata__""#)], &[]),
    ("neither dense nor ternary", &[(r#""ternary":"#, r#""sparse":"#)], &[]),
    ("an axis of minus zero", &[(r#""axis":0"#, r#""axis":-0"#)], &[]),
    ("a mean above the largest", &[(r#""mean":0.75"#, r#""mean":99"#)], &[]),
    ("a negative threshold", &[(r#""min":0.22749999999999998"#, r#""min":-1"#)], &[]),
    ("an infinite error", &[(r#""squared_error":0.015625"#, r#""squared_error":1e999"#)], &[]),
    ("bytes of a source in words", &[(r#""stats":"#, r#""source_bytes":"x","stats":"#)], &[]),
    ("bytes of sources that overflow", &[(r#""stats":"#, r#""source_bytes":18446744073709551615,"stats":"#)], &[]),
    ("half of a surrogate pair in the metadata", &[(r#""format":"pt""#, r#""format":"\ud800""#)], &[]),
    ("half of a surrogate pair", &[(r#""name":"weight""#, r#""name":"\ud800""#)], &[]),
    ("counts of other codes", &[(r#""zeros":4"#, r#""zeros":3"#), (r#""positive":4"#, r#""positive":5"#)], &[]),
    ("too many counts", &[(r#""zeros":"#, r#""zeros":1"#)], &[]),
    ("no metadata", &[(r#""metadata":"#, r#""metadate":"#)], &[]),
    ("a section somewhere else", &[(r#""offset":64"#, r#""offset":128"#)], &[]),
    ("a longer section", &[(r#""length":8"#, r#""length":9"#)], &[]),
    ("not JSON", &[("{", "[")], &[]),
    ("an invalid code", &[], &[(128, 0b11)]),
    ("a tail that is not filled up", &[], &[(129, 0b0101_0110 ^ 0b0100_0000)]),
    ("a negative scale", &[], &[(192 + 3, 0xbf)]),
    ("a negative zero", &[], &[(192 + 2, 0), (192 + 3, 0x80)]),
    ("an infinite scale", &[], &[(192 + 2, 0x80), (192 + 3, 0x7f)]),
    ("padding", &[], &[(72, 1)]),
    ("a later version", &[], &[(8, 2)]),
    ("a feature", &[], &[(12, 1)]),
    ("a reserved byte", &[], &[(44, 1)]),
    ("another file length", &[], &[(32, 0xff)]),
];

#[test]
fn both_readers_refuse_what_breaks_a_rule() {
    let python = python();
    let directory = tempfile::tempdir().unwrap();
    let good = fs::read(EXAMPLE).unwrap();
    let path = directory.path().join("forged.twn");
    // The forger is honest: without edits the file is good, and so are keys that nobody knows.
    let unknown = r#""planes":1,"planets":[{"a":1,"a":null}]"#;
    for edits in [&[][..], &[(r#""planes":1"#, r#""planes":1,"planets":[{"a":1}]"#)]] {
        let bytes = forge(&good, edits, &[]);
        assert_eq!(rust_refuses(bytes.clone()), None, "{edits:?}");
        fs::write(&path, bytes).unwrap();
        python.iter().for_each(|python| python.agrees(&path));
    }
    assert!(rust_refuses(forge(&good, &[(r#""planes":1"#, unknown)], &[])).is_none(), "unknown keys are not looked at");
    for (what, edits, bytes) in FORGERIES {
        let bytes = forge(&good, edits, bytes);
        assert!(rust_refuses(bytes.clone()).is_some(), "{what}: accepted");
        fs::write(&path, bytes).unwrap();
        if let Some(python) = &python {
            assert!(python.read(&path).is_err(), "{what}: accepted by Python");
        }
    }
}

/// `unpack` used to take a negative scale, and to blame the output for what is wrong with the input.
#[test]
fn unpack_refuses_a_negative_scale_and_names_the_container() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = forge(&fs::read(EXAMPLE).unwrap(), &[], &[(192 + 3, 0xbf)]);
    let container = Container::from_bytes("in.twn", bytes).unwrap();
    let output = directory.path().join("out.safetensors");
    let error = unpack::unpack(&container, &output, &unpack::Options::default()).unwrap_err().to_string();
    assert!(error.starts_with("in.twn: tensor `weight`: scale 0 is -1"), "{error}");
    assert!(!output.exists());
}

#[test]
fn the_specification_shows_the_example_byte_by_byte() {
    let text = fs::read_to_string("spec/twn-v1.md").unwrap();
    let shown: Vec<u8> = text
        .lines()
        .filter_map(|line| line.split_once("  ").filter(|(at, _)| at.len() == 8 && u32::from_str_radix(at, 16).is_ok()))
        .flat_map(|(_, rest)| rest.split("  |").next().unwrap_or(rest).split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    assert!(shown == fs::read(EXAMPLE).unwrap(), "spec/twn-v1.md does not show {EXAMPLE}");
}

/// Writes the example anew and prints its bytes for the specification.
#[test]
#[ignore = "a generator"]
fn write_example() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("example.safetensors");
    let weight = floats(&[1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -0.5, 0.125, 0.5, 0.5]);
    let bias = floats(&[0.5, -2.0]);
    let tensors = [
        ("weight", Source::new(Dtype::F32, vec![2, 5], &weight).unwrap()),
        ("bias", Source::new(Dtype::F32, vec![2], &bias).unwrap()),
    ];
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::write(&path, safetensors::serialize(tensors, Some(metadata)).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let options = convert::Options { overwrite: true, ..convert::Options::default() };
    convert::pack(&checkpoint, &plan, EXAMPLE.as_ref(), &options).unwrap();
    for (i, line) in fs::read(EXAMPLE).unwrap().chunks(16).enumerate() {
        let (mut hex, mut text) = (String::new(), String::new());
        for &byte in line {
            write!(hex, " {byte:02x}").unwrap();
            text.push(if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '.' });
        }
        println!("{:08x} {hex:<48}  |{text}|", 16 * i);
    }
}

/// A Python interpreter of version 3.
struct Python(&'static str);

fn python() -> Option<Python> {
    let found = ["python3", "python"].into_iter().find(|name| {
        let version = Command::new(name).args(["-c", "import sys; print(sys.version_info[0])"]).output();
        version.is_ok_and(|output| output.stdout.starts_with(b"3"))
    });
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "CI has to have python3");
    if found.is_none() {
        eprintln!("skipped: there is no python3");
    }
    found.map(Python)
}

impl Python {
    /// What `read_twn.py` prints; the reason where it refuses.
    fn read(&self, path: &Path) -> Result<String, String> {
        let output = Command::new(self.0).args(["-B", "spec/read_twn.py"]).arg(path).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        match output.status.code() {
            Some(0) => Ok(String::from_utf8(output.stdout).unwrap()),
            Some(1) if error.lines().count() == 1 => Err(error),
            _ => panic!("{}: {error}", path.display()),
        }
    }

    /// Both read the same, or both refuse.
    fn agrees(&self, path: &Path) {
        let bytes = fs::read(path).unwrap();
        match (self.read(path), rust_refuses(bytes.clone())) {
            (Err(_), Some(_)) => {}
            (Ok(lines), None) => {
                let expected = rust_lines(&Container::from_bytes(path, bytes).unwrap());
                assert_eq!(lines.lines().collect::<Vec<_>>(), expected, "{}", path.display());
            }
            (python, rust) => panic!("{}: Python says {python:?}, the crate {rust:?}", path.display()),
        }
    }
}

/// Why the crate refuses a file, if it does.
fn rust_refuses(bytes: Vec<u8>) -> Option<String> {
    match Container::from_bytes("forged.twn", bytes) {
        Err(error) => Some(error.to_string()),
        Ok(container) => verify::verify(&container, None).unwrap().problems.first().cloned(),
    }
}

/// The lines that `read_twn.py` ought to print.
fn rust_lines(container: &Container) -> Vec<String> {
    let line = |(entry, (name, tensor)): (&TensorEntry, (&str, Tensor<'_>))| {
        let (kind, bytes) = match tensor {
            Tensor::Dense(dense) => ("dense", dense.data.to_vec()),
            Tensor::Int8(int8) => {
                ("int8", int8.to_array().unwrap().iter().flat_map(|value| value.to_le_bytes()).collect())
            }
            Tensor::Ternary(ternary) => {
                ("ternary", ternary.to_array().unwrap().iter().flat_map(|value| value.to_le_bytes()).collect())
            }
        };
        let shape = format!("{:?}", entry.shape).replace(' ', "");
        format!("{name:?} {} {shape} {kind} {}", entry.dtype, sha256(&bytes))
    };
    container.index().tensors.iter().zip(container.tensors()).map(line).collect()
}

fn find_twn(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_twn(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "twn") {
            files.push(path);
        }
    }
}

/// A safetensors file with every type of element, ternary or not, and the odd shapes.
fn every_dtype() -> Vec<u8> {
    use Dtype::*;
    // Magnitudes that f16 scales can hold; exponents of 8-bit floats far from infinity and NaN.
    let weight = |i: usize| ((i * 7919 % 1009) as f32 / 504.0 - 1.0).powi(3);
    let float = |dtype: Dtype, count: usize| -> Vec<u8> {
        let each = |i: usize| match dtype {
            F64 => f64::from(weight(i)).to_le_bytes().to_vec(),
            F32 => weight(i).to_le_bytes().to_vec(),
            F16 => half::f16::from_f32(weight(i)).to_le_bytes().to_vec(),
            BF16 => half::bf16::from_f32(weight(i)).to_le_bytes().to_vec(),
            _ => vec![(i * 73 % 256) as u8 & 0xbf],
        };
        (0..count).flat_map(each).collect()
    };
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for dtype in [F64, F32, F16, BF16, F8_E4M3, F8_E5M2] {
        tensors.insert(format!("{dtype}.matrix"), (dtype, vec![5, 17], float(dtype, 85)));
        tensors.insert(format!("{dtype}.kernel"), (dtype, vec![3, 4, 5, 2], float(dtype, 120)));
        tensors.insert(format!("{dtype}.bias"), (dtype, vec![9], float(dtype, 9)));
    }
    for dtype in
        [F4, F6_E2M3, F6_E3M2, BOOL, U8, I8, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, U16, I32, U32, C64, I64, U64]
    {
        let bytes = (0..8 * dtype.bitsize() / 8).map(|i| (i * 37 + 1) as u8).collect();
        tensors.insert(format!("{dtype}.dense"), (dtype, vec![2, 4], bytes));
    }
    tensors.insert("scalar".to_owned(), (F32, vec![], float(F32, 1)));
    tensors.insert("empty".to_owned(), (F32, vec![0, 4], vec![]));
    tensors.insert("zeros".to_owned(), (F32, vec![3, 9], vec![0; 108]));
    tensors.insert("one".to_owned(), (F32, vec![1, 1], float(F32, 1)));
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, Source::new(*dtype, shape.clone(), bytes).unwrap_or_else(|e| panic!("{name}: {e}")))
    });
    safetensors::serialize(views, None).unwrap()
}

/// A tensor of three planes, 2 × 3 along axis 1, beside one of no elements.
fn write_planes(path: &Path) {
    let mut writer = ContainerWriter::create(path, true).unwrap();
    // Three filters of two weights each; one scale per plane and filter.
    let tiny = 2f32.powi(-24);
    let alphas = [[1.0, f32::MAX, 0.0], [tiny, f32::MAX, 0.0], [tiny, 0.0, 0.0]].concat();
    // Rows by filter: plane 0, then 1, then 2; the tail is filled with code 1.
    let codes: [[u8; 2]; 9] = [[2, 0], [2, 2], [0, 1], [2, 1], [2, 1], [0, 0], [2, 1], [0, 2], [0, 0]];
    let packed: Vec<u8> = codes.iter().map(|c| c[0] | c[1] << 2 | 0b0101_0000).collect();
    let empty = DenseEntry { reason: String::new(), repaired: None, section: writer.section(&[]).unwrap() };
    let count = |code: u8| codes.as_flattened().iter().filter(|&&c| c == code).count() as u64;
    let entry = TernaryEntry {
        axis: 1,
        calibration: None,
        codes: writer.section(&packed).unwrap(),
        encoding: Encoding::T2,
        granularity: Granularity::Filter,
        method: MethodEntry { name: "by hand".to_owned(), parameters: BTreeMap::new() }.into(),
        planes: 3,
        reason: String::new(),
        scale_dtype: ScaleDtype::F32,
        scales: writer.section(&floats(&alphas)).unwrap(),
        source_bytes: None,
        stats: Stats {
            alpha: Spread { max: f64::from(f32::MAX), mean: 0.5, min: 0.0 },
            delta: None,
            negative: count(0),
            positive: count(2),
            squared_error: 0.0,
            squared_norm: 0.0,
            zeros: count(1),
        },
    };
    let tensors = vec![
        TensorEntry::dense("nothing".to_owned(), Dtype::F32, vec![0], empty),
        TensorEntry::ternary("planes".to_owned(), Dtype::BF16, vec![2, 3], entry),
    ];
    writer.finish(&Index { metadata: BTreeMap::new(), producer: Producer::this(), tensors }).unwrap();
}

/// The example with other bytes and another index, all checksums made right again.
fn forge(good: &[u8], edits: &[(&str, &str)], bytes: &[(usize, u8)]) -> Vec<u8> {
    let container = Container::from_bytes("good.twn", good.to_vec()).unwrap();
    let index_at = good.len() - container.index_bytes() as usize;
    let mut file = good[..index_at].to_vec();
    let mut json = String::from_utf8(good[index_at..].to_vec()).unwrap();
    for &(at, byte) in bytes.iter().filter(|(at, _)| *at >= 64) {
        file[at] = byte;
    }
    let sections: Vec<Section> = container.index().tensors.iter().flat_map(|t| t.sections()).map(|s| s.1).collect();
    for section in sections {
        let found = crc32fast::hash(&file[section.offset as usize..(section.offset + section.length) as usize]);
        json = json.replace(&format!(r#""crc32":{},"#, section.crc32), &format!(r#""crc32":{found},"#));
    }
    for (from, to) in edits {
        assert!(json.contains(from), "{from}");
        json = json.replacen(from, to, 1);
    }
    file.extend(json.as_bytes());
    let length = file.len() as u64;
    file[24..32].copy_from_slice(&(json.len() as u64).to_le_bytes());
    file[32..40].copy_from_slice(&length.to_le_bytes());
    file[40..44].copy_from_slice(&crc32fast::hash(json.as_bytes()).to_le_bytes());
    for &(at, byte) in bytes.iter().filter(|(at, _)| *at < 64) {
        file[at] = byte;
    }
    let crc = crc32fast::hash(&file[..60]);
    file[60..64].copy_from_slice(&crc.to_le_bytes());
    file
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// SHA-256 (FIPS 180-4), so that two readers can be compared by one line per tensor.
fn sha256(bytes: &[u8]) -> String {
    // The constants are fractions of square and cube roots of the first primes; exact in u128.
    let primes: Vec<u128> = (2u128..312).filter(|n| (2..*n).all(|d| n % d != 0)).collect();
    let root = |n: u128, power: u32| -> u32 {
        // floor(2^32 · n^(1/power)), bit by bit; the integer part falls off.
        (0..36)
            .rev()
            .fold(0u128, |r, bit| if (r | 1 << bit).pow(power) <= n << (32 * power) { r | 1 << bit } else { r })
            as u32
    };
    let mut state: Vec<u32> = primes[..8].iter().map(|&p| root(p, 2)).collect();
    let constants: Vec<u32> = primes[..64].iter().map(|&p| root(p, 3)).collect();
    let mut padded = bytes.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((bytes.len() as u64 * 8).to_be_bytes());
    for block in padded.as_chunks::<64>().0 {
        let mut w: Vec<u32> = block.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
        for i in 16..64 {
            let (x, y) = (w[i - 15], w[i - 2]);
            let s0 = x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3;
            let s1 = y.rotate_right(17) ^ y.rotate_right(19) ^ y >> 10;
            w.push(w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1));
        }
        let mut s = state.clone();
        for (k, w) in constants.iter().zip(w) {
            let s1 = s[4].rotate_right(6) ^ s[4].rotate_right(11) ^ s[4].rotate_right(25);
            let choice = (s[4] & s[5]) ^ (!s[4] & s[6]);
            let one = s[7].wrapping_add(s1).wrapping_add(choice).wrapping_add(*k).wrapping_add(w);
            let s0 = s[0].rotate_right(2) ^ s[0].rotate_right(13) ^ s[0].rotate_right(22);
            let two = s0.wrapping_add((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s.rotate_right(1);
            s[4] = s[4].wrapping_add(one);
            s[0] = one.wrapping_add(two);
        }
        state.iter_mut().zip(s).for_each(|(a, b)| *a = a.wrapping_add(b));
    }
    state.iter().fold(String::new(), |text, word| text + &format!("{word:08x}"))
}

#[test]
fn sha256_is_sha256() {
    assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}
