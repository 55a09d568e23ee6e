//! The header of one safetensors file, checked once and completely before any view is handed out:
//! keys, types, shapes, bounds, holes, overlaps; and the header of one that is to be written. Not here: files
//! ([`super`]).
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::dtype::{Dtype, byte_length, needs};
use crate::error::CheckpointProblem as Problem;
use crate::limits;
use crate::strict_json::{UniqueMap, duplicate, duplicate_key, object};

/// What may stand where a checkpoint should: how it begins, what it is, and the way from there to a checkpoint.
const INSTEAD: [(&[u8], &str, &str); 12] = [
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file with `git lfs pull`"),
    (b"<", "a web page", "the download gave that instead; open the address in a browser and see what it says"),
    (b"\x1f\x8b", "compressed by gzip", "gunzip it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first (zstd -d)"),
    (b"\xfd7zXZ\0", "compressed by xz", "unpack it first (unxz)"),
    (b"BZh", "compressed by bzip2", "bunzip2 it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "HDF5, as Keras writes it", HDF5),
    (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model", "give the float model that it was made from"),
    (b"{\"", "JSON text", BESIDE),
    (b"{\n", "JSON text", BESIDE),
    (b"\x89PNG", "an image", "give the model"),
];

const BESIDE: &str = "give the file of weights that lies beside it, or their index (*.safetensors.index.json)";
const HDF5: &str = "save its weights with numpy: numpy.savez(OUT, **{w.path: w.numpy() for w in model.weights})";

/// What a file is that stands in place of a checkpoint, by how it begins.
pub fn stands_instead(begins: &[u8]) -> Option<Problem> {
    // The length of a safetensors header may be any of these bytes.
    if header_bytes(begins)? <= limits::HEADER_BYTES && begins.get(8) == Some(&b'{') {
        return None;
    }
    let (_, what, way_out) = INSTEAD.iter().find(|(beginning, ..)| begins.starts_with(beginning))?;
    Some(Problem::StandsInstead { what, way_out })
}

/// A checked header: tensors in the order of their bytes.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub metadata: BTreeMap<String, String>,
    pub tensors: Vec<HeaderTensor>,
}

#[derive(Debug)]
pub(crate) struct HeaderTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub range: Range<usize>,
}

/// Longer headers than this, some thirty thousand tensors, are not read again by the safetensors crate.
const REFERENCE_BYTES: u64 = 4 << 20;

/// The metadata's key in safetensors files of packed weights, which are no checkpoints.
pub const PACKED_KEY: &str = "twn-pack.packed";

/// The order of two tensors in a safetensors file, by type and name: wider types first, which keeps every tensor aligned;
/// then by name, as the format's own writer has them.
pub fn safetensors_order(a: (Dtype, &str), b: (Dtype, &str)) -> Ordering {
    b.0.bitsize().cmp(&a.0.bitsize()).then_with(|| a.1.cmp(b.1))
}

/// The header of a safetensors file: length, JSON and padding; the tensors' bytes follow it in this order. The same
/// tensors and metadata always give the same header (the safetensors crate orders metadata at random).
pub fn safetensors_header<'t>(
    tensors: impl IntoIterator<Item = (&'t str, Dtype, &'t [u64])>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    // serde_json's map is sorted.
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let begin = end;
        end += byte_length(dtype, shape).unwrap_or_default();
        let info = json!({ "dtype": dtype.to_string(), "shape": shape, "data_offsets": [begin, end] });
        map.insert(name.to_owned(), info);
    }
    let mut json = Value::Object(map).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}

/// What the file says of its header's length.
fn header_bytes(file: &[u8]) -> Option<u64> {
    file.first_chunk().map(|length| u64::from_le_bytes(*length))
}

impl Header {
    /// Parses and checks the header of a whole safetensors file.
    pub fn parse(file: &[u8]) -> Result<Self, Problem> {
        let header = Self::parse_strictly(file)?;
        // Ours is the stricter reader, and sees every file first; where the reference reader still objects, it is right.
        // It takes eight times the header's length of memory, so that very long ones are ours alone.
        if header_bytes(file).is_some_and(|length| length <= REFERENCE_BYTES) {
            safetensors::SafeTensors::deserialize(file).map_err(|e| Problem::Header(e.to_string()))?;
        }
        Ok(header)
    }

