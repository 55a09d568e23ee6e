//! Errors and sparsities: against closed forms for known distributions, and what a report says
//! against plain recomputation from the weights and the stored codes.

mod common;

use common::{FLOATS, Made, Random, filters, treatment};
use twn_pack::convert::Options;
use twn_pack::{Checkpoint, Container, Dtype, Isa, Plan, Report, Rules, Settings, Tensor, TensorView, TernaryTensor};
use twn_pack::{convert, verify};

fn ternarize(tensor: &Made, settings: &str) -> TernaryTensor<'static> {
    let view = TensorView::new(&tensor.name, tensor.dtype, &tensor.shape, &tensor.data);
    convert::ternarize(view, &treatment(settings), Isa::detect().unwrap()).unwrap()
}

/// Error and share of zeros lie within six standard deviations of the closed form, which is known
/// to half a unit of its last digit (`digits`: 0.00005 and 0.0005).
fn assert_closed_form(what: &str, tensor: &Made, settings: &str, error: f64, zeros: f64) {
    let weights = tensor.values();
    let n = weights.len() as f64;
    let result = ternarize(tensor, settings);
    let mut values = Vec::new();
    for filter in 0..result.filters {
        let mut row = vec![0.0; result.filter_len];
        result.dequantize_filter(filter, &mut row).unwrap();
        values.extend(row);
    }
    let norm: f64 = weights.iter().map(|w| w * w).sum();
    let found = result.stats.relative_squared_error();
    // The error is a ratio of sums: the spread of its terms gives the spread of the ratio.
    let spread: f64 =
        weights.iter().zip(&values).map(|(w, v)| ((w - f64::from(*v)).powi(2) - found * w * w).powi(2)).sum();
    let bound = 6.0 * spread.sqrt() / norm + 0.00005;
    assert!((found - error).abs() < bound, "{what}: error {found:.5}, should be {error} ± {bound:.5}");
    let share = result.stats.zeros as f64 / n;
    let bound = 6.0 * (zeros * (1.0 - zeros) / n).sqrt() + 0.0005;
    assert!((share - zeros).abs() < bound, "{what}: {share:.4} zeros, should be {zeros} ± {bound:.4}");
}

#[test]
fn gaussian_weights_cost_what_theory_says() {
    for (i, shape) in [[1, 1 << 20], [32, 1 << 15]].iter().enumerate() {
        let tensor = Made::gaussian("w", [Dtype::F32, Dtype::F64][i], shape, 10);
        assert_closed_form("twn 0.7", &tensor, "method=twn", 0.1916, 0.424);
        assert_closed_form("twn 0.75", &tensor, "method=twn,factor=0.75", 0.1903, 0.450);
        assert_closed_form("bwn", &tensor, "method=bwn", 0.3634, 0.0);
    }
    let tensor = Made::gaussian("w", Dtype::F32, &[1, 1 << 20], 11);
    assert_closed_form("optimal", &tensor, "method=optimal", 0.1902, 0.460);
}

#[test]
fn laplace_and_uniform_weights_cost_what_theory_says() {
    let mut random = Random(12);
    let values: Vec<f64> = (0..1 << 20).map(|_| random.laplace()).collect();
    let tensor = Made::new("w", Dtype::F32, &[1, 1 << 20], &values);
    assert_closed_form("twn 0.7", &tensor, "method=twn", 0.2824, 0.503);
    assert_closed_form("optimal", &tensor, "method=optimal", 0.2642, 0.632);
    // Uniform: Δ = max/3 is optimal, a third of the weights is lost to zero, 1/9 of the energy.
    let values: Vec<f64> = (0..1 << 20).map(|_| 2.0 * random.unit() - 1.0).collect();
    let tensor = Made::new("w", Dtype::F64, &[1, 1 << 20], &values);
    assert_closed_form("twn 2/3", &tensor, "method=twn,factor=0.6666666666666666", 1.0 / 9.0, 1.0 / 3.0);
    assert_closed_form("optimal", &tensor, "method=optimal", 1.0 / 9.0, 1.0 / 3.0);
}

