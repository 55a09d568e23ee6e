//! Layers that learn: each one a file, with what it gives (forward) and what the loss says of what it was
//! given and of its parameters (backward), by hand. Not here: which layers make up a network
//! ([`super::network`]), or how weights become ternary on the way ([`super::methods`]).

mod activation;
mod batch_norm;
mod conv2d;
mod linear;
mod pool;
mod residual;
mod sequential;
#[cfg(test)]
mod tests;
mod weights;

pub(super) use self::activation::{Flatten, Relu};
pub(super) use self::batch_norm::BatchNorm;
pub(super) use self::conv2d::{Conv2d, conv_pieces};
pub(super) use self::linear::Linear;
pub(super) use self::pool::{AvgPool, MaxPool};
pub(super) use self::residual::Residual;
pub(super) use self::sequential::Sequential;
pub(super) use self::weights::Bias;
pub use self::weights::Weights;

use super::maps::{Maps, Real};

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Batch norm takes the statistics of the batch, and remembers them.
    Train,
    /// Batch norm takes the statistics that it remembers.
    Evaluate,
}

/// One layer. `x` is what it was given, `y` what it gave, `dy` and `dx` the loss's derivatives by them.
pub trait Layer<R: Real>: Send {
    /// Writes all of `y`, which has its shape already.
    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, pass: Pass);
    /// After a forward pass with [`Pass::Train`] and the same `x` and `y`: writes all of `dx`, which has the
    /// shape of `x` already, unless nobody asks for it; and its parameters' gradients.
    fn backward(&mut self, x: &Maps<R>, y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>);
    /// What it is called in the description of a network.
    fn kind(&self) -> &'static str;
    /// The first of the layers that it is made of that last gave something that is not a finite number.
    fn first_broken(&mut self) -> Option<String> {
        None
    }
    /// Shows everything that is learned or remembered, always in the same order.
    fn visit(&mut self, _visit: &mut dyn FnMut(Tensor<'_, R>)) {}
}

/// Something that a layer learns or remembers.
pub enum Tensor<'a, R: Real> {
    /// What a convolution or a linear layer multiplies by.
    Weights(&'a mut Weights<R>),
    /// A bias, or a factor or an offset of batch norm: one value per filter or channel.
    Vector {
        /// The tensor's name.
        name: &'a str,
        /// What it is.
        value: &'a mut [R],
        /// The loss's derivatives by it.
        gradient: &'a mut [R],
    },
    /// Statistics of batch norm: remembered, not learned.
    Statistics {
        /// The tensor's name.
        name: &'a str,
        /// What it is.
        value: &'a mut [R],
        /// Whether it is the variance, else the mean.
        variance: bool,
    },
}

impl<R: Real> Tensor<'_, R> {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Weights(weights) => &weights.name,
            Self::Vector { name, .. } | Self::Statistics { name, .. } => name,
        }
    }
}
