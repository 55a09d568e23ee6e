//! The header of one safetensors file, checked once and completely before any view is handed out:
//! keys, types, shapes, bounds, holes, overlaps. Not here: files ([`super`]).
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::CheckpointProblem as Problem;
use crate::limits;

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

impl Header {
    /// Parses and checks the header of a whole safetensors file.
    pub fn parse(file: &[u8]) -> Result<Self, Problem> {
        let found = file.len() as u64;
        let prefix = file.first_chunk::<8>().ok_or(Problem::TooShort { expected: 8, found })?;
        let length = u64::from_le_bytes(*prefix);
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
        tensors.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
        let available = found - start as u64;
        let tensors = tile(tensors, available)?;
        let tensors = tensors
            .into_iter()
            .map(|(name, raw, dtype)| HeaderTensor {
                name,
                dtype,
                shape: raw.shape.iter().map(|&d| d as usize).collect(),
                range: start + raw.data_offsets.0 as usize..start + raw.data_offsets.1 as usize,
            })
            .collect();
        // Ours is the stricter reader; where the reference reader still objects, it is right.
        safetensors::SafeTensors::deserialize(file).map_err(|e| Problem::Header(e.to_string()))?;
        Ok(Self { metadata: raw.metadata, tensors })
    }
}

/// Checks each tensor by itself and that together they tile the data, in order.
fn tile(tensors: Vec<(String, RawTensor)>, available: u64) -> Result<Vec<(String, RawTensor, Dtype)>, Problem> {
    let mut checked: Vec<(String, RawTensor, Dtype)> = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for (name, raw) in tensors {
        let dtype = check(&name, &raw, available)?;
        let (begin, stop) = raw.data_offsets;
        if begin > end {
            return Err(Problem::Hole { offset: end, length: begin - end });
        }
        if begin < end {
            let first = checked.pop().map(|last| last.0).unwrap_or_default();
            return Err(Problem::Overlap { first, second: name });
        }
        end = stop;
        checked.push((name, raw, dtype));
    }
    if end < available {
        return Err(Problem::Hole { offset: end, length: available - end });
    }
    Ok(checked)
}

/// Checks one tensor: limits, type, bounds, and that its shape fits its bytes.
fn check(name: &str, raw: &RawTensor, available: u64) -> Result<Dtype, Problem> {
    let limit = |what, found: usize, limit: usize| Problem::Limit {
        tensor: name.chars().take(64).collect(),
        what,
        found: found as u64,
        limit: limit as u64,
    };
    if name.len() > limits::NAME_BYTES {
        return Err(limit("name length", name.len(), limits::NAME_BYTES));
    }
    if raw.shape.len() > limits::RANK {
        return Err(limit("rank", raw.shape.len(), limits::RANK));
    }
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

/// Bytes that a tensor of that type and shape has; `None` where that overflows or is no whole number.
pub(crate) fn byte_length(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    // Beside a zero the others still have to fit: then no product of some of them overflows either.
    let product = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)))?;
    let weights = if shape.contains(&0) { 0 } else { product };
    product.checked_mul(dtype.bitsize() as u64)?;
    let bits = weights.checked_mul(dtype.bitsize() as u64)?;
    (bits % 8 == 0 && bits / 8 <= i64::MAX as u64).then_some(bits / 8)
}

/// What [`byte_length`] says, in words.
pub(crate) fn needs(dtype: Dtype, shape: &[u64]) -> String {
    let bits = shape.iter().try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d));
    match (byte_length(dtype, shape), bits) {
        (Some(bytes), _) => format!("{bytes} bytes"),
        (None, Some(bits)) if bits % 8 != 0 => format!("{bits} bits, no whole number of bytes"),
        (None, _) => "more than 2^63 bytes".to_owned(),
    }
}

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
                        header.metadata = map.next_value::<UniqueMap>()?.0;
                    } else {
                        header.tensors.push((key, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A map in which no key stands twice.
#[derive(Debug, Default)]
pub(crate) struct UniqueMap<V = String>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<V>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if entries.insert(key.clone(), value).is_some() {
                        return Err(duplicate(&key));
                    }
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

const DUPLICATE: &str = "duplicate key ";

fn duplicate<E: serde::de::Error>(key: &str) -> E {
    E::custom(format_args!("{DUPLICATE}{key}\u{0}"))
}

/// serde_json's error, with the duplicate key taken out again.
pub(crate) fn json_problem(error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    match text.strip_prefix(DUPLICATE).and_then(|rest| rest.split_once('\u{0}')) {
        Some((key, _)) => Problem::DuplicateKey(key.to_owned()),
        None => Problem::Header(text),
    }
}

/// Used by the index reader, whose maps have the same form.
impl<V> UniqueMap<V> {
    pub fn deserialize_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
    where
        V: Deserialize<'de>,
    {
        Ok(Self::deserialize(deserializer)?.0)
    }
}
