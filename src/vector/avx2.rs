//! The loops of [`super::block`] over `f32` and what it holds exactly, by hand for AVX2, where the compiler's form is slower:
//! it does not vectorise a copy of what passes a test, and makes little of sums in `f64`. The same additions in the same
//! order: four lanes of every sum to a register; the tail's missing lanes add zero.

use std::arch::asm;
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::block::{Above, LANES, Moments, Parts, RUN, tree};
use super::weight::Weight;

type Sum = [__m256d; 4];

/// Weights of which eight become `f32` as they are loaded.
///
/// Its function is inlined into loops that are compiled for AVX2, and must be called there only: that is what makes it unsafe.
pub(crate) trait Load: Weight {
    unsafe fn load(weights: &[Self; 8]) -> __m256;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load(weights: &[f32; 8]) -> __m256 {
        // SAFETY: the array has the 8 weights that are read, and the caller the instructions.
        unsafe { _mm256_loadu_ps(weights.as_ptr()) }
    }
}

impl Load for f16 {
    #[inline(always)]
    unsafe fn load(weights: &[f16; 8]) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(weights.as_ptr().cast())) }
    }
}

impl Load for bf16 {
    #[inline(always)]
    unsafe fn load(weights: &[bf16; 8]) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(weights.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// The last few weights, with zeros behind them.
#[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
fn filled_up<W: Weight, const N: usize>(rest: &[W]) -> [W; N] {
    let mut all = [W::default(); N];
    all[..rest.len()].copy_from_slice(rest);
    all
}

/// Asks for chunk `i` of half as many bytes as the weights have, from there on.
#[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
fn prefetch<W>(from: *const W, i: usize) {
    _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(CHUNK / 2 * i).cast());
}

/// Weights that codes are made of at a time.
const CHUNK: usize = 32;

/// Σ|w|, Σw² and max|w|; prefetches half as many bytes from `next` on.
#[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
pub(super) fn moments<W: Load>(weights: &[W], next: *const W) -> Moments {
    let sign = _mm256_set1_ps(-0.0);
    let zero = [_mm256_setzero_pd(); 4];
    let (mut sum, mut squares, mut largest) = (zero, zero, _mm256_setzero_si256());
    let mut step = |row: &[W; LANES]| {
        for (half, eight) in row.as_chunks().0.iter().enumerate() {
            // SAFETY: this function is compiled for AVX2.
            let x = _mm256_andnot_ps(sign, unsafe { W::load(eight) });
            largest = _mm256_max_epu32(largest, _mm256_castps_si256(x));
            let parts = [_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)];
            for (i, part) in parts.into_iter().enumerate() {
                let (x, at) = (_mm256_cvtps_pd(part), 2 * half + i);
                sum[at] = _mm256_add_pd(sum[at], x);
                // The square of an `f32` is exact in `f64`: fused or not, only the addition rounds.
                squares[at] = _mm256_fmadd_pd(x, x, squares[at]);
            }
        }
    };
    let (chunks, rest) = weights.as_chunks::<CHUNK>();
    for (i, chunk) in chunks.iter().enumerate() {
        prefetch(next, i);
        for row in chunk.as_chunks().0 {
            step(row);
        }
    }
    for rest in rest.chunks(LANES) {
        step(&filled_up(rest));
    }
    let mut bits = [0; 8];
    // SAFETY: the array has the 8 values that are written.
    unsafe { _mm256_storeu_si256(bits.as_mut_ptr().cast(), largest) };
    let max = f32::from_bits(bits.into_iter().max().unwrap_or_default());
    Moments { sum: total(sum), sum_of_squares: total(squares), max: f64::from(max) }
}

/// What lies outside of ±Δ, under way.
pub(crate) struct Outside {
    bound: __m256,
    /// Of lanes 0 to 7, and of 8 to 15: the even ones and the odd ones, scaled by 2⁻⁸⁹⁶.
    sum: Sum,
    above: Above,
}

impl Outside {
    #[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
    pub(super) fn new(delta: f32) -> Self {
        Self { bound: _mm256_set1_ps(delta), sum: [_mm256_setzero_pd(); 4], above: Above::default() }
    }

