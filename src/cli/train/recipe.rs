//! How `twn-pack train` is told to train: a recipe by name, and what is to be another way. Not here: what each layer becomes.

use clap::{Args, ValueEnum};
use twn_pack::train::{Augment, Loss, Recipe, Rule, Schedule};
use twn_pack::{Error, Result};

#[derive(Debug, Args)]
#[command(next_help_heading = "How to train")]
pub(super) struct RecipeArgs {
    /// repair, twn-mnist, twn-cifar10, twn-imagenet, tga-imagenet or binaryconnect: what the options
    /// below start from [default: repair with --init, else none and --epochs is needed]
    #[arg(long, value_name = "NAME")]
    pub recipe: Option<String>,
    /// Times through the training images; milestones keep their share
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// Images per step
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// The learning rate at the start
    #[arg(long, value_name = "RATE")]
    rate: Option<f64>,
    /// The rate over time: constant, cosine, or epochs and a divisor, as 15,25/10
    #[arg(long, value_name = "HOW", value_parser = schedule)]
    schedule: Option<Schedule>,
    /// How gradients move weights
    #[arg(long)]
    optimizer: Option<OptimizerName>,
    /// Of sgd
    #[arg(long, value_name = "M")]
    momentum: Option<f64>,
    /// Added to every gradient, times the weight
    #[arg(long, value_name = "D")]
    weight_decay: Option<f64>,
    /// What is made small
    #[arg(long)]
    loss: Option<LossName>,
    /// How training images are changed at random: none, cifar, imagenet, or pad:N or crop, with or without
    /// flip, as pad:4 or crop,flip
    #[arg(long, value_name = "HOW", value_parser = Augment::parse)]
    augment: Option<Augment>,
    /// How hard esa's penalty pulls weights to −1, 0 and 1, at the first step and at the last: in each step
    /// this, over the number of steps, down its slope, whatever the rate [default: 1 100]
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    pub penalty: Option<Vec<f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerName {
    Sgd,
    Adam,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LossName {
    CrossEntropy,
    Hinge,
    SquaredHinge,
}

fn schedule(text: &str) -> std::result::Result<Schedule, String> {
    match text {
        "constant" => Ok(Schedule::Constant),
        "cosine" => Ok(Schedule::Cosine),
        _ => {
            let expected = "expected constant, cosine, or epochs and a divisor, as 15,25/10";
            let (epochs, divisor) = text.split_once('/').ok_or(expected)?;
            let milestones: Option<Vec<u32>> = epochs.split(',').map(|epoch| epoch.parse().ok()).collect();
            let divisor = divisor.parse().ok().filter(|divisor: &f64| divisor.is_finite() && *divisor > 0.0);
            Ok(Schedule::MultiStep { milestones: milestones.ok_or(expected)?, divisor: divisor.ok_or(expected)? })
        }
    }
}

impl RecipeArgs {
    pub fn recipe(&self, from_scratch: bool) -> Result<Recipe> {
        let mut recipe = match &self.recipe {
            Some(name) => Recipe::named(name)?,
            None if from_scratch && self.epochs.is_none() => {
                let message = "from random weights, say how to train: --recipe NAME, or at least --epochs";
                return Err(Error::Request(message.to_owned()));
            }
            None => Recipe::named("repair")?,
        };
        if let Some(epochs) = self.epochs {
            recipe = recipe.with_epochs(epochs);
        }
        let momentum = match (self.optimizer, recipe.rule) {
            (Some(OptimizerName::Adam), _) | (None, Rule::Adam) => None,
            (_, Rule::Sgd { momentum }) => Some(self.momentum.unwrap_or(momentum)),
            (Some(OptimizerName::Sgd), Rule::Adam) => Some(self.momentum.unwrap_or(0.9)),
        };
        if momentum.is_none() && self.momentum.is_some() {
            return Err(Error::Request("--momentum is for sgd; adam has none".to_owned()));
        }
        recipe.rule = momentum.map_or(Rule::Adam, |momentum| Rule::Sgd { momentum });
        recipe.batch = self.batch.unwrap_or(recipe.batch);
        recipe.rate = self.rate.unwrap_or(recipe.rate);
        recipe.weight_decay = self.weight_decay.unwrap_or(recipe.weight_decay);
        recipe.schedule = self.schedule.clone().unwrap_or(recipe.schedule);
        recipe.loss = match self.loss {
            None => recipe.loss,
            Some(LossName::CrossEntropy) => Loss::CrossEntropy,
            Some(LossName::Hinge) => Loss::Hinge,
            Some(LossName::SquaredHinge) => Loss::SquaredHinge,
        };
        recipe.augment = self.augment.unwrap_or(recipe.augment);
        if let Some([from, to]) = self.penalty.as_deref() {
            recipe.penalty = [*from, *to];
        }
        recipe.check()?;
        Ok(recipe)
    }
}

/// What a recipe does with the rate that nobody may have meant.
pub(super) fn warnings(recipe: &Recipe) -> Vec<String> {
    let listed = |milestones: Vec<u32>| milestones.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let beyond = listed(recipe.schedule.beyond(recipe.epochs));
    let together = listed(recipe.schedule.together());
    let of_beyond = format!("the rate is not divided after epoch {beyond}: the run is over after {}", recipe.epochs);
    let of_together = format!(
        "the rate is divided more than once after epoch {together}: so few epochs have no room for the recipe's \
         milestones; --schedule sets others"
    );
    let all = [(beyond, of_beyond), (together, of_together)];
    all.into_iter().filter(|(milestones, _)| !milestones.is_empty()).map(|(_, warning)| warning).collect()
}
