//! A `.twn` file and the checkpoint it was made from: the same tensors, and what was recorded of them, computed anew.
//! Not here: whether the bytes of the file are good ([`super::verify`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use super::{PIECE, Verification, check_cancelled, is_repaired};
use crate::container::{Container, Granularity, Int8Stats, Quantized, Tensor, TensorEntry, TernaryTensor};
use crate::source::weights::Element;
use crate::source::{Checkpoint, FilterView, Input, TensorView, TernaryView};
use crate::ternarize::{METHODS, ScaleDtype};
use crate::{Isa, Result};

/// Compares a file with the checkpoint it was made from: the same tensors, dense ones bit by bit,
/// ternary ones by recomputing ‖W − Ŵ‖² and ‖W‖² and comparing them with the recorded ones. Of tensors that were
/// ternary in the checkpoint every code and scale is compared.
///
/// # Errors
/// [`Error::Cancelled`](crate::Error::Cancelled), or codes that cannot be decoded. Differences are in the result.
pub fn verify_against(
    container: &Container,
    checkpoint: &Checkpoint,
    cancel: Option<&AtomicBool>,
) -> Result<Verification> {
    let mut result = Verification::of(container);
    let entries = &container.index().tensors;
    let packed: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let inputs = (0..checkpoint.len()).map(|i| checkpoint.input(i));
    let sources: BTreeMap<&str, Input<'_>> = inputs.map(|input| (input.tensor.name, input)).collect();
    for name in sources.keys().filter(|name| !packed.contains(**name)) {
        result.problems.push(format!("tensor `{name}` of the checkpoint is not in the file"));
    }
    let problems: Vec<Option<String>> = entries
        .par_iter()
        .map(|entry| {
            check_cancelled(cancel)?;
            let Some(source) = sources.get(entry.name.as_str()) else {
                return Ok(Some(format!("tensor `{}` is not in the checkpoint", entry.name)));
            };
            Ok(compare(container, entry, *source))
        })
        .collect::<Result<_>>()?;
    result.problems.extend(problems.into_iter().flatten());
    if container.index().metadata != *checkpoint.metadata() {
        result.problems.push("the metadata differs".to_owned());
    }
    Ok(result)
}

fn compare(container: &Container, entry: &TensorEntry, source: Input<'_>) -> Option<String> {
    let name = &entry.name;
    let Input { tensor: source, ternary: moved } = source;
    let (dtype, shape) = moved.map_or((source.dtype, source.shape), |moved| (moved.dtype, moved.shape));
    let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    if (entry.dtype, &entry.shape) != (dtype, &shape) {
        return Some(format!(
            "tensor `{name}` is {} {:?} in the file, {dtype} {shape:?} in the checkpoint",
            entry.dtype, entry.shape
        ));
    }
    match container.tensor(entry) {
        Tensor::Ternary(ternary) if let Some(moved) = moved => {
            compare_moved(&ternary, moved).err().map(|message| format!("tensor `{name}`: {message}"))
        }
        _ if moved.is_some() => Some(format!("tensor `{name}` is ternary in the checkpoint, but not in the file")),
        // The checkpoint has something else; its checksum says that it is what was written.
        Tensor::Dense(_) if is_repaired(entry) => None,
        Tensor::Dense(dense) => {
            let mut scratch = Vec::new();
            let mut parts = dense.data.chunks(PIECE).zip((0..).step_by(PIECE));
            let at = parts.find_map(|(ours, start)| {
                let theirs = source.read(start..start + ours.len(), &mut scratch);
                ours.iter().zip(theirs).position(|(a, b)| a != b).map(|at| start + at)
            })?;
            Some(format!("tensor `{name}`: byte {at} differs from the checkpoint"))
        }
        Tensor::Int8(int8) => {
            let Int8Stats { squared_error, squared_norm, .. } = int8.stats;
            compare_values(name, &int8, source, [squared_error, squared_norm], false)
        }
        Tensor::Ternary(ternary) => {
            let stats = &ternary.stats;
            // Codes that were chosen by the layer's inputs may lie further from the weights than zeros do, scales that
            // filters share or that are rounded coarsely fit none of them, and of other methods nothing is known.
            let fitted = METHODS.iter().any(|method| method.name == ternary.method.name);
            let coarse = ternary.granularity == Granularity::Tensor || ternary.scale_dtype == ScaleDtype::F16;
            let free = !fitted || coarse || entry.calibration().is_some();
            compare_values(name, &ternary, source, [stats.squared_error, stats.squared_norm], free)
        }
    }
}

