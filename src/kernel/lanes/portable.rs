//! Plain Rust that the compiler vectorises: every machine has it, and the others are held against it.

use super::{CHUNK, LANES, Lanes, Line8, Line32};

/// No instruction set in particular.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernel) struct Portable;

const BYTES: usize = CHUNK / 4;
const SUMS: usize = LANES / 4;

#[inline(always)]
fn zip<T: Copy, const N: usize>(mut a: [T; N], b: [T; N], f: impl Fn(T, T) -> T) -> [T; N] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = f(*a, b);
    }
    a
}

#[inline(always)]
fn words16(mut a: [u8; BYTES], f: impl Fn(u16) -> u16) -> [u8; BYTES] {
    for word in a.as_chunks_mut().0 {
        *word = f(u16::from_le_bytes(*word)).to_le_bytes();
    }
    a
}

/// One part of an array of four.
#[inline(always)]
fn part_of<T: Copy, const N: usize>(all: &[T], part: usize) -> [T; N] {
    all.as_chunks().0[part]
}

impl Lanes for Portable {
    const PARTS: usize = 4;
    type Bytes = [u8; BYTES];
    type Ints = [i32; SUMS];
    /// Sums of single products, 8 · 3 · 127 < 2¹⁵ at the most.
    type Partial = [i16; BYTES];
    type Floats = [f32; SUMS];
    /// Bits to flip, bits to keep.
    type Choice = ([u32; SUMS], [u32; SUMS]);

    #[inline(always)]
    fn load(self, chunk: &[u8; CHUNK], part: usize) -> Self::Bytes {
        part_of(chunk, part)
    }
    #[inline(always)]
    fn load8(self, line: &Line8, part: usize) -> Self::Bytes {
        part_of::<i8, BYTES>(&line.0, part).map(|x| x as u8)
    }
    #[inline(always)]
    fn splat8(self, byte: u8) -> Self::Bytes {
        [byte; BYTES]
    }
    #[inline(always)]
    fn splat16(self, word: u16) -> Self::Bytes {
        words16([0; BYTES], |_| word)
    }
    #[inline(always)]
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn add8(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        zip(a, b, u8::wrapping_add)
    }
    #[inline(always)]
    fn avg8(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        zip(a, b, |a, b| (u16::from(a) + u16::from(b)).div_ceil(2) as u8)
    }
    #[inline(always)]
    fn shr16<const N: u32>(self, a: Self::Bytes) -> Self::Bytes {
        words16(a, |a| a >> N)
    }
    #[inline(always)]
    fn shl16<const N: u32>(self, a: Self::Bytes) -> Self::Bytes {
        words16(a, |a| a << N)
    }
    #[inline(always)]
    fn mulhi16(self, mut a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        for (a, b) in a.as_chunks_mut().0.iter_mut().zip(b.as_chunks().0) {
            let product = u32::from(u16::from_le_bytes(*a)) * u32::from(u16::from_le_bytes(*b));
            *a = ((product >> 16) as u16).to_le_bytes();
        }
        a
    }

    #[inline(always)]
    fn ints(self, lanes: &[i32; LANES], part: usize) -> Self::Ints {
        part_of(lanes, part)
    }
    #[inline(always)]
    fn start(self, _sums: Self::Ints) -> Self::Partial {
        [0; BYTES]
    }
    #[inline(always)]
    fn dot(self, partial: Self::Partial, digits: Self::Bytes, x: Self::Bytes) -> Self::Partial {
        let mut sums = partial;
        for i in 0..BYTES {
            sums[i] += i16::from(digits[i]) * i16::from(x[i] as i8);
        }
        sums
    }
    #[inline(always)]
    fn finish(self, mut sums: Self::Ints, partial: Self::Partial) -> Self::Ints {
        for (sum, products) in sums.iter_mut().zip(partial.as_chunks::<4>().0) {
            *sum += products.iter().map(|&product| i32::from(product)).sum::<i32>();
        }
        sums
    }
    #[inline(always)]
    fn quarter_and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        zip(a, b, |a, b| (a >> 2) + b)
    }
    #[inline(always)]
    fn total(self, sums: Self::Ints) -> i32 {
        sums.iter().sum()
    }
    #[inline(always)]
    fn to_floats(self, sums: Self::Ints) -> Self::Floats {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn floats(self, lanes: &Line32, part: usize) -> Self::Floats {
        part_of(&lanes.0, part)
    }
    #[inline(always)]
    fn store(self, floats: Self::Floats, lanes: &mut Line32, part: usize) {
        lanes.0.as_chunks_mut().0[part] = floats;
    }
    #[inline(always)]
    fn plus(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        zip(a, zip(b, c, |b, c| b * c), |a, bc| a + bc)
    }
    #[inline(always)]
    fn choose(self, words: Self::Bytes, plus: u32, zero: u32) -> Self::Choice {
        let (mut flip, mut keep) = ([0; SUMS], [0; SUMS]);
        for (lane, word) in words.as_chunks().0.iter().enumerate() {
            let word = u32::from_le_bytes(*word);
            flip[lane] = if word & plus == 0 { 1 << 31 } else { 0 };
            keep[lane] = if word & zero == 0 { u32::MAX } else { 0 };
        }
        (flip, keep)
    }
    #[inline(always)]
    fn negate(self, x: Self::Floats) -> Self::Floats {
        x.map(|x| -x)
    }
    #[inline(always)]
    fn add(
        self,
        mut sum: Self::Floats,
        (flip, keep): Self::Choice,
        x: Self::Floats,
        _minus_x: Self::Floats,
    ) -> Self::Floats {
        for lane in 0..SUMS {
            sum[lane] += f32::from_bits((x[lane].to_bits() ^ flip[lane]) & keep[lane]);
        }
        sum
    }
}
