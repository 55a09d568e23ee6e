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
use crate::error::CheckpointProblem;
use crate::source::Checkpoint;
use crate::source::write::{floats, write};
use crate::{Dtype, Error, Result};

/// The metadata's keys: where the run stands; a CRC-32 of that and of every tensor's name and values, sorted by name.
const KEY: &str = "twn-pack.run";
const CRC32: &str = "twn-pack.crc32";

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
    /// Batches that the first weights had seen ([`Network::counted`]).
    pub counted: BTreeMap<String, i64>,
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

    /// Goes on with other images and labels, and with as many of them as are asked for.
    pub fn change_data(&mut self, Setup { data, train_images, test_images, .. }: &Setup) {
        (self.setup.data, self.setup.train_images, self.setup.test_images) = (*data, *train_images, *test_images);
        // Of fewer images an epoch may be over already.
        self.batches = self.batches.min(self.batches_per_epoch());
        self.sums.limit(*train_images);
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
    let text = serde_json::to_string(position).map_err(|e| Error::Request(format!("{}: {e}", path.display())))?;
    let mut tensors = Vec::new();
    visit(network, &mut optimizer.momenta, &mut |name, values| {
        tensors.push(floats(name, vec![values.len()], values));
    });
    let crc32 = checksum(&text, tensors.iter().map(|(name, .., bytes)| (&**name, &**bytes)).collect());
    write(path, true, &tensors, BTreeMap::from([(KEY.to_owned(), text), (CRC32.to_owned(), crc32)]))
}

/// Over where a run stands, and over names and bytes of tensors.
fn checksum(position: &str, mut tensors: Vec<(&str, &[u8])>) -> String {
    tensors.sort_unstable_by_key(|(name, _)| *name);
    let mut crc32 = crc32fast::Hasher::new();
    crc32.update(position.as_bytes());
    for (name, bytes) in tensors {
        crc32.update(name.as_bytes());
        crc32.update(bytes);
    }
    format!("{:08x}", crc32.finalize())
}

/// Reads where a run stands, and whether every byte of that is as it was written. `network` and `optimizer` of
/// [`restore`] are made for the same setup, which is checked by whoever calls.
pub(super) fn load(path: &Path) -> Result<(Checkpoint, Position)> {
    let checkpoint = Checkpoint::open(path)?;
    let refused = |message: String| unreadable(path, message);
    let text = checkpoint.metadata().get(KEY);
    let text = text.ok_or_else(|| refused(format!("it has no metadata `{KEY}`; expected the state of a run")))?;
    let crc32 = checksum(text, checkpoint.tensors().map(|tensor| (tensor.name, tensor.stored)).collect());
    let found = checkpoint.metadata().get(CRC32).map_or("", String::as_str);
    if crc32 != found {
        return Err(refused(format!(
            "it is damaged: its CRC-32 is {crc32}, and it says `{found}`; begin the run anew"
        )));
    }
    let position: Position = serde_json::from_str(text).map_err(|e| refused(format!("metadata `{KEY}`: {e}")))?;
    if position.is_possible() {
        return Ok((checkpoint, position));
    }
    let Position { epoch, batches, .. } = position;
    Err(refused(format!("no run stands behind {epoch} epochs and {batches} batches of its setup")))
}

fn unreadable(path: &Path, message: String) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), problem: CheckpointProblem::Foreign { format: "state", message } }
}

/// Puts everything back.
pub(super) fn restore(
    checkpoint: &Checkpoint,
    network: &mut Network<f32>,
    optimizer: &mut Optimizer<f32>,
) -> Result<()> {
    optimizer.reserve(network);
    let mut failed = Ok(());
    visit(network, &mut optimizer.momenta, &mut |name, values| {
        let found =
            checkpoint.by_name(&name).filter(|view| view.dtype == Dtype::F32 && view.elements() == values.len());
        match found {
            Some(view) => {
                let numbers = view.stored.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
            }
            None if failed.is_ok() => {
                let message = format!("expected {} F32 values in tensor `{name}`", values.len());
                failed = Err(unreadable(checkpoint.path(), message));
            }
            None => {}
        }
    });
    failed
}
