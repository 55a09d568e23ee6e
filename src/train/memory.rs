//! How much memory training takes, before it begins: from the layers' shapes and the batch alone. Not
//! here: the images of the data set, and what the threads need for matrix products (some MiB each).

use super::layers::conv_pieces;
use super::optimizer::Optimizer;
use super::run::Setup;
use crate::net::Description;
use crate::net::layers::{Described, Layer};

/// Values, 4 bytes each, that are held at a time.
#[derive(Debug, Clone, Copy, Default)]
struct Values {
    /// Between layers, and what goes back through them; unrolled images; sums of gradients.
    maps: u64,
    /// Weights, biases and statistics.
    parameters: u64,
    /// What methods make of weights.
    used: u64,
}

/// Bytes that a step and the saving of its state need, at most. What training really takes is less where
/// branches need their memory one after the other.
pub fn memory(description: &Description, setup: &Setup) -> u64 {
    let batch = setup.recipe.batch.min(setup.train_images.max(setup.test_images)) as u64;
    let mut values = Values::default();
    values.add(description.layers(), batch, setup);
    let input: u64 = product(&description.input());
    values.maps += batch * (input + 2 * description.classes() as u64);
    let momenta = Optimizer::<f32>::per_element(setup.recipe.rule) as u64;
    // Values and gradients; then value and momenta once more as bytes, and in the file's image.
    let parameters = values.parameters.saturating_mul(2 + momenta + 2 * (1 + momenta));
    values.maps.saturating_add(parameters).saturating_add(values.used).saturating_mul(4)
}

impl Values {
    fn add(&mut self, layers: &[Described], batch: u64, setup: &Setup) {
        let mut largest = 0;
        for (i, Described { layer, input, output }) in layers.iter().enumerate() {
            let [x, y] = [input, output].map(|shape| batch.saturating_mul(product(shape)));
            self.maps = self.maps.saturating_add(y);
            if i > 0 {
                largest = largest.max(x);
            }
            match layer {
                Layer::Conv2d(conv) => {
                    let shape = conv.shape(input[0]);
                    let (weights, n) = (product(&shape), product(&shape[1..]));
                    let pieces = conv_pieces(batch as usize) as u64;
                    let columns = n.saturating_mul(product(&output[1..]));
                    self.maps = self.maps.saturating_add(pieces.saturating_mul(columns.saturating_add(weights)));
                    self.weights(&conv.weight, weights, setup);
                }
                Layer::Linear(linear) => {
                    self.weights(&linear.weight, (linear.outputs as u64).saturating_mul(input[0] as u64), setup);
                }
                Layer::MaxPool(_) => self.maps = self.maps.saturating_add(y),
                Layer::Residual(residual) => {
                    self.maps = self.maps.saturating_add(x);
                    self.add(&residual.body, batch, setup);
                    self.add(&residual.shortcut, batch, setup);
                }
                // Four vectors.
                Layer::BatchNorm(_) => self.parameters += 4 * input[0] as u64,
                Layer::AvgPool(_) | Layer::GlobalAvgPool | Layer::Relu | Layer::Flatten => {}
            }
        }
        self.maps = self.maps.saturating_add(2 * largest);
    }

    /// A layer's weights; a bias is as long as its output.
    fn weights(&mut self, name: &str, count: u64, setup: &Setup) {
        self.parameters = self.parameters.saturating_add(count);
        if setup.methods.contains_key(name) {
            self.used = self.used.saturating_add(count);
        }
    }
}

fn product(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |product, &n| product.saturating_mul(n as u64))
}
