//! ggml's blocks of small integers → the floats that ggml makes of them, for embeddings and heads of ternary files, which
//! llama-quantize does not leave as floats. Not here: ternary blocks ([`super::Block`]); writing.
//!
//! | type | bytes | fields | weights |
//! |---|---|---|---|
//! | Q4_0 | 18 for 32 | `f16 d; u8 qs[16]` | d·(q − 8) |
//! | Q5_0 | 22 for 32 | `f16 d; u32 qh; u8 qs[16]` | d·(q − 16), the fifth bits in `qh` |
//! | Q8_0 | 34 for 32 | `f16 d; i8 qs[32]` | d·q |
//! | Q4_K | 144 for 256 | `f16 d, dmin; u8 scales[12]; u8 qs[128]` | d·s·q − dmin·m, s and m of 6 bits for 32 weights |
//! | Q6_K | 210 for 256 | `u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d` | d·s·(q − 32), s for 16 weights |
//!
//! Two weights of 4 bits share a byte half a block apart (Q4_0, Q5_0), 32 apart (Q4_K) or 64 apart (Q6_K), the lower bits are
//! the first one's.
//! Source: `dequantize_row_*` in ggml-quants.c, <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

use std::array;

use half::f16;

/// A kind of block of small integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantized {
    /// 32 weights of 4 bits.
    Q4_0,
    /// 32 weights of 5 bits.
    Q5_0,
    /// 32 weights of 8 bits.
    Q8_0,
    /// 256 weights of 4 bits.
    Q4K,
    /// 256 weights of 6 bits.
    Q6K,
}

impl Quantized {
    /// Weights per block.
    pub const fn weights(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes per block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q5_0 => 22,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// The weights of whole blocks, rounded where ggml rounds them.
    pub fn values(self, blocks: &[u8], values: &mut [f32]) {
        for (block, values) in blocks.chunks_exact(self.bytes()).zip(values.chunks_exact_mut(self.weights())) {
            match self {
                Self::Q4_0 => halves(values, half(block, 0), |j| (block[2 + j], 0, 0), 8),
                Self::Q5_0 => {
                    let fifth = u32::from_le_bytes(array::from_fn(|i| block[2 + i]));
                    let bit = |j: usize| (fifth >> j & 1) as u8;
                    halves(values, half(block, 0), |j| (block[6 + j], bit(j), bit(j + 16)), 16);
                }
                Self::Q8_0 => {
                    let scale = half(block, 0);
                    values
                        .iter_mut()
                        .zip(&block[2..])
                        .for_each(|(value, q)| *value = scale * f32::from(q.cast_signed()));
                }
                Self::Q4K => q4_k(block, values),
                Self::Q6K => q6_k(block, values),
            }
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Weights j and j + 16 from byte j and the fifth bits of both.
fn halves(values: &mut [f32], scale: f32, byte: impl Fn(usize) -> (u8, u8, u8), zero: i8) {
    let (low, high) = values.split_at_mut(16);
    for (j, (low, high)) in low.iter_mut().zip(high).enumerate() {
        let (q, of_low, of_high) = byte(j);
        let value = |q: u8| f32::from(q.cast_signed() - zero) * scale;
        (*low, *high) = (value(q & 15 | of_low << 4), value(q >> 4 | of_high << 4));
    }
}

fn q4_k(block: &[u8], values: &mut [f32]) {
    let (d, dmin, packed, qs) = (half(block, 0), half(block, 2), &block[4..16], &block[16..]);
    // The first four scales and minima have bytes of their own, whose upper two bits are those of the last four.
    let scale_and_minimum = |i: usize| match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4),
    };
    for (i, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(i);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let bytes = &qs[i / 2 * 32..][..32];
        for (value, q) in values.iter_mut().zip(bytes) {
            *value = scale * f32::from(q >> (4 * (i % 2)) & 15) - minimum;
        }
    }
}

fn q6_k(block: &[u8], values: &mut [f32]) {
    let (ql, qh, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    // 128 weights in four quarters: two of them share bytes of `ql`, all four those of `qh`.
    for (i, values) in values.chunks_exact_mut(16).enumerate() {
        let (part, quarter, at) = (i / 8, i / 2 % 4, i % 2 * 16);
        let scale = d * f32::from(scales[i].cast_signed());
        let low = &ql[part * 64 + quarter % 2 * 32 + at..][..16];
        let high = &qh[part * 32 + at..][..16];
        for (value, (low, high)) in values.iter_mut().zip(low.iter().zip(high)) {
            let q = low >> (quarter / 2 * 4) & 15 | (high >> (2 * quarter) & 3) << 4;
            *value = scale * f32::from(q.cast_signed() - 32);
        }
    }
}
