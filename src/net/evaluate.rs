//! A network over a data set: how often it is right, and how long that takes. Not here: how results
//! are shown.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ndarray::ArrayView1;

use super::batches::Batches;
use super::{Buffers, Network};
use crate::Result;
use crate::atomic_file::AtomicFile;
use crate::data::DataSet;
use crate::kernel::Kernel;

/// How to evaluate.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Images per forward pass, at least 1.
    pub batch: usize,
    /// Only so many images, from the first.
    pub limit: Option<usize>,
    /// A file for the predictions: a class number per line, in the order of the images, or `none`. It
    /// appears when all are there.
    pub predictions: Option<&'a Path>,
    /// Replace that file if it exists.
    pub overwrite: bool,
    /// Is told how many images are done, and of how many.
    pub progress: Option<&'a dyn Fn(usize, usize)>,
    /// Set it to stop the run.
    pub cancel: Option<&'a AtomicBool>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { batch: 100, limit: None, predictions: None, overwrite: false, progress: None, cancel: None }
    }
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The class of each image: the first of the largest logits. `None` where all of them are NaN.
    pub predictions: Vec<Option<usize>>,
    /// How many of them are the label.
    pub correct: usize,
    /// How many images have no class.
    pub undecided: usize,
    /// How long the forward passes took, without reading images or comparing labels.
    pub time: Duration,
}

/// Runs the network over the data set's images, batch by batch, on the threads of the caller's pool.
///
/// # Errors
/// Images that the network does not take or that cannot be read, a label that it has no output for, an
/// output that exists or cannot be written, or cancellation.
pub fn evaluate(network: &Network<'_>, data: &DataSet, kernel: &Kernel, options: &Options<'_>) -> Result<Evaluation> {
    let batches = Batches::new(data, network.input(), options.batch, options.limit)?;
    let batches = batches.watched(options.progress, options.cancel);
    let count = batches.count();
    data.check_labels(count, network.classes())?;
    // Before the long work, so that it is not in vain.
    let output = options.predictions.map(|path| AtomicFile::create(path, options.overwrite)).transpose()?;

    let mut buffers = Buffers::default();
    let mut found =
        Evaluation { predictions: Vec::with_capacity(count), correct: 0, undecided: 0, time: Duration::ZERO };
    batches.each(|images| {
        let start = Instant::now();
        let logits = network.forward(images, kernel, &mut buffers)?;
        found.time += start.elapsed();
        found.predictions.extend(logits.rows().into_iter().map(largest));
        Ok(())
    })?;
    let pairs = found.predictions.iter().zip(data.labels());
    found.correct = pairs.filter(|(class, label)| **class == Some(**label as usize)).count();
    found.undecided = found.predictions.iter().filter(|class| class.is_none()).count();
    if let Some(file) = output {
        let line = |class: &Option<usize>| class.map_or("none\n".to_owned(), |class| format!("{class}\n"));
        let text: String = found.predictions.iter().map(line).collect();
        file.write_at(text.as_bytes(), 0)?;
        file.publish()?;
    }
    Ok(found)
}

/// Where the largest value is, the first of equals; NaN is none.
fn largest(logits: ArrayView1<'_, f32>) -> Option<usize> {
    let values = logits.iter().enumerate().filter(|(_, x)| !x.is_nan());
    values.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(class, _)| class)
}
