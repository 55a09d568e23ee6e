//! How each type of weights comes into registers: on the way to `f64`, and to codes. Not here: the loops ([`super`]).

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::moments::whole_moments;
use super::{Sum, add, in_lane_order, load, magnitude, sides, total, total_scaled, widen};
use crate::vector::block::{LANES, Moments};
use crate::vector::weight::Weight;

/// Weights that `f32` holds exactly.
///
/// Its functions are inlined into loops that are compiled for AVX-512, and must be called there only: that is what makes
/// them unsafe.
pub(crate) trait Load: Weight {
    /// What lies outside of ±Δ, under way.
    type Outside;

    /// The magnitudes, two rows of 16 in an order of lanes that [`Load::in_order`] knows, and bits that are larger for
    /// larger ones, as those of `f32` are.
    unsafe fn widen(weights: &[Self; 32]) -> ([Sum; 2], __m512i);

    /// Lanes 0 to 7, and 8 to 15.
    unsafe fn in_order(sum: Sum) -> Sum;

    /// Nothing so far, for that Δ ≥ 0, which may be −0.
    unsafe fn outside(delta: f32) -> Self::Outside;

    /// Which weights are above Δ, and which below −Δ; their magnitudes are added.
    unsafe fn sides(outside: &mut Self::Outside, weights: &[Self; 64]) -> (u64, u64);

    /// The sum of those magnitudes; `None` if it cannot be told what rounding in the order of the lanes makes of it.
    unsafe fn total(outside: Self::Outside) -> Option<f64>;

    /// The sums over `N` parts of the same length by a faster way, if there is one for these.
    unsafe fn whole_moments<const N: usize>(_weights: &[Self]) -> Option<[Moments; N]> {
        None
    }
}

impl Load for f32 {
    type Outside = (__m512, Sum);

    #[inline(always)]
    unsafe fn widen(weights: &[f32; 32]) -> ([Sum; 2], __m512i) {
        // SAFETY: the caller has the features.
        unsafe { widen_rows(two_rows(weights).map(|row| magnitude(load(row)))) }
    }

    #[inline(always)]
    unsafe fn in_order(sum: Sum) -> Sum {
        sum
    }

    #[inline(always)]
    unsafe fn outside(delta: f32) -> Self::Outside {
        // SAFETY: the caller has the features.
        unsafe { (_mm512_set1_ps(delta), [_mm512_setzero_pd(); 2]) }
    }

    #[inline(always)]
    unsafe fn sides((bound, sum): &mut Self::Outside, weights: &[f32; 64]) -> (u64, u64) {
        // SAFETY: the caller has the features.
        unsafe { sides(weights.as_chunks().0.iter().map(|row| load(row)), *bound, sum) }
    }

    #[inline(always)]
    unsafe fn total((_, sum): Self::Outside) -> Option<f64> {
        // SAFETY: the caller has the features.
        unsafe { Some(total_scaled(sum)) }
    }
}

impl Load for f16 {
    type Outside = Runs;

    #[inline(always)]
    unsafe fn widen(weights: &[f16; 32]) -> ([Sum; 2], __m512i) {
        // SAFETY: the caller has the features.
        unsafe { widen_rows(two_rows(weights).map(|row| f16_magnitudes(row))) }
    }

    #[inline(always)]
    unsafe fn in_order(sum: Sum) -> Sum {
        sum
    }

    #[inline(always)]
    unsafe fn outside(delta: f32) -> Runs {
        // SAFETY: the caller has the features.
        unsafe { Runs::new(f16::floor_from(f64::from(delta)).magnitude_bits(), delta * (1 << 13) as f32 * F16_SCALE) }
    }

    #[inline(always)]
    unsafe fn sides(outside: &mut Runs, weights: &[f16; 64]) -> (u64, u64) {
        // The bits of an `f16` where an `f32` has them: its value times 2⁻¹¹².
        // SAFETY: the caller has the features.
        unsafe {
            outside.sides(weights, |kept| {
                let mask = _mm512_set1_epi32(0x0fff_e000);
                [_mm512_slli_epi32::<13>(kept), _mm512_srli_epi32::<3>(kept)].map(|x| _mm512_and_si512(x, mask))
            })
        }
    }

    #[inline(always)]
    unsafe fn total(outside: Runs) -> Option<f64> {
        // SAFETY: the caller has the features.
        unsafe { outside.total().map(|sum| sum / f64::from(F16_SCALE)) }
    }

    unsafe fn whole_moments<const N: usize>(weights: &[f16]) -> Option<[Moments; N]> {
        // SAFETY: the multiplication is there, and the caller has the other features.
        if is_x86_feature_detected!("avx512ifma") { unsafe { whole_moments(weights) } } else { None }
    }
}

/// 2⁻¹¹²
const F16_SCALE: f32 = f32::from_bits((127 - 112) << 23);

impl Load for bf16 {
    type Outside = Runs;

