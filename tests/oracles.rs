//! Independent oracles: every method against its paper's equations in plain f64, the optimum
//! against trying every k, and errors and sparsities against closed forms.

mod common;

use common::{FLOATS, Made, Random, filters, treatment};
use twn_pack::ternarize::{self, Optimal, Unit};
use twn_pack::{Dtype, Isa, ScaleDtype, TensorView, TernaryTensor, convert};

fn ternarize(tensor: &Made, settings: &str) -> TernaryTensor<'static> {
    let view = TensorView::new(&tensor.name, tensor.dtype, &tensor.shape, &tensor.data);
    convert::ternarize(view, &treatment(settings), Isa::detect().unwrap()).unwrap()
}

fn codes(tensor: &TernaryTensor<'_>, filter: usize) -> Vec<u8> {
    let mut codes = vec![9; tensor.filter_len];
    tensor.codes(0, filter, &mut codes).unwrap();
    codes
}

/// Sum with an error term (Neumaier): good to about one unit in the last place.
fn sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut rest) = (0.0f64, 0.0);
    for x in values {
        let next = sum + x;
        rest += if sum.abs() >= x.abs() { (sum - next) + x } else { (x - next) + sum };
        sum = next;
    }
    sum + rest
}

/// Whether `scale` is `exact` rounded to f32, where `exact` is known to 1e-13.
fn rounds_to(scale: f32, exact: f64) -> bool {
    [1.0 - 1e-13, 1.0, 1.0 + 1e-13].iter().any(|hair| (exact * hair) as f32 == scale)
}

/// (k, S_k²/k) of the best k, trying all of them.
fn brute_force(weights: &[f64]) -> (usize, f64) {
    let mut sorted: Vec<f64> = weights.iter().map(|w| w.abs()).collect();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let (mut best, mut total, mut rest) = ((0, 0.0), 0.0f64, 0.0);
    for (i, &x) in sorted.iter().enumerate() {
        // The running total, exact to about 1e-16 as in `sum`; descending terms.
        let next = total + x;
        rest += if total >= x { (total - next) + x } else { (x - next) + total };
        total = next;
        let gain = (total + rest) * ((total + rest) / (i + 1) as f64);
        if gain > best.1 {
            best = (i + 1, gain);
        }
    }
    best
}

/// The codes are a threshold set that is as good as the best, and the scale is its mean.
fn assert_optimal(what: &str, weights: &[f64], codes: &[u8], scale: f32) {
    let (best_k, best) = brute_force(weights);
    let kept: Vec<f64> = weights.iter().zip(codes).filter(|(_, c)| **c != 1).map(|(w, _)| w.abs()).collect();
    let smallest_kept = kept.iter().copied().fold(f64::INFINITY, f64::min);
    for (w, &code) in weights.iter().zip(codes) {
        let expected = if w.abs() < smallest_kept { 1 } else { 1 + w.signum() as i8 };
        assert_eq!(code, expected as u8, "{what}: {w:e} beside a smallest kept {smallest_kept:e}");
    }
    let (k, s) = (kept.len(), sum(kept));
    let gain = if k == 0 { 0.0 } else { s * (s / k as f64) };
    assert!((gain - best).abs() <= 1e-12 * best, "{what}: k {k} gives {gain:e}, k {best_k} gives {best:e}");
    let alpha = if k == 0 { 0.0 } else { s / k as f64 };
    assert!(rounds_to(scale, alpha), "{what}: scale {scale:e}, S/k {alpha:e}");
}

/// Weights of one family; every one within the range of f32.
fn family(random: &mut Random, number: usize, n: usize) -> Vec<f64> {
    let step = |random: &mut Random, levels: u64| random.below(levels) as f64 * random.sign();
    let clusters: Vec<f64> = (0..5).map(|i| 3f64.powi(i) * (0.9 + 0.2 * random.unit())).collect();
    let level = random.gaussian();
    (0..n)
        .map(|i| match number {
            0 => random.gaussian() * 0.02,
            1 => 2.0 * random.unit() - 1.0,
            2 => random.gaussian() / random.unit().sqrt(),
            3 => random.sign() / random.unit(),
            4 => step(random, 4),
            5 => step(random, 2) * level,
            6 => level,
            7 => 0.0,
            8 => 2f64.powi(random.below(276) as i32 - 149) * random.sign(),
            9 => 2f64.powi(random.below(5) as i32) * random.sign(),
            // Pareto with exponent 2: S_k²/k is nearly the same for every k.
            10 => (n as f64 / (i + 1) as f64).sqrt() * random.sign(),
            11 => (n as f64 / (i + 1) as f64).sqrt() * (0.98 + 0.04 * random.unit()) * random.sign(),
            // Clusters with 9 times as many members at a third of the size: several fixed points.
            _ => {
                let u = random.unit();
                let cluster = (0..5).rev().find(|c| u < 9f64.powi(-c)).unwrap_or(0) as usize;
                clusters[cluster] * (1.0 + 1e-3 * random.unit()) * random.sign()
            }
        })
        .collect()
}

