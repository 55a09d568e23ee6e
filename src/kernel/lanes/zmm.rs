//! AVX-512, with the 8-bit dot products of VNNI or without.

use std::arch::x86_64::*;

use super::{CHUNK, LANES, Lanes, Line8, Line32};
use crate::vector::{Avx512, Avx512Vnni};

/// Whoever holds one has the instructions.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernel) struct Zmm<const VNNI: bool>(());

impl Zmm<false> {
    #[inline(always)]
    pub(in crate::kernel) fn new(_proof: Avx512) -> Self {
        Self(())
    }
}

impl Zmm<true> {
    #[inline(always)]
    pub(in crate::kernel) fn new(_proof: Avx512Vnni) -> Self {
        Self(())
    }
}

/// Instructions on registers, and loads and stores of arrays of the register's size.
macro_rules! there {
    ($e:expr) => {{
        // SAFETY: `self` was made from the proof that the machine has these instructions. Every pointer that is read
        // or written is that of an array as long as the register (aligned to it where that is asked for, as `Line8`
        // and `Line32` are), or what is used of it is masked; prefetching takes any address.
        unsafe { $e }
    }};
}

impl<const VNNI: bool> Lanes for Zmm<VNNI> {
    const PARTS: usize = 1;
    const WIDE: bool = VNNI;
    type Bytes = __m512i;
    type Ints = __m512i;
    /// With VNNI 32-bit sums; without, 16-bit sums of two products each.
    type Partial = __m512i;
    type Floats = __m512;
    /// Lanes to negate, lanes to add.
    type Choice = (__mmask16, __mmask16);

    #[inline(always)]
    fn load(self, chunk: &[u8; CHUNK], _part: usize) -> __m512i {
        there!(_mm512_loadu_si512(chunk.as_ptr().cast()))
    }
    #[inline(always)]
    fn load8(self, line: &Line8, _part: usize) -> __m512i {
        there!(_mm512_load_si512(line.0.as_ptr().cast()))
    }
    #[inline(always)]
    fn fill_up(self, rest: &[u8]) -> [u8; CHUNK] {
        assert!(rest.len() < CHUNK, "less than a chunk");
        let mut chunk = [0; CHUNK];
        // Only the bytes in the mask are read, and those lie inside `rest`.
        let bytes = there!(_mm512_maskz_loadu_epi8((1 << rest.len()) - 1, rest.as_ptr().cast()));
        there!(_mm512_storeu_si512(chunk.as_mut_ptr().cast(), bytes));
        chunk
    }
    #[inline(always)]
    fn prefetch<const NEAREST: bool>(self, chunk: &[u8; CHUNK], ahead: usize) {
        let ahead = chunk.as_ptr().wrapping_add(ahead).cast();
        match NEAREST {
            true => there!(_mm_prefetch::<_MM_HINT_T0>(ahead)),
            false => there!(_mm_prefetch::<_MM_HINT_T1>(ahead)),
        }
    }
    #[inline(always)]
    fn splat8(self, byte: u8) -> __m512i {
        there!(_mm512_set1_epi8(byte as i8))
    }
    #[inline(always)]
    fn splat16(self, word: u16) -> __m512i {
        there!(_mm512_set1_epi16(word as i16))
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        there!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        there!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn add8(self, a: __m512i, b: __m512i) -> __m512i {
        there!(_mm512_add_epi8(a, b))
    }
    #[inline(always)]
    fn avg8(self, a: __m512i, b: __m512i) -> __m512i {
        there!(_mm512_avg_epu8(a, b))
    }
    #[inline(always)]
    fn shr16<const N: u32>(self, a: __m512i) -> __m512i {
        there!(_mm512_srli_epi16::<N>(a))
    }
    #[inline(always)]
    fn shl16<const N: u32>(self, a: __m512i) -> __m512i {
        there!(_mm512_slli_epi16::<N>(a))
    }
    #[inline(always)]
    fn mulhi16(self, a: __m512i, b: __m512i) -> __m512i {
        there!(_mm512_mulhi_epu16(a, b))
    }

    #[inline(always)]
    fn ints(self, lanes: &[i32; LANES], _part: usize) -> __m512i {
        there!(_mm512_loadu_si512(lanes.as_ptr().cast()))
    }
    #[inline(always)]
    fn start(self, sums: __m512i) -> __m512i {
        if VNNI { sums } else { there!(_mm512_setzero_si512()) }
    }
    /// Without VNNI: |d·x + d·x| ≤ 2·3·127 and eight of those stay under 6,200, so that the
    /// saturation of 16-bit additions is out of reach.
    #[inline(always)]
    fn dot(self, partial: __m512i, digits: __m512i, x: __m512i) -> __m512i {
        if VNNI {
            there!(_mm512_dpbusd_epi32(partial, digits, x))
        } else {
            there!(_mm512_add_epi16(partial, _mm512_maddubs_epi16(digits, x)))
        }
    }
    #[inline(always)]
    fn finish(self, sums: __m512i, partial: __m512i) -> __m512i {
        if VNNI { partial } else { there!(_mm512_add_epi32(sums, _mm512_madd_epi16(partial, _mm512_set1_epi16(1)))) }
    }
    #[inline(always)]
    fn quarter_and(self, a: __m512i, b: __m512i) -> __m512i {
        there!(_mm512_add_epi32(_mm512_srai_epi32::<2>(a), b))
    }
    #[inline(always)]
    fn total(self, sums: __m512i) -> i32 {
        there!(_mm512_reduce_add_epi32(sums))
    }
    #[inline(always)]
    fn totals(self, [a, b, c, d]: [__m512i; 4]) -> [i32; 4] {
        there!({
            let add = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (ab, cd) = (add(a, b), add(c, d));
            // Four sums in each quarter.
            let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
            let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
            let four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            let mut totals = [0; 4];
            _mm_storeu_si128(totals.as_mut_ptr().cast(), four);
            totals
        })
    }
    #[inline(always)]
    fn to_floats(self, sums: __m512i) -> __m512 {
        there!(_mm512_cvtepi32_ps(sums))
    }

    #[inline(always)]
    fn floats(self, lanes: &Line32, _part: usize) -> __m512 {
        there!(_mm512_load_ps(lanes.0.as_ptr()))
    }
    #[inline(always)]
    fn store(self, floats: __m512, lanes: &mut Line32, _part: usize) {
        there!(_mm512_store_ps(lanes.0.as_mut_ptr(), floats));
    }
    #[inline(always)]
    fn plus(self, a: __m512, b: __m512) -> __m512 {
        there!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        there!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        there!(_mm512_add_ps(a, _mm512_mul_ps(b, c)))
    }
    #[inline(always)]
    fn choose(self, words: __m512i, plus: u32, zero: u32) -> Self::Choice {
        there!({
            let minus = _mm512_testn_epi32_mask(words, _mm512_set1_epi32(plus as i32));
            let keep = if zero == 0 { !0 } else { _mm512_testn_epi32_mask(words, _mm512_set1_epi32(zero as i32)) };
            (minus, keep)
        })
    }
    #[inline(always)]
    fn negate(self, x: __m512) -> __m512 {
        there!(_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MIN))))
    }
    #[inline(always)]
    fn add(self, sum: __m512, (minus, keep): Self::Choice, x: __m512, minus_x: __m512) -> __m512 {
        there!(_mm512_mask_add_ps(sum, keep, sum, _mm512_mask_blend_ps(minus, x, minus_x)))
    }
}
