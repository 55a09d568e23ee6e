//! One tensor on its way into a GGUF file: what it becomes and how its bytes are made, or why it cannot. Not here: its
//! name and place.

use std::ops::Range;

use half::f16;

use super::floats;
use crate::container::{DenseTensor, TernaryTensor};
use crate::export::{Options, Part, float};
use crate::gguf::{Block, Kind, Type};
use crate::{Dtype, Encoding, Granularity, Isa, Tensor};

/// What became of a tensor, or of one plane of it.
pub(super) struct Made<'a> {
    pub kind: &'static Type,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    pub part: Part<'a>,
    /// The largest relative change of a scale.
    pub rounding: f64,
    /// What the file's type does not say.
    pub dtype: Option<Dtype>,
    /// Of ternary ones.
    pub granularity: Option<String>,
    /// Of ternary ones.
    pub method: Option<String>,
    /// Why it is floats, where it could have been codes.
    pub why: Option<String>,
}

const INT8: &str = "int8, which has no GGUF type with one scale per filter";

/// The order of a tensor's rows, along axis 0.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rows {
    InOrder,
    /// In each head of so many rows the two halves take turns, as llama.cpp has the query and key weights of Llama.
    Interleaved(usize),
}

impl Rows {
    /// Which row of the tensor stands at `row`.
    pub fn source(self, row: usize) -> usize {
        match self {
            Self::InOrder => row,
            Self::Interleaved(size) => {
                let (head, at) = (row / size, row % size);
                head * size + at % 2 * (size / 2) + at / 2
            }
        }
    }
}

/// What becomes of one plane of a tensor; `instead_of` is the type of what it replaces.
///
/// # Errors
/// Why it cannot be, and what to do about it.
pub(super) fn make<'a>(
    name: &str,
    tensor: &Tensor<'a>,
    plane: usize,
    block: Block,
    rows: Rows,
    instead_of: Option<&Type>,
    options: &Options,
) -> Result<Made<'a>, String> {
    match tensor {
        Tensor::Dense(tensor) => dense(name, tensor, rows, instead_of, options),
        Tensor::Int8(int8) if options.refused_as_dense => {
            Ok(Made { why: Some(INT8.to_owned()), ..floats::of_int8(name, int8, rows) })
        }
        Tensor::Int8(_) => Err(format!("{INT8}; give --refused-as-dense, or pack it without `keep=int8`")),
        Tensor::Ternary(ternary) => match ternary_blocks(name, ternary, plane, block, rows, options) {
            Err(reason) if options.refused_as_dense => {
                Ok(Made { why: Some(reason), ..floats::of_ternary(name, ternary, rows) })
            }
            made => made,
        },
    }
}

fn dense<'a>(
    name: &str,
    tensor: &DenseTensor<'a>,
    rows: Rows,
    instead_of: Option<&Type>,
    options: &Options,
) -> Result<Made<'a>, String> {
    // What the format does not have goes as integers of the same size; the keys say what they are.
    let stand_in = || {
        let same_size = match tensor.dtype.bitsize() {
            8 => Dtype::I8,
            16 => Dtype::I16,
            32 => Dtype::I32,
            64 => Dtype::I64,
            _ => return None,
        };
        Type::of_dtype(same_size)
    };
    let kind = Type::of_dtype(tensor.dtype).or_else(stand_in).ok_or_else(|| {
        format!("{}, which GGUF has no type for; leave it out of the checkpoint and pack again", tensor.dtype)
    })?;
    let dtype = (kind.kind != Kind::Plain(tensor.dtype)).then_some(tensor.dtype);
    // llama.cpp computes with norms and biases in F32 alone; that holds every half exactly.
    let mut why = None;
    let to_f32 = match tensor.dtype {
        Dtype::F64 if instead_of.is_some_and(|old| old.kind != Kind::Plain(Dtype::F64)) => {
            if !options.refused_as_dense {
                return Err(
                    "F64, which llama.cpp does not compute with; --refused-as-dense rounds it to F32, or pack a \
                     checkpoint in F32"
                        .to_owned(),
                );
            }
            why = Some("rounded from F64, which llama.cpp does not compute with".to_owned());
            true
        }
        Dtype::F16 | Dtype::BF16 => instead_of == Some(Type::f32()),
        _ => false,
    };
    let part = match rows {
        Rows::InOrder if !to_f32 => Part::bytes(tensor.data),
        _ if tensor.data.is_empty() => Part::bytes(tensor.data),
        _ => {
            // A scalar is one row.
            let (data, count) = (tensor.data, tensor.shape.first().copied().unwrap_or(1));
            let (length, of) = (data.len() / count, tensor.dtype);
            let row_bytes = if to_f32 { length / (of.bitsize() / 8) * 4 } else { length };
            Part::rows(name, count, row_bytes, move |range, bytes| {
                for (row, bytes) in range.zip(bytes.chunks_exact_mut(row_bytes)) {
                    let row = &data[rows.source(row) * length..][..length];
                    if !to_f32 {
                        bytes.copy_from_slice(row);
                        continue;
                    }
                    for (i, bytes) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        let exact = float(of, row, i).unwrap_or(f64::NAN);
                        let value = exact as f32;
                        if value.is_infinite() && exact.is_finite() {
                            return Err(format!("{exact:e} is beyond F32; pack a checkpoint in F32"));
                        }
                        *bytes = value.to_le_bytes();
                    }
                }
                Ok(())
            })
        }
    };
    let kind = if to_f32 { Type::f32() } else { kind };
    Ok(Made { kind, shape: shape(&tensor.shape), part, rounding: 0.0, dtype, granularity: None, method: None, why })
}

