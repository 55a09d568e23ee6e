//! Whether a model has a tensor of the container among its floats, and which way round: by the error that the container
//! says its codes have. Not here: initializers whose name and shape say it.

use std::path::Path;

use rayon::prelude::*;

use crate::container::DenseTensor;
use crate::export::float;
use crate::onnx::{Data, Externals, Initializer, dtype};
use crate::{Dtype, Tensor};

/// Filters, and weights of each, that are compared at once.
const BLOCK: [usize; 2] = [64, 16 << 10];

/// Bytes of an initializer that are decoded where they are not stored as they are.
const DECODED: usize = 64 << 20;

/// The cosine that floats and what became of them have at least, and how far from the other way's: ternary weights have
/// 0.7 and more, those of another training next to nothing.
const CLEAR: f64 = 0.5;

/// What an initializer's floats are to a matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Likeness {
    /// As it is, and transposed.
    ways: [Way; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// Whether they are the floats that the container's tensor was made of.
    same: bool,
    cosine: f64,
}

impl Likeness {
    /// Whether the very floats are there transposed, or as they are; nothing where they are others.
    pub fn same(self) -> Option<bool> {
        let [as_it_is, turned] = self.ways;
        (as_it_is.same || turned.same).then_some(!as_it_is.same)
    }

    /// The same of floats that are merely alike, such as those of a training that went on.
    pub fn alike(self) -> Option<bool> {
        let [as_it_is, turned] = self.ways.map(|way| way.cosine);
        (as_it_is.max(turned) > CLEAR && (as_it_is - turned).abs() > CLEAR / 2.0).then_some(turned > as_it_is)
    }
}

/// Compares the initializer's floats with a matrix that was made of floats of type `source`; nothing where there are none to
/// compare with, or of another shape both ways.
pub(super) fn compare(
    path: &Path,
    file: &[u8],
    initializer: &Initializer<'_>,
    tensor: &Tensor<'_>,
    source: Dtype,
) -> Option<Likeness> {
    with_floats(path, file, initializer, |dtype, data| {
        let matrix = Matrix::new(tensor)?;
        matrix.likeness(&initializer.dims, dtype, data, source)
    })
}

/// How many elements that type has in these bytes.
fn count(dtype: Dtype, data: &[u8]) -> usize {
    data.len() / (dtype.bitsize() / 8).max(1)
}

/// ‖W‖²; nothing where these are no floats.
pub(super) fn squared_norm(dtype: Dtype, data: &[u8]) -> Option<f64> {
    let count = count(dtype, data);
    let blocks: Vec<_> = (0..count).step_by(BLOCK[1]).collect();
    let sum = |from: usize| (from..(from + BLOCK[1]).min(count)).map(|i| Some(float(dtype, data, i)?.powi(2))).sum();
    let sums: Option<Vec<f64>> = blocks.into_par_iter().map(sum).collect();
    Some(sums?.into_iter().sum())
}

/// What floats have in common with the same ones in another order; nothing where these are none, or all are one.
pub(super) fn fingerprint(dtype: Dtype, data: &[u8]) -> Option<u64> {
    let count = count(dtype, data);
    let first = float(dtype, data, 0)?;
    let blocks: Vec<_> = (0..count).step_by(BLOCK[1]).collect();
    let sum = |from: usize| {
        let (mut sum, mut varies) = (0u64, false);
        for i in from..(from + BLOCK[1]).min(count) {
            let value = float(dtype, data, i)?;
            varies |= value != first;
            sum = sum.wrapping_add(mixed(value));
        }
        Some((sum, varies))
    };
    let sums: Option<Vec<(u64, bool)>> = blocks.into_par_iter().map(sum).collect();
    let (sum, varies) = sums?.into_iter().fold((0u64, false), |a, b| (a.0.wrapping_add(b.0), a.1 | b.1));
    varies.then_some(sum)
}

