//! Fine-tuning: float weights learn while the network computes with what they are ternarized to.
//!
//! ```text
//!  net::Description ──► Network ──► forward ──► loss ──► backward ──► optimizer ──┐
//!                        ▲  float weights ──► methods ──► ternary weights         │
//!                        └────────────────────────────────────────────────────────┘
//! ```
//!
//! Source: Ternary Weight Networks, arXiv 1605.04711, section 2.4; each method names its own. Not here:
//! thresholds and scales ([`crate::ternarize`]), networks as data ([`crate::net`]), images ([`crate::data`]).

mod directory;
mod layers;
mod loss;
mod maps;
mod matmul;
mod memory;
mod methods;
mod model;
mod network;
mod optimizer;
mod random;
mod recipe;
mod run;
mod schedule;
mod state;

pub use self::directory::{METRICS, STATE, last_metrics};
pub use self::layers::{Pass, Tensor, Weights};
pub use self::loss::Loss;
pub use self::maps::{Maps, Real};
pub use self::memory::memory;
pub use self::methods::{METHODS, Method, MethodInfo, Request, method};
pub use self::network::{Choose, Network, Step};
pub use self::optimizer::{Optimizer, Rule};
pub use self::recipe::{Augment, RECIPES, Recipe};
pub use self::run::{LayerMethod, Metrics, Options, Outcome, Progress, Setup, train};
pub use self::schedule::Schedule;
