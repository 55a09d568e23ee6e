//! Protobuf's wire format: a field is a varint `number << 3 | type` and a value; a message is fields in any order.
//! Not here: what the numbers mean.

use std::ops::Range;

/// A field of a message, and where all of it lies in the file.
#[derive(Debug, Clone)]
pub struct Field {
    /// Which field it is.
    pub number: u64,
    /// Its value.
    pub value: Value,
    /// Its bytes in the file, number and length included.
    pub range: Range<usize>,
}

/// A value; bytes as where they lie in the file.
#[derive(Debug, Clone)]
pub enum Value {
    /// An integer, as its 64 bits; negative ones are in two's complement.
    Varint(u64),
    /// Eight bytes, little-endian.
    Fixed64(u64),
    /// Four bytes, little-endian.
    Fixed32(u32),
    /// A string, a message or packed numbers.
    Bytes(Range<usize>),
}

impl Field {
    /// The bytes of a string, a message or packed numbers.
    ///
    /// # Errors
    /// A value that is no bytes.
    pub fn bytes(&self) -> Result<Range<usize>, String> {
        match &self.value {
            Value::Bytes(range) => Ok(range.clone()),
            other => Err(format!("field {} at byte {} is {other:?}, should have bytes", self.number, self.range.start)),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// A value that is none.
    pub fn int(&self) -> Result<i64, String> {
        match self.value {
            Value::Varint(value) => Ok(value.cast_signed()),
            ref other => {
                Err(format!("field {} at byte {} is {other:?}, should be a number", self.number, self.range.start))
            }
        }
    }

    /// A string.
    ///
    /// # Errors
    /// A value that is no bytes, or not UTF-8.
    pub fn text<'f>(&self, file: &'f [u8]) -> Result<&'f str, String> {
        std::str::from_utf8(&file[self.bytes()?])
            .map_err(|_| format!("the string in field {} at byte {} is not UTF-8", self.number, self.range.start))
    }
}

/// The fields of the message in that range of a file, one after another; after an error there are no more.
#[derive(Debug, Clone)]
pub struct Fields<'f> {
    file: &'f [u8],
    left: Range<usize>,
}

impl<'f> Fields<'f> {
    /// Those of the message in that range.
    ///
    /// # Panics
    /// When the file is shorter.
    pub fn new(file: &'f [u8], message: Range<usize>) -> Self {
        assert!(message.start <= message.end && message.end <= file.len(), "{message:?}");
        Self { file, left: message }
    }

    /// The numbers in the packed bytes of a repeated field.
    ///
    /// # Panics
    /// When the file is shorter.
    pub fn packed_varints(file: &'f [u8], range: Range<usize>) -> impl Iterator<Item = Result<u64, String>> + 'f {
        let mut fields = Self::new(file, range);
        std::iter::from_fn(move || {
            (!fields.left.is_empty()).then(|| fields.varint().inspect_err(|_| fields.left.start = fields.left.end))
        })
    }

    fn varint(&mut self) -> Result<u64, String> {
        let start = self.left.start;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first().ok_or_else(String::new)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(format!("the number at byte {start} is longer than ten bytes"))
    }

    fn take(&mut self, length: usize) -> Result<&'f [u8], String> {
        let (start, left) = (self.left.start, self.left.len());
        if length > left {
            return Err(format!("{length} bytes should follow at byte {start}, {left} are there; was it cut off?"));
        }
        self.left.start += length;
        Ok(&self.file[start..start + length])
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    fn field(&mut self) -> Result<Field, String> {
        let start = self.left.start;
        let tag = self.varint()?;
        let (number, kind) = (tag >> 3, tag & 7);
        if number == 0 || number >= 1 << 29 {
            return Err(format!("byte {start} begins a field of number {number}, which there is none of"));
        }
        let value = match kind {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                self.take(length)?;
                Value::Bytes(self.left.start - length..self.left.start)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.fixed()?)),
            other => return Err(format!("byte {start} begins a field of wire type {other}, which is not in use")),
        };
        Ok(Field { number, value, range: start..self.left.start })
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.left.start = self.left.end;
        }
        Some(field)
    }
}

/// A message that is put together, field by field.
#[derive(Debug, Clone, Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    /// Appends a number without the field that it belongs to.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Adds a field that is a number.
    pub fn int(mut self, number: u64, value: i64) -> Self {
        self.varint(number << 3);
        self.varint(value.cast_unsigned());
        self
    }

    /// Adds a field that is bytes or a string.
    pub fn bytes(mut self, number: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.begin(number, value.len() as u64);
        self.0.extend(value);
        self
    }

    /// Appends what stands in front of a field of that many bytes, which are to follow.
    pub fn begin(&mut self, number: u64, length: u64) {
        self.varint(number << 3 | 2);
        self.varint(length);
    }

    /// Adds a field that is a message.
    pub fn message(self, number: u64, message: &Self) -> Self {
        self.bytes(number, &message.0)
    }
}

/// The string in a field of a message; empty where there is none. Of several the last counts.
pub(super) fn text_in(file: &[u8], message: Range<usize>, number: u64) -> Result<&str, String> {
    let mut text = "";
    for field in Fields::new(file, message) {
        let field = field?;
        if field.number == number {
            text = field.text(file)?;
        }
    }
    Ok(text)
}
