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

mod layers;
mod loss;
mod maps;
mod methods;
mod network;
mod optimizer;
mod random;
mod schedule;
