//! Recipes: everything about a training run but its network, data and methods; and those of the papers.
//! Not here: what a step does ([`super::optimizer`], [`super::loss`]).

use serde::{Deserialize, Serialize};

use super::loss::Loss;
use super::optimizer::Rule;
use super::schedule::Schedule;
use crate::data::{Augmentation, Crop};
use crate::limits::IMAGE_SIDE;
use crate::{Error, Result};

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    /// Times through the training images.
    pub epochs: u32,
    /// Images per step; what is left over at the end of an epoch is a smaller step.
    pub batch: usize,
    /// The learning rate at the start.
    pub rate: f64,
    /// And over time.
    pub schedule: Schedule,
    /// How gradients move weights.
    pub rule: Rule,
    /// Added to every gradient, times the weight.
    pub weight_decay: f64,
    /// What is made small.
    pub loss: Loss,
    /// How training images are changed at random.
    pub augment: Augment,
    /// How far weights go down the slope of their method's own penalty (`esa`), in each step this over the
    /// number of steps: at the first and at the last; geometric between.
    pub penalty: [f64; 2],
}

/// How training images are changed at random.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Not at all.
    #[default]
    None,
    /// Four pixels around, cut to size, mirrored.
    Cifar,
    /// A part of the image, resized and mirrored.
    Imagenet,
    /// So many pixels around, cut to size; and mirrored, or not.
    Pad {
        /// How many.
        pixels: usize,
        /// Whether every second image is mirrored.
        flip: bool,
    },
    /// A part of the image, resized, never mirrored.
    Crop,
    /// Mirrored alone.
    Flip,
}

impl Augment {
    /// As the data set knows it.
    pub fn augmentation(self) -> Option<Augmentation> {
        match self {
            Self::None => None,
            Self::Cifar => Some(Augmentation::CIFAR),
            Self::Imagenet => Some(Augmentation::IMAGENET),
            Self::Pad { pixels, flip } => Some(Augmentation { crop: Crop::Pad(pixels), flip }),
            Self::Crop => Some(Augmentation { flip: false, ..Augmentation::IMAGENET }),
            Self::Flip => Some(Augmentation { crop: Crop::None, flip: true }),
        }
    }

    /// `none`, `cifar`, `imagenet`, or what these are made of, with commas between: `pad:N` or `crop`, and `flip`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let refused = || {
            Error::Request(format!(
                "augmentation `{text}`; expected none, cifar (pad:4,flip), imagenet (crop,flip), or one of pad:N and crop, \
                 with or without flip, as pad:4"
            ))
        };
        let (mut pad, mut crop, mut flip) = (None, false, false);
        match text {
            "none" => return Ok(Self::None),
            "cifar" => return Ok(Self::Cifar),
            "imagenet" => return Ok(Self::Imagenet),
            _ => {}
        }
        for part in text.split(',') {
            match part.split_once(':') {
                None if part == "flip" && !flip => flip = true,
                None if part == "crop" && !crop => crop = true,
                Some(("pad", pixels)) if pad.is_none() => {
                    let pixels = pixels.parse().ok().filter(|pixels| (1..=IMAGE_SIDE as usize).contains(pixels));
                    pad = Some(pixels.ok_or_else(refused)?);
                }
                _ => return Err(refused()),
            }
        }
        match (pad, crop, flip) {
            (Some(4), false, true) => Ok(Self::Cifar),
            (Some(pixels), false, flip) => Ok(Self::Pad { pixels, flip }),
            (None, true, true) => Ok(Self::Imagenet),
            (None, true, false) => Ok(Self::Crop),
            (None, false, true) => Ok(Self::Flip),
            _ => Err(refused()),
        }
    }
}

/// Names of recipes, and what they are.
pub const RECIPES: [(&str, &str); 6] = [
    ("repair", "5 epochs from a float checkpoint, rate 0.01 down to 0 along a cosine"),
    ("twn-mnist", "TWN, table 1: 30 epochs, batch 50, rate 0.01 ÷ 10 at 15 and 25"),
    ("twn-cifar10", "TWN, table 1: 160 epochs, batch 100, rate 0.1 ÷ 10 at 80 and 120, pad, crop, flip"),
    ("twn-imagenet", "TWN, table 1: 60 epochs, batch 256, rate 0.1 ÷ 10 at 30, 40 and 50, random crops"),
    ("tga-imagenet", "TGA: Adam, 50 epochs, rate 1e-4 ÷ 5 at 30 and 40, weight decay 5e-6, random crops"),
    ("binaryconnect", "BinaryConnect: Adam, 100 epochs, rate 0.001 along a cosine, squared hinge loss"),
];

