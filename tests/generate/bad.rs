//! One file per way to be wrong. What each has to be answered with stands in
//! `fixtures/bad/expected.toml`, which nobody generates.

use serde_json::{Value, json};

use super::Files;
use super::bytes::{Safetensors, floats, raw};

/// Path below `fixtures/bad/` → contents.
pub fn files() -> Files {
    let mut files = Files::new();
    checkpoints(&mut |name, bytes| add(&mut files, format!("{name}.safetensors"), bytes));
    weights(&mut |name, bytes| add(&mut files, format!("{name}.safetensors"), bytes));
    shards(&mut |name, bytes| add(&mut files, name.to_owned(), bytes));
    prefixes(&mut |name, bytes| add(&mut files, format!("{name}.twn"), bytes));
    sections(&mut |name, bytes| add(&mut files, format!("{name}.twn"), bytes));
    contents(&mut |name, bytes| add(&mut files, format!("{name}.twn"), bytes));
    int8(&mut |name, bytes| add(&mut files, format!("{name}.twn"), bytes));
    entries(&mut |name, bytes| add(&mut files, format!("{name}.twn"), bytes));
    files
}

fn add(files: &mut Files, name: String, bytes: Vec<u8>) {
    assert!(files.insert(name.clone(), bytes).is_none(), "two of {name}");
}

/// A header entry.
fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"data_offsets":[{begin},{end}],"dtype":"{dtype}","shape":{shape}}}"#)
}

/// A file with that one tensor in its header.
fn one(dtype: &str, shape: &str, begin: u64, end: u64, data: &[u8]) -> Vec<u8> {
    raw(format!("{{{}}}", entry("w", dtype, shape, begin, end)), data)
}

/// A file with tensors `a` and `b` of two bytes each at these places in `data`.
fn two(a: u64, b: u64, data: &[u8]) -> Vec<u8> {
    let entries = [entry("a", "U8", "[2]", a, a + 2), entry("b", "U8", "[2]", b, b + 2)];
    raw(format!("{{{}}}", entries.join(",")), data)
}

