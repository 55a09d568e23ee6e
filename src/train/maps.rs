//! What flows between layers: a batch of feature maps; and the two number types that layers are
//! written for. Not here: any layer.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{AddAssign, DivAssign, MulAssign, Neg, SubAssign};

use ndarray::{ArrayView2, ArrayViewMut2, LinalgScalar};

use crate::Isa;
use crate::ternarize::Unit;

/// `f32` trains; `f64` is for checking gradients by finite differences.
pub trait Real:
    LinalgScalar
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
    + PartialOrd
    + Default
    + Debug
    + Display
    + Send
    + Sync
{
    /// Rounded to this type.
    fn from_f64(x: f64) -> Self;
    /// As it is.
    fn to_f64(self) -> f64;
    /// √x
    fn sqrt(self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// Weights that share a scale, as the methods of [`crate::ternarize`] see them. At least one.
    fn unit(isa: Isa, weights: &[Self]) -> Unit<'_>;
}

macro_rules! real {
    ($type:ty, $unit:ident) => {
        impl Real for $type {
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.abs()
            }
            fn unit(isa: Isa, weights: &[Self]) -> Unit<'_> {
                Unit::$unit(isa, weights)
            }
        }
    };
}

real!(f32, from_f32);
real!(f64, from_f64);

/// A batch of feature maps: `[images][channels][height][width]`.
#[derive(Debug, Clone, Default)]
pub struct Maps<R> {
    /// In C order.
    pub values: Vec<R>,
    /// Images, channels, height, width.
    pub shape: [usize; 4],
}

impl<R: Real> Maps<R> {
    /// Makes room for so many images of `[channels, height, width]`; what is in it then is of no use.
    pub fn resize(&mut self, images: usize, [channels, height, width]: [usize; 3]) {
        self.shape = [images, channels, height, width];
        let len: usize = self.shape.iter().product();
        // No more than that: `resize` alone would double what is there.
        self.values.reserve_exact(len.saturating_sub(self.values.len()));
        self.values.resize(len, R::zero());
    }

    /// How many images.
    pub fn images(&self) -> usize {
        self.shape[0]
    }

    /// Channels, height, width.
    pub fn image(&self) -> [usize; 3] {
        [self.shape[1], self.shape[2], self.shape[3]]
    }

    /// Values per image.
    pub fn image_len(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Values per channel of an image.
    pub fn map_len(&self) -> usize {
        self.shape[2] * self.shape[3]
    }

    /// A row per image.
    pub fn rows(&self) -> ArrayView2<'_, R> {
        matrix(&self.values, [self.images(), self.image_len()])
    }

    /// A row per image.
    pub fn rows_mut(&mut self) -> ArrayViewMut2<'_, R> {
        let shape = [self.images(), self.image_len()];
        matrix_mut(&mut self.values, shape)
    }
}

/// A slice as a matrix.
pub(super) fn matrix<R>(values: &[R], shape: [usize; 2]) -> ArrayView2<'_, R> {
    ArrayView2::from_shape(shape, values).expect("as many values as the shape says")
}

/// A slice as a matrix.
pub(super) fn matrix_mut<R>(values: &mut [R], shape: [usize; 2]) -> ArrayViewMut2<'_, R> {
    ArrayViewMut2::from_shape(shape, values).expect("as many values as the shape says")
}

/// Into how many pieces work is cut that is added up afterwards: the same for any number of
/// threads, and so is the sum.
pub(super) const PARTS: usize = 8;
