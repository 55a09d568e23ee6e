//! The loops of [`super::block`] over `f32` and what it holds exactly, by hand for AVX-512, where the compiler's form is
//! slower (measured by `benches/kernels.rs`). The same additions in the same order, or in another where none of them
//! rounds; the tail's missing lanes add zero.
//!
//! Fused multiply-add is used for squares only: the square of an `f32` is exact in `f64`, so it
//! rounds like a multiplication followed by an addition.

mod load;
mod moments;

use std::arch::asm;
use std::arch::x86_64::*;

use bytemuck::{cast_slice, cast_slice_mut};

pub(crate) use self::load::Load;
pub(super) use self::moments::moments;
use super::block::{Above, LANES, Parts, RUN};

type Sum = [__m512d; 2];

/// 16 weights.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn load(weights: &[f32; LANES]) -> __m512 {
    // SAFETY: the array has the 16 weights that are read.
    unsafe { _mm512_loadu_ps(weights.as_ptr()) }
}

/// The last few weights, and zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn load_rest(weights: &[f32]) -> __m512 {
    // SAFETY: only the lanes in the mask are read, and those lie inside `weights`.
    unsafe { _mm512_maskz_loadu_ps(lanes_of(weights.len()), weights.as_ptr()) }
}

/// The first lanes, 16 at the most.
fn lanes_of(count: usize) -> __mmask16 {
    if count < LANES { (1 << count) - 1 } else { u16::MAX }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn magnitude(w: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(w), _mm512_set1_epi32(0x7fff_ffff)))
}

/// Both halves as `f64`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn widen(x: __m512) -> Sum {
    [_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x))]
}

/// Adds magnitudes: even lanes to the first register, odd ones to the second, everything scaled by 2⁻⁸⁹⁶. An `f32`'s
/// exponent and mantissa, moved to where an `f64` has them, are its value times 2⁻⁸⁹⁶ exactly (denormals too), and scaling
/// by a power of two changes no rounding; this is faster than a conversion.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn add_scaled(sum: Sum, x: __m512) -> Sum {
    let x = _mm512_castps_si512(x);
    // Multiplication by 2²⁹ looks at the lower 32 bits only. Known to the compiler, it becomes a shift and a mask.
    let mut shift = _mm512_set1_epi64(1 << 29);
    // SAFETY: there is no instruction in it.
    unsafe { asm!("/* {} */", inout(zmm_reg) shift, options(pure, nomem, nostack, preserves_flags)) };
    let even = _mm512_mul_epu32(x, shift);
    let odd = _mm512_srli_epi64::<3>(_mm512_and_si512(x, _mm512_set1_epi64(0xffff_ffff_0000_0000_u64 as i64)));
    add(sum, [even, odd].map(|x| _mm512_castsi512_pd(x)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn add(a: Sum, b: Sum) -> Sum {
    [_mm512_add_pd(a[0], b[0]), _mm512_add_pd(a[1], b[1])]
}

/// The sum of what [`add_scaled`] collected.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn total_scaled(sum: Sum) -> f64 {
    let (low, high) = (_mm512_unpacklo_pd(sum[0], sum[1]), _mm512_unpackhi_pd(sum[0], sum[1]));
    let first = _mm512_permutex2var_pd(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
    let second = _mm512_permutex2var_pd(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
    // 2⁸⁹⁶
    total([first, second]) * f64::from_bits((1023 + 896) << 52)
}

/// Lanes 0 to 7 and 8 to 15, from the even and the odd ones.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn in_lane_order([even, odd]: Sum) -> Sum {
    [
        _mm512_permutex2var_pd(even, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), odd),
        _mm512_permutex2var_pd(even, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), odd),
    ]
}

/// [`tree`](super::block::tree), in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn total(sum: Sum) -> f64 {
    let eight = _mm512_add_pd(sum[0], sum[1]);
    let four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd::<1>(eight));
    let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}

