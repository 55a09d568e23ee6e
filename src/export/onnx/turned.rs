//! Whether a model has a square matrix as the container has it or transposed. Not here: matrices whose shape says it.

use std::path::Path;

use crate::Tensor;
use crate::container::DenseTensor;
use crate::export::float;
use crate::onnx::{Data, Externals, Initializer, dtype};

/// Filters that are looked at.
const FILTERS: usize = 64;

/// The cosine that floats and what became of them have at least, and how far from the other way's: ternary weights have
/// 0.7 and more, those of another training next to nothing.
const CLEAR: f64 = 0.5;

/// Whether the initializer's floats are the tensor transposed, or as it is; nothing where that is not clear, or where
/// there are none to compare with.
pub(super) fn is_turned(path: &Path, file: &[u8], initializer: &Initializer<'_>, tensor: &Tensor<'_>) -> Option<bool> {
    let dtype = dtype(initializer.data_type)?;
    let (external, range);
    let data = match &initializer.data {
        Data::Here(range) => &file[range.clone()],
        Data::External { .. } => match Externals::of(path).find(initializer, None) {
            Ok(Some(found)) => {
                (external, range) = found;
                &external[range]
            }
            _ => return None,
        },
        Data::Fields => return None,
    };
    let (n, axis) = match tensor {
        Tensor::Dense(dense) => (dense.shape[0], 0),
        Tensor::Int8(int8) => (int8.filter_len, int8.axis),
        Tensor::Ternary(ternary) => (ternary.filter_len, ternary.axis),
    };
    // Along rows and along columns.
    let (mut values, mut products, mut others, mut norm) = (vec![0.0; n], [0.0; 2], [0.0; 2], 0.0);
    for filter in 0..n.min(FILTERS) {
        match tensor {
            Tensor::Dense(dense) => row(dense, filter, &mut values)?,
            Tensor::Int8(int8) => int8.dequantize_range(filter, 0..n, &mut values).ok()?,
            Tensor::Ternary(ternary) => ternary.dequantize_range(filter, 0..n, &mut values).ok()?,
        }
        for (j, &value) in values.iter().enumerate() {
            norm += f64::from(value).powi(2);
            for (way, at) in [filter * n + j, j * n + filter].into_iter().enumerate() {
                let other = float(dtype, data, at)?;
                products[way] += f64::from(value) * other;
                others[way] += other * other;
            }
        }
    }
    let [along_rows, along_columns] = [0, 1].map(|way| products[way] / (norm * others[way]).sqrt());
    let (as_it_is, turned) = if axis == 0 { (along_rows, along_columns) } else { (along_columns, along_rows) };
    // A symmetric matrix may lie as it is.
    let clear = as_it_is.max(turned) > CLEAR && ((as_it_is - turned).abs() > CLEAR / 2.0 || as_it_is == turned);
    clear.then_some(turned > as_it_is)
}

/// A row of floats.
fn row(tensor: &DenseTensor<'_>, row: usize, values: &mut [f32]) -> Option<()> {
    let n = values.len();
    for (j, value) in values.iter_mut().enumerate() {
        *value = float(tensor.dtype, tensor.data, row * n + j)? as f32;
    }
    Some(())
}
