//! A tensor of a model: its name, type and shape, and where its data are. Not here: the files beside a model
//! ([`super::Externals`]), what uses a tensor.

use std::ops::Range;

use super::data_type;
use super::wire::{Field, Fields, Value, text_in};

/// A tensor of the graph.
#[derive(Debug)]
pub struct Initializer<'f> {
    /// Its name, which is not empty.
    pub name: &'f str,
    /// Its shape, outermost dimension first.
    pub dims: Vec<u64>,
    /// One of [`data_type`](super::data_type), or another number.
    pub data_type: i32,
    /// Where its data are.
    pub data: Data<'f>,
    /// Its message in the file.
    pub message: Range<usize>,
    /// The same with what stands in front of it.
    pub field: Range<usize>,
}

/// Where a tensor's data are.
#[derive(Debug, Clone)]
pub enum Data<'f> {
    /// In the file, little-endian.
    Here(Range<usize>),
    /// In a file beside it.
    External {
        /// The file's path from the model's directory; [`Externals`](super::Externals) checks it.
        location: &'f str,
        /// Where they begin.
        offset: u64,
        /// How many bytes, where it says so.
        length: Option<u64>,
    },
    /// As numbers in fields of their own, which have to be decoded.
    Fields,
}

impl<'f> Initializer<'f> {
    pub(super) fn parse(file: &'f [u8], field: &Field) -> Result<Self, String> {
        let message = field.bytes()?;
        let mut initializer = Self {
            name: "",
            dims: Vec::new(),
            data_type: 0,
            data: Data::Here(message.start..message.start),
            message: message.clone(),
            field: field.range.clone(),
        };
        let (mut external, mut entries) = (false, Vec::new());
        // The fields that hold data, and whether their bytes are the little-endian values.
        let (mut holders, mut packed, mut found) = (0usize, None, Vec::new());
        for field in Fields::new(file, message) {
            let field = field?;
            let holds = !matches!(&field.value, Value::Bytes(range) if range.is_empty());
            if holds && matches!(field.number, 3..=7 | 9..=11) && !found.contains(&field.number) {
                found.push(field.number);
            }
            match (field.number, &field.value) {
                (1, _) => push_dims(file, &field, &mut initializer.dims)?,
                (2, _) => initializer.data_type = i32::try_from(field.int()?).unwrap_or_default(),
                (8, _) => initializer.name = field.text(file)?,
                (14, _) => external = field.int()? == 1,
                // location, offset, length, checksum.
                (13, _) if entries.len() < 16 => entries.push(field.bytes()?),
                (4 | 9 | 10, Value::Bytes(range)) => {
                    holders += 1;
                    packed = Some(range.clone());
                }
                (4..=7 | 9..=11, _) => {
                    holders += 2;
                }
                _ => {}
            }
        }
        if initializer.name.is_empty() {
            return Err(format!("the tensor at byte {} has no name", initializer.field.start));
        }
        let name = initializer.name;
        if let Some(&negative) = initializer.dims.iter().find(|&&dim| dim > i64::MAX as u64) {
            return Err(format!("tensor `{name}`: it has a dimension of {}", negative.cast_signed()));
        }
        if let (false, Some(own)) = (external, data_field(initializer.data_type))
            && ![&[][..], &[9][..], &[own][..]].contains(&&found[..])
        {
            let found: Vec<_> = found.into_iter().map(field_name).collect();
            return Err(format!(
                "tensor `{name}`: its data are in {}, those of {} should be in {} or raw_data alone; save the model again",
                found.join(" and "),
                super::type_name(initializer.data_type),
                field_name(own)
            ));
        }
        initializer.data = match (external, holders, packed) {
            (true, ..) => {
                let (mut location, mut offset, mut length) = ("", 0, None);
                for entry in entries {
                    let (key, value) = (text_in(file, entry.clone(), 1)?, text_in(file, entry, 2)?);
                    let number = || {
                        value.parse().map_err(|_| format!("tensor `{name}`: {key} is {value:?}, should be a number"))
                    };
                    match key {
                        "location" => location = value,
                        "offset" => offset = number()?,
                        "length" => length = Some(number()?),
                        _ => {}
                    }
                }
                Data::External { location, offset, length }
            }
            (false, 0, _) => initializer.data,
            (false, 1, Some(range)) => Data::Here(range),
            _ => Data::Fields,
        };
        Ok(initializer)
    }

