//! Codes by a threshold, packed as they are found. Not here: the bit order of what is packed by itself ([`super`]), sums
//! over the weights ([`crate::vector::block`]).

#[cfg(target_arch = "x86_64")]
use super::POW3;
use super::{Encoding, Pack};
use crate::vector::Task;
use crate::vector::block::{Above, AboveOf, codes_of};
use crate::vector::weight::Weight;
#[cfg(target_arch = "x86_64")]
use crate::vector::weight::on_singles;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};

/// Codes of a filter, or of a part of one that begins on a byte, by a threshold, packed as `t2` or `t5`; what
/// [`Select`](crate::vector::block::Select) and [`Pack`] do one after the other.
pub(crate) struct SelectPacked<'a, W> {
    pub weights: &'a [W],
    pub delta: f64,
    /// How many weights behind these that lies which is wanted next.
    pub ahead: usize,
    pub encoding: Encoding,
    /// As long as [`Encoding::bytes`] says.
    pub packed: &'a mut [u8],
}

impl<W: Weight> Task for SelectPacked<'_, W> {
    type Output = Above;

    #[inline(always)]
    fn portable(self) -> Above {
        let Self { weights, delta, encoding, packed, .. } = self;
        // Whole bytes of either encoding.
        let mut codes = [0; 1280];
        for (weights, packed) in weights.chunks(codes.len()).zip(packed.chunks_mut(encoding.bytes(codes.len()))) {
            let codes = &mut codes[..weights.len()];
            codes_of(weights, delta, codes);
            Pack { encoding, codes, packed }.portable();
        }
        AboveOf { weights, delta }.portable()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(self, proof: Avx2) -> Above {
        let Some(singles) = W::as_singles(self.weights) else {
            return self.portable();
        };
        let (encoding, mut outside, mut codes) = (self.encoding, proof.outside(f32::floor_from(self.delta)), [0; 1280]);
        let bytes = encoding.bytes(codes.len());
        on_singles!(singles, weights => {
            let mut next = weights.as_ptr_range().end.wrapping_add(self.ahead);
            for (weights, packed) in weights.chunks(codes.len()).zip(self.packed.chunks_mut(bytes)) {
                let codes = &mut codes[..weights.len()];
                proof.select(&mut outside, weights, next, codes);
                next = next.wrapping_add(weights.len() / 2);
                Pack { encoding, codes, packed }.portable();
            }
        });
        proof.end(outside)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) -> Above {
        // The low bits of all codes, which zero ones have, and the high bits, which positive ones have.
        const PLACES: [u64; 2] = [0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa];
        let (delta, ahead) = (f32::floor_from(self.delta), self.ahead);
        match (self.encoding, W::as_singles(self.weights)) {
            (Encoding::T2, Some(singles)) => {
                on_singles!(singles, w => proof.select_packed(w, delta, ahead, PLACES, self.packed))
            }
            (Encoding::T5, Some(singles)) => {
                let zeros = POWER_SUMS[31];
                on_singles!(singles, w => proof.select_by_fives(w, delta, ahead, &POWER_SUMS, zeros, self.packed))
            }
            _ => self.portable(),
        }
    }
}

/// Σ 3^i over the bits of a number of five.
#[cfg(target_arch = "x86_64")]
static POWER_SUMS: [u8; 32] = {
    let mut sums = [0; 32];
    let mut bits = 0;
    while bits < 32 {
        let mut i = 0;
        while i < 5 {
            sums[bits] += (bits >> i & 1) as u8 * POW3[i];
            i += 1;
        }
        bits += 1;
    }
    sums
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Isa;
    use crate::vector::weight::narrowed;

    /// Every length around those that the vector forms go by, in all types, against codes one by one.
    #[test]
    fn codes_packed_at_once_are_those_packed_afterwards() {
        fn check<W: Weight>(weights: &[W], delta: f64, encoding: Encoding, isa: Isa) {
            let (mut codes, n) = (vec![0; weights.len()], weights.len());
            codes_of(weights, delta, &mut codes);
            let mut expected = vec![0; encoding.bytes(n)];
            encoding.pack(Isa::PORTABLE, &codes, &mut expected);
            let mut packed = vec![0xff; expected.len()];
            let above = isa.run(SelectPacked { weights, delta, ahead: 0, encoding, packed: &mut packed });
            assert_eq!(packed, expected, "{n} weights, {encoding:?}, {}", isa.name());
            assert_eq!(above, AboveOf { weights, delta }.portable(), "{n} weights, {}", isa.name());
        }
        let weights: Vec<f64> = (0..2600).map(|i| f64::from((i * 7919) % 2003) / 1001.0 - 1.0).collect();
        // So far apart that short sums in `f32` round.
        let far_apart: Vec<f64> = weights.iter().zip(0..).map(|(w, i)| w * f64::from(i % 38 - 23).exp2()).collect();
        for weights in [weights, far_apart] {
            let (singles, halves, brains) = narrowed(&weights);
            for (isa, encoding) in Isa::all().into_iter().flat_map(|isa| [(isa, Encoding::T2), (isa, Encoding::T5)]) {
                for n in (0..350).chain([639, 640, 641, 1279, 1280, 1281, 2559, 2561, 2600]) {
                    for delta in [0.3, 1e-6, 0.0, -0.0] {
                        check(&weights[..n], delta, encoding, isa);
                        check(&singles[..n], delta, encoding, isa);
                        check(&halves[..n], delta, encoding, isa);
                        check(&brains[..n], delta, encoding, isa);
                    }
                }
            }
        }
    }
}
