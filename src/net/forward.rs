//! A network with its tensors, and what it says of images. Not here: any layer's arithmetic, which has
//! a file of its own, or is [`crate::kernel`]'s.

use ndarray::{ArrayView2, ArrayView4, ArrayViewMut2, ArrayViewMut4};
use rayon::prelude::*;

use super::batch_norm::BatchNorm;
use super::dense;
use super::description::{self, Described, Description};
use super::max_pool::max_pool;
use super::tensors::{Source, Tensors, Weights};
use crate::kernel::{Conv2d, Kernel, PackedMatrix, Workspace};
use crate::{Error, Result};

/// A network that can run: layers and their tensors. Packed weights stay where the source has them.
#[derive(Debug)]
pub struct Network<'a> {
    input: [usize; 3],
    classes: usize,
    steps: Vec<Step<'a>>,
}

/// A layer, and the shape of what it gives for one image: channels × height × width.
#[derive(Debug)]
struct Step<'a> {
    layer: Layer<'a>,
    output: [usize; 3],
}

#[derive(Debug)]
enum Layer<'a> {
    Conv2d { weights: Weights<'a>, bias: Option<Vec<f32>>, geometry: Conv2d },
    Linear { weights: Weights<'a>, bias: Option<Vec<f32>> },
    BatchNorm(BatchNorm),
    MaxPool(Conv2d),
    Relu,
    Flatten,
}

/// Memory for a forward pass. Grows to what is asked of it and is used again.
#[derive(Debug, Default)]
pub struct Buffers {
    /// What stands in front of a layer: `[images][channels][height][width]`.
    x: Vec<f32>,
    /// What comes out of it.
    y: Vec<f32>,
    columns: Vec<f32>,
    workspace: Workspace,
}

impl<'a> Network<'a> {
    /// Takes the tensors that the description names. With `float`, ternary weights are dequantized
    /// and run as floats; without, they are used as they lie in the file.
    ///
    /// # Errors
    /// A tensor that is missing, damaged, of another shape or type, or packed along another axis than
    /// the layer's outputs.
    pub fn load(description: &Description, source: &'a Source, float: bool) -> Result<Self> {
        let tensors = Tensors::new(source, float)?;
        let mut channels = description.input()[0];
        let mut steps = Vec::new();
        for Described { layer, output } in description.layers() {
            steps.push(Step { layer: load(layer, channels, &tensors)?, output: *output });
            channels = output[0];
        }
        Ok(Self { input: description.input(), classes: description.classes(), steps })
    }

    /// Channels, height and width of an image.
    pub fn input(&self) -> [usize; 3] {
        self.input
    }

    /// How many numbers come out for an image.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The weights of every convolution and linear layer, in their order.
    pub fn weights(&self) -> impl Iterator<Item = &Weights<'a>> {
        self.steps.iter().filter_map(|step| match &step.layer {
            Layer::Conv2d { weights, .. } | Layer::Linear { weights, .. } => Some(weights),
            _ => None,
        })
    }

    /// What the last layer says (the logits), images × classes. `images` is images × channels × height ×
    /// width; `kernel` multiplies packed weights, on the threads of the caller's pool.
    ///
    /// # Errors
    /// Images of another shape, or more of them than memory can take.
    pub fn forward<'b>(
        &self,
        images: ArrayView4<'_, f32>,
        kernel: &Kernel,
        buffers: &'b mut Buffers,
    ) -> Result<ArrayView2<'b, f32>> {
        let (count, channels, height, width) = images.dim();
        if [channels, height, width] != self.input || count == 0 {
            let (found, expected) = (images.shape(), self.input);
            return Err(Error::Request(format!("images of {found:?}, the network takes [at least 1, {expected:?}]")));
        }
        buffers.x.clear();
        buffers.x.extend(images.iter());
        let mut input = self.input;
        for Step { layer, output } in &self.steps {
            layer.run(count, input, *output, kernel, buffers)?;
            input = *output;
        }
        ArrayView2::from_shape((count, self.classes), &buffers.x).map_err(misfit)
    }
}

