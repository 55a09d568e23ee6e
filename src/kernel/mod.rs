//! Products of packed weights with dense activations, on the codes as they lie in the file:
//! X·W ≈ (α·X) ⊕ T, where ⊕ only adds and subtracts (TWN, arXiv 1605.04711, eq. 2).
//!
//! ```text
//!  PackedMatrix ──────────────┐
//!  codes, scales as stored    ├──► tiles of R filters × C columns ──► α, bias ──► y
//!  x ──► activations ─────────┘    one instruction set
//!        quantized, permuted
//! ```
//!
//! Not here: how weights become ternary, or where they are stored.

mod activations;
mod conv;
mod digits;
mod exact;
mod int8;
mod lanes;
mod matrix;
mod product;
pub mod reference;

use std::marker::PhantomData;

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayView4, ArrayViewMut1, ArrayViewMut2, ArrayViewMut4, Axis};

use self::activations::{BLOCK, Pack8, Pack32, Quantized};
pub use self::conv::Conv2d;
use self::digits::{B1, Digits, T2, T5};
use self::lanes::{LANES, Line8, Line32};
pub use self::matrix::PackedMatrix;
use self::product::{Columns, Columns8, Columns32, Product};
use crate::pack::Encoding;
use crate::vector::Task;
use crate::{Error, Isa, Result};

/// How activations are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Activations stay `f32`; weights only select, add and subtract, and each filter's sum (or
    /// group's) is multiplied by its scale. |error| ≤ (n/16 + 6 + planes)·2⁻²⁴·Σ|α·x| to first order.
    /// A weight of zero leaves its activation out, even NaN or infinity.
    ExactF32,
    /// Each vector of activations is rounded to 8 bits first, x ≈ s·q with s = max|x|/127, and
    /// summed as integers. |error| ≤ s/2·Σ|ŵ|, besides what the scales' arithmetic in `f32` adds.
    /// NaN or infinity in a vector makes all its products NaN.
    Int8,
}

/// Multiplies packed matrices with one arithmetic and one instruction set. All instruction sets and
/// numbers of threads give the same bits.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    arithmetic: Arithmetic,
    isa: Isa,
}

/// Memory that products need besides their operands: a few MiB at the most. It grows to what is
/// asked of it and is used again, so that a second product of the same shapes allocates nothing.
#[derive(Debug, Default)]
pub struct Workspace {
    lines8: Vec<Line8>,
    columns8: Vec<Quantized>,
    sums: Vec<[i32; LANES]>,
    lines32: Vec<Line32>,
}

/// Activations that are laid down at a time, in bytes.
const PANEL: usize = 4 << 20;

/// Codes that a thread keeps in its cache while it goes through the columns, in bytes.
const CODES: usize = 256 << 10;

/// Below so many weights × columns, a product stays on one thread: it takes less time than waking
/// another one.
const SMALL: usize = 1 << 20;

impl Kernel {
    /// With the fastest instruction set of this machine, or the one that `TWN_PACK_ISA` names.
    ///
    /// # Errors
    /// When `TWN_PACK_ISA` names one that is not there.
    pub fn new(arithmetic: Arithmetic) -> Result<Self> {
        Ok(Self::with_isa(arithmetic, Isa::detect()?))
    }

    /// With that instruction set.
    pub fn with_isa(arithmetic: Arithmetic, isa: Isa) -> Self {
        Self { arithmetic, isa }
    }

