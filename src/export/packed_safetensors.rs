//! `.twn` → a safetensors file of packed weights, for those who have no reader of `.twn`: codes and scales are plain
//! tensors, and the metadata say how they lie (`docs/packed-safetensors.md`). Nothing is lost: every encoding,
//! granularity and number of planes goes, int8 as well. Not here: floats ([`crate::unpack`]).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::safetensors_file::{self, Written};
use super::{Export, Exporter, Line, Options, Part};
use crate::source::PACKED_KEY;
use crate::ternarize::ScaleDtype;
use crate::{Container, Dtype, Error, Granularity, Result, Tensor};

/// The format.
pub(super) struct PackedSafetensors;

impl Exporter for PackedSafetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn about(&self) -> &'static str {
        "packed codes and scales as plain tensors"
    }

    fn export<'a>(&self, container: &'a Container, options: &Options) -> Result<Export<'a>> {
        if options.into.is_some() || options.planes_as_tensors || options.refused_as_dense {
            let message = "this format takes every tensor as it is, planes too: leave out --into, --planes-as-tensors \
                           and --refused-as-dense";
            return Err(Error::Request(message.to_owned()));
        }
        let (mut tensors, mut written, mut described) = (Vec::new(), Vec::new(), Map::new());
        for (entry, tensor) in options.tensors(container)? {
            let name = entry.name.as_str();
            let (before, line) = (written.len(), tensors.len());
            let mut add = |suffix: &str, dtype, shape, bytes: &'a [u8]| {
                written.push(Written { name: format!("{name}{suffix}"), dtype, shape, part: Part::bytes(bytes), line });
            };
            let sections: Vec<&[u8]> = entry.sections().map(|(_, section)| container.section(section)).collect();
            let becomes = match tensor {
                Tensor::Dense(dense) => {
                    add("", entry.dtype, entry.shape.clone(), dense.data);
                    format!("{} {:?}", entry.dtype, entry.shape)
                }
                Tensor::Ternary(ternary) => {
                    let (planes, filters) = (ternary.planes as u64, ternary.filters as u64);
                    let codes = [planes, filters, ternary.filter_bytes() as u64];
                    let scales = match ternary.granularity {
                        Granularity::Tensor => vec![planes, 1],
                        Granularity::Filter => vec![planes, filters],
                        Granularity::Group(_) => {
                            vec![planes, filters, ternary.filter_len.div_ceil(ternary.scale_run()) as u64]
                        }
                    };
                    let what = json!({
                        "axis": ternary.axis, "dtype": entry.dtype.to_string(), "encoding": ternary.encoding.name(),
                        "granularity": ternary.granularity.to_string(), "method": ternary.method.name,
                        "shape": entry.shape,
                    });
                    described.insert(name.to_owned(), what);
                    let becomes = format!("{} {codes:?} and scales {scales:?}", ternary.encoding.name());
                    add(".codes", Dtype::U8, codes.to_vec(), sections[0]);
                    add(".scales", scale_type(ternary.scale_dtype), scales, sections[1]);
                    becomes
                }
                Tensor::Int8(int8) => {
                    let (codes, scales) =
                        (vec![int8.filters as u64, int8.filter_len as u64], vec![int8.filters as u64]);
                    let what = json!({
                        "axis": int8.axis, "dtype": entry.dtype.to_string(), "encoding": "int8",
                        "granularity": "filter", "shape": entry.shape,
                    });
                    described.insert(name.to_owned(), what);
                    let becomes = format!("int8 {codes:?} and scales {scales:?}");
                    add(".codes", Dtype::I8, codes, sections[0]);
                    add(".scales", scale_type(int8.scale_dtype), scales, sections[1]);
                    becomes
                }
            };
            let bytes = written[before..].iter().map(|written| written.part.len()).sum();
            tensors.push(Line { tensor: name.to_owned(), becomes: Ok(becomes), bytes, rounding: 0.0 });
        }
        let mut metadata: BTreeMap<String, String> = container.index().metadata.clone();
        metadata.insert(PACKED_KEY.to_owned(), Value::Object(described).to_string());
        let parts = safetensors_file::parts(&mut tensors, written, &metadata);
        Ok(Export { tensors, parts, ..Export::default() })
    }
}

fn scale_type(dtype: ScaleDtype) -> Dtype {
    match dtype {
        ScaleDtype::F32 => Dtype::F32,
        ScaleDtype::F16 => Dtype::F16,
    }
}
