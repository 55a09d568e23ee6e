//! The loops of [`super::block`] over `f32`, by hand for AVX2, where the compiler's form is slower:
//! it does not vectorise a copy of what passes a test. The same additions in the same order: four
//! lanes of every sum to a register; the tail's missing lanes add zero.

use std::arch::x86_64::*;

use super::block::{LANES, Parts, RUN, tree};

type Sum = [__m256d; 4];

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