    /// Adds weights, a multiple of 16 of them unless they are the last ones, and writes their codes, one byte each;
    /// prefetches half as many bytes from `next` on.
    #[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
    pub(super) fn select<W: Load>(&mut self, weights: &[W], next: *const W, codes: &mut [u8]) {
        let (chunks, rest) = weights.as_chunks();
        let (code_chunks, code_rest) = codes.as_chunks_mut::<CHUNK>();
        for (i, (chunk, codes)) in chunks.iter().zip(code_chunks).enumerate() {
            prefetch(next, i);
            *codes = self.codes(chunk);
        }
        if !rest.is_empty() {
            code_rest.copy_from_slice(&self.codes(&filled_up(rest))[..code_rest.len()]);
        }
    }

    #[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
    #[inline]
    fn codes<W: Load>(&mut self, weights: &[W; CHUNK]) -> [u8; CHUNK] {
        let (sign, upper) = (_mm256_set1_ps(-0.0), _mm256_set1_epi64x(0xffff_ffff_0000_0000_u64 as i64));
        // As in AVX-512's `add_scaled`.
        let mut shift = _mm256_set1_epi64x(1 << 29);
        // SAFETY: there is no instruction in it.
        unsafe { asm!("/* {} */", inout(ymm_reg) shift, options(pure, nomem, nostack, preserves_flags)) };
        let mut eight = |i: usize| {
            // SAFETY: this function is compiled for AVX2.
            let w = unsafe { W::load(&weights.as_chunks().0[i]) };
            let x = _mm256_andnot_ps(sign, w);
            let out = _mm256_cmp_ps::<_CMP_GT_OQ>(x, self.bound);
            let mut x = _mm256_castps_si256(_mm256_and_ps(x, out));
            // SAFETY: as above. The compiler would mask what the multiplication does not look at.
            unsafe { asm!("/* {} */", inout(ymm_reg) x, options(pure, nomem, nostack, preserves_flags)) };
            let parts = [_mm256_mul_epu32(x, shift), _mm256_srli_epi64::<3>(_mm256_and_si256(x, upper))];
            for (sum, x) in self.sum[i % 2 * 2..].iter_mut().zip(parts) {
                *sum = _mm256_add_pd(*sum, _mm256_castsi256_pd(x));
            }
            [w, out].map(|x| _mm256_castps_si256(x))
        };
        let [[w0, out0], [w1, out1], [w2, out2], [w3, out3]] = [eight(0), eight(1), eight(2), eight(3)];
        // Saturated, words and bytes keep their sign.
        let bytes = |a, b, c, d| _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let (w, out) = (bytes(w0, w1, w2, w3), bytes(out0, out1, out2, out3));
        // −1, 0 or 1; what is outside is not zero.
        let t = _mm256_sign_epi8(_mm256_abs_epi8(out), w);
        let (out, negative) = (_mm256_movemask_epi8(out).count_ones(), _mm256_movemask_epi8(t).count_ones());
        self.above.count += u64::from(out);
        self.above.positive += u64::from(out - negative);
        let code = _mm256_add_epi8(t, _mm256_set1_epi8(1));
        let code = _mm256_permutevar8x32_epi32(code, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let mut codes = [0; CHUNK];
        // SAFETY: the array has the 32 bytes that are written.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), code) };
        codes
    }

    #[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
    pub(super) fn end(self) -> Above {
        let [a, b, c, d] = self.sum;
        let in_order = |even, odd| {
            let (low, high) = (_mm256_unpacklo_pd(even, odd), _mm256_unpackhi_pd(even, odd));
            [_mm256_permute2f128_pd::<0x20>(low, high), _mm256_permute2f128_pd::<0x31>(low, high)]
        };
        let ([a, b], [c, d]) = (in_order(a, b), in_order(c, d));
        // 2⁸⁹⁶
        Above { sum: total([a, b, c, d]) * f64::from_bits((1023 + 896) << 52), ..self.above }
    }
}

/// For every mask of 8 lanes: which lanes it has, in order.
static PLACES: [[u8; 8]; 256] = {
    let mut places = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut count) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                places[mask][count] = lane as u8;
                count += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    places
};

/// Adds 8 values, of lanes 0 to 7 where `half` is 0, and 8 to 15 where it is 2.
#[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
fn add(sum: &mut Sum, half: usize, x: __m256) {
    sum[half] = _mm256_add_pd(sum[half], _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
    sum[half + 1] = _mm256_add_pd(sum[half + 1], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x)));
}

#[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
fn total(sum: Sum) -> f64 {
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(sum) {
        // SAFETY: the array has the 4 lanes that are written.
        unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), sum) };
    }
    tree(lanes)
}