    fn parse_strictly(file: &[u8]) -> Result<Self, Problem> {
        let found = file.len() as u64;
        let length = header_bytes(file).ok_or(Problem::TooShort { expected: 8, found })?;
        if let Some(problem) = stands_instead(file) {
            return Err(problem);
        }
        if length > limits::HEADER_BYTES {
            return Err(Problem::HeaderTooLong { found: length, limit: limits::HEADER_BYTES });
        }
        let start = 8 + length as usize;
        let json = file.get(8..start).ok_or(Problem::TooShort { expected: start as u64, found })?;
        // The format says so, and it tells a foreign file at once.
        if let Some(byte) = json.first().filter(|byte| **byte != b'{') {
            return Err(Problem::Header(format!("it begins with byte {byte:#04x}, should begin with `{{`")));
        }
        let raw: RawHeader = serde_json::from_slice(json).map_err(|e| json_problem(&e))?;
        let mut tensors = raw.tensors;
        tensors.sort_unstable_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
        let available = found - start as u64;
        let dtypes = tile(&tensors, available)?;
        let tensors = tensors
            .into_iter()
            .zip(dtypes)
            .map(|((name, raw), dtype)| HeaderTensor {
                name,
                dtype,
                shape: raw.shape.iter().map(|&d| d as usize).collect(),
                range: start + raw.data_offsets.0 as usize..start + raw.data_offsets.1 as usize,
            })
            .collect();
        Ok(Self { metadata: raw.metadata, tensors })
    }
}

/// Checks each tensor by itself and that together they tile the data, in order; their types.
fn tile(tensors: &[(String, RawTensor)], available: u64) -> Result<Vec<Dtype>, Problem> {
    let mut dtypes = Vec::with_capacity(tensors.len());
    let (mut end, mut last) = (0, "");
    for (name, raw) in tensors {
        dtypes.push(check(name, raw, available)?);
        let (begin, stop) = raw.data_offsets;
        if begin > end {
            return Err(Problem::Hole { offset: end, length: begin - end });
        }
        if begin < end {
            return Err(Problem::Overlap { first: last.to_owned(), second: name.clone() });
        }
        (end, last) = (stop, name);
    }
    if end < available {
        return Err(Problem::Hole { offset: end, length: available - end });
    }
    Ok(dtypes)
}

/// Checks name and rank against this crate's limits.
pub(super) fn check_limits(name: &str, rank: usize) -> Result<(), Problem> {
    let limit = |what, found: usize, limit: usize| Problem::Limit {
        tensor: name.chars().take(64).collect(),
        what,
        found: found as u64,
        limit: limit as u64,
    };
    if name.len() > limits::NAME_BYTES {
        return Err(limit("name length", name.len(), limits::NAME_BYTES));
    }
    if rank > limits::RANK {
        return Err(limit("rank", rank, limits::RANK));
    }
    Ok(())
}

/// Checks one tensor: limits, type, bounds, and that its shape fits its bytes.
fn check(name: &str, raw: &RawTensor, available: u64) -> Result<Dtype, Problem> {
    check_limits(name, raw.shape.len())?;
    let dtype: Dtype = serde_json::from_value(raw.dtype.clone().into())
        .map_err(|e| Problem::Dtype { tensor: name.to_owned(), message: e.to_string() })?;
    let (begin, end) = raw.data_offsets;
    if begin > end {
        return Err(Problem::Backwards { tensor: name.to_owned(), begin, end });
    }
    if end > available {
        return Err(Problem::OutOfBounds { tensor: name.to_owned(), begin, end, available });
    }
    let expected = byte_length(dtype, &raw.shape);
    if expected != Some(end - begin) {
        return Err(Problem::Size {
            tensor: name.to_owned(),
            shape: raw.shape.clone(),
            dtype,
            expected: needs(dtype, &raw.shape),
            found: end - begin,
        });
    }
    Ok(dtype)
}

/// A tensor's object, and nothing else.
#[derive(Deserialize)]
struct Strict(#[serde(deserialize_with = "object")] RawTensor);

#[derive(Debug, Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header as it stands, in any order; a key that stands twice is an error.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { metadata: BTreeMap::new(), tensors: Vec::new() };
                let mut seen = BTreeSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(duplicate(&key));
                    }
                    if key == "__metadata__" {
                        header.metadata = map.next_value::<Option<UniqueMap>>()?.unwrap_or_default().0;
                    } else {
                        // serde_json takes line and column from the end of the text.
                        let named = |error: A::Error| serde::de::Error::custom(format_args!("tensor `{key}`: {error}"));
                        let tensor = map.next_value::<Strict>().map_err(named)?.0;
                        header.tensors.push((key, tensor));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// What is wrong with a header that serde_json refused.
pub(super) fn json_problem(error: &serde_json::Error) -> Problem {
    match duplicate_key(error) {
        Some(key) => Problem::DuplicateKey(key),
        None => Problem::Header(error.to_string()),
    }
}