pub(super) fn shape(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|&d| d as u64).collect()
}

fn ternary_blocks<'a>(
    name: &str,
    tensor: &TernaryTensor<'a>,
    plane: usize,
    block: Block,
    rows: Rows,
    options: &Options,
) -> Result<Made<'a>, String> {
    let kind = Type::of_block(block).ok_or("no such type")?;
    let (n, weights) = (tensor.filter_len, block.weights());
    if tensor.planes > 1 && !options.planes_as_tensors {
        return Err(format!(
            "{} planes, {} has one; give --planes-as-tensors for a file of tensors whose sum is the weight, \
             --refused-as-dense for floats, or pack it with planes=1",
            tensor.planes, kind.name
        ));
    }
    if tensor.axis != 0 {
        return Err(format!(
            "filters along axis {}, GGUF has them along the first; pack it with axis=0, or give --refused-as-dense",
            tensor.axis
        ));
    }
    if n % weights != 0 {
        let other = if block != Block::Q2_0 && n % Block::Q2_0.weights() == 0 { "q2_0 takes it; or " } else { "" };
        return Err(format!(
            "{n} weights per filter, {} takes multiples of {weights}; {other}keep it dense when packing (--exclude), \
             or give --refused-as-dense",
            kind.name
        ));
    }
    if let Granularity::Group(size) = tensor.granularity
        && size < n as u64
        && size % weights as u64 != 0
    {
        let other = if size % Block::Q2_0.weights() as u64 == 0 { "export to q2_0, or " } else { "" };
        return Err(format!(
            "a scale for every {size} weights, {} has one for every {weights}; {other}pack it with \
             granularity=group:{weights} or filter",
            kind.name
        ));
    }
    let rounding = rounding(tensor, plane)?;
    let row_bytes = n / weights * block.bytes();
    let filled = tensor.clone();
    let part = Part::rows(name, tensor.filters, row_bytes, move |range, bytes| {
        fill(&filled, plane, block, rows, range, row_bytes, bytes)
    });
    Ok(Made {
        kind,
        shape: shape(&tensor.shape),
        part,
        rounding,
        dtype: Some(tensor.dtype),
        granularity: Some(tensor.granularity.to_string()),
        method: Some(tensor.method.name.clone()),
        why: None,
    })
}

/// A scale that changes by more is no scale of f16: it lies below its smallest numbers.
const COARSEST: f64 = 0.25;

/// The largest relative change of a scale of that plane in f16.
fn rounding(tensor: &TernaryTensor<'_>, plane: usize) -> Result<f64, String> {
    let count = tensor.scales_per_plane();
    let mut largest = 0.0f64;
    for (index, scale) in (plane * count..(plane + 1) * count).map(|index| (index, tensor.scale_at(index))) {
        let stored = f16::from_f32(scale).to_f32();
        if !scale.is_finite() || scale.is_sign_negative() {
            return Err(format!("scale {index} is {scale}, should be finite and not negative; pack it again"));
        }
        let off = if scale == 0.0 { 0.0 } else { (f64::from(stored) / f64::from(scale) - 1.0).abs() };
        if !stored.is_finite() || off > COARSEST {
            return Err(format!(
                "scale {index} is {scale:e}, f16 goes from {:.1e} to {}; rescale the weights, or give \
                 --refused-as-dense",
                f16::MIN_POSITIVE_SUBNORMAL.to_f32(),
                f16::MAX
            ));
        }
        largest = largest.max(off);
    }
    Ok(largest)
}

fn fill(
    tensor: &TernaryTensor<'_>,
    plane: usize,
    block: Block,
    rows: Rows,
    range: Range<usize>,
    row_bytes: usize,
    bytes: &mut [u8],
) -> Result<(), String> {
    let (n, weights) = (tensor.filter_len, block.weights());
    let (isa, mut codes) = (Isa::detect().unwrap_or(Isa::PORTABLE), Vec::new());
    for (filter, bytes) in range.map(|row| rows.source(row)).zip(bytes.chunks_exact_mut(row_bytes)) {
        // One look-up where the filter has one scale.
        let first = f16::from_f32(tensor.scale(plane, filter, 0));
        let scale = |i: usize| match tensor.granularity {
            Granularity::Group(_) => f16::from_f32(tensor.scale(plane, filter, i * weights)),
            Granularity::Filter | Granularity::Tensor => first,
        };
        if tensor.encoding == Encoding::T2 && block.write_t2(isa, tensor.packed_filter(plane, filter), scale, bytes) {
            continue;
        }
        codes.resize(n, 0);
        tensor.codes(plane, filter, &mut codes).map_err(|message| format!("filter {filter}: {message}"))?;
        block.write_codes(&codes, scale, bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `reshape(heads, 2, half).swapaxes(1, 2)` of llama.cpp's converter has it.
    #[test]
    fn halves_of_heads_take_turns() {
        let rows = Rows::Interleaved(6);
        let order: Vec<_> = (0..12).map(|row| rows.source(row)).collect();
        assert_eq!(order, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }
}
