//! The header of a `.npy` file: a type, an order, a shape. Not here: what the array means.
//!
//! ```text
//! "\x93NUMPY", major, minor, length (u16, or u32 from version 2 on, little endian),
//! "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }" and blanks, then the values
//! ```
//! Source: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use crate::dtype::{Dtype, byte_length};
use crate::error::DataProblem;
use crate::limits::NPY_HEADER_BYTES;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The types that are read: as numpy writes them, by its letter, by name. Not `l` and `L`, which are of 4 or 8 bytes, as the
/// machine has it.
const TYPES: [(&str, &str, &str, Dtype); 12] = [
    ("|u1", "B", "uint8", Dtype::U8),
    ("<f2", "e", "float16", Dtype::F16),
    ("<f4", "f", "float32", Dtype::F32),
    ("<f8", "d", "float64", Dtype::F64),
    ("|i1", "b", "int8", Dtype::I8),
    ("<i2", "h", "int16", Dtype::I16),
    ("<i4", "i", "int32", Dtype::I32),
    ("<i8", "q", "int64", Dtype::I64),
    ("<u2", "H", "uint16", Dtype::U16),
    ("<u4", "I", "uint32", Dtype::U32),
    ("<u8", "Q", "uint64", Dtype::U64),
    ("|b1", "?", "bool", Dtype::BOOL),
];

/// The type that a header calls so. `=`, `|` and no sign at all are the order of the machine: little-endian, as those are
/// that write such headers.
fn type_of(descr: &str) -> Option<Dtype> {
    let bare = descr.strip_prefix(['<', '=', '|']).unwrap_or(descr);
    let is = |code: &str, letter, name| bare == &code[1..] || bare == letter || descr == name;
    TYPES.iter().find(|&&(code, letter, name, _)| is(code, letter, name)).map(|&(.., dtype)| dtype)
}

/// What the header of a `.npy` file says.
#[derive(Debug, Clone, PartialEq)]
pub struct NpyHeader {
    /// The type of its values, little endian.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Whether the first dimension is the one whose neighbours are neighbours in the file.
    pub fortran_order: bool,
    /// Bytes of the header; the values begin behind it.
    pub len: usize,
    /// Bytes of the values.
    pub data_len: u64,
}

impl NpyHeader {
    /// The most bytes that a header has, with what stands in front of it.
    pub const MAX: usize = 12 + NPY_HEADER_BYTES as usize;

    /// Whether a file that begins so is a `.npy` file.
    pub fn is_npy(file: &[u8]) -> bool {
        file.starts_with(MAGIC)
    }

    /// Reads the header that `file` begins with. Whether the values are there is not looked at.
    ///
    /// # Errors
    /// No such header, one over the limit, or one of a type that is not read.
    pub fn parse(file: &[u8]) -> Result<Self, DataProblem> {
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
            wrong(
                "a header like {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }",
                shown.trim_end().to_owned(),
            )
        })?;
        let dtype = type_of(&fields.descr).ok_or_else(|| {
            let types: Vec<&str> = TYPES.iter().map(|(code, ..)| *code).collect();
            let objects = if fields.descr.contains('O') { "no pickled objects but " } else { "" };
            wrong(&format!("{objects}one of the types {}", types.join(", ")), format!("type {}", fields.descr))
        })?;
        let size = byte_length(dtype, &fields.shape).ok_or_else(|| {
            wrong("less than 2^63 bytes", format!("an array of {} of {:?}", fields.descr, fields.shape))
        })?;
        let shape = fields.shape.iter().map(|&d| d as usize).collect();
        Ok(Self { dtype, shape, fortran_order: fields.fortran_order, len: start_of_data, data_len: size })
    }

    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// As [`NpyHeader::parse`]; or a file with fewer bytes of values, or more.
    pub fn of_file(file: &[u8]) -> Result<Self, DataProblem> {
        let header = Self::parse(file)?;
        let descr = TYPES.iter().find(|(.., dtype)| *dtype == header.dtype).map_or("", |(code, ..)| code);
        let what = format!("{descr} of {:?}", header.shape);
        let expected = (header.len as u64).saturating_add(header.data_len);
        match file.len() as u64 {
            found if found < expected => Err(DataProblem::TooShort { expected, found, what }),
            found if found > expected => Err(DataProblem::TooLong { expected, what }),
            _ => Ok(header),
        }
    }
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

    /// Python 2 wrote some with an L behind them.
    fn number(&mut self) -> Option<u64> {
        self.blanks();
        let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest.strip_prefix(b"L").unwrap_or(rest);
        std::str::from_utf8(number).ok()?.parse().ok()
    }
}