/// Asks for so many bytes from there on. Both passes over a filter do so for one half each of what lies
/// behind it, the next filter of most tensors, so that memory is never idle; there is no fault where nothing lies.
/// Into the second cache: two filters and the next two are more than the nearest one holds.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn prefetch(from: *const u8, bytes: usize) {
    (0..bytes).step_by(64).for_each(|at| _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(at).cast()));
}

/// With zeros behind them. Not by copying, which is a call for every such end.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn filled_up<L: Load, const N: usize>(weights: &[L]) -> [L; N] {
    const { assert!(size_of::<[L; N]>().is_multiple_of(64)) };
    let mut all = [L::default(); N];
    let given = cast_slice::<L, u8>(weights);
    for (bytes, at) in cast_slice_mut::<L, u8>(&mut all).as_chunks_mut::<64>().0.iter_mut().zip((0..).step_by(64)) {
        let wanted = _bzhi_u64(u64::MAX, given.len().saturating_sub(at).min(64) as u32);
        // SAFETY: only the bytes in the mask are read, and those lie inside `given`; the array has the 64 bytes that are
        // written.
        unsafe {
            let some = _mm512_maskz_loadu_epi8(wanted, given.as_ptr().wrapping_add(at).cast());
            _mm512_storeu_si512(bytes.as_mut_ptr().cast(), some);
        }
    }
    all
}

/// Which of 64 weights, or of fewer at the end, are above the bound and which below it with the other sign; their
/// magnitudes are added to `sum`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn sides(weights: impl Iterator<Item = __m512>, bound: __m512, sum: &mut Sum) -> (u64, u64) {
    let (mut outside, mut negative) = (0, 0);
    for (i, w) in weights.enumerate() {
        let x = magnitude(w);
        let out = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, bound);
        *sum = add_scaled(*sum, _mm512_maskz_mov_ps(out, x));
        outside |= u64::from(out) << (i * LANES);
        negative |= u64::from(_mm512_movepi32_mask(_mm512_castps_si512(w))) << (i * LANES);
    }
    (outside & !negative, outside & negative)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
pub(super) fn above(weights: &[f32], delta: f32) -> Above {
    let bound = _mm512_set1_ps(delta);
    let (mut sum, mut count, mut positive) = ([_mm512_setzero_pd(); 2], 0, 0);
    let mut count_sides = |(over, under): (u64, u64)| {
        count += u64::from((over | under).count_ones());
        positive += u64::from(over.count_ones());
    };
    let (chunks, rest) = weights.as_chunks::<64>();
    for chunk in chunks {
        count_sides(sides(chunk.as_chunks().0.iter().map(|w| load(w)), bound, &mut sum));
    }
    count_sides(sides(rest.chunks(LANES).map(|w| load_rest(w)), bound, &mut sum));
    Above { count, positive, sum: total_scaled(sum) }
}

/// [`above`], and the codes on the way; the counts are taken from the codes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
pub(super) fn select(weights: &[f32], delta: f32, codes: &mut [u8]) -> Above {
    let (bound, minus) = (_mm512_set1_ps(delta), _mm512_set1_ps(-delta));
    let mut sum = [_mm512_setzero_pd(); 2];
    let mut step = |w: __m512| {
        let over = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(w, bound);
        let under = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(w, minus);
        sum = add_scaled(sum, _mm512_maskz_mov_ps(over | under, magnitude(w)));
        // 1, but 0 where under, and 2 where over.
        _mm_mask_mov_epi8(_mm_maskz_set1_epi8(!under, 1), over, _mm_set1_epi8(2))
    };
    let (chunks, rest) = weights.as_chunks();
    let (code_chunks, code_rest) = codes.as_chunks_mut::<LANES>();
    for (chunk, codes) in chunks.iter().zip(code_chunks) {
        // SAFETY: the array has the 16 bytes that are written.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), step(load(chunk))) };
    }
    let last = step(load_rest(rest));
    // SAFETY: only the bytes in the mask are written, and those lie inside `code_rest`.
    unsafe { _mm_mask_storeu_epi8(code_rest.as_mut_ptr().cast(), lanes_of(code_rest.len()), last) };
    let (zeros, positive) = count_codes(codes);
    Above { count: weights.len() as u64 - zeros, positive, sum: total_scaled(sum) }
}

