//! Compensation against GPTQ written out with an inverse, and what sweeps may do.

use super::*;

/// Deterministic numbers from −1 to 1.
fn numbers(count: usize, mut state: u64) -> Vec<f64> {
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// XᵀX of `rows` rows that share something.
fn second_moment(rows: usize, n: usize) -> Vec<f64> {
    let (own, shared) = (numbers(rows * n, 7), numbers(rows, 9));
    let x = |row: usize, i: usize| own[row * n + i] * (1.0 + i as f64 / n as f64) + shared[row];
    (0..n * n).map(|at| (0..rows).map(|row| x(row, at / n) * x(row, at % n)).sum()).collect()
}

/// Gauss-Jordan.
fn inverse(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let mut inverse: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for p in 0..n {
        let pivot = a[p * n + p];
        for c in 0..n {
            a[p * n + c] /= pivot;
            inverse[p * n + c] /= pivot;
        }
        for r in (0..n).filter(|&r| r != p) {
            let factor = a[r * n + p];
            for c in 0..n {
                a[r * n + c] -= factor * a[p * n + c];
                inverse[r * n + c] -= factor * inverse[p * n + c];
            }
        }
    }
    inverse
}

/// GPTQ as its paper has it: by the inverse, from which each rounded column is eliminated.
fn gptq(h: &[f64], w: &[f64], order: &[usize], values: &[f64], damping: f64) -> Vec<f64> {
    let n = w.len();
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
    let damped = (0..n * n).map(|at| h[at] + if at / n == at % n { damping * mean } else { 0.0 });
    let mut inverse = inverse(damped.collect(), n);
    let (mut w, mut rounded) = (w.to_vec(), vec![0.0; n]);
    for (done, &j) in order.iter().enumerate() {
        let distance = |value: &f64| (w[j] - value).abs();
        let nearest = values.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
        rounded[j] = nearest;
        let error = (w[j] - nearest) / inverse[j * n + j];
        for &k in &order[done..] {
            w[k] -= error * inverse[j * n + k];
        }
        let column: Vec<f64> = (0..n).map(|k| inverse[j * n + k]).collect();
        for &r in &order[done + 1..] {
            for &c in &order[done + 1..] {
                inverse[r * n + c] -= column[r] * column[c] / column[j];
            }
        }
    }
    rounded
}

#[test]
fn codes_are_those_of_gptq_in_either_order() {
    // Over one block, and over several with a short one.
    for (n, rows, filters) in [(5, 20, 3), (40, 25, 4), (300, 200, 3)] {
        let (h, w) = (second_moment(rows, n), numbers(n * filters, 3));
        for by_diagonal in [false, true] {
            for (scales, values) in [
                (vec![0.5f32], vec![0.0, 0.5, -0.5]),
                (vec![0.5, 0.25], vec![0.0, 0.25, -0.25, 0.5, -0.5, 0.75, -0.75]),
            ] {
                let solver = Solver::new(h.clone(), n, 0.01, by_diagonal).unwrap();
                let grid =
                    Grid { binary: false, planes: scales.len(), group: n, dtype: ScaleDtype::F32, shared: false };
                let mut found = Filters::new(&solver, &w, scales.repeat(filters), grid);
                found.compensate();
                let mut order: Vec<usize> = (0..n).collect();
                if by_diagonal {
                    order.sort_by(|&a, &b| h[b * n + b].total_cmp(&h[a * n + a]));
                }
                for (w, e) in w.chunks(n).zip(found.e.chunks(n)) {
                    let expected = gptq(&h, w, &order, &values, 0.01);
                    for (j, (expected, (w, e))) in expected.iter().zip(w.iter().zip(e)).enumerate() {
                        assert!((w - e - expected).abs() < 1e-9, "n {n}, column {j}: {}, GPTQ {expected}", w - e);
                    }
                }
            }
        }
    }
}

/// Each sweep lowers the error under H + λI; the residual stays what it is said to be.
#[test]
fn sweeps_only_improve() {
    let (n, filters) = (150, 6);
    let (h, w) = (second_moment(100, n), numbers(n * filters, 5));
    for (planes, group, dtype) in [(1, n, ScaleDtype::F32), (2, 64, ScaleDtype::F16), (3, 7, ScaleDtype::F32)] {
        let solver = Solver::new(h.clone(), n, 0.01, false).unwrap();
        let grid = Grid { binary: false, planes, group, dtype, shared: false };
        let start: Vec<f32> = [0.5, 0.25, 0.125][..planes].to_vec();
        let mut state = Filters::new(&solver, &w, start.repeat(filters * n.div_ceil(group)), grid);
        state.compensate();
        state.residual();
        let mut last = state.error();
        for codes in [false, true, true, true] {
            state.sweep(codes);
            let (next, kept) = (state.error(), state.r.clone());
            assert!(next <= last * (1.0 + 1e-6), "planes {planes}: {next} after {last}");
            state.residual();
            let size = kept.iter().fold(0.0f64, |size, r| size.max(r.abs()));
            assert!(kept.iter().zip(&state.r).all(|(a, b)| (a - b).abs() < 1e-6 * (1.0 + size)));
            last = next;
        }
    }
}

/// W − Ŵ of what one plane with a scale per filter became.
fn lost(w: &[f64], solved: &Solved) -> Vec<f64> {
    let n = w.len() / solved.scales.len();
    let value = |at: usize| f64::from(solved.scales[at / n]) * (f64::from(solved.codes[0][at]) - 1.0);
    w.iter().enumerate().map(|(at, w)| w - value(at)).collect()
}

/// The codes of each weight at the nearest value of these scales.
fn nearest(w: &[f64], scales: &[f32]) -> Vec<Vec<i8>> {
    let levels = Levels::new(scales, false);
    (0..scales.len()).map(|p| w.iter().map(|&w| levels.round(w).1[p]).collect()).collect()
}

fn one_plane(n: usize) -> Grid {
    Grid { binary: false, planes: 1, group: n, dtype: ScaleDtype::F32, shared: false }
}

/// From the scale alone that fits the weights, more is lost; what is said to be lost is lost.
#[test]
fn several_starts_lose_less() {
    for (n, filters) in [(12, 40), (150, 30)] {
        let (h, w) = (second_moment(3 * n, n), numbers(n * filters, 5));
        let solver = Solver::new(h.clone(), n, 0.1, true).unwrap();
        let scales = vec![0.6f32; filters];
        let mut one = Filters::new(&solver, &w, scales.clone(), one_plane(n));
        one.compensate();
        one.residual();
        [false, true, true, true].into_iter().for_each(|codes| one.sweep(codes));
        let plain = Plain { scales: scales.clone(), codes: nearest(&w, &[0.6]) };
        let solved = solver.solve(&w, scales, &plain, one_plane(n));
        let (e, [output, norm]) = (lost(&w, &solved), solved.output);
        let naive = energy(&h, n, &e);
        assert!((naive - output).abs() <= 1e-6 * naive && (energy(&h, n, &w) - norm).abs() <= 1e-6 * norm);
        let damped = |e: &[f64]| energy(&h, n, e) + solver.lambda * dot(e, e);
        let (several, one) = (damped(&e), damped(&one.e));
        eprintln!("n {n}: {several} of {one}");
        assert!(several < 0.97 * one, "n {n}: {several}, from one start {one}");
    }
}

/// Where inputs hang together, what is made up for can cost more than plain rounding; no filter gets worse by it.
#[test]
fn no_filter_is_worse_than_without() {
    let filters = 64;
    for (n, scales) in [(5, &[0.6f32, 0.2, 0.07, 0.02][..]), (9, &[0.6]), (9, &[0.6, 0.2, 0.07]), (40, &[0.6, 0.2])] {
        // Inputs that are one number but for a hundredth.
        let (own, shared) = (numbers(200 * n, 7), numbers(200, 9));
        let x = |row: usize, i: usize| 0.01 * own[row * n + i] + shared[row];
        let h: Vec<f64> = (0..n * n).map(|at| (0..200).map(|row| x(row, at / n) * x(row, at % n)).sum()).collect();
        for (damping, by_diagonal) in [(0.1, true), (0.01, false), (1e-6, true)] {
            let (w, planes) = (numbers(filters * n, 5), scales.len());
            let solver = Solver::new(h.clone(), n, damping, by_diagonal).unwrap();
            let grid = Grid { planes, ..one_plane(n) };
            let plain = Plain { codes: nearest(&w, scales), scales: scales.repeat(filters) };
            let before = Filters::new(&solver, &w, plain.scales.clone(), grid).plain(&plain);
            let error = |e: &[f64]| dot(e, &solver.product(e));
            for shared in [false, true] {
                let solved = solver.solve(&w, plain.scales.clone(), &plain, Grid { shared, ..grid });
                let value = |at: usize| {
                    let scales = &solved.scales[at / n * planes..][..planes];
                    let terms = scales.iter().zip(&solved.codes).map(|(scale, t)| scale * (f32::from(t[at]) - 1.0));
                    f64::from(terms.sum::<f32>())
                };
                let after: Vec<f64> = w.iter().enumerate().map(|(at, w)| w - value(at)).collect();
                for (f, (before, after)) in before.e.chunks(n).zip(after.chunks(n)).enumerate() {
                    let (before, after) = (error(before), error(after));
                    let room = before * 1e-6 + 1e-12 * error(&w[f * n..][..n]);
                    assert!(after <= before + room, "n {n}, planes {planes}, filter {f}: {after} from {before}");
                }
            }
        }
    }
}

/// Where rows are few, more damping is better for other rows.
#[test]
fn damping_is_for_other_rows() {
    let (n, rows, filters) = (80, 60, 20);
    let all = numbers((rows + 4000) * n, 11);
    let moment = |x: &[f64]| -> Vec<f64> {
        (0..n * n).map(|at| x.chunks(n).map(|row| row[at / n] * row[at % n]).sum()).collect()
    };
    let (h, others, w) = (moment(&all[..rows * n]), moment(&all[rows * n..]), numbers(n * filters, 5));
    let elsewhere = |damping: f64| {
        let (solver, scales) = (Solver::new(h.clone(), n, damping, true).unwrap(), vec![0.6; filters]);
        let plain = Plain { scales: scales.clone(), codes: nearest(&w, &[0.6]) };
        let solved = solver.solve(&w, scales, &plain, one_plane(n));
        energy(&others, n, &lost(&w, &solved))
    };
    let (little, much) = (elsewhere(0.001), elsewhere(0.1));
    assert!(much < 0.9 * little, "damping 0.1: {much}, 0.001: {little}");
}

#[test]
fn what_is_not_positive_definite_is_noticed() {
    assert!(Solver::new(vec![1.0, 2.0, 2.0, 1.0], 2, 0.01, false).is_err());
    assert!(Solver::new(vec![0.0; 9], 3, 0.01, true).is_err());
    assert!(Solver::new(vec![1.0, 1.0, 1.0, 1.0], 2, 0.01, true).is_ok());
}