    /// How many elements; `None` where that overflows.
    pub fn elements(&self) -> Option<u64> {
        let product = self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)))?;
        Some(if self.dims.contains(&0) { 0 } else { product })
    }

    /// Appends what its fields of numbers hold, little-endian.
    ///
    /// # Errors
    /// Fields that hold no numbers of its type, or that cannot be written.
    pub fn decode(&self, file: &[u8], mut write: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
        let bytes = match self.data_type {
            // A byte of several to each number.
            data_type::INT2 | data_type::UINT2 | data_type::INT4 | data_type::UINT4 => 1,
            other => super::dtype(other).map_or(0, |dtype| dtype.bitsize() / 8),
        };
        for field in Fields::new(file, self.message.clone()) {
            let field = field?;
            match (field.number, &field.value) {
                (4, Value::Fixed32(value)) => write(&value.to_le_bytes())?,
                (10, Value::Fixed64(value)) => write(&value.to_le_bytes())?,
                (4 | 9 | 10, Value::Bytes(range)) => write(&file[range.clone()])?,
                (5 | 7 | 11, Value::Varint(value)) => write(&value.to_le_bytes()[..bytes])?,
                (5 | 7 | 11, Value::Bytes(range)) => {
                    for value in Fields::packed_varints(file, range.clone()) {
                        write(&value?.to_le_bytes()[..bytes])?;
                    }
                }
                (4..=7 | 9..=11, other) => {
                    return Err(format!("tensor `{}`: field {} of it is {other:?}", self.name, field.number));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a tensor is several floats, or codes of several dimensions: no shape, no index and no scalar.
pub(super) fn may_be_weights(file: &[u8], message: Range<usize>) -> Result<bool, String> {
    use data_type::{BOOL, INT32, INT64, STRING, UINT32, UINT64};
    let (mut dims, mut kind) = (Vec::new(), 0);
    for field in Fields::new(file, message) {
        let field = field?;
        match field.number {
            1 => push_dims(file, &field, &mut dims)?,
            2 => kind = i32::try_from(field.int()?).unwrap_or_default(),
            _ => {}
        }
    }
    let several = !dims.contains(&0) && dims.iter().any(|&dim| dim > 1);
    let floats = super::dtype(kind).is_some_and(crate::dtype::is_float);
    Ok(several && (floats || dims.len() > 1 && ![BOOL, INT32, INT64, STRING, UINT32, UINT64].contains(&kind)))
}

/// Adds to a tensor's shape, which is cut off where no tensor has so many dimensions.
fn push_dims(file: &[u8], field: &Field, dims: &mut Vec<u64>) -> Result<(), String> {
    let most = crate::limits::RANK + 1;
    let left = most.saturating_sub(dims.len());
    match &field.value {
        Value::Varint(value) if left > 0 => dims.push(*value),
        Value::Bytes(range) => {
            for value in Fields::packed_varints(file, range.clone()).take(left) {
                dims.push(value?);
            }
        }
        _ => {}
    }
    Ok(())
}

/// The field that has the numbers of that type, where they are not raw; `None` for types that nobody knows.
fn data_field(kind: i32) -> Option<u64> {
    use data_type::{COMPLEX64, COMPLEX128, DOUBLE, FLOAT, INT2, INT64, STRING, UINT8, UINT32, UINT64};
    Some(match kind {
        FLOAT | COMPLEX64 => 4,
        STRING => 6,
        INT64 => 7,
        DOUBLE | COMPLEX128 => 10,
        UINT32 | UINT64 => 11,
        UINT8..=INT2 => 5,
        _ => return None,
    })
}

/// What a field of a tensor that has to do with its data is called.
fn field_name(number: u64) -> &'static str {
    match number {
        3 => "a segment",
        4 => "float_data",
        5 => "int32_data",
        6 => "string_data",
        7 => "int64_data",
        9 => "raw_data",
        10 => "double_data",
        _ => "uint64_data",
    }
}
