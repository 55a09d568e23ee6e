//! `optimal`: the global minimum of ‖W − αT‖² over α ≥ 0 and T in {−1, 0, 1}ⁿ.
//! Source: Ternary Weight Networks, arXiv 1605.04711, eq. 6: keep the k largest |w|, with the k
//! that maximises S_k²/k, S_k their sum; then α = S_k/k.
//!
//! Found without sorting. The optimal set is {|w| > Δ} for a Δ with Δ = F(Δ), where
//! F(Δ) = mean(|w| : |w| > Δ)/2: a weight is worth keeping exactly when |w| > α/2. F never falls as
//! Δ rises, so F iterated from below climbs to the lowest fixed point and from above descends to
//! the highest; every optimum lies between. Both ends move inward together, and the few
//! weights left between them are sorted and tried one by one. A run of equal magnitudes is kept or
//! dropped whole: S_k²/k is convex along it, so an end of the run is at least as good.

use std::cell::RefCell;
use std::sync::Arc;

use super::unit::{Data, Slice, on_slice, partition};
use super::{Above, MethodInfo, Ternarizer, Threshold, Unit, no_factor};
use crate::vector::weight::Weight;

pub(super) const INFO: MethodInfo = MethodInfo {
    name: "optimal",
    summary: "the Δ and α of least squared error, exactly",
    build: |factor| {
        no_factor(INFO.name, factor)?;
        Ok(Arc::new(Optimal))
    },
};

/// The global least-squares optimum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimal;

/// From here on sums of a few `f32` may overflow.
const LARGE: f64 = 1e36;

/// So few candidates are sorted at once.
const FEW: usize = 16;

/// So many are gathered at most from weights that do not lie in memory (8 MiB as f64).
const MANY: u64 = 1 << 20;

impl Ternarizer for Optimal {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn threshold(&self, weights: &Unit<'_>) -> Threshold {
        let bracket = Bracket::around_all(weights);
        let max = weights.moments().max;
        Threshold::Delta(match weights.data() {
            Data::F32(w) if max < LARGE => in_memory(weights, w, bracket, max),
            Data::F64(w) => in_memory(weights, w, bracket, max),
            Data::F32(_) | Data::Long(_) => streamed(weights, bracket, max),
        })
    }
}

/// The thresholds that may still be optimal: lo ≤ Δ ≤ hi.
#[derive(Debug, Clone, Copy)]
struct Bracket {
    lo: f64,
    hi: f64,
    /// Weights above `hi`, and their sum.
    above: u64,
    above_sum: f64,
}

impl Bracket {
    /// F(0) = E|w|/2 from below, F(max−) = max/2 from above.
    fn around_all(weights: &Unit<'_>) -> Self {
        let moments = weights.moments();
        Self { lo: 0.0, hi: moments.max, above: 0, above_sum: 0.0 }.inward(
            weights.len() as u64,
            moments.sum,
            moments.max,
        )
    }

    /// F applied to both ends, with `between` weights in (lo, hi] of sum `between_sum`. A hair
    /// outward, so that rounding, of a [`partition`]'s sums as well, cannot shut the optimum out.
    fn inward(self, between: u64, between_sum: f64, max: f64) -> Self {
        const HAIR: f64 = 1e-6;
        let below = (self.above_sum + between_sum) / (self.above + between) as f64 / 2.0;
        let over = if self.above == 0 { max / 2.0 } else { self.above_sum / self.above as f64 / 2.0 };
        let lo = self.lo.max(below * (1.0 - HAIR));
        Self { lo, hi: self.hi.min(over * (1.0 + HAIR)).max(lo), ..self }
    }
}

