//! The loop: epochs of steps, accuracy after each, and what is kept so that nothing is lost. Not here:
//! what a step is ([`super::network`]), or how results are shown.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ndarray::ArrayViewMut4;
use serde::{Deserialize, Serialize};

use super::directory::{Directory, last_metrics};
use super::layers::Pass;
use super::maps::Maps;
use super::methods::{self, Request};
use super::network::{Network, Step, correct};
use super::optimizer::Optimizer;
use super::random;
use super::recipe::Recipe;
use super::state::{self, Position};
use crate::data::DataSet;
use crate::net::{Description, Source};
use crate::{Error, Result};

/// Everything that the result depends on besides images and first weights: a run goes on only with the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The network's name.
    pub network: String,
    /// A checksum of its layers ([`Description::checksum`]).
    pub layers: u32,
    /// Checksums of the images and labels that are used ([`DataSet::checksum`]): training, test.
    pub data: [u32; 2],
    /// By the name of a layer's weights: how they become ternary. Layers that are missing do not.
    pub methods: BTreeMap<String, LayerMethod>,
    /// How to train.
    pub recipe: Recipe,
    /// What first weights, order and augmentation follow from.
    pub seed: u64,
    /// Only so many of the training images, from the first.
    pub train_images: usize,
    /// Only so many of the test images, from the first.
    pub test_images: usize,
}

/// How one layer's weights become ternary: a name of [`METHODS`](super::METHODS), and what is asked of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerMethod {
    /// Its name.
    pub name: String,
    /// What is asked of it.
    #[serde(flatten)]
    pub request: Request,
}

/// What else a run needs.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Where the weights come from; `None`: random ones.
    pub init: Option<&'a Source>,
    /// The directory of the run: its state and its metrics. It is made if it is not there.
    pub directory: &'a Path,
    /// Go on from the state in that directory.
    pub resume: bool,
    /// With another recipe from there on, of the same batch size and optimizer.
    pub new_recipe: bool,
    /// With images or labels that changed since.
    pub new_data: bool,
    /// Is told of every step.
    pub progress: Option<&'a dyn Fn(&Progress)>,
    /// Is told of every epoch.
    pub epoch: Option<&'a dyn Fn(&Metrics)>,
    /// Set it to end the run after the present step, with its state saved.
    pub cancel: Option<&'a AtomicBool>,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Images that went through, of all epochs.
    pub done: u64,
    /// How many there will be.
    pub total: u64,
    /// The present epoch, counted from 1.
    pub epoch: u32,
    /// Mean loss of the epoch so far.
    pub loss: f64,
    /// Share of its images that were right.
    pub accuracy: f64,
    /// Training alone, in the epoch so far.
    pub images_per_second: f64,
}

/// One epoch: a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Counted from 1; 0 is before the first.
    pub epoch: u32,
    /// The learning rate at its start.
    pub rate: f64,
    /// Mean over the training images, as they went through.
    pub loss: f64,
    /// Share of the training images that were right as they went through.
    pub train_accuracy: f64,
    /// Share of the test images that are right, with running statistics and ternary weights.
    pub test_accuracy: f64,
    /// The share of ternary weights that are zero.
    pub sparsity: Option<f64>,
    /// The share of the weights that will be rounded (`esa`) that are within 0.05 of where they will be.
    pub settled: Option<f64>,
    /// Training alone.
    pub images_per_second: f64,
    /// Training alone.
    pub seconds: f64,
}

/// What an epoch has found so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sums {
    loss: f64,
    correct: usize,
    images: usize,
    seconds: f64,
}

/// What came out.
pub struct Outcome {
    /// The trained network.
    pub network: Network<f32>,
    /// The last epoch's.
    pub metrics: Metrics,
    /// Steps in all.
    pub steps: u64,
}