fn checkpoints(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let good = one("F32", "[2,1]", 0, 8, &[0; 8]);
    add("empty", Vec::new());
    add("truncated-in-length", good[..5].to_vec());
    add("truncated-in-header", good[..30].to_vec());
    add("truncated-before-data", good[..good.len() - 8].to_vec());
    add("truncated-in-data", good[..good.len() - 1].to_vec());
    add("trailing-bytes", [good.as_slice(), b"!"].concat());
    add("header-too-long", [&100_000_001_u64.to_le_bytes(), b"{}".as_slice()].concat());
    add("header-length-huge", [&u64::MAX.to_le_bytes(), b"{}".as_slice()].concat());
    add("header-empty", raw("", &[]));
    add("not-json", raw("not json", &[]));
    add("not-an-object", raw("[1, 2]", &[]));
    add("begins-with-blank", raw(" {}", &[]));
    add("invalid-utf8", raw(b"{\"\xff\xfe\":{\"data_offsets\":[0,0],\"dtype\":\"U8\",\"shape\":[0]}}", &[]));
    add("metadata-not-strings", raw(r#"{"__metadata__":{"epoch":3}}"#, &[]));
    let twice = |first: &str, second: &str| format!("{{{first},{second}}}");
    let w = entry("w", "U8", "[2]", 0, 2);
    add("duplicate-tensor", raw(twice(&w, &w), &[0; 2]));
    add("duplicate-dtype", raw(r#"{"w":{"data_offsets":[0,2],"dtype":"U8","dtype":"I8","shape":[2]}}"#, &[0; 2]));
    add("duplicate-metadata-key", raw(twice(r#""__metadata__":{"format":"pt","format":"np"}"#, &w), &[0; 2]));
    add("duplicate-metadata", raw(twice(r#""__metadata__":{}"#, r#""__metadata__":{}"#), &[]));
    add("missing-shape", raw(r#"{"w":{"data_offsets":[0,2],"dtype":"U8"}}"#, &[0; 2]));
    add("hole-at-begin", two(1, 3, &[0; 5]));
    add("hole-in-middle", two(0, 4, &[0; 6]));
    add("hole-at-end", two(0, 2, &[0; 8]));
    add("overlap", two(0, 1, &[0; 3]));
    add("overlap-same-bytes", two(0, 0, &[0; 2]));
    add("out-of-bounds", one("F32", "[4,1]", 0, 16, &[0; 8]));
    add("offsets-backwards", one("U8", "[2]", 2, 0, &[0; 2]));
    add("offset-negative", raw(r#"{"w":{"data_offsets":[-1,2],"dtype":"U8","shape":[3]}}"#, &[0; 2]));
    add("shape-overflow", one("F32", "[4294967296,4294967296]", 0, 8, &[0; 8]));
    add("shape-overflow-beside-zero", one("F32", "[4294967296,4294967296,0]", 0, 0, &[]));
    add("shape-mismatch", one("F32", "[3,1]", 0, 8, &[0; 8]));
    add("unknown-dtype", one("F7", "[2]", 0, 2, &[0; 2]));
    add("sub-byte-odd", one("F4", "[3]", 0, 2, &[0; 2]));
    add("rank-17", one("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", 0, 1, &[0]));
    add("long-name", raw(format!("{{{}}}", entry(&"n".repeat(4097), "U8", "[1]", 0, 1)), &[0]));
}

fn weights(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let matrix = |dtype: &str, values: [f64; 6]| {
        Safetensors::default().tensor("w", dtype, &[2, 3], &floats(dtype, &values)).build()
    };
    for dtype in ["F64", "F32", "F16", "BF16"] {
        let name = dtype.to_lowercase();
        add(&format!("{name}-nan"), matrix(dtype, [1.0, 2.0, 3.0, 4.0, f64::NAN, 6.0]));
        add(&format!("{name}-infinity"), matrix(dtype, [1.0, 2.0, f64::INFINITY, 4.0, 5.0, f64::NAN]));
    }
    let bytes = |dtype: &str, bytes: &[u8]| Safetensors::default().tensor("w", dtype, &[2, 2], bytes).build();
    add("f8-e4m3-nan", bytes("F8_E4M3", &[0x00, 0x38, 0x38, 0x7f]));
    add("f8-e5m2-nan", bytes("F8_E5M2", &[0x00, 0x3c, 0xfe, 0x3c]));
    add("f8-e5m2-infinity", bytes("F8_E5M2", &[0x00, 0xfc, 0x3c, 0x3c]));
    add("f64-scale-too-large", matrix("F64", [1.0, 2.0, 3.0, 1e39, 1e39, -1e39]));
    add("f64-scale-too-small", matrix("F64", [0.0, -1e-60, 0.0, 1.0, 1.0, 1.0]));
    add("f64-sum-overflows", matrix("F64", [1.0, 2.0, 3.0, 1.7e308, 1.7e308, 1.7e308]));
}

fn shards(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let index = |map: Value| json!({ "metadata": { "total_size": 4 }, "weight_map": map }).to_string().into_bytes();
    let file = |name: &str| Safetensors::default().tensor(name, "F32", &[1, 1], &floats("F32", &[1.0])).build();
    let naming = |shard: &str| index(json!({ "w": shard }));
    add("shard-in-parent.safetensors.index.json", naming("../every-dtype.safetensors"));
    add("shard-is-parent.safetensors.index.json", naming(".."));
    add("shard-absolute.safetensors.index.json", naming("/every-dtype.safetensors"));
    add("shard-in-folder.safetensors.index.json", naming("sharded/model-00001-of-00002.safetensors"));
    add("shard-in-windows-folder.safetensors.index.json", naming("..\\every-dtype.safetensors"));
    add("shard-without-name.safetensors.index.json", naming(""));
    add("shard-missing.safetensors.index.json", naming("nowhere.safetensors"));
    add("index-not-json.safetensors.index.json", b"{\"weight_map\": ".to_vec());
    add("index-without-map.safetensors.index.json", b"{}".to_vec());
    add(
        "index-duplicate-key.safetensors.index.json",
        br#"{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}"#.to_vec(),
    );
    add(
        "index-duplicate-map.safetensors.index.json",
        br#"{"weight_map":{"w":"a.safetensors"},"weight_map":{"w":"b.safetensors"}}"#.to_vec(),
    );
    add("tensor-missing/a.safetensors", file("v"));
    add("tensor-missing/model.safetensors.index.json", index(json!({ "v": "a.safetensors", "w": "a.safetensors" })));
    add("tensor-in-two-shards/a.safetensors", file("w"));
    add("tensor-in-two-shards/b.safetensors", file("w"));
    add("two-indexes/a.safetensors", file("w"));
    add("two-indexes/a.safetensors.index.json", naming("a.safetensors"));
    add("two-indexes/b.safetensors.index.json", naming("a.safetensors"));
    add("no-checkpoint/README", b"A directory without any checkpoint.\n".to_vec());
}

/// A `.twn` file byte by byte, without the crate's own writer.
#[derive(Clone)]
pub struct Twn {
    version: u32,
    features: u32,
    /// What lies between prefix and index.
    body: Vec<u8>,
    index: Value,
}

/// Where the sections of [`Twn::base`] begin in the file: `b` (3 bytes), then codes and scales of `w`.
const DATA: usize = 64;
const CODES: usize = 128;
const SCALES: usize = 192;
const INDEX: usize = 256;

impl Twn {
    /// A good file: `b` dense, 3 bytes; `w` ternary, 2 filters of 6 weights.
    pub fn base() -> Self {
        Self::with("t2", &[0x46, 0x52, 0x95, 0x54], &[1.5_f32, 0.25].map(f32::to_le_bytes).concat(), [3, 6, 3])
    }

    /// The same with these codes and scales; `counts` are those of −1, 0 and +1.
    fn with(encoding: &str, codes: &[u8], scales: &[u8], counts: [u64; 3]) -> Self {
        let mut body = vec![0; INDEX - 64];
        let mut section = |bytes: &[u8], offset: usize| {
            body[offset - 64..][..bytes.len()].copy_from_slice(bytes);
            json!({ "crc32": crc32fast::hash(bytes), "length": bytes.len(), "offset": offset })
        };
        let data = section(&[1, 2, 3], DATA);
        let (codes, scales) = (section(codes, CODES), section(scales, SCALES));
        let [negative, zeros, positive] = counts;
        let index = json!({
            "metadata": { "format": "pt" },
            "producer": { "name": "by-hand", "version": "1" },
            "tensors": [
                { "dense": { "reason": "U8", "section": data }, "dtype": "U8", "name": "b", "shape": [3] },
                { "dtype": "F32", "name": "w", "shape": [2, 6], "ternary": {
                    "axis": 0, "codes": codes, "encoding": encoding, "granularity": "filter",
                    "method": { "name": "twn", "parameters": { "factor": 0.7 } },
                    "planes": 1, "scale_dtype": "f32", "scales": scales,
                    "stats": {
                        "alpha": { "max": 1.5, "mean": 0.875, "min": 0.25 },
                        "negative": negative, "positive": positive, "zeros": zeros,
                        "squared_error": 0.5, "squared_norm": 8.0,
                    },
                } },
            ],
        });
        Self { version: 1, features: 0, body, index }
    }

    /// The same with `w` of 8-bit codes.
    fn int8(codes: [u8; 12], alpha: f32) -> Self {
        let mut twn = Self::base();
        let scales = [alpha, 0.25].map(f32::to_le_bytes).concat();
        let mut section = |bytes: &[u8], offset: usize| {
            twn.body[offset - 64..][..bytes.len()].copy_from_slice(bytes);
            json!({ "crc32": crc32fast::hash(bytes), "length": bytes.len(), "offset": offset })
        };
        let (codes, scales) = (section(&codes, CODES), section(&scales, SCALES));
        twn.index["tensors"][1].as_object_mut().unwrap().remove("ternary");
        twn.index["tensors"][1]["int8"] = json!({
            "axis": 0, "codes": codes, "reason": "set by `w`", "scale_dtype": "f32", "scales": scales,
            "stats": {
                "alpha": { "max": 1.5, "mean": 0.875, "min": 0.25 }, "squared_error": 0.5, "squared_norm": 8.0,
            },
        });
        twn
    }

    /// The same with another value at a JSON pointer into the entry of `w`.
    fn set(mut self, pointer: &str, value: Value) -> Self {
        *self.index.pointer_mut(&format!("/tensors/1{pointer}")).unwrap() = value;
        self
    }

    /// The whole file: prefix with checksums, body, index.
    pub fn seal(&self) -> Vec<u8> {
        self.seal_index(self.index.to_string())
    }

    fn seal_index(&self, index: impl AsRef<[u8]>) -> Vec<u8> {
        let index = index.as_ref();
        let offset = 64 + self.body.len() as u64;
        let mut prefix = b"\x89TWN\r\n\x1a\n".to_vec();
        prefix.extend(self.version.to_le_bytes());
        prefix.extend(self.features.to_le_bytes());
        prefix.extend(offset.to_le_bytes());
        prefix.extend((index.len() as u64).to_le_bytes());
        prefix.extend((offset + index.len() as u64).to_le_bytes());
        prefix.extend(crc32fast::hash(index).to_le_bytes());
        prefix.resize(60, 0);
        let file = [prefix.as_slice(), &[0; 4], self.body.as_slice(), index].concat();
        reseal(file)
    }
}

/// Sets the prefix's checksum to what its bytes have.
fn reseal(mut file: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&file[..60]);
    file[60..64].copy_from_slice(&crc.to_le_bytes());
    file
}

/// A good file with one byte changed; no checksum is set right again.
fn flipped(at: usize, byte: u8) -> Vec<u8> {
    let mut file = Twn::base().seal();
    assert_ne!(file[at], byte);
    file[at] = byte;
    file
}

fn prefixes(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let good = Twn::base().seal();
    add("empty", Vec::new());
    add("truncated-in-prefix", good[..40].to_vec());
    add("truncated-in-sections", good[..150].to_vec());
    add("truncated-in-index", good[..good.len() - 1].to_vec());
    add("appended-byte", [good.as_slice(), b"!"].concat());
    add("magic", flipped(1, b'X'));
    add("newlines-converted", [&good[..4], b"\n\x1a\n", &good[8..]].concat());
    let mut zeroed = good.clone();
    zeroed[..64].fill(0);
    add("prefix-zeroed", zeroed);
    add("prefix-crc", flipped(60, good[60] ^ 1));
    add("prefix-damaged", flipped(17, good[17] ^ 4));
    add("version-2", Twn { version: 2, ..Twn::base() }.seal());
    add("feature-bit", Twn { features: 1 << 5, ..Twn::base() }.seal());
    add("index-crc", flipped(good.len() - 5, b'?'));
    let prefix = |at: usize, value: u64| {
        let mut file = good.clone();
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        reseal(file)
    };
    let mut reserved = good.clone();
    reserved[50] = 1;
    add("reserved-byte", reseal(reserved));
    let mut not_last = [good.as_slice(), &[0; 8]].concat();
    not_last[32..40].copy_from_slice(&(good.len() as u64 + 8).to_le_bytes());
    add("index-not-last", reseal(not_last));
    add("index-offset-in-prefix", prefix(16, 0));
    add("index-offset-overflow", prefix(16, u64::MAX - 63));
    add("index-length-overflow", prefix(24, u64::MAX));
    let mut odd = Twn::base();
    odd.body.push(0);
    add("index-not-aligned", odd.seal());
}

fn sections(add: &mut dyn FnMut(&str, Vec<u8>)) {
    add("data-crc", flipped(DATA + 1, 0xff));
    add("codes-crc", flipped(CODES, 0x45));
    add("scales-crc", flipped(SCALES, 0x01));
    add("padding", flipped(DATA + 3, 7));
    add("padding-before-index", flipped(INDEX - 1, 255));
    let moved = |pointer: &str, offset: u64| Twn::base().set(pointer, json!(offset)).seal();
    add("section-overlap", moved("/ternary/codes/offset", 64));
    add("section-hole", moved("/ternary/codes/offset", 192));
    add("section-misaligned", moved("/ternary/codes/offset", 132));
    add("section-offset-overflow", moved("/ternary/codes/offset", u64::MAX - 3));
    let mut huge = Twn::base().set("/shape", json!([2, 1_u64 << 40])).set("/ternary/codes/length", json!(1_u64 << 39));
    huge = huge.set("/ternary/stats/zeros", json!((1_u64 << 41) - 6));
    add("section-outside", huge.seal());
    let mut late = Twn::base();
    late.body.extend([0; 64]);
    add("hole-before-index", late.seal());
    add("data-length", {
        let mut twn = Twn::base();
        twn.index["tensors"][0]["dense"]["section"]["length"] = json!(4);
        twn.seal()
    });
    add("codes-length", moved("/ternary/codes/length", 5));
    add("scales-length", moved("/ternary/scales/length", 4));
}

fn contents(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let scales = [1.5_f32, 0.25].map(f32::to_le_bytes).concat();
    let codes = |encoding: &str, bytes: &[u8], counts| Twn::with(encoding, bytes, &scales, counts).seal();
    add("t2-code-3", codes("t2", &[0x46, 0x52, 0x97, 0x54], [3, 6, 3]));
    add("t2-tail", codes("t2", &[0x46, 0x52, 0x95, 0x04], [3, 6, 3]));
    // 121 is five zeros, 122 four after +1.
    add("t5-byte-243", codes("t5", &[121, 121, 243, 121], [0, 12, 0]));
    add("t5-tail", codes("t5", &[121, 122, 121, 124], [0, 11, 1]));
    let mut b1 = Twn::with("b1", &[0b0010_0001, 0b0111_1111], &scales, [4, 0, 8]);
    b1.index["tensors"][1]["ternary"]["method"] = json!({ "name": "bwn" });
    add("b1-tail", b1.seal());
    let scale = |first: f32, second: f32| {
        let scales = [first, second].map(f32::to_le_bytes).concat();
        Twn::with("t2", &[0x46, 0x52, 0x95, 0x54], &scales, [3, 6, 3]).seal()
    };
    add("scale-negative", scale(1.5, -0.25));
    add("scale-negative-zero", scale(-0.0, 0.25));
    add("scale-nan", scale(f32::NAN, 0.25));
    add("scale-infinite", scale(1.5, f32::INFINITY));
}

fn int8(add: &mut dyn FnMut(&str, Vec<u8>)) {
    const CODES: [u8; 12] = [0, 1, 0xff, 127, 0x81, 2, 3, 4, 5, 6, 7, 8];
    let set = |pointer: &str, value: Value| Twn::int8(CODES, 1.5).set(pointer, value).seal();
    let mut lowest = CODES;
    lowest[8] = 0x80;
    add("int8-code-lowest", Twn::int8(lowest, 1.5).seal());
    add("int8-scale-negative", Twn::int8(CODES, -1.5).seal());
    add("int8-scale-nan", Twn::int8(CODES, f32::NAN).seal());
    add("int8-codes-length", set("/int8/codes/length", json!(11)));
    add("int8-scales-length", set("/int8/scales/length", json!(4)));
    add("int8-axis-out-of-range", set("/int8/axis", json!(u64::MAX)));
    add("int8-dtype-not-float", set("/dtype", json!("I32")));
    add("int8-scale-dtype-unknown", set("/int8/scale_dtype", json!("f8")));
    add("int8-shape-empty", set("/shape", json!([1_u64 << 57, 0])));
    add("int8-shape-overflow", set("/shape", json!([1_u64 << 40, 1_u64 << 40])));
    add("int8-section-outside", {
        let huge = Twn::int8(CODES, 1.5).set("/shape", json!([2, 1_u64 << 40]));
        huge.set("/int8/codes/length", json!(1_u64 << 41)).seal()
    });
    add("int8-statistics-negative-error", set("/int8/stats/squared_error", json!(-0.5)));
    add("int8-statistics-of-other-scales", set("/int8/stats/alpha/max", json!(1.25)));
    let mut both = Twn::int8(CODES, 1.5);
    both.index["tensors"][1]["ternary"] = Twn::base().index["tensors"][1]["ternary"].clone();
    add("both-int8-and-ternary", both.seal());
}

fn entries(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let set = |pointer: &str, value: Value| Twn::base().set(pointer, value).seal();
    add("encoding-unknown", set("/ternary/encoding", json!("t9")));
    add("scale-dtype-unknown", set("/ternary/scale_dtype", json!("f8")));
    add("granularity-unknown", set("/ternary/granularity", json!("row")));
    add("group-0", set("/ternary/granularity", json!("group:0")));
    add("dtype-unknown", set("/dtype", json!("F7")));
    add("dtype-not-float", set("/dtype", json!("I32")));
    add("planes-0", set("/ternary/planes", json!(0)));
    add("planes-17", set("/ternary/planes", json!(17)));
    add("axis-out-of-range", set("/ternary/axis", json!(2)));
    add("shape-overflow", set("/shape", json!([1_u64 << 40, 1_u64 << 40])));
    add("shape-empty", set("/shape", json!([1_u64 << 57, 0])));
    add("rank-17", set("/shape", json!([2, 6, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])));
    add("long-name", set("/name", json!("n".repeat(4097))));
    add("statistics", set("/ternary/stats/zeros", json!(9)));
    add(
        "statistics-of-other-codes",
        Twn::base().set("/ternary/stats/negative", json!(4)).set("/ternary/stats/zeros", json!(5)).seal(),
    );
    add("statistics-of-other-scales", set("/ternary/stats/alpha/max", json!(1.25)));
    add("statistics-negative-error", set("/ternary/stats/squared_error", json!(-0.5)));
    add("statistics-overflow", set("/ternary/stats/zeros", json!(u64::MAX)));
    add("duplicate-tensor", set("/name", json!("b")));
    let mut both = Twn::base();
    both.index["tensors"][1]["dense"] = both.index["tensors"][0]["dense"].clone();
    add("both-dense-and-ternary", both.seal());
    let mut neither = Twn::base();
    neither.index["tensors"][1].as_object_mut().unwrap().remove("ternary");
    add("neither-dense-nor-ternary", neither.seal());
    let mut without = Twn::base();
    without.index["tensors"][1].as_object_mut().unwrap().remove("name");
    add("name-missing", without.seal());
    let text = Twn::base().index.to_string();
    let edited = |from: &str, to: &str| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        Twn::base().seal_index(text.replace(from, to))
    };
    add("duplicate-key", edited(r#""axis":0"#, r#""axis":0,"axis":1"#));
    add("duplicate-metadata-key", edited(r#""format":"pt""#, r#""format":"pt","format":"np""#));
    add("duplicate-parameter", edited(r#""factor":0.7"#, r#""factor":0.7,"factor":0.8"#));
    add("index-not-json", Twn::base().seal_index("not json"));
    add("index-not-utf8", Twn::base().seal_index(b"{\"metadata\":{\"\xff\":\"\"}}"));
    add("index-trailing-text", Twn::base().seal_index(text.clone() + "{}"));
}
