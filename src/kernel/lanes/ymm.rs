//! AVX2, with the 8-bit dot products of AVX-VNNI or without.

use std::arch::x86_64::*;

use super::{CHUNK, LANES, Lanes, Line8, Line32};
use crate::vector::{Avx2, AvxVnni};

/// Whoever holds one has the instructions.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernel) struct Ymm<const VNNI: bool>(());

impl Ymm<false> {
    #[inline(always)]
    pub(in crate::kernel) fn new(_proof: Avx2) -> Self {
        Self(())
    }
}

impl Ymm<true> {
    #[inline(always)]
    pub(in crate::kernel) fn new(_proof: AvxVnni) -> Self {
        Self(())
    }
}

/// Instructions on registers, and loads and stores of half arrays of the register's size.
macro_rules! there {
    ($e:expr) => {{
        // SAFETY: `self` was made from the proof that the machine has these instructions. Every pointer that is read
        // or written is that of an array as long as the register (aligned to it where that is asked for, as the halves
        // of `Line8` and `Line32` are); prefetching takes any address.
        unsafe { $e }
    }};
}

/// One of an array's two halves.
#[inline(always)]
fn half<T, const N: usize>(all: &[T], part: usize) -> &[T; N] {
    &all.as_chunks().0[part]
}

impl<const VNNI: bool> Lanes for Ymm<VNNI> {
    const PARTS: usize = 2;
    const WIDE: bool = VNNI;
    type Bytes = __m256i;
    type Ints = __m256i;
    /// With VNNI 32-bit sums; without, 16-bit sums of two products each.
    type Partial = __m256i;
    type Floats = __m256;
    /// Bits to flip, bits to keep.
    type Choice = (__m256i, __m256i);

    #[inline(always)]
    fn load(self, chunk: &[u8; CHUNK], part: usize) -> __m256i {
        there!(_mm256_loadu_si256(half::<u8, 32>(chunk, part).as_ptr().cast()))
    }
    #[inline(always)]
    fn load8(self, line: &Line8, part: usize) -> __m256i {
        there!(_mm256_load_si256(half::<i8, 32>(&line.0, part).as_ptr().cast()))
    }
    #[inline(always)]
    fn prefetch<const NEAREST: bool>(self, chunk: &[u8; CHUNK], ahead: usize) {
        there!(_mm_prefetch::<_MM_HINT_T1>(chunk.as_ptr().wrapping_add(ahead).cast()));
    }
    #[inline(always)]
    fn splat8(self, byte: u8) -> __m256i {
        there!(_mm256_set1_epi8(byte as i8))
    }
    #[inline(always)]
    fn splat16(self, word: u16) -> __m256i {
        there!(_mm256_set1_epi16(word as i16))
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        there!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        there!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn add8(self, a: __m256i, b: __m256i) -> __m256i {
        there!(_mm256_add_epi8(a, b))
    }
    #[inline(always)]
    fn avg8(self, a: __m256i, b: __m256i) -> __m256i {
        there!(_mm256_avg_epu8(a, b))
    }
    #[inline(always)]
    fn shr16<const N: u32>(self, a: __m256i) -> __m256i {
        there!(_mm256_srl_epi16(a, _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    fn shl16<const N: u32>(self, a: __m256i) -> __m256i {
        there!(_mm256_sll_epi16(a, _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    fn mulhi16(self, a: __m256i, b: __m256i) -> __m256i {
        there!(_mm256_mulhi_epu16(a, b))
    }

    #[inline(always)]
    fn ints(self, lanes: &[i32; LANES], part: usize) -> __m256i {
        there!(_mm256_loadu_si256(half::<i32, 8>(lanes, part).as_ptr().cast()))
    }
    #[inline(always)]
    fn start(self, sums: __m256i) -> __m256i {
        if VNNI { sums } else { there!(_mm256_setzero_si256()) }
    }
    /// Without VNNI: |d·x + d·x| ≤ 2·3·127 and eight of those stay under 6,200, so that the
    /// saturation of 16-bit additions is out of reach.
    #[inline(always)]
    fn dot(self, partial: __m256i, digits: __m256i, x: __m256i) -> __m256i {
        if VNNI {
            there!(_mm256_dpbusd_avx_epi32(partial, digits, x))
        } else {
            there!(_mm256_add_epi16(partial, _mm256_maddubs_epi16(digits, x)))
        }
    }
    #[inline(always)]
    fn finish(self, sums: __m256i, partial: __m256i) -> __m256i {
        if VNNI { partial } else { there!(_mm256_add_epi32(sums, _mm256_madd_epi16(partial, _mm256_set1_epi16(1)))) }
    }
    #[inline(always)]
    fn quarter_and(self, a: __m256i, b: __m256i) -> __m256i {
        there!(_mm256_add_epi32(_mm256_srai_epi32::<2>(a), b))
    }
    #[inline(always)]
    fn total(self, sums: __m256i) -> i32 {
        there!({
            let four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        })
    }
    #[inline(always)]
    fn totals(self, [a, b, c, d]: [__m256i; 4]) -> [i32; 4] {
        there!({
            let all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
            let four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
            let mut totals = [0; 4];
            _mm_storeu_si128(totals.as_mut_ptr().cast(), four);
            totals
        })
    }
    #[inline(always)]
    fn to_floats(self, sums: __m256i) -> __m256 {
        there!(_mm256_cvtepi32_ps(sums))
    }

    #[inline(always)]
    fn floats(self, lanes: &Line32, part: usize) -> __m256 {
        there!(_mm256_load_ps(half::<f32, 8>(&lanes.0, part).as_ptr()))
    }
    #[inline(always)]
    fn store(self, floats: __m256, lanes: &mut Line32, part: usize) {
        there!(_mm256_store_ps(lanes.0.as_chunks_mut::<8>().0[part].as_mut_ptr(), floats));
    }
    #[inline(always)]
    fn plus(self, a: __m256, b: __m256) -> __m256 {
        there!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        there!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        there!(_mm256_add_ps(a, _mm256_mul_ps(b, c)))
    }
    #[inline(always)]
    fn choose(self, words: __m256i, plus: u32, zero: u32) -> Self::Choice {
        there!({
            let none = _mm256_setzero_si256();
            let no_plus = _mm256_cmpeq_epi32(_mm256_and_si256(words, _mm256_set1_epi32(plus as i32)), none);
            let no_zero = _mm256_cmpeq_epi32(_mm256_and_si256(words, _mm256_set1_epi32(zero as i32)), none);
            (_mm256_and_si256(no_plus, _mm256_set1_epi32(i32::MIN)), no_zero)
        })
    }
    #[inline(always)]
    fn negate(self, x: __m256) -> __m256 {
        there!(_mm256_xor_ps(x, _mm256_set1_ps(-0.0)))
    }
    #[inline(always)]
    fn add(self, sum: __m256, (flip, keep): Self::Choice, x: __m256, _minus_x: __m256) -> __m256 {
        there!({
            let x = _mm256_and_si256(_mm256_xor_si256(_mm256_castps_si256(x), flip), keep);
            _mm256_add_ps(sum, _mm256_castsi256_ps(x))
        })
    }
}
