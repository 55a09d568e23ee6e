//! The index of a `.twn` file: what its JSON says. Fields stand in the order of their keys, so that the JSON comes out
//! sorted. Not here: the rules that it has to keep (`index/check.rs`), any I/O.

mod check;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Granularity;
use super::stats::{CalibrationEntry, Int8Stats, Stats};
use crate::dtype::{Dtype, byte_length};
use crate::error::ContainerProblem as Problem;
use crate::pack::Encoding;
use crate::strict_json::{UniqueMap, named, object, objects, optional_object};
use crate::ternarize::ScaleDtype;

/// Everything about a `.twn` file but the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// The checkpoint's own metadata, kept whole.
    #[serde(deserialize_with = "UniqueMap::deserialize_map")]
    pub metadata: BTreeMap<String, String>,
    /// Who wrote the file.
    #[serde(deserialize_with = "object")]
    pub producer: Producer,
    /// Every tensor, in the order of its sections in the file.
    #[serde(deserialize_with = "objects")]
    pub tensors: Vec<TensorEntry>,
}

/// The program that wrote a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Producer {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Producer {
    /// This crate.
    pub fn this() -> Self {
        Self { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "optional_object")]
    dense: Option<Box<DenseEntry>>,
    /// The checkpoint's data type.
    #[serde(deserialize_with = "named")]
    pub dtype: Dtype,
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "optional_object")]
    int8: Option<Box<Int8Entry>>,
    /// The tensor's name, unique in the file.
    pub name: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "optional_object")]
    ternary: Option<TernaryEntry>,
}

/// What a tensor became.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Body<'a> {
    /// Kept bit by bit.
    Dense(&'a DenseEntry),
    /// Codes of 8 bits and scales.
    Int8(&'a Int8Entry),
    /// Codes and scales.
    Ternary(&'a TernaryEntry),
}

/// A tensor kept bit by bit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenseEntry {
    /// Why it is not ternary.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// What its values were changed by, where they are not the checkpoint's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub repaired: Option<String>,
    /// Its bytes: little-endian, C order.
    #[serde(deserialize_with = "object")]
    pub section: Section,
}

/// A tensor as codes of 8 bits and one scale per filter: W ≈ α·Q.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Int8Entry {
    /// The filter axis, as in [`TernaryEntry::axis`].
    pub axis: u64,
    /// What was known of the inputs, where the run was given any, and the outputs' error; codes and scales
    /// do not depend on it.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "optional_object")]
    pub calibration: Option<Box<CalibrationEntry>>,
    /// The codes −127 to 127, two's complement: `[filters][weights per filter]`.
    #[serde(deserialize_with = "object")]
    pub codes: Section,
    /// Why it became that.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// The type of the scales.
    #[serde(deserialize_with = "named")]
    pub scale_dtype: ScaleDtype,
    /// The scales: `[filters]`.
    #[serde(deserialize_with = "object")]
    pub scales: Section,
    /// What a report needs; not needed to decode.
    #[serde(deserialize_with = "object")]
    pub stats: Int8Stats,
}

/// A tensor as codes and scales: W ≈ Σ_p α_p·T_p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TernaryEntry {
    /// The filter axis: filter i holds the weights with index i along it, the other axes in their order.
    pub axis: u64,
    /// What was known of the inputs, where the run was given any; not needed to decode.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "optional_object")]
    pub calibration: Option<Box<CalibrationEntry>>,
    /// The codes: `[planes][filters][bytes per filter]`.
    #[serde(deserialize_with = "object")]
    pub codes: Section,
    /// How codes are packed.
    #[serde(deserialize_with = "named")]
    pub encoding: Encoding,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// How thresholds and scales were chosen; not needed to decode.
    #[serde(deserialize_with = "object")]
    pub method: Arc<MethodEntry>,
    /// How many planes, P.
    pub planes: u64,
    /// Why it became that, where a budget decided.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// The type of the scales.
    #[serde(deserialize_with = "named")]
    pub scale_dtype: ScaleDtype,
    /// The scales: `[planes][scales per plane]`.
    #[serde(deserialize_with = "object")]
    pub scales: Section,
    /// Bytes that the tensor had in the checkpoint, where it was ternary there already; else they follow from type
    /// and shape.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_bytes: Option<u64>,
    /// What a report needs; not needed to decode.
    #[serde(deserialize_with = "object")]
    pub stats: Stats,
}

/// A run of bytes in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// CRC-32 (ISO-HDLC) of the bytes.
    pub crc32: u32,
    /// How many bytes; padding does not count.
    pub length: u64,
    /// Where it begins in the file; a multiple of 64.
    pub offset: u64,
}

