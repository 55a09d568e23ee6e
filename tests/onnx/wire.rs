//! Protobuf, written and read field by field. Not here: models.

pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
    bytes
}

pub fn int(number: u64, value: i64) -> Vec<u8> {
    [varint(number * 8), varint(value as u64)].concat()
}

pub fn bytes(number: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    [varint(number * 8 + 2), varint(value.as_ref().len() as u64), value.as_ref().to_vec()].concat()
}

pub fn float(number: u64, value: f32) -> Vec<u8> {
    [varint(number * 8 + 5), value.to_le_bytes().to_vec()].concat()
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Int(i64),
    Bytes(Vec<u8>),
}

pub fn fields(mut bytes: &[u8]) -> Vec<(u64, Value)> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                return value;
            }
        }
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes);
        let value = match tag & 7 {
            0 => Value::Int(number(&mut bytes) as i64),
            kind => {
                let length = match kind {
                    2 => number(&mut bytes) as usize,
                    5 => 4,
                    1 => 8,
                    other => panic!("{other}"),
                };
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Value::Bytes(value.to_vec())
            }
        };
        fields.push((tag >> 3, value));
    }
    fields
}

pub fn all(message: &[u8], number: u64) -> Vec<Vec<u8>> {
    let found = fields(message).into_iter().filter(|(n, _)| *n == number);
    found.map(|(_, value)| if let Value::Bytes(bytes) = value { bytes } else { panic!("{value:?}") }).collect()
}

pub fn ints(message: &[u8], number: u64) -> Vec<i64> {
    let found = fields(message).into_iter().filter(|(n, _)| *n == number);
    found.map(|(_, value)| if let Value::Int(int) = value { int } else { panic!("{value:?}") }).collect()
}

pub fn text(message: &[u8], number: u64) -> String {
    all(message, number).pop().map_or_else(String::new, |bytes| String::from_utf8(bytes).unwrap())
}

pub fn texts(message: &[u8], number: u64) -> Vec<String> {
    all(message, number).into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}
