//! GGUF out and in: against golden blocks of ggml, a file of gguf-py, and files assembled and decoded here from the
//! format's description alone. Not here: what the conversion does with ternary weights (`tests/import.rs`).

#[path = "../common/mod.rs"]
mod common;

mod file;
mod import;
mod into;
mod tensors;
