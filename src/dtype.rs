//! The element types of checkpoints and how many bytes a shape of them takes. The types are those of
//! the safetensors crate. Not here: decoding ([`crate::source`]).

pub use safetensors::Dtype;

use crate::float8;

/// Whether tensors of that type can become ternary: F64, F32, F16, BF16, F8_E4M3, F8_E5M2.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
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

/// Writes values in that type of floats, rounded to nearest, ties to even, into as many bytes as they take.
pub(crate) fn encode(dtype: Dtype, values: &[f32], bytes: &mut [u8]) {
    fn each<const N: usize>(values: &[f32], bytes: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
        bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, &value)| *bytes = encode(value));
    }
    match dtype {
        Dtype::F64 => each(values, bytes, |value| f64::from(value).to_le_bytes()),
        Dtype::F16 => each(values, bytes, |value| half::f16::from_f32(value).to_le_bytes()),
        Dtype::BF16 => each(values, bytes, |value| half::bf16::from_f32(value).to_le_bytes()),
        Dtype::F8_E4M3 => each(values, bytes, |value| [float8::encode(&float8::E4M3, value)]),
        Dtype::F8_E5M2 => each(values, bytes, |value| [float8::encode(&float8::E5M2, value)]),
        Dtype::F32 => each(values, bytes, f32::to_le_bytes),
        other => unreachable!("{other} is no type that weights have"),
    }
}
