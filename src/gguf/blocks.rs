//! The bits of ggml's ternary blocks, both ways. Codes are t+1, one byte each: 0, 1, 2 for −1, 0, +1.
//! Not here: which tensor they belong to.
//!
//! | type | bytes | fields |
//! |---|---|---|
//! | TQ1_0 | 54 for 256 | `u8 qs[48]; u8 qh[4]; f16 d` |
//! | TQ2_0 | 66 for 256 | `u8 qs[64]; f16 d` |
//! | Q2_0 | 18 for 64 | `f16 d; u8 qs[16]` |
//!
//! **TQ2_0** has weight 128·h + 32·k + m in byte 32·h + m, bits 2k: weights that share a byte stand 32 apart.
//!
//! **TQ1_0** has five of them in a byte, the first one most significant: q = Σ code·3^(4−i), stored as ⌈256·q/243⌉, so
//! that multiplying by 3^i and keeping the low byte brings code i to the top. Byte m below 32 has the weights m + 32·i,
//! byte 32 + m the weights 160 + m + 16·i, byte 48 + m (four weights, and a zero) 240 + m + 4·i.
//!
//! **Q2_0** has weight j in byte j/4, bits 2·(j mod 4), as `t2` does.

use std::array;

use half::f16;

use crate::pack::transposed_pairs;
use crate::vector::{Isa, Task};

/// A kind of ternary block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// 256 weights in 54 bytes.
    Tq1_0,
    /// 256 weights in 66 bytes.
    Tq2_0,
    /// 64 weights in 18 bytes.
    Q2_0,
}

/// The codes of 256 weights, two bits each, where TQ2_0 has them.
type Strided = [u8; 64];

impl Block {
    /// Weights per block.
    pub const fn weights(self) -> usize {
        match self {
            Self::Tq1_0 | Self::Tq2_0 => 256,
            Self::Q2_0 => 64,
        }
    }

    /// Bytes per block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Tq1_0 => 54,
            Self::Tq2_0 => 66,
            Self::Q2_0 => 18,
        }
    }

    /// What the key `general.file_type` is for a file of such weights.
    pub const fn file_type(self) -> u32 {
        match self {
            Self::Tq1_0 => 36,
            Self::Tq2_0 => 37,
            Self::Q2_0 => 41,
        }
    }

    /// Where the scale begins.
    const fn scale_at(self) -> usize {
        match self {
            Self::Tq1_0 => 52,
            Self::Tq2_0 => 64,
            Self::Q2_0 => 0,
        }
    }

    /// Writes the blocks of [`t2`](crate::Encoding::T2) codes, whole blocks of them: four to a byte in `packed`,
    /// [`Block::bytes`] a block in `blocks`. False where a code is 3, which none of the three is to hold. Block i gets
    /// the scale `scale(i)`.
    pub fn write_t2(self, isa: Isa, packed: &[u8], scale: impl Fn(usize) -> f16, blocks: &mut [u8]) -> bool {
        isa.run(Write { block: self, packed, scale, blocks })
    }

    /// Writes the codes of whole blocks as [`t2`](crate::Encoding::T2) has them; those of the two-bit types may be 3.
    pub fn read_t2(self, isa: Isa, blocks: &[u8], packed: &mut [u8]) {
        isa.run(Read { block: self, blocks, packed });
    }

    /// Writes the blocks of codes t+1, one byte each, whole blocks of them. Block i gets the scale `scale(i)`.
    pub fn write_codes(self, codes: &[u8], scale: impl Fn(usize) -> f16, blocks: &mut [u8]) {
        let groups = codes.chunks_exact(self.weights());
        for (i, (block, codes)) in blocks.chunks_exact_mut(self.bytes()).zip(groups).enumerate() {
            block[self.scale_at()..][..2].copy_from_slice(&scale(i).to_le_bytes());
            match self {
                Self::Q2_0 => {
                    for (byte, codes) in block[2..].iter_mut().zip(codes.as_chunks::<4>().0) {
                        *byte = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6;
                    }
                }
                Self::Tq2_0 => block[..64].copy_from_slice(&strided_of_codes(codes)),
                Self::Tq1_0 => block[..52].copy_from_slice(&tq1_of_strided(&strided_of_codes(codes))),
            }
        }
    }

    /// The scale of one block, as stored.
    ///
    /// # Panics
    /// When there are fewer bytes than a block has.
    pub fn scale(self, block: &[u8]) -> f16 {
        let at = self.scale_at();
        f16::from_le_bytes([block[at], block[at + 1]])
    }

    /// Writes the codes of one block; those of a negative scale come out negated, for its magnitude.
    ///
    /// # Errors
    /// The first weight whose code is 3: the two-bit types could hold +2, which is not ternary.
    ///
    /// # Panics
    /// When there are fewer bytes than a block has, or fewer codes.
    pub fn codes(self, block: &[u8], codes: &mut [u8]) -> Result<(), usize> {
        match self {
            Self::Q2_0 => {
                for (codes, byte) in codes.as_chunks_mut::<4>().0.iter_mut().zip(&block[2..]) {
                    *codes = array::from_fn(|i| byte >> (2 * i) & 3);
                }
            }
            Self::Tq2_0 => {
                for (codes, qs) in codes.as_chunks_mut::<128>().0.iter_mut().zip(block.as_chunks::<32>().0) {
                    for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                        *codes = array::from_fn(|m| qs[m] >> (2 * k) & 3);
                    }
                }
            }
            Self::Tq1_0 => codes_of_tq1(block, codes),
        }
        if self != Self::Tq1_0 && codes.iter().fold(0, |bits, code| bits | (code & code >> 1)) != 0 {
            return Err(codes.iter().position(|&code| code == 3).unwrap_or_default());
        }
        if self.scale(block).is_sign_negative() {
            codes.iter_mut().for_each(|code| *code = 2 - *code);
        }
        Ok(())
    }
}

