//! The tensors of a network, by name, from a packed or a float file. Not here: what layers do with them.

use std::path::Path;

use ndarray::Array2;

#[cfg(feature = "train")]
use crate::Dtype;
use crate::container::{Container, DenseTensor, Quantized, Tensor, TernaryTensor};
use crate::error::NetworkProblem;
use crate::kernel::PackedMatrix;
use crate::source::{Checkpoint, FilterView, TensorView};
use crate::{Error, Isa, Result};

/// Where a network's tensors come from.
#[derive(Debug)]
pub enum Source {
    /// A `.twn` file.
    Container(Container),
    /// A `.safetensors` file, or several.
    Checkpoint(Checkpoint),
}

/// The weights of a convolution or a linear layer: a row per output.
#[derive(Debug)]
pub enum Weights<'a> {
    /// As they lie in the file; never unpacked.
    Packed(Packed<'a>),
    /// Outputs × weights per output: dense ones, and int8 ones dequantized.
    Dense(Array2<f32>),
}

/// Codes as they lie in the file, and their scales, decoded once.
#[derive(Debug)]
pub struct Packed<'a> {
    tensor: Box<TernaryTensor<'a>>,
    scales: Vec<f32>,
}

/// A tensor, and [`TensorView::order`].
struct Found<'a> {
    tensor: Tensor<'a>,
    order: Option<&'a [usize]>,
}

/// Looks for tensors in one file.
pub(crate) struct Tensors<'a> {
    source: &'a Source,
    /// Dequantize ternary weights.
    float: bool,
    isa: Isa,
}

impl Source {
    /// Where it was opened.
    pub fn path(&self) -> &Path {
        match self {
            Self::Container(container) => container.path(),
            Self::Checkpoint(checkpoint) => checkpoint.path(),
        }
    }
}

impl<'a> Packed<'a> {
    fn new(tensor: TernaryTensor<'a>) -> Self {
        Self { scales: tensor.scales().collect(), tensor: Box::new(tensor) }
    }

    /// What products take; nothing is copied.
    ///
    /// # Errors
    /// None for what was loaded: the container's lengths are checked.
    pub fn matrix(&self) -> Result<PackedMatrix<'_>> {
        let TernaryTensor { planes, filters, filter_len, encoding, granularity, .. } = *self.tensor;
        let shape = [planes, filters, filter_len];
        PackedMatrix::from_parts(encoding, shape, granularity, self.tensor.packed(), self.scales.as_slice())
    }
}

impl<'a> Tensors<'a> {
    pub fn new(source: &'a Source, float: bool) -> Result<Self> {
        Ok(Self { source, float, isa: Isa::detect()? })
    }

    /// The weights of a layer, of that shape with the outputs first.
    pub fn weights(&self, name: &str, shape: &[usize]) -> Result<Weights<'a>> {
        match self.find(name, shape)? {
            Found { tensor: Tensor::Ternary(tensor), .. } if !self.float => {
                if tensor.axis != 0 {
                    return Err(self.error(name)(NetworkProblem::FilterAxis { found: tensor.axis }));
                }
                // Products would take an invalid code for a number.
                let each = tensor.encoding.bytes(tensor.filter_len).max(1);
                for codes in tensor.packed().chunks(each) {
                    let checked = tensor.encoding.check(self.isa, codes, tensor.filter_len);
                    checked.map_err(|e| self.error(name)(NetworkProblem::Codes(e)))?;
                }
                Ok(Weights::Packed(Packed::new(tensor)))
            }
            found => {
                let values = self.decode(name, &found)?;
                // The shape is the one asked for, so the rows are.
                let columns = shape[1..].iter().product();
                let matrix = Array2::from_shape_vec((shape[0], columns), values);
                matrix.map(Weights::Dense).map_err(|e| self.error(name)(NetworkProblem::Codes(e.to_string())))
            }
        }
    }

    /// All values of a tensor of that shape, in C order.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = self.find(name, shape)?;
        self.decode(name, &found)
    }

    /// One `f32` per channel.
    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        self.values(name, &[length])
    }

    /// The one I64 in the tensor of that name; `None` where there is no such tensor.
    #[cfg(feature = "train")]
    pub fn count(&self, name: &str) -> Result<Option<i64>> {
        match self.find(name, &[]) {
            Ok(Found { tensor: Tensor::Dense(DenseTensor { dtype: Dtype::I64, data, .. }), .. }) => {
                Ok(data.first_chunk().map(|bytes| i64::from_le_bytes(*bytes)))
            }
            Ok(_)
            | Err(Error::Network { problem: NetworkProblem::Missing { .. } | NetworkProblem::Shape { .. }, .. }) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The tensor of that name and shape, its checksums checked.
    fn find(&self, name: &str, shape: &[usize]) -> Result<Found<'a>> {
        let mut order = None;
        let tensor = match self.source {
            Source::Container(container) => {
                let entry = container.index().tensors.iter().find(|entry| entry.name == name);
                entry.map(|entry| container.check_sections(entry).map(|()| container.tensor(entry))).transpose()?
            }
            Source::Checkpoint(checkpoint) => {
                if let Some((dtype, shape)) = checkpoint.ternary_by_name(name) {
                    return Err(self.error(name)(NetworkProblem::Ternary { dtype, shape: shape.to_vec() }));
                }
                checkpoint.by_name(name).map(|view| {
                    order = view.order;
                    Tensor::Dense(DenseTensor { dtype: view.dtype, shape: view.shape.to_vec(), data: view.stored })
                })
            }
        };
        let expected = shape.to_vec();
        let found = match &tensor {
            None => return Err(self.error(name)(NetworkProblem::Missing { expected })),
            Some(Tensor::Dense(tensor)) => &tensor.shape,
            Some(Tensor::Int8(tensor)) => &tensor.shape,
            Some(Tensor::Ternary(tensor)) => &tensor.shape,
        };
        match tensor {
            Some(tensor) if found == shape => Ok(Found { tensor, order }),
            _ => Err(self.error(name)(NetworkProblem::Shape { expected, found: found.clone() })),
        }
    }

    /// All its values in C order; F64 is rounded to `f32`.
    fn decode(&self, name: &str, Found { tensor, order }: &Found<'_>) -> Result<Vec<f32>> {
        match tensor {
            Tensor::Int8(tensor) => self.dequantize(name, tensor),
            Tensor::Ternary(tensor) => self.dequantize(name, tensor),
            Tensor::Dense(dense) => {
                let view = TensorView { order: *order, ..TensorView::new(name, dense.dtype, &dense.shape, dense.data) };
                let view = FilterView::new(view, 0)
                    .ok_or_else(|| self.error(name)(NetworkProblem::Dtype { found: dense.dtype }))?;
                let mut scratch = Vec::new();
                Ok(view.read(0..view.filters() * view.filter_len(), self.isa, &mut scratch).to_vec())
            }
        }
    }

    fn dequantize(&self, name: &str, tensor: &dyn Quantized) -> Result<Vec<f32>> {
        let array = tensor.array().map_err(|e| self.error(name)(NetworkProblem::Codes(e)))?;
        Ok(array.into_raw_vec_and_offset().0)
    }

    fn error(&self, tensor: &str) -> impl Fn(NetworkProblem) -> Error {
        let (path, tensor) = (self.source.path().to_path_buf(), tensor.to_owned());
        move |problem| Error::Network { path: path.clone(), tensor: tensor.clone(), problem }
    }
}
