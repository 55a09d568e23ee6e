//! The x86-64 tokens. Not here: any arithmetic.

use super::Task;

/// Proof that AVX2, F16C, BMI2 and POPCNT are there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt"))
        .then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,f16c,bmi2,popcnt")]
        fn inner<T: Task>(task: T) -> T::Output {
            task.portable()
        }
        // SAFETY: `self` exists, so `new` saw every feature that `inner` is compiled for.
        unsafe { inner(task) }
    }
}

/// Proof that AVX-512 F, BW, DQ and VL are there, with BMI2 and POPCNT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        (Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c,bmi2,popcnt")]
        fn inner<T: Task>(task: T, proof: Avx512) -> T::Output {
            task.avx512(proof)
        }
        // SAFETY: `self` exists, so `new` saw every feature that `inner` is compiled for.
        unsafe { inner(task, self) }
    }
}
