//! Codes ↔ packed bytes: the only file that knows the bit order. Codes are t+1, one byte each in
//! memory: 0, 1, 2 for −1, 0, +1. Not here: where the bytes go ([`crate::container`]).
//!
//! | encoding | weight j of a filter | fills up the last byte with | not valid |
//! |---|---|---|---|
//! | `t2` | byte j/4, bits 2·(j mod 4), lowest first | code 1 | code 3 |
//! | `t5` | byte j/5 = Σ code·3^(j mod 5) | code 1 | bytes over 242 |
//! | `b1` | byte j/8, bit j mod 8, 1 for +1 | bit 0 | - |

mod select;
mod transpose;

use serde::{Deserialize, Serialize};

pub(crate) use self::select::SelectPacked;
pub use self::transpose::transpose_t2;
#[cfg(target_arch = "x86_64")]
use crate::vector::Avx512;
use crate::vector::{Isa, Task};

/// How codes are packed into bytes. A filter always starts on a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Two bits per weight, four weights a byte.
    T2,
    /// Five trits a byte: 1.6 bits per weight, for storage and transport.
    T5,
    /// One bit per weight, for binary methods.
    B1,
}

/// Powers of three, for five trits.
const POW3: [u8; 5] = [1, 3, 9, 27, 81];

/// The codes of every byte (those of `t5` over 242 repeat the last valid one).
static T2_CODES: [[u8; 4]; 256] = codes_of_bytes(Encoding::T2);
static T5_CODES: [[u8; 5]; 256] = codes_of_bytes(Encoding::T5);
static B1_CODES: [[u8; 8]; 256] = codes_of_bytes(Encoding::B1);

const fn codes_of_bytes<const N: usize>(encoding: Encoding) -> [[u8; N]; 256] {
    let mut table = [[0; N]; 256];
    let mut byte = 0;
    while byte < 256 {
        let valid = if byte > 242 && matches!(encoding, Encoding::T5) { 242 } else { byte as u8 };
        let mut i = 0;
        while i < N {
            table[byte][i] = encoding.code(valid, i);
            i += 1;
        }
        byte += 1;
    }
    table
}

impl Encoding {
    /// Its name, as stored in the container.
    pub fn name(self) -> &'static str {
        match self {
            Self::T2 => "t2",
            Self::T5 => "t5",
            Self::B1 => "b1",
        }
    }

    /// Weights per byte.
    pub const fn weights_per_byte(self) -> usize {
        match self {
            Self::T2 => 4,
            Self::T5 => 5,
            Self::B1 => 8,
        }
    }

    /// The code of weight `i` of a byte, which is not looked at: an invalid one gives some number up to 3.
    pub(crate) const fn code(self, byte: u8, i: usize) -> u8 {
        match self {
            Self::T2 => byte >> (2 * i) & 3,
            Self::T5 => byte / POW3[i] % 3,
            Self::B1 => (byte >> i & 1) * 2,
        }
    }

    /// Bytes for a filter of `n` weights.
    pub fn bytes(self, n: usize) -> usize {
        n.div_ceil(self.weights_per_byte())
    }

    /// Packs the codes (0, 1, 2; for `b1` 0 and 2) of one filter, or of a part of one that begins
    /// on a byte. `packed` has [`Encoding::bytes`] of `codes.len()` bytes.
    ///
    /// # Panics
    /// When `packed` has another length.
    pub fn pack(self, isa: Isa, codes: &[u8], packed: &mut [u8]) {
        assert_eq!(packed.len(), self.bytes(codes.len()), "packed length");
        isa.run(Pack { encoding: self, codes, packed });
    }

    /// Unpacks the codes of one filter, or of a part of one that begins on a byte.
    ///
    /// # Errors
    /// What is wrong with the bytes: an invalid code, or a last byte that is not filled up as it must be.
    ///
    /// # Panics
    /// When `packed` is not [`Encoding::bytes`] of `codes.len()` long.
    pub fn unpack(self, packed: &[u8], codes: &mut [u8]) -> Result<(), String> {
        assert_eq!(packed.len(), self.bytes(codes.len()), "packed length");
        self.check(Isa::PORTABLE, packed, codes.len())?;
        match self {
            Self::T2 => spread(&T2_CODES, packed, codes),
            Self::T5 => spread(&T5_CODES, packed, codes),
            Self::B1 => spread(&B1_CODES, packed, codes),
        }
        Ok(())
    }

    /// Checks the bytes of one filter of `n` weights, or of a part of one that begins on a byte,
    /// and counts its codes, without unpacking them.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn check(self, isa: Isa, packed: &[u8], n: usize) -> Result<Counts, String> {
        self.check_from(isa, packed, n, 0)
    }

    /// The same, of bytes that have so many before them in their filter.
    pub(crate) fn check_from(self, isa: Isa, packed: &[u8], n: usize, before: usize) -> Result<Counts, String> {
        let census = isa.run(Census { encoding: self, packed });
        if !census.valid {
            let bad = |byte: &u8| !isa.run(Census { encoding: self, packed: &[*byte] }).valid;
            let at = packed.iter().position(bad).unwrap_or_default();
            let (found, at) = (packed[at], before + at);
            return Err(format!("byte {at} is {found:#04x}, which holds no valid {} code", self.name()));
        }
        let rest = n % self.weights_per_byte();
        match packed.last() {
            Some(&last) if rest != 0 && !self.tail_is_clean(last, rest) => Err(format!(
                "the last byte is {last:#04x}: after {rest} weights it is not filled up as {} asks",
                self.name()
            )),
            _ => {
                // What fills up the last byte is a zero weight, or no positive one.
                let fill = (packed.len() * self.weights_per_byte() - n) as u64;
                let zeros = if self == Self::B1 { 0 } else { census.zeros - fill };
                let positive = census.positive;
                Ok(Counts { negative: n as u64 - zeros - positive, zeros, positive })
            }
        }
    }

    fn tail_is_clean(self, last: u8, rest: usize) -> bool {
        match self {
            Self::T2 => last >> (2 * rest) == 0x55 >> (2 * rest),
            Self::T5 => T5_CODES[usize::from(last)][rest..].iter().all(|&code| code == 1),
            Self::B1 => last >> rest == 0,
        }
    }
}