/// Blocks from `t2`.
struct Write<'a, S> {
    block: Block,
    packed: &'a [u8],
    scale: S,
    blocks: &'a mut [u8],
}

impl<S: Fn(usize) -> f16> Task for Write<'_, S> {
    type Output = bool;

    #[inline(always)]
    fn portable(self) -> bool {
        let Self { block, packed, scale, blocks } = self;
        let mut bad = 0;
        match block {
            Block::Q2_0 => {
                let (packed, _) = packed.as_chunks::<16>();
                for (i, (block, packed)) in blocks.as_chunks_mut::<18>().0.iter_mut().zip(packed).enumerate() {
                    bad |= threes(packed);
                    block[..2].copy_from_slice(&scale(i).to_le_bytes());
                    block[2..].copy_from_slice(packed);
                }
            }
            Block::Tq2_0 => {
                let (packed, _) = packed.as_chunks::<64>();
                for (i, (block, packed)) in blocks.as_chunks_mut::<66>().0.iter_mut().zip(packed).enumerate() {
                    bad |= threes(packed);
                    block[..64].copy_from_slice(&strided_of_t2(packed));
                    block[64..].copy_from_slice(&scale(i).to_le_bytes());
                }
            }
            Block::Tq1_0 => {
                let (packed, _) = packed.as_chunks::<64>();
                for (i, (block, packed)) in blocks.as_chunks_mut::<54>().0.iter_mut().zip(packed).enumerate() {
                    bad |= threes(packed);
                    block[..52].copy_from_slice(&tq1_of_strided(&strided_of_t2(packed)));
                    block[52..].copy_from_slice(&scale(i).to_le_bytes());
                }
            }
        }
        bad == 0
    }
}

/// `t2` from blocks.
struct Read<'a> {
    block: Block,
    blocks: &'a [u8],
    packed: &'a mut [u8],
}

impl Task for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        let Self { block, blocks, packed } = self;
        // Lengths that are known while this is compiled: they decide whether the loops become vectors.
        match block {
            Block::Q2_0 => {
                let blocks = blocks.as_chunks::<18>().0.iter();
                for (bytes, packed) in blocks.zip(packed.as_chunks_mut::<16>().0) {
                    packed.copy_from_slice(&bytes[2..]);
                    negate_if(block.scale(bytes).is_sign_negative(), packed);
                }
            }
            Block::Tq2_0 => {
                let blocks = blocks.as_chunks::<66>().0.iter();
                for (bytes, packed) in blocks.zip(packed.as_chunks_mut::<64>().0) {
                    *packed = t2_of_strided(array::from_fn(|i| bytes[i]));
                    negate_if(block.scale(bytes).is_sign_negative(), packed);
                }
            }
            Block::Tq1_0 => {
                let blocks = blocks.as_chunks::<54>().0.iter();
                for (bytes, packed) in blocks.zip(packed.as_chunks_mut::<64>().0) {
                    *packed = t2_of_strided(strided_of_tq1(bytes));
                    negate_if(block.scale(bytes).is_sign_negative(), packed);
                }
            }
        }
    }
}

/// 2 − code where that is asked for, pair by pair of bits: 0 and 2 change places; 3, which is none, stays.
#[inline(always)]
fn negate_if(negative: bool, packed: &mut [u8]) {
    if negative {
        packed.iter_mut().for_each(|x| *x = *x & 0x55 | (!(*x ^ *x >> 1) & 0x55) << 1);
    }
}

/// Not zero where a code of two bits is 3.
#[inline(always)]
fn threes(packed: &[u8]) -> u8 {
    packed.iter().fold(0, |bits, byte| bits | (byte & byte >> 1 & 0x55))
}