thread_local! {
    /// What the rounds of [`in_memory`] keep, whatever the type of the weights; as much as the longest filter so far took.
    static KEPT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The optimal Δ for weights in memory: each round looks only at what the last one left. Rounds add roughly; what is
/// above the last bracket is summed exactly.
fn in_memory<W: Weight>(unit: &Unit<'_>, weights: &[W], mut bracket: Bracket, max: f64) -> f64 {
    KEPT.with_borrow_mut(|memory| {
        let n = weights.len();
        memory.resize(memory.len().max((2 * size_of_val(weights)).div_ceil(size_of::<u64>())), 0);
        let (mut kept, spare) = bytemuck::cast_slice_mut(memory).split_at_mut(n);
        let mut spare = &mut spare[..n];
        let mut parts = partition(unit.isa(), weights, bracket.lo, bracket.hi, kept);
        let mut before = usize::MAX;
        loop {
            bracket.above += parts.above;
            bracket.above_sum += parts.above_sum;
            let between = parts.kept;
            if between <= FEW || between > before / 8 * 7 {
                let Above { count, sum, .. } = unit.above(bracket.hi);
                let mut best = Best::default();
                best.consider(Bracket { above: count, above_sum: sum, ..bracket }, &mut kept[..between]);
                return best.delta();
            }
            bracket = bracket.inward(between as u64, parts.kept_sum, max);
            before = between;
            parts = partition(unit.isa(), &kept[..between], bracket.lo, bracket.hi, &mut spare[..between]);
            std::mem::swap(&mut kept, &mut spare);
        }
    })
}

/// The optimal Δ for weights that are decoded anew on every pass.
fn streamed(weights: &Unit<'_>, mut bracket: Bracket, max: f64) -> f64 {
    let all = Above { count: weights.len() as u64, sum: weights.moments().sum, ..Above::default() };
    let mut before = u64::MAX;
    loop {
        let over = weights.above(bracket.hi);
        let under = if bracket.lo > 0.0 { weights.above(bracket.lo) } else { all };
        (bracket.above, bracket.above_sum) = (over.count, over.sum);
        // Cancelled meanwhile, the counts need not fit together.
        let between = under.count.saturating_sub(over.count);
        if between <= MANY || between > before / 8 * 7 {
            let mut best = Best::default();
            best.search(weights, bracket, between);
            return best.delta();
        }
        bracket = bracket.inward(between, under.sum - over.sum, max);
        before = between;
    }
}

/// The best k seen so far.
#[derive(Debug, Default)]
struct Best {
    /// S_k²/k.
    gain: f64,
    /// α/2.
    half_scale: f64,
    /// Every Δ with dropped ≤ Δ < kept gives these k weights.
    dropped: f64,
    kept: f64,
}

impl Best {
    /// α/2 unless rounding put it outside of the gap between dropped and kept weights.
    fn delta(&self) -> f64 {
        if (self.dropped..self.kept).contains(&self.half_scale) { self.half_scale } else { self.dropped }
    }

    /// Tries every k that the bracket leaves open; `between` holds the magnitudes in (lo, hi].
    fn consider<W: Weight>(&mut self, bracket: Bracket, between: &mut [W]) {
        between.sort_unstable_by_key(|w| std::cmp::Reverse(w.magnitude_bits()));
        let (mut k, mut sum) = (bracket.above, bracket.above_sum);
        let mut kept = bracket.hi.next_up();
        for i in 0..=between.len() {
            let dropped = between.get(i).map_or(bracket.lo, |w| w.to_f64());
            let gain = sum * (sum / k as f64);
            if k > 0 && dropped < kept && gain > self.gain {
                *self = Self { gain, half_scale: sum / k as f64 / 2.0, dropped, kept };
            }
            k += 1;
            sum += dropped;
            kept = dropped;
        }
    }

    /// Gathers what lies in the bracket and considers it, in halves where it is too much at once.
    fn search(&mut self, weights: &Unit<'_>, bracket: Bracket, between: u64) {
        let middle = bracket.lo + (bracket.hi - bracket.lo) / 2.0;
        if between <= MANY || middle <= bracket.lo || middle >= bracket.hi {
            // Adjacent bounds hold one value many times over: both ends of that run are enough.
            let mut gathered = if between <= MANY { gather(weights, bracket) } else { Vec::new() };
            self.consider(bracket, &mut gathered);
            return;
        }
        let upper = weights.above(middle);
        // Cancelled meanwhile, the counts need not fit together.
        self.search(weights, Bracket { lo: middle, ..bracket }, upper.count.saturating_sub(bracket.above));
        let lower = Bracket { hi: middle, above: upper.count, above_sum: upper.sum, ..bracket };
        self.search(weights, lower, (bracket.above + between).saturating_sub(upper.count));
    }
}

/// The magnitudes in (lo, hi], in order.
fn gather(weights: &Unit<'_>, bracket: Bracket) -> Vec<f64> {
    weights.sum(
        |slice| {
            on_slice!(slice, w => w
                .iter()
                .map(|w| w.magnitude().to_f64())
                .filter(|x| *x > bracket.lo && *x <= bracket.hi)
                .collect::<Vec<f64>>())
        },
        |mut all, next| {
            all.extend(next);
            all
        },
    )
}