impl Recipe {
    /// The recipe of that name.
    ///
    /// # Errors
    /// An unknown name.
    pub fn named(name: &str) -> Result<Self> {
        let steps = |milestones: &[u32], divisor| Schedule::MultiStep { milestones: milestones.to_vec(), divisor };
        let repair = Self {
            epochs: 5,
            batch: 50,
            rate: 0.01,
            schedule: Schedule::Cosine,
            rule: Rule::Sgd { momentum: 0.9 },
            weight_decay: 1e-4,
            loss: Loss::CrossEntropy,
            augment: Augment::None,
            penalty: [1.0, 100.0],
        };
        Ok(match name {
            "repair" => repair,
            "twn-mnist" => Self { epochs: 30, schedule: steps(&[15, 25], 10.0), ..repair },
            "twn-cifar10" => Self {
                epochs: 160,
                batch: 100,
                rate: 0.1,
                schedule: steps(&[80, 120], 10.0),
                augment: Augment::Cifar,
                ..repair
            },
            "twn-imagenet" => Self {
                epochs: 60,
                batch: 256,
                rate: 0.1,
                schedule: steps(&[30, 40, 50], 10.0),
                augment: Augment::Imagenet,
                ..repair
            },
            "tga-imagenet" => Self {
                epochs: 50,
                batch: 256,
                rate: 1e-4,
                schedule: steps(&[30, 40], 5.0),
                rule: Rule::Adam,
                weight_decay: 5e-6,
                augment: Augment::Imagenet,
                ..repair
            },
            "binaryconnect" => Self {
                epochs: 100,
                batch: 100,
                rate: 0.001,
                rule: Rule::Adam,
                weight_decay: 0.0,
                loss: Loss::SquaredHinge,
                ..repair
            },
            _ => {
                let names = RECIPES.map(|(name, _)| name).join(", ");
                return Err(Error::Request(format!("unknown recipe `{name}`; there are {names}")));
            }
        })
    }

    /// The method for which the recipe of that name was made, where it was made for one.
    pub fn method(name: &str) -> Option<&'static str> {
        match name {
            "twn-mnist" | "twn-cifar10" | "twn-imagenet" => Some("twn"),
            "tga-imagenet" => Some("tga"),
            "binaryconnect" => Some("binaryconnect"),
            _ => None,
        }
    }

    /// With so many epochs; milestones keep their share of the run.
    pub fn with_epochs(mut self, epochs: u32) -> Self {
        if let Schedule::MultiStep { milestones, .. } = &mut self.schedule {
            let (new, old) = (f64::from(epochs), f64::from(self.epochs.max(1)));
            milestones.iter_mut().for_each(|epoch| *epoch = (f64::from(*epoch) * new / old).round() as u32);
        }
        self.epochs = epochs;
        self
    }

    /// # Errors
    /// A number that makes no sense.
    pub fn check(&self) -> Result<()> {
        let refused = |what: &str, expected: &str| Err(Error::Request(format!("{what}; expected {expected}")));
        let Self { epochs, batch, rate, weight_decay, penalty, .. } = *self;
        if epochs == 0 || batch == 0 {
            return refused(&format!("{epochs} epochs with batches of {batch}"), "at least 1 of each");
        }
        if !(rate.is_finite() && rate >= 0.0 && weight_decay.is_finite() && weight_decay >= 0.0) {
            return refused(&format!("rate {rate}, weight decay {weight_decay}"), "numbers from 0 on");
        }
        if let Rule::Sgd { momentum } = self.rule
            && !(0.0..1.0).contains(&momentum)
        {
            return refused(&format!("momentum {momentum}"), "a number from 0 to less than 1");
        }
        if !penalty.iter().all(|x| x.is_finite() && *x > 0.0) {
            return refused(&format!("penalty from {} to {}", penalty[0], penalty[1]), "numbers over 0");
        }
        Ok(())
    }

    /// [`Recipe::penalty`] after `done` (0 to 1) of the run.
    pub(super) fn penalty(&self, done: f64) -> f64 {
        let [from, to] = self.penalty;
        from * (to / from).powf(done)
    }
}