#[test]
fn optimal_is_never_worse_than_the_others() {
    for seed in 0..20 {
        let tensor = Made::gaussian("w", Dtype::F32, &[16, 50], seed);
        let error = |settings| ternarize(&tensor, settings).stats.squared_error;
        let best = error("method=optimal");
        for other in ["method=twn", "method=twn,factor=0.75", "method=absmean", "method=bwn", "method=twn,factor=0"] {
            assert!(best <= error(other) * (1.0 + 1e-6), "{other}, seed {seed}");
        }
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// Recomputes every number of the report of one tensor.
fn assert_statistics(what: &str, made: &Made, report: &twn_pack::report::TensorReport, tensor: &TernaryTensor<'_>) {
    let rows = filters(&made.values(), &made.shape, tensor.axis);
    let (mut counts, mut error, mut norm) = ([0u64; 3], 0.0, 0.0);
    for (filter, row) in rows.iter().enumerate() {
        let mut codes = vec![0; row.len()];
        tensor.codes(0, filter, &mut codes).unwrap();
        for (j, (&w, &code)) in row.iter().zip(&codes).enumerate() {
            counts[usize::from(code)] += 1;
            error += (w - f64::from(tensor.scale(0, filter, j)) * (f64::from(code) - 1.0)).powi(2);
            norm += w * w;
        }
    }
    let n = rows.iter().map(Vec::len).sum::<usize>() as f64;
    let stats = &tensor.stats;
    assert_eq!([stats.negative, stats.zeros, stats.positive], counts, "{what}");
    // Near zero the expanded error keeps fewer digits, so it is measured by the norm.
    assert!((stats.squared_error - error).abs() <= 1e-12 * norm, "{what}: {} {error}", stats.squared_error);
    assert!(close(stats.squared_norm, norm), "{what}");
    assert!((report.relative_squared_error.unwrap() - error / norm.max(1e-300)).abs() <= 1e-12, "{what}");
    assert_eq!(report.sparsity.unwrap(), counts[1] as f64 / n, "{what}");
    let shares = counts.iter().filter(|c| **c > 0).map(|c| *c as f64 / n);
    let entropy: f64 = shares.map(|p| -p * p.ln() / 2f64.ln()).sum();
    assert!((report.entropy.unwrap() - entropy).abs() < 1e-12, "{what}");
    let scales: Vec<f64> = tensor.scales().map(f64::from).collect();
    assert_spread(what, report.alpha.unwrap(), &scales);
    if tensor.method.name == "twn" {
        let run = tensor.scale_run();
        let mean = |unit: &[f64]| 0.7 * unit.iter().map(|w| w.abs()).sum::<f64>() / unit.len() as f64;
        let deltas: Vec<f64> = if tensor.scales().len() == 1 {
            vec![mean(&rows.concat())]
        } else {
            rows.iter().flat_map(|row| row.chunks(run).map(mean)).collect()
        };
        assert_spread(what, report.delta.unwrap(), &deltas);
    }
    assert_eq!(report.delta.is_none(), tensor.method.name == "bwn", "{what}");
}

fn assert_spread(what: &str, spread: twn_pack::container::Spread, values: &[f64]) {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(0.0, f64::max);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    assert!(close(spread.min, min) && close(spread.max, max) && close(spread.mean, mean), "{what}: {spread:?}");
}

#[test]
fn reports_say_what_the_weights_say() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors: Vec<Made> =
        FLOATS.iter().map(|dtype| Made::gaussian(&format!("{dtype}"), *dtype, &[6, 5, 7], 20)).collect();
    tensors.push(Made::gaussian("long", Dtype::F32, &[2, 250_000], 21));
    let path = common::checkpoint(directory.path(), "in.safetensors", &tensors);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let output = directory.path().join("out.twn");
    for settings in [
        "method=twn",
        "method=twn,granularity=tensor",
        "method=twn,granularity=group:8,scale-dtype=f16",
        "method=twn,granularity=group:246000",
        "method=optimal,encoding=t5",
        "method=optimal,scale-dtype=f16",
        "method=absmean,granularity=tensor,axis=1",
        "method=bwn,scale-dtype=f16",
        "method=bwn,granularity=group:100,encoding=t2",
    ] {
        let rules = Rules { settings: Settings::parse(settings).unwrap(), ..Rules::default() };
        let plan = Plan::new(&checkpoint, &rules).unwrap();
        let options = Options { overwrite: true, ..Options::default() };
        let report = convert::pack(&checkpoint, &plan, &output, &options).unwrap();
        let container = Container::open(&output).unwrap();
        assert_eq!(report, Report::of_index(container.index(), container.bytes().len() as u64), "{settings}");
        assert!(verify::verify_against(&container, &checkpoint, None).unwrap().is_good(), "{settings}");
        let (mut error, mut norm) = (0.0, 0.0);
        for made in &tensors {
            let what = format!("{settings}, {}", made.name);
            let Some(Tensor::Ternary(tensor)) = container.by_name(&made.name) else { panic!("{what} is dense") };
            let line = report.tensors.iter().find(|t| t.name == made.name).unwrap();
            assert_statistics(&what, made, line, &tensor);
            error += tensor.stats.squared_error;
            norm += tensor.stats.squared_norm;
        }
        assert!(close(report.totals.relative_squared_error.unwrap(), error / norm));
        let zeros: u64 = report.tensors.iter().map(|t| (t.sparsity.unwrap() * elements(t) as f64).round() as u64).sum();
        let all: u64 = report.tensors.iter().map(elements).sum();
        assert_eq!(report.totals.sparsity.unwrap(), zeros as f64 / all as f64);
        assert_eq!(report.totals.file_bytes, std::fs::metadata(&output).unwrap().len());
    }
}

fn elements(tensor: &twn_pack::report::TensorReport) -> u64 {
    tensor.shape.iter().product()
}

#[test]
fn weights_that_are_ternary_already_cost_nothing() {
    let mut random = Random(30);
    for dtype in FLOATS {
        for scale in [1.0, 0.375, 1.75] {
            let values: Vec<f64> = (0..4 * 501).map(|_| scale * (random.below(3) as f64 - 1.0)).collect();
            let tensor = Made::new("t", dtype, &[4, 501], &values);
            for method in ["twn", "optimal", "twn,granularity=tensor", "optimal,granularity=group:32,scale-dtype=f16"] {
                let result = ternarize(&tensor, &format!("method={method}"));
                assert_eq!(result.stats.squared_error, 0.0, "{dtype} {scale} {method}");
                assert_eq!(result.stats.relative_squared_error(), 0.0);
                let array = result.to_array().unwrap();
                assert!(array.iter().zip(&values).all(|(a, b)| f64::from(*a) == *b), "{dtype} {scale} {method}");
            }
        }
    }
    // 0.1 is no f32: an f64 tensor of it loses the rounding of the scale, nothing else.
    let tensor = Made::new("t", Dtype::F64, &[1, 3], &[0.1, -0.1, 0.0]);
    let error = ternarize(&tensor, "method=twn").stats.squared_error;
    let expected = 2.0 * (0.1 - f64::from(0.1f32)).powi(2);
    assert!(close(error, expected), "{error:e} {expected:e}");
}

#[test]
fn zeros_have_scale_zero_and_no_error() {
    for method in ["twn", "optimal", "absmean", "bwn"] {
        for granularity in ["filter", "tensor", "group:7"] {
            let tensor = Made::new("t", Dtype::F32, &[2, 10], &[0.0, -0.0].repeat(10));
            let result = ternarize(&tensor, &format!("method={method},granularity={granularity}"));
            assert!(result.scales().all(|scale| scale.to_bits() == 0), "{method} {granularity}");
            assert_eq!(result.stats.relative_squared_error(), 0.0);
            assert!(result.to_array().unwrap().iter().all(|w| *w == 0.0));
        }
    }
}