    #[inline(always)]
    unsafe fn widen(weights: &[bf16; 32]) -> ([Sum; 2], __m512i) {
        // Even weights, and odd ones: lanes 0, 2, 4 … of both rows in one register, 1, 3, 5 … in another.
        // SAFETY: the caller has the features, and the array the 32 weights that are read.
        unsafe {
            let all = _mm512_and_si512(_mm512_loadu_si512(weights.as_ptr().cast()), _mm512_set1_epi16(0x7fff));
            let [even, odd] = halves_of(all);
            let [e, o] = [even, odd].map(|x| widen(_mm512_castsi512_ps(x)));
            ([[e[0], o[0]], [e[1], o[1]]], _mm512_max_epu32(even, odd))
        }
    }

    #[inline(always)]
    unsafe fn in_order(sum: Sum) -> Sum {
        // SAFETY: the caller has the features.
        unsafe { in_lane_order(sum) }
    }

    #[inline(always)]
    unsafe fn outside(delta: f32) -> Runs {
        // SAFETY: the caller has the features.
        unsafe { Runs::new(bf16::floor_from(f64::from(delta)).magnitude_bits(), delta * (1 << 16) as f32) }
    }

    #[inline(always)]
    unsafe fn sides(outside: &mut Runs, weights: &[bf16; 64]) -> (u64, u64) {
        // SAFETY: the caller has the features.
        unsafe { outside.sides(weights, |kept| halves_of(kept)) }
    }

    #[inline(always)]
    unsafe fn total(outside: Runs) -> Option<f64> {
        // SAFETY: the caller has the features.
        unsafe { outside.total() }
    }
}

/// Even and odd `bf16` as `f32`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn halves_of(all: __m512i) -> [__m512i; 2] {
    [_mm512_slli_epi32::<16>(all), _mm512_and_si512(all, _mm512_set1_epi32(0xffff_0000_u32 as i32))]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
fn widen_rows([a, b]: [__m512; 2]) -> ([Sum; 2], __m512i) {
    ([widen(a), widen(b)], _mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
pub(super) fn f16_magnitudes(row: &[f16; LANES]) -> __m512 {
    // SAFETY: the array has the 16 halves that are read.
    magnitude(_mm512_cvtph_ps(unsafe { _mm256_loadu_si256(row.as_ptr().cast()) }))
}

fn two_rows<L>(weights: &[L; 32]) -> [&[L; LANES]; 2] {
    let rows = weights.as_chunks().0;
    [&rows[0], &rows[1]]
}

/// Magnitudes above Δ of a 16-bit type, added up in `f32` over short runs. With p bits of precision all of them are
/// multiples of Δ·2⁻ᵖ, and `f32` holds multiples exactly up to 2²⁴ of them: where no sum of a run reaches `limit`,
/// Δ·2²⁴⁻ᵖ, none was rounded, and neither is a sum in `f64`, in whatever order.
pub(crate) struct Runs {
    /// The largest magnitude that is not above Δ, as bits.
    bound: __m512i,
    limit: f32,
    run: [__m512; 4],
    /// Chunks of 64 weights until the run ends.
    left: u32,
    largest: __m512,
    sum: Sum,
}

impl Runs {
    /// In chunks of 64 weights: 128 weights to a lane.
    const LENGTH: u32 = 32;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    fn new(bound: u16, limit: f32) -> Self {
        let (zero, sum) = (_mm512_setzero_ps(), [_mm512_setzero_pd(); 2]);
        let bound = _mm512_set1_epi16(bound as i16);
        Self { bound, limit, run: [zero; 4], left: Self::LENGTH, largest: zero, sum }
    }

    /// `split`: even and odd halves as `f32`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    #[inline]
    fn sides<H>(&mut self, weights: &[H; 64], split: impl Fn(__m512i) -> [__m512i; 2]) -> (u64, u64) {
        const { assert!(size_of::<H>() == 2) };
        let (mut outside, mut negative) = (0, 0);
        for (i, halves) in weights.as_chunks::<32>().0.iter().enumerate() {
            // SAFETY: the array has the 32 halves that are read.
            let w = unsafe { _mm512_loadu_si512(halves.as_ptr().cast()) };
            let x = _mm512_and_si512(w, _mm512_set1_epi16(0x7fff));
            let out = _mm512_cmpgt_epu16_mask(x, self.bound);
            let parts = split(_mm512_maskz_mov_epi16(out, x));
            for (run, part) in self.run[2 * i..].iter_mut().zip(parts) {
                *run = _mm512_add_ps(*run, _mm512_castsi512_ps(part));
            }
            outside |= u64::from(out) << (32 * i);
            negative |= u64::from(_mm512_movepi16_mask(w)) << (32 * i);
        }
        self.left -= 1;
        if self.left == 0 {
            self.end_run();
        }
        (outside & !negative, outside & negative)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    fn end_run(&mut self) {
        let [a, b, c, d] = self.run;
        let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
        self.largest = _mm512_max_ps(self.largest, sum);
        self.sum = add(self.sum, widen(sum));
        (self.run, self.left) = ([_mm512_setzero_ps(); 4], Self::LENGTH);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    fn total(mut self) -> Option<f64> {
        self.end_run();
        let largest = _mm512_reduce_max_ps(self.largest);
        (largest < self.limit || largest == 0.0).then(|| total(self.sum))
    }
}