/// Copies the magnitudes in (lo, hi] to the front of `kept`, which is as long as `weights`.
#[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
pub(super) fn partition(weights: &[f32], lo: f32, hi: f32, kept: &mut [f32]) -> Parts {
    let (low, high, sign) = (_mm256_set1_ps(lo), _mm256_set1_ps(hi), _mm256_set1_ps(-0.0));
    let zero = [_mm256_setzero_pd(); 4];
    let (mut at, mut kept_sum, mut above, mut above_sum) = (0, zero, 0, zero);
    for run in weights.chunks(RUN) {
        // Lanes 0 to 7, and 8 to 15.
        let (mut kept_run, mut above_run) = ([_mm256_setzero_ps(); 2], [_mm256_setzero_ps(); 2]);
        let mut step = |weights: &[f32; 8], half: usize| {
            // SAFETY: the array has the 8 weights that are read.
            let x = _mm256_andnot_ps(sign, unsafe { _mm256_loadu_ps(weights.as_ptr()) });
            let over = _mm256_cmp_ps::<_CMP_GT_OQ>(x, high);
            let inside = _mm256_andnot_ps(over, _mm256_cmp_ps::<_CMP_GT_OQ>(x, low));
            above += u64::from(_mm256_movemask_ps(over).count_ones());
            above_run[half] = _mm256_add_ps(above_run[half], _mm256_and_ps(over, x));
            kept_run[half] = _mm256_add_ps(kept_run[half], _mm256_and_ps(inside, x));
            let mask = _mm256_movemask_ps(inside) as usize;
            // SAFETY: a row of the table has the 8 bytes that are read.
            let places = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(PLACES[mask].as_ptr().cast())) };
            let packed = _mm256_permutevar8x32_ps(x, places);
            let count = mask.count_ones() as usize;
            match kept[at..].first_chunk_mut::<8>() {
                // SAFETY: the array has the 8 values that are written.
                Some(room) => unsafe { _mm256_storeu_ps(room.as_mut_ptr(), packed) },
                None => {
                    let mut all = [0.0; 8];
                    // SAFETY: as above.
                    unsafe { _mm256_storeu_ps(all.as_mut_ptr(), packed) };
                    kept[at..at + count].copy_from_slice(&all[..count]);
                }
            }
            at += count;
        };
        let (chunks, rest) = run.as_chunks::<LANES>();
        let last = filled_up(rest);
        for chunk in chunks.iter().chain([&last]) {
            let [first, second] = chunk.as_chunks::<8>().0 else { unreachable!("16 are twice 8") };
            step(first, 0);
            step(second, 1);
        }
        for half in 0..2 {
            add(&mut kept_sum, 2 * half, kept_run[half]);
            add(&mut above_sum, 2 * half, above_run[half]);
        }
    }
    Parts { kept: at, kept_sum: total(kept_sum), above, above_sum: total(above_sum) }
}

#[cfg(test)]
mod tests {
    use super::super::block::Partition;
    use super::super::{Isa, Task};

    /// Every length up to a few chunks, with equal weights, zeros of either sign and denormals.
    #[test]
    fn partition_is_the_portable_one() {
        let values = [0.0, -0.0, 1e-42, -1e-42, 0.25, -0.25, 0.3, -0.7, 1.5, f32::MIN_POSITIVE, -3e38];
        for length in (0..200).chain([255, 256, 257, 511, 512, 513, 900]) {
            let weights: Vec<f32> = (0..length).map(|i| values[(i * i + i / 7 * length) % values.len()]).collect();
            for (lo, hi) in [(0.0, f32::MAX), (0.0, 0.25), (0.25, 0.7), (0.3, 0.3), (1e-42, 1.5), (2.0, 2.5)] {
                let (mut expected, mut kept) = (vec![0.0; length], vec![0.0; length]);
                let portable = Partition { weights: &weights, lo, hi, kept: &mut expected }.portable();
                for isa in Isa::all() {
                    let parts = isa.run(Partition { weights: &weights, lo, hi, kept: &mut kept });
                    assert_eq!(parts, portable, "{}, {length} weights, {lo} to {hi}", isa.name());
                    assert_eq!(kept[..parts.kept], expected[..portable.kept], "{}, {length} weights", isa.name());
                }
            }
        }
    }
}
