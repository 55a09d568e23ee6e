//! Random numbers that follow from a seed and what they are for: no state to be saved, nothing that
//! depends on threads. Not here: what augmentation does with its own ([`crate::data`]).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What numbers are for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// The first weights of tensor number `.0`.
    Weights(u64),
    /// The order of the images in epoch `.0`.
    Order(u64),
    /// Their augmentation in epoch `.0`.
    Augmentation(u64),
}

/// The generator for that purpose.
pub(super) fn generator(seed: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0; 32];
    let (kind, number) = match purpose {
        Purpose::Weights(number) => (1u64, number),
        Purpose::Order(epoch) => (2, epoch),
        Purpose::Augmentation(epoch) => (3, epoch),
    };
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&kind.to_le_bytes());
    key[16..24].copy_from_slice(&number.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// From −1 to 1.
pub(super) fn symmetric(generator: &mut ChaCha8Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// The seed of an epoch's augmentation.
pub(super) fn augmentation(seed: u64, epoch: u32) -> u64 {
    generator(seed, Purpose::Augmentation(epoch.into())).next_u64()
}

/// 0..`count` in a random order (Fisher and Yates).
pub(super) fn order(count: usize, seed: u64, epoch: u32) -> Vec<usize> {
    let mut generator = generator(seed, Purpose::Order(epoch.into()));
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        let j = (u128::from(generator.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}
