//! How the encodings come apart: from a register of codes to digits t+1, one weight of each byte
//! after the other. The order in which weights come is the order in which activations are laid
//! down. Not here: arithmetic on activations, instruction sets ([`super::lanes`]).

use super::lanes::{CHUNK, LANES, Lanes};
use crate::pack::Encoding;

/// An encoding as the tiles take it.
pub(super) trait Digits: Copy + Send + Sync {
    /// Its name.
    const ENCODING: Encoding;
    /// Weights per byte of codes: 4, 5 or 8.
    const PER_BYTE: usize = Self::ENCODING.weights_per_byte();
    /// Weights per lane (4 bytes of codes), the smallest run that has one scale.
    const PER_LANE: usize = 4 * Self::PER_BYTE;
    /// Weights per chunk.
    const PER_CHUNK: usize = CHUNK * Self::PER_BYTE;
    /// 32-bit words that hold a lane's weights for [`Digits::bits`].
    const WORDS: usize;

    /// Makes ready to take digits from a register of codes.
    fn start<L: Lanes>(_lanes: L, codes: L::Bytes) -> L::Bytes {
        codes
    }
    /// Digit number `k` (0..`PER_BYTE`) of every byte: t+1, which is 0, 1 or 2 (3 where the code is
    /// not valid). To be called for each k in turn.
    fn next<L: Lanes>(lanes: L, state: &mut L::Bytes, k: usize) -> L::Bytes;
    /// Which weight of its byte the k-th digit is.
    fn weight(k: usize) -> usize {
        k
    }

    /// Word number `i` (0..`WORDS`) of every lane; to be called for each in turn.
    fn word<L: Lanes>(lanes: L, state: &mut L::Bytes, i: usize) -> L::Bytes;
    /// The bits of a word that tell weight number `q` of it: set for +1, set for 0.
    fn bits(q: usize) -> (u32, u32);
    /// Which weight of its lane the q-th of the i-th word is.
    fn weight_of_word(i: usize, q: usize) -> usize;
    /// The same, with the weights of all words counted through.
    #[inline(always)]
    fn weight_of_step(step: usize) -> usize {
        let per_word = Self::PER_LANE / Self::WORDS;
        Self::weight_of_word(step / per_word, step % per_word)
    }
}

/// Where the activation of weight `j` lies in 8 bits: chunk by chunk, digit by digit, byte by byte.
pub(super) fn place8<D: Digits>(j: usize) -> usize {
    let (chunk, byte, within) = (j / D::PER_CHUNK, j % D::PER_CHUNK / D::PER_BYTE, j % D::PER_BYTE);
    // `weight` is its own inverse: it either keeps the order or turns it round.
    (chunk * D::PER_BYTE + D::weight(within)) * CHUNK + byte
}

/// Where the activation of weight `j` lies in `f32`: chunk by chunk, word by word, lane by lane.
pub(super) fn place32<D: Digits>(j: usize) -> usize {
    let (chunk, lane, within) = (j / D::PER_CHUNK, j % D::PER_CHUNK / D::PER_LANE, j % D::PER_LANE);
    let step = (0..D::PER_LANE).position(|step| D::weight_of_step(step) == within);
    (chunk * D::PER_LANE + step.unwrap_or_default()) * LANES + lane
}

/// Weights that a word holds, two bits each.
pub(super) const WORD: usize = 16;

/// The codes of a filter's weights from `j` on, as `t2` has them whatever the encoding, a [`WORD`] of them;
/// anything where there are no more. A code of 3 becomes a weight of zero.
#[inline(always)]
pub(super) fn word<D: Digits>(codes: &[u8], j: usize) -> u32 {
    let (at, first) = (j / D::PER_BYTE, j % D::PER_BYTE);
    let codes = &codes[at..];
    let bytes = match codes.first_chunk() {
        Some(bytes) => *bytes,
        None => {
            let mut bytes = [0; 8];
            bytes[..codes.len()].copy_from_slice(codes);
            bytes
        }
    };
    let word = match D::ENCODING {
        Encoding::T2 => u64::from_le_bytes(bytes),
        // As many bytes as hold a word that starts with any of their weights.
        Encoding::T5 => (0..4).fold(0, |word, i| word | u64::from(T5_PAIRS[usize::from(bytes[i])]) << (10 * i)),
        Encoding::B1 => (0..3).fold(0, |word, i| word | u64::from(B1_PAIRS[usize::from(bytes[i])]) << (16 * i)),
    };
    let word = (word >> (2 * first)) as u32;
    word & !((word & word >> 1 & 0x5555_5555) << 1)
}

