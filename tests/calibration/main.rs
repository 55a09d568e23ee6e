//! Calibrated ternarization: against every assignment of codes on tiny filters, against plain sums of
//! what is stored, and every way in which statistics may be wrong.

#[path = "../common/mod.rs"]
mod common;

mod results;
mod told;

use std::path::Path;

use common::{Made, Random};
use twn_pack::container::Body;
use twn_pack::convert::{self, Options};
use twn_pack::{Calibration, Checkpoint, Container, Dtype, Plan, Report, Result, Rules, Settings, Tensor, verify};

/// Rows of inputs that depend on each other: [rows][n].
fn rows(random: &mut Random, count: usize, n: usize) -> Vec<Vec<f64>> {
    let mixing: Vec<Vec<f64>> = (0..n).map(|_| random.gaussians(n)).collect();
    (0..count)
        .map(|_| {
            let (own, shared) = (random.gaussians(n), random.gaussian().abs());
            mixing.iter().map(|m| shared + m.iter().zip(&own).map(|(a, b)| a * b).sum::<f64>() / 2.0).collect()
        })
        .collect()
}

fn second_moment(rows: &[Vec<f64>]) -> Vec<f64> {
    let n = rows[0].len();
    (0..n * n).map(|at| rows.iter().map(|x| x[at / n] * x[at % n]).sum()).collect()
}

fn quadratic(h: &[f64], e: &[f64]) -> f64 {
    let n = e.len();
    (0..n * n).map(|at| e[at / n] * h[at] * e[at % n]).sum()
}

/// Packs `layer.weight` with these statistics.
fn pack(directory: &Path, weight: &Made, statistics: &[Made], settings: &str) -> Result<(Container, Report)> {
    with(directory, weight, statistics, settings, Ok, &Options::default())
}

fn with(
    directory: &Path,
    weight: &Made,
    statistics: &[Made],
    settings: &str,
    change: impl FnOnce(Calibration) -> Result<Calibration>,
    options: &Options<'_>,
) -> Result<(Container, Report)> {
    let input = common::checkpoint(directory, "in.safetensors", std::slice::from_ref(weight));
    let checkpoint = Checkpoint::open(input)?;
    let calibration = change(Calibration::open(common::checkpoint(directory, "stats.safetensors", statistics))?)?;
    let rules = Rules { settings: Settings::parse(settings)?, ..Rules::default() };
    let plan = Plan::new(&checkpoint, &rules)?;
    let output = directory.join("out.twn");
    let options = Options { calibration: Some(&calibration), overwrite: true, ..*options };
    let report = convert::pack(&checkpoint, &plan, &output, &options)?;
    let container = Container::open(&output)?;
    let verified = verify::verify(&container, None)?;
    assert!(verified.is_good(), "{settings}: {:?}", verified.problems);
    let verified = verify::verify_against(&container, &checkpoint, None)?;
    assert!(verified.is_good(), "{settings}: {:?}", verified.problems);
    Ok((container, report))
}

/// The filters of `layer.weight`, as decoded.
fn decoded(container: &Container) -> Vec<Vec<f64>> {
    let Some(Tensor::Ternary(tensor)) = container.by_name("layer.weight") else { panic!("ternary") };
    let mut values = vec![0.0; tensor.filter_len];
    (0..tensor.filters)
        .map(|filter| {
            tensor.dequantize_filter(filter, &mut values).unwrap();
            values.iter().copied().map(f64::from).collect()
        })
        .collect()
}

/// Kind, squared error and squared norm that the file says.
fn recorded(container: &Container) -> (String, Option<f64>, Option<f64>) {
    let Body::Ternary(entry) = container.index().tensors[0].body() else { panic!("ternary") };
    let entry = entry.calibration.clone().expect("a calibrated run");
    (entry.kind, entry.squared_error, entry.squared_norm)
}

fn xtx(values: &[f64], shape: &[usize]) -> Made {
    Made::new("layer.weight.xtx", Dtype::F64, shape, values)
}
