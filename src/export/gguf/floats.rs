//! A ternary or int8 tensor as floats in a GGUF file, where that was asked for: F32, the values that `unpack` gives.
//! Not here: why it could not go as codes.

use super::tensor::{Made, Rows, shape};
use crate::container::{Int8Tensor, TernaryTensor};
use crate::export::Part;
use crate::gguf::Type;

pub(super) fn of_ternary<'a>(name: &str, tensor: &TernaryTensor<'a>, rows: Rows) -> Made<'a> {
    let (dims, axis) = (tensor.shape.clone(), tensor.axis);
    let tensor = tensor.clone();
    make(name, &dims, axis, rows, move |filter, weights, values| {
        tensor.dequantize_range(filter, weights, values).map_err(|message| format!("filter {filter}: {message}"))
    })
}

pub(super) fn of_int8<'a>(name: &str, tensor: &Int8Tensor<'a>, rows: Rows) -> Made<'a> {
    let (dims, axis) = (tensor.shape.clone(), tensor.axis);
    let tensor = tensor.clone();
    make(name, &dims, axis, rows, move |filter, weights, values| tensor.dequantize_range(filter, weights, values))
}

/// A tensor in its own shape and order; `values` gives a range of the weights of a filter.
fn make<'a>(
    name: &str,
    dims: &[usize],
    axis: usize,
    rows: Rows,
    dequantize: impl Fn(usize, std::ops::Range<usize>, &mut [f32]) -> Result<(), String> + Sync + Send + 'a,
) -> Made<'a> {
    // [outer][filters][inner]: weights o·inner and on of a filter are neighbours.
    let filters = dims[axis];
    let (outer, inner) = (dims[..axis].iter().product::<usize>(), dims[axis + 1..].iter().product::<usize>());
    let part = Part::rows(name, outer * filters, 4 * inner, move |range, bytes| {
        let mut values = vec![0.0; inner];
        for (row, bytes) in range.zip(bytes.chunks_exact_mut(4 * inner)) {
            // Tensors whose rows have another order are vectors or matrices.
            let (o, filter) = match axis {
                0 => (0, rows.source(row)),
                _ => (rows.source(row / filters), row % filters),
            };
            dequantize(filter, o * inner..(o + 1) * inner, &mut values)?;
            for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&values) {
                *bytes = value.to_le_bytes();
            }
        }
        Ok(())
    });
    let (kind, shape) = (Type::f32(), shape(dims));
    Made { part, dtype: None, granularity: None, method: None, kind, shape, rounding: 0.0, why: None }
}
