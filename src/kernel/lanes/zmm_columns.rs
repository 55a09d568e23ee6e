//! Columns of activations, rounded to 8 bits and laid down with AVX-512: what [`Pack8`] says, by hand, since the
//! compiler turns rows into columns byte by byte. Not here: what becomes of them.

use std::arch::x86_64::*;

use ndarray::{ArrayView2, Axis};

use super::{CHUNK, LANES, Line8};
use crate::kernel::activations::{LONGEST, Pack8, Quantized, Quantizer, magnitude};
use crate::kernel::digits::{Digits, T2};
use crate::vector::Avx512;

/// Columns that are worked on together, in one register where they are bytes.
const GROUP: usize = 64;

/// Lays down columns of X, n × any; every row lies in one run.
#[inline]
pub(in crate::kernel) fn pack8<D: Digits>(_proof: Avx512, columns: Pack8<'_, D>) {
    // Whole rows are read fastest; 512 columns, 8 of their chunks' rows rounded, are 128 to 256 KiB.
    const MANY: usize = 8;
    for block in columns.blocks(MANY * GROUP) {
        let lay_down = if block.x.ncols() <= GROUP { lay_down::<D, 1> } else { lay_down::<D, MANY> };
        // SAFETY: the proof says that the machine has every feature that both functions are compiled for.
        unsafe { lay_down(block) };
    }
}

/// Lays down columns of X, each of which lies in one run, for `t2`.
#[inline]
pub(in crate::kernel) fn pack8_runs(_proof: Avx512, columns: Pack8<'_, T2>) {
    // SAFETY: the proof says that the machine has every feature that this function is compiled for.
    unsafe { lay_down_runs(columns) };
}

#[target_feature(enable = "avx512f,avx512bw")]
fn lay_down_runs(Pack8 { x, lines, columns, sums, .. }: Pack8<'_, T2>) {
    let chunks = x.nrows().div_ceil(T2::PER_CHUNK);
    // Where each of four weights' bytes stand together, in each quarter; and where those of all quarters do.
    let by_weight = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    let by_quarter = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let (chunked, _) = lines.as_chunks_mut::<{ T2::PER_BYTE }>();
    for (c, (x, column)) in x.columns().into_iter().zip(columns).enumerate() {
        let x = x.to_slice().unwrap_or_default();
        let quantizer = Quantizer::new(x.iter().fold(0, |max, &x| max.max(magnitude(x))));
        let (lift, steps) = (_mm512_set1_ps(quantizer.lift), _mm512_set1_ps(quantizer.steps));
        let mut total = 0;
        let to = chunked[c * chunks..].iter_mut().zip(&mut sums[c * chunks..]);
        for (x, (lines, sums)) in x.chunks(T2::PER_CHUNK).zip(to) {
            let mut parts = [_mm512_setzero_si512(); CHUNK / LANES];
            for (part, x) in parts.iter_mut().zip(x.chunks(CHUNK)) {
                let bytes = |i| _mm512_cvtepi32_epi8(round(load(x, i * LANES), lift, steps));
                let bytes = _mm512_inserti32x4::<3>(
                    _mm512_inserti32x4::<2>(
                        _mm512_inserti32x4::<1>(_mm512_castsi128_si512(bytes(0)), bytes(1)),
                        bytes(2),
                    ),
                    bytes(3),
                );
                *part = _mm512_permutexvar_epi32(by_quarter, _mm512_shuffle_epi8(bytes, by_weight));
            }
            let mut lane_sums = _mm512_setzero_si512();
            for (line, bytes) in lines.iter_mut().zip(join(parts)) {
                set_bytes(line, bytes);
                lane_sums = _mm512_add_epi32(lane_sums, sums_of_four(bytes));
            }
            total += i64::from(_mm512_reduce_add_epi32(lane_sums));
            // SAFETY: the array has the 16 sums that are written.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), lane_sums) };
        }
        *column = Quantized { scale: quantizer.scale, sum: total };
    }
}

