//! One image as a data set has it: bytes or floats, planar or not, and how to f32. Not here: where
//! images come from, and what is done with them at random.

use std::borrow::Cow;
use std::fmt::Debug;
use std::path::PathBuf;

use half::f16;

use crate::Result;

/// Where images come from.
pub(super) trait Images: Debug + Send + Sync {
    /// Image `number`, which is one of them.
    fn get(&self, number: usize) -> Result<Image<'_>>;

    /// A CRC-32 of its bytes as they are stored.
    fn checksum(&self, number: usize) -> Result<u32> {
        Ok(crc32fast::hash(&self.get(number)?.bytes))
    }

    /// The file that it is in.
    fn path(&self, number: usize) -> PathBuf;
}

/// An image, none of whose dimensions is 0.
pub(super) struct Image<'a> {
    /// Channels × height × width values; or height × width × channels if `interleaved`.
    pub bytes: Cow<'a, [u8]>,
    pub element: Element,
    /// Channels, height and width.
    pub shape: [usize; 3],
    /// Whether the channels of a pixel stand together.
    #[cfg(feature = "train")]
    pub interleaved: bool,
}

/// What a value is; floats are little endian and not aligned to anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    U8,
    F16,
    F32,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

impl<'a> Image<'a> {
    /// Of bytes that stand as [`Image::bytes`] says, channel after channel.
    pub fn planar(bytes: &'a [u8], element: Element, shape: [usize; 3]) -> Self {
        Self {
            bytes: Cow::Borrowed(bytes),
            element,
            shape,
            #[cfg(feature = "train")]
            interleaved: false,
        }
    }

    /// Whether there may be values that are no numbers.
    pub fn may_be_infinite(&self) -> bool {
        self.element != Element::U8
    }

    /// Writes `[channels][height][width]` values of `shape`. An image of another size, as only folders
    /// have, is brought to it as usual for measuring accuracy.
    pub fn write(&self, shape: [usize; 3], out: &mut [f32]) {
        #[cfg(feature = "train")]
        if self.interleaved || self.shape != shape {
            return super::resample::centre(self, shape, out);
        }
        debug_assert_eq!(self.shape, shape);
        self.convert(0, 1, out);
    }

    /// Writes a row of a channel from column `x` on, as many values as fit; they are there.
    #[cfg(feature = "train")]
    pub fn row(&self, channel: usize, y: usize, x: usize, out: &mut [f32]) {
        let [channels, height, width] = self.shape;
        if self.interleaved {
            self.convert((y * width + x) * channels + channel, channels, out);
        } else {
            self.convert((channel * height + y) * width + x, 1, out);
        }
    }

    /// Every `step`th value from value `first` on: a byte scaled to 0..1, a float as it is.
    fn convert(&self, first: usize, step: usize, out: &mut [f32]) {
        let bytes = &self.bytes[first * self.element.bytes()..];
        match self.element {
            Element::U8 => out.iter_mut().zip(bytes.iter().step_by(step)).for_each(|(x, b)| *x = f32::from(*b) / 255.0),
            Element::F16 => {
                let halves = bytes.as_chunks().0.iter().step_by(step);
                out.iter_mut().zip(halves).for_each(|(x, b)| *x = f16::from_le_bytes(*b).to_f32());
            }
            Element::F32 => {
                let floats = bytes.as_chunks().0.iter().step_by(step);
                out.iter_mut().zip(floats).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
            }
        }
    }
}
