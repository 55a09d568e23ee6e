//! The types of weights: how each is read, compared and made `f64`. Not here: what is done with many ([`super::block`]).

use std::ops::{AddAssign, Neg};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// `f32` or `f64`, what a checkpoint's weights are decoded to; or `f16` or `bf16`, where they are read as they are.
pub trait Weight:
    Copy + PartialOrd + Default + AddAssign + Neg<Output = Self> + Send + Sync + bytemuck::Pod + 'static
{
    #[inline(always)]
    fn magnitude(self) -> Self {
        Self::from_bits(self.magnitude_bits())
    }
    fn to_f64(self) -> f64;
    /// The largest value of this type that is not above `x`: for a weight w of this type,
    /// w > x exactly when w > floor(x).
    fn floor_from(x: f64) -> Self;
    /// Holds the magnitude's bits, which order as the magnitudes do, NaN highest.
    type Bits: Copy + Ord + Default;
    fn magnitude_bits(self) -> Self::Bits;
    fn from_bits(bits: Self::Bits) -> Self;
    /// These weights, if vectors of `f32` can be loaded from them.
    fn as_singles(_weights: &[Self]) -> Option<Singles<'_>> {
        None
    }
    fn as_f32_mut(_weights: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}

impl Weight for f32 {
    type Bits = u32;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn floor_from(x: f64) -> Self {
        let nearest = x as f32;
        if f64::from(nearest) > x { nearest.next_down() } else { nearest }
    }
    #[inline(always)]
    fn magnitude_bits(self) -> u32 {
        self.to_bits() & 0x7fff_ffff
    }
    #[inline(always)]
    fn from_bits(bits: u32) -> Self {
        Self::from_bits(bits)
    }
    #[inline(always)]
    fn as_singles(weights: &[Self]) -> Option<Singles<'_>> {
        Some(Singles::F32(weights))
    }
    #[inline(always)]
    fn as_f32_mut(weights: &mut [Self]) -> Option<&mut [f32]> {
        Some(weights)
    }
}

impl Weight for f64 {
    type Bits = u64;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn floor_from(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn magnitude_bits(self) -> u64 {
        self.to_bits() & 0x7fff_ffff_ffff_ffff
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self::from_bits(bits)
    }
}

/// Weights that `f32` holds exactly.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Singles<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Singles<'_> {
    pub(crate) fn to_vec(self) -> Vec<f32> {
        match self {
            Self::F32(weights) => weights.to_vec(),
            Self::F16(weights) => weights.to_f32_vec(),
            Self::Bf16(weights) => weights.to_f32_vec(),
        }
    }
}

/// Runs an expression over the slice, whatever its type.
#[cfg(target_arch = "x86_64")]
macro_rules! on_singles {
    ($singles:expr, $w:ident => $body:expr) => {
        match $singles {
            crate::vector::weight::Singles::F32($w) => $body,
            crate::vector::weight::Singles::F16($w) => $body,
            crate::vector::weight::Singles::Bf16($w) => $body,
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use on_singles;

/// The 16-bit types: every loop in plain Rust decodes each weight when it meets it.
macro_rules! half_weight {
    ($half:ident, $singles:ident) => {
        impl Weight for $half {
            type Bits = u16;

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self.to_f32())
            }
            #[inline(always)]
            fn floor_from(x: f64) -> Self {
                // By way of `f32`, so that rounding twice cannot end above.
                let single = f32::floor_from(x);
                let nearest = Self::from_f32(single);
                let bits = nearest.to_bits();
                Self::from_bits(match bits {
                    _ if nearest.to_f32() <= single => bits,
                    0 | 0x8000 => 0x8001,
                    1..0x8000 => bits - 1,
                    _ => bits + 1,
                })
            }
            #[inline(always)]
            fn magnitude_bits(self) -> u16 {
                self.to_bits() & 0x7fff
            }
            #[inline(always)]
            fn from_bits(bits: u16) -> Self {
                Self::from_bits(bits)
            }
            #[inline(always)]
            fn as_singles(weights: &[Self]) -> Option<Singles<'_>> {
                Some(Singles::$singles(weights))
            }
        }
    };
}
half_weight!(f16, F16);
half_weight!(bf16, Bf16);

/// As `f32`, `f16` and `bf16`.
#[cfg(test)]
pub(crate) fn narrowed(weights: &[f64]) -> (Vec<f32>, Vec<f16>, Vec<bf16>) {
    let halves = weights.iter().map(|&w| f16::from_f64(w)).collect();
    (weights.iter().map(|&w| w as f32).collect(), halves, weights.iter().map(|&w| bf16::from_f64(w)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For every number w of the type: w > x exactly when w > floor(x).
    #[test]
    fn halves_compare_as_their_floor_does() {
        fn check<H: Weight>(number: impl Fn(u16) -> H) {
            let all: Vec<H> = (0..=u16::MAX).map(number).filter(|w| w.to_f64().is_finite()).collect();
            for x in
                [0.0, -0.0, 1e-30, -1e-30, 1e-9, 0.1, -0.1, 1.0, -1.0, 65504.0, 65519.9, 1e30, -1e30, 1e300, 5e-324]
            {
                let floor = H::floor_from(x);
                assert!(all.iter().all(|&w| (w.to_f64() > x) == (w > floor)), "{x}: {}", floor.to_f64());
            }
        }
        check(f16::from_bits);
        check(bf16::from_bits);
    }
}
