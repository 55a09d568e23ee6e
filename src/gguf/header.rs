//! What stands in front of the data, as it is read and as it is written. Versions 2 and 3, little-endian. Nothing in
//! it is trusted: counts reserve nothing, lengths are checked against the bytes that are there. Not here: the data.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use super::{ALIGNMENT, Kind, MAGIC, RANK, Type};
use crate::limits;

/// What stands in front of the data.
#[derive(Debug)]
pub struct Header<'a> {
    /// 2 or 3.
    pub version: u32,
    /// What every tensor begins at a multiple of.
    pub alignment: u64,
    /// In the order of the file.
    pub keys: Vec<Key<'a>>,
    /// In the order of the file, of their infos and of their data.
    pub tensors: Vec<Tensor<'a>>,
}

/// A key and its value.
#[derive(Debug)]
pub struct Key<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value.
    pub value: Value<'a>,
    /// Both, as they stand in the file.
    pub bytes: &'a [u8],
}

/// A value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// An integer of a type without a sign.
    Unsigned(u64),
    /// An integer of a type with a sign.
    Signed(i64),
    /// Single precision.
    F32(f32),
    /// Double precision.
    F64(f64),
    /// Yes or no.
    Bool(bool),
    /// Not necessarily UTF-8.
    Text(&'a [u8]),
    /// So many elements.
    Array(u64),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unsigned(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::F32(value) => value.fmt(f),
            Self::F64(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Text(value) => String::from_utf8_lossy(value).fmt(f),
            Self::Array(count) => write!(f, "an array of {count}"),
        }
    }
}

/// A tensor.
#[derive(Debug)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// The type of its elements.
    pub kind: &'static Type,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// Larger alignments than any file has would be a way to ask for padding without end.
const LARGEST_ALIGNMENT: u64 = 1 << 16;

impl<'a> Header<'a> {
    /// Reads and checks the header of a file. Touches no data.
    ///
    /// # Errors
    /// What is wrong with it, and a way out.
    pub fn parse(file: &'a [u8]) -> Result<Self, String> {
        let mut bytes = Cursor { file, at: 0 };
        if bytes.take(4, "the magic number")? != MAGIC {
            return Err("it does not begin with `GGUF`; is this really a GGUF file?".to_owned());
        }
        let version = bytes.u32("the version")?;
        match version {
            2 | 3 => {}
            1 => return Err("version 1, which nobody writes any more, expected 2 or 3; convert the model again".into()),
            0x0100_0000..=0x0300_0000 if version % 0x0100_0000 == 0 => {
                return Err(
                    "it is big-endian; convert the model again, or turn a copy round with gguf-convert-endian of the \
                            package gguf, which rewrites the file in place and knows no TQ1_0, TQ2_0 or Q2_0"
                        .into(),
                );
            }
            _ => return Err(format!("version {version}, expected 2 or 3; is twn-pack up to date?")),
        }
        let (tensors, keys) = (bytes.u64("the number of tensors")?, bytes.u64("the number of keys")?);
        let keys = parse_keys(&mut bytes, keys)?;
        let alignment = match keys.iter().find(|key| key.name == "general.alignment").map(|key| key.value) {
            None => ALIGNMENT,
            Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() && alignment <= LARGEST_ALIGNMENT => {
                alignment
            }
            Some(value) => {
                return Err(format!(
                    "general.alignment is {value}, expected a power of two of at most {LARGEST_ALIGNMENT}"
                ));
            }
        };
        let infos = parse_tensors(&mut bytes, tensors)?;
        let data = bytes.at as u64;
        let tensors = place(file, infos, data.next_multiple_of(alignment), alignment)?;
        Ok(Self { version, alignment, keys, tensors })
    }

    /// The value of that key.
    pub fn value(&self, name: &str) -> Option<Value<'a>> {
        self.keys.iter().find(|key| key.name == name).map(|key| key.value)
    }

    /// The text of that key, where it is text.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        match self.value(name)? {
            Value::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The count of that key, where it is one.
    pub fn count(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Unsigned(count) => Some(count),
            Value::Signed(count) => count.try_into().ok(),
            _ => None,
        }
    }
}

