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
    /// tanh x; for `f32` to 5·10⁻⁷.
    fn tanh(self) -> Self;
    /// Weights that share a scale, as the methods of [`crate::ternarize`] see them. At least one.
    fn unit(isa: Isa, weights: &[Self]) -> Unit<'_>;
}

macro_rules! real {
    ($type:ty, $unit:ident, $tanh:expr) => {
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
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            fn unit(isa: Isa, weights: &[Self]) -> Unit<'_> {
                Unit::$unit(isa, weights)
            }
        }
    };
}

real!(f32, from_f32, tanh);
real!(f64, from_f64, f64::tanh);

/// A quotient of polynomials, as Eigen and XLA have it: loops over it become vector instructions, and it
/// is the same everywhere.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    const ODD: [f32; 7] = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297_3e-8,
        1.485_722_3e-5,
        6.372_619_3e-4,
        4.893_524_6e-3,
    ];
    const EVEN: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    // Beyond, the result is 1 in f32. NaN stays NaN.
    let x = if x > 7.905_311 { 7.905_311 } else { x };
    let x = if x < -7.905_311 { -7.905_311 } else { x };
    let square = x * x;
    let [odd, even] = [&ODD[..], &EVEN].map(|all| all.iter().fold(0.0, |sum, factor| sum * square + factor));
    x * odd / even
}

/// Σ f over `a` and `b`, pairwise: in 16 lanes, then in `f64` from run to run.
pub(super) fn sum<R: Real>(a: &[R], b: &[R], f: impl Fn(R, R) -> R) -> f64 {
    // Lanes of one value each: what comes out is the same.
    if a.len() <= 16 {
        return a.iter().zip(b).map(|(&a, &b)| f(a, b)).sum::<R>().to_f64();
    }
    let mut total = 0.0;
    for (a, b) in a.chunks(1024).zip(b.chunks(1024)) {
        let mut lanes = [R::zero(); 16];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
        for (a, b) in a.iter().zip(b) {
            for i in 0..16 {
                lanes[i] += f(a[i], b[i]);
            }
        }
        lanes.iter_mut().zip(a_rest.iter().zip(b_rest)).for_each(|(lane, (&a, &b))| *lane += f(a, b));
        total += lanes.iter().copied().sum::<R>().to_f64();
    }
    total
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_close_everywhere() {
        let mut worst = 0.0f64;
        for i in 0..=200_000 {
            let x = (i - 100_000) as f32 * 1e-4;
            worst = worst.max((f64::from(tanh(x)) - f64::from(x).tanh()).abs());
            assert!(tanh(x).abs() <= 1.0, "{x}");
        }
        assert!(worst < 5e-7, "{worst}");
        assert!(tanh(f32::NAN).is_nan());
        assert_eq!((tanh(0.0), tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (0.0, tanh(8.0), tanh(-8.0)));
        let small = 1e-20_f32;
        assert!((tanh(small) - small).abs() < 1e-26);
    }
}
