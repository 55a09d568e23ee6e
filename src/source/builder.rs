//! A checkpoint from parts: what readers of other formats than safetensors hand in, held to the same limits and
//! checks. Not here: any format.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::header::check_limits;
use super::{Checkpoint, Dtype, Entry, MappedFile, TensorView, Ternary, TernaryLayout, TernaryPlane};
use crate::dtype::{byte_length, is_float, needs};
use crate::error::CheckpointProblem as Problem;
use crate::limits::PACKED_PLANES;
use crate::{Error, Result};

/// Puts a [`Checkpoint`] together.
#[derive(Debug)]
pub struct CheckpointBuilder {
    checkpoint: Checkpoint,
}

/// A tensor that was taken out again: what [`CheckpointBuilder::tensor`] was given for it.
#[derive(Debug)]
pub struct Taken {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The number of the file that it lies in.
    pub file: usize,
    /// Its bytes in that file.
    pub range: Range<usize>,
    /// How its axes are nested there, where that is not C order.
    pub order: Option<Vec<usize>>,
}

impl CheckpointBuilder {
    /// Of nothing so far; `path` is what errors call it.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let checkpoint = Checkpoint {
            path: path.as_ref().to_path_buf(),
            files: Vec::new(),
            beside: Vec::new(),
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
            warnings: Vec::new(),
            scales: BTreeSet::new(),
            biases: BTreeSet::new(),
        };
        Self { checkpoint }
    }

    /// Of what is in a checkpoint.
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// What is there so far.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Adds a file that tensors lie in; returns its number.
    pub fn file(&mut self, file: MappedFile) -> usize {
        self.checkpoint.files.push(file);
        self.checkpoint.files.len() - 1
    }

    /// Adds a file that no tensor lies in, but that says where they lie or what their bytes mean; to be opened before
    /// that is read. A run notices when it changes, as the others.
    pub fn depends_on(&mut self, file: MappedFile) {
        self.checkpoint.beside.push(file);
    }

    /// Adds a tensor: the bytes `range` of that file, little-endian, in C order. Tensors may share bytes.
    ///
    /// # Errors
    /// A name or shape over the limits, or bytes that are not there or not as many as shape and type need.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        file: usize,
        range: Range<usize>,
    ) -> Result<()> {
        let found = self.check(name, shape, file, &range)?;
        let shape64: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
        if byte_length(dtype, &shape64) != Some(found) {
            let (tensor, expected) = (name.to_owned(), needs(dtype, &shape64));
            return Err(self.problem(Problem::Size { tensor, shape: shape64, dtype, expected, found }));
        }
        let (name, shape) = (name.into(), shape.into());
        self.checkpoint.tensors.push(Entry { name, dtype, shape, file, range, order: None, ternary: None });
        Ok(())
    }

    /// Adds a tensor as [`CheckpointBuilder::tensor`], of elements of whole bytes that are not in C order: its axes are
    /// nested as `order` says, the outermost first (`[1, 0]`: a transposed matrix), without holes.
    ///
    /// # Errors
    /// As [`CheckpointBuilder::tensor`].
    ///
    /// # Panics
    /// When there is no such file, or `order` does not have every axis once.
    pub fn permuted(
        &mut self,
        name: &str,
        dtype: Dtype,
        (shape, order): (&[usize], &[usize]),
        file: usize,
        range: Range<usize>,
    ) -> Result<()> {
        let mut axes = order.to_vec();
        axes.sort_unstable();
        assert!(axes.into_iter().eq(0..shape.len()) && dtype.bitsize().is_multiple_of(8), "{order:?} of {shape:?}");
        self.tensor(name, dtype, shape, file, range)?;
        let c_order = shape.contains(&0) || order.iter().filter(|&&axis| shape[axis] != 1).is_sorted();
        if let Some(entry) = self.checkpoint.tensors.last_mut().filter(|_| !c_order) {
            entry.order = Some(order.into());
        }
        Ok(())
    }

    /// Adds a tensor that is ternary: the bytes `range` of that file hold, in that layout, codes and scales of
    /// weights of that floating-point type and shape.
    ///
    /// # Errors
    /// As [`CheckpointBuilder::tensor`]; how many bytes the layout needs is for the caller to check.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn ternary(
        &mut self,
        name: &str,
        (dtype, shape): (Dtype, &[usize]),
        layout: Box<dyn TernaryLayout>,
        file: usize,
        range: Range<usize>,
    ) -> Result<()> {
        self.ternary_planes(name, (dtype, shape), vec![TernaryPlane { layout, file, range }])
    }

    /// Adds a tensor that is the sum of ternary ones, its planes: in their order, and alike in axis and units.
    ///
    /// # Errors
    /// As [`CheckpointBuilder::ternary`]; planes that differ, none, or more than a tensor is packed into.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn ternary_planes(
        &mut self,
        name: &str,
        (dtype, shape): (Dtype, &[usize]),
        planes: Vec<TernaryPlane>,
    ) -> Result<()> {
        for plane in &planes {
            self.check(name, shape, plane.file, &plane.range)?;
        }
        let wrong = |message| self.problem(Problem::Dtype { tensor: name.to_owned(), message });
        let first = planes.first().filter(|_| planes.len() <= PACKED_PLANES).ok_or_else(|| {
            wrong(format!("it has {} planes, should have 1 to {PACKED_PLANES}; export the model again", planes.len()))
        })?;
        let (axis, unit_len) = (first.layout.axis(), first.layout.unit_len());
        if planes.iter().any(|plane| (plane.layout.axis(), plane.layout.unit_len()) != (axis, unit_len)) {
            return Err(wrong("its planes have scales for other weights each; export the model again".to_owned()));
        }
        let shape64: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
        let fits = byte_length(dtype, &shape64).is_some_and(|bytes| bytes > 0);
        if !is_float(dtype) || axis >= shape.len() || !fits {
            return Err(wrong(format!("{dtype} of shape {shape:?} cannot be ternary; export the model again")));
        }
        let (file, range) = (first.file, first.range.clone());
        let ternary = Some(Arc::new(Ternary { dtype, shape: shape.to_vec(), planes }));
        let (name, dtype, shape) = (name.into(), Dtype::U8, Box::new([range.len()]));
        self.checkpoint.tensors.push(Entry { name, dtype, shape, file, range, order: None, ternary });
        Ok(())
    }

    /// Takes out every tensor that is wanted, in one pass over them, in their order.
    pub fn take(&mut self, mut wanted: impl FnMut(TensorView<'_>) -> bool) -> Vec<Taken> {
        let mut chosen: Vec<bool> = self.checkpoint.tensors().map(&mut wanted).collect();
        chosen.reverse();
        let taken = self.checkpoint.tensors.extract_if(.., |_| chosen.pop().unwrap_or_default());
        let taken = taken.map(|Entry { name, dtype, shape, file, range, order, .. }| Taken {
            name: name.into(),
            dtype,
            shape: shape.into(),
            file,
            range,
            order: order.map(Vec::from),
        });
        taken.collect()
    }

    /// Adds to the metadata; of one key the last value counts.
    pub fn metadata(&mut self, key: &str, value: &str) {
        self.checkpoint.metadata.insert(key.to_owned(), value.to_owned());
    }

    /// Says that the tensor of that name is scales of weights which are quantized already: it stays dense unless asked for.
    pub fn scales(&mut self, name: &str) {
        self.checkpoint.scales.insert(name.to_owned());
    }

    /// Says that the tensor of that name is a bias, whatever its shape: it stays dense unless asked for.
    pub fn bias(&mut self, name: &str) {
        self.checkpoint.biases.insert(name.to_owned());
    }

    /// Adds a warning.
    pub fn warn(&mut self, warning: String) {
        self.checkpoint.warnings.push(warning);
    }

    /// The checkpoint, its tensors in the order of their bytes.
    ///
    /// # Errors
    /// Two tensors of one name.
    pub fn finish(mut self) -> Result<Checkpoint> {
        self.checkpoint.tensors.sort_by(|a, b| (a.file, a.range.start, &a.name).cmp(&(b.file, b.range.start, &b.name)));
        self.checkpoint.owners()?;
        Ok(self.checkpoint)
    }

    /// The number of bytes, if everything about them but their meaning is as it should be.
    fn check(&self, name: &str, shape: &[usize], file: usize, range: &Range<usize>) -> Result<u64> {
        check_limits(name, shape.len()).map_err(|problem| self.problem(problem))?;
        let available = self.checkpoint.files[file].len();
        if range.start > range.end || range.end > available {
            let (begin, end, available) = (range.start as u64, range.end as u64, available as u64);
            return Err(self.problem(Problem::OutOfBounds { tensor: name.to_owned(), begin, end, available }));
        }
        Ok(range.len() as u64)
    }

    fn problem(&self, problem: Problem) -> Error {
        Error::checkpoint(&self.checkpoint.path)(problem)
    }
}
