//! What is taken off every channel and what it is divided by. Not here: where the numbers are measured.

use std::borrow::Cow;

use crate::{Error, Result};

/// A mean and a standard deviation per channel, of pixels in 0..1: x becomes (x − mean) / std.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalization {
    /// One per channel.
    pub mean: Cow<'static, [f32]>,
    /// One per channel, none of them 0.
    pub std: Cow<'static, [f32]>,
}

impl Normalization {
    /// Of ImageNet's training images, as torchvision's networks want it.
    pub const IMAGENET: Self = Self::of(&[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225]);
    /// Of CIFAR-10's training images.
    pub const CIFAR10: Self = Self::of(&[0.4914, 0.4822, 0.4465], &[0.2470, 0.2435, 0.2616]);
    /// Of CIFAR-100's training images.
    pub const CIFAR100: Self = Self::of(&[0.5071, 0.4865, 0.4409], &[0.2673, 0.2564, 0.2762]);

    const fn of(mean: &'static [f32], std: &'static [f32]) -> Self {
        Self { mean: Cow::Borrowed(mean), std: Cow::Borrowed(std) }
    }

    /// Whether it is one for images of so many channels.
    pub(super) fn check(&self, channels: usize) -> Result<()> {
        let (mean, std) = (self.mean.len(), self.std.len());
        if (mean, std) != (channels, channels) {
            return Err(Error::Request(format!(
                "a normalization of {mean} means and {std} standard deviations, \
                 expected {channels} of each, as many as the images have channels"
            )));
        }
        // A divisor may be so small that its reciprocal is infinite.
        let good = self.mean.iter().all(|x| x.is_finite()) && self.std.iter().all(|x| *x >= 1e-6 && x.is_finite());
        if !good {
            return Err(Error::Request(format!(
                "a normalization by means {:?} and standard deviations {:?}, expected finite ones, of at least 1e-6",
                self.mean, self.std
            )));
        }
        Ok(())
    }

    /// Of an image, `[channels][height × width]`.
    pub(super) fn apply(&self, image: &mut [f32], channels: usize) {
        let planes = image.chunks_exact_mut((image.len() / channels).max(1));
        for ((plane, mean), std) in planes.zip(&*self.mean).zip(&*self.std) {
            plane.iter_mut().for_each(|x| *x = (*x - mean) / std);
        }
    }
}
