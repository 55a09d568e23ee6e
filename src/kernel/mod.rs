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
use std::ops::Range;

use ndarray::{
    ArrayView1, ArrayView2, ArrayView3, ArrayView4, ArrayViewMut1, ArrayViewMut2, ArrayViewMut3, ArrayViewMut4, Axis,
};

use rayon::prelude::*;

use self::activations::{BLOCK, Pack8, Pack32, Quantized};
pub use self::conv::Conv2d;
use self::conv::Image;
use self::digits::{B1, Digits, T2, T5, place8, place32};
use self::lanes::{CHUNK, LANES, Line8, Line32};
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
    image: Image,
    /// For threads that take images of their own.
    others: Vec<Workspace>,
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
        w: &PackedMatrix<'_>,
        bias: Option<&[f32]>,
        geometry: &Conv2d,
        x: ArrayView4<'_, f32>,
        mut y: ArrayViewMut4<'_, f32>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (batch, channels, height, width) = x.dim();
        let groups = geometry.groups;
        let per_group = channels.checked_div(groups).filter(|_| channels % groups == 0 && w.filters() % groups == 0);
        let (Some(per_group), Some([output_height, output_width])) = (per_group, geometry.output([height, width]))
        else {
            return Err(Error::Request(format!(
                "{geometry:?} cannot walk with {} filters over {channels} channels of {height} × {width}: groups have \
                 to divide both, and the filter has to fit",
                w.filters(),
            )));
        };
        let n = [geometry.kernel[0], geometry.kernel[1]].iter().try_fold(per_group, |n, &k| n.checked_mul(k));
        w.check("filters of channels per group × kernel", &[w.filter_len()], &[n.unwrap_or(usize::MAX)])?;
        let shape = [batch, w.filters(), output_height, output_width];
        w.check("y of batch × filters × output height × output width", y.shape(), &shape)?;
        match bias {
            Some(bias) => {
                w.check("bias per filter", &[bias.len()], &[w.filters()])?;
                y.axis_iter_mut(Axis(1)).zip(bias).for_each(|(mut y, &bias)| y.fill(bias));
            }
            None => y.fill(0.0),
        }
        if w.filter_len() == 0 {
            return Ok(());
        }
        match w.encoding() {
            Encoding::T2 => self.convolve::<T2>(w, geometry, x, y, workspace),
            Encoding::T5 => self.convolve::<T5>(w, geometry, x, y, workspace),
            Encoding::B1 => self.convolve::<B1>(w, geometry, x, y, workspace),
        }
    }

    /// Images in parallel where there are enough of them, else each image's product.
    fn convolve<D: Digits + Sync + Send>(
        &self,
        w: &PackedMatrix<'_>,
        geometry: &Conv2d,
        x: ArrayView4<'_, f32>,
        mut y: ArrayViewMut4<'_, f32>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let work = w.filter_len().saturating_mul(y.len());
        let threads = if work < SMALL { 1 } else { rayon::current_num_threads() };
        let each = x.dim().0.div_ceil(threads).max(1);
        if threads == 1 || each < 2 {
            let images = x.outer_iter().zip(y.outer_iter_mut());
            return images.into_iter().try_for_each(|(x, y)| self.convolve_image::<D>(w, geometry, x, y, workspace));
        }
        if workspace.others.len() < threads {
            workspace.others.resize_with(threads, Workspace::default);
        }
        let images = x.axis_chunks_iter(Axis(0), each).into_par_iter();
        let images = images.zip(y.axis_chunks_iter_mut(Axis(0), each)).zip(&mut workspace.others);
        images.try_for_each(|((x, mut y), workspace)| {
            let mut images = x.outer_iter().zip(y.outer_iter_mut());
            images.try_for_each(|(x, y)| self.convolve_image::<D>(w, geometry, x, y, workspace))
        })
    }

    fn convolve_image<D: Digits + Sync + Send>(
        &self,
        w: &PackedMatrix<'_>,
        geometry: &Conv2d,
        x: ArrayView3<'_, f32>,
        mut y: ArrayViewMut3<'_, f32>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let filters = w.filters() / geometry.groups;
        let (channels, height, width) = x.dim();
        let channels = channels / geometry.groups;
        let len = w.filter_len().div_ceil(D::PER_CHUNK) * D::PER_CHUNK;
        let place = match self.arithmetic {
            Arithmetic::Int8 => place8::<D>,
            Arithmetic::ExactF32 => place32::<D>,
        };
        let walk = workspace.image.walk(geometry, [channels, height, width], place, len);
        walk.ok_or_else(|| Error::Request(format!("an image of {channels} × {height} × {width} is too large")))?;
        let images = x.axis_chunks_iter(Axis(0), channels.max(1));
        for ((group, x), mut y) in images.enumerate().zip(y.axis_chunks_iter_mut(Axis(0), filters.max(1))) {
            let w = w.rows(group * filters..(group + 1) * filters);
            let scale = match self.arithmetic {
                Arithmetic::Int8 => workspace.image.round(x, geometry.padding),
                Arithmetic::ExactF32 => workspace.image.keep(x, geometry.padding),
            };
            let width = y.dim().2;
            if y.is_standard_layout() {
                let outputs = y.len() / filters;
                let y = y.into_shape_with_order((filters, outputs)).expect("contiguous");
                self.convolve_outputs::<D>(&w, scale, 0, y, workspace);
            } else {
                let rows = y.axis_iter_mut(Axis(1)).enumerate();
                rows.for_each(|(i, y)| self.convolve_outputs::<D>(&w, scale, i * width, y, workspace));
            }
        }
        Ok(())
    }

    /// The outputs from `first` on, in panels.
    fn convolve_outputs<D: Digits + Sync + Send>(
        &self,
        w: &PackedMatrix<'_>,
        scale: f32,
        first: usize,
        mut y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
    ) {
        let panel = self.panel::<D>(w);
        for (i, y) in y.axis_chunks_iter_mut(Axis(1), panel).enumerate() {
            let (outputs, first) = (y.ncols(), first + i * panel);
            match self.arithmetic {
                Arithmetic::Int8 => {
                    self.rows::<D, _>(w, workspace.outputs8::<D>(scale, first..first + outputs), y);
                }
                Arithmetic::ExactF32 => {
                    self.rows::<D, _>(w, workspace.outputs32(first..first + outputs), y);
                }
            }
        }
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
        let panel = self.panel::<D>(w);
        let panels = x.axis_chunks_iter(Axis(1), panel).zip(y.axis_chunks_iter_mut(Axis(1), panel));
        for (x, y) in panels {
            match self.arithmetic {
                Arithmetic::Int8 => self.rows::<D, _>(w, workspace.pack8::<D>(self.isa, x), y),
                Arithmetic::ExactF32 => self.rows::<D, _>(w, workspace.pack32::<D>(self.isa, x), y),
            }
        }
    }

    /// How many columns are laid down at a time.
    fn panel<D: Digits>(&self, w: &PackedMatrix<'_>) -> usize {
        let activations = w.filter_len().next_multiple_of(D::PER_CHUNK);
        let bytes = match self.arithmetic {
            Arithmetic::Int8 => activations,
            Arithmetic::ExactF32 => activations * size_of::<f32>(),
        };
        (PANEL / bytes / BLOCK).max(1) * BLOCK
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
    fn pack8<D: Digits + Send + Sync>(&mut self, isa: Isa, x: ArrayView2<'_, f32>) -> Columns8<'_> {
        let (n, columns) = x.dim();
        let chunks = n.div_ceil(D::PER_CHUNK);
        let per_column = chunks * D::PER_BYTE;
        let lines = room(&mut self.lines8, columns * per_column, Line8([0; _]));
        let quantized = room(&mut self.columns8, columns, Quantized::default());
        let sums = room(&mut self.sums, columns * chunks, [0; _]);
        let pack = |(((lines, columns), sums), x): (((&mut [_], &mut [_]), &mut [_]), _)| {
            isa.run(Pack8 { x, lines, columns, sums, digits: PhantomData::<D> });
        };
        if columns <= BLOCK {
            pack((((lines, quantized), sums), x));
        } else {
            let lines = lines.par_chunks_mut(BLOCK * per_column).zip(quantized.par_chunks_mut(BLOCK));
            let blocks = x.axis_chunks_iter(Axis(1), BLOCK).into_par_iter();
            lines.zip(sums.par_chunks_mut(BLOCK * chunks)).zip(blocks).for_each(pack);
        }
        Columns8 { lines, columns: quantized, sums }
    }

    /// What lies under the filter at these outputs, in 8 bits.
    fn outputs8<D: Digits>(&mut self, scale: f32, outputs: Range<usize>) -> Columns8<'_> {
        let per_column = self.image.column_len() / CHUNK;
        let lines = room(&mut self.lines8, outputs.len() * per_column, Line8([0; _]));
        let columns = room(&mut self.columns8, outputs.len(), Quantized::default());
        let sums = room(&mut self.sums, outputs.len() * per_column / D::PER_BYTE, [0; _]);
        self.image.columns8::<D>(outputs.start, scale, lines, columns, sums);
        Columns8 { lines, columns, sums }
    }

    /// What lies under the filter at these outputs, in `f32`.
    fn outputs32(&mut self, outputs: Range<usize>) -> Columns32<'_> {
        let lines = room(&mut self.lines32, outputs.len() * self.image.column_len() / LANES, Line32([0.0; _]));
        self.image.columns32(outputs.start, lines);
        Columns32 { lines }
    }

    /// Columns in `f32`.
    fn pack32<D: Digits + Send + Sync>(&mut self, isa: Isa, x: ArrayView2<'_, f32>) -> Columns32<'_> {
        let (n, columns) = x.dim();
        let per_column = n.div_ceil(D::PER_CHUNK) * D::PER_LANE;
        let lines = room(&mut self.lines32, columns * per_column, Line32([0.0; _]));
        let pack = |(lines, x): (&mut [_], _)| isa.run(Pack32 { x, lines, digits: PhantomData::<D> });
        if columns <= BLOCK {
            pack((lines, x));
        } else {
            let blocks = x.axis_chunks_iter(Axis(1), BLOCK).into_par_iter();
            lines.par_chunks_mut(BLOCK * per_column).zip(blocks).for_each(pack);
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
