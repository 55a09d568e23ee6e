//! Batch norm behind a convolution or a linear layer, folded into it: the layer's scales and bias take
//! over its factor and offset, and the network has one layer less. Not here: batch norm in training, or
//! packing.
//!
//! ```text
//! (α·t·x + b)·f + o = (α·f)·t·x + (b·f + o)    f = weight/√(variance + eps),  o = bias − mean·f
//! ```
//!
//! The factor belongs to a filter, and so does its α: codes stay what they are (all turn over where f < 0),
//! and what had one scale per tensor has one per filter afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::layers::{BatchNorm, Described, Layer, Residual, Written};
use super::{Description, Source, Tensors};
use crate::container::{Granularity, Tensor};
use crate::error::NetworkProblem;
use crate::select::{Settings, found_again, found_again_as_int8, stays_dense, trained_metadata};
use crate::source::write::{Raw, floats, write};
use crate::ternarize::ScaleDtype;
use crate::{Error, Result};

/// A network and its tensors, with batch norms folded.
#[derive(Debug)]
pub struct Folded {
    /// Its layers.
    pub description: Description,
    /// The batch norms that went into the layer before them, by the names of their factors.
    pub folded: Vec<String>,
    /// Those that stay, since no convolution or linear layer stands before them.
    pub left: Vec<String>,
    tensors: Vec<Raw>,
    /// By which settings the converter finds the same codes again, by tensor.
    settings: BTreeMap<String, Settings>,
}

/// Folds every batch norm that follows a convolution or a linear layer.
///
/// # Errors
/// A tensor that is missing, damaged, or of another shape or type; ternary weights of several planes or
/// along another axis than the outputs; a factor that is not finite; a name that is taken already.
pub fn fold(description: &Description, source: &Source) -> Result<Folded> {
    description.check_distinct("folding")?;
    let names = description.tensors().into_iter().map(|(name, _)| name.to_owned()).collect();
    let mut folding = Folding {
        source,
        tensors: Tensors::new(source, true)?,
        names,
        raw: Vec::new(),
        settings: BTreeMap::new(),
        folded: Vec::new(),
        left: Vec::new(),
    };
    let layers = folding.layers(description.layers())?;
    let Folding { raw, settings, folded, left, .. } = folding;
    let description = Description::from_layers(description.name(), description.input(), layers)?;
    Ok(Folded { description, folded, left, tensors: raw, settings })
}

impl Folded {
    /// Writes the tensors as `.safetensors`. What was ternary still is, as floats; the metadata says so, and
    /// the converter packs the same codes again.
    ///
    /// # Errors
    /// An output that exists without `overwrite`, or cannot be written.
    pub fn save(&self, path: &Path, overwrite: bool) -> Result<()> {
        write(path, overwrite, &self.tensors, trained_metadata(&self.settings)?)
    }
}

/// What has been folded so far.
struct Folding<'a> {
    source: &'a Source,
    tensors: Tensors<'a>,
    /// Names that are taken.
    names: BTreeSet<String>,
    raw: Vec<Raw>,
    settings: BTreeMap<String, Settings>,
    folded: Vec<String>,
    left: Vec<String>,
}