/// At most `GROUPS` groups of columns.
#[target_feature(enable = "avx512f,avx512bw")]
fn lay_down<D: Digits, const GROUPS: usize>(Pack8 { x, lines, columns, sums, .. }: Pack8<'_, D>) {
    let chunks = x.nrows().div_ceil(D::PER_CHUNK);
    let quantizers = largest::<GROUPS>(x).map(|group| group.map(Quantizer::new));
    let lifts = quantizers.map(|group| group.map(|q| q.lift));
    let steps = quantizers.map(|group| group.map(|q| q.steps));
    for (column, quantizer) in columns.iter_mut().zip(quantizers.as_flattened()) {
        *column = Quantized { scale: quantizer.scale, sum: 0 };
    }
    let mut rounded = [[Line8([0; CHUNK]); GROUPS]; LONGEST];
    let mut parts = [[[Line8([0; CHUNK]); LANES]; CHUNK / LANES]; LONGEST / CHUNK];
    for (i, x) in x.axis_chunks_iter(Axis(0), D::PER_CHUNK).enumerate() {
        for (to, row) in rounded.iter_mut().zip(x.rows()) {
            let row = row.to_slice().unwrap_or_default();
            for (g, line) in to.iter_mut().enumerate().take(row.len().div_ceil(GROUP)) {
                for (part, to) in line.0.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    let (lift, steps) = (load(&lifts[g], part * LANES), load(&steps[g], part * LANES));
                    let words = round(load(row, g * GROUP + part * LANES), lift, steps);
                    // SAFETY: the array has the 16 bytes that are written.
                    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(words)) };
                }
            }
        }
        rounded[x.nrows()..D::PER_CHUNK].fill([Line8([0; _]); GROUPS]);
        for (g, first) in (0..x.ncols()).step_by(GROUP).enumerate() {
            let count = (x.ncols() - first).min(GROUP);
            // The weights of 64 bytes, 16 of them at a time.
            for (k, parts) in parts[..D::PER_BYTE].iter_mut().enumerate() {
                for (p, part) in parts.iter_mut().enumerate() {
                    let row = LANES * p * D::PER_BYTE + D::weight(k);
                    turn(rounded[row..].iter().step_by(D::PER_BYTE).map(|row| &row[g]), part);
                }
            }
            for column in 0..LANES.min(count) {
                let share = D::PER_CHUNK.div_ceil(LANES * GROUPS);
                let from = D::PER_CHUNK + (g * LANES + column) * share;
                (from..from + share).for_each(|row| prefetch(x, row));
                let places = (column..count).step_by(LANES).map(|c| (first + c) * chunks + i);
                let mut lane_sums = [_mm512_setzero_si512(); CHUNK / LANES];
                for (k, [a, b, c, d]) in parts[..D::PER_BYTE].iter().enumerate() {
                    let turned = join([&a[column], &b[column], &c[column], &d[column]].map(|line| bytes(line)));
                    for ((place, line), sum) in places.clone().zip(turned).zip(&mut lane_sums) {
                        set_bytes(&mut lines[place * D::PER_BYTE + k], line);
                        *sum = _mm512_add_epi32(*sum, sums_of_four(line));
                    }
                }
                for ((place, sum), c) in places.zip(lane_sums).zip((first + column..).step_by(LANES)) {
                    columns[c].sum += i64::from(_mm512_reduce_add_epi32(sum));
                    // SAFETY: the array has the 16 sums that are written.
                    unsafe { _mm512_storeu_si512(sums[place].as_mut_ptr().cast(), sum) };
                }
            }
        }
    }
}

/// The largest magnitude of each column, as bits.
#[target_feature(enable = "avx512f,avx512bw")]
fn largest<const GROUPS: usize>(x: ArrayView2<'_, f32>) -> [[u32; GROUP]; GROUPS] {
    let mut parts = [[_mm512_setzero_si512(); GROUP / LANES]; GROUPS];
    let magnitude = |x: __m512| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff));
    for row in x.rows() {
        let (chunks, rest) = row.to_slice().unwrap_or_default().as_chunks::<LANES>();
        let parts = parts.as_flattened_mut();
        for (max, chunk) in parts.iter_mut().zip(chunks) {
            *max = _mm512_max_epu32(*max, magnitude(load(chunk, 0)));
        }
        if let Some(max) = parts.get_mut(chunks.len()) {
            *max = _mm512_max_epu32(*max, magnitude(load(rest, 0)));
        }
    }
    let mut largest = [[0; GROUP]; GROUPS];
    for (to, max) in largest.as_flattened_mut().as_chunks_mut::<LANES>().0.iter_mut().zip(parts.as_flattened()) {
        // SAFETY: the array has the 16 words that are written.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *max) };
    }
    largest
}

