//! A network that learns: the layers of a description with their parameters. Not here: how a network is
//! described or run from a file ([`crate::net`]), or the loop ([`super::run`]).

use std::collections::BTreeMap;

use ndarray::ArrayView2;

use super::layers::{
    AvgPool, BatchNorm, Bias, Conv2d, Flatten, Linear, MaxPool, Pass, Relu, Residual, Sequential, Tensor, Weights,
};
use super::loss::Loss;
use super::maps::{Maps, Real};
use super::methods::Method;
use super::optimizer::Optimizer;
use super::random::{Purpose, generator, symmetric};
use crate::Result;
use crate::net::Description;
use crate::net::layers::{Described, Layer};
use crate::select::{Keep, Settings, stays_dense};

/// Gives each weight layer its method, by the tensor's name.
pub type Choose<'a, R> = dyn FnMut(&str) -> Result<Option<Box<dyn Method<R>>>> + 'a;

/// Layers, their parameters, and the memory for a step.
pub struct Network<R: Real> {
    layers: Sequential<R>,
    input: [usize; 3],
    classes: usize,
    /// The loss's derivatives by the logits.
    gradient: Maps<R>,
    /// Batches that first weights had seen already, by the name of the tensor in which PyTorch counts them.
    pub(super) counted: BTreeMap<String, i64>,
}

/// What a step found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Step {
    /// Mean over the batch.
    pub loss: f64,
    /// How many images had their label's logit as the largest.
    pub correct: usize,
}

/// What the optimizer has to know of a parameter besides its value.
pub(super) struct Parameter<'a, R> {
    pub gradient: &'a [R],
    /// Whether weight decay is for it.
    pub decays: bool,
}

impl<R: Real> Network<R> {
    /// The described layers; weights and biases uniform within ±1/√(fan in), as PyTorch starts them.
    ///
    /// # Errors
    /// What `choose` says.
    pub fn new(description: &Description, seed: u64, choose: &mut Choose<'_, R>) -> Result<Self> {
        let mut layers = Sequential::default();
        append(&mut layers, description.layers(), choose)?;
        let (input, classes) = (description.input(), description.classes());
        let mut network = Self { layers, input, classes, gradient: Maps::default(), counted: BTreeMap::new() };
        network.start(seed);
        Ok(network)
    }

    /// Channels, height and width of an image.
    pub fn input(&self) -> [usize; 3] {
        self.input
    }

