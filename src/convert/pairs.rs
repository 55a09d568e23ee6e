//! Units of one length, two at a time: their sums, thresholds, and packed codes. Not here: what a threshold is, any bit
//! order.

use crate::pack::{Encoding, SelectPacked};
use crate::vector::block::{Above, Moments, MomentsOf};
use crate::vector::weight::Weight;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Inside, Portable, Task};

/// Runs of one length, a block at the most, each with a threshold of its own: the sums of two, then the codes of
/// each, while the next two are on their way. Stops before two of which one has no threshold; a last one is left.
/// One task, so that little is handed over by way of memory: what was just written in two parts and is loaded as one
/// waits, some hundred cycles for each run in all.
pub(crate) struct SelectUnits<'a, W, F> {
    pub weights: &'a [W],
    /// Weights per run.
    pub n: usize,
    pub encoding: Encoding,
    /// Δ of the run of that number by its sums, if it has one.
    pub delta: F,
    /// As long as [`Encoding::bytes`] says, for each run.
    pub packed: &'a mut [u8],
    /// Room for each run.
    pub found: &'a mut [Selected],
}

/// What was found of one run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Selected {
    pub moments: Moments,
    pub delta: f64,
    pub above: Above,
}

impl<W: Weight, F: FnMut(usize, &Moments) -> Option<f64>> SelectUnits<'_, W, F> {
    #[inline(always)]
    fn run(self, set: impl Inside) -> usize {
        let Self { weights, n, encoding, mut delta, packed, found } = self;
        let (bytes, mut done) = (encoding.bytes(n), 0);
        let pairs = weights.chunks_exact(2 * n).zip(packed.chunks_exact_mut(2 * bytes));
        for ((weights, packed), found) in pairs.zip(found.chunks_exact_mut(2)) {
            let moments = set.inside(MomentsOf::<W, 2>(weights));
            let (Some(first), Some(second)) = (delta(done, &moments[0]), delta(done + 1, &moments[1])) else { break };
            let (these, those) = (weights.split_at(n), packed.split_at_mut(bytes));
            // Sums prefetch the first half of the next two, and these a half of the second half each.
            let task = SelectPacked { weights: these.0, delta: first, ahead: 2 * n, encoding, packed: those.0 };
            found[0] = Selected { moments: moments[0], delta: first, above: set.inside(task) };
            let task = SelectPacked { weights: these.1, delta: second, ahead: n + n / 2, encoding, packed: those.1 };
            found[1] = Selected { moments: moments[1], delta: second, above: set.inside(task) };
            done += 2;
        }
        done
    }
}

impl<W: Weight, F: FnMut(usize, &Moments) -> Option<f64>> Task for SelectUnits<'_, W, F> {
    /// How many runs are done.
    type Output = usize;

    #[inline(always)]
    fn portable(self) -> usize {
        self.run(Portable)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(self, proof: Avx2) -> usize {
        self.run(proof)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) -> usize {
        self.run(proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Isa;
    use crate::vector::weight::narrowed;

    /// Many runs at once, against one after another in plain Rust; where one has no threshold, those before it.
    #[test]
    fn runs_at_once_are_runs_one_by_one() {
        fn check<W: Weight>(weights: &[W], n: usize, count: usize, encoding: Encoding, isa: Isa) {
            let (weights, bytes) = (&weights[..n * count], encoding.bytes(n));
            let name = format!("{count} runs of {n}, {encoding:?}, {}", isa.name());
            for without in [count, 3] {
                let delta = |i: usize, moments: &Moments| (i != without).then_some(0.7 * moments.sum / n as f64);
                let (mut packed, mut found) = (vec![0xff; bytes * count], vec![Selected::default(); count]);
                let task = SelectUnits { weights, n, encoding, delta, packed: &mut packed, found: &mut found };
                let done = isa.run(task);
                assert_eq!(done, count.min(without) / 2 * 2, "{name}");
                for i in 0..done {
                    let (weights, mut expected) = (&weights[i * n..(i + 1) * n], vec![0; bytes]);
                    let [moments] = MomentsOf::<W, 1>(weights).portable();
                    let delta = 0.7 * moments.sum / n as f64;
                    let task = SelectPacked { weights, delta, ahead: 0, encoding, packed: &mut expected };
                    let (above, found) = (task.portable(), found[i]);
                    assert_eq!((found.moments, found.delta, found.above), (moments, delta, above), "{name}, {i}");
                    assert_eq!(packed[i * bytes..(i + 1) * bytes], expected, "{name}, {i}");
                }
            }
        }
        let weights: Vec<f64> = (0..7 * 700).map(|i| f64::from((i * 7919) % 2003) / 1001.0 - 1.0).collect();
        let far_apart: Vec<f64> = weights.iter().zip(0..).map(|(w, i)| w * f64::from(i % 38 - 23).exp2()).collect();
        for weights in [weights, far_apart] {
            let (singles, halves, brains) = narrowed(&weights);
            for (isa, encoding) in Isa::all().into_iter().flat_map(|isa| [(isa, Encoding::T2), (isa, Encoding::T5)]) {
                for n in [1, 2, 3, 4, 5, 31, 63, 64, 65, 128, 257, 320, 700] {
                    for count in [1, 2, 3, 6, 7] {
                        check(&weights, n, count, encoding, isa);
                        check(&singles, n, count, encoding, isa);
                        check(&halves, n, count, encoding, isa);
                        check(&brains, n, count, encoding, isa);
                    }
                }
            }
        }
    }
}