/// 16 floats from there on, and zeros where there are fewer.
#[target_feature(enable = "avx512f,avx512bw")]
fn load(row: &[f32], from: usize) -> __m512 {
    let rest = row.get(from..).unwrap_or_default();
    match rest.first_chunk::<LANES>() {
        // SAFETY: the array has the 16 floats that are read.
        Some(floats) => unsafe { _mm512_loadu_ps(floats.as_ptr()) },
        // Not masked: where there is no memory at all, that takes the processor hundreds of cycles.
        None if rest.is_empty() => _mm512_setzero_ps(),
        // SAFETY: only the floats in the mask are read, and those lie inside `rest`.
        None => unsafe { _mm512_maskz_loadu_ps((1 << rest.len()) - 1, rest.as_ptr()) },
    }
}

/// [`Quantizer::round`]; the rounded numbers are in the lowest bytes.
#[target_feature(enable = "avx512f,avx512bw")]
fn round(x: __m512, lift: __m512, steps: __m512) -> __m512i {
    let stretched = _mm512_mul_ps(_mm512_mul_ps(x, lift), steps);
    _mm512_castps_si512(_mm512_add_ps(stretched, _mm512_set1_ps(12_582_912.0)))
}

/// Asks for a row of the next chunk, while this one is worked on; there is no fault where nothing lies.
#[target_feature(enable = "avx512f,avx512bw")]
fn prefetch(x: ArrayView2<'_, f32>, row: usize) {
    let row = x.as_ptr().wrapping_offset(row as isize * x.strides()[0]);
    (0..x.ncols()).step_by(LANES).for_each(|column| _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(column).cast()));
}

/// 64 bytes.
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes(line: &Line8) -> __m512i {
    // SAFETY: the array has the 64 bytes that are read.
    unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn set_bytes(line: &mut Line8, bytes: __m512i) {
    // SAFETY: the array has the 64 bytes that are written.
    unsafe { _mm512_storeu_si512(line.0.as_mut_ptr().cast(), bytes) }
}

/// 16 rows of 64 columns: what was byte 16·l + i of row j is byte 16·l + j of row i then.
#[target_feature(enable = "avx512f,avx512bw")]
fn turn<'r>(from: impl Iterator<Item = &'r Line8>, to: &mut [Line8; LANES]) {
    let mut rows = [_mm512_setzero_si512(); LANES];
    rows.iter_mut().zip(from).for_each(|(row, line)| *row = bytes(line));
    // Rows i and i + 8 are woven together, byte by byte; four times that turns every 16 by 16 of them.
    for _ in 0..4 {
        let mut woven = rows;
        for i in 0..LANES / 2 {
            woven[2 * i] = _mm512_unpacklo_epi8(rows[i], rows[i + LANES / 2]);
            woven[2 * i + 1] = _mm512_unpackhi_epi8(rows[i], rows[i + LANES / 2]);
        }
        rows = woven;
    }
    to.iter_mut().zip(rows).for_each(|(line, row)| set_bytes(line, row));
}

/// The four quarters of these registers, quarter by quarter.
#[target_feature(enable = "avx512f,avx512bw")]
fn join([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
    let (even_next, odd_next) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
    [
        _mm512_shuffle_i32x4::<0x88>(even, even_next),
        _mm512_shuffle_i32x4::<0x88>(odd, odd_next),
        _mm512_shuffle_i32x4::<0xdd>(even, even_next),
        _mm512_shuffle_i32x4::<0xdd>(odd, odd_next),
    ]
}

/// The sums of the four bytes of each lane.
#[target_feature(enable = "avx512f,avx512bw")]
fn sums_of_four(line: __m512i) -> __m512i {
    _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_set1_epi8(1), line), _mm512_set1_epi16(1))
}