    /// y = W·x. `x` has `filter_len` elements, `y` as many as there are filters; slices or views.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn vector<'x, 'y>(
        &self,
        w: &PackedMatrix<'_>,
        x: impl Into<ArrayView1<'x, f32>>,
        y: impl Into<ArrayViewMut1<'y, f32>>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.matrix(w, x.into().insert_axis(Axis(1)), y.into().insert_axis(Axis(1)), workspace)
    }

    /// Y = W·X. `x` has `filter_len` rows, `y` a row per filter, both any number of columns.
    ///
    /// # Errors
    /// When a shape does not fit.
    pub fn matrix(
        &self,
        w: &PackedMatrix<'_>,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        w.check("X of filter length × columns", x.shape(), &[w.filter_len(), x.ncols()])?;
        w.check("Y of filters × columns", y.shape(), &[w.filters(), x.ncols()])?;
        y.fill(0.0);
        self.add_product(w, x, y, workspace);
        Ok(())
    }

    /// The same on slices in row-major order: `x` is `filter_len` × `columns`, `y` filters × `columns`.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn matrix_slices(
        &self,
        w: &PackedMatrix<'_>,
        x: &[f32],
        columns: usize,
        y: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (x_len, y_len) = (x.len(), y.len());
        let x = ArrayView2::from_shape((w.filter_len(), columns), x);
        let y = ArrayViewMut2::from_shape((w.filters(), columns), y);
        match (x, y) {
            (Ok(x), Ok(y)) => self.matrix(w, x, y, workspace),
            _ => Err(Error::Request(format!(
                "a product with {} filters of {} weights and {columns} columns: x has {x_len} elements, y {y_len}",
                w.filters(),
                w.filter_len(),
            ))),
        }
    }

    /// A linear layer: `x` is batch × `filter_len`, `y` is batch × filters, `bias` one per filter.
    ///
    /// # Errors
    /// When a shape does not fit.
    pub fn linear(
        &self,
        w: &PackedMatrix<'_>,
        bias: Option<&[f32]>,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        w.check("x of batch × filter length", x.shape(), &[x.nrows(), w.filter_len()])?;
        w.check("y of batch × filters", y.shape(), &[x.nrows(), w.filters()])?;
        match bias {
            Some(bias) => {
                w.check("bias per filter", &[bias.len()], &[w.filters()])?;
                y.rows_mut().into_iter().for_each(|mut y| y.assign(&ArrayView1::from(bias)));
            }
            None => y.fill(0.0),
        }
        self.add_product(w, x.reversed_axes(), y.reversed_axes(), workspace);
        Ok(())
    }

    /// A convolution over `x` of batch × channels × height × width; `y` is batch × filters ×
    /// output height × output width ([`Conv2d::output`]). Filters are channels per group × kernel
    /// height × kernel width, as PyTorch stores them.
    ///
    /// # Errors
    /// When a shape does not fit.
    pub fn conv2d(
        &self,
        _w: &PackedMatrix<'_>,
        _bias: Option<&[f32]>,
        _geometry: &Conv2d,
        _x: ArrayView4<'_, f32>,
        _y: ArrayViewMut4<'_, f32>,
        _workspace: &mut Workspace,
    ) -> Result<()> {
        Err(Error::Request("not yet".to_owned()))
    }

    /// Adds W·X to `y`; the shapes fit.
    fn add_product(
        &self,
        w: &PackedMatrix<'_>,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
    ) {
        if w.filter_len() == 0 {
            return;
        }
        match w.encoding() {
            Encoding::T2 => self.add_product_of::<T2>(w, x, y, workspace),
            Encoding::T5 => self.add_product_of::<T5>(w, x, y, workspace),
            Encoding::B1 => self.add_product_of::<B1>(w, x, y, workspace),
        }
    }

    fn add_product_of<D: Digits + Sync + Send>(
        &self,
        w: &PackedMatrix<'_>,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
    ) {
        let chunks = w.filter_len().div_ceil(D::PER_CHUNK);
        let per_column = match self.arithmetic {
            Arithmetic::Int8 => chunks * D::PER_BYTE * size_of::<Line8>(),
            Arithmetic::ExactF32 => chunks * D::PER_LANE * size_of::<Line32>(),
        };
        let panel = (PANEL / per_column.max(1) / BLOCK).max(1) * BLOCK;
        let panels = x.axis_chunks_iter(Axis(1), panel).zip(y.axis_chunks_iter_mut(Axis(1), panel));
        for (x, y) in panels {
            match self.arithmetic {
                Arithmetic::Int8 => self.rows::<D, _>(w, workspace.pack8::<D>(self.isa, x, w.group().is_some()), y),
                Arithmetic::ExactF32 => self.rows::<D, _>(w, workspace.pack32::<D>(self.isa, x), y),
            }
        }
    }

    /// Adds the products of one panel of columns, in blocks of filters.
    fn rows<'a, D: Digits + Sync + Send, X: Columns<D> + Send>(
        &self,
        w: &'a PackedMatrix<'a>,
        x: X,
        mut y: ArrayViewMut2<'_, f32>,
    ) where
        for<'b> Product<'b, D, X>: Task,
    {
        let work = w.filters().saturating_mul(w.filter_len()).saturating_mul(y.ncols());
        let threads = if work < SMALL { 1 } else { rayon::current_num_threads() };
        let each = w.filters().div_ceil(threads).max(1);
        let in_cache = (CODES / w.encoding().bytes(w.filter_len()).max(1)).max(BLOCK);
        let block = if y.ncols() == 1 { each } else { each.min(in_cache) };
        let run = |(i, y): (usize, ArrayViewMut2<'_, f32>)| {
            self.isa.run(Product { w, first: i * block, x, y, digits: PhantomData::<D> });
        };
        if threads == 1 {
            y.axis_chunks_iter_mut(Axis(0), block).enumerate().for_each(run);
        } else {
            y.axis_chunks_iter_mut(Axis(0), block).into_par_iter().enumerate().for_each(run);
        }
    }
}

