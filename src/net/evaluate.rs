//! A network over a data set: how often it is right, and how long that takes. Not here: how results
//! are shown.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ndarray::{ArrayView1, ArrayViewMut4};

use super::{Buffers, Network};
use crate::atomic_file::AtomicFile;
use crate::data::DataSet;
use crate::kernel::Kernel;
use crate::{Error, Result};

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
    let [channels, height, width] = network.input();
    data.check_shape(network.input())?;
    let count = options.limit.map_or(data.len(), |limit| limit.min(data.len()));
    if options.batch == 0 || count == 0 {
        return Err(Error::Request("there is nothing to do: a batch or a limit of 0 images".to_owned()));
    }
    data.check_labels(count, network.classes())?;
    // Before the long work, so that it is not in vain.
    let output = options.predictions.map(|path| AtomicFile::create(path, options.overwrite)).transpose()?;

    let (mut pixels, mut buffers) = (Vec::new(), Buffers::default());
    let mut found =
        Evaluation { predictions: Vec::with_capacity(count), correct: 0, undecided: 0, time: Duration::ZERO };
    for from in (0..count).step_by(options.batch) {
        if options.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(Error::Cancelled);
        }
        let images = from..(from + options.batch).min(count);
        pixels.resize(images.len() * channels * height * width, 0.0);
        let shape = (images.len(), channels, height, width);
        let misfit = |e: ndarray::ShapeError| Error::Request(format!("a batch of images: {e}"));
        let mut batch = ArrayViewMut4::from_shape(shape, &mut pixels).map_err(misfit)?;
        let indices: Vec<usize> = images.clone().collect();
        data.read(&indices, None, batch.view_mut())?;
        let start = Instant::now();
        let logits = network.forward(batch.view(), kernel, &mut buffers)?;
        found.time += start.elapsed();
        found.predictions.extend(logits.rows().into_iter().map(largest));
        if let Some(progress) = options.progress {
            progress(images.end, count);
        }
    }
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
