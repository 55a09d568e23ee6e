//! The initializers of an ONNX model as a checkpoint. Data in the model and in files beside it are mapped where they
//! lie, those of ternary codes as what they are; only numbers in fields of varints are decoded, into a temporary file.
//! Not here: constants that nodes carry, nested graphs and sparse tensors (a warning names them), what the graph
//! computes.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::onnx_codes;
use crate::onnx::{Data, Externals, FORMAT, Initializer, Model, dtype, type_name};
use crate::source::CheckpointBuilder;
use crate::{Checkpoint, Error, MappedFile, Result};

/// Opens it.
///
/// # Errors
/// A file that cannot be read, is no ONNX model, or whose data are not where it says.
pub(super) fn open(path: &Path, file: &MappedFile) -> Result<Checkpoint> {
    let foreign = |message| super::foreign(path, FORMAT, message);
    let model = Model::parse(file).map_err(foreign)?;
    let mut builder = CheckpointBuilder::new(path);
    let here = builder.file(file.clone());
    let (mut externals, mut numbers) = (Externals::of(path), Vec::<(std::path::PathBuf, usize)>::new());
    let (mut decoded, mut left_out) = (Vec::new(), Vec::new());
    let ternary = onnx_codes::find(&model);
    // Their codes, scales and shapes are no tensors of their own.
    let parts: BTreeSet<&str> =
        ternary.iter().flat_map(|found| [found.codes.name, found.scales.name].into_iter().chain(found.other)).collect();
    let mut beside = |builder: &mut CheckpointBuilder, initializer: &Initializer<'_>, bytes| -> Result<_> {
        let Some((file, range)) = externals.find(initializer, bytes).map_err(foreign)? else { return Ok(None) };
        let known = numbers.iter().find(|(known, _)| known == file.path()).map(|(_, number)| *number);
        let number = known.unwrap_or_else(|| {
            numbers.push((file.path().to_path_buf(), builder.file(file)));
            numbers[numbers.len() - 1].1
        });
        Ok(Some((number, range)))
    };
    for found in &ternary {
        let place = match &found.codes.data {
            Data::Here(range) => Some((here, range.clone())),
            _ => beside(&mut builder, found.codes, Some(found.bytes as u64))?,
        };
        let (Some((number, range)), Some((dtype, layout))) = (place, found.layout(file)) else { continue };
        if range.len() != found.bytes {
            return Err(foreign(format!(
                "tensor `{}`: {} bytes of INT2, shape {:?} needs {}; was the file cut off?",
                found.codes.name,
                range.len(),
                found.codes.dims,
                found.bytes
            )));
        }
        builder.ternary(found.name, (dtype, &found.shape), layout, number, range)?;
    }
    for initializer in model.initializers.iter().filter(|initializer| !parts.contains(initializer.name)) {
        let Some(dtype) = dtype(initializer.data_type) else {
            left_out.push(format!("`{}` ({})", initializer.name, type_name(initializer.data_type)));
            continue;
        };
        let shape = shape(initializer).map_err(foreign)?;
        let bytes = initializer.elements().and_then(|n| n.checked_mul(dtype.bitsize() as u64 / 8));
        match &initializer.data {
            Data::Here(range) => builder.tensor(initializer.name, dtype, &shape, here, range.clone())?,
            Data::Fields => decoded.push((initializer, dtype, shape)),
            Data::External { .. } => {
                let Some((number, range)) = beside(&mut builder, initializer, bytes)? else { continue };
                builder.tensor(initializer.name, dtype, &shape, number, range)?;
            }
        }
    }
    if !decoded.is_empty() {
        let (spilled, ends) = spill(file, decoded.iter().map(|(initializer, ..)| *initializer), path, foreign)?;
        let number = builder.file(spilled);
        let mut start = 0;
        for ((initializer, dtype, shape), end) in decoded.into_iter().zip(ends) {
            builder.tensor(initializer.name, dtype, &shape, number, start..end)?;
            start = end;
        }
    }
    if !left_out.is_empty() {
        builder.warn(format!("{} are left out: types that are not read", some(&left_out)));
    }
    if !model.elsewhere.is_empty() {
        let names: Vec<_> = model.elsewhere.iter().map(|name| format!("`{name}`")).collect();
        builder.warn(format!("{} are left out: constants, nested graphs or sparse tensors are not read", some(&names)));
    }
    builder.finish()
}

/// The first few, and how many there are besides.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

fn shape(initializer: &Initializer<'_>) -> Result<Vec<usize>, String> {
    let dims = initializer.dims.iter().map(|&dim| usize::try_from(dim));
    dims.collect::<Result<_, _>>().map_err(|_| format!("tensor `{}`: its shape is too large", initializer.name))
}

/// Decodes numbers into a temporary file, one tensor after another; also where each ends.
fn spill<'f>(
    file: &[u8],
    initializers: impl Iterator<Item = &'f Initializer<'f>>,
    path: &Path,
    foreign: impl Fn(String) -> Error,
) -> Result<(MappedFile, Vec<usize>)> {
    let failed = |source| Error::Io { path: path.to_path_buf(), action: "decode into a temporary file", source };
    let mut writer = BufWriter::new(tempfile::tempfile().map_err(failed)?);
    let (mut ends, mut end) = (Vec::new(), 0);
    for initializer in initializers {
        let mut broken = None;
        let decoded = initializer.decode(file, |bytes| {
            end += bytes.len();
            writer.write_all(bytes).map_err(|error| {
                let message = error.to_string();
                broken = Some(error);
                message
            })
        });
        if let Some(error) = broken {
            return Err(failed(error));
        }
        decoded.map_err(&foreign)?;
        ends.push(end);
    }
    let spilled = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    Ok((MappedFile::of_temporary(spilled, path)?, ends))
}
