//! Tiles of R filters × C columns with 8-bit activations.
//!
//! ```text
//! for each chunk of 64 bytes of codes:
//!     for each digit k of a byte:                     (4, 5 or 8)
//!         d[r]   = digit k of the chunk's 64 bytes    (0, 1, 2)
//!         s[r,c] += Σ over 4 bytes  d[r]·x[c,k]       (16 lanes of i32)
//! y[r,c] = α[r]·scale[c]·(Σ lanes s[r,c] − Σ x[c])    since d = t + 1
//! ```
//!
//! No sum can overflow: 64 bytes of codes have at most 512 digits of at most 3 (where codes are not valid), and add at
//! most 512·3·127 < 2¹⁸ to all lanes of a register together; after [`SEGMENT`] chunks, less than 2³⁰, sums go on in 64
//! bits. Half of the 256 digits of `t2` multiplied where they are, 4 times as large, add no more: 128·12·127.
//! Not here: quantization ([`super::activations`]), instruction sets ([`super::lanes`]).

use super::digits::Digits;
use super::lanes::{AHEAD, CHUNK, LANES, Lanes, Line8, Line32};
use super::tile::{EMPTY, each, map, split, spread};
use crate::pack::Encoding;
use crate::vector::block::tree;

/// Chunks whose sums fit into 32 bits: 2¹² · 2¹⁸ = 2³⁰.
const SEGMENT: usize = 1 << 12;

/// Filters per tile of one column whose activations fit into the nearest cache beside the codes of a few filters, but not
/// beside those of four.
pub(super) const FEW: usize = 2;
/// Filters per tile of one column whose activations fill the nearest cache.
pub(super) const MANY: usize = 8;
/// How far ahead codes are asked for in tiles of [`FEW`], whose two runs are gone through faster.
const AHEAD_OF_FEW: usize = 3584;

/// Σ t·x for every filter and column. `x[c]` has `PER_BYTE` lines per chunk, zero where the filter
/// has no more weights, and adds up to `x_sums[c]`.
#[inline(always)]
pub(super) fn tile<L: Lanes, D: Digits, const R: usize, const C: usize>(
    lanes: L,
    codes: [&[u8]; R],
    x: [&[Line8]; C],
    x_sums: [i64; C],
) -> [[f32; C]; R] {
    let (chunks, tails) = split(lanes, codes);
    let whole = chunks[0].len();
    let mut totals = [[0; C]; R];
    let mut from = 0;
    while from < whole {
        let to = (from + SEGMENT).min(whole);
        let part = segment::<L, D, R, C>(
            lanes,
            map(chunks, &[][..], |chunks| &chunks[from..to]),
            map(x, &[][..], |x| &x[from * D::PER_BYTE..to * D::PER_BYTE]),
        );
        add(&mut totals, part);
        from = to;
    }
    if let Some(tails) = tails {
        let last = map(x, &[][..], |x| &x[whole * D::PER_BYTE..]);
        add(&mut totals, segment::<L, D, R, C>(lanes, each(&tails), last));
    }
    let mut y = [[0.0; C]; R];
    for (y, totals) in y.iter_mut().zip(totals) {
        y.iter_mut().zip(totals).zip(x_sums).for_each(|((y, total), x_sum)| *y = (total - x_sum) as f32);
    }
    y
}

#[inline(always)]
fn segment<L: Lanes, D: Digits, const R: usize, const C: usize>(
    lanes: L,
    codes: [&[[u8; CHUNK]]; R],
    x: [&[Line8]; C],
) -> [[i32; C]; R] {
    let chunks = codes[0].len();
    let codes = map(codes, &[][..], |codes| &codes[..chunks]);
    let x = map(x, &[][..], |x| &x[..chunks * D::PER_BYTE]);
    if C == 1 && L::WIDE && D::ENCODING == Encoding::T2 {
        return map(in_place::<L, R>(lanes, codes, x[0]), [0; C], |total| [total; C]);
    }
    let mut sums = [[lanes.ints(&[0; LANES], 0); C]; R];
    // Every addition waits for the one before it. Where a tile has few sums, it takes two steps at a
    // time and adds them apart.
    let (steps, mut apart) = (chunks * L::PARTS, sums);
    let mut done = 0;
    while C == 1 && done + 2 <= steps {
        let (i, next) = (done / L::PARTS, (done + 1) / L::PARTS);
        sums = chunk::<L, D, R, C>(lanes, map(codes, &EMPTY, |codes| &codes[i]), x, i, done % L::PARTS, sums);
        let codes = map(codes, &EMPTY, |codes| &codes[next]);
        apart = chunk::<L, D, R, C>(lanes, codes, x, next, (done + 1) % L::PARTS, apart);
        done += 2;
    }
    for step in done..steps {
        let i = step / L::PARTS;
        let codes = map(codes, &EMPTY, |codes| &codes[i]);
        sums = chunk::<L, D, R, C>(lanes, codes, x, i, step % L::PARTS, sums);
    }
    if C > 1 {
        return totals(lanes, sums);
    }
    let mut totals = [[0; C]; R];
    for r in 0..R {
        totals[r] = [lanes.total(sums[r][0]) + lanes.total(apart[r][0]); C];
    }
    totals
}

/// The sums of all lanes, four registers at a time: faster than one by one where there are many.
#[inline(always)]
fn totals<L: Lanes, const R: usize, const C: usize>(lanes: L, sums: [[L::Ints; C]; R]) -> [[i32; C]; R] {
    let at = |i: usize| sums[i / C][i % C];
    let mut totals = [[0; C]; R];
    let mut i = 0;
    while i + 4 <= R * C {
        for (j, total) in lanes.totals([at(i), at(i + 1), at(i + 2), at(i + 3)]).into_iter().enumerate() {
            totals[(i + j) / C][(i + j) % C] = total;
        }
        i += 4;
    }
    while i < R * C {
        totals[i / C][i % C] = lanes.total(at(i));
        i += 1;
    }
    totals
}

