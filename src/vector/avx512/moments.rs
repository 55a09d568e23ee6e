//! Σ|w|, Σw² and max|w|: in `f64` like everywhere, and for `f16` in whole numbers, where that is the same and faster.
//! Not here: how weights come into registers ([`mod@super::load`]).

use std::arch::x86_64::*;

use half::f16;

use super::load::f16_magnitudes;
use super::{Load, Sum, filled_up, in_lane_order, prefetch, total};
use crate::vector::block::Moments;

/// Of each of `N` parts of the same length. Several at a time do not wait for each other's additions.
/// Fast only where it is called from code compiled for AVX-512, of which it becomes a part.
///
/// # Safety
/// AVX-512 is there.
#[inline(always)]
pub(in crate::vector) unsafe fn moments<L: Load, const N: usize>(weights: &[L]) -> [Moments; N] {
    // SAFETY: as promised.
    match unsafe { L::whole_moments(weights) } {
        Some(moments) => moments,
        // SAFETY: as above.
        None => unsafe { sums::<L, Floats, N>(weights).map(|sums| sums.end::<L>()) },
    }
}

/// [`moments`] by [`Whole`], if every part allows it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt,avx512ifma")]
pub(super) fn whole_moments<const N: usize>(weights: &[f16]) -> Option<[Moments; N]> {
    // SAFETY: this function is compiled for the features.
    let sums = unsafe { sums::<f16, Whole, N>(weights) }.map(|sums| sums.end());
    sums.iter().all(Option::is_some).then(|| sums.map(Option::unwrap_or_default))
}

/// Sums under way. Both functions are inlined into a loop that is compiled for what they need, and must be called there
/// only.
trait Sums<L>: Copy {
    unsafe fn start() -> Self;

    unsafe fn add(&mut self, weights: &[L; 32]);
}

/// # Safety
/// The caller is compiled for what `S` needs.
#[inline(always)]
unsafe fn sums<L: Load, S: Sums<L>, const N: usize>(weights: &[L]) -> [S; N] {
    let n = weights.len() / N;
    let parts: [&[L]; N] = std::array::from_fn(|part| &weights[part * n..(part + 1) * n]);
    let chunks = parts.map(|part| part.as_chunks::<64>().0);
    let mut next = weights.as_ptr_range().end.cast();
    // SAFETY: as promised.
    unsafe {
        let mut sums = [S::start(); N];
        for i in 0..n / 64 {
            let half = N * 32 * size_of::<L>();
            prefetch(next, half);
            next = next.wrapping_add(half);
            for j in 0..2 {
                for (sums, chunks) in sums.iter_mut().zip(chunks) {
                    sums.add(&chunks[i].as_chunks().0[j]);
                }
            }
        }
        for (sums, part) in sums.iter_mut().zip(parts) {
            for rest in part[n / 64 * 64..].chunks(32) {
                sums.add(&filled_up(rest));
            }
        }
        sums
    }
}

#[derive(Clone, Copy)]
struct Floats {
    sum: Sum,
    squares: Sum,
    largest: __m512i,
}

impl<L: Load> Sums<L> for Floats {
    #[inline(always)]
    unsafe fn start() -> Self {
        // SAFETY: the caller has the features.
        let (zero, largest) = unsafe { ([_mm512_setzero_pd(); 2], _mm512_setzero_si512()) };
        Self { sum: zero, squares: zero, largest }
    }

    #[inline(always)]
    unsafe fn add(&mut self, weights: &[L; 32]) {
        // SAFETY: the caller has the features.
        unsafe {
            let (rows, largest) = L::widen(weights);
            self.largest = _mm512_max_epu32(self.largest, largest);
            for row in rows {
                for (half, x) in row.into_iter().enumerate() {
                    self.sum[half] = _mm512_add_pd(self.sum[half], x);
                    self.squares[half] = _mm512_fmadd_pd(x, x, self.squares[half]);
                }
            }
        }
    }
}

impl Floats {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    fn end<L: Load>(self) -> Moments {
        // SAFETY: this function is compiled for the features.
        let [sum, squares] = [self.sum, self.squares].map(|sum| total(unsafe { L::in_order(sum) }));
        let max = f32::from_bits(_mm512_reduce_max_epu32(self.largest));
        Moments { sum, sum_of_squares: squares, max: f64::from(max) }
    }
}

/// An `f16` is a multiple of 2⁻²⁴, its square of 2⁻⁴⁸. As long as a lane's Σw² is below 2⁵³ of these, no sum in `f64` is
/// rounded either, and these are the same.
#[derive(Clone, Copy)]
struct Whole {
    /// Even lanes, and odd ones.
    sum: [__m512i; 2],
    squares: [__m512i; 2],
    largest: __m512i,
}

impl Sums<f16> for Whole {
    #[inline(always)]
    unsafe fn start() -> Self {
        // SAFETY: the caller has the features.
        let zero = unsafe { _mm512_setzero_si512() };
        Self { sum: [zero; 2], squares: [zero; 2], largest: zero }
    }

    #[inline(always)]
    unsafe fn add(&mut self, weights: &[f16; 32]) {
        for row in weights.as_chunks::<16>().0 {
            // SAFETY: the caller has the features.
            unsafe {
                let x = f16_magnitudes(row);
                // What is too large becomes 2³¹.
                let x = _mm512_cvttps_epi32(_mm512_mul_ps(x, _mm512_set1_ps((1 << 24) as f32)));
                self.largest = _mm512_max_epu32(self.largest, x);
                let lanes = [_mm512_and_si512(x, _mm512_set1_epi64(0xffff_ffff)), _mm512_srli_epi64::<32>(x)];
                for (i, x) in lanes.into_iter().enumerate() {
                    self.sum[i] = _mm512_add_epi64(self.sum[i], x);
                    self.squares[i] = _mm512_madd52lo_epu64(self.squares[i], x, x);
                }
            }
        }
    }
}

impl Whole {
    /// Multiples of 2⁻²⁴; squares of smaller ones have 50 bits, and a lane of a block 63.
    const LIMIT: u32 = 1 << 25;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt")]
    fn end(self) -> Option<Moments> {
        let max = _mm512_reduce_max_epu32(self.largest);
        let most = _mm512_reduce_max_epu64(_mm512_max_epu64(self.squares[0], self.squares[1]));
        let [sum, squares] =
            [self.sum, self.squares].map(|sum| total(in_lane_order(sum.map(|x| _mm512_cvtepu64_pd(x)))));
        let unit = 1.0 / f64::from(1 << 24);
        let moments = Moments { sum: sum * unit, sum_of_squares: squares * (unit * unit), max: f64::from(max) * unit };
        (max < Self::LIMIT && most < 1 << 53).then_some(moments)
    }
}
