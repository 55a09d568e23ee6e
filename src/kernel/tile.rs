//! What the tiles of both arithmetics share: filters cut into chunks, scales spread over lanes, lanes
//! added up. Not here: the tiles ([`super::int8`], [`super::exact`]).

use super::lanes::{CHUNK, LANES, Lanes, Line32};

/// No weights.
pub(super) const EMPTY: [u8; CHUNK] = [0; CHUNK];

/// `array::map`, which the compiler does not always see through.
#[inline(always)]
pub(super) fn map<T: Copy, U: Copy, const N: usize>(from: [T; N], empty: U, f: impl Fn(T) -> U) -> [U; N] {
    let mut to = [empty; N];
    to.iter_mut().zip(from).for_each(|(to, from)| *to = f(from));
    to
}

/// The scale of every lane of chunk `i`.
#[inline(always)]
pub(super) fn spread(scales: &[f32], lanes_per_scale: usize, i: usize) -> Line32 {
    let first = i * LANES / lanes_per_scale;
    let mut at = i * LANES - first * lanes_per_scale;
    let mut scales = scales[first..].iter();
    let mut scale = scales.next().copied().unwrap_or_default();
    let mut line = Line32([0.0; LANES]);
    for lane in &mut line.0 {
        if at == lanes_per_scale {
            scale = scales.next().copied().unwrap_or_default();
            at = 0;
        }
        *lane = scale;
        at += 1;
    }
    line
}

/// The chunks of every filter, and the rest of each filled up with zeros.
#[expect(clippy::type_complexity, reason = "two arrays, each used once")]
#[inline(always)]
pub(super) fn split<L: Lanes, const R: usize>(
    lanes: L,
    codes: [&[u8]; R],
) -> ([&[[u8; CHUNK]]; R], Option<[[u8; CHUNK]; R]>) {
    let whole = codes[0].len() / CHUNK * CHUNK;
    let tails = (whole < codes[0].len()).then(|| map(codes, EMPTY, |codes| lanes.fill_up(&codes[whole..])));
    (map(codes, &[][..], |codes| codes.as_chunks().0), tails)
}

/// One chunk of each, as a slice.
#[inline(always)]
pub(super) fn each<const R: usize>(tails: &[[u8; CHUNK]; R]) -> [&[[u8; CHUNK]]; R] {
    map(tails.each_ref(), &[][..], std::slice::from_ref)
}
