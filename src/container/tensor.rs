//! Views of stored tensors: codes, scales, bit planes, dequantized values. They borrow from a
//! container, or own their bytes when made in memory. Not here: the bit order ([`crate::pack`]).

use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bitvec::prelude::{BitVec, Lsb0};
use ndarray::ArrayD;

use super::Granularity;
use super::index::{MethodEntry, TensorEntry, TernaryEntry};
use super::quantized::{self, Quantized};
use super::stats::Stats;
use crate::Isa;
use crate::dtype::Dtype;
use crate::error::ContainerProblem;
use crate::pack::Encoding;
use crate::ternarize::ScaleDtype;

/// A tensor that was kept bit by bit.
#[derive(Debug, Clone)]
pub struct DenseTensor<'a> {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its bytes: little-endian, C order.
    pub data: &'a [u8],
}

impl<'a> DenseTensor<'a> {
    pub(super) fn new(entry: &TensorEntry, data: &'a [u8]) -> Self {
        Self { dtype: entry.dtype, shape: entry.shape.iter().map(|&d| d as usize).collect(), data }
    }
}

/// A ternary tensor: `planes` × `filters` × `filter_len` codes and their scales,
/// W ≈ Σ_p α_p·T_p. Filter i holds the weights with index i along `axis`.
#[derive(Debug, Clone)]
pub struct TernaryTensor<'a> {
    /// The checkpoint's data type.
    pub dtype: Dtype,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The filter axis.
    pub axis: usize,
    /// How many planes, P.
    pub planes: usize,
    /// How many filters.
    pub filters: usize,
    /// Weights per filter, n.
    pub filter_len: usize,
    /// How codes are packed.
    pub encoding: Encoding,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// The type of the stored scales.
    pub scale_dtype: ScaleDtype,
    /// How thresholds and scales were chosen.
    pub method: Arc<MethodEntry>,
    /// Counts and errors.
    pub stats: Stats,
    codes: Cow<'a, [u8]>,
    scales: Scales<'a>,
}

/// Bytes of which clones are no copies.
#[derive(Debug, Clone)]
enum Scales<'a> {
    Borrowed(&'a [u8]),
    Shared(Arc<[u8]>),
}

impl Deref for Scales<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl<'a> TernaryTensor<'a> {
    pub(crate) fn new(
        entry: &TensorEntry,
        ternary: &TernaryEntry,
        codes: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        let (filters, filter_len) = entry.filters(ternary.axis);
        Self {
            dtype: entry.dtype,
            shape: entry.shape.iter().map(|&d| d as usize).collect(),
            axis: ternary.axis as usize,
            planes: ternary.planes as usize,
            filters: filters as usize,
            filter_len: filter_len as usize,
            encoding: ternary.encoding,
            granularity: ternary.granularity,
            scale_dtype: ternary.scale_dtype,
            method: ternary.method.clone(),
            stats: ternary.stats.clone(),
            codes: codes.into(),
            scales: match scales.into() {
                Cow::Borrowed(bytes) => Scales::Borrowed(bytes),
                Cow::Owned(bytes) => Scales::Shared(bytes.into()),
            },
        }
    }

    /// Bytes per filter and plane.
    pub fn filter_bytes(&self) -> usize {
        self.encoding.bytes(self.filter_len)
    }

    /// All codes as stored: `[planes][filters][bytes per filter]`.
    pub fn packed(&self) -> &[u8] {
        &self.codes
    }

    /// The packed codes of one filter.
    ///
    /// # Panics
    /// When there is no such plane or filter.
    pub fn packed_filter(&self, plane: usize, filter: usize) -> &[u8] {
        assert!(plane < self.planes && filter < self.filters, "plane {plane}, filter {filter}");
        let bytes = self.filter_bytes();
        &self.codes[(plane * self.filters + filter) * bytes..][..bytes]
    }

