//! Statistics of batch norm measured again, with the weights that the network has now: ternary weights give
//! other means and variances than the float ones that the running statistics are of, and images without
//! labels are enough to find them. Not here: packing, or what can be said without images ([`super::adjust`]).
//!
//! One pass over the images. Each batch norm goes by the statistics of the batch while it is measured, so
//! that the layers behind it are given what they will be given; what is written are mean and variance
//! over all images.

use std::sync::atomic::AtomicBool;

use super::batch_norm::Moments;
use super::batches::Batches;
use super::{Buffers, Description, Network, Source};
use crate::container::Replacement;
use crate::data::DataSet;
use crate::kernel::Kernel;
use crate::{Error, Result};

/// How to measure.
#[derive(Clone, Copy)]
pub struct ReestimateOptions<'a> {
    /// Images per forward pass, about, at least 1: statistics of many are nearer to those of all.
    pub batch: usize,
    /// Only so many images, from the first.
    pub limit: Option<usize>,
    /// Is told how many images are done, and of how many.
    pub progress: Option<&'a dyn Fn(usize, usize)>,
    /// Set it to stop the run.
    pub cancel: Option<&'a AtomicBool>,
}

/// What every batch norm was given, in the order in which they run.
#[derive(Debug, Default)]
pub(super) struct Measured {
    norms: Vec<Moments>,
    /// The one that comes next.
    next: usize,
}

impl Measured {
    pub fn add(&mut self, moments: &Moments) {
        if self.next == self.norms.len() {
            self.norms.push(Moments::default());
        }
        self.norms[self.next].add(moments);
        self.next += 1;
    }
}

/// Running means and variances for a packed network, from the images of a data set.
///
/// # Errors
/// A network without batch norm, or that the source has not the tensors of; images that it does not take
/// or that cannot be read; fewer than 2 of them; or cancellation.
pub fn reestimate(
    description: &Description,
    source: &Source,
    data: &DataSet,
    kernel: &Kernel,
    options: &ReestimateOptions<'_>,
) -> Result<Vec<Replacement>> {
    description.check_distinct("measuring batch norm again")?;
    let norms = description.batch_norms();
    if norms.is_empty() {
        let name = description.name();
        return Err(Error::Request(format!("{name}: no layer is a batch norm, so there is nothing to measure again")));
    }
    let network = Network::load(description, source, false)?;
    let images = options.limit.map_or(data.len(), |limit| limit.min(data.len()));
    if images < 2 {
        return Err(Error::Request(format!("{images} images; a variance takes at least 2")));
    }
    // A short batch at the end would have statistics of few images.
    let batches = Batches::new(data, network.input(), options.batch.max(1), options.limit)?.even();
    let mut buffers = Buffers::default();
    buffers.measured = Some(Measured::default());
    batches.watched(options.progress, options.cancel).each(|images| {
        if let Some(measured) = &mut buffers.measured {
            measured.next = 0;
        }
        network.forward(images, kernel, &mut buffers).map(drop)
    })?;
    let by = format!("measured again on {images} images");
    let replacement = |name: &str, values| Replacement { name: name.to_owned(), values, by: by.clone() };
    let measured = buffers.measured.unwrap_or_default().norms;
    let both = norms.iter().zip(&measured);
    Ok(both
        .flat_map(|(norm, found)| {
            [replacement(&norm.mean, found.mean()), replacement(&norm.variance, found.variance())]
        })
        .collect())
}