/// The same of each line along an axis, without asking whether all are one.
pub(super) fn fingerprints(dtype: Dtype, data: &[u8], dims: &[usize], axis: usize) -> Option<Vec<u64>> {
    const AT_ONCE: usize = 1 << 20;
    let (weights, lines) = (dims.iter().product::<usize>(), dims[axis]);
    if weights > count(dtype, data) {
        return None;
    }
    let inner = dims[axis + 1..].iter().product::<usize>().max(1);
    let blocks: Vec<_> = (0..weights).step_by(AT_ONCE).collect();
    let sums = |from: usize| {
        let mut sums = vec![0u64; lines];
        let (mut i, to) = (from, (from + AT_ONCE).min(weights));
        while i < to {
            let end = to.min(i - i % inner + inner);
            let sum = &mut sums[i / inner % lines];
            for i in i..end {
                *sum = sum.wrapping_add(mixed(float(dtype, data, i)?));
            }
            i = end;
        }
        Some(sums)
    };
    blocks
        .into_par_iter()
        .map(sums)
        .reduce(|| Some(vec![0; lines]), |a, b| Some(a?.into_iter().zip(b?).map(|(a, b)| a.wrapping_add(b)).collect()))
}

/// Bits that depend on all of a float's, 0 and −0 being one; the last step of SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits();
    let bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// Whether these are the same numbers, of one type or of two.
pub(super) fn are_equal((a_dtype, a): (Dtype, &[u8]), (b_dtype, b): (Dtype, &[u8])) -> bool {
    let floats = |i: usize| matches!((float(a_dtype, a, i), float(b_dtype, b, i)), (Some(a), Some(b)) if a == b);
    a_dtype == b_dtype && a == b
        || count(a_dtype, a) == count(b_dtype, b) && (0..count(a_dtype, a)).into_par_iter().all(floats)
}

/// How far from ‖W‖² sums over floats of that type may be. In a shorter type than the `source` every float is another
/// one; their sums are hardly.
pub(super) fn tolerance(dtype: Dtype, source: Dtype) -> f64 {
    match dtype {
        Dtype::F16 if source != Dtype::F16 => 1e-3,
        Dtype::BF16 if source != Dtype::BF16 => 8e-3,
        _ => 1e-6,
    }
}

/// Hands on an initializer's type and its data, decoded where they are not stored as they are; nothing where they cannot be had.
pub(super) fn with_floats<T>(
    path: &Path,
    file: &[u8],
    initializer: &Initializer<'_>,
    read: impl FnOnce(Dtype, &[u8]) -> Option<T>,
) -> Option<T> {
    let dtype = dtype(initializer.data_type)?;
    let (external, range);
    let mut decoded = Vec::new();
    let data = match &initializer.data {
        Data::Here(range) => &file[range.clone()],
        Data::External { .. } => match Externals::of(path).find(initializer, None) {
            Ok(Some(found)) => {
                (external, range) = found;
                &external[range]
            }
            _ => return None,
        },
        Data::Fields => {
            let decode = |bytes: &[u8]| {
                decoded.extend_from_slice(bytes);
                if decoded.len() > DECODED { Err(String::new()) } else { Ok(()) }
            };
            initializer.decode(file, decode).ok()?;
            &decoded
        }
    };
    read(dtype, data)
}

/// A tensor of the container.
struct Matrix<'t, 'a> {
    tensor: &'t Tensor<'a>,
    shape: &'t [usize],
    axis: usize,
    filters: usize,
    weights: usize,
    /// Weights of a filter that lie together, along another axis than rows.
    inner: usize,
    /// ‖W‖² and ‖W − Ŵ‖² of what it was made of; nothing for floats, which are what they are.
    said: Option<[f64; 2]>,
}

/// Sums over weights v of the container and w of the model, along rows and along another axis.
#[derive(Default)]
struct Sums {
    norm: f64,
    products: [f64; 2],
    there: [f64; 2],
}

impl Sums {
    fn add(mut self, other: Self) -> Self {
        self.norm += other.norm;
        for way in 0..2 {
            self.products[way] += other.products[way];
            self.there[way] += other.there[way];
        }
        self
    }
}

impl<'t, 'a> Matrix<'t, 'a> {
    fn new(tensor: &'t Tensor<'a>) -> Option<Self> {
        let (shape, axis, said) = match tensor {
            Tensor::Dense(dense) => (&dense.shape, 0, None),
            Tensor::Int8(int8) => (&int8.shape, int8.axis, Some([int8.stats.squared_norm, int8.stats.squared_error])),
            Tensor::Ternary(ternary) => {
                (&ternary.shape, ternary.axis, Some([ternary.stats.squared_norm, ternary.stats.squared_error]))
            }
        };
        if shape.len() < 2 {
            return None;
        }
        let [outer, inner] = [&shape[..axis], &shape[axis + 1..]].map(|dims| dims.iter().product::<usize>());
        let weights = outer * inner;
        // What lies along rows is looked for along columns as well.
        let inner = if axis == 0 { 1 } else { inner };
        Some(Self { tensor, shape, axis, filters: shape[axis], weights, inner, said })
    }

