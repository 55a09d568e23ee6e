//! `twn-pack` turns float checkpoints into ternary weights, {−1, 0, +1} times a scale, packed at
//! two bits each into a documented container, `.twn`.
//!
//! ```text
//!  source ──► select ──► ternarize ──► pack ──► container::writer ──► report
//!  mmap,       which      filter →      codes ↔   streams, checksums,   one result struct,
//!  shards,     tensor,    Δ, α          bytes     publishes atomically  one exporter per
//!  dtypes      axis,                                                    output format
//!    ▲         method                             container::reader ──► verify, unpack, export
//!  import                                                            └──► kernel ──► net ◄── data
//!                                                                                     └──► train
//! ```
//!
//! A module uses only what stands to its left; [`convert`] is the run that joins them. Of what
//! stands to its right, [`select`] names what a treatment consists of (method, encoding,
//! granularity) and does nothing with it. [`calibration`] has what is known of a layer's inputs, for
//! `convert`; [`budget`] runs `convert` on every rung of every tensor and chooses. [`import`] and [`export`] are the
//! formats of other programs, on the public interface alone; [`gguf`] and [`onnx`] are what both directions share.
//! `tests/layering.rs` and `tests/outside.rs` hold all this.
//!
//! ```no_run
//! use twn_pack::{Checkpoint, Container, Plan, Rules, Tensor, convert};
//!
//! # fn main() -> twn_pack::Result<()> {
//! let checkpoint = Checkpoint::open("model.safetensors")?;
//! let plan = Plan::new(&checkpoint, &Rules::default())?;
//! let report = convert::pack(&checkpoint, &plan, "model.twn".as_ref(), &convert::Options::default())?;
//! println!("{} times smaller", report.totals.ratio);
//!
//! for (name, tensor) in Container::open("model.twn")?.tensors() {
//!     if let Tensor::Ternary(ternary) = tensor {
//!         println!("{name}: {} filters of {} weights", ternary.filters, ternary.filter_len);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs, unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod atomic_file;
pub mod budget;
#[cfg(feature = "calibration")]
pub mod calibration;
pub mod container;
pub mod convert;
#[cfg(feature = "eval")]
pub mod data;
mod dtype;
pub mod error;
pub mod export;
mod float8;
pub mod gguf;
pub mod import;
mod int8;
pub mod kernel;
pub mod limits;
mod locked_file;
mod mapped;
pub mod memory;
#[cfg(feature = "eval")]
pub mod net;
pub mod onnx;
pub mod pack;
pub mod report;
pub mod select;
pub mod source;
mod strict_json;
pub mod ternarize;
#[cfg(feature = "train")]
pub mod train;
pub mod unpack;
mod vector;
pub mod verify;
mod write_behind;

pub use atomic_file::{AtomicFile, PARTIAL_SUFFIX, write_atomically};
#[cfg(feature = "calibration")]
pub use calibration::Calibration;
pub use container::{Container, ContainerWriter, DenseTensor, Granularity, Int8Tensor, Tensor, TernaryTensor};
pub use dtype::Dtype;
pub use error::{Error, Fault, Result};
pub use mapped::{MappedFile, ReadAhead};
pub use pack::Encoding;
pub use report::Report;
pub use select::{Plan, Rules, Settings, Treatment};
pub use source::{Checkpoint, FilterView, TensorView};
pub use ternarize::{ScaleDtype, Ternarizer};
pub use vector::Isa;

/// Compiles the Rust in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
