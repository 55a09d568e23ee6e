//! `.twn` → `.safetensors`: dequantized weights and untouched dense tensors, streamed. The crate's
//! own writer wants all tensors in memory and orders metadata at random; this one does neither,
//! and keeps its layout rules (tensors by alignment, then name; header padded to 8). Metadata are the
//! checkpoint's, but for what says how its weights became ternary: see `metadata`.
//! Not here: reading codes ([`crate::container`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use crate::atomic_file::AtomicFile;
use crate::container::{Body, Container, Quantized, Tensor, TensorEntry};
use crate::convert::Progress;
use crate::dtype::{Dtype, byte_length, encode, is_float};
use crate::error::ContainerProblem;
use crate::select::{Settings, TRAINED_KEY, found_again, found_again_as_int8, stays_dense, trained_metadata};
use crate::source::{safetensors_header, safetensors_order};
use crate::{Error, Result, float8};

/// Weights that are dequantized at once by each thread, about, where filters lie scattered: 4 MiB.
const TILE: usize = 1 << 20;

/// The same where they lie in one run each: values and bytes stay in the cache.
const RUN_TILE: usize = 1 << 16;

/// How to unpack.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// The type of dequantized tensors; `None` gives each its source's. Dense tensors never change.
    pub dtype: Option<Dtype>,
    /// Replace an output that exists.
    pub overwrite: bool,
    /// Called after each tensor, with bytes of the output.
    pub progress: Option<&'a (dyn Fn(Progress<'_>) + Sync)>,
    /// Set it to stop the run.
    pub cancel: Option<&'a AtomicBool>,
}

/// Writes the container's tensors as a safetensors file; returns its length in bytes. Every
/// section's checksum is checked on the way.
///
/// # Errors
/// A damaged container, a scale or a sum of planes that the wanted type cannot hold, an output that exists or cannot
/// be written, or cancellation.
pub fn unpack(container: &Container, output: &Path, options: &Options<'_>) -> Result<u64> {
    if container.path().canonicalize().is_ok_and(|input| output.canonicalize().is_ok_and(|out| out == input)) {
        return Err(Error::Request(format!("{} is the input; give another output", output.display())));
    }
    if let Some(dtype) = options.dtype.filter(|&dtype| !is_float(dtype)) {
        let expected = "expected F64, F32, F16, BF16, F8_E4M3 or F8_E5M2";
        return Err(Error::Request(format!("weights cannot be unpacked as {dtype}: {expected}")));
    }
    let file = AtomicFile::create(output, options.overwrite)?;
    let mut entries: Vec<(&TensorEntry, Dtype)> =
        container.index().tensors.iter().map(|entry| (entry, target(entry, options))).collect();
    entries.sort_by(|(a, x), (b, y)| safetensors_order((*x, &a.name), (*y, &b.name)));
    let tensors = entries.iter().map(|(entry, dtype)| (entry.name.as_str(), *dtype, &entry.shape[..]));
    let header = safetensors_header(tensors, &metadata(container)?);
    file.write_at(&header, 0)?;
    let mut offset = header.len() as u64;
    let bytes = |(entry, dtype): &(&TensorEntry, Dtype)| byte_length(*dtype, &entry.shape).unwrap_or_default();
    let total = offset + entries.iter().map(bytes).sum::<u64>();
    for (entry, dtype) in entries {
        container.check_sections(entry)?;
        offset += match container.tensor(entry) {
            Tensor::Dense(dense) => {
                file.write_at(dense.data, offset)?;
                dense.data.len() as u64
            }
            Tensor::Int8(int8) => write_values(container.path(), &file, &entry.name, &int8, dtype, offset, options)?,
            Tensor::Ternary(ternary) => {
                write_values(container.path(), &file, &entry.name, &ternary, dtype, offset, options)?
            }
        };
        if let Some(progress) = options.progress {
            progress(Progress { done: offset, total, tensor: &entry.name });
        }
    }
    file.publish()?;
    Ok(offset)
}

/// The checkpoint's own. What it says of how tensors were trained was said of float weights; here are ternary ones,
/// and it says how to find those again. What one plane does not hold stays as it is.
fn metadata(container: &Container) -> Result<BTreeMap<String, String>> {
    let mut metadata = container.index().metadata.clone();
    let trained = metadata.get(TRAINED_KEY).and_then(|text| serde_json::from_str(text).ok());
    let Some::<BTreeMap<String, Settings>>(mut settings) = trained else { return Ok(metadata) };
    for entry in &container.index().tensors {
        let its = match entry.body() {
            Body::Ternary(ternary) if ternary.planes == 1 => Settings {
                axis: Some(ternary.axis as usize).filter(|axis| *axis != 0),
                ..found_again(ternary.encoding, ternary.granularity)
            },
            Body::Int8(int8) => found_again_as_int8(int8.axis, int8.scale_dtype),
            Body::Dense(_) if !settings.contains_key(&entry.name) => continue,
            _ => stays_dense(),
        };
        settings.insert(entry.name.clone(), its);
    }
    metadata.remove(TRAINED_KEY);
    metadata.extend(trained_metadata(&settings)?);
    Ok(metadata)
}

