//! The x86-64 tokens, and what else the processor says of itself. Not here: any arithmetic.

use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
use std::sync::LazyLock;

use raw_cpuid::{CacheType, CpuId};

use super::avx2::Outside;
use super::avx512::Load;
use super::block::{Above, Moments, Parts};
use super::{Task, avx2, avx512};

/// Bytes of data that a core's nearest cache holds.
pub(super) fn nearest_cache() -> Option<usize> {
    static BYTES: LazyLock<Option<usize>> = LazyLock::new(|| {
        let mut caches = CpuId::new().get_cache_parameters()?;
        let nearest = caches.find(|cache| cache.level() == 1 && cache.cache_type() == CacheType::Data)?;
        let ways = nearest.associativity() * nearest.physical_line_partitions();
        Some(nearest.sets() * ways * nearest.coherency_line_size())
    });
    *BYTES
}

/// Proof that AVX2, F16C, FMA, BMI2 and POPCNT are there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt"))
        .then_some(Self(()))
    }

    #[inline]
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt")]
        fn inner<T: Task>(task: T, proof: Avx2) -> T::Output {
            task.avx2(proof)
        }
        // SAFETY: `self` exists, so `new` saw every feature that `inner` is compiled for.
        unsafe { inner(task, self) }
    }

    /// IEEE half precision, little-endian, to single; `out` is as long as `halves`.
    #[inline]
    pub(crate) fn decode_f16(self, halves: &[[u8; 2]], out: &mut [f32]) {
        // SAFETY: as in `run`.
        unsafe { decode_f16(halves, out) }
    }

    #[inline]
    pub(super) fn partition(self, weights: &[f32], lo: f32, hi: f32, kept: &mut [f32]) -> Parts {
        // SAFETY: as in `run`.
        unsafe { avx2::partition(weights, lo, hi, kept) }
    }

    #[inline]
    pub(super) fn moments<W: avx2::Load>(self, weights: &[W], next: *const W) -> Moments {
        // SAFETY: as in `run`.
        unsafe { avx2::moments(weights, next) }
    }

    #[inline]
    pub(crate) fn outside(self, delta: f32) -> Outside {
        // SAFETY: as in `run`.
        unsafe { Outside::new(delta) }
    }

    /// Adds weights, a multiple of 16 of them unless they are the last ones, and writes their codes, one byte each.
    #[inline]
    pub(crate) fn select<W: avx2::Load>(self, outside: &mut Outside, weights: &[W], next: *const W, codes: &mut [u8]) {
        // SAFETY: as in `run`.
        unsafe { outside.select(weights, next, codes) }
    }

    #[inline]
    pub(crate) fn end(self, outside: Outside) -> Above {
        // SAFETY: as in `run`.
        unsafe { outside.end() }
    }
}

/// Proof that AVX2 (with all that [`Avx2`] asks for) and AVX-VNNI are there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AvxVnni(Avx2);

impl AvxVnni {
    pub(super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avxvnni").then(Avx2::new).flatten().map(Self)
    }

    #[inline]
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,f16c,fma,bmi2,popcnt,avxvnni")]
        fn inner<T: Task>(task: T, proof: AvxVnni) -> T::Output {
            task.avxvnni(proof)
        }
        // SAFETY: as in `Avx2::run`.
        unsafe { inner(task, self) }
    }

    #[inline]
    pub(crate) fn avx2(self) -> Avx2 {
        self.0
    }
}

/// Proof that AVX-512 (with all that [`Avx512`] asks for) and AVX-512 VNNI are there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Vnni(Avx512);

impl Avx512Vnni {
    pub(super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx512vnni").then(Avx512::new).flatten().map(Self)
    }