/// Packs a run of codes.
struct Pack<'a> {
    encoding: Encoding,
    codes: &'a [u8],
    packed: &'a mut [u8],
}

impl Task for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        match self.encoding {
            Encoding::T2 => groups::<4>(self.codes, self.packed, 1, |c| {
                let x = u32::from_le_bytes(c);
                (x | x >> 6 | x >> 12 | x >> 18) as u8
            }),
            // One multiplication: byte 4 of the product is Σ c[i]·3^i, and nothing carries into it.
            Encoding::T5 => groups::<5>(self.codes, self.packed, 1, |c| {
                let x = u64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], 0, 0, 0]);
                let powers = u64::from_le_bytes([POW3[4], POW3[3], POW3[2], POW3[1], POW3[0], 0, 0, 0]);
                (x.wrapping_mul(powers) >> 32) as u8
            }),
            // Bit 1 of each code is the sign; the product gathers the eight of them in its top byte.
            Encoding::B1 => groups::<8>(self.codes, self.packed, 0, |c| {
                let x = u64::from_le_bytes(c) >> 1 & 0x0101_0101_0101_0101;
                (x.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
            }),
        }
    }
}

/// Packs codes in groups of N, the last group filled up with `fill`.
#[inline(always)]
fn groups<const N: usize>(codes: &[u8], packed: &mut [u8], fill: u8, pack: impl Fn([u8; N]) -> u8) {
    let (whole, rest) = codes.as_chunks::<N>();
    for (byte, group) in packed.iter_mut().zip(whole) {
        *byte = pack(*group);
    }
    if let (Some(byte), true) = (packed.last_mut(), !rest.is_empty()) {
        let mut group = [fill; N];
        group[..rest.len()].copy_from_slice(rest);
        *byte = pack(group);
    }
}

/// Four rows of `t2` codes of as many whole bytes each in one row of four times as many: its byte j has the codes that the
/// rows have at j, those of the first row in the lowest bits. False where a code is 3.
pub fn join_rows(isa: Isa, rows: [&[u8]; 4], joined: &mut [u8]) -> bool {
    isa.run(JoinRows { rows, joined })
}

/// One of four such rows by itself; `row` is its number.
pub fn part_row(isa: Isa, joined: &[u8], row: usize, packed: &mut [u8]) {
    isa.run(PartRow { joined, row, packed });
}

/// Four bytes as a 4 × 4 matrix of pairs of bits, transposed; its own inverse.
#[inline(always)]
pub(crate) fn transposed_pairs(mut x: u32) -> u32 {
    let swap = (x ^ x >> 6) & 0x00cc_00cc;
    x ^= swap ^ swap << 6;
    let swap = (x ^ x >> 12) & 0x0000_f0f0;
    x ^ swap ^ swap << 12
}

/// One column of that matrix: pair number `k` of each byte.
#[inline(always)]
fn pairs(x: u32, k: usize) -> u8 {
    let pairs = x >> (2 * k) & 0x0303_0303;
    let pairs = pairs | pairs >> 6;
    (pairs | pairs >> 12) as u8
}

