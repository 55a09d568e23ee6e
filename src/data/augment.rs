//! Images changed at random, so that a network sees another one each time. Not here: reading them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::image::Image;
use super::resample::{self, Region};
use crate::limits::IMAGE_SIDE;
use crate::{Error, Result};

/// How images are changed at random.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augmentation {
    /// Which part of an image is taken.
    pub crop: Crop,
    /// Whether every second image is mirrored, left to right.
    pub flip: bool,
}

/// Which part of an image is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Crop {
    /// All of it; of images that come in any size, what is taken for measuring accuracy.
    None,
    /// That, with so many black pixels around it, cut to its old size somewhere.
    Pad(usize),
    /// A rectangle, resized. Ten are tried; if none fits, the middle is taken.
    Resized {
        /// The least and the largest part of the image's area.
        scale: [f32; 2],
        /// The least and the largest ratio of width to height.
        ratio: [f32; 2],
    },
}

impl Augmentation {
    /// What is usual for CIFAR: four pixels around, and mirrored.
    pub const CIFAR: Self = Self { crop: Crop::Pad(4), flip: true };
    /// What is usual for ImageNet: 8 % to all of the image, of 3:4 to 4:3, and mirrored.
    pub const IMAGENET: Self =
        Self { crop: Crop::Resized { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }, flip: true };

    /// Whether its numbers make sense.
    pub(super) fn check(&self) -> Result<()> {
        match self.crop {
            Crop::Pad(pad) if pad > IMAGE_SIDE as usize => {
                Err(Error::Request(format!("{pad} pixels around an image, expected at most {IMAGE_SIDE}")))
            }
            Crop::Resized { scale, ratio } => {
                let ascend = |[low, high]: [f32; 2], least: f32, most: f32| least <= low && low <= high && high <= most;
                if ascend(scale, 1e-6, 1.0) && ascend(ratio, 1e-3, 1e3) {
                    return Ok(());
                }
                Err(Error::Request(format!(
                    "a crop of scale {scale:?} and ratio {ratio:?}, expected a least and a largest value, \
                     of the scale from 1e-6 to 1 and of the ratio from 1e-3 to 1e3"
                )))
            }
            Crop::None | Crop::Pad(_) => Ok(()),
        }
    }

    /// Writes `[channels][height][width]` values of `shape`, with the random numbers of the seed and
    /// the image's number.
    pub(super) fn apply(&self, image: &Image<'_>, shape: [usize; 3], (seed, number): (u64, u64), out: &mut [f32]) {
        let mut random = Random::new(seed, number);
        match self.crop {
            Crop::None => image.write(shape, out),
            Crop::Pad(pad) => {
                image.write(shape, out);
                let [dy, dx] = [random.below(2 * pad as u64 + 1), random.below(2 * pad as u64 + 1)];
                shift(shape, pad, [dy as usize, dx as usize], out);
            }
            Crop::Resized { scale, ratio } => {
                let region = resized(image.shape, scale, ratio, &mut random);
                resample::resample(image, region, shape, out);
            }
        }
        if self.flip && random.below(2) == 1 {
            out.chunks_exact_mut(shape[2]).for_each(<[f32]>::reverse);
        }
    }
}

/// Numbers that depend on a seed and a stream only, on every machine.
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(stream);
        Self(generator)
    }

    /// One of 0..n; n is at least 1. Some are more likely by n / 2⁶⁴.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// In low..high.
    fn between(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        low + (high - low) * unit
    }
}

/// What is seen of an image, `[channels][height][width]`, with `pad` zeros around it, from row `dy` and
/// column `dx` on.
fn shift([_, height, width]: [usize; 3], pad: usize, [dy, dx]: [usize; 2], image: &mut [f32]) {
    let mut plane = Vec::new();
    // Row y of the result is row y + dy − pad of the image, and so for columns.
    let columns = pad.saturating_sub(dx).min(width)..(width + pad).saturating_sub(dx).min(width);
    for out in image.chunks_exact_mut(height * width) {
        plane.clear();
        plane.extend_from_slice(out);
        for (y, row) in out.chunks_exact_mut(width).enumerate() {
            row.fill(0.0);
            let from = (y + dy).checked_sub(pad).filter(|from| *from < height);
            if let Some(from) = from.filter(|_| !columns.is_empty()) {
                let first = from * width + columns.start + dx - pad;
                row[columns.clone()].copy_from_slice(&plane[first..first + columns.len()]);
            }
        }
    }
}

/// A rectangle of an image as torchvision's `RandomResizedCrop` takes it.
fn resized([_, height, width]: [usize; 3], scale: [f32; 2], ratio: [f32; 2], random: &mut Random) -> Region {
    let (h, w) = (height as f64, width as f64);
    let ratio = ratio.map(f64::from);
    for _ in 0..10 {
        let area = h * w * random.between(scale[0].into(), scale[1].into());
        let ratio = random.between(ratio[0].ln(), ratio[1].ln()).exp();
        let (cut_w, cut_h) = ((area * ratio).sqrt().round(), (area / ratio).sqrt().round());
        if (1.0..=w).contains(&cut_w) && (1.0..=h).contains(&cut_h) {
            let y = random.below((h - cut_h) as u64 + 1) as f64;
            let x = random.below((w - cut_w) as u64 + 1) as f64;
            return Region { y, x, height: cut_h, width: cut_w };
        }
    }
    let (cut_w, cut_h) = if w / h < ratio[0] {
        (w, (w / ratio[0]).round())
    } else if w / h > ratio[1] {
        ((h * ratio[1]).round(), h)
    } else {
        (w, h)
    };
    let (cut_w, cut_h) = (cut_w.clamp(1.0, w), cut_h.clamp(1.0, h));
    Region { y: ((h - cut_h) / 2.0).floor(), x: ((w - cut_w) / 2.0).floor(), height: cut_h, width: cut_w }
}