impl Workspace {
    /// Columns in 8 bits.
    fn pack8<D: Digits + Send + Sync>(&mut self, isa: Isa, x: ArrayView2<'_, f32>, grouped: bool) -> Columns8<'_> {
        let (n, columns) = x.dim();
        let chunks = n.div_ceil(D::PER_CHUNK);
        let per_column = chunks * D::PER_BYTE;
        let sums_per_column = if grouped { chunks } else { 0 };
        let lines = room(&mut self.lines8, columns * per_column, Line8([0; _]));
        let quantized = room(&mut self.columns8, columns, Quantized::default());
        let sums = room(&mut self.sums, columns * sums_per_column, [0; _]);
        let mut rest = (&mut *lines, &mut *quantized, &mut *sums);
        for x in x.axis_chunks_iter(Axis(1), BLOCK) {
            let count = x.ncols();
            let (lines, l) = rest.0.split_at_mut(count * per_column);
            let (columns, c) = rest.1.split_at_mut(count);
            let (sums, s) = rest.2.split_at_mut(count * sums_per_column);
            rest = (l, c, s);
            isa.run(Pack8 { x, lines, columns, sums, digits: PhantomData::<D> });
        }
        Columns8 { lines, columns: quantized, sums }
    }

    /// Columns in `f32`.
    fn pack32<D: Digits + Send + Sync>(&mut self, isa: Isa, x: ArrayView2<'_, f32>) -> Columns32<'_> {
        let (n, columns) = x.dim();
        let per_column = n.div_ceil(D::PER_CHUNK) * D::PER_LANE;
        let lines = room(&mut self.lines32, columns * per_column, Line32([0.0; _]));
        let mut rest = &mut *lines;
        for x in x.axis_chunks_iter(Axis(1), BLOCK) {
            let (lines, l) = rest.split_at_mut(x.ncols() * per_column);
            rest = l;
            isa.run(Pack32 { x, lines, digits: PhantomData::<D> });
        }
        Columns32 { lines }
    }
}

/// The first `len` elements of `memory`, which grows if it has to.
fn room<T: Clone>(memory: &mut Vec<T>, len: usize, empty: T) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, empty);
    }
    &mut memory[..len]
}
