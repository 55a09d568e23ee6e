//! The matrix that products take: codes as they lie in the file, and their scales. Not here: any
//! arithmetic, nor the order of the bits ([`crate::pack`]).

use std::borrow::Cow;
use std::ops::Range;

use super::digits::WORD;
use super::rows::Runs;
use crate::container::{Granularity, TernaryTensor};
use crate::pack::Encoding;
use crate::{Error, Result};

/// A ternary matrix W ≈ Σ_p α_p·T_p of `filters` × `filter_len` weights, borrowed: codes
/// `[planes][filters][bytes per filter]` and scales `[planes][filters][groups]` (or one per plane).
#[derive(Debug, Clone)]
pub struct PackedMatrix<'a> {
    encoding: Encoding,
    granularity: Granularity,
    planes: usize,
    filter_len: usize,
    /// The filters of this view, out of all that are stored.
    view: Range<usize>,
    stored: usize,
    codes: &'a [u8],
    scales: Cow<'a, [f32]>,
}

impl<'a> PackedMatrix<'a> {
    /// The filters of a tensor as rows, without copying its codes. To multiply with floats, ternarize
    /// them first ([`crate::memory::ternarize`]).
    ///
    /// # Errors
    /// As [`PackedMatrix::from_parts`]: when the tensor's fields were changed and no longer say what it holds.
    pub fn new(tensor: &'a TernaryTensor<'_>) -> Result<Self> {
        let TernaryTensor { planes, filters, filter_len, encoding, granularity, .. } = *tensor;
        let shape = [planes, filters, filter_len];
        Self::from_parts(encoding, shape, granularity, tensor.packed(), tensor.scales_f32())
    }

    /// From codes in memory. `[planes, filters, filter_len]` is their shape; what is in the bytes is
    /// not looked at: an invalid code gives a wrong number and nothing worse, and a scale that is not
    /// finite makes NaN of what it multiplies, zeros too.
    ///
    /// # Errors
    /// When there are too few or too many codes or scales for the shape, or groups of no weights.
    pub fn from_parts(
        encoding: Encoding,
        [planes, filters, filter_len]: [usize; 3],
        granularity: Granularity,
        codes: &'a [u8],
        scales: impl Into<Cow<'a, [f32]>>,
    ) -> Result<Self> {
        let scales = scales.into();
        if granularity == Granularity::Group(0) {
            return Err(Error::Request("a packed matrix cannot have groups of 0 weights".to_owned()));
        }
        let rows = planes.checked_mul(filters);
        let bytes = rows.and_then(|rows| rows.checked_mul(encoding.bytes(filter_len)));
        let per_plane = granularity.scales(filters as u64, filter_len as u64);
        let count = (planes as u64).checked_mul(per_plane);
        if bytes != Some(codes.len()) || count != Some(scales.len() as u64) {
            return Err(Error::Request(format!(
                "a packed matrix of {planes} planes × {filters} filters × {filter_len} weights in {} with scales per \
                 {granularity} has {} bytes of codes and {} scales; given are {} and {}",
                encoding.name(),
                bytes.map_or("too many".to_owned(), |bytes| bytes.to_string()),
                count.map_or("too many".to_owned(), |count| count.to_string()),
                codes.len(),
                scales.len(),
            )));
        }
        Ok(Self { encoding, granularity, planes, filter_len, view: 0..filters, stored: filters, codes, scales })
    }

    /// Some of the filters, as a matrix of their own.
    ///
    /// # Panics
    /// When there are no such filters.
    pub fn rows(&'a self, rows: Range<usize>) -> PackedMatrix<'a> {
        assert!(rows.start <= rows.end && rows.end <= self.filters(), "filters {rows:?} of {}", self.filters());
        let view = self.view.start + rows.start..self.view.start + rows.end;
        PackedMatrix { view, scales: Cow::Borrowed(&self.scales), ..*self }
    }

    /// How many filters: the length of a product with one vector.
    pub fn filters(&self) -> usize {
        self.view.len()
    }

    /// Weights per filter, n: the length of a vector to multiply with.
    pub fn filter_len(&self) -> usize {
        self.filter_len
    }

    /// How many planes, P.
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// How codes are packed.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Which weights share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// How many weights of a filter share a scale, if it has several.
    pub(super) fn group(&self) -> Option<usize> {
        match self.granularity {
            Granularity::Group(size) => usize::try_from(size).ok().filter(|&size| size < self.filter_len),
            Granularity::Filter | Granularity::Tensor => None,
        }
    }

    /// The packed codes of one filter.
    ///
    /// # Panics
    /// When there is no such plane or filter.
    #[inline]
    pub fn codes(&self, plane: usize, filter: usize) -> &[u8] {
        assert!(plane < self.planes && filter < self.filters(), "plane {plane}, filter {filter}");
        let bytes = self.encoding.bytes(self.filter_len);
        &self.codes[(plane * self.stored + self.view.start + filter) * bytes..][..bytes]
    }

    /// The scales α of one filter: one, or one per group.
    ///
    /// # Panics
    /// When there is no such plane or filter.
    #[inline]
    pub fn scales(&self, plane: usize, filter: usize) -> &[f32] {
        assert!(plane < self.planes && filter < self.filters(), "plane {plane}, filter {filter}");
        let per_filter = match self.granularity {
            Granularity::Tensor => return &self.scales[plane..=plane],
            Granularity::Filter => 1,
            Granularity::Group(size) => (self.filter_len as u64).div_ceil(size) as usize,
        };
        &self.scales[(plane * self.stored + self.view.start + filter) * per_filter..][..per_filter]
    }

    /// The scales of that filter and those behind it, and how many lie between one filter's and the next's.
    pub(super) fn scales_from(&self, plane: usize, filter: usize) -> (&[f32], usize) {
        let first = self.scales(plane, filter);
        match self.granularity {
            Granularity::Tensor => (first, 0),
            Granularity::Filter | Granularity::Group(_) => {
                let per_filter = first.len();
                let start = (plane * self.stored + self.view.start + filter) * per_filter;
                (&self.scales[start..], per_filter)
            }
        }
    }

    /// The same weights in `t2` in other memory, where each group begins on a word and zeros fill its last
    /// one up.
    pub(super) fn filled_up<'b>(&'b self, codes: &'b [u8], runs: Runs) -> PackedMatrix<'b> {
        PackedMatrix {
            encoding: Encoding::T2,
            granularity: Granularity::Group((runs.words_per_run() * WORD) as u64),
            filter_len: runs.rows(),
            view: self.view.clone(),
            codes,
            scales: Cow::Borrowed(&self.scales),
            ..*self
        }
    }

    /// Filters of all planes that are stored, with those that this view leaves out.
    pub(super) fn stored(&self) -> usize {
        self.planes * self.stored
    }

    /// Which of them are these filters of a plane.
    pub(super) fn stored_at(&self, plane: usize) -> Range<usize> {
        let start = plane * self.stored + self.view.start;
        start..start + self.view.len()
    }

    pub(super) fn check(&self, what: &str, found: &[usize], expected: &[usize]) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(Error::Request(format!(
            "a product with {} filters of {} weights takes {what}: expected {expected:?}, found {found:?}",
            self.filters(),
            self.filter_len,
        )))
    }
}
