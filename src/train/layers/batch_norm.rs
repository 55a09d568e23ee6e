//! Batch norm (arXiv 1502.03167): y = (x − μ)/√(σ² + eps)·weight + bias per channel. In training μ and σ² are
//! the batch's, over images, height and width; the running ones move towards them by a tenth each
//! time, with the unbiased σ², as in PyTorch. At evaluation the running ones count, and no batch's.

use rayon::prelude::*;

use super::{Bias, Layer, Pass, Tensor};
use crate::train::maps::{Maps, Real, sum};

/// How far running statistics move towards a batch's.
const MOMENTUM: f64 = 0.1;

/// One factor, offset, mean and variance per channel.
#[derive(Debug)]
pub struct BatchNorm<R> {
    pub weight: Bias<R>,
    pub bias: Bias<R>,
    pub mean: (String, Vec<R>),
    pub variance: (String, Vec<R>),
    eps: f64,
    /// Of the last batch, per channel: μ and 1/√(σ² + eps).
    batch: Vec<[f64; 2]>,
}

impl<R: Real> BatchNorm<R> {
    /// For so many channels, with these tensors' names: weight, bias, running mean, running variance.
    pub fn new([weight, bias, mean, variance]: [&str; 4], channels: usize, eps: f32) -> Self {
        let mut weight = Bias::new(weight, channels);
        weight.value.fill(R::one());
        Self {
            weight,
            bias: Bias::new(bias, channels),
            mean: (mean.to_owned(), vec![R::zero(); channels]),
            variance: (variance.to_owned(), vec![R::one(); channels]),
            eps: f64::from(eps),
            batch: vec![[0.0; 2]; channels],
        }
    }
}

impl<R: Real> Layer<R> for BatchNorm<R> {
    fn kind(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, pass: Pass) {
        let (len, image) = (x.map_len(), x.image_len());
        let count = (x.images() * len) as f64;
        let eps = self.eps;
        let running = self.mean.1.par_iter_mut().zip(&mut self.variance.1);
        self.batch.par_iter_mut().zip(running).enumerate().for_each(|(c, (batch, (mean, variance)))| {
            if pass == Pass::Evaluate {
                *batch = [mean.to_f64(), 1.0 / (variance.to_f64() + eps).sqrt()];
                return;
            }
            let maps = || x.values.chunks(image).map(|image| &image[c * len..][..len]);
            let mu = maps().map(|map| sum(map, map, |x, _| x)).sum::<f64>() / count;
            let rounded = R::from_f64(mu);
            let squares: f64 = maps().map(|map| sum(map, map, |x, _| (x - rounded) * (x - rounded))).sum();
            let rest = mu - rounded.to_f64();
            let sigma2 = (squares / count - rest * rest).max(0.0);
            *batch = [mu, 1.0 / (sigma2 + eps).sqrt()];
            // One value has no variance to be remembered.
            if count < 2.0 {
                return;
            }
            let unbiased = sigma2 * count / (count - 1.0);
            *mean = R::from_f64((1.0 - MOMENTUM) * mean.to_f64() + MOMENTUM * mu);
            *variance = R::from_f64((1.0 - MOMENTUM) * variance.to_f64() + MOMENTUM * unbiased);
        });
        let lines = self.lines();
        y.values.par_chunks_mut(image).zip(x.values.par_chunks(image)).for_each(|(y, x)| {
            for ((y, x), &[factor, offset]) in y.chunks_mut(len).zip(x.chunks(len)).zip(&lines) {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = factor * x + offset);
            }
        });
    }

    fn backward(&mut self, x: &Maps<R>, _y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        let (len, image) = (x.map_len(), x.image_len());
        let count = (x.images() * len) as f64;
        // With x̂ = (x − μ)/σ: dbias = Σ dy, dweight = Σ dy·x̂, and
        // dx = weight/σ·(dy − dbias/count − x̂·dweight/count), a line in dy and x.
        let mut lines = vec![[R::zero(); 3]; self.batch.len()];
        let gradients = self.weight.gradient.par_iter_mut().zip(&mut self.bias.gradient);
        let channels = lines.par_iter_mut().zip(gradients).zip(&self.batch).zip(&self.weight.value).enumerate();
        channels.for_each(|(c, (((line, (dweight, dbias)), &[mu, inverse]), weight))| {
            let (mut of_dy, mut of_both) = (0.0, 0.0);
            let rounded = R::from_f64(mu);
            for (x, dy) in x.values.chunks(image).zip(dy.values.chunks(image)) {
                let (x, dy) = (&x[c * len..][..len], &dy[c * len..][..len]);
                of_dy += sum(dy, dy, |dy, _| dy);
                of_both += sum(x, dy, |x, dy| (x - rounded) * dy);
            }
            let of_normal = (of_both - (mu - rounded.to_f64()) * of_dy) * inverse;
            (*dweight, *dbias) = (R::from_f64(of_normal), R::from_f64(of_dy));
            let factor = weight.to_f64() * inverse;
            let slope = -factor * inverse * of_normal / count;
            *line = [factor, slope, -factor * of_dy / count - slope * mu].map(R::from_f64);
        });
        let Some(dx) = dx else { return };
        let images = dx.values.par_chunks_mut(image).zip(x.values.par_chunks(image)).zip(dy.values.par_chunks(image));
        images.for_each(|((dx, x), dy)| {
            let maps = dx.chunks_mut(len).zip(x.chunks(len)).zip(dy.chunks(len)).zip(&lines);
            for (((dx, x), dy), &[factor, slope, offset]) in maps {
                dx.iter_mut().zip(x).zip(dy).for_each(|((dx, &x), &dy)| *dx = factor * dy + slope * x + offset);
            }
        });
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Tensor<'_, R>)) {
        for Bias { name, value, gradient } in [&mut self.weight, &mut self.bias] {
            visit(Tensor::Vector { name, value, gradient });
        }
        for ((name, value), variance) in [(&mut self.mean, false), (&mut self.variance, true)] {
            visit(Tensor::Statistics { name, value, variance });
        }
    }
}

impl<R: Real> BatchNorm<R> {
    /// y = factor·x + offset, per channel.
    fn lines(&self) -> Vec<[R; 2]> {
        let learned = self.weight.value.iter().zip(&self.bias.value);
        let lines = self.batch.iter().zip(learned).map(|(&[mu, inverse], (weight, bias))| {
            let factor = weight.to_f64() * inverse;
            [factor, bias.to_f64() - mu * factor].map(R::from_f64)
        });
        lines.collect()
    }
}