/// [`above`], and codes of two bits on the way: in each word of 32 weights, the zero ones are what `places[0]`
/// deposits, the positive ones what `places[1]` does. What fills up the last byte counts as zero. `ahead` weights behind
/// these lies what is prefetched.
/// Fast only where it is called from code compiled for AVX-512, of which it becomes a part.
///
/// # Safety
/// AVX-512 is there.
#[inline(always)]
pub(super) unsafe fn select_packed<L: Load>(
    weights: &[L],
    delta: f32,
    ahead: usize,
    places: [u64; 2],
    packed: &mut [u8],
) -> Above {
    // SAFETY: as promised.
    unsafe {
        let mut outside = L::outside(delta);
        let (mut count, mut positive) = (0, 0);
        let mut pack = |(over, under): (u64, u64)| {
            let zero = !(over | under);
            count += u64::from(zero.count_zeros());
            positive += u64::from(over.count_ones());
            let word = |shift| _pdep_u64(zero >> shift, places[0]) | _pdep_u64(over >> shift, places[1]);
            [word(0).to_le_bytes(), word(32).to_le_bytes()]
        };
        let (chunks, rest) = weights.as_chunks::<64>();
        // The last byte may be one for fewer than four weights.
        let (packed_chunks, packed_rest) = packed.split_at_mut(chunks.len() * 16);
        let mut next = weights.as_ptr_range().end.wrapping_add(ahead).cast();
        for (chunk, packed) in chunks.iter().zip(packed_chunks.as_chunks_mut::<16>().0) {
            prefetch(next, size_of_val(chunk) / 2);
            next = next.wrapping_add(size_of_val(chunk) / 2);
            packed.copy_from_slice(pack(L::sides(&mut outside, chunk)).as_flattened());
        }
        if !rest.is_empty() {
            let last = pack(L::sides(&mut outside, &filled_up(rest)));
            // SAFETY: only the bytes in the mask are written, and those lie inside `packed_rest`.
            let last = _mm_loadu_si128(last.as_ptr().cast());
            _mm_mask_storeu_epi8(packed_rest.as_mut_ptr().cast(), lanes_of(packed_rest.len()), last);
        }
        let sum = L::total(outside);
        Above { count, positive, sum: sum.unwrap_or_else(|| sum_above(weights, delta)) }
    }
}

/// Where [`Load::total`] gives none.
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn sum_above<L: Load>(weights: &[L], delta: f32) -> f64 {
    let singles: Vec<f32> = weights.iter().map(|w| w.to_f64() as f32).collect();
    above(&singles, delta).sum
}

