//! Batch norm at evaluation: y = (x − mean) / √(variance + eps) · weight + bias, per channel, with the
//! statistics of training. Not here: statistics of a batch.

use rayon::prelude::*;

/// The layer as y = alpha·x + beta per channel, which is how PyTorch computes it at evaluation.
#[derive(Debug)]
pub(super) struct BatchNorm {
    alpha: Vec<f32>,
    beta: Vec<f32>,
}

impl BatchNorm {
    /// From one value of each per channel.
    pub fn new(weight: &[f32], bias: &[f32], mean: &[f32], variance: &[f32], eps: f32) -> Self {
        let scaled = weight.iter().zip(variance).map(|(weight, variance)| weight * (1.0 / (variance + eps).sqrt()));
        let alpha: Vec<f32> = scaled.collect();
        let shifted = alpha.iter().zip(bias.iter().zip(mean)).map(|(alpha, (bias, mean))| bias - mean * alpha);
        Self { beta: shifted.collect(), alpha }
    }

    /// In place, over `[images][channels][values]` with so many values per channel (at least 1).
    pub fn apply(&self, x: &mut [f32], values: usize) {
        x.par_chunks_mut(self.alpha.len() * values).for_each(|image| {
            for ((channel, alpha), beta) in image.chunks_mut(values).zip(&self.alpha).zip(&self.beta) {
                channel.iter_mut().for_each(|x| *x = *alpha * *x + *beta);
            }
        });
    }
}