fn parse_keys<'a>(bytes: &mut Cursor<'a>, count: u64) -> Result<Vec<Key<'a>>, String> {
    let (mut keys, mut names) = (Vec::new(), BTreeSet::new());
    for i in 0..count {
        let begin = bytes.at;
        let name = bytes.name(&format!("the name of key {i} of {count}"))?;
        if !names.insert(name) {
            return Err(format!("key `{name}` stands twice; readers differ in which they take, so remove one"));
        }
        let kind = bytes.u32(name)?;
        let value = bytes.value(kind, name)?;
        keys.push(Key { name, value, bytes: &bytes.file[begin..bytes.at] });
    }
    Ok(keys)
}

/// A tensor before its place is known.
struct Info<'a> {
    name: &'a str,
    shape: Vec<u64>,
    kind: &'static Type,
    offset: u64,
}

fn parse_tensors<'a>(bytes: &mut Cursor<'a>, count: u64) -> Result<Vec<Info<'a>>, String> {
    let (mut infos, mut names) = (Vec::new(), BTreeSet::new());
    for i in 0..count {
        let name = bytes.name(&format!("the name of tensor {i} of {count}"))?;
        let shown: String = name.chars().take(64).collect();
        if !names.insert(name) {
            return Err(format!("tensor `{shown}` stands twice; remove one"));
        }
        let rank = bytes.u32(name)? as usize;
        if rank > RANK {
            return Err(format!("tensor `{shown}`: rank {rank} is over the format's limit of {RANK}"));
        }
        let mut shape = (0..rank).map(|_| bytes.u64(name)).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let id = bytes.u32(name)?;
        let kind = Type::by_id(id).ok_or_else(|| unknown_type(&shown, id))?;
        infos.push(Info { name, shape, kind, offset: bytes.u64(name)? });
    }
    Ok(infos)
}

fn unknown_type(tensor: &str, id: u32) -> String {
    let advice = match id {
        36..=38 => "bitnet.cpp's own fork uses that number; take the Hugging Face checkpoint of the model instead",
        134 | 135 | 142 | 143 => "a fork of llama.cpp uses that number; convert the model with llama.cpp itself",
        _ => "update twn-pack if the type is newer",
    };
    format!("tensor `{tensor}`: type {id}, which ggml does not have; {advice}")
}