const FAMILIES: usize = 13;

#[test]
fn optimal_is_the_best_of_all_k_on_short_filters() {
    let mut random = Random(1);
    let mut filters_tried = 0;
    for round in 0..20 {
        for n in 1..=40 {
            for dtype in [Dtype::F32, Dtype::F64] {
                let values: Vec<f64> = (0..FAMILIES).flat_map(|f| family(&mut random, f, n)).collect();
                let tensor = Made::new("t", dtype, &[FAMILIES, n], &values);
                let values = tensor.values();
                let result = ternarize(&tensor, "method=optimal");
                for filter in 0..FAMILIES {
                    let what = format!("{dtype} round {round} n {n} family {filter}");
                    let row = &values[filter * n..][..n];
                    assert_optimal(&what, row, &codes(&result, filter), result.scale(0, filter, 0));
                    filters_tried += 1;
                }
            }
        }
    }
    assert_eq!(filters_tried, 20_800);
}

#[test]
fn optimal_is_the_best_of_all_k_on_long_filters() {
    // Up to 245,760 weights a filter is fitted in memory, above that block by block.
    let mut random = Random(2);
    for (i, n) in [1_000, 65_537, 81_921, 245_760, 245_761, 300_000].into_iter().enumerate() {
        for number in [0, 2, 4, 8, 10, 11, 12] {
            let dtype = if (i + number) % 2 == 0 { Dtype::F32 } else { Dtype::F64 };
            let tensor = Made::new("t", dtype, &[1, n], &family(&mut random, number, n));
            let result = ternarize(&tensor, "method=optimal,encoding=t5");
            let what = format!("{dtype} n {n} family {number}");
            assert_optimal(&what, &tensor.values(), &codes(&result, 0), result.scale(0, 0, 0));
        }
    }
}

#[test]
fn optimal_in_memory_and_streamed_agree() {
    // The same weights as a filter of one row, as a whole tensor of many rows, and as a slice.
    let mut random = Random(3);
    for number in [0, 3, 9, 11, 12] {
        let values: Vec<f32> = family(&mut random, number, 100_000).iter().map(|x| *x as f32).collect();
        let wide: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
        let tensor = Made::new("t", Dtype::F32, &[100, 1_000], &wide);
        let streamed = ternarize(&tensor, "method=optimal,granularity=tensor");
        let all: Vec<u8> = (0..100).flat_map(|filter| codes(&streamed, filter)).collect();
        assert_optimal(&format!("family {number}"), &wide, &all, streamed.scale(0, 0, 0));
        for isa in Isa::all() {
            let fit = ternarize::fit(&Optimal, &Unit::from_f32(isa, &values), ScaleDtype::F32);
            assert_eq!(fit.scale, streamed.scale(0, 0, 0), "family {number}, {}", isa.name());
            let fit = ternarize::fit(&Optimal, &Unit::from_f64(isa, &wide), ScaleDtype::F32);
            assert_eq!(fit.scale, streamed.scale(0, 0, 0), "family {number}, {}, f64", isa.name());
        }
    }
}

#[test]
fn optimal_where_a_million_candidates_remain() {
    // More candidates than are gathered at once, which splits the search: S_k²/k nearly level, and
    // a run of 1.2 million equal weights between two fixed points.
    let n = 2_400_000;
    let mut random = Random(4);
    let pareto: Vec<f64> = (1..=n).map(|i| (n as f64 / f64::from(i)).sqrt()).collect();
    let jittered: Vec<f64> = pareto.iter().map(|x| x * (0.999 + 0.002 * random.unit())).collect();
    let run: Vec<f64> = (0..1_300_000).map(|i| if i < 100_000 { 3.0 - 1e-7 * f64::from(i) } else { 1.0 }).collect();
    for (what, values) in [("pareto", pareto), ("jittered", jittered), ("run", run)] {
        let tensor = Made::new("t", Dtype::F32, &[1, values.len()], &values);
        let result = ternarize(&tensor, "method=optimal");
        assert_optimal(what, &tensor.values(), &codes(&result, 0), result.scale(0, 0, 0));
    }
}

