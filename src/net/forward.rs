//! A network with its tensors, and what it says of images. Not here: any layer's arithmetic, which has
//! a file of its own, or is [`crate::kernel`]'s.

use ndarray::{ArrayView2, ArrayView4, ArrayViewMut2, ArrayViewMut4};
use rayon::prelude::*;

use super::batch_norm::BatchNorm;
use super::collect::Collected;
use super::dense;
use super::description::Description;
use super::layers::{self, Described, gathered};
use super::pool::{avg_pool, max_pool};
use super::reestimate::Measured;
use super::tensors::{Source, Tensors, Weights};
use crate::kernel::{Conv2d, Kernel, Workspace};
use crate::limits::FORWARD_BYTES;
use crate::{Error, Result};

/// A network that can run: layers and their tensors. Packed weights stay where the source has them.
#[derive(Debug)]
pub struct Network<'a> {
    input: [usize; 3],
    classes: usize,
    steps: Vec<Step<'a>>,
    needs: Needs,
}

/// A layer, and the shapes of what it takes and gives for one image: channels × height × width.
#[derive(Debug)]
struct Step<'a> {
    layer: Layer<'a>,
    input: [usize; 3],
    output: [usize; 3],
}

#[derive(Debug)]
enum Layer<'a> {
    Conv2d { weights: Weights<'a>, bias: Option<Vec<f32>>, geometry: Conv2d },
    Linear { weights: Weights<'a>, bias: Option<Vec<f32>> },
    BatchNorm(BatchNorm),
    MaxPool(Conv2d),
    AvgPool(Conv2d),
    Relu,
    Flatten,
    Residual { body: Vec<Step<'a>>, shortcut: Vec<Step<'a>> },
}

/// How many values a forward pass holds at a time.
#[derive(Debug, Default)]
struct Needs {
    /// In front of the layer that takes or gives most, and as many behind it; per image.
    largest: usize,
    /// For each depth of residual layers, what is kept while one of their branches runs; per image.
    kept: Vec<usize>,
    /// What a thread gathers for a convolution in floats.
    columns: usize,
}

/// Memory for a forward pass. Grows to what is asked of it and is used again.
#[derive(Debug, Default)]
pub struct Buffers {
    /// What stands in front of a layer: `[images][channels][height][width]`.
    x: Vec<f32>,
    /// What comes out of it.
    y: Vec<f32>,
    /// For each depth of residual layers, what is kept while one of their branches runs.
    kept: Vec<Vec<f32>>,
    columns: Vec<f32>,
    workspace: Workspace,
    /// Sums of what layers take, where they are wanted.
    pub(super) collected: Option<Collected>,
    /// What batch norms are given, where that is wanted; they go by it then.
    pub(super) measured: Option<Measured>,
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
        let steps = load(description.layers(), &tensors)?;
        let mut needs = Needs::default();
        needs.add(&steps, 0);
        Ok(Self { input: description.input(), classes: description.classes(), steps, needs })
    }

    /// Channels, height and width of an image.
    pub fn input(&self) -> [usize; 3] {
        self.input
    }

    /// How many numbers come out for an image.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The weights of every convolution and linear layer, in their order; of a residual layer, those of
    /// its body come first.
    pub fn weights(&self) -> impl Iterator<Item = &Weights<'a>> {
        let mut found = Vec::new();
        weights(&self.steps, &mut found);
        found.into_iter()
    }

    /// What the last layer says (the logits), images × classes. `images` is images × channels × height ×
    /// width; `kernel` multiplies packed weights, on the threads of the caller's pool.
    ///
    /// # Errors
    /// Images of another shape, or more of them than [`FORWARD_BYTES`] or memory can take.
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
        self.needs.check(count)?;
        room(&mut buffers.x, images.len())?;
        buffers.x.iter_mut().zip(&images).for_each(|(x, &image)| *x = image);
        run(&self.steps, count, kernel, buffers, 0)?;
        ArrayView2::from_shape((count, self.classes), &buffers.x).map_err(misfit)
    }
}

