//! The loops of [`super::block`] over `f32`, by hand for AVX2, where the compiler's form is slower:
//! it does not vectorise a copy of what passes a test, and makes little of sums in `f64`. The same additions in the same
//! order: four lanes of every sum to a register; the tail's missing lanes add zero.

use std::arch::asm;
use std::arch::x86_64::*;

use super::block::{Above, LANES, Moments, Parts, RUN, tree};

type Sum = [__m256d; 4];

/// 16 weights, with zeros behind the last few.
#[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
fn filled_up(rest: &[f32]) -> [f32; LANES] {
    let mut all = [0.0; LANES];
    all[..rest.len()].copy_from_slice(rest);
    all
}

/// Σ|w|, Σw² and max|w|.
#[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
pub(super) fn moments(weights: &[f32]) -> Moments {
    let (sign, sign_f64) = (_mm256_set1_ps(-0.0), _mm256_set1_pd(-0.0));
    let zero = [_mm256_setzero_pd(); 4];
    let (mut sum, mut squares, mut largest) = (zero, zero, _mm256_setzero_si256());
    let mut step = |row: &[f32; LANES]| {
        for (i, four) in row.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: the array has the 4 weights that are read.
            let x = _mm256_andnot_pd(sign_f64, _mm256_cvtps_pd(unsafe { _mm_loadu_ps(four.as_ptr()) }));
            sum[i] = _mm256_add_pd(sum[i], x);
            // The square of an `f32` is exact.
            squares[i] = _mm256_add_pd(squares[i], _mm256_mul_pd(x, x));
        }
        for eight in row.as_chunks::<8>().0 {
            // SAFETY: the array has the 8 weights that are read.
            let x = _mm256_andnot_ps(sign, unsafe { _mm256_loadu_ps(eight.as_ptr()) });
            largest = _mm256_max_epu32(largest, _mm256_castps_si256(x));
        }
    };
    let (rows, rest) = weights.as_chunks();
    for row in rows {
        step(row);
    }
    if !rest.is_empty() {
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
    minus: __m256,
    /// Of lanes 0 to 7, and of 8 to 15: those of even lanes and those of odd ones, scaled by 2⁻⁸⁹⁶.
    sum: Sum,
    above: Above,
}

impl Outside {
    #[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
    pub(super) fn new(delta: f32) -> Self {
        let sum = [_mm256_setzero_pd(); 4];
        Self { bound: _mm256_set1_ps(delta), minus: _mm256_set1_ps(-delta), sum, above: Above::default() }
    }

    /// Adds weights, a multiple of 16 of them unless they are the last ones, and writes their codes, one byte each.
    #[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
    pub(super) fn select(&mut self, weights: &[f32], codes: &mut [u8]) {
        // Multiplication by 2²⁹ looks at the lower 32 bits only. Known to the compiler, it becomes a shift and a mask.
        let mut shift = _mm256_set1_epi64x(1 << 29);
        // SAFETY: there is no instruction in it.
        unsafe { asm!("/* {} */", inout(ymm_reg) shift, options(pure, nomem, nostack, preserves_flags)) };
        let (bound, minus, sign, upper) =
            (self.bound, self.minus, _mm256_set1_ps(-0.0), _mm256_set1_epi64x(0xffff_ffff_0000_0000_u64 as i64));
        let (mut sum, mut count, mut positive) = (self.sum, _mm256_setzero_si256(), _mm256_setzero_si256());
        let mut step = |row: &[f32; LANES]| {
            let mut codes_of = |half: usize| {
                // SAFETY: the array has the 16 weights of which 8 are read.
                let w = unsafe { _mm256_loadu_ps(row.as_ptr().add(8 * half)) };
                let over = _mm256_cmp_ps::<_CMP_GT_OQ>(w, bound);
                let under = _mm256_cmp_ps::<_CMP_LT_OQ>(w, minus);
                let x = _mm256_and_ps(_mm256_andnot_ps(sign, w), _mm256_or_ps(over, under));
                // As in AVX-512's `add_scaled`.
                let x = _mm256_castps_si256(x);
                let odd = _mm256_srli_epi64::<3>(_mm256_and_si256(x, upper));
                for (i, x) in [_mm256_mul_epu32(x, shift), odd].into_iter().enumerate() {
                    sum[2 * half + i] = _mm256_add_pd(sum[2 * half + i], _mm256_castsi256_pd(x));
                }
                let (over, under) = (_mm256_castps_si256(over), _mm256_castps_si256(under));
                positive = _mm256_sub_epi32(positive, over);
                let code = _mm256_sub_epi32(under, over);
                count = _mm256_add_epi32(count, _mm256_abs_epi32(code));
                code
            };
            // Words of lanes 0 to 3 and 8 to 11, and of the others.
            let words = _mm256_packs_epi32(codes_of(0), codes_of(1));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_add_epi8(_mm_shuffle_epi32::<0b11_01_10_00>(bytes), _mm_set1_epi8(1))
        };
        let (rows, rest) = weights.as_chunks();
        let (code_rows, code_rest) = codes.as_chunks_mut::<LANES>();
        for (row, codes) in rows.iter().zip(code_rows) {
            let bytes = step(row);
            // SAFETY: the array has the 16 bytes that are written.
            unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), bytes) };
        }
        if !rest.is_empty() {
            let (bytes, mut all) = (step(&filled_up(rest)), [0; LANES]);
            // SAFETY: as above.
            unsafe { _mm_storeu_si128(all.as_mut_ptr().cast(), bytes) };
            code_rest.copy_from_slice(&all[..code_rest.len()]);
        }
        self.sum = sum;
        self.above.count += sum_of_words(count);
        self.above.positive += sum_of_words(positive);
    }

    #[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
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

#[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
fn sum_of_words(words: __m256i) -> u64 {
    let mut all = [0u32; 8];
    // SAFETY: the array has the 8 values that are written.
    unsafe { _mm256_storeu_si256(all.as_mut_ptr().cast(), words) };
    all.into_iter().map(u64::from).sum()
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
#[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
fn add(sum: &mut Sum, half: usize, x: __m256) {
    sum[half] = _mm256_add_pd(sum[half], _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
    sum[half + 1] = _mm256_add_pd(sum[half + 1], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x)));
}

#[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
fn total(sum: Sum) -> f64 {
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(sum) {
        // SAFETY: the array has the 4 lanes that are written.
        unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), sum) };
    }
    tree(lanes)
}

/// Copies the magnitudes in (lo, hi] to the front of `kept`, which is as long as `weights`.
#[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
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
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
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