/// The same with codes of five to a byte: `sums[bits]` is what five weights that are positive where a bit is set add to
/// `zeros`, the byte of five zero codes; negative ones take it away.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
pub(super) fn select_by_fives<L: Load>(
    weights: &[L],
    delta: f32,
    ahead: usize,
    sums: &[u8; 32],
    zeros: u8,
    packed: &mut [u8],
) -> Above {
    // Five words of bits, and a register of codes.
    const CHUNK: usize = 320;
    // SAFETY: this function is compiled for the features.
    let mut outside = unsafe { L::outside(delta) };
    // SAFETY: the array has the 32 bytes that both loads read.
    let halves = unsafe { [_mm_loadu_si128(sums.as_ptr().cast()), _mm_loadu_si128(sums[16..].as_ptr().cast())] };
    let [low, high] = halves.map(|half| _mm512_broadcast_i32x4(half));
    let sums_of = |words: [u64; 5]| {
        // Five bits to each byte: 40 of them to each word.
        let fives: [u64; 8] = std::array::from_fn(|i| {
            let (word, shift) = (40 * i / 64, 40 * i % 64);
            let next = if shift > 24 { words[word + 1] << (64 - shift) } else { 0 };
            _pdep_u64(words[word] >> shift | next, 0x1f1f_1f1f_1f1f_1f1f)
        });
        // SAFETY: the array has the 64 bytes that are read.
        let bits = unsafe { _mm512_loadu_si512(fives.as_ptr().cast()) };
        let upper = _mm512_test_epi8_mask(bits, _mm512_set1_epi8(16));
        let bits = _mm512_and_si512(bits, _mm512_set1_epi8(15));
        _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(low, bits), upper, high, bits)
    };
    let (mut count, mut positive) = (0, 0);
    let mut next = weights.as_ptr_range().end.wrapping_add(ahead).cast();
    for (weights, packed) in weights.chunks(CHUNK).zip(packed.chunks_mut(64)) {
        prefetch(next, size_of_val(weights) / 2);
        next = next.wrapping_add(size_of_val(weights) / 2);
        let (mut over, mut under) = ([0; 5], [0; 5]);
        let (chunks, rest) = weights.as_chunks::<64>();
        let mut set = |i: usize, (o, u): (u64, u64)| {
            count += u64::from((o | u).count_ones());
            positive += u64::from(o.count_ones());
            (over[i], under[i]) = (o, u);
        };
        for (i, chunk) in chunks.iter().enumerate() {
            // SAFETY: as above.
            set(i, unsafe { L::sides(&mut outside, chunk) });
        }
        if !rest.is_empty() {
            // SAFETY: as above.
            set(chunks.len(), unsafe { L::sides(&mut outside, &filled_up(rest)) });
        }
        let (plus, minus) = (sums_of(over), sums_of(under));
        let codes = _mm512_sub_epi8(_mm512_add_epi8(_mm512_set1_epi8(zeros as i8), plus), minus);
        let wanted = if packed.len() < 64 { (1 << packed.len()) - 1 } else { u64::MAX };
        // SAFETY: only the bytes in the mask are written, and those lie inside `packed`.
        unsafe { _mm512_mask_storeu_epi8(packed.as_mut_ptr().cast(), wanted, codes) };
    }
    // SAFETY: as above.
    let sum = unsafe { L::total(outside) };
    Above { count, positive, sum: sum.unwrap_or_else(|| sum_above(weights, delta)) }
}

/// How many codes are 1, and how many 2.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn count_codes(codes: &[u8]) -> (u64, u64) {
    let (mut zeros, mut positive) = (0, 0);
    let (chunks, rest) = codes.as_chunks::<64>();
    for chunk in chunks {
        // SAFETY: the array has the 64 bytes that are read.
        let codes = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        zeros += u64::from(_mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(1)).count_ones());
        positive += u64::from(_mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(2)).count_ones());
    }
    let of = |wanted: u8| rest.iter().filter(|&&code| code == wanted).count() as u64;
    (zeros + of(1), positive + of(2))
}

/// Copies the magnitudes in (lo, hi] to the front of `kept`, which is as long as `weights`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
pub(super) fn partition(weights: &[f32], lo: f32, hi: f32, kept: &mut [f32]) -> Parts {
    let (low, high) = (_mm512_set1_ps(lo), _mm512_set1_ps(hi));
    let zero = [_mm512_setzero_pd(); 2];
    let (mut at, mut kept_sum, mut above, mut above_sum) = (0, zero, 0, zero);
    for run in weights.chunks(RUN) {
        let (mut kept_run, mut above_run) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        let mut step = |w: __m512| {
            let x = magnitude(w);
            let over = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, high);
            let inside = _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, low), x, high);
            above += u64::from(over.count_ones());
            above_run = _mm512_mask_add_ps(above_run, over, above_run, x);
            kept_run = _mm512_mask_add_ps(kept_run, inside, kept_run, x);
            let packed = _mm512_maskz_compress_ps(inside, x);
            let room = &mut kept[at..];
            match room.first_chunk_mut::<LANES>() {
                // SAFETY: the array has the 16 values that are written.
                Some(room) => unsafe { _mm512_storeu_ps(room.as_mut_ptr(), packed) },
                // SAFETY: only the lanes in the mask are written, and those lie inside `kept`.
                None => unsafe { _mm512_mask_storeu_ps(room.as_mut_ptr(), lanes_of(room.len()), packed) },
            }
            at += inside.count_ones() as usize;
        };
        let (chunks, rest) = run.as_chunks();
        chunks.iter().for_each(|chunk| step(load(chunk)));
        rest.chunks(LANES).for_each(|rest| step(load_rest(rest)));
        kept_sum = add(kept_sum, widen(kept_run));
        above_sum = add(above_sum, widen(above_run));
    }
    Parts { kept: at, kept_sum: total(kept_sum), above, above_sum: total(above_sum) }
}