/// What the paper says of weights that share a scale: (Δ, α) with codes from Δ, or signs.
fn paper(method: &str, unit: &[f64]) -> (Option<f64>, f64) {
    let mean = sum(unit.iter().map(|w| w.abs())) / unit.len() as f64;
    let above = |delta: f64| {
        let kept: Vec<f64> = unit.iter().map(|w| w.abs()).filter(|w| *w > delta).collect();
        if kept.is_empty() { 0.0 } else { sum(kept.iter().copied()) / kept.len() as f64 }
    };
    match method {
        "twn" => (Some(0.7 * mean), above(0.7 * mean)),
        "absmean" => (Some(0.5 * mean), mean),
        "bwn" => (None, mean),
        other => panic!("{other}"),
    }
}

fn paper_code(method: &str, w: f64, delta: Option<f64>, alpha: f64) -> u8 {
    match (method, delta) {
        // BitNet b1.58, eq. 1 to 3, word for word.
        ("absmean", _) if alpha == 0.0 => 1,
        ("absmean", _) => (1.0 + (w / alpha).round_ties_even().clamp(-1.0, 1.0)) as u8,
        (_, Some(delta)) => 1 + u8::from(w > delta) - u8::from(w < -delta),
        (_, None) => 2 * u8::from(w >= 0.0),
    }
}

/// Which weights share a scale: (filter, range of weights) for each scale, in order.
fn units(granularity: &str, filters: usize, n: usize) -> Vec<Vec<(usize, std::ops::Range<usize>)>> {
    match granularity.strip_prefix("group:") {
        _ if granularity == "tensor" => vec![(0..filters).map(|f| (f, 0..n)).collect()],
        None => (0..filters).map(|f| vec![(f, 0..n)]).collect(),
        Some(size) => {
            let size: usize = size.parse().unwrap();
            let groups = |f| (0..n.div_ceil(size)).map(move |g| vec![(f, g * size..((g + 1) * size).min(n))]);
            (0..filters).flat_map(groups).collect()
        }
    }
}

fn assert_follows_paper(tensor: &Made, method: &str, granularity: &str, axis: usize) {
    let what = format!("{method} {granularity} axis {axis} {} {:?}", tensor.dtype, tensor.shape);
    let result = ternarize(tensor, &format!("method={method},granularity={granularity},axis={axis}"));
    let rows = filters(&tensor.values(), &tensor.shape, axis);
    let all: Vec<Vec<u8>> = (0..rows.len()).map(|filter| codes(&result, filter)).collect();
    let units = units(granularity, rows.len(), rows[0].len());
    assert_eq!(units.len(), result.scales().len(), "{what}");
    for (unit, scale) in units.iter().zip(result.scales()) {
        let weights: Vec<f64> = unit.iter().flat_map(|(f, range)| rows[*f][range.clone()].to_vec()).collect();
        let found = unit.iter().flat_map(|(f, range)| all[*f][range.clone()].to_vec());
        let (delta, alpha) = paper(method, &weights);
        assert!(rounds_to(scale, alpha), "{what}: scale {scale:e}, should be {alpha:e}");
        for (&w, code) in weights.iter().zip(found) {
            let near = delta.is_some_and(|delta| (w.abs() - delta).abs() <= 1e-12 * delta && delta > 0.0);
            assert!(near || code == paper_code(method, w, delta, alpha), "{what}: {w:e} became {code}");
        }
    }
}

#[test]
fn methods_follow_their_papers() {
    let mut random = Random(5);
    for dtype in FLOATS {
        for shape in [&[7, 33][..], &[3, 4, 5], &[2, 3, 5, 7], &[1, 1], &[64, 1]] {
            let n = shape.iter().product();
            let mut values = random.gaussians(n);
            // A filter of zeros, and a tie in every type: small integers.
            values[..n / 4].fill(0.0);
            values[n / 2..].iter_mut().for_each(|w| *w = (*w * 2.0).round());
            let tensor = Made::new("t", dtype, shape, &values);
            for method in ["twn", "absmean", "bwn"] {
                for granularity in ["filter", "tensor", "group:1", "group:5", "group:64"] {
                    for axis in 0..shape.len() {
                        assert_follows_paper(&tensor, method, granularity, axis);
                    }
                }
            }
        }
    }
}

#[test]
fn methods_follow_their_papers_on_long_filters() {
    // Longer than a piece of work (245,760 weights), along both axes, with groups over the seams.
    for (dtype, axis) in [(Dtype::F32, 0), (Dtype::BF16, 1), (Dtype::F64, 0), (Dtype::F16, 1)] {
        let shape = if axis == 0 { [2, 260_003] } else { [260_003, 2] };
        let tensor = Made::gaussian("t", dtype, &shape, 6);
        for method in ["twn", "absmean", "bwn"] {
            for granularity in ["filter", "group:1000", "group:250000", "tensor"] {
                assert_follows_paper(&tensor, method, granularity, axis);
            }
        }
    }
}
