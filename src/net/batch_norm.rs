//! Batch norm: y = (x − mean) / √(variance + eps) · weight + bias, per channel; at evaluation with the
//! statistics of training, or with those of a batch while they are measured. Not here: what the measured
//! ones are good for ([`super::reestimate`]), or gradients.

use rayon::prelude::*;

/// The layer as y = alpha·x + beta per channel, which is how PyTorch computes it at evaluation.
#[derive(Debug)]
pub(super) struct BatchNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
    alpha: Vec<f32>,
    beta: Vec<f32>,
}

/// Sums over values, per channel.
#[derive(Debug, Clone, Default)]
pub(super) struct Moments {
    count: u64,
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl BatchNorm {
    /// From one value of each per channel.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>, mean: &[f32], variance: &[f32], eps: f32) -> Self {
        let (alpha, beta) = lines(&weight, &bias, mean, variance, eps);
        Self { weight, bias, eps, alpha, beta }
    }

    /// In place, over `[images][channels][values]` with so many values per channel (at least 1).
    pub fn apply(&self, x: &mut [f32], values: usize) {
        apply(&self.alpha, &self.beta, x, values);
    }

    /// The same with the mean and the variance of just these values, which it returns the sums of.
    pub fn measure(&self, x: &mut [f32], values: usize) -> Moments {
        let moments = Moments::of(x, self.weight.len(), values);
        let n = moments.count as f64;
        let variance: Vec<f32> = moments.centred().map(|squares| (squares / n) as f32).collect();
        let (alpha, beta) = lines(&self.weight, &self.bias, &moments.mean(), &variance, self.eps);
        apply(&alpha, &beta, x, values);
        moments
    }
}

impl Moments {
    fn of(x: &[f32], channels: usize, values: usize) -> Self {
        // Each channel by one thread, so that the order of the sums is always the same.
        let sums = (0..channels).into_par_iter().map(|channel| {
            let values = x.chunks_exact(channels * values).flat_map(|image| &image[channel * values..][..values]);
            values.fold((0.0, 0.0), |(sum, squares), &x| {
                let x = f64::from(x);
                (sum + x, squares + x * x)
            })
        });
        let (sum, squares) = sums.unzip();
        Self { count: (x.len() / channels) as u64, sum, squares }
    }

    /// With the values that `other` has sums of.
    pub fn add(&mut self, other: &Self) {
        if self.count == 0 {
            return self.clone_from(other);
        }
        self.count += other.count;
        self.sum.iter_mut().zip(&other.sum).for_each(|(sum, other)| *sum += other);
        self.squares.iter_mut().zip(&other.squares).for_each(|(sum, other)| *sum += other);
    }

    pub fn mean(&self) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / self.count as f64) as f32).collect()
    }

    /// Unbiased, over n − 1, as running variances are.
    pub fn variance(&self) -> Vec<f32> {
        let n = self.count.saturating_sub(1).max(1) as f64;
        self.centred().map(|squares| (squares / n) as f32).collect()
    }

    /// Σ(x − mean)².
    fn centred(&self) -> impl Iterator<Item = f64> {
        let n = self.count as f64;
        self.sum.iter().zip(&self.squares).map(move |(sum, squares)| (squares - sum * sum / n).max(0.0))
    }
}

fn lines(weight: &[f32], bias: &[f32], mean: &[f32], variance: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let scaled = weight.iter().zip(variance).map(|(weight, variance)| weight * (1.0 / (variance + eps).sqrt()));
    let alpha: Vec<f32> = scaled.collect();
    let shifted = alpha.iter().zip(bias.iter().zip(mean)).map(|(alpha, (bias, mean))| bias - mean * alpha);
    let beta = shifted.collect();
    (alpha, beta)
}

fn apply(alpha: &[f32], beta: &[f32], x: &mut [f32], values: usize) {
    x.par_chunks_mut(alpha.len() * values).for_each(|image| {
        for ((channel, alpha), beta) in image.chunks_mut(values).zip(alpha).zip(beta) {
            channel.iter_mut().for_each(|x| *x = *alpha * *x + *beta);
        }
    });
}