/// Trains `description`'s network on `train`, with the accuracy on `test` after every epoch. The same setup,
/// images and first weights give the same bytes for any number of threads, and whether the run was
/// interrupted or not.
///
/// # Errors
/// A setup that makes no sense, images or a checkpoint that do not fit, a run that is there already or
/// is another one, a loss that is not finite, files that cannot be written, or cancellation.
pub fn train(
    description: &Description,
    (train, test): (&DataSet, &DataSet),
    setup: &Setup,
    options: &Options<'_>,
) -> Result<Outcome> {
    setup.recipe.check()?;
    description.check_distinct("training")?;
    check_names(description)?;
    for (data, images) in [(train, setup.train_images), (test, setup.test_images)] {
        data.check_shape(description.input())?;
        if images == 0 || images > data.len() {
            return Err(Error::Request(format!("{images} images, expected 1 to {}", data.len())));
        }
        data.check_labels(images, description.classes())?;
    }
    let directory = Directory(options.directory);
    let mut network = Network::new(description, setup.seed, &mut |name| match setup.methods.get(name) {
        Some(LayerMethod { name, request }) => methods::method(name, request),
        None => Ok(None),
    })?;
    if let Some(source) = options.init {
        network.load(source)?;
    }
    network.begin();
    let recipe = &setup.recipe;
    let (mut optimizer, mut position);
    let _lock;
    if options.resume {
        let path = directory.state();
        if !path.exists() {
            let path = path.display();
            return Err(Error::Request(format!(
                "{path}: there is no run to go on with; begin it without --resume, or name its directory with --run"
            )));
        }
        _lock = directory.lock()?;
        let (checkpoint, mut found) = state::load(&path)?;
        let before = found.setup.clone();
        if options.new_recipe {
            found.change_recipe(recipe).map_err(|what| Error::Request(format!("{}: {what}", path.display())))?;
        }
        if options.new_data {
            found.change_data(setup);
        }
        if found.setup != *setup {
            return Err(Error::Request(differences(&path, &found.setup, setup)?));
        }
        optimizer = Optimizer::new(recipe.rule, recipe.weight_decay, found.steps());
        state::restore(&checkpoint, &mut network, &mut optimizer)?;
        network.counted.clone_from(&found.counted);
        directory.cut(found.epoch, &before)?;
        position = found;
        if before != *setup {
            directory.append(setup)?;
            state::save(&directory.state(), &position, &mut network, &mut optimizer)?;
        }
    } else {
        _lock = directory.lock()?;
        directory.create(setup)?;
        optimizer = Optimizer::new(recipe.rule, recipe.weight_decay, 0);
        optimizer.reserve(&mut network);
        let (setup, counted) = (setup.clone(), network.counted.clone());
        position = Position { setup, epoch: 0, batches: 0, sums: Sums::default(), counted };
        state::save(&directory.state(), &position, &mut network, &mut optimizer)?;
    }

    let saved = (position.epoch, position.batches);
    let (x, labels) = (Maps::default(), Vec::new());
    let mut run = Run { train, test, setup, options, x, labels, saved, diverged: false };
    let mut metrics = None;
    while position.epoch < recipe.epochs {
        let found = run.epoch(&mut network, &mut optimizer, &mut position);
        let found = match found.and_then(|()| run.metrics(&mut network, &position)) {
            // Cancelled, or an image that cannot be read: what was learned so far is not lost.
            Err(error) if !run.diverged => {
                if let Some(place) = network.broken_tensor() {
                    return Err(run.diverge(&position, Some(place)));
                }
                state::save(&directory.state(), &position, &mut network, &mut optimizer)?;
                return Err(error);
            }
            found => found?,
        };
        (position.epoch, position.batches, position.sums) = (position.epoch + 1, 0, Sums::default());
        directory.append(&found)?;
        state::save(&directory.state(), &position, &mut network, &mut optimizer)?;
        run.saved = (position.epoch, position.batches);
        if let Some(epoch) = options.epoch {
            epoch(&found);
        }
        metrics = Some(found);
    }
    let metrics = match metrics {
        Some(metrics) => metrics,
        // The run was over before.
        None => match last_metrics(options.directory)?.filter(|metrics| metrics.epoch == position.epoch) {
            Some(metrics) => metrics,
            None => Metrics { epoch: position.epoch, ..run.metrics(&mut network, &position)? },
        },
    };
    Ok(Outcome { network, metrics, steps: position.steps() })
}