impl Section {
    /// Its bytes in a file that is mapped whole, and has them.
    pub(super) fn range(self) -> Range<usize> {
        self.offset as usize..(self.offset + self.length) as usize
    }
}

/// A method and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodEntry {
    /// `twn`, `optimal`, …
    pub name: String,
    /// Its parameters by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "UniqueMap::deserialize_map", default)]
    pub parameters: BTreeMap<String, f64>,
}

impl TensorEntry {
    /// A tensor kept bit by bit.
    pub fn dense(name: String, dtype: Dtype, shape: Vec<u64>, entry: DenseEntry) -> Self {
        Self { dense: Some(Box::new(entry)), dtype, int8: None, name, shape, ternary: None }
    }

    /// A tensor of 8-bit codes.
    pub fn int8(name: String, dtype: Dtype, shape: Vec<u64>, entry: Int8Entry) -> Self {
        Self { dense: None, dtype, int8: Some(Box::new(entry)), name, shape, ternary: None }
    }

    /// A ternary tensor.
    pub fn ternary(name: String, dtype: Dtype, shape: Vec<u64>, entry: TernaryEntry) -> Self {
        Self { dense: None, dtype, int8: None, name, shape, ternary: Some(entry) }
    }

    /// Where the bytes of a tensor that is kept are, and what is said of them; `None` for ternary ones.
    pub(crate) fn dense_mut(&mut self) -> Option<&mut DenseEntry> {
        self.dense.as_deref_mut()
    }

    /// Has the method in common with the tensor before where it is the same: thousands of tensors may have it.
    pub(crate) fn share_method(&mut self, last: &mut Option<Arc<MethodEntry>>) {
        let Some(ternary) = &mut self.ternary else { return };
        match last {
            Some(last) if *last == ternary.method => ternary.method = Arc::clone(last),
            _ => *last = Some(Arc::clone(&ternary.method)),
        }
    }

    /// What the tensor became. An index that was checked has exactly one of the three.
    pub fn body(&self) -> Body<'_> {
        match (&self.ternary, &self.int8, &self.dense) {
            (Some(ternary), ..) => Body::Ternary(ternary),
            (None, Some(int8), _) => Body::Int8(int8),
            (None, None, Some(dense)) => Body::Dense(dense),
            (None, None, None) => {
                unreachable!("an entry is made with one of the three, and checked when read")
            }
        }
    }

    /// How many elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// ‖W − Ŵ‖² and ‖W‖²; of a dense tensor 0 and 0.
    pub(crate) fn squared(&self) -> [f64; 2] {
        match self.body() {
            Body::Dense(_) => [0.0; 2],
            Body::Int8(int8) => [int8.stats.squared_error, int8.stats.squared_norm],
            Body::Ternary(ternary) => [ternary.stats.squared_error, ternary.stats.squared_norm],
        }
    }

    /// What was known of the inputs, where the run was given any.
    pub(crate) fn calibration(&self) -> Option<&CalibrationEntry> {
        match self.body() {
            Body::Dense(_) => None,
            Body::Int8(int8) => int8.calibration.as_deref(),
            Body::Ternary(ternary) => ternary.calibration.as_deref(),
        }
    }

    /// Bytes that the tensor had in the checkpoint.
    pub fn source_bytes(&self) -> u64 {
        let ternary = match self.body() {
            Body::Ternary(ternary) => ternary.source_bytes,
            Body::Dense(_) | Body::Int8(_) => None,
        };
        ternary.unwrap_or_else(|| byte_length(self.dtype, &self.shape).unwrap_or_default())
    }

    /// Its sections, in the order of the file.
    pub fn sections(&self) -> impl Iterator<Item = (&'static str, Section)> {
        let (first, second) = match self.body() {
            Body::Dense(dense) => (("data", dense.section), None),
            Body::Int8(int8) => (("codes", int8.codes), Some(("scales", int8.scales))),
            Body::Ternary(ternary) => (("codes", ternary.codes), Some(("scales", ternary.scales))),
        };
        std::iter::once(first).chain(second)
    }

    /// (filters, weights per filter) of a tensor with that filter axis.
    pub(crate) fn filters(&self, axis: u64) -> (u64, u64) {
        let axis = axis as usize;
        let others = self.shape.iter().enumerate().filter(|(i, _)| *i != axis);
        (self.shape[axis], others.map(|(_, d)| d).product())
    }
}

impl Index {
    /// As stored: keys sorted, no white space, the same bytes for the same content. In parts, one for each tensor: all
    /// of it may be more than there is to be in memory.
    pub(crate) fn json(&self) -> impl Iterator<Item = Vec<u8>> {
        let Self { metadata, producer, .. } = self;
        let head = Self { metadata: metadata.clone(), producer: producer.clone(), tensors: Vec::new() };
        let mut head = to_json(&head);
        let end = head.split_off(head.len() - b"]}".len());
        let tensors = self.tensors.iter().enumerate().map(|(i, tensor)| {
            let mut json = to_json(tensor);
            if i > 0 {
                json.insert(0, b',');
            }
            json
        });
        std::iter::once(head).chain(tensors).chain([end])
    }