    /// How many logits come out for an image.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Everything that is learned or remembered, in the order of the layers.
    pub fn visit(&mut self, visit: &mut dyn FnMut(Tensor<'_, R>)) {
        self.layers.visit(visit);
    }

    /// Every layer's weights, in the order of the layers.
    pub fn visit_weights(&mut self, visit: &mut dyn FnMut(&mut Weights<R>)) {
        self.layers.visit(&mut |tensor| {
            if let Tensor::Weights(weights) = tensor {
                visit(weights);
            }
        });
    }

    fn start(&mut self, seed: u64) {
        let (mut number, mut bound) = (0, 0.0);
        let mut last = String::new();
        self.layers.visit(&mut |tensor| {
            let mut generator = generator(seed, Purpose::Weights(number));
            number += 1;
            let mut uniform = |values: &mut dyn Iterator<Item = &mut R>, bound: f64| {
                values.for_each(|w| *w = R::from_f64(bound * symmetric(&mut generator)));
            };
            match tensor {
                Tensor::Weights(weights) => {
                    bound = 1.0 / (weights.value.ncols() as f64).sqrt();
                    uniform(&mut weights.value.iter_mut(), bound);
                    last.clone_from(&weights.name);
                }
                // A layer's bias comes right behind its weights; batch norm has 1 and 0 already.
                Tensor::Vector { value, .. } if !last.is_empty() && value.iter().all(|v| *v == R::zero()) => {
                    uniform(&mut value.iter_mut(), bound);
                    last.clear();
                }
                _ => last.clear(),
            }
        });
    }

    /// Lets every method take over the float weights: once, before the first step, after they were set.
    pub fn begin(&mut self) {
        self.visit_weights(&mut |weights| {
            if let Some(method) = &mut weights.method {
                method.start(weights.value.view_mut());
            }
        });
    }

    /// Makes what is multiplied of the float weights.
    pub fn ternarize(&mut self, pass: Pass) {
        self.visit_weights(&mut |weights| weights.ternarize(pass));
    }

    /// The logits, images × classes.
    pub fn forward<'a>(&'a mut self, x: &'a Maps<R>, pass: Pass) -> ArrayView2<'a, R> {
        self.layers.forward(x, pass).rows()
    }

    /// Forward, loss, backward; gradients are those by the float weights then.
    pub fn learn(&mut self, x: &Maps<R>, labels: &[usize], loss: Loss) -> Step {
        self.ternarize(Pass::Train);
        let logits = self.layers.forward(x, Pass::Train).rows();
        let mut step = Step { correct: correct(logits, labels), ..Step::default() };
        self.gradient.resize(x.images(), [self.classes, 1, 1]);
        step.loss = loss.of(logits, labels, self.gradient.rows_mut());
        self.layers.backward(x, &self.gradient, None);
        self.visit_weights(&mut |weights| weights.learn());
        step
    }

    /// Moves every parameter by one step, then weights by `distance` down the slope of their method's own penalty.
    pub fn step(&mut self, optimizer: &mut Optimizer<R>, rate: f64, distance: f64) {
        optimizer.begin();
        self.parameters(&mut |value, Parameter { gradient, decays }| optimizer.update(value, gradient, rate, decays));
        self.visit_weights(&mut |Weights { value, method, .. }| {
            if let Some(method) = method {
                method.after_step(value.view_mut(), distance);
            }
        });
    }

    /// Everything that is learned, always in the same order.
    pub(super) fn parameters(&mut self, visit: &mut dyn FnMut(&mut [R], Parameter<'_, R>)) {
        self.layers.visit(&mut |tensor| match tensor {
            Tensor::Weights(Weights { value, gradient, method, .. }) => {
                let (Some(value), Some(gradient)) = (value.as_slice_mut(), gradient.as_slice()) else { return };
                visit(value, Parameter { gradient, decays: true });
                if let Some((value, gradient)) = method.as_mut().and_then(|method| method.learned()) {
                    visit(value, Parameter { gradient, decays: false });
                }
            }
            Tensor::Vector { value, gradient, .. } => visit(value, Parameter { gradient, decays: true }),
            Tensor::Statistics { .. } => {}
        });
    }

    /// Where something is not a finite number first, if anywhere: in what the last forward pass gave, or in
    /// a tensor that is learned or remembered, in the order of the layers.
    pub fn broken(&mut self) -> Option<String> {
        let layer = self.layers.first_broken().map(|layer| format!("what {layer} gives"));
        layer.or_else(|| self.broken_tensor())
    }

    /// The first tensor that is learned or remembered and holds something that is not a finite number, if any.
    pub(super) fn broken_tensor(&mut self) -> Option<String> {
        let mut found = None;
        self.layers.visit(&mut |tensor| {
            let (name, good) = match &tensor {
                Tensor::Weights(w) => (&*w.name, w.value.as_slice().is_none_or(are_finite)),
                Tensor::Vector { name, value, .. } | Tensor::Statistics { name, value, .. } => {
                    (*name, are_finite(value))
                }
            };
            if !good {
                found.get_or_insert_with(|| format!("tensor `{name}`"));
            }
        });
        found
    }

    /// Whether running statistics hold something that is not a finite number: the loss of a step need not tell.
    pub(super) fn has_broken_statistics(&mut self) -> bool {
        let mut broken = false;
        self.layers.visit(&mut |tensor| {
            if let Tensor::Statistics { value, .. } = tensor {
                broken |= !are_finite(value);
            }
        });
        broken
    }

    /// By tensor name, the settings by which the converter makes of the saved tensors what was
    /// trained; a layer without a method stays dense.
    pub(super) fn settings(&mut self) -> BTreeMap<String, Settings> {
        let mut settings = BTreeMap::new();
        self.visit_weights(&mut |weights| {
            // Whatever it is called: names that stay dense by default were trained too.
            let ternary = |settings| Settings { keep: Some(Keep::Ternary), ..settings };
            let its = weights.method.as_ref().map_or_else(stays_dense, |method| ternary(method.settings()));
            settings.insert(weights.name.clone(), its);
        });
        settings
    }

    /// The share of ternary weights that are zero; `None` without ternary weights. After
    /// [`Network::ternarize`] for evaluation.
    pub fn sparsity(&mut self) -> Option<f64> {
        let (mut zeros, mut all) = (0, 0);
        self.visit_weights(&mut |weights| {
            if weights.method.is_some() {
                zeros += weights.used().iter().filter(|w| **w == R::zero()).count();
                all += weights.used().len();
            }
        });
        (all > 0).then(|| zeros as f64 / all as f64)
    }

    /// The share of the weights that will be rounded that are within 0.05 of where they will be; `None` where
    /// no method rounds at the end.
    pub fn settled(&mut self) -> Option<f64> {
        let (mut settled, mut all) = (0, 0);
        self.visit_weights(&mut |Weights { value, method, .. }| {
            if let Some(near) = method.as_ref().and_then(|method| method.settled(value.view())) {
                settled += near;
                all += value.len();
            }
        });
        (all > 0).then(|| settled as f64 / all as f64)
    }
}

fn are_finite<R: Real>(values: &[R]) -> bool {
    values.iter().all(|x| x.to_f64().is_finite())
}

/// How many rows have their label's value as the first of the largest; NaN is never right.
pub(super) fn correct<R: Real>(logits: ArrayView2<'_, R>, labels: &[usize]) -> usize {
    let right = logits.rows().into_iter().zip(labels).filter(|(row, label)| {
        let best = row[**label];
        row.iter().enumerate().all(|(class, z)| if class < **label { *z < best } else { *z <= best })
    });
    right.count()
}

fn append<R: Real>(to: &mut Sequential<R>, layers: &[Described], choose: &mut Choose<'_, R>) -> Result<()> {
    for Described { layer, input, output } in layers {
        let channels = input[0];
        match layer {
            Layer::Conv2d(conv) => {
                let weights = Weights::new(&conv.weight, &conv.shape(channels), choose(&conv.weight)?);
                let bias = conv.bias.as_ref().map(|name| Bias::new(name, conv.filters));
                to.push(Conv2d::new(weights, bias, conv.geometry()), *output);
            }
            Layer::Linear(linear) => {
                let weights = Weights::new(&linear.weight, &[linear.outputs, channels], choose(&linear.weight)?);
                let bias = linear.bias.as_ref().map(|name| Bias::new(name, linear.outputs));
                to.push(Linear { weights, bias }, *output);
            }
            Layer::BatchNorm(norm) => {
                let names = [&*norm.weight, &norm.bias, &norm.mean, &norm.variance];
                to.push(BatchNorm::new(names, channels, norm.eps), *output);
            }
            Layer::MaxPool(pool) => to.push(MaxPool::new(pool.geometry()), *output),
            Layer::AvgPool(pool) => to.push(AvgPool::new(pool.geometry()), *output),
            Layer::GlobalAvgPool => to.push(AvgPool::global(), *output),
            Layer::Relu => to.push(Relu, *output),
            Layer::Flatten => to.push(Flatten, *output),
            Layer::Residual(block) => {
                let [mut body, mut shortcut] = [Sequential::default(), Sequential::default()];
                append(&mut body, &block.body, choose)?;
                append(&mut shortcut, &block.shortcut, choose)?;
                to.push(Residual::new(body, shortcut), *output);
            }
        }
    }
    Ok(())
}
