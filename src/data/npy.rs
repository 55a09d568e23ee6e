//! The header of a `.npy` file: a type, an order, a shape. Not here: what the array means.
//!
//! ```text
//! "\x93NUMPY", major, minor, length (u16, or u32 from version 2 on, little endian),
//! "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }" and blanks, then the values
//! ```
//! Source: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::ops::Range;

use crate::dtype::{Dtype, byte_length};
use crate::error::DataProblem;
use crate::limits::NPY_HEADER_BYTES;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The types that are read, as the header writes them.
const TYPES: [(&str, Dtype); 7] = [
    ("|u1", Dtype::U8),
    ("<u1", Dtype::U8),
    ("<f2", Dtype::F16),
    ("<f4", Dtype::F32),
    ("<f8", Dtype::F64),
    ("<i4", Dtype::I32),
    ("<i8", Dtype::I64),
];

/// What a file says of itself; its bytes are really there, and no more.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Where the values are: little endian, C order.
    pub data: Range<usize>,
}

/// Reads and checks the header of a whole file.
pub(super) fn parse(file: &[u8]) -> Result<Header, DataProblem> {
    let wrong = |expected: &str, found: String| DataProblem::Npy { expected: expected.to_owned(), found };
    let short = |expected: usize| DataProblem::TooShort {
        expected: expected as u64,
        found: file.len() as u64,
        what: "the header".to_owned(),
    };
    let magic = file.get(..6).ok_or_else(|| short(6))?;
    if magic != MAGIC {
        return Err(wrong("\\x93NUMPY at the beginning", format!("\"{}\"", magic.escape_ascii())));
    }
    let &[major, minor] = file.get(6..8).and_then(|v| v.first_chunk()).ok_or_else(|| short(8))?;
    let (length, start) = match major {
        1 => (file.get(8..10).and_then(|b| b.first_chunk()).map(|b| u32::from(u16::from_le_bytes(*b))), 10),
        2 | 3 => (file.get(8..12).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)), 12),
        _ => return Err(wrong("version 1.0, 2.0 or 3.0", format!("version {major}.{minor}"))),
    };
    let length = length.ok_or_else(|| short(start))?;
    if length > NPY_HEADER_BYTES {
        return Err(wrong(&format!("a header of at most {NPY_HEADER_BYTES} bytes"), format!("{length} bytes")));
    }
    let start_of_data = start + length as usize;
    let text = file.get(start..start_of_data).ok_or_else(|| short(start_of_data))?;
    let fields = Parser { rest: text }.dictionary().ok_or_else(|| {
        let shown: String = String::from_utf8_lossy(text).chars().take(80).collect();
        wrong("a header like {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }", shown.trim_end().to_owned())
    })?;
    let dtype = TYPES.iter().find(|(name, _)| *name == fields.descr).map(|(_, dtype)| *dtype);
    let dtype = dtype.ok_or_else(|| {
        let types: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        wrong(&format!("one of the types {}", types.join(", ")), format!("type {}", fields.descr))
    })?;
    if fields.fortran_order {
        return Err(wrong("C order, as of numpy.ascontiguousarray", "Fortran order".to_owned()));
    }
    let data = file.len() - start_of_data;
    let what = format!("{} of {:?}", fields.descr, fields.shape);
    let size = byte_length(dtype, &fields.shape)
        .ok_or_else(|| wrong("less than 2^63 bytes", format!("an array of {what}")))?;
    let expected = (start_of_data as u64).saturating_add(size);
    if (data as u64) < size {
        return Err(DataProblem::TooShort { expected, found: file.len() as u64, what });
    }
    if data as u64 > size {
        return Err(DataProblem::TooLong { expected, what });
    }
    let shape = fields.shape.iter().map(|&d| d as usize).collect();
    Ok(Header { dtype, shape, data: start_of_data..file.len() })
}

/// The three keys of a header.
struct Fields {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// The little of Python's literals that headers consist of; what it gives is `None` at anything else.
struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    /// All there is: a dictionary with each key once, in any order, then blanks.
    fn dictionary(mut self) -> Option<Fields> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.token(b"{").then_some(())?;
        while !self.token(b"}") {
            let key = self.string()?;
            self.token(b":").then_some(())?;
            let again = match key.as_str() {
                "descr" => descr.replace(self.string()?).is_some(),
                "fortran_order" => fortran_order.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => true,
            };
            if again {
                return None;
            }
            if !self.token(b",") {
                self.token(b"}").then_some(())?;
                break;
            }
        }
        self.blanks();
        self.rest.is_empty().then_some(())?;
        Some(Fields { descr: descr?, fortran_order: fortran_order?, shape: shape? })
    }

    fn blanks(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    /// Takes that text, behind blanks, if it comes next.
    fn token(&mut self, text: &[u8]) -> bool {
        self.blanks();
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Printable ASCII in either quotes, without escapes.
    fn string(&mut self) -> Option<String> {
        self.blanks();
        let (&quote, rest) = self.rest.split_first().filter(|(quote, _)| b"'\"".contains(quote))?;
        let length = rest.iter().position(|byte| *byte == quote)?;
        let text = &rest[..length];
        self.rest = &rest[length + 1..];
        let plain = text.iter().all(|byte| (b' '..=b'~').contains(byte) && *byte != b'\\');
        plain.then(|| String::from_utf8_lossy(text).into_owned())
    }

    fn boolean(&mut self) -> Option<bool> {
        if self.token(b"True") { Some(true) } else { self.token(b"False").then_some(false) }
    }

    /// Numbers in parentheses; a single one has a comma behind it.
    fn tuple(&mut self) -> Option<Vec<u64>> {
        let mut numbers = Vec::new();
        self.token(b"(").then_some(())?;
        while !self.token(b")") {
            numbers.push(self.number()?);
            if !self.token(b",") {
                self.token(b")").then_some(())?;
                return (numbers.len() > 1).then_some(numbers);
            }
        }
        Some(numbers)
    }

    fn number(&mut self) -> Option<u64> {
        self.blanks();
        let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest;
        std::str::from_utf8(number).ok()?.parse().ok()
    }
}