    /// Bytes of that.
    pub(crate) fn json_length(&self) -> u64 {
        self.json().map(|part| part.len() as u64).sum()
    }

    /// Whether readers would take it, as it comes out of [`Index::json`].
    pub(crate) fn check_readable(&self, index_offset: u64) -> Result<(), Problem> {
        for tensor in &self.tensors {
            let json = to_json(tensor);
            object::<_, TensorEntry>(&mut serde_json::Deserializer::from_slice(&json)).map_err(|e| problem(&e))?;
        }
        self.check(index_offset)
    }

    /// Parses and checks an index whose sections have to end right before `index_offset`.
    pub(crate) fn parse(json: &[u8], index_offset: u64) -> Result<Self, Problem> {
        let mut json = serde_json::Deserializer::from_slice(json);
        let index: Result<Self, _> = object(&mut json).and_then(|index| json.end().map(|()| index));
        let index = index.map_err(|e| problem(&e))?;
        index.check(index_offset)?;
        Ok(index)
    }
}

fn to_json(what: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(what).expect("an index has string keys")
}

fn problem(error: &serde_json::Error) -> Problem {
    let text = error.to_string().replace('\0', "");
    Problem::Index(format!("{text}; pack it again, or update twn-pack if a later one wrote it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One ternary tensor of 2 × 5 weights; its two sections lie at 64 and 128, the index at 192.
    const GOOD: &str = r#"{"metadata":{},"producer":{"name":"n","version":"v"},"tensors":[{"dtype":"F32","name":"w",
        "shape":[2,5],"ternary":{"axis":0,"codes":{"crc32":0,"length":4,"offset":64},"encoding":"t2",
        "granularity":"filter","method":{"name":"m","parameters":{"factor":0.7}},"planes":1,"scale_dtype":"f32",
        "scales":{"crc32":0,"length":8,"offset":128},"stats":{"alpha":{"max":1,"mean":1,"min":1},"negative":1,
        "positive":1,"squared_error":0,"squared_norm":0,"zeros":8}}}]}"#;

    /// Parses it after each text was replaced by the one beside it.
    fn with(changes: &[(&str, &str)]) -> Result<Index, Problem> {
        let mut json = GOOD.to_owned();
        for (from, to) in changes {
            assert!(json.contains(from), "{from}");
            json = json.replacen(from, to, 1);
        }
        Index::parse(json.as_bytes(), 192)
    }

    #[test]
    fn a_good_index_passes() {
        let mut index = with(&[]).unwrap();
        // What is written in parts is what it is as a whole.
        for tensors in [index.tensors.clone(), vec![index.tensors[0].clone(); 3], Vec::new()] {
            index.tensors = tensors;
            assert_eq!(index.json().collect::<Vec<_>>().concat(), to_json(&index));
        }
        with(&[(r#""filter""#, r#""group:7""#)]).unwrap();
    }

    /// A later of two equal keys used to win in silence.
    #[test]
    fn a_parameter_that_stands_twice_is_refused() {
        let error = with(&[(r#""factor":0.7"#, r#""factor":0.7,"factor":0.8"#)]).unwrap_err().to_string();
        assert!(error.contains("duplicate key factor"), "{error}");
    }

    /// A file of 1 KB could claim 2^58 filters of no weights, and `unpack` would walk them all.
    #[test]
    fn a_ternary_tensor_without_weights_is_refused() {
        let error = with(&[
            ("[2,5]", "[288230376151711744,0]"),
            (r#""filter""#, r#""group:7""#),
            (r#""length":4"#, r#""length":0"#),
            (r#""length":8,"offset":128"#, r#""length":0,"offset":64"#),
            (r#""negative":1"#, r#""negative":0"#),
            (r#""positive":1"#, r#""positive":0"#),
            (r#""zeros":8"#, r#""zeros":0"#),
        ]);
        assert!(
            matches!(&error, Err(Problem::Entry { message, .. }) if message.contains("has no weights")),
            "{error:?}"
        );
    }

    /// `unpack` would write a header in which the tensor stands where the metadata belongs.
    #[test]
    fn a_tensor_called_metadata_is_refused() {
        let error = with(&[(r#""name":"w""#, r#""name":"__metadata__""#)]);
        assert!(matches!(&error, Err(Problem::Entry { tensor, .. }) if tensor == "__metadata__"), "{error:?}");
    }
}
