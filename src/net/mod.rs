//! Networks that run: described in a file, with tensors from a `.twn` file or a checkpoint.
//!
//! ```text
//!  description ─┐
//!  layers,      ├──► Network ──► forward ──► logits ──► evaluate
//!  names        │    layers      kernel (packed), or    accuracy, time
//!  Source ──────┘                dense (f32)
//! ```
//!
//! Not here: products of packed weights ([`crate::kernel`]), data sets ([`crate::data`]), training.

mod batch_norm;
pub mod dense;
mod description;
mod evaluate;
mod forward;
pub(crate) mod layers;
mod pool;
mod tensors;

pub use self::description::{Description, NETWORKS, Overrides};
pub use self::evaluate::{Evaluation, Options, evaluate};
pub use self::forward::{Buffers, Network};
pub use self::tensors::{Packed, Source, Weights};