    /// What floats of that shape are to it, along its own axes.
    fn likeness(&self, dims: &[u64], dtype: Dtype, data: &[u8], source: Dtype) -> Option<Likeness> {
        let found: Vec<usize> = dims.iter().map(|&dim| dim as usize).collect();
        let turned = matches!((self.shape, &found[..]), ([a, b], [c, d]) if (a, b) == (d, c));
        // Filters along rows, then along another axis.
        let fits = if self.axis == 0 { [found == self.shape, turned] } else { [turned, found == self.shape] };
        if fits == [false; 2] || self.filters * self.weights > count(dtype, data) {
            return None;
        }
        let blocks: Vec<_> = (0..self.filters).step_by(BLOCK[0]).collect();
        let blocks: Option<Vec<Sums>> =
            blocks.into_par_iter().map(|first| self.sums(first, fits, dtype, data)).collect();
        let sums = blocks?.into_iter().fold(Sums::default(), Sums::add);
        let [squared_norm, squared_error] = self.said.unwrap_or([sums.norm, 0.0]);
        let off = tolerance(dtype, source);
        let ways = [0, 1].map(|way| {
            let (product, there) = (sums.products[way], sums.there[way]);
            let error = there - 2.0 * product + sums.norm;
            let is = |found: f64, said: f64| (found - said).abs() <= off * squared_norm;
            let same = fits[way] && is(there, squared_norm) && is(error, squared_error);
            Way { same, cosine: if fits[way] { product / (sums.norm * there).sqrt() } else { 0.0 } }
        });
        let [along_rows, along_columns] = ways;
        Some(Likeness { ways: if self.axis == 0 { ways } else { [along_columns, along_rows] } })
    }

    /// Over filters from `first` on; both ways that fit.
    fn sums(&self, first: usize, fits: [bool; 2], dtype: Dtype, data: &[u8]) -> Option<Sums> {
        let filters = first..(first + BLOCK[0]).min(self.filters);
        let (mut sums, mut values) = (Sums::default(), Vec::new());
        for from in (0..self.weights).step_by(BLOCK[1]) {
            let weights = from..(from + BLOCK[1]).min(self.weights);
            values.resize(filters.len() * weights.len(), 0.0);
            for (filter, values) in filters.clone().zip(values.chunks_exact_mut(weights.len())) {
                match self.tensor {
                    Tensor::Dense(dense) => row(dense, filter * self.weights + weights.start, values)?,
                    Tensor::Int8(int8) => int8.dequantize_range(filter, weights.clone(), values).ok()?,
                    Tensor::Ternary(ternary) => ternary.dequantize_range(filter, weights.clone(), values).ok()?,
                }
            }
            sums.norm += values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
            let mut add = |way: usize, value: f32, at: usize| {
                let there = float(dtype, data, at)?;
                sums.products[way] += f64::from(value) * there;
                sums.there[way] += there * there;
                Some(())
            };
            if fits[0] {
                for (filter, values) in filters.clone().zip(values.chunks_exact(weights.len())) {
                    for (weight, &value) in weights.clone().zip(values) {
                        add(0, value, filter * self.weights + weight)?;
                    }
                }
            }
            // Neighbours in the file are those of one weight; of more dimensions, `inner` of a filter.
            if fits[1] {
                for weight in weights.clone() {
                    let (outer, at) = (weight / self.inner, weight % self.inner);
                    for filter in filters.clone() {
                        let value = values[(filter - first) * weights.len() + weight - from];
                        add(1, value, (outer * self.filters + filter) * self.inner + at)?;
                    }
                }
            }
        }
        Some(sums)
    }
}

/// Floats from number `from` on.
fn row(tensor: &DenseTensor<'_>, from: usize, values: &mut [f32]) -> Option<()> {
    for (i, value) in values.iter_mut().enumerate() {
        *value = float(tensor.dtype, tensor.data, from + i)? as f32;
    }
    Some(())
}
