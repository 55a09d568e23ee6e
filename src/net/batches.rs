//! The images of a data set, batch by batch, for a network that looks at them. Not here: what it makes
//! of them, or the batches of training, which come in random order.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{ArrayView4, ArrayViewMut4};

use crate::data::DataSet;
use crate::{Error, Result};

/// Which images, and who is told.
pub(super) struct Batches<'a> {
    data: &'a DataSet,
    batch: usize,
    even: bool,
    count: usize,
    progress: Option<&'a dyn Fn(usize, usize)>,
    cancel: Option<&'a AtomicBool>,
}

impl<'a> Batches<'a> {
    /// Of a data set for a network that takes `input`, so many images at once, and only `limit` in all.
    ///
    /// # Errors
    /// Images of another shape, or none.
    pub fn new(data: &'a DataSet, input: [usize; 3], batch: usize, limit: Option<usize>) -> Result<Self> {
        data.check_shape(input)?;
        let count = limit.map_or(data.len(), |limit| limit.min(data.len()));
        if batch == 0 || count == 0 {
            return Err(Error::Request("there is nothing to do: a batch or a limit of 0 images".to_owned()));
        }
        Ok(Self { data, batch, even: false, count, progress: None, cancel: None })
    }

    /// As many batches, but none of them larger than another by more than one image.
    pub fn even(self) -> Self {
        Self { even: true, ..self }
    }

    /// Tells `progress` how many images are done, and of how many; `cancel` ends it.
    pub fn watched(self, progress: Option<&'a dyn Fn(usize, usize)>, cancel: Option<&'a AtomicBool>) -> Self {
        Self { progress, cancel, ..self }
    }

    /// How many images in all.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `run` with every batch: images × channels × height × width.
    ///
    /// # Errors
    /// Images that cannot be read, what `run` says, or cancellation.
    pub fn each(&self, mut run: impl FnMut(ArrayView4<'_, f32>) -> Result<()>) -> Result<()> {
        let [channels, height, width] = self.data.shape();
        let mut pixels = Vec::new();
        let batches = self.count.div_ceil(self.batch);
        let start = |i: usize| if self.even { i * self.count / batches } else { (i * self.batch).min(self.count) };
        for (from, to) in (0..batches).map(|i| (start(i), start(i + 1))) {
            if self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Err(Error::Cancelled);
            }
            let indices: Vec<usize> = (from..to).collect();
            pixels.resize(indices.len() * channels * height * width, 0.0);
            let shape = (indices.len(), channels, height, width);
            let misfit = |e: ndarray::ShapeError| Error::Request(format!("a batch of images: {e}"));
            let mut batch = ArrayViewMut4::from_shape(shape, &mut pixels).map_err(misfit)?;
            self.data.read(&indices, None, batch.view_mut())?;
            run(batch.view())?;
            if let Some(progress) = self.progress {
                progress(to, self.count);
            }
        }
        Ok(())
    }
}