/// Where the tensors lie: one behind the other, each padded.
fn place<'a>(file: &[u8], infos: Vec<Info<'a>>, data: u64, alignment: u64) -> Result<Vec<Tensor<'a>>, String> {
    let mut offset = 0u64;
    let q2_0 = infos.iter().any(|info| matches!(info.kind.kind, Kind::Ternary(super::Block::Q2_0)));
    let place = |Info { name, shape, kind, offset: found }: Info<'a>| {
        let wrong = |message: String| format!("tensor `{}`: {message}", name.chars().take(64).collect::<String>());
        let length = kind.length(&shape).map_err(wrong)?;
        if found != offset {
            let advice = if q2_0 {
                "is it from a fork whose type 42 has groups of 128? Take one of llama.cpp itself"
            } else {
                "convert the model again"
            };
            return Err(wrong(format!("offset {found}, expected {offset}, where the one before ends; {advice}")));
        }
        let end = data.checked_add(offset).and_then(|begin| begin.checked_add(length));
        let end = end.filter(|&end| end <= file.len() as u64).ok_or_else(|| {
            wrong(format!(
                "{length} bytes at {offset} of the data, the file has {}; was it cut off?",
                (file.len() as u64).saturating_sub(data)
            ))
        })?;
        let range = (end - length) as usize..end as usize;
        // `end` lies in the file, so that this cannot overflow.
        offset = (offset + length).next_multiple_of(alignment);
        Ok(Tensor { name, shape, kind, range })
    };
    infos.into_iter().map(place).collect()
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: u64, of: &str) -> Result<&'a [u8], String> {
        let of = || of.chars().take(64).collect::<String>();
        let end = (self.at as u64).checked_add(length).filter(|&end| end <= limits::HEADER_BYTES).ok_or_else(|| {
            format!(
                "{}: {length} bytes at {}, over the limit of {} for a header; is the file damaged?",
                of(),
                self.at,
                limits::HEADER_BYTES
            )
        })?;
        let bytes = self.file.get(self.at..end as usize).ok_or_else(|| {
            format!("{}: {length} bytes at {}, the file has {}; was it cut off?", of(), self.at, self.file.len())
        })?;
        self.at = end as usize;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, of: &str) -> Result<[u8; N], String> {
        let bytes = self.take(N as u64, of)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    fn u32(&mut self, of: &str) -> Result<u32, String> {
        self.array(of).map(u32::from_le_bytes)
    }

    fn u64(&mut self, of: &str) -> Result<u64, String> {
        self.array(of).map(u64::from_le_bytes)
    }

    fn text(&mut self, of: &str) -> Result<&'a [u8], String> {
        let length = self.u64(of)?;
        self.take(length, of)
    }

    fn name(&mut self, of: &str) -> Result<&'a str, String> {
        let name = self.text(of)?;
        std::str::from_utf8(name).map_err(|_| format!("{of} is not UTF-8; is the file damaged?"))
    }

    fn value(&mut self, kind: u32, of: &str) -> Result<Value<'a>, String> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(of)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(of)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(of)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(of)?).into()),
            4 => Value::Unsigned(self.u32(of)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(of)?).into()),
            6 => Value::F32(f32::from_le_bytes(self.array(of)?)),
            7 => Value::Bool(self.array::<1>(of)? != [0]),
            8 => Value::Text(self.text(of)?),
            9 => Value::Array(self.elements(of, 0)?),
            10 => Value::Unsigned(self.u64(of)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(of)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(of)?)),
            _ => return Err(format!("key `{of}`: type {kind}, which the format does not have; is the file damaged?")),
        })
    }

    /// Goes over an array; returns how many elements it has.
    fn elements(&mut self, of: &str, depth: usize) -> Result<u64, String> {
        /// Arrays of arrays, at most.
        const DEPTH: usize = 8;
        let (kind, count) = (self.u32(of)?, self.u64(of)?);
        match (scalar_bytes(kind), kind) {
            (Some(size), _) => drop(self.take(count.saturating_mul(size), of)?),
            // Each string takes eight bytes at least, each array twelve, so that the count cannot run on for long.
            (None, 8) => (0..count).try_for_each(|_| self.text(of).map(drop))?,
            (None, 9) if depth < DEPTH => (0..count).try_for_each(|_| self.elements(of, depth + 1).map(drop))?,
            (None, 9) => return Err(format!("key `{of}`: more than {DEPTH} arrays inside each other; remove the key")),
            _ => {
                return Err(format!(
                    "key `{of}`: an array of type {kind}, which the format does not have; is the file damaged?"
                ));
            }
        }
        Ok(count)
    }
}

fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// A key and its number, as they stand in a file.
pub fn number_pair(name: &str, number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    text(name, &mut bytes);
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes
}

/// A key and its text, as they stand in a file.
pub fn text_pair(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    text(name, &mut bytes);
    bytes.extend(8u32.to_le_bytes());
    text(value, &mut bytes);
    bytes
}

/// What the header says of a tensor; the shape is outermost dimension first.
pub fn write_tensor(name: &str, shape: &[u64], kind: &Type, offset: u64, bytes: &mut Vec<u8>) {
    text(name, bytes);
    bytes.extend((shape.len() as u32).to_le_bytes());
    shape.iter().rev().for_each(|dimension| bytes.extend(dimension.to_le_bytes()));
    bytes.extend(kind.id.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
}

fn text(text: &str, bytes: &mut Vec<u8>) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