impl Needs {
    /// Grows to what these layers need, which lie in `depth` residual layers.
    fn add(&mut self, steps: &[Step<'_>], depth: usize) {
        for Step { layer, input, output } in steps {
            let values = [input, output].map(|shape| shape.iter().product::<usize>());
            let larger = values[0].max(values[1]);
            self.largest = self.largest.max(larger);
            match layer {
                Layer::Conv2d { weights: Weights::Dense(_), geometry, .. } => {
                    self.columns = self.columns.max(gathered(geometry, input[0]) * output[1] * output[2]);
                }
                Layer::Residual { body, shortcut } => {
                    if self.kept.len() == depth {
                        self.kept.push(0);
                    }
                    self.kept[depth] = self.kept[depth].max(larger);
                    self.add(body, depth + 1);
                    self.add(shortcut, depth + 1);
                }
                _ => {}
            }
        }
    }

    /// Whether so many images at once are within the limit; one always is.
    fn check(&self, images: usize) -> Result<()> {
        let per_image = 2 * self.largest as u128 + self.kept.iter().map(|&values| values as u128).sum::<u128>();
        let columns = images.min(rayon::current_num_threads()) as u128 * self.columns as u128;
        let bytes = (images as u128 * per_image + columns) * size_of::<f32>() as u128;
        if bytes <= FORWARD_BYTES.into() {
            return Ok(());
        }
        Err(Error::Request(format!(
            "{images} images at once need {bytes} bytes between the layers, expected at most {FORWARD_BYTES}; run fewer \
             at a time (--batch)"
        )))
    }
}

/// From `buffers.x` to `buffers.x`, through layers that lie in `depth` residual layers.
fn run(steps: &[Step<'_>], count: usize, kernel: &Kernel, buffers: &mut Buffers, depth: usize) -> Result<()> {
    for step in steps {
        match &step.layer {
            Layer::Residual { body, shortcut } => {
                if buffers.kept.len() == depth {
                    buffers.kept.push(Vec::new());
                }
                let mut kept = std::mem::take(&mut buffers.kept[depth]);
                room(&mut kept, buffers.x.len())?;
                kept.copy_from_slice(&buffers.x);
                run(body, count, kernel, buffers, depth + 1)?;
                if !shortcut.is_empty() {
                    std::mem::swap(&mut kept, &mut buffers.x);
                    run(shortcut, count, kernel, buffers, depth + 1)?;
                }
                buffers.x.par_iter_mut().zip(&kept).for_each(|(x, kept)| *x += kept);
                buffers.kept[depth] = kept;
            }
            _ => step.run(count, kernel, buffers)?,
        }
    }
    Ok(())
}

impl Step<'_> {
    /// From `buffers.x` to `buffers.x`.
    fn run(&self, count: usize, kernel: &Kernel, buffers: &mut Buffers) -> Result<()> {
        let Buffers { x, y, columns, workspace, collected, measured, .. } = buffers;
        let Self { layer, input, output } = self;
        match layer {
            Layer::Flatten | Layer::Residual { .. } => return Ok(()),
            Layer::Relu => {
                // Not max(0, x), which would turn NaN into 0.
                let relu = |x: &mut f32| *x = if *x < 0.0 { 0.0 } else { *x };
                x.par_chunks_mut(input.iter().product()).for_each(|image| image.iter_mut().for_each(relu));
                return Ok(());
            }
            Layer::BatchNorm(norm) => {
                let values = input[1] * input[2];
                match measured {
                    None => norm.apply(x, values),
                    Some(measured) => measured.add(&norm.measure(x, values)),
                }
                return Ok(());
            }
            _ => room(y, count * output.iter().product::<usize>())?,
        }
        let shape = |[channels, height, width]: [usize; 3]| (count, channels, height, width);
        let size = |[_, height, width]: [usize; 3]| [height, width];
        match layer {
            Layer::Conv2d { weights, bias, geometry } => {
                if let Some(collected) = collected {
                    collected.conv2d(x, *input, *output, geometry, gathered(geometry, input[0]))?;
                }
                let x = ArrayView4::from_shape(shape(*input), x).map_err(misfit)?;
                let y = ArrayViewMut4::from_shape(shape(*output), y).map_err(misfit)?;
                let bias = bias.as_deref();
                match weights {
                    Weights::Packed(w) => kernel.conv2d(&w.matrix()?, bias, geometry, x, y, workspace)?,
                    Weights::Dense(w) => dense::conv2d(w.view(), bias, geometry, x, y, columns)?,
                }
            }
            Layer::Linear { weights, bias } => {
                if let Some(collected) = collected {
                    collected.linear(x, input[0])?;
                }
                let x = ArrayView2::from_shape((count, input[0]), x).map_err(misfit)?;
                let y = ArrayViewMut2::from_shape((count, output[0]), y).map_err(misfit)?;
                match weights {
                    Weights::Packed(w) => kernel.linear(&w.matrix()?, bias.as_deref(), x, y, workspace)?,
                    Weights::Dense(w) => dense::linear(w.view(), bias.as_deref(), x, y)?,
                }
            }
            Layer::MaxPool(geometry) => max_pool(geometry, x, size(*input), y, size(*output)),
            Layer::AvgPool(geometry) => avg_pool(geometry, x, size(*input), y, size(*output)),
            Layer::BatchNorm(_) | Layer::Relu | Layer::Flatten | Layer::Residual { .. } => {}
        }
        std::mem::swap(x, y);
        Ok(())
    }
}

/// The layers with their tensors.
fn load<'a>(described: &[Described], tensors: &Tensors<'a>) -> Result<Vec<Step<'a>>> {
    let bias = |name: &Option<String>, length| name.as_ref().map(|name| tensors.vector(name, length)).transpose();
    let step = |Described { layer, input, output }: &Described| {
        let channels = input[0];
        let layer = match layer {
            layers::Layer::Conv2d(conv) => {
                let weights = tensors.weights(&conv.weight, &conv.shape(channels))?;
                Layer::Conv2d { weights, bias: bias(&conv.bias, conv.filters)?, geometry: conv.geometry() }
            }
            layers::Layer::Linear(linear) => {
                let weights = tensors.weights(&linear.weight, &[linear.outputs, channels])?;
                Layer::Linear { weights, bias: bias(&linear.bias, linear.outputs)? }
            }
            layers::Layer::BatchNorm(norm) => {
                let vector = |name: &str| tensors.vector(name, channels);
                let (weight, bias) = (vector(&norm.weight)?, vector(&norm.bias)?);
                let (mean, variance) = (vector(&norm.mean)?, vector(&norm.variance)?);
                Layer::BatchNorm(BatchNorm::new(weight, bias, &mean, &variance, norm.eps))
            }
            layers::Layer::MaxPool(pool) => Layer::MaxPool(pool.geometry()),
            layers::Layer::AvgPool(pool) => Layer::AvgPool(pool.geometry()),
            layers::Layer::GlobalAvgPool => Layer::AvgPool(Conv2d::new([input[1], input[2]])),
            layers::Layer::Relu => Layer::Relu,
            layers::Layer::Flatten => Layer::Flatten,
            layers::Layer::Residual(residual) => {
                let (body, shortcut) = (load(&residual.body, tensors)?, load(&residual.shortcut, tensors)?);
                Layer::Residual { body, shortcut }
            }
        };
        Ok(Step { layer, input: *input, output: *output })
    };
    described.iter().map(step).collect()
}

fn weights<'s, 'a>(steps: &'s [Step<'a>], found: &mut Vec<&'s Weights<'a>>) {
    for step in steps {
        match &step.layer {
            Layer::Conv2d { weights, .. } | Layer::Linear { weights, .. } => found.push(weights),
            Layer::Residual { body, shortcut } => {
                weights(body, found);
                weights(shortcut, found);
            }
            _ => {}
        }
    }
}

/// Room for so many values; what was there before is of no use.
fn room(buffer: &mut Vec<f32>, values: usize) -> Result<()> {
    let too_many = |_| Error::Request(format!("no memory for {values} values of a layer; run fewer images (--batch)"));
    buffer.try_reserve(values.saturating_sub(buffer.len())).map_err(too_many)?;
    buffer.resize(values, 0.0);
    Ok(())
}

fn misfit(error: ndarray::ShapeError) -> Error {
    Error::Request(format!("a layer's values: {error}"))
}
