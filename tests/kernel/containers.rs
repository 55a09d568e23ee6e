//! Tensors of containers, used where they lie.

use std::path::Path;

use ndarray::Array2;
use twn_pack::kernel::{Arithmetic, PackedMatrix, Workspace};
use twn_pack::{Container, Tensor};

use crate::common::{Random, treatment};
use crate::{gaussian, kernels, product};

/// Within a unit in the last places of the sums, or the bound of 8 bits.
fn assert_is_dense_product(what: &str, w: &PackedMatrix<'_>, dense: &Array2<f64>, workspace: &mut Workspace) {
    let x = gaussian(&mut Random(dense.len() as u64), (w.filter_len(), 3));
    let expected = dense.dot(&x.mapv(f64::from));
    let sums = dense.mapv(f64::abs).dot(&x.mapv(|x| f64::from(x).abs()));
    let weights = dense.mapv(f64::abs).sum_axis(ndarray::Axis(1));
    for (path, arithmetic, kernel) in kernels() {
        let y = product(kernel, w, x.view(), workspace);
        for ((filter, c), &y) in y.indexed_iter() {
            let largest = x.column(c).iter().fold(0.0, |max: f64, &x| max.max(f64::from(x).abs()));
            let limit = match arithmetic {
                Arithmetic::ExactF32 => 1e-5 * sums[[filter, c]],
                Arithmetic::Int8 => largest * weights[filter] * (1.0 / 254.0 + 1e-5),
            };
            let expected = expected[[filter, c]];
            // Values of planes were added in f32 before, and the smallest scales are denormal.
            assert!((f64::from(y) - expected).abs() <= limit + 1e-40, "{path}: {what}: {y} for {expected}");
        }
    }
}

#[test]
fn every_ternary_fixture_in_place() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let (mut tensors, mut planes, mut workspace) = (0, 0, Workspace::default());
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "twn") {
            continue;
        }
        let container = Container::open(&path).unwrap();
        for (name, tensor) in container.tensors() {
            let Tensor::Ternary(tensor) = tensor else { continue };
            let packed = PackedMatrix::new(&tensor).unwrap();
            let codes = packed.codes(0, 0).as_ptr_range();
            let file = container.bytes().as_ptr_range();
            assert!(file.start <= codes.start && codes.end <= file.end, "{name}: codes were copied");

            let mut dense = Array2::zeros((tensor.filters, tensor.filter_len));
            let mut values = vec![0.0; tensor.filter_len];
            for (filter, mut row) in dense.rows_mut().into_iter().enumerate() {
                tensor.dequantize_filter(filter, &mut values).unwrap();
                row.iter_mut().zip(&values).for_each(|(to, &value)| *to = f64::from(value));
            }
            let what = format!("{name} of {}", path.file_name().unwrap().display());
            assert_is_dense_product(&what, &packed, &dense, &mut workspace);
            tensors += 1;
            planes += packed.planes();
        }
    }
    assert!(tensors > 30 && planes > tensors, "{tensors} tensors, {planes} planes");
}

#[test]
fn floats_in_memory() {
    let weights = gaussian(&mut Random(1), (6, 100));
    for settings in ["", "encoding=t5", "method=bwn,encoding=b1", "granularity=group:16,scale-dtype=f16"] {
        let ternary = twn_pack::memory::ternarize("w", &weights, &treatment(settings)).unwrap();
        let dense = ternary.to_array().unwrap().into_dimensionality().unwrap().mapv(f64::from);
        assert_is_dense_product(settings, &PackedMatrix::new(&ternary).unwrap(), &dense, &mut Workspace::default());
    }
}
