//! Arrays in memory → ternary tensors, without any file. Not here: the arithmetic
//! ([`crate::convert`]).

use ndarray::{ArrayRef, Dimension};

use crate::container::TernaryTensor;
use crate::select::Treatment;
use crate::source::{Dtype, TensorView};
use crate::{Isa, Result, convert};

/// An element type that arrays can be ternarized from.
pub trait Element: bytemuck::Pod {
    /// Its name in a checkpoint.
    const DTYPE: Dtype;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

impl Element for f64 {
    const DTYPE: Dtype = Dtype::F64;
}

/// Ternarizes an array of any shape and memory order; the result has its shape.
///
/// # Errors
/// No such axis, an empty array, or weights that cannot become ternary (NaN, infinity, a scale out
/// of range); errors call the tensor `name`.
///
/// ```
/// use twn_pack::{Settings, memory};
///
/// let weights = ndarray::array![[0.9_f32, -1.1, 0.1, 0.0], [0.2, 0.2, -0.2, 0.2]];
/// let ternary = memory::ternarize("fc", &weights, &Settings::default().treatment()?)?;
/// assert_eq!(ternary.to_array().unwrap(), ndarray::array![[1.0_f32, -1.0, 0.0, 0.0], [0.2, 0.2, -0.2, 0.2]].into_dyn());
/// # Ok::<(), twn_pack::Error>(())
/// ```
pub fn ternarize<T: Element, D: Dimension>(
    name: &str,
    array: &ArrayRef<T, D>,
    treatment: &Treatment,
) -> Result<TernaryTensor<'static>> {
    let standard = array.as_standard_layout();
    let elements = standard.as_slice().unwrap_or_default();
    let bytes: &[u8] = bytemuck::cast_slice(elements);
    let tensor = TensorView::new(name, T::DTYPE, array.shape(), bytes);
    convert::ternarize(tensor, treatment, Isa::detect()?)
}
