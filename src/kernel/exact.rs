//! Tiles of R filters × C columns with `f32` activations: weights choose what is added and what is
//! subtracted, and nothing is multiplied but the sums by their scales.
//!
//! ```text
//! for each chunk of 64 bytes of codes, 16 lanes of 4 bytes:
//!     for each weight q of a lane:                    (16, 20 or 32)
//!         s[r,c] += +x[c,q], −x[c,q] or nothing       (16 lanes of f32)
//! y[r,c] = α[r]·(Σ lanes s[r,c])
//! ```
//!
//! The additions and their order are the same for every instruction set, tile and number of
//! threads, and so are the results. Each lane adds one number after the other, up to a lane's weights
//! for every chunk that was begun: at most n/16 + 32. Then 16 lanes are added as a tree: the error is
//! at most (n/16 + 32 + 4)·2⁻²⁴·Σ|x| to first order.
//! Not here: the layout of x ([`super::activations`]), instruction sets ([`super::lanes`]).

use super::digits::Digits;
use super::lanes::{AHEAD, CHUNK, LANES, Lanes, Line32};
use super::tile::{EMPTY, map, split, spread};
use crate::vector::block::tree;

/// Scales within a filter: (the filters' scales, how many lanes share one).
pub(super) type Groups<'a, const R: usize> = Option<([&'a [f32]; R], usize)>;

/// Σ ±x for every filter and column, or with `groups` Σ α·Σ ±x. `x[c]` has `PER_LANE` lines per chunk.
#[inline(always)]
pub(super) fn tile<L: Lanes, D: Digits, const R: usize, const C: usize>(
    lanes: L,
    codes: [&[u8]; R],
    groups: Groups<'_, R>,
    x: [&[Line32]; C],
) -> [[f32; C]; R] {
    let (chunks, tails) = split(lanes, codes);
    let whole = chunks[0].len();
    let zero = lanes.floats(&Line32([0.0; LANES]), 0);
    let mut y = [[Line32([0.0; LANES]); C]; R];
    for part in 0..L::PARTS {
        let mut sums = [[zero; C]; R];
        for i in 0..whole + usize::from(tails.is_some()) {
            let codes = match &tails {
                Some(tails) if i == whole => tails.each_ref(),
                _ => map(chunks, &EMPTY, |chunks| &chunks[i]),
            };
            let x = map(x, &[][..], |x| &x[i * D::PER_LANE..(i + 1) * D::PER_LANE]);
            match groups {
                None => sums = chunk::<L, D, R, C>(lanes, codes, x, part, sums),
                Some((scales, lanes_per_scale)) => {
                    let here = chunk::<L, D, R, C>(lanes, codes, x, part, [[zero; C]; R]);
                    for r in 0..R {
                        let alpha = lanes.floats(&spread(scales[r], lanes_per_scale, i), part);
                        for c in 0..C {
                            sums[r][c] = lanes.mul_add(sums[r][c], alpha, here[r][c]);
                        }
                    }
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

/// One part of one chunk.
#[inline(always)]
fn chunk<L: Lanes, D: Digits, const R: usize, const C: usize>(
    lanes: L,
    codes: [&[u8; CHUNK]; R],
    x: [&[Line32]; C],
    part: usize,
    mut sums: [[L::Floats; C]; R],
) -> [[L::Floats; C]; R] {
    let mut state = [lanes.splat8(0); R];
    for r in 0..R {
        lanes.prefetch::<false>(codes[r], AHEAD);
        state[r] = D::start(lanes, lanes.load(codes[r], part));
    }
    let per_word = D::PER_LANE / D::WORDS;
    let none = sums[0][0];
    for i in 0..D::WORDS {
        let mut words = state;
        for r in 0..R {
            words[r] = D::word(lanes, &mut state[r], i);
        }
        for q in 0..per_word {
            let (plus, zero) = D::bits(q);
            let x = map(x, none, |x| lanes.floats(&x[i * per_word + q], part));
            let minus_x = map(x, none, |x| lanes.negate(x));
            for r in 0..R {
                let choice = lanes.choose(words[r], plus, zero);
                for c in 0..C {
                    sums[r][c] = lanes.add(sums[r][c], choice, x[c], minus_x[c]);
                }
            }
        }
    }
    sums
}
