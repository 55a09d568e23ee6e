//! Networks that run: described in a file, with tensors from a `.twn` file or a checkpoint.
//!
//! ```text
//!  description ─┐
//!  layers,      ├──► Network ──► forward ──► logits ──► evaluate
//!  names        │    layers      kernel (packed), or    accuracy, time
//!  Source ──────┘                dense (f32)
//! ```
//!
//! [`fold`] makes of a network with batch norm one without, of the same function.
//!
//! Not here: products of packed weights ([`crate::kernel`]), data sets ([`crate::data`]), training.

mod adjust;
mod batch_norm;
mod batches;
#[cfg_attr(not(feature = "calibration"), path = "collect_nothing.rs")]
mod collect;
pub mod dense;
mod description;
mod evaluate;
mod fold;
mod forward;
pub(crate) mod im2col;
pub(crate) mod layers;
pub(crate) mod pool;
mod reestimate;
mod tensors;

pub use self::adjust::adjust;
#[cfg(feature = "calibration")]
pub use self::collect::{CollectOptions, collect};
pub use self::description::{Description, NETWORKS, Overrides};
pub use self::evaluate::{Evaluation, Options, evaluate};
pub use self::fold::{Folded, fold};
pub use self::forward::{Buffers, Network};
pub use self::reestimate::{ReestimateOptions, reestimate};
pub(crate) use self::tensors::Tensors;
pub use self::tensors::{Packed, Source, Weights};
