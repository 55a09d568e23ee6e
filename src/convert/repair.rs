//! Dense tensors that change once everything else is packed: biases, statistics of batch norm. Not here:
//! what they change to ([`Replacement`]; `net` and [`crate::calibration`] find them).

use std::collections::BTreeMap;

use crate::container::{ContainerWriter, Index, Replacement};
use crate::dtype::{encode, is_float};
use crate::source::{FilterView, TensorView};
use crate::{Container, Error, Isa, Result};

/// Looks at what was packed and says which of the dense tensors are to have other values.
pub type Repair<'a> = dyn Fn(Container) -> Result<Vec<Replacement>> + Sync + 'a;

/// Asks, and writes the new values in place of the old ones, in the tensors' own types.
pub(super) fn repair(writer: &ContainerWriter, index: &mut Index, repair: &Repair<'_>) -> Result<()> {
    let replacements = repair(writer.draft(index)?)?;
    let places: BTreeMap<String, usize> = index.tensors.iter().map(|t| t.name.clone()).zip(0..).collect();
    for Replacement { name, values, by } in replacements {
        let refused = |what: &str| Error::Request(format!("tensor `{name}` was to have other values ({by}); {what}"));
        let entry = places.get(&name).map(|&i| &mut index.tensors[i]).ok_or_else(|| refused("there is none"))?;
        let (dtype, elements) = (entry.dtype, entry.elements());
        let dense = entry.dense_mut().ok_or_else(|| refused("it is not dense; exclude it (--exclude)"))?;
        if !is_float(dtype) || values.len() as u64 != elements {
            return Err(refused(&format!("expected {} floats, found {elements} of {dtype}", values.len())));
        }
        let mut bytes = vec![0; values.len() * dtype.bitsize() / 8];
        encode(dtype, &values, &mut bytes);
        // What an f32 holds may be infinite in the tensor's own type.
        let shape = [values.len()];
        let stored = TensorView::new(&name, dtype, &shape, &bytes);
        let view = FilterView::new(stored, 0).ok_or_else(|| refused("it holds no floats"))?;
        let mut scratch = Vec::new();
        let read: &[f32] = view.read(0..values.len(), Isa::PORTABLE, &mut scratch);
        if let Some(at) = read.iter().position(|value| !value.is_finite()) {
            return Err(refused(&format!("value {at} would be {}, which does not fit {dtype}", values[at])));
        }
        writer.write_at(&bytes, dense.section.offset)?;
        dense.section.crc32 = crc32fast::hash(&bytes);
        dense.repaired = Some(by);
    }
    Ok(())
}
