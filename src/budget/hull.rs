//! One rung for each of several slots, so that the sum of their errors is small and the sum of their costs keeps
//! a limit. Not here: what a slot, a cost or an error is ([`super`]).
//!
//! Only the rungs on the lower convex hull of a slot's (cost, error) count. From the cheapest rung of every slot
//! the next hull rung of some slot is taken, the one that takes most off the error per cost, and so on. After each
//! step the error is the smallest that any choice of this cost has (the steps are those of a Lagrangian: a choice
//! minimises error + λ·cost for the λ at hand). At a limit between two steps that leaves a rest, less than one
//! step of one slot; further steps that fit into it are taken, then rungs of any slot, on the hull or not, as
//! long as one fits that lowers the error, and then pairs of them: a slot gives bytes up that gain more in another.
//! So the error is above the smallest possible by less than the gain of the first step that did not fit; how much
//! less in practice, the tests below hold against every combination.

/// What a rung costs, and its error.
pub(super) type Point = (u64, f64);

/// From one hull rung of a slot to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    pub slot: usize,
    /// The rung before, and the one after.
    pub from: usize,
    pub to: usize,
    pub cost: u64,
    /// By how much the error falls.
    pub gain: f64,
}

/// The rungs on the lower convex hull, cheapest first. At least one rung.
pub(super) fn hull(rungs: &[Point]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rungs.len()).collect();
    order.sort_by(|&a, &b| rungs[a].0.cmp(&rungs[b].0).then_with(|| rungs[a].1.total_cmp(&rungs[b].1)));
    let slope = |a: usize, b: usize| (rungs[a].1 - rungs[b].1) / (rungs[b].0 - rungs[a].0) as f64;
    let mut hull: Vec<usize> = Vec::new();
    for next in order {
        // What costs as much or more has to be better.
        if hull.last().is_some_and(|&last| rungs[next].0 == rungs[last].0 || rungs[next].1 >= rungs[last].1) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && slope(last, next) >= slope(before, last)
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

/// The cheapest rung of each slot, and all steps from there, those that gain most per cost first.
pub(super) fn steps(slots: &[Vec<Point>]) -> (Vec<usize>, Vec<Step>) {
    let hulls: Vec<Vec<usize>> = slots.iter().map(|rungs| hull(rungs)).collect();
    let mut steps = Vec::new();
    for (slot, (rungs, hull)) in slots.iter().zip(&hulls).enumerate() {
        steps.extend(hull.windows(2).map(|pair| {
            let (from, to) = (pair[0], pair[1]);
            Step { slot, from, to, cost: rungs[to].0 - rungs[from].0, gain: rungs[from].1 - rungs[to].1 }
        }));
    }
    let slope = |step: &Step| step.gain / step.cost as f64;
    // Stable: within a slot the gain per cost only falls.
    steps.sort_by(|a, b| slope(b).total_cmp(&slope(a)));
    (hulls.iter().map(|hull| hull[0]).collect(), steps)
}

/// A rung for each slot of which all together keep the limit; `None` where the cheapest do not.
pub(super) fn choose(slots: &[Vec<Point>], limit: u64) -> Option<Vec<usize>> {
    let (mut chosen, steps) = steps(slots);
    let mut total: u64 = chosen.iter().zip(slots).map(|(&rung, rungs)| rungs[rung].0).sum();
    if total > limit {
        return None;
    }
    for step in steps {
        // A slot of which a step was left out stays where it is.
        if chosen[step.slot] == step.from && total + step.cost <= limit {
            chosen[step.slot] = step.to;
            total += step.cost;
        }
    }
    let mut left = limit - total;
    // Every exchange lowers the error, so there is an end; a sum of a few is near enough.
    for _ in 0..EXCHANGES {
        fill(slots, &mut chosen, &mut left);
        if !exchange(slots, &mut chosen, &mut left) {
            break;
        }
    }
    Some(chosen)
}

/// Pairs of rungs that are exchanged, at most.
const EXCHANGES: usize = 1000;

/// Another rung of a slot, and what that changes.
#[derive(Debug, Clone, Copy)]
struct Move {
    slot: usize,
    rung: usize,
    cost: i128,
    /// By how much the error falls.
    gain: f64,
}

/// Moves one slot to a cheaper rung and another one to what fits then: the pair that lowers the error most, if any
/// does.
fn exchange(slots: &[Vec<Point>], chosen: &mut [usize], left: &mut u64) -> bool {
    let mut moves = Vec::new();
    for (slot, rungs) in slots.iter().enumerate() {
        let (cost, error) = rungs[chosen[slot]];
        moves.extend(rungs.iter().enumerate().filter(|(rung, _)| *rung != chosen[slot]).map(|(rung, next)| Move {
            slot,
            rung,
            cost: i128::from(next.0) - i128::from(cost),
            gain: error - next.1,
        }));
    }
    let mut better: Vec<Move> = moves.iter().filter(|next| next.gain > 0.0).copied().collect();
    better.sort_by_key(|next| next.cost);
    // For every prefix the best move, and the best of another slot.
    let mut best: Vec<[Option<Move>; 2]> = Vec::with_capacity(better.len());
    for &next in &better {
        let [first, second] = best.last().copied().unwrap_or_default();
        let above = |other: Option<Move>| other.is_none_or(|other| next.gain > other.gain);
        best.push(match first {
            Some(first) if first.slot == next.slot => [Some(if above(Some(first)) { next } else { first }), second],
            _ if above(first) => [Some(next), first],
            _ => [first, if above(second) { Some(next) } else { second }],
        });
    }
    let mut pair: Option<(f64, Move, Move)> = None;
    for &given in moves.iter().filter(|given| given.cost < 0) {
        let room = i128::from(*left) - given.cost;
        let fitting = better.partition_point(|next| next.cost <= room);
        let Some(taken) = fitting
            .checked_sub(1)
            .and_then(|last| best[last].into_iter().flatten().find(|next| next.slot != given.slot))
        else {
            continue;
        };
        let gain = taken.gain + given.gain;
        // What rounding makes of equal errors is no gain.
        if gain > pair.map_or(1e-12 * taken.gain, |(gain, ..)| gain) {
            pair = Some((gain, given, taken));
        }
    }
    let Some((_, given, taken)) = pair else { return false };
    for next in [given, taken] {
        chosen[next.slot] = next.rung;
    }
    *left = (i128::from(*left) - given.cost - taken.cost) as u64;
    true
}

/// Spends what is left: each time on the rung that lowers the error most.
fn fill(slots: &[Vec<Point>], chosen: &mut [usize], left: &mut u64) {
    for _ in 0..slots.len() {
        let mut best: Option<(f64, usize, usize)> = None;
        for (slot, rungs) in slots.iter().enumerate() {
            let now = rungs[chosen[slot]];
            for (rung, next) in rungs.iter().enumerate().filter(|(_, next)| next.0 <= now.0 + *left) {
                let gain = now.1 - next.1;
                if gain > best.map_or(0.0, |(gain, ..)| gain) {
                    best = Some((gain, slot, rung));
                }
            }
        }
        let Some((_, slot, rung)) = best else { return };
        *left = *left + slots[slot][chosen[slot]].0 - slots[slot][rung].0;
        chosen[slot] = rung;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }

        /// Up to four slots of up to five rungs.
        fn slots(&mut self) -> Vec<Vec<Point>> {
            let mut slot = || (0..1 + self.below(5)).map(|_| (self.below(40), self.below(1000) as f64 / 8.0)).collect();
            let count = 4;
            (0..count).map(|_| slot()).collect()
        }
    }

    fn sums(slots: &[Vec<Point>], chosen: &[usize]) -> Point {
        let rungs = slots.iter().zip(chosen).map(|(rungs, &rung)| rungs[rung]);
        rungs.fold((0, 0.0), |(cost, error), rung| (cost + rung.0, error + rung.1))
    }

    /// The smallest error that any choice within the limit has.
    fn brute_force(slots: &[Vec<Point>], limit: u64) -> Option<f64> {
        let Some((rungs, others)) = slots.split_first() else { return Some(0.0) };
        let affordable = rungs.iter().filter(|rung| rung.0 <= limit);
        let all = affordable.filter_map(|rung| Some(rung.1 + brute_force(others, limit - rung.0)?));
        all.min_by(f64::total_cmp)
    }

    /// Ladders as tensors have them: each rung costs more and loses less; sizes differ by much.
    #[test]
    fn what_is_left_is_spent_nearly_as_well_as_it_can_be() {
        let mut random = Random(7);
        let (mut exact, mut cases, mut excess, mut total) = (0, 0, 0.0, 0.0);
        for _ in 0..60 {
            let slots: Vec<Vec<Point>> = (0..5)
                .map(|_| {
                    let (size, noise) = (1 + random.below(200), 1.0 + random.below(100) as f64 / 50.0);
                    let point = |bits: u64| (size * bits / 2 + bits, noise * 0.25f64.powi(bits as i32));
                    (2..8).map(|i| point(i + random.below(2))).collect()
                })
                .collect();
            let (start, steps) = steps(&slots);
            let cheapest = sums(&slots, &start).0;
            let dearest = cheapest + steps.iter().map(|step| step.cost).sum::<u64>();
            for i in 0..20 {
                let limit = cheapest + (dearest - cheapest) * i / 20;
                let (cost, error) = sums(&slots, &choose(&slots, limit).unwrap());
                let best = brute_force(&slots, limit).unwrap();
                assert!(cost <= limit && error >= best * (1.0 - 1e-12));
                exact += usize::from(error <= best * (1.0 + 1e-12));
                (cases, excess, total) = (cases + 1, excess + error - best, total + best);
            }
        }
        eprintln!("{exact} of {cases} the best, {:.3} % above it on average", 100.0 * excess / total);
        assert!(exact * 20 > cases * 17 && excess < 0.02 * total, "{exact} of {cases}, {excess} above {total}");
    }

    #[test]
    fn every_step_is_optimal_and_between_them_less_than_a_step_is_missing() {
        let mut random = Random(1);
        for case in 0..400 {
            let slots = random.slots();
            let (start, steps) = steps(&slots);
            let cheapest = sums(&slots, &start).0;
            assert_eq!(choose(&slots, cheapest.wrapping_sub(1)).is_some(), cheapest == 0, "{case}");
            // Along the steps: exactly the best.
            let mut chosen = start.clone();
            for step in &steps {
                assert_eq!((chosen[step.slot], step.cost > 0, step.gain > 0.0), (step.from, true, true), "{case}");
                chosen[step.slot] = step.to;
                let (cost, error) = sums(&slots, &chosen);
                assert_eq!(Some(error), brute_force(&slots, cost), "{case} {slots:?}");
                assert_eq!(sums(&slots, &choose(&slots, cost).unwrap()).1, error, "{case}");
            }
            // At any limit: the limit is kept, and the error is above the best by less than the first step left out.
            for limit in cheapest..cheapest + 80 {
                let chosen = choose(&slots, limit).unwrap();
                let ((cost, error), best) = (sums(&slots, &chosen), brute_force(&slots, limit).unwrap());
                let mut spent = cheapest;
                let left_out = steps.iter().find(|step| {
                    spent += step.cost;
                    spent > limit
                });
                let missing = left_out.map_or(0.0, |step| step.gain);
                assert!(cost <= limit && error - best <= missing, "{case} {limit}: {error} {best} {slots:?}");
            }
        }
    }

    #[test]
    fn rungs_inside_of_the_hull_and_worse_ones_are_left_out() {
        let rungs = [(10, 5.0), (20, 4.9), (30, 1.0), (5, 9.0), (30, 0.5), (40, 0.5), (7, 9.0)];
        assert_eq!(hull(&rungs), [3, 0, 4]);
        assert_eq!(hull(&[(3, 0.0), (1, 0.0)]), [1]);
    }
}