/// The same codes, and the same scales but for the rounding to their type, where there is a weight that is not zero.
fn compare_moved(tensor: &TernaryTensor<'_>, source: TernaryView<'_>) -> Result<(), String> {
    if (tensor.planes, tensor.axis) != (source.planes(), source.axis()) {
        return Err("it has other planes or another filter axis than in the checkpoint".to_owned());
    }
    let n = tensor.filter_len;
    let (mut ours, mut theirs) = (vec![0; n], vec![0; n]);
    let filters = (0..tensor.planes).flat_map(|plane| (0..tensor.filters).map(move |filter| (plane, filter)));
    for (plane, filter) in filters {
        let source = source.plane(plane);
        tensor.codes(plane, filter, &mut ours)?;
        source.codes(filter, &mut theirs)?;
        if let Some(j) = ours.iter().zip(&theirs).position(|(a, b)| a != b) {
            return Err(format!("weight {j} of filter {filter} has code {}, {} in the checkpoint", ours[j], theirs[j]));
        }
        for (unit, codes) in ours.chunks(source.unit_len()).enumerate() {
            let (ours, theirs) = (tensor.scale(plane, filter, unit * source.unit_len()), source.scale(filter, unit)?);
            if ours != tensor.scale_dtype.round(f64::from(theirs)) && codes.iter().any(|&code| code != 1) {
                return Err(format!("scale {unit} of filter {filter} is {ours:e}, {theirs:e} in the checkpoint"));
            }
        }
    }
    Ok(())
}

/// Computes ‖W − Ŵ‖² and ‖W‖² anew and compares them with what is recorded.
fn compare_values(
    name: &str,
    tensor: &dyn Quantized,
    source: TensorView<'_>,
    recorded: [f64; 2],
    free: bool,
) -> Option<String> {
    let view = FilterView::new(source, tensor.axis())?;
    let measured = if view.is_f64() { errors::<f64>(view, tensor, free) } else { errors::<f32>(view, tensor, free) };
    match measured {
        Err(message) => Some(format!("tensor `{name}`: {message}")),
        Ok((error, norm)) => {
            // Recorded in another order of summation; and an expanded error near 0 keeps few digits.
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * norm;
            // What is infinite would be near everything; and such weights cannot have been packed.
            let good = norm.is_finite() && close(error, recorded[0]) && close(norm, recorded[1]);
            (!good).then(|| {
                format!(
                    "tensor `{name}`: against the checkpoint ‖W−Ŵ‖² is {error:e} and ‖W‖² {norm:e}, the file says {:e} and {:e}",
                    recorded[0], recorded[1]
                )
            })
        }
    }
}

/// (‖W − Ŵ‖², ‖W‖²), plainly in f64. Where scales fit the weights, no filter loses more than it has (but for what
/// rounding does); `free` of that are those that fit something else.
fn errors<W: Element>(view: FilterView<'_>, tensor: &dyn Quantized, free: bool) -> Result<(f64, f64), String> {
    const STEP: usize = 1 << 13;
    let n = tensor.filter_len();
    let (mut values, mut scratch, mut error, mut norm) = (vec![0.0; STEP.min(n)], Vec::new(), 0.0, 0.0);
    let ranges = (0..tensor.filters()).flat_map(|filter| (0..n).step_by(STEP).map(move |start| (filter, start)));
    let (mut lost, mut had) = (0.0, 0.0);
    for (filter, start) in ranges {
        let end = (start + STEP).min(n);
        let values = &mut values[..end - start];
        tensor.dequantize_range(filter, start..end, values)?;
        let weights = view.read::<W>(filter * n + start..filter * n + end, Isa::PORTABLE, &mut scratch);
        for (w, &v) in weights.iter().zip(&*values) {
            let rest = w.to_f64() - f64::from(v);
            lost += rest * rest;
            had += w.to_f64() * w.to_f64();
        }
        if end == n {
            // Of denormal numbers rounding may make anything.
            if lost > had * 1.001 && had > f64::from(f32::MIN_POSITIVE) && !free {
                return Err(format!(
                    "filter {filter}: against the checkpoint ‖w−ŵ‖² is {lost:e}, more than ‖w‖², {had:e}; is it the checkpoint \
                     that this was made from?"
                ));
            }
            (error, norm) = (error + lost, norm + had);
            (lost, had) = (0.0, 0.0);
        }
    }
    Ok((error, norm))
}
