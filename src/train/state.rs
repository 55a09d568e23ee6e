//! A run between two steps: everything that the next step depends on, in one `.safetensors` file, so that
//! a run that was ended goes on bit for bit. Not here: the trained model ([`super::model`]).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layers::Tensor;
use super::network::Network;
use super::optimizer::Optimizer;
use super::recipe::Recipe;
use super::run::{Setup, Sums};
use crate::source::Checkpoint;
use crate::source::write::{floats, write};
use crate::{Dtype, Error, Result};

/// The metadata's key.
const KEY: &str = "twn-pack.run";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// What is trained, and how.
    pub setup: Setup,
    /// Epochs that are over.
    pub epoch: u32,
    /// Steps of the present epoch that are over.
    pub batches: usize,
    /// What the present epoch has found.
    pub sums: Sums,
}

impl Position {
    /// Steps of a whole epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.setup.train_images.div_ceil(self.setup.recipe.batch.max(1))
    }

    /// Steps in all that are over.
    pub fn steps(&self) -> u64 {
        u64::from(self.epoch) * self.batches_per_epoch() as u64 + self.batches as u64
    }

    /// Goes on with another recipe; or says why that cannot be.
    pub fn change_recipe(&mut self, recipe: &Recipe) -> std::result::Result<(), String> {
        let Recipe { batch, rule, epochs, .. } = &self.setup.recipe;
        if (*batch, *rule) != (recipe.batch, recipe.rule) {
            return Err(format!(
                "a new recipe for {:?} in batches of {}; momenta and order are those of {rule:?} in batches of {batch}, \
                 which a run keeps",
                recipe.rule, recipe.batch
            ));
        }
        if recipe.epochs < self.epoch {
            return Err(format!(
                "a new recipe of {} epochs, and {} of {epochs} are over; expected at least as many",
                recipe.epochs, self.epoch
            ));
        }
        self.setup.recipe = recipe.clone();
        Ok(())
    }

    /// Whether its numbers fit together.
    fn is_possible(&self) -> bool {
        self.epoch <= self.setup.recipe.epochs
            && self.batches <= self.batches_per_epoch()
            && self.sums.are_possible(self.setup.train_images)
    }
}

/// Calls `visit` with the name and the values of everything that a step changes.
fn visit(network: &mut Network<f32>, momenta: &mut [Vec<f32>], visit: &mut dyn FnMut(String, &mut [f32])) {
    network.visit(&mut |tensor| match tensor {
        Tensor::Weights(weights) => {
            let name = weights.name.clone();
            visit(format!("value/{name}"), weights.value.as_slice_mut().unwrap_or_default());
            let Some(method) = &mut weights.method else { return };
            if let Some((value, _)) = method.learned() {
                visit(format!("learned/{name}"), value);
            }
            if let Some(value) = method.remembered() {
                visit(format!("remembered/{name}"), value);
            }
        }
        Tensor::Vector { name, value, .. } => visit(format!("value/{name}"), value),
        Tensor::Statistics { name, value, .. } => visit(format!("value/{name}"), value),
    });
    for (i, momenta) in momenta.iter_mut().enumerate() {
        visit(format!("momenta/{i:05}"), momenta);
    }
}

/// Writes where the run stands; what stood there before is replaced when all is on disk.
pub(super) fn save(
    path: &Path,
    position: &Position,
    network: &mut Network<f32>,
    optimizer: &mut Optimizer<f32>,
) -> Result<()> {
    let mut tensors = Vec::new();
    visit(network, &mut optimizer.momenta, &mut |name, values| {
        tensors.push(floats(name, vec![values.len()], values));
    });
    let text = serde_json::to_string(position).map_err(|e| Error::Request(format!("{}: {e}", path.display())))?;
    write(path, true, &tensors, BTreeMap::from([(KEY.to_owned(), text)]))
}

/// Reads where a run stands. `network` and `optimizer` are made for the same setup, which is checked
/// by whoever calls.
pub(super) fn load(path: &Path) -> Result<(Checkpoint, Position)> {
    let checkpoint = Checkpoint::open(path)?;
    let refused = |what: String| Error::Request(format!("{}: {what}", path.display()));
    let text = checkpoint.metadata().get(KEY);
    let text = text.ok_or_else(|| refused(format!("it has no metadata `{KEY}`; expected the state of a run")))?;
    let position: Position = serde_json::from_str(text).map_err(|e| refused(format!("metadata `{KEY}`: {e}")))?;
    if position.is_possible() {
        return Ok((checkpoint, position));
    }
    let Position { epoch, batches, .. } = position;
    Err(refused(format!("no run stands behind {epoch} epochs and {batches} batches of its setup")))
}

/// Puts everything back.
pub(super) fn restore(
    checkpoint: &Checkpoint,
    network: &mut Network<f32>,
    optimizer: &mut Optimizer<f32>,
) -> Result<()> {
    let path = checkpoint.path().display();
    optimizer.reserve(network);
    let mut failed = None;
    visit(network, &mut optimizer.momenta, &mut |name, values| {
        let found =
            checkpoint.by_name(&name).filter(|view| view.dtype == Dtype::F32 && view.elements() == values.len());
        match found {
            Some(view) => {
                let numbers = view.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
            }
            None if failed.is_none() => {
                let expected = values.len();
                failed = Some(Error::Request(format!("{path}: expected {expected} F32 values in tensor `{name}`")));
            }
            None => {}
        }
    });
    failed.map_or(Ok(()), Err)
}