static T5_PAIRS: [u16; 256] = pairs(Encoding::T5);
static B1_PAIRS: [u16; 256] = pairs(Encoding::B1);

/// The codes of every byte, two bits each.
const fn pairs(encoding: Encoding) -> [u16; 256] {
    let mut pairs = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut i = 0;
        while i < encoding.weights_per_byte() {
            pairs[byte] |= (encoding.code(byte as u8, i) as u16) << (2 * i);
            i += 1;
        }
        byte += 1;
    }
    pairs
}

/// Two bits a weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct T2;

impl Digits for T2 {
    const ENCODING: Encoding = Encoding::T2;
    const WORDS: usize = 1;

    #[inline(always)]
    fn next<L: Lanes>(lanes: L, state: &mut L::Bytes, _k: usize) -> L::Bytes {
        let digit = lanes.and(*state, lanes.splat8(3));
        // What a 16-bit shift brings in from the next byte stays above the two bits that are used.
        *state = lanes.shr16::<2>(*state);
        digit
    }
    #[inline(always)]
    fn word<L: Lanes>(_lanes: L, state: &mut L::Bytes, _i: usize) -> L::Bytes {
        *state
    }
    #[inline(always)]
    fn bits(q: usize) -> (u32, u32) {
        (2 << (2 * q), 1 << (2 * q))
    }
    fn weight_of_word(_i: usize, q: usize) -> usize {
        q
    }
}

/// Five trits a byte. The state is 256·byte/243, rounded up, less 1: then its upper trit is the
/// digit, and multiplying by 3 lifts the next one up (as in ggml's TQ1_0).
#[derive(Debug, Clone, Copy)]
pub(super) struct T5;

impl Digits for T5 {
    const ENCODING: Encoding = Encoding::T5;
    const WORDS: usize = 5;

    #[inline(always)]
    fn start<L: Lanes>(lanes: L, codes: L::Bytes) -> L::Bytes {
        // ⌊13·byte/243⌋ is ⌊3507·byte/2¹⁶⌋ for every byte.
        let factor = lanes.splat16(3507);
        let even = lanes.mulhi16(lanes.and(codes, lanes.splat16(0xff)), factor);
        let odd = lanes.mulhi16(lanes.shr16::<8>(codes), factor);
        lanes.add8(codes, lanes.or(even, lanes.shl16::<8>(odd)))
    }
    #[inline(always)]
    fn next<L: Lanes>(lanes: L, state: &mut L::Bytes, _k: usize) -> L::Bytes {
        // ¾ of the state, whose two upper bits are 3·(state + 1)/256.
        let three_quarters = lanes.avg8(*state, lanes.avg8(*state, lanes.splat8(0)));
        let digit = lanes.and(lanes.shr16::<6>(three_quarters), lanes.splat8(3));
        // 3·(state + 1) − 1
        *state = lanes.add8(lanes.add8(*state, *state), lanes.add8(*state, lanes.splat8(2)));
        digit
    }
    /// The upper trit, which comes first, is the last weight.
    fn weight(k: usize) -> usize {
        4 - k
    }
    #[inline(always)]
    fn word<L: Lanes>(lanes: L, state: &mut L::Bytes, i: usize) -> L::Bytes {
        Self::next(lanes, state, i)
    }
    #[inline(always)]
    fn bits(q: usize) -> (u32, u32) {
        (2 << (8 * q), 1 << (8 * q))
    }
    fn weight_of_word(i: usize, q: usize) -> usize {
        5 * q + Self::weight(i)
    }
}

/// One bit a weight: digits 0 and 2.
#[derive(Debug, Clone, Copy)]
pub(super) struct B1;

impl Digits for B1 {
    const ENCODING: Encoding = Encoding::B1;
    const WORDS: usize = 1;

    #[inline(always)]
    fn next<L: Lanes>(lanes: L, state: &mut L::Bytes, k: usize) -> L::Bytes {
        if k == 0 {
            return lanes.and(lanes.add8(*state, *state), lanes.splat8(2));
        }
        let digit = lanes.and(*state, lanes.splat8(2));
        *state = lanes.shr16::<1>(*state);
        digit
    }
    #[inline(always)]
    fn word<L: Lanes>(_lanes: L, state: &mut L::Bytes, _i: usize) -> L::Bytes {
        *state
    }
    #[inline(always)]
    fn bits(q: usize) -> (u32, u32) {
        (1 << q, 0)
    }
    fn weight_of_word(_i: usize, q: usize) -> usize {
        q
    }
}