/// Whether what is written can have these names: beside them stand the file's metadata, and what PyTorch counts.
fn check_names(description: &Description) -> Result<()> {
    let tensors = description.tensors();
    let counted = |name: &str| {
        let layer = name.strip_suffix("num_batches_tracked")?;
        tensors.iter().find(|(other, _)| other.strip_suffix("running_var") == Some(layer))
    };
    match tensors.iter().find(|(name, _)| *name == "__metadata__" || counted(name).is_some()) {
        None => Ok(()),
        Some((name, _)) => Err(Error::Request(format!(
            "{}: a tensor `{name}` cannot be written: that name is taken, by the file's metadata or by the batches that \
             PyTorch counts; expected another one",
            description.name()
        ))),
    }
}

/// What every epoch needs.
struct Run<'a> {
    train: &'a DataSet,
    test: &'a DataSet,
    setup: &'a Setup,
    options: &'a Options<'a>,
    x: Maps<f32>,
    labels: Vec<usize>,
    /// Epochs, and batches of the next, behind which the state in the directory stands.
    saved: (u32, usize),
    /// Whether the network holds something that is not a finite number: no state to go on from.
    diverged: bool,
}

impl Run<'_> {
    /// The rest of an epoch.
    fn epoch(
        &mut self,
        network: &mut Network<f32>,
        optimizer: &mut Optimizer<f32>,
        position: &mut Position,
    ) -> Result<()> {
        let Setup { recipe, seed, train_images, .. } = self.setup;
        let order = random::order(*train_images, *seed, position.epoch);
        let augmentation = recipe.augment.augmentation();
        let seed = random::augmentation(*seed, position.epoch);
        let batches = position.batches_per_epoch() as f64;
        for indices in order.chunks(recipe.batch).skip(position.batches) {
            self.check()?;
            let start = Instant::now();
            self.read(self.train, indices, augmentation.as_ref().map(|augmentation| (augmentation, seed)))?;
            let done = f64::from(position.epoch) + position.batches as f64 / batches;
            let epochs = f64::from(recipe.epochs);
            let step = network.learn(&self.x, &self.labels, recipe.loss);
            position.batches += 1;
            if !step.loss.is_finite() || network.has_broken_statistics() {
                let place = network.broken();
                return Err(self.diverge(position, place));
            }
            let rate = recipe.schedule.rate(recipe.rate, done, recipe.epochs);
            network.step(optimizer, rate, recipe.penalty(done / epochs) / (epochs * batches));
            position.sums.add(&step, indices.len(), start.elapsed().as_secs_f64());
            if let Some(progress) = self.options.progress {
                let images = position.sums.images as u64;
                progress(&Progress {
                    done: u64::from(position.epoch) * *train_images as u64 + images,
                    total: u64::from(recipe.epochs) * *train_images as u64,
                    epoch: position.epoch + 1,
                    loss: position.sums.loss / images as f64,
                    accuracy: position.sums.correct as f64 / images as f64,
                    images_per_second: position.sums.images_per_second(),
                });
            }
        }
        // The last step has no loss behind it that would tell.
        network.broken().map_or(Ok(()), |place| Err(self.diverge(position, Some(place))))
    }

    fn diverge(&mut self, position: &Position, place: Option<String>) -> Error {
        self.diverged = true;
        let place = place.map_or("the loss".to_owned(), |place| format!("the loss, or {place},"));
        let saved = match self.saved {
            (0, 0) => "as it began".to_owned(),
            (epoch, 0) => format!("that after epoch {epoch}"),
            (epoch, batches) => format!("that after batch {batches} of epoch {}", epoch + 1),
        };
        Error::Request(format!(
            "epoch {}, batch {}: {place} is not a finite number any more; the run's state is {saved}. Go on from it with a \
             lower --rate (--resume --new-recipe), or look for values that are far from 0 to 1 in the images",
            position.epoch + 1,
            position.batches
        ))
    }

    fn check(&self) -> Result<()> {
        let cancelled = self.options.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed));
        if cancelled { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn metrics(&mut self, network: &mut Network<f32>, position: &Position) -> Result<Metrics> {
        let Setup { recipe, test_images, .. } = self.setup;
        network.ternarize(Pass::Evaluate);
        let mut right = 0;
        let indices: Vec<usize> = (0..*test_images).collect();
        for indices in indices.chunks(recipe.batch) {
            self.check()?;
            self.read(self.test, indices, None)?;
            right += correct(network.forward(&self.x, Pass::Evaluate), &self.labels);
        }
        let Sums { loss, correct, images, seconds } = position.sums;
        let images_per_second = position.sums.images_per_second();
        let per_image = |sum: f64| if images > 0 { sum / images as f64 } else { 0.0 };
        Ok(Metrics {
            epoch: position.epoch + 1,
            rate: recipe.schedule.rate(recipe.rate, position.epoch.into(), recipe.epochs),
            loss: per_image(loss),
            train_accuracy: per_image(correct as f64),
            test_accuracy: right as f64 / *test_images as f64,
            sparsity: network.sparsity(),
            settled: network.settled(),
            images_per_second,
            seconds,
        })
    }

    fn read(
        &mut self,
        data: &DataSet,
        indices: &[usize],
        augmentation: Option<(&crate::data::Augmentation, u64)>,
    ) -> Result<()> {
        self.x.resize(indices.len(), data.shape());
        let batch = ArrayViewMut4::from_shape(self.x.shape, &mut self.x.values);
        let batch = batch.map_err(|e| Error::Request(format!("a batch of images: {e}")))?;
        data.read(indices, augmentation, batch)?;
        self.labels.clear();
        self.labels.extend(indices.iter().map(|&i| data.labels()[i] as usize));
        Ok(())
    }
}