impl Folding<'_> {
    fn layers(&mut self, layers: &[Described]) -> Result<Vec<Written>> {
        let mut written = Vec::with_capacity(layers.len());
        let mut rest = layers.iter().peekable();
        while let Some(described) = rest.next() {
            let channels = described.input[0];
            let mut norm = || {
                let norm = rest.next_if(|next| matches!(next.layer, Layer::BatchNorm(_)))?;
                if let Layer::BatchNorm(norm) = &norm.layer { Some(norm) } else { None }
            };
            written.push(Written(match &described.layer {
                Layer::Conv2d(conv) => {
                    let mut conv = conv.clone();
                    conv.bias = self.weights(&conv.weight, conv.bias.take(), &conv.shape(channels), norm())?;
                    Layer::Conv2d(conv)
                }
                Layer::Linear(linear) => {
                    let mut linear = linear.clone();
                    let shape = [linear.outputs, channels];
                    linear.bias = self.weights(&linear.weight, linear.bias.take(), &shape, norm())?;
                    Layer::Linear(linear)
                }
                Layer::Residual(Residual { body, shortcut }) => {
                    Layer::Residual(Residual { body: self.layers(body)?, shortcut: self.layers(shortcut)? })
                }
                Layer::BatchNorm(norm) => {
                    for name in [&norm.weight, &norm.bias, &norm.mean, &norm.variance] {
                        let values = self.tensors.vector(name, channels)?;
                        self.raw.push(floats(name.clone(), vec![channels], &values));
                    }
                    self.left.push(norm.weight.clone());
                    Layer::BatchNorm(norm.clone())
                }
                _ => described.written().0,
            }));
        }
        Ok(written)
    }

    /// A layer's tensors, with the batch norm behind it; returns the name of its bias.
    fn weights(
        &mut self,
        name: &str,
        mut bias: Option<String>,
        shape: &[usize],
        norm: Option<&BatchNorm>,
    ) -> Result<Option<String>> {
        let (filters, mut settings) = (shape[0], self.settings_of(name)?);
        let mut values = self.tensors.values(name, shape)?;
        let mut offsets = match &bias {
            Some(bias) => self.tensors.vector(bias, filters)?,
            None => vec![0.0; filters],
        };
        if let Some(norm) = norm {
            let lines = self.lines(norm, filters)?;
            for ((filter, offset), [factor, add]) in
                values.chunks_mut(shape[1..].iter().product()).zip(&mut offsets).zip(lines)
            {
                filter.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
                *offset = (f64::from(*offset) * factor + add) as f32;
            }
            if values.iter().chain(&offsets).any(|x| !x.is_finite()) {
                let path = self.source.path().display();
                return Err(Error::Request(format!(
                    "{path}: tensor `{name}`: not finite with the factors of `{}` in it; leave that batch norm apart",
                    norm.weight
                )));
            }
            if settings.granularity == Some(Granularity::Tensor) {
                settings.granularity = Some(Granularity::Filter);
            }
            bias = Some(match bias {
                Some(bias) => bias,
                None => self.free(&format!("{}.bias", name.strip_suffix(".weight").unwrap_or(name)))?,
            });
            self.folded.push(norm.weight.clone());
        }
        self.settings.insert(name.to_owned(), settings);
        self.raw.push(floats(name.to_owned(), shape.to_vec(), &values));
        if let Some(bias) = &bias {
            self.raw.push(floats(bias.clone(), vec![filters], &offsets));
        }
        Ok(bias)
    }

    /// Factor and offset of every channel.
    fn lines(&self, norm: &BatchNorm, channels: usize) -> Result<Vec<[f64; 2]>> {
        let [weight, bias, mean, variance] = [&norm.weight, &norm.bias, &norm.mean, &norm.variance];
        let [weight, bias] = [self.tensors.vector(weight, channels)?, self.tensors.vector(bias, channels)?];
        let [mean, variance] = [self.tensors.vector(mean, channels)?, self.tensors.vector(variance, channels)?];
        let line = |c: usize| {
            let factor = f64::from(weight[c]) / (f64::from(variance[c]) + f64::from(norm.eps)).sqrt();
            [factor, f64::from(bias[c]) - f64::from(mean[c]) * factor]
        };
        Ok((0..channels).map(line).collect())
    }

    /// Which settings find the same codes in what is written.
    fn settings_of(&self, name: &str) -> Result<Settings> {
        let Source::Container(container) = self.source else { return Ok(stays_dense()) };
        let error = |problem| {
            let path = container.path().to_path_buf();
            Err(Error::Network { path, tensor: name.to_owned(), problem })
        };
        let tensor = match container.by_name(name) {
            Some(Tensor::Ternary(tensor)) => tensor,
            Some(Tensor::Int8(int8)) if int8.axis != 0 => {
                return error(NetworkProblem::FilterAxis { found: int8.axis });
            }
            // Its scale takes the factor, in f32.
            Some(Tensor::Int8(_)) => return Ok(found_again_as_int8(0, ScaleDtype::F32)),
            Some(Tensor::Dense(_)) | None => return Ok(stays_dense()),
        };
        if tensor.planes != 1 {
            return error(NetworkProblem::Planes { found: tensor.planes });
        }
        if tensor.axis != 0 {
            return error(NetworkProblem::FilterAxis { found: tensor.axis });
        }
        Ok(found_again(tensor.encoding, tensor.granularity))
    }

    fn free(&mut self, name: &str) -> Result<String> {
        if self.names.insert(name.to_owned()) {
            return Ok(name.to_owned());
        }
        Err(Error::Request(format!(
            "the new bias would be called `{name}`, and there is such a tensor already; give the layer a bias in the \
             network's description"
        )))
    }
}
