//! Losses: how wrong a batch's outputs are, and which way is better. Not here: penalties on weights.

use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};

use super::maps::Real;

/// A loss over logits, averaged over the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// −log of the label's softmax.
    #[default]
    CrossEntropy,
    /// Σ max(0, 1 − y·z) over the classes, with y = 1 for the label and −1 for the others.
    Hinge,
    /// The same with squares, as BinaryConnect has it.
    SquaredHinge,
}

impl Loss {
    /// The loss of `logits`, images × classes, and its derivatives by them. Labels are under the
    /// number of classes. NaN when a logit is.
    pub fn of<R: Real>(self, logits: ArrayView2<'_, R>, labels: &[usize], mut gradient: ArrayViewMut2<'_, R>) -> f64 {
        let images = labels.len() as f64;
        let mut total = 0.0;
        for ((row, &label), mut to) in logits.rows().into_iter().zip(labels).zip(gradient.rows_mut()) {
            match self {
                Self::CrossEntropy => {
                    let max = row.iter().fold(f64::NEG_INFINITY, |max, z| max.max(z.to_f64()));
                    let sum: f64 = row.iter().map(|z| (z.to_f64() - max).exp()).sum();
                    total += sum.ln() + max - row[label].to_f64();
                    for (class, (to, z)) in to.iter_mut().zip(row).enumerate() {
                        let hit = if class == label { 1.0 } else { 0.0 };
                        *to = R::from_f64(((z.to_f64() - max).exp() / sum - hit) / images);
                    }
                }
                Self::Hinge | Self::SquaredHinge => {
                    for (class, (to, z)) in to.iter_mut().zip(row).enumerate() {
                        let y = if class == label { 1.0 } else { -1.0 };
                        let slack = 1.0 - y * z.to_f64();
                        // Not max(0, …), which would turn NaN into 0.
                        let slack = if slack < 0.0 { 0.0 } else { slack };
                        let (loss, slope) = match self {
                            Self::SquaredHinge => (slack * slack, 2.0 * slack),
                            _ => (slack, if slack > 0.0 { 1.0 } else { 0.0 }),
                        };
                        total += loss;
                        *to = R::from_f64(-y * slope / images);
                    }
                }
            }
        }
        total / images
    }
}