fn target(entry: &TensorEntry, options: &Options<'_>) -> Dtype {
    match (entry.body(), options.dtype) {
        (Body::Int8(_) | Body::Ternary(_), Some(dtype)) => dtype,
        _ => entry.dtype,
    }
}

/// Dequantizes tile by tile, on all threads; returns how many bytes the tensor takes.
fn write_values(
    input: &Path,
    file: &AtomicFile,
    name: &str,
    tensor: &dyn Quantized,
    dtype: Dtype,
    offset: u64,
    options: &Options<'_>,
) -> Result<u64> {
    if let Some(problem) = tensor.bad_scale(name) {
        return Err(Error::container(input)(problem));
    }
    // Values are binary32 before they become anything else.
    let refused = |what: String, value: f32| {
        let (dtype, way_out) = match value.is_finite() {
            true => (dtype, "unpack with a type of more range (--dtype f32), or pack it again"),
            false => (Dtype::F32, "no --dtype holds them: pack it again from the checkpoint"),
        };
        let path = input.display();
        Error::Request(format!("{path}: tensor `{name}`: {what}, which {dtype} cannot hold; {way_out}"))
    };
    // Of several planes a small scale may become 0, and large ones go against each other: their sums are looked at.
    let several = tensor.planes() > 1;
    let scales = if several { 0 } else { tensor.scale_count() };
    for (index, scale) in (0..scales).map(|index| (index, tensor.scale_at(index))) {
        let largest = scale * tensor.largest_code();
        let stored = round_to(dtype, largest);
        if !stored.is_finite() || (stored == 0.0) != (scale == 0.0) {
            let codes = tensor.largest_code();
            return Err(refused(format!("scale {index} is {scale:e}, with codes up to {codes}"), largest));
        }
    }
    let bad_codes = |message| {
        let entry = |message| ContainerProblem::Entry { tensor: name.to_owned(), message };
        Error::container(input)(tensor.bad_codes(name).unwrap_or_else(|| entry(message)))
    };
    let size = dtype.bitsize() / 8;
    let (filters, n) = (tensor.filters(), tensor.filter_len());
    let inner: usize = tensor.shape()[tensor.axis() + 1..].iter().product();
    tiles(filters, n / inner, inner).into_par_iter().try_for_each(|tile| {
        if options.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(Error::Cancelled);
        }
        // Filter by filter, then in the order of the file: [outer][filters][inner].
        let (width, rows) = (tile.inner.len(), tile.outer.len());
        let weights = tile.outer.start * inner + tile.inner.start..(tile.outer.end - 1) * inner + tile.inner.end;
        let mut values = vec![0.0; tile.filters.len() * weights.len()];
        for (filter, values) in tile.filters.clone().zip(values.chunks_exact_mut(weights.len())) {
            tensor.dequantize_range(filter, weights.clone(), values).map_err(bad_codes)?;
            let too_large = |&value: &f32| !round_to(dtype, value).is_finite();
            if several && let Some(at) = values.iter().position(too_large) {
                let weight = weights.start + at;
                let what = format!("weight {weight} of filter {filter} is {:e} over all its planes", values[at]);
                return Err(refused(what, values[at]));
            }
        }
        let mut bytes = vec![0; values.len() * size];
        let mut runs = bytes.chunks_exact_mut(width * size);
        for row in 0..rows {
            for (filter, run) in values.chunks_exact(weights.len()).zip(&mut runs) {
                encode(dtype, &filter[row * width..][..width], run);
            }
        }
        let at = (tile.outer.start * filters + tile.filters.start) * inner + tile.inner.start;
        file.write_at(&bytes, offset + (at * size) as u64)
    })?;
    Ok((size * filters * n) as u64)
}

/// A part of a tensor of shape [outer][filters][inner] that is one run of the file.
struct Tile {
    outer: Range<usize>,
    filters: Range<usize>,
    inner: Range<usize>,
}

/// Cuts a tensor into tiles of about [`TILE`] or [`RUN_TILE`] weights: whole rows of `outer` where they fit, else
/// whole filters of one row, else parts of a filter of one row.
fn tiles(filters: usize, outer: usize, inner: usize) -> Vec<Tile> {
    let tile = if outer == 1 { RUN_TILE } else { TILE };
    let inner_step = inner.min(tile);
    let filter_step = if inner_step < inner { 1 } else { (tile / inner).clamp(1, filters) };
    let outer_step = if filter_step < filters || inner_step < inner { 1 } else { (tile / (filters * inner)).max(1) };
    let steps = |end: usize, step: usize| (0..end).step_by(step).map(move |at| at..(at + step).min(end));
    steps(outer, outer_step)
        .flat_map(|outer| steps(filters, filter_step).map(move |filters| (outer.clone(), filters)))
        .flat_map(|(outer, filters)| {
            steps(inner, inner_step).map(move |inner| Tile { outer: outer.clone(), filters: filters.clone(), inner })
        })
        .collect()
}

/// The value after a round trip through that type.
fn round_to(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::BF16 => half::bf16::from_f32(value).to_f32(),
        Dtype::F8_E4M3 => float8::E4M3[usize::from(float8::encode(&float8::E4M3, value))],
        Dtype::F8_E5M2 => float8::E5M2[usize::from(float8::encode(&float8::E5M2, value))],
        _ => value,
    }
}
