//! ONNX files: protobuf fields and where they lie, as far as weights need it. Nothing is decoded that nobody asks
//! for, and everything has its range in the file, so that what is unknown can be kept byte for byte. Not here:
//! checkpoints ([`crate::import`]), new files ([`crate::export`]).

mod external;
mod initializer;
mod model;
mod wire;

pub use self::external::Externals;
pub use self::initializer::{Data, Initializer};
pub use self::model::{Attribute, Model, Node, names_default_domain};
pub use self::wire::{Field, Fields, Message, Value};

/// What errors call the format.
pub const FORMAT: &str = ".onnx";

/// Numbers of `TensorProto.DataType`, which stand in [`Initializer::data_type`].
#[allow(missing_docs, reason = "the names say it")]
pub mod data_type {
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    pub const UINT16: i32 = 4;
    pub const INT16: i32 = 5;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
    pub const STRING: i32 = 8;
    pub const BOOL: i32 = 9;
    pub const FLOAT16: i32 = 10;
    pub const DOUBLE: i32 = 11;
    pub const UINT32: i32 = 12;
    pub const UINT64: i32 = 13;
    pub const COMPLEX64: i32 = 14;
    pub const COMPLEX128: i32 = 15;
    pub const BFLOAT16: i32 = 16;
    pub const FLOAT8E4M3FN: i32 = 17;
    pub const FLOAT8E4M3FNUZ: i32 = 18;
    pub const FLOAT8E5M2: i32 = 19;
    pub const FLOAT8E5M2FNUZ: i32 = 20;
    pub const UINT4: i32 = 21;
    pub const INT4: i32 = 22;
    pub const FLOAT4E2M1: i32 = 23;
    pub const FLOAT8E8M0: i32 = 24;
    pub const UINT2: i32 = 25;
    pub const INT2: i32 = 26;
}

/// A type as this crate calls it; `None` for those that it has no name for.
pub fn dtype(data_type: i32) -> Option<crate::Dtype> {
    use crate::Dtype;
    Some(match data_type {
        data_type::FLOAT => Dtype::F32,
        data_type::UINT8 => Dtype::U8,
        data_type::INT8 => Dtype::I8,
        data_type::UINT16 => Dtype::U16,
        data_type::INT16 => Dtype::I16,
        data_type::INT32 => Dtype::I32,
        data_type::INT64 => Dtype::I64,
        data_type::BOOL => Dtype::BOOL,
        data_type::FLOAT16 => Dtype::F16,
        data_type::DOUBLE => Dtype::F64,
        data_type::UINT32 => Dtype::U32,
        data_type::UINT64 => Dtype::U64,
        data_type::COMPLEX64 => Dtype::C64,
        data_type::BFLOAT16 => Dtype::BF16,
        data_type::FLOAT8E4M3FN => Dtype::F8_E4M3,
        data_type::FLOAT8E4M3FNUZ => Dtype::F8_E4M3FNUZ,
        data_type::FLOAT8E5M2 => Dtype::F8_E5M2,
        data_type::FLOAT8E5M2FNUZ => Dtype::F8_E5M2FNUZ,
        data_type::FLOAT8E8M0 => Dtype::F8_E8M0,
        _ => return None,
    })
}

/// A type as ONNX calls it.
pub fn type_name(data_type: i32) -> String {
    let known = match data_type {
        data_type::FLOAT => "FLOAT",
        data_type::INT8 => "INT8",
        data_type::FLOAT16 => "FLOAT16",
        data_type::DOUBLE => "DOUBLE",
        data_type::BFLOAT16 => "BFLOAT16",
        data_type::STRING => "STRING",
        data_type::COMPLEX128 => "COMPLEX128",
        data_type::UINT4 => "UINT4",
        data_type::INT4 => "INT4",
        data_type::FLOAT4E2M1 => "FLOAT4E2M1",
        data_type::UINT2 => "UINT2",
        data_type::INT2 => "INT2",
        other => return dtype(other).map_or_else(|| format!("data type {other}"), |dtype| dtype.to_string()),
    };
    known.to_owned()
}
