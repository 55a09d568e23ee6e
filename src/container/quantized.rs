//! What ternary and int8 tensors have in common: filters whose values follow from codes and scales. Not
//! here: how they follow.

use std::ops::Range;

use ndarray::{ArrayD, Axis, IxDyn};

use crate::error::ContainerProblem;
use crate::ternarize::ScaleDtype;

/// A stored tensor that can be dequantized, filter by filter.
pub(crate) trait Quantized: Sync {
    /// Its shape, outermost dimension first, and the filter axis.
    fn layout(&self) -> (&[usize], usize);
    /// The largest magnitude of a code.
    fn largest_code(&self) -> f32;
    /// How many planes: what a value is the sum of.
    fn planes(&self) -> usize {
        1
    }
    /// How many scales are stored.
    fn scale_count(&self) -> usize;
    /// Scale number `index`, as stored.
    fn scale_at(&self, index: usize) -> f32;
    /// The values of weights `range` of a filter, as many as `values` takes.
    fn dequantize_range(&self, filter: usize, range: Range<usize>, values: &mut [f32]) -> Result<(), String>;
    /// The first codes that no writer writes; errors call the tensor `name`.
    fn bad_codes(&self, name: &str) -> Option<ContainerProblem>;

    /// Its shape.
    fn shape(&self) -> &[usize] {
        self.layout().0
    }

    /// The filter axis.
    fn axis(&self) -> usize {
        self.layout().1
    }

    /// How many filters.
    fn filters(&self) -> usize {
        self.shape()[self.axis()]
    }

    /// Weights per filter. A tensor with filters has weights.
    fn filter_len(&self) -> usize {
        self.shape().iter().product::<usize>() / self.filters()
    }

    /// The first scale that no writer writes.
    fn bad_scale(&self, name: &str) -> Option<ContainerProblem> {
        let mut scales = (0..self.scale_count()).map(|index| (index, self.scale_at(index)));
        let (index, found) = scales.find(|(_, scale)| !scale.is_finite() || scale.is_sign_negative())?;
        Some(ContainerProblem::Scale { tensor: name.to_owned(), index, found })
    }

    /// The dequantized tensor in its own shape.
    fn array(&self) -> Result<ArrayD<f32>, String> {
        let mut rows = vec![0.0; self.filters() * self.filter_len()];
        if self.filter_len() > 0 {
            for (filter, row) in rows.chunks_mut(self.filter_len()).enumerate() {
                self.dequantize_range(filter, 0..self.filter_len(), row)?;
            }
        }
        let mut front = self.shape().to_vec();
        let filters = front.remove(self.axis());
        front.insert(0, filters);
        let mut array = ArrayD::from_shape_vec(IxDyn(&front), rows).map_err(|e| e.to_string())?;
        // The filter axis stands in front; walk it back to its place.
        for axis in 0..self.axis() {
            array.swap_axes(axis, axis + 1);
        }
        debug_assert_eq!(array.len_of(Axis(self.axis())), self.filters());
        Ok(array.as_standard_layout().into_owned())
    }
}

/// Scale number `index` of a section of that type.
pub(super) fn scale_at(bytes: &[u8], dtype: ScaleDtype, index: usize) -> f32 {
    match dtype {
        ScaleDtype::F32 => f32::from_le_bytes(std::array::from_fn(|i| bytes[4 * index + i])),
        ScaleDtype::F16 => half::f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32(),
    }
}
