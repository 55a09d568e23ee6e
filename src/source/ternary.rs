//! Tensors that are ternary in the checkpoint, in another program's layout. Not here: any layout
//! ([`crate::import`]).

use std::fmt::Debug;
use std::ops::Range;

use super::{Dtype, MappedFile};

/// How the codes and scales of a ternary tensor, or of one of its planes, lie in its bytes. Nothing is to panic, whatever the bytes are; that
/// there are enough of them was checked when the checkpoint was put together.
pub trait TernaryLayout: Debug + Send + Sync {
    /// The axis along which the filters go.
    fn axis(&self) -> usize {
        0
    }

    /// How many weights from the beginning of a filter share a scale: all of them, or the length of a block.
    fn unit_len(&self) -> usize;

    /// Writes the codes t+1 (0, 1, 2) of one filter into `codes`, which has its length.
    ///
    /// # Errors
    /// Bytes that are no codes, in words.
    fn codes(&self, data: &[u8], filter: usize, codes: &mut [u8]) -> Result<(), String>;

    /// Writes the codes of one filter as [`Encoding::T2`](crate::Encoding::T2) has them, four to a byte, into `packed`,
    /// which has as many bytes as that takes and is zero; a code of 3 may be among them. False, whatever is written,
    /// where [`TernaryLayout::codes`] has to be asked: for layouts that have nothing faster, and for what is wrong.
    fn t2(&self, data: &[u8], filter: usize, packed: &mut [u8]) -> bool {
        let _ = (data, filter, packed);
        false
    }

    /// The same for several filters, one after another in `packed`, at the beginning zero: for layouts where reading one by
    /// itself reads them all, because their codes lie between each other.
    fn t2_together(&self, data: &[u8], filters: Range<usize>, packed: &mut [u8]) -> bool {
        let _ = (data, filters, packed);
        false
    }

    /// The scale α of one unit of a filter, as it multiplies the codes; checked for being finite and not negative
    /// where it is used.
    fn scale(&self, data: &[u8], filter: usize, unit: usize) -> f32;

    /// The scales of as many units of a filter as `scales` has, from `first` on.
    fn scales(&self, data: &[u8], filter: usize, first: usize, scales: &mut [f32]) {
        scales.iter_mut().zip(first..).for_each(|(scale, unit)| *scale = self.scale(data, filter, unit));
    }
}

/// One plane of a ternary tensor: where its bytes are and how they lie.
#[derive(Debug)]
pub struct TernaryPlane {
    /// How they lie.
    pub layout: Box<dyn TernaryLayout>,
    /// The number of the file that they are in, as [`CheckpointBuilder::file`](super::CheckpointBuilder::file) gave it.
    pub file: usize,
    /// The bytes of that file.
    pub range: Range<usize>,
}

/// A tensor that is ternary in the checkpoint, W = α₁T₁ + α₂T₂ + …, mostly of one plane. Its codes can be moved; nothing
/// has to be estimated.
#[derive(Debug, Clone, Copy)]
pub struct TernaryView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type that its weights have for those who compute with them.
    pub dtype: Dtype,
    /// The shape of the weights, outermost dimension first; filter i has index i along [`TernaryView::axis`].
    pub shape: &'a [usize],
    pub(super) files: &'a [MappedFile],
    pub(super) planes: &'a [TernaryPlane],
}

impl TernaryView<'_> {
    /// How many planes, P.
    pub fn planes(&self) -> usize {
        self.planes.len()
    }

    /// One plane by itself: the other methods speak of the first.
    ///
    /// # Panics
    /// When there is no such plane.
    pub fn plane(&self, plane: usize) -> Self {
        Self { planes: &self.planes[plane..=plane], ..*self }
    }

    /// Bytes that all planes take in the checkpoint.
    pub fn bytes(&self) -> usize {
        self.planes.iter().map(|plane| plane.range.len()).sum()
    }

    fn layout(&self) -> &dyn TernaryLayout {
        &*self.planes[0].layout
    }

    fn data(&self) -> &[u8] {
        let plane = &self.planes[0];
        &self.files[plane.file][plane.range.clone()]
    }

    /// The filter axis.
    pub fn axis(&self) -> usize {
        self.layout().axis()
    }

    /// How many filters.
    pub fn filters(&self) -> usize {
        self.shape[self.axis()]
    }

    /// Weights per filter, n.
    pub fn filter_len(&self) -> usize {
        let others = self.shape.iter().enumerate().filter(|(axis, _)| *axis != self.axis());
        others.map(|(_, length)| length).product()
    }

    /// How many weights from the beginning of a filter share a scale.
    pub fn unit_len(&self) -> usize {
        self.layout().unit_len().clamp(1, self.filter_len().max(1))
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
        self.layout().codes(self.data(), filter, codes)
    }

    /// Writes the codes of one filter as `t2` has them, if the layout can; codes of 3 are still to be looked for.
    pub(crate) fn t2(&self, filter: usize, packed: &mut [u8]) -> bool {
        filter < self.filters() && self.layout().t2(self.data(), filter, packed)
    }

    /// The same for several filters at once, if the layout can.
    pub(crate) fn t2_together(&self, filters: Range<usize>, packed: &mut [u8]) -> bool {
        filters.end <= self.filters() && self.layout().t2_together(self.data(), filters, packed)
    }

    /// The scale of one unit of a filter.
    ///
    /// # Errors
    /// A scale that is not finite or negative.
    pub fn scale(&self, filter: usize, unit: usize) -> Result<f32, String> {
        let scale = self.layout().scale(self.data(), filter, unit);
        if is_scale(scale) { Ok(scale.abs()) } else { Err(bad_scale(filter, unit, scale)) }
    }

    /// The scales of all units of a filter.
    ///
    /// # Errors
    /// The first that is not finite or negative.
    pub(crate) fn scales(&self, filter: usize, scales: &mut Vec<f32>) -> Result<(), String> {
        scales.resize(self.filter_len().div_ceil(self.unit_len()), 0.0);
        self.layout().scales(self.data(), filter, 0, scales);
        // All, and then the one, so that it is a loop over vectors.
        if !scales.iter().fold(true, |good, &scale| good & is_scale(scale))
            && let Some(unit) = scales.iter().position(|&scale| !is_scale(scale))
        {
            return Err(bad_scale(filter, unit, scales[unit]));
        }
        scales.iter_mut().for_each(|scale| *scale = scale.abs());
        Ok(())
    }
}

fn is_scale(scale: f32) -> bool {
    scale.is_finite() & (scale >= 0.0)
}

fn bad_scale(filter: usize, unit: usize, scale: f32) -> String {
    format!("filter {filter}: scale {unit} is {scale}, should be finite and not negative")
}
