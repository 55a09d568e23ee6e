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
        Self { bytes: Cow::Borrowed(bytes), element, shape, interleaved: false }
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
        let value = |bytes: &[u8]| self.value(bytes);
        out.iter_mut().zip(self.bytes.chunks_exact(self.element.bytes())).for_each(|(x, bytes)| *x = value(bytes));
    }

    /// A value: a byte scaled to 0..1, a float as it is.
    fn value(&self, bytes: &[u8]) -> f32 {
        match (self.element, bytes) {
            (Element::U8, &[byte]) => f32::from(byte) / 255.0,
            (Element::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Element::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => 0.0,
        }
    }

    /// The value of a channel in row `y` and column `x`, which are there.
    #[cfg(feature = "train")]
    pub fn at(&self, channel: usize, y: usize, x: usize) -> f32 {
        let [channels, height, width] = self.shape;
        let i =
            if self.interleaved { (y * width + x) * channels + channel } else { (channel * height + y) * width + x };
        let size = self.element.bytes();
        self.value(&self.bytes[i * size..(i + 1) * size])
    }
}
