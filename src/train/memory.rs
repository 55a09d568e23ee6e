//! How much memory training takes, before it begins: from the layers' shapes, the batch and the number of threads
//! alone. Not here: what the process holds already, as the images of the data set and its own code.

use super::layers::conv_pieces;
use super::maps::PARTS;
use super::optimizer::Optimizer;
use super::run::Setup;
use crate::atomic_file::HELD;
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
    /// What one thread packs of the factors of the largest product.
    packed: u64,
}

/// At most that many rows or columns of what a product sums over are packed at a time, by the `gemm` crate.
const SUMMED: u64 = 512;
/// Bytes besides, of each thread: as much as the second cache holds.
const SLAB: u64 = 2 << 20;

/// Bytes that a step and the saving of its state need on so many threads, at most. What training really takes is
/// less where branches need their memory one after the other.
pub fn memory(description: &Description, setup: &Setup, threads: usize) -> u64 {
    let batch = setup.recipe.batch.min(setup.train_images.max(setup.test_images)) as u64;
    let mut values = Values::default();
    values.add(description.layers(), batch, setup);
    let input: u64 = product(&description.input());
    values.maps += batch * (input + 2 * description.classes() as u64);
    let momenta = Optimizer::<f32>::per_element(setup.recipe.rule) as u64;
    // Values and gradients; then value and momenta once more as bytes, some of which are on their way to the disk.
    let parameters = values.parameters.saturating_mul(2 + momenta + 1 + momenta);
    let file = values.parameters.saturating_mul(4 * (1 + momenta));
    let of_thread = values.packed.saturating_mul(4).saturating_add(SLAB).saturating_mul(threads as u64);
    values
        .maps
        .saturating_add(parameters)
        .saturating_add(values.used)
        .saturating_mul(4)
        .saturating_add(of_thread)
        .saturating_add(file.min(HELD as u64))
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
                    let outputs = product(&output[1..]);
                    let columns = n.saturating_mul(outputs);
                    self.products([shape[0] as u64 / conv.geometry().groups as u64, n, outputs]);
                    self.maps = self.maps.saturating_add(pieces.saturating_mul(columns.saturating_add(weights)));
                    self.weights(&conv.weight, weights, setup);
                }
                Layer::Linear(linear) => {
                    let columns = (linear.outputs as u64).div_ceil(PARTS as u64).max(16);
                    let inputs = (input[0] as u64).div_ceil(PARTS as u64).max(16);
                    self.products([batch, input[0] as u64, columns]);
                    self.products([batch, linear.outputs as u64, inputs]);
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

    /// Products of matrices of these three dimensions: forward, and backward by both factors.
    fn products(&mut self, [m, k, n]: [u64; 3]) {
        for [rows, summed, columns] in [[m, k, n], [k, n, m], [n, m, k]] {
            let packed = summed.min(SUMMED).saturating_mul(rows.saturating_add(columns));
            self.packed = self.packed.max(packed);
        }
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