/// Four bytes of `t2`, 8 apart, have the codes of four neighbours each; the four bytes that they become have one of
/// each. In one step the bytes change places and in another the bits, both for the whole block: that becomes vectors.
#[inline(always)]
fn strided_of_t2(packed: &[u8; 64]) -> Strided {
    let mut strided: Strided = array::from_fn(|i| packed[32 * (i / 32) + 8 * (i % 4) + i % 32 / 4]);
    transpose_words(&mut strided);
    strided
}

/// Codes of the same place in four neighbours make a byte; 32 weights further it is the next place.
#[inline(always)]
fn t2_of_strided(mut strided: Strided) -> [u8; 64] {
    transpose_words(&mut strided);
    array::from_fn(|i| strided[32 * (i / 32) + 4 * (i % 8) + i % 32 / 8])
}

/// [`transposed_pairs`] of every four bytes.
#[inline(always)]
fn transpose_words(bytes: &mut Strided) {
    bytes
        .as_chunks_mut()
        .0
        .iter_mut()
        .for_each(|word| *word = transposed_pairs(u32::from_le_bytes(*word)).to_le_bytes());
}

#[inline(always)]
fn codes_of_tq1(block: &[u8], codes: &mut [u8]) {
    let trits = |bytes: &[u8], codes: &mut [u8]| {
        let mut power = 1u8;
        for codes in codes.chunks_exact_mut(bytes.len()) {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
            }
            power = power.wrapping_mul(3);
        }
    };
    trits(&block[..32], &mut codes[..160]);
    trits(&block[32..48], &mut codes[160..240]);
    trits(&block[48..52], &mut codes[240..]);
}

/// The codes of a TQ1_0 block where TQ2_0 has them.
#[inline(always)]
fn strided_of_tq1(block: &[u8; 54]) -> Strided {
    // The code is three times the byte, divided by 256: put at place k.
    let code = |byte: u8, k: u32| if byte > 170 { 2 << (2 * k) } else { u8::from(byte > 85) << (2 * k) };
    // Times 3 the next code is there; adding is what vectors of bytes can do.
    let all = |byte: u8| {
        let mut lifted = [byte; 5];
        (1..5).for_each(|i| lifted[i] = lifted[i - 1].wrapping_add(lifted[i - 1]).wrapping_add(lifted[i - 1]));
        lifted
    };
    let mut strided = [0; 64];
    let (low, high) = strided.split_at_mut(32);
    for ((low, high), &byte) in low.iter_mut().zip(&mut *high).zip(&block[..32]) {
        let [a, b, c, d, e] = all(byte);
        *low = code(a, 0) | code(b, 1) | code(c, 2) | code(d, 3);
        *high = code(e, 0);
    }
    let (even, odd) = high.split_at_mut(16);
    for ((even, odd), &byte) in even.iter_mut().zip(&mut *odd).zip(&block[32..48]) {
        let [a, b, c, d, e] = all(byte);
        *even |= code(a, 1) | code(c, 2) | code(e, 3);
        *odd |= code(b, 1) | code(d, 2);
    }
    let last: [[u8; 5]; 4] = array::from_fn(|m| all(block[48 + m]));
    odd.iter_mut().enumerate().for_each(|(i, odd)| *odd |= code(last[i % 4][i / 4], 3));
    strided
}

#[inline(always)]
fn strided_of_codes(codes: &[u8]) -> Strided {
    let mut strided = [0; 64];
    for (strided, codes) in strided.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
        *strided = array::from_fn(|m| codes[m] | codes[32 + m] << 2 | codes[64 + m] << 4 | codes[96 + m] << 6);
    }
    strided
}

#[inline(always)]
fn tq1_of_strided(strided: &Strided) -> [u8; 52] {
    let mut bytes = [0; 52];
    let code = |half: usize, k: usize, m: usize| strided[32 * half + m] >> (2 * k) & 3;
    // ⌈256·q/243⌉ = q + ⌈13·q/243⌉, in sixteen bits.
    #[allow(clippy::manual_div_ceil, reason = "that one divides twice; this takes three quarters of the time")]
    let stored = |q: u8| q.wrapping_add(((13 * u16::from(q) + 242) / 243) as u8);
    let horner = |codes: [u8; 5]| stored(codes.into_iter().fold(0u8, |q, code| q.wrapping_mul(3).wrapping_add(code)));
    for (m, byte) in bytes[..32].iter_mut().enumerate() {
        *byte = horner([code(0, 0, m), code(0, 1, m), code(0, 2, m), code(0, 3, m), code(1, 0, m)]);
    }
    for (m, byte) in bytes[32..48].iter_mut().enumerate() {
        *byte = horner([code(1, 1, m), code(1, 1, m + 16), code(1, 2, m), code(1, 2, m + 16), code(1, 3, m)]);
    }
    for (m, byte) in bytes[48..].iter_mut().enumerate() {
        *byte = horner([code(1, 3, m + 16), code(1, 3, m + 20), code(1, 3, m + 24), code(1, 3, m + 28), 0]);
    }
    bytes
}