impl Sums {
    /// Whether an epoch over so many images can have found this.
    pub fn are_possible(&self, images: usize) -> bool {
        let finite = [self.loss, self.seconds].iter().all(|x| x.is_finite());
        finite && self.correct <= self.images && self.images <= images
    }

    /// As if no more than so many images had gone through.
    pub fn limit(&mut self, images: usize) {
        self.loss *= self.images.min(images) as f64 / self.images.max(1) as f64;
        self.images = self.images.min(images);
        self.correct = self.correct.min(images);
    }

    fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    fn add(&mut self, step: &Step, images: usize, seconds: f64) {
        self.loss += step.loss * images as f64;
        self.correct += step.correct;
        self.images += images;
        self.seconds += seconds;
    }
}

/// Which parts of two setups differ.
fn differences(path: &Path, found: &Setup, asked: &Setup) -> Result<String> {
    let json = |setup: &Setup| serde_json::to_value(setup).map_err(|e| Error::Request(e.to_string()));
    let mut lines = vec![format!("{}: that run is another one, and cannot go on as this:", path.display())];
    for (i, images) in ["training", "test"].into_iter().enumerate() {
        if found.data[i] != asked.data[i] {
            lines.push(format!(
                "data: the {images} images, or their labels or normalization, are not those that the run began with (if \
                 they are meant to be others, --new-data goes on with them)"
            ));
        }
    }
    let (found, asked) = (json(&Setup { data: asked.data, ..found.clone() })?, json(asked)?);
    compare(String::new(), &found, &asked, &mut lines);
    Ok(lines.join("\n  "))
}

fn compare(at: String, found: &serde_json::Value, asked: &serde_json::Value, lines: &mut Vec<String>) {
    use serde_json::Value;
    match (found, asked) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let none = Value::Null;
                let (a, b) = (a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                compare(at, a, b, lines);
            }
        }
        _ if found != asked => lines.push(format!("{at}: found {found}, asked for {asked}")),
        _ => {}
    }
}