impl Layer<'_> {
    /// From `buffers.x` to `buffers.x`; `input` and `output` are shapes of one image.
    fn run(
        &self,
        count: usize,
        input: [usize; 3],
        output: [usize; 3],
        kernel: &Kernel,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let Buffers { x, y, columns, workspace } = buffers;
        match self {
            Self::Flatten => return Ok(()),
            Self::Relu => {
                // Not max(0, x), which would turn NaN into 0.
                let relu = |x: &mut f32| *x = if *x < 0.0 { 0.0 } else { *x };
                x.par_chunks_mut(input.iter().product()).for_each(|image| image.iter_mut().for_each(relu));
                return Ok(());
            }
            Self::BatchNorm(norm) => {
                norm.apply(x, input[1] * input[2]);
                return Ok(());
            }
            _ => resize(y, count, output)?,
        }
        let shape = |[channels, height, width]: [usize; 3]| (count, channels, height, width);
        match self {
            Self::Conv2d { weights, bias, geometry } => {
                let x = ArrayView4::from_shape(shape(input), x).map_err(misfit)?;
                let y = ArrayViewMut4::from_shape(shape(output), y).map_err(misfit)?;
                let bias = bias.as_deref();
                match weights {
                    Weights::Packed(w) => kernel.conv2d(&PackedMatrix::new(w), bias, geometry, x, y, workspace)?,
                    Weights::Dense(w) => dense::conv2d(w.view(), bias, geometry, x, y, columns)?,
                }
            }
            Self::Linear { weights, bias } => {
                let x = ArrayView2::from_shape((count, input[0]), x).map_err(misfit)?;
                let y = ArrayViewMut2::from_shape((count, output[0]), y).map_err(misfit)?;
                match weights {
                    Weights::Packed(w) => kernel.linear(&PackedMatrix::new(w), bias.as_deref(), x, y, workspace)?,
                    Weights::Dense(w) => dense::linear(w.view(), bias.as_deref(), x, y)?,
                }
            }
            Self::MaxPool(geometry) => max_pool(geometry, x, [input[1], input[2]], y, [output[1], output[2]]),
            Self::BatchNorm(_) | Self::Relu | Self::Flatten => {}
        }
        std::mem::swap(x, y);
        Ok(())
    }
}

/// The layer with its tensors, behind so many channels.
fn load<'a>(layer: &description::Layer, channels: usize, tensors: &Tensors<'a>) -> Result<Layer<'a>> {
    let bias = |name: &Option<String>, length| name.as_ref().map(|name| tensors.vector(name, length)).transpose();
    Ok(match layer {
        description::Layer::Conv2d(conv) => {
            let geometry = conv.geometry();
            let [height, width] = geometry.kernel;
            let shape = [conv.filters, channels / geometry.groups, height, width];
            let weights = tensors.weights(&conv.weight, &shape)?;
            Layer::Conv2d { weights, bias: bias(&conv.bias, conv.filters)?, geometry }
        }
        description::Layer::Linear(linear) => {
            let weights = tensors.weights(&linear.weight, &[linear.outputs, channels])?;
            Layer::Linear { weights, bias: bias(&linear.bias, linear.outputs)? }
        }
        description::Layer::BatchNorm(norm) => {
            let vector = |name: &str| tensors.vector(name, channels);
            let (weight, bias) = (vector(&norm.weight)?, vector(&norm.bias)?);
            let (mean, variance) = (vector(&norm.mean)?, vector(&norm.variance)?);
            Layer::BatchNorm(BatchNorm::new(&weight, &bias, &mean, &variance, norm.eps))
        }
        description::Layer::MaxPool(pool) => Layer::MaxPool(pool.geometry()),
        description::Layer::Relu => Layer::Relu,
        description::Layer::Flatten => Layer::Flatten,
    })
}

/// Room for what comes out of a layer; what was there before is of no use.
fn resize(buffer: &mut Vec<f32>, count: usize, shape: [usize; 3]) -> Result<()> {
    let values = shape.iter().product::<usize>();
    let too_many = || Error::Request(format!("{count} images of {values} values in a layer are too many at once"));
    let length = count.checked_mul(values).ok_or_else(too_many)?;
    buffer.try_reserve(length.saturating_sub(buffer.len())).map_err(|_| too_many())?;
    buffer.resize(length, 0.0);
    Ok(())
}

fn misfit(error: ndarray::ShapeError) -> Error {
    Error::Request(format!("a layer's values: {error}"))
}