/// IEEE half precision, little-endian, to single; `out` is as long as `halves`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
pub(super) fn decode_f16(halves: &[[u8; 2]], out: &mut [f32]) {
    let (chunks, rest) = halves.as_chunks::<LANES>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<LANES>();
    for (halves, out) in chunks.iter().zip(out_chunks) {
        // The sums over this filter leave the memory idle; what comes after it is wanted next.
        _mm_prefetch::<_MM_HINT_T1>(halves.as_ptr().wrapping_add(4096).cast());
        // SAFETY: the arrays have the 32 bytes that are read and the 16 values that are written.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast()))) };
    }
    for (half, out) in rest.iter().zip(out_rest) {
        *out = half::f16::from_le_bytes(*half).to_f32();
    }
}

/// The upper halves of single precision, little-endian, to single; `out` is as long as `halves`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
pub(super) fn decode_bf16(halves: &[[u8; 2]], out: &mut [f32]) {
    let (chunks, rest) = halves.as_chunks::<LANES>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<LANES>();
    for (halves, out) in chunks.iter().zip(out_chunks) {
        // As in `decode_f16`.
        _mm_prefetch::<_MM_HINT_T1>(halves.as_ptr().wrapping_add(4096).cast());
        // SAFETY: the arrays have the 32 bytes that are read and the 16 values that are written.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)));
        }
    }
    for (half, out) in rest.iter().zip(out_rest) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16);
    }
}

/// How many 2-bit codes of these bytes (64 at a time) have their low bit set, how many their high
/// bit, and whether any has both. Low and high bits are counted together, and then the high ones of two registers at once.
/// `ahead`: as many bytes behind them are prefetched; what is done with these next leaves the memory idle.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt,avx512vpopcntdq")]
pub(super) fn census(chunks: &[[u8; 64]], ahead: bool) -> (u64, u64, bool) {
    let highs_of = _mm512_set1_epi8(0xaa_u8 as i8);
    let zero = _mm512_setzero_si512();
    let (mut all, mut highs, mut both) = ([zero; 2], zero, zero);
    let mut step = |codes: [__m512i; 2]| {
        let lower = codes.map(|codes| _mm512_srli_epi64::<1>(codes));
        for i in 0..2 {
            // both | codes & lower, in the lower bit of each code
            both = _mm512_ternarylogic_epi64::<0b1111_1000>(both, codes[i], lower[i]);
            all[i] = _mm512_add_epi64(all[i], _mm512_popcnt_epi64(codes[i]));
        }
        // The first one's where they are, the second one's between them.
        let high = _mm512_ternarylogic_epi64::<0b1100_1010>(highs_of, codes[0], lower[1]);
        highs = _mm512_add_epi64(highs, _mm512_popcnt_epi64(high));
    };
    // SAFETY: the array has the 64 bytes that are read.
    let load = |chunk: &[u8; 64]| unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
    let (pairs, rest) = chunks.as_chunks::<2>();
    for pair in pairs {
        if ahead {
            for chunk in pair {
                _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().wrapping_add(size_of_val(chunks)).cast());
            }
        }
        step(pair.each_ref().map(load));
    }
    rest.iter().for_each(|chunk| step([load(chunk), zero]));
    let total = |counts: __m512i| _mm512_reduce_add_epi64(counts) as u64;
    let (all, highs) = (total(all[0]) + total(all[1]), total(highs));
    (all - highs, highs, _mm512_test_epi64_mask(both, _mm512_set1_epi8(0x55)) != 0)
}
