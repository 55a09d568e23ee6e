//! ONNX, in both directions: golden bytes, models put together here field by field, a plain decoder of what comes
//! out, files of PyTorch's own exporters, every refusal, and bytes that are no models. What onnxruntime makes of it:
//! `examples/interop/onnx_lenet5.py`.

#[path = "../common/mod.rs"]
mod common;

mod export;
mod find;
mod import;
mod model;
mod refusals;
mod round_trip;
mod slots;
mod wire;