    #[inline]
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c,fma,bmi2,popcnt,avx512vnni")]
        fn inner<T: Task>(task: T, proof: Avx512Vnni) -> T::Output {
            task.avx512vnni(proof)
        }
        // SAFETY: as in `Avx2::run`.
        unsafe { inner(task, self) }
    }

    #[inline]
    pub(crate) fn avx512(self) -> Avx512 {
        self.0
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
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c,fma,bmi2,popcnt")]
        fn inner<T: Task>(task: T, proof: Avx512) -> T::Output {
            task.avx512(proof)
        }
        // SAFETY: `self` exists, so `new` saw every feature that `inner` is compiled for.
        unsafe { inner(task, self) }
    }

    /// AVX-512 machines have AVX2; `new` saw that too.
    #[inline]
    pub(crate) fn avx2(self) -> Avx2 {
        Avx2(())
    }

    /// IEEE half precision, little-endian, to single; `out` is as long as `halves`.
    #[inline]
    pub(crate) fn decode_f16(self, halves: &[[u8; 2]], out: &mut [f32]) {
        // SAFETY: as in `moments`.
        unsafe { avx512::decode_f16(halves, out) }
    }

    /// The upper halves of single precision, little-endian, to single; `out` is as long as `halves`.
    #[inline]
    pub(crate) fn decode_bf16(self, halves: &[[u8; 2]], out: &mut [f32]) {
        // SAFETY: as in `moments`.
        unsafe { avx512::decode_bf16(halves, out) }
    }

    /// Counts 2-bit codes; `None` without the vector population count, which came later than the rest.
    #[inline]
    pub(crate) fn census(self, chunks: &[[u8; 64]]) -> Option<(u64, u64, bool)> {
        let there = is_x86_feature_detected!("avx512vpopcntdq");
        // Prefetching makes Zen 4, with 32 KiB, a tenth slower, Zen 5, with 48, a fifth faster.
        let ahead = super::nearest_cache() > 32 << 10;
        // SAFETY: `new` saw AVX-512 F, the lines above the population count.
        there.then(|| unsafe { avx512::census(chunks, ahead) })
    }

    /// Of each of `N` parts of the same length.
    #[inline(always)]
    pub(super) fn moments<L: Load, const N: usize>(self, weights: &[L]) -> [Moments; N] {
        // SAFETY: `self` exists, so `new` saw every feature.
        unsafe { avx512::moments(weights) }
    }

    #[inline]
    pub(super) fn above(self, weights: &[f32], delta: f32) -> Above {
        // SAFETY: as in `moments`.
        unsafe { avx512::above(weights, delta) }
    }

    #[inline]
    pub(super) fn select(self, weights: &[f32], delta: f32, codes: &mut [u8]) -> Above {
        // SAFETY: as in `moments`.
        unsafe { avx512::select(weights, delta, codes) }
    }

    /// `places`: where in a word of 32 codes of two bits the zero and the positive ones leave their mark; `ahead`: how
    /// many weights behind these that lies which is wanted next.
    #[inline(always)]
    pub(crate) fn select_packed<L: Load>(
        self,
        weights: &[L],
        delta: f32,
        ahead: usize,
        places: [u64; 2],
        packed: &mut [u8],
    ) -> Above {
        // SAFETY: as in `moments`.
        unsafe { avx512::select_packed(weights, delta, ahead, places, packed) }
    }

    /// `sums`: what five positive weights, those whose bits are set, add to the byte `zeros`; `ahead` as for
    /// [`Avx512::select_packed`].
    #[inline]
    pub(crate) fn select_by_fives<L: Load>(
        self,
        weights: &[L],
        delta: f32,
        ahead: usize,
        sums: &[u8; 32],
        zeros: u8,
        packed: &mut [u8],
    ) -> Above {
        // SAFETY: as in `moments`.
        unsafe { avx512::select_by_fives(weights, delta, ahead, sums, zeros, packed) }
    }

    #[inline]
    pub(super) fn partition(self, weights: &[f32], lo: f32, hi: f32, kept: &mut [f32]) -> Parts {
        // SAFETY: as in `moments`.
        unsafe { avx512::partition(weights, lo, hi, kept) }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn decode_f16(halves: &[[u8; 2]], out: &mut [f32]) {
    let (chunks, rest) = halves.as_chunks::<8>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<8>();
    for (halves, out) in chunks.iter().zip(out_chunks) {
        // SAFETY: the arrays have the 16 bytes that are read and the 8 values that are written.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()))) };
    }
    for (half, out) in rest.iter().zip(out_rest) {
        *out = half::f16::from_le_bytes(*half).to_f32();
    }
}
