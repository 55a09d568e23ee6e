//! Tensors that are ternary in the checkpoint, in another program's layout. Not here: any layout
//! ([`crate::import`]).

use std::fmt::Debug;

use super::Dtype;

/// How the codes and scales of a ternary tensor lie in its bytes. Filters go along axis 0. Nothing is to panic,
/// whatever the bytes are; that there are enough of them was checked when the checkpoint was put together.
pub trait TernaryLayout: Debug + Send + Sync {
    /// How many weights from the beginning of a filter share a scale: all of them, or the length of a block.
    fn unit_len(&self) -> usize;

    /// Writes the codes t+1 (0, 1, 2) of one filter into `codes`, which has its length.
    ///
    /// # Errors
    /// Bytes that are no codes, in words.
    fn codes(&self, data: &[u8], filter: usize, codes: &mut [u8]) -> Result<(), String>;

    /// The scale α of one unit of a filter, as it multiplies the codes; checked for being finite and not negative
    /// where it is used.
    fn scale(&self, data: &[u8], filter: usize, unit: usize) -> f32;
}

/// A tensor that is ternary in the checkpoint. Its codes can be moved; nothing has to be estimated.
#[derive(Debug, Clone, Copy)]
pub struct TernaryView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type that its weights have for those who compute with them.
    pub dtype: Dtype,
    /// The shape of the weights, outermost dimension first; filter i has index i along axis 0.
    pub shape: &'a [usize],
    pub(super) data: &'a [u8],
    pub(super) layout: &'a dyn TernaryLayout,
}

impl TernaryView<'_> {
    /// How many filters.
    pub fn filters(&self) -> usize {
        self.shape[0]
    }

    /// Weights per filter, n.
    pub fn filter_len(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// How many weights from the beginning of a filter share a scale.
    pub fn unit_len(&self) -> usize {
        self.layout.unit_len().clamp(1, self.filter_len().max(1))
    }

    /// Writes the codes t+1 of one filter into `codes`, which has `filter_len` bytes.
    ///
    /// # Errors
    /// Bytes that are no codes.
    ///
    /// # Panics
    /// When there is no such filter, or `codes` has another length.
    pub fn codes(&self, filter: usize, codes: &mut [u8]) -> Result<(), String> {
        assert!(filter < self.filters() && codes.len() == self.filter_len(), "filter {filter}");
        self.layout.codes(self.data, filter, codes)
    }

    /// The scale of one unit of a filter.
    ///
    /// # Errors
    /// A scale that is not finite or negative.
    pub fn scale(&self, filter: usize, unit: usize) -> Result<f32, String> {
        match self.layout.scale(self.data, filter, unit) {
            scale if scale.is_finite() && scale >= 0.0 => Ok(scale.abs()),
            scale => Err(format!("filter {filter}: scale {unit} is {scale}, should be finite and not negative")),
        }
    }
}
