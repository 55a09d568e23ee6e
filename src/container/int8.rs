//! A view of a stored int8 tensor: codes, scales, dequantized values. It borrows from a container. Not
//! here: how codes and scales are chosen ([`crate::int8`]).

use std::ops::Range;

use ndarray::ArrayD;

use super::index::{Int8Entry, TensorEntry};
use super::quantized::{Quantized, scale_at};
use super::stats::Int8Stats;
use crate::dtype::Dtype;
use crate::error::ContainerProblem;
use crate::ternarize::ScaleDtype;

/// A tensor of `filters` × `filter_len` codes of 8 bits, −127 to 127, and one scale per filter, W ≈ α·Q.
/// Filter i holds the weights with index i along `axis`.
#[derive(Debug, Clone)]
pub struct Int8Tensor<'a> {
    /// The checkpoint's data type.
    pub dtype: Dtype,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The filter axis.
    pub axis: usize,
    /// How many filters.
    pub filters: usize,
    /// Weights per filter, n.
    pub filter_len: usize,
    /// The type of the stored scales.
    pub scale_dtype: ScaleDtype,
    /// Scales and errors.
    pub stats: Int8Stats,
    codes: &'a [u8],
    scales: &'a [u8],
}

impl<'a> Int8Tensor<'a> {
    pub(crate) fn new(entry: &TensorEntry, int8: &Int8Entry, codes: &'a [u8], scales: &'a [u8]) -> Self {
        let (filters, filter_len) = entry.filters(int8.axis);
        Self {
            dtype: entry.dtype,
            shape: entry.shape.iter().map(|&d| d as usize).collect(),
            axis: int8.axis as usize,
            filters: filters as usize,
            filter_len: filter_len as usize,
            scale_dtype: int8.scale_dtype,
            stats: int8.stats,
            codes,
            scales,
        }
    }

    /// All codes as stored: `[filters][weights per filter]`. −128 is not valid.
    pub fn codes(&self) -> &'a [i8] {
        bytemuck::cast_slice(self.codes)
    }

    /// Every scale: `[filters]`.
    pub fn scales(&self) -> impl ExactSizeIterator<Item = f32> {
        (0..self.filters).map(|filter| scale_at(self.scales, self.scale_dtype, filter))
    }

    /// All scales as stored: little-endian, `[filters]`.
    pub fn scale_bytes(&self) -> &'a [u8] {
        self.scales
    }

    /// Writes the values Ŵ = α·q of one filter, in `f32`.
    ///
    /// # Errors
    /// A code that is not valid.
    ///
    /// # Panics
    /// When there is no such filter, or `values` is not `filter_len` long.
    pub fn dequantize_filter(&self, filter: usize, values: &mut [f32]) -> Result<(), String> {
        self.dequantize_range(filter, 0..self.filter_len, values)
    }

    /// The same for the weights `range` of one filter.
    ///
    /// # Errors
    /// A code that is not valid.
    ///
    /// # Panics
    /// When there is no such filter or range, or `values` has another length.
    pub fn dequantize_range(&self, filter: usize, range: Range<usize>, values: &mut [f32]) -> Result<(), String> {
        assert!(range.end <= self.filter_len && values.len() == range.len(), "values of a range of a filter");
        let codes = &self.codes()[filter * self.filter_len..][range.clone()];
        if let Some(message) = bad_code(codes, range.start) {
            return Err(format!("filter {filter}: {message}"));
        }
        let alpha = scale_at(self.scales, self.scale_dtype, filter);
        values.iter_mut().zip(codes).for_each(|(value, &code)| *value = alpha * f32::from(code));
        Ok(())
    }

    /// The dequantized tensor in its own shape.
    ///
    /// # Errors
    /// A code that is not valid.
    pub fn to_array(&self) -> Result<ArrayD<f32>, String> {
        self.array()
    }
}

/// The first code that stands for no weight, among those of one filter from weight `from` on.
pub(crate) fn bad_code(codes: &[i8], from: usize) -> Option<String> {
    let at = codes.iter().position(|&code| code == i8::MIN)?;
    Some(format!("the code of weight {} is -128, it should be -127 to 127", from + at))
}

impl Quantized for Int8Tensor<'_> {
    fn layout(&self) -> (&[usize], usize) {
        (&self.shape, self.axis)
    }

    fn largest_code(&self) -> f32 {
        127.0
    }

    fn scale_count(&self) -> usize {
        self.filters
    }

    fn scale_at(&self, index: usize) -> f32 {
        scale_at(self.scales, self.scale_dtype, index)
    }

    fn dequantize_range(&self, filter: usize, range: Range<usize>, values: &mut [f32]) -> Result<(), String> {
        self.dequantize_range(filter, range, values)
    }

    fn bad_codes(&self, name: &str) -> Option<ContainerProblem> {
        let filters = self.codes().chunks_exact(self.filter_len).enumerate();
        filters.into_iter().find_map(|(filter, codes)| {
            let message = format!("filter {filter}: {}; pack it again", bad_code(codes, 0)?);
            Some(ContainerProblem::Entry { tensor: name.to_owned(), message })
        })
    }
}