    /// Writes the codes t+1 (0, 1, 2) of one filter into `codes`, which has `filter_len` bytes.
    ///
    /// # Errors
    /// What is wrong with the packed bytes.
    ///
    /// # Panics
    /// When there is no such plane or filter, or `codes` has another length.
    pub fn codes(&self, plane: usize, filter: usize, codes: &mut [u8]) -> Result<(), String> {
        self.codes_range(plane, filter, 0..self.filter_len, codes)
    }

    /// The same for the weights `range` of one filter, in memory proportional to their number.
    ///
    /// # Errors
    /// What is wrong with the packed bytes.
    ///
    /// # Panics
    /// When there is no such plane, filter or range, or `codes` has another length.
    pub fn codes_range(
        &self,
        plane: usize,
        filter: usize,
        range: Range<usize>,
        codes: &mut [u8],
    ) -> Result<(), String> {
        assert!(range.end <= self.filter_len && codes.len() == range.len(), "codes of a range of a filter");
        // Whole bytes of every encoding around the range.
        let per_byte = self.encoding.weights_per_byte();
        let (first, last) = (range.start / per_byte, range.end.div_ceil(per_byte));
        let around = first * per_byte..(last * per_byte).min(self.filter_len);
        let packed = &self.packed_filter(plane, filter)[first..last];
        if around == range {
            return self.encoding.unpack(packed, codes);
        }
        let mut whole = vec![0; around.len()];
        self.encoding.unpack(packed, &mut whole)?;
        codes.copy_from_slice(&whole[range.start - around.start..][..range.len()]);
        Ok(())
    }

    /// Scales per plane.
    pub fn scales_per_plane(&self) -> usize {
        self.granularity.scales(self.filters as u64, self.filter_len as u64) as usize
    }

    /// Scale number `index`, counted over `[planes][scales per plane]`.
    ///
    /// # Panics
    /// When there is no such scale.
    pub fn scale_at(&self, index: usize) -> f32 {
        quantized::scale_at(&self.scales, self.scale_dtype, index)
    }

    /// Every scale: `[planes][scales per plane]`.
    pub fn scales(&self) -> impl ExactSizeIterator<Item = f32> {
        (0..self.planes * self.scales_per_plane()).map(|i| self.scale_at(i))
    }