/// A segment of `t2` with one column: of every two digits the upper one stays where it is, four times as large, which
/// saves two of three shifts, and has sums of its own.
#[inline(always)]
fn in_place<L: Lanes, const R: usize>(lanes: L, codes: [&[[u8; CHUNK]]; R], x: &[Line8]) -> [i32; R] {
    let zero = lanes.ints(&[0; LANES], 0);
    let (mut ones, mut fours) = ([lanes.start(zero); R], [lanes.start(zero); R]);
    let (one, four) = (lanes.splat8(3), lanes.splat8(12));
    for (i, x) in x.as_chunks::<4>().0.iter().enumerate() {
        for part in 0..L::PARTS {
            let x = x.each_ref().map(|x| lanes.load8(x, part));
            for r in 0..R {
                let codes = &codes[r][i];
                match R {
                    FEW => lanes.prefetch::<true>(codes, AHEAD_OF_FEW),
                    MANY => lanes.prefetch::<false>(codes, AHEAD),
                    _ => lanes.prefetch::<true>(codes, AHEAD),
                }
                let low = lanes.load(codes, part);
                let high = lanes.shr16::<4>(low);
                ones[r] = lanes.dot(ones[r], lanes.and(low, one), x[0]);
                fours[r] = lanes.dot(fours[r], lanes.and(low, four), x[1]);
                ones[r] = lanes.dot(ones[r], lanes.and(high, one), x[2]);
                fours[r] = lanes.dot(fours[r], lanes.and(high, four), x[3]);
            }
        }
    }
    let mut totals = [0; R];
    for r in 0..R {
        let (ones, fours) = (lanes.finish(zero, ones[r]), lanes.finish(zero, fours[r]));
        totals[r] = lanes.total(lanes.quarter_and(fours, ones));
    }
    totals
}

/// One part of one chunk.
#[inline(always)]
fn chunk<L: Lanes, D: Digits, const R: usize, const C: usize>(
    lanes: L,
    codes: [&[u8; CHUNK]; R],
    x: [&[Line8]; C],
    i: usize,
    part: usize,
    mut sums: [[L::Ints; C]; R],
) -> [[L::Ints; C]; R] {
    let mut state = [lanes.splat8(0); R];
    let mut partial = [[lanes.start(sums[0][0]); C]; R];
    for r in 0..R {
        lanes.prefetch::<false>(codes[r], AHEAD);
        state[r] = D::start(lanes, lanes.load(codes[r], part));
        for c in 0..C {
            partial[r][c] = lanes.start(sums[r][c]);
        }
    }
    for k in 0..D::PER_BYTE {
        let mut digits = state;
        for r in 0..R {
            digits[r] = D::next(lanes, &mut state[r], k);
        }
        for c in 0..C {
            let x = lanes.load8(&x[c][i * D::PER_BYTE + k], part);
            for r in 0..R {
                partial[r][c] = lanes.dot(partial[r][c], digits[r], x);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            sums[r][c] = lanes.finish(sums[r][c], partial[r][c]);
        }
    }
    sums
}

/// Σ α·(Σ t·x) where `lanes_per_scale` lanes share a scale. `x_sums[c]` has the sums of x per lane
/// and chunk; each lane's sum becomes a float (exactly: it is less than 2²⁴) and is scaled then.
#[inline(always)]
pub(super) fn grouped_tile<L: Lanes, D: Digits, const R: usize, const C: usize>(
    lanes: L,
    codes: [&[u8]; R],
    scales: [&[f32]; R],
    lanes_per_scale: usize,
    x: [&[Line8]; C],
    x_sums: [&[[i32; LANES]]; C],
) -> [[f32; C]; R] {
    let (chunks, tails) = split(lanes, codes);
    let whole = chunks[0].len();
    let zero = lanes.floats(&Line32([0.0; LANES]), 0);
    let none = lanes.ints(&[0; LANES], 0);
    let mut y = [[Line32([0.0; LANES]); C]; R];
    for part in 0..L::PARTS {
        let mut sums = [[zero; C]; R];
        for i in 0..whole + usize::from(tails.is_some()) {
            let codes = match &tails {
                Some(tails) if i == whole => tails.each_ref(),
                _ => map(chunks, &EMPTY, |chunks| &chunks[i]),
            };
            let ints = chunk::<L, D, R, C>(lanes, codes, x, i, part, [[none; C]; R]);
            for r in 0..R {
                let alpha = lanes.floats(&spread(scales[r], lanes_per_scale, i), part);
                for c in 0..C {
                    let offset = lanes.to_floats(lanes.ints(&x_sums[c][i], part));
                    let sum = lanes.sub(lanes.to_floats(ints[r][c]), offset);
                    sums[r][c] = lanes.mul_add(sums[r][c], alpha, sum);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                lanes.store(sums[r][c], &mut y[r][c], part);
            }
        }
    }
    map(y, [0.0; C], |y| map(y, 0.0, |lanes| tree(lanes.0)))
}

#[inline(always)]
fn add<const R: usize, const C: usize>(totals: &mut [[i64; C]; R], part: [[i32; C]; R]) {
    for (totals, part) in totals.iter_mut().zip(part) {
        totals.iter_mut().zip(part).for_each(|(total, part)| *total += i64::from(part));
    }
}
