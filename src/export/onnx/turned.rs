//! Whether a model has a square matrix as the container has it or transposed. Not here: matrices whose shape says it.

use std::path::Path;

use crate::Tensor;
use crate::container::DenseTensor;
use crate::export::float;
use crate::onnx::{Data, Externals, Initializer, dtype};

/// Filters that are looked at.
const FILTERS: usize = 64;

/// Whether the initializer's floats are closer to the tensor transposed than to the tensor as it is; not where there
/// are none to compare with.
pub(super) fn is_turned(path: &Path, file: &[u8], initializer: &Initializer<'_>, tensor: &Tensor<'_>) -> bool {
    let Some(dtype) = dtype(initializer.data_type) else { return false };
    let (external, range);
    let data = match &initializer.data {
        Data::Here(range) => &file[range.clone()],
        Data::External { .. } => match Externals::of(path).find(initializer, None) {
            Ok(Some(found)) => {
                (external, range) = found;
                &external[range]
            }
            _ => return false,
        },
        Data::Fields => return false,
    };
    let (n, axis) = match tensor {
        Tensor::Dense(dense) => (dense.shape[0], 0),
        Tensor::Int8(int8) => (int8.filter_len, int8.axis),
        Tensor::Ternary(ternary) => (ternary.filter_len, ternary.axis),
    };
    let (mut values, mut products) = (vec![0.0; n], [0.0; 2]);
    for filter in 0..n.min(FILTERS) {
        let read = match tensor {
            Tensor::Dense(dense) => row(dense, filter, &mut values),
            Tensor::Int8(int8) => int8.dequantize_range(filter, 0..n, &mut values).ok(),
            Tensor::Ternary(ternary) => ternary.dequantize_range(filter, 0..n, &mut values).ok(),
        };
        if read.is_none() {
            return false;
        }
        for (j, &value) in values.iter().enumerate() {
            for (product, at) in products.iter_mut().zip([filter * n + j, j * n + filter]) {
                let Some(other) = float(dtype, data, at) else { return false };
                *product += f64::from(value) * other;
            }
        }
    }
    let [along_rows, along_columns] = products;
    if axis == 0 { along_columns > along_rows } else { along_rows > along_columns }
}

/// A row of floats.
fn row(tensor: &DenseTensor<'_>, row: usize, values: &mut [f32]) -> Option<()> {
    let n = values.len();
    for (j, value) in values.iter_mut().enumerate() {
        *value = float(tensor.dtype, tensor.data, row * n + j)? as f32;
    }
    Some(())
}