    /// The same as one slice, borrowed where they are stored as aligned `f32`.
    pub fn scales_f32(&self) -> Cow<'_, [f32]> {
        let stored = self.scale_dtype == ScaleDtype::F32 && cfg!(target_endian = "little");
        match bytemuck::try_cast_slice(&self.scales) {
            Ok(scales) if stored => Cow::Borrowed(scales),
            _ => self.scales().collect(),
        }
    }

    /// All scales as stored: little-endian, `[planes][scales per plane]`.
    pub fn scale_bytes(&self) -> &[u8] {
        &self.scales
    }

    /// The scale α of weight `j` of a filter.
    ///
    /// # Panics
    /// When there is no such plane, filter or weight.
    pub fn scale(&self, plane: usize, filter: usize, j: usize) -> f32 {
        assert!(plane < self.planes && filter < self.filters && j < self.filter_len, "{plane}, {filter}, {j}");
        let within = match self.granularity {
            Granularity::Tensor => 0,
            Granularity::Filter => filter,
            Granularity::Group(size) => filter * self.filter_len.div_ceil(size as usize) + j / size as usize,
        };
        self.scale_at(plane * self.scales_per_plane() + within)
    }

    /// How many weights of a filter from the beginning share a scale.
    pub fn scale_run(&self) -> usize {
        match self.granularity {
            Granularity::Group(size) => (size as usize).min(self.filter_len),
            Granularity::Filter | Granularity::Tensor => self.filter_len,
        }
    }

    /// Bit j is set where weight j of the filter is zero in that plane.
    ///
    /// # Errors
    /// What is wrong with the packed bytes.
    ///
    /// # Panics
    /// When there is no such plane or filter.
    pub fn zero_plane(&self, plane: usize, filter: usize) -> Result<BitVec<u8, Lsb0>, String> {
        self.bits(plane, filter, |code| code == 1)
    }

    /// Bit j is set where weight j of the filter is negative in that plane.
    ///
    /// # Errors
    /// What is wrong with the packed bytes.
    ///
    /// # Panics
    /// When there is no such plane or filter.
    pub fn sign_plane(&self, plane: usize, filter: usize) -> Result<BitVec<u8, Lsb0>, String> {
        self.bits(plane, filter, |code| code == 0)
    }

    fn bits(&self, plane: usize, filter: usize, bit: impl Fn(u8) -> bool) -> Result<BitVec<u8, Lsb0>, String> {
        let mut codes = vec![0; self.filter_len];
        self.codes(plane, filter, &mut codes)?;
        Ok(codes.into_iter().map(bit).collect())
    }

    /// Writes the values Ŵ = Σ_p α_p·t_p of one filter, planes added in order in `f32`.
    ///
    /// # Errors
    /// What is wrong with the packed bytes.
    ///
    /// # Panics
    /// When there is no such filter, or `values` is not `filter_len` long.
    pub fn dequantize_filter(&self, filter: usize, values: &mut [f32]) -> Result<(), String> {
        self.dequantize_range(filter, 0..self.filter_len, values)
    }

    /// The same for the weights `range` of one filter, in memory proportional to their number.
    ///
    /// # Errors
    /// What is wrong with the packed bytes.
    ///
    /// # Panics
    /// When there is no such filter or range, or `values` has another length.
    pub fn dequantize_range(&self, filter: usize, range: Range<usize>, values: &mut [f32]) -> Result<(), String> {
        assert!(range.end <= self.filter_len && values.len() == range.len(), "values of a range of a filter");
        let mut codes = vec![0; range.len()];
        let run = self.scale_run().max(1);
        for plane in 0..self.planes {
            self.codes_range(plane, filter, range.clone(), &mut codes)?;
            let mut j = range.start;
            while j < range.end {
                let end = ((j / run + 1) * run).min(range.end);
                let alpha = self.scale(plane, filter, j);
                // As the compiler makes vectors of it.
                let term = |code: u8| if code == 1 { 0.0 } else { if code == 2 { alpha } else { -alpha } };
                let here = j - range.start..end - range.start;
                let values = values[here.clone()].iter_mut().zip(&codes[here]);
                match plane {
                    0 => values.for_each(|(value, &code)| *value = term(code)),
                    _ => values.for_each(|(value, &code)| *value += term(code)),
                }
                j = end;
            }
        }
        Ok(())
    }

    /// The dequantized tensor in its own shape.
    ///
    /// # Errors
    /// What is wrong with the packed bytes.
    pub fn to_array(&self) -> Result<ArrayD<f32>, String> {
        self.array()
    }
}

impl Quantized for TernaryTensor<'_> {
    fn layout(&self) -> (&[usize], usize) {
        (&self.shape, self.axis)
    }

    fn planes(&self) -> usize {
        self.planes
    }

    fn largest_code(&self) -> f32 {
        1.0
    }

    fn scale_count(&self) -> usize {
        self.scales().len()
    }

    fn scale_at(&self, index: usize) -> f32 {
        self.scale_at(index)
    }

    fn dequantize_range(&self, filter: usize, range: Range<usize>, values: &mut [f32]) -> Result<(), String> {
        self.dequantize_range(filter, range, values)
    }

    fn bad_codes(&self, name: &str) -> Option<ContainerProblem> {
        let filters = (0..self.planes).flat_map(|plane| (0..self.filters).map(move |filter| (plane, filter)));
        filters.into_iter().find_map(|(plane, filter)| {
            let message =
                self.encoding.check(Isa::PORTABLE, self.packed_filter(plane, filter), self.filter_len).err()?;
            Some(ContainerProblem::Code { tensor: name.to_owned(), plane, filter, message })
        })
    }
}
