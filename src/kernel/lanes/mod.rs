//! What a tile needs of an instruction set, one file per set. A chunk is 64 bytes of codes, and a
//! lane is 4 of those bytes: 16 lanes of `i32` or `f32` in as many registers ([`Lanes::PARTS`]) as
//! the set needs. Because lanes are the same everywhere, so are the results, to the last bit.
//! Not here: which bits of a byte are a code ([`super::digits`]), nor the loops ([`super::int8`],
//! [`super::exact`]).

mod portable;
#[cfg(target_arch = "x86_64")]
mod ymm;
#[cfg(target_arch = "x86_64")]
mod zmm;
#[cfg(target_arch = "x86_64")]
mod zmm_columns;

pub(super) use self::portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use self::ymm::Ymm;
#[cfg(target_arch = "x86_64")]
pub(super) use self::zmm::Zmm;
#[cfg(target_arch = "x86_64")]
pub(super) use self::zmm_columns::{pack8, pack8_runs};

/// Bytes of codes that are worked on at a time.
pub(super) const CHUNK: usize = 64;

/// How far ahead of their use codes are asked for, in bytes, by tiles of four filters or more.
pub(super) const AHEAD: usize = 2048;

/// Sums per chunk, 4 bytes of codes each.
pub(super) const LANES: usize = CHUNK / 4;

/// 64 activations, rounded to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Line8(pub [i8; CHUNK]);

/// 16 activations.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Line32(pub [f32; LANES]);

/// One instruction set. Every method works on one part (0..`PARTS`) of a chunk.
pub(super) trait Lanes: Copy {
    /// Registers per chunk.
    const PARTS: usize;
    /// Whether [`Lanes::dot`] takes digits up to 12, any number of times.
    const WIDE: bool = false;
    /// 64 / `PARTS` bytes, also seen as 16-bit and 32-bit words, little-endian.
    type Bytes: Copy;
    /// 16 / `PARTS` sums.
    type Ints: Copy;
    /// What a few [`Lanes::dot`] add to before [`Lanes::finish`].
    type Partial: Copy;
    /// 16 / `PARTS` floats.
    type Floats: Copy;
    /// For every lane: whether its activation is added, subtracted or left out.
    type Choice: Copy;

    fn load(self, chunk: &[u8; CHUNK], part: usize) -> Self::Bytes;
    fn load8(self, line: &Line8, part: usize) -> Self::Bytes;
    /// The rest of a filter, less than a chunk, and zeros.
    #[inline(always)]
    fn fill_up(self, rest: &[u8]) -> [u8; CHUNK] {
        let mut chunk = [0; CHUNK];
        chunk[..rest.len()].copy_from_slice(rest);
        chunk
    }
    /// Asks for what lies so many bytes further on in the same run of memory, for the nearest cache or, where activations
    /// fill that, for the second.
    fn prefetch<const NEAREST: bool>(self, _chunk: &[u8; CHUNK], _ahead: usize) {}

    fn splat8(self, byte: u8) -> Self::Bytes;
    fn splat16(self, word: u16) -> Self::Bytes;
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    fn add8(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// (a + b + 1) / 2
    fn avg8(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// 16-bit words, shifted.
    fn shr16<const N: u32>(self, a: Self::Bytes) -> Self::Bytes;
    fn shl16<const N: u32>(self, a: Self::Bytes) -> Self::Bytes;
    /// The upper halves of the products of 16-bit words.
    fn mulhi16(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    fn ints(self, lanes: &[i32; LANES], part: usize) -> Self::Ints;
    fn start(self, sums: Self::Ints) -> Self::Partial;
    /// Adds Σ d·x over the four bytes of each lane. |x| is at most 127, and unless the set is [`Lanes::WIDE`] d is at
    /// most 3, and there are at most 8 of these (one per weight of a byte) between `start` and `finish`.
    fn dot(self, partial: Self::Partial, digits: Self::Bytes, x: Self::Bytes) -> Self::Partial;
    fn finish(self, sums: Self::Ints, partial: Self::Partial) -> Self::Ints;
    /// a/4 + b; a is a multiple of 4.
    fn quarter_and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn total(self, sums: Self::Ints) -> i32;
    /// [`Lanes::total`] of each.
    #[inline(always)]
    fn totals(self, sums: [Self::Ints; 4]) -> [i32; 4] {
        sums.map(|sums| self.total(sums))
    }
    fn to_floats(self, sums: Self::Ints) -> Self::Floats;

    fn floats(self, lanes: &Line32, part: usize) -> Self::Floats;
    fn store(self, floats: Self::Floats, lanes: &mut Line32, part: usize);
    fn plus(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a + b·c, rounded twice.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// By 32-bit words: added where a bit of `plus` is set, else subtracted; left out where a bit
    /// of `zero` is set.
    fn choose(self, words: Self::Bytes, plus: u32, zero: u32) -> Self::Choice;
    fn negate(self, x: Self::Floats) -> Self::Floats;
    /// Adds what was chosen of x and −x to `sum`.
    fn add(self, sum: Self::Floats, choice: Self::Choice, x: Self::Floats, minus_x: Self::Floats) -> Self::Floats;
}