struct JoinRows<'a> {
    rows: [&'a [u8]; 4],
    joined: &'a mut [u8],
}

impl Task for JoinRows<'_> {
    type Output = bool;

    #[inline(always)]
    fn portable(self) -> bool {
        let [a, b, c, d] = self.rows;
        let mut threes = 0;
        for ((((joined, a), b), c), d) in self.joined.as_chunks_mut::<4>().0.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            // What four rows have in a byte each are four bytes of a code of each.
            let x = u32::from_le_bytes([*a, *b, *c, *d]);
            threes |= x & x >> 1 & 0x5555_5555;
            *joined = transposed_pairs(x).to_le_bytes();
        }
        threes == 0
    }
}

struct PartRow<'a> {
    joined: &'a [u8],
    row: usize,
    packed: &'a mut [u8],
}

impl Task for PartRow<'_> {
    type Output = ();

    #[inline(always)]
    fn portable(self) {
        for (packed, word) in self.packed.iter_mut().zip(self.joined.as_chunks::<4>().0) {
            *packed = pairs(u32::from_le_bytes(*word), self.row);
        }
    }
}

/// Writes the codes of every byte, and of the last one as many as are left.
fn spread<const N: usize>(table: &[[u8; N]; 256], packed: &[u8], codes: &mut [u8]) {
    let (whole, rest) = codes.as_chunks_mut::<N>();
    whole.iter_mut().zip(packed).for_each(|(codes, &byte)| *codes = table[usize::from(byte)]);
    if let Some(&last) = packed.get(whole.len()) {
        rest.copy_from_slice(&table[usize::from(last)][..rest.len()]);
    }
}

/// How many codes of each kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Code 0.
    pub negative: u64,
    /// Code 1.
    pub zeros: u64,
    /// Code 2.
    pub positive: u64,
}

impl Counts {
    /// These and `next` together.
    pub(crate) fn plus(self, next: Self) -> Self {
        Self {
            negative: self.negative + next.negative,
            zeros: self.zeros + next.zeros,
            positive: self.positive + next.positive,
        }
    }
}

/// Whether every byte holds valid codes, and how many are zero and positive, with what fills up
/// the last byte.
struct Census<'a> {
    encoding: Encoding,
    packed: &'a [u8],
}

struct Counted {
    valid: bool,
    zeros: u64,
    positive: u64,
}

/// How many of a `t5` byte's five codes are 1, and how many 2.
static T5_COUNTS: [[u8; 2]; 256] = {
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut i = 0;
        while i < 5 {
            table[byte][0] += (T5_CODES[byte][i] == 1) as u8;
            table[byte][1] += (T5_CODES[byte][i] == 2) as u8;
            i += 1;
        }
        byte += 1;
    }
    table
};

impl Task for Census<'_> {
    type Output = Counted;

    #[inline(always)]
    fn portable(self) -> Counted {
        let mut counted = Counted { valid: true, zeros: 0, positive: 0 };
        match self.encoding {
            Encoding::T2 => {
                const LOW: u64 = 0x5555_5555_5555_5555;
                let mut bad = 0;
                let mut word = |codes: u64| {
                    let (low, high) = (codes & LOW, codes >> 1 & LOW);
                    bad |= low & high;
                    counted.zeros += u64::from(low.count_ones());
                    counted.positive += u64::from(high.count_ones());
                };
                let (words, rest) = self.packed.as_chunks::<8>();
                words.iter().for_each(|bytes| word(u64::from_le_bytes(*bytes)));
                rest.iter().for_each(|&byte| word(u64::from(byte)));
                counted.valid = bad == 0;
            }
            Encoding::T5 => {
                let mut max = 0;
                for &byte in self.packed {
                    let [zeros, positive] = T5_COUNTS[usize::from(byte)];
                    counted.zeros += u64::from(zeros);
                    counted.positive += u64::from(positive);
                    max = byte.max(max);
                }
                counted.valid = max <= 242;
            }
            Encoding::B1 => {
                counted.positive = self.packed.iter().map(|byte| u64::from(byte.count_ones())).sum();
            }
        }
        counted
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) -> Counted {
        let (chunks, rest) = self.packed.as_chunks();
        let census = if self.encoding == Encoding::T2 { proof.census(chunks) } else { None };
        let Some((zeros, positive, invalid)) = census else {
            return self.portable();
        };
        let rest = Census { packed: rest, ..self }.portable();
        Counted { valid: rest.valid && !invalid, zeros: rest.zeros + zeros, positive: rest.positive + positive }
    }
}
