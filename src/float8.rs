//! The two 8-bit floats of safetensors, OCP 8-bit Floating Point Specification 1.0 (2023):
//! E4M3 (bias 7, no infinity, NaN = S.1111.111) and E5M2 (bias 15, IEEE-like).

/// The value of every E4M3 byte.
pub(crate) static E4M3: [f32; 256] = table(4, 3);
/// The value of every E5M2 byte.
pub(crate) static E5M2: [f32; 256] = table(5, 2);

const fn table(exponent_bits: u32, mantissa_bits: u32) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = value(byte as u32, exponent_bits, mantissa_bits);
        byte += 1;
    }
    table
}

const fn value(byte: u32, exponent_bits: u32, mantissa_bits: u32) -> f32 {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let mantissa = byte & ((1 << mantissa_bits) - 1);
    let exponent = byte >> mantissa_bits & ((1 << exponent_bits) - 1);
    let top = exponent == (1 << exponent_bits) - 1;
    let magnitude = if exponent_bits == 5 && top {
        if mantissa == 0 { f32::INFINITY } else { f32::NAN }
    } else if exponent_bits == 4 && top && mantissa == 7 {
        f32::NAN
    } else if exponent == 0 {
        mantissa as f32 * power_of_two(1 - bias - mantissa_bits as i32)
    } else {
        (mantissa + (1 << mantissa_bits)) as f32 * power_of_two(exponent as i32 - bias - mantissa_bits as i32)
    };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}

/// 2^exponent, far from the limits of f32.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The byte whose value is nearest to `x`, ties to the even byte; beyond the range the largest
/// finite value's neighbour: infinity where the type has one, else NaN.
pub(crate) fn encode(table: &[f32; 256], x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs();
    // Positive values ascend with their bytes; the first that is not finite ends them.
    let finite = table[..128].partition_point(|v| v.is_finite());
    let above = table[..finite].partition_point(|&v| v < magnitude);
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if above == 0 {
        return sign;
    }
    let (low, high) = (f64::from(table[above - 1]), {
        // One step beyond the largest finite value is where rounding leaves the range.
        let step = f64::from(table[above - 1]) - f64::from(table[above.saturating_sub(2)]);
        table[..finite].get(above).map_or(f64::from(table[finite - 1]) + step, |&v| f64::from(v))
    });
    let middle = (low + high) / 2.0;
    let x = f64::from(magnitude);
    let up = x > middle || (x == middle && above % 2 == 0);
    sign | if up { above as u8 } else { above as u8 - 1 }
}
