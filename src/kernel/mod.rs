//! Products of packed weights with dense activations, on the codes as they lie in the file:
//! X·W ≈ (α·X) ⊕ T, where ⊕ only adds and subtracts (TWN, arXiv 1605.04711, eq. 2).
//!
//! ```text
//!  PackedMatrix ──────────────┐
//!  codes, scales as stored    ├──► tiles of R filters × C columns ──► α, bias ──► y
//!  x ──► activations ─────────┘    or tables for all filters
//!        quantized, permuted       one instruction set
//! ```
//!
//! Not here: how weights become ternary, or where they are stored.

mod activations;
mod conv;
mod digits;
mod exact;
mod fill;
mod image;
mod int8;
mod lanes;
mod matrix;
mod product;
pub mod reference;
mod rows;
mod tables;
mod tile;
mod workspace;

use ndarray::{
    ArrayView, ArrayView1, ArrayView2, ArrayViewMut, ArrayViewMut1, ArrayViewMut2, Axis, Dim, Dimension, IntoDimension,
};
use rayon::prelude::*;

use self::activations::BLOCK;
pub use self::conv::Conv2d;
use self::digits::{B1, Digits, T2, T5};
pub use self::matrix::PackedMatrix;
use self::product::{Columns, Product};
use self::rows::{Rows, Runs};
use self::tables::{FILTERS, TableProduct};
pub use self::workspace::Workspace;
use crate::pack::Encoding;
use crate::vector::Task;
use crate::{Error, Isa, Result};

/// How activations are added up. To a bias the planes' products are added one after the other, which adds
/// planes·2⁻²⁴·|bias| to the bounds on errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Activations stay `f32`; weights only select, add and subtract, and each filter's sum (or
    /// group's) is multiplied by its scale. |error| ≤ k·2⁻²⁴·Σ|α·x| to first order, as long as
    /// nothing leaves the range of `f32`, with k = n/16 + 38 + planes; where sums come from tables
    /// ([`Kernel`] says when), k = g/16 + n/g + 6 + planes, g being the weights that share a scale. Groups
    /// that are not whole lanes count as filled up to a multiple of 16 weights, in g and in n. A weight of
    /// zero leaves its activation out, even NaN or infinity. Scales come last: a sum of activations that leaves
    /// the range of `f32` is infinite, however small its scale.
    ExactF32,
    /// Each vector of activations is rounded to 8 bits first, x ≈ s·q with s = max|x|/127, and
    /// summed as integers. A convolution rounds each image, or group of its channels, with one s.
    /// |error| ≤ s/2·Σ|ŵ|, besides roundings of `f32`: (n/g + 14 + planes)·2⁻²⁴·max|x|·Σ|α·t|, where
    /// g is the weights that share a scale (filled up as above), at most 256, as long as α·127·n stays
    /// within the range of `f32` and neither s nor a product is a denormal number. NaN or infinity in a vector
    /// makes all its products NaN.
    Int8,
}

/// Multiplies packed matrices with one arithmetic and one instruction set. All instruction sets and
/// numbers of threads give the same bits; only which NaN it is may differ.
///
/// Sums of four neighbouring activations come from tables that all filters use where there are many filters
/// and columns: 8 columns or more, and filters × columns (at most 16) of 1024 or more, in exact arithmetic, and
/// in either for groups that are not whole lanes (a multiple of 16 weights in `t2`, 20 in `t5`, 32 in `b1`),
/// these in convolutions always. The filters are those of the call, or of one group of a convolution; the
/// columns those of the call, or the outputs of one image. Otherwise weight after weight is added, in another
/// order: a product may differ in its last bits, within the bounds, from the same one with another number of
/// filters or columns.
///
/// Groups that are not whole lanes are filled up to a multiple of 16 weights, which takes time in every
/// product.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    arithmetic: Arithmetic,
    isa: Isa,
}

/// Activations that are laid down at a time, in bytes.
const PANEL: usize = 4 << 20;

/// Codes that a thread keeps in its cache while it goes through the columns, in bytes.
const CODES: usize = 256 << 10;

/// Filters × columns (no more than [`BLOCK`] count) from which on tables are faster for exact arithmetic,
/// if there are so many columns.
const MANY: usize = 1 << 10;
const MANY_COLUMNS: usize = 8;

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
        let x = view(x, [w.filter_len(), columns], "X of filter length × columns")?;
        let y = view_mut(y, [w.filters(), columns], "Y of filters × columns")?;
        self.matrix(w, x, y, workspace)
    }

    /// A linear layer, Y = X·Wᵀ + bias: `x` is batch × `filter_len`, `y` is batch × filters, `bias` one per filter.
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

    /// The same on slices in row-major order: `x` is `batch` × `filter_len`, `y` is `batch` × filters.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn linear_slices(
        &self,
        w: &PackedMatrix<'_>,
        bias: Option<&[f32]>,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let x = view(x, [batch, w.filter_len()], "x of batch × filter length")?;
        let y = view_mut(y, [batch, w.filters()], "y of batch × filters")?;
        self.linear(w, bias, x, y, workspace)
    }

    /// Adds W·X to `y`; the shapes fit.
    fn add_product(
        &self,
        w: &PackedMatrix<'_>,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
    ) {
        if w.filter_len() == 0 || w.planes() == 0 || y.is_empty() {
            return;
        }
        let lane = 4 * w.encoding().weights_per_byte();
        if w.group().is_some_and(|size| !size.is_multiple_of(lane)) && !is_many(w, x.ncols()) {
            return self.add_filled_product(w, x, y, workspace);
        }
        match w.encoding() {
            Encoding::T2 => self.add_product_of::<T2>(w, x, y, workspace),
            Encoding::T5 => self.add_product_of::<T5>(w, x, y, workspace),
            Encoding::B1 => self.add_product_of::<B1>(w, x, y, workspace),
        }
    }

    /// With groups that are not whole lanes, filled up.
    fn add_filled_product(
        &self,
        w: &PackedMatrix<'_>,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
    ) {
        let (runs, mut filled) = (Runs::of(w), std::mem::take(&mut workspace.filled));
        let panel = self.panel::<T2>(runs.rows(), None).min(x.ncols());
        let (codes, memory) = filled.codes(w, panel, is_large(w.filter_len(), w.filters()));
        let w = w.filled_up(codes, runs);
        for (x, y) in x.axis_chunks_iter(Axis(1), panel).zip(y.axis_chunks_iter_mut(Axis(1), panel)) {
            self.add_product_of::<T2>(&w, fill::columns(x, runs, memory), y, workspace);
        }
        workspace.filled = filled;
    }

    fn add_product_of<D: Digits>(
        &self,
        w: &PackedMatrix<'_>,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
    ) {
        let parallel = self.is_large(w, y.len());
        let runs = self.runs::<D>(w, x.ncols());
        let panel = self.panel::<D>(w.filter_len(), runs);
        let panels = x.axis_chunks_iter(Axis(1), panel).zip(y.axis_chunks_iter_mut(Axis(1), panel));
        for (x, y) in panels {
            if let Some(runs) = runs {
                let words = words(w.filters(), runs, parallel);
                let (x, words) = workspace.pack_rows(self.isa, self.arithmetic, runs, x, words, parallel);
                self.add_table_panel(w, x, words, y, parallel);
                continue;
            }
            match self.arithmetic {
                Arithmetic::Int8 => self.add_panel(w, workspace.pack8::<D>(self.isa, x, parallel), y, parallel),
                Arithmetic::ExactF32 => self.add_panel(w, workspace.pack32::<D>(self.isa, x, parallel), y, parallel),
            }
        }
    }

    /// Whether tables are the way to multiply with so many columns, and how weights lie in words then.
    /// Nothing but what is asked for decides: neither threads nor the instruction set, and not the
    /// panel that is at hand.
    fn runs<D: Digits>(&self, w: &PackedMatrix<'_>, columns: usize) -> Option<Runs> {
        let whole_lanes = w.group().is_none_or(|size| size.is_multiple_of(D::PER_LANE));
        (!whole_lanes || is_many(w, columns) && self.arithmetic == Arithmetic::ExactF32).then(|| Runs::of(w))
    }

    /// Whether a product is worth more than one thread. One column in 8 bits goes four times as fast as others do
    /// (110·10⁹ weights per second; a thread that sleeps is woken in some 20 µs).
    fn is_large(&self, w: &PackedMatrix<'_>, outputs: usize) -> bool {
        let fast = outputs == w.filters() && self.arithmetic == Arithmetic::Int8 && self.isa.has_vectors();
        is_large(w.filter_len(), if fast { outputs / 4 } else { outputs })
    }

    /// How many columns are laid down at a time.
    fn panel<D: Digits>(&self, filter_len: usize, runs: Option<Runs>) -> usize {
        let activations = filter_len.next_multiple_of(D::PER_CHUNK);
        let bytes = match (runs, self.arithmetic) {
            (Some(runs), _) => runs.rows() * size_of::<f32>(),
            (None, Arithmetic::Int8) => activations,
            (None, Arithmetic::ExactF32) => activations * size_of::<f32>(),
        };
        (PANEL / bytes / BLOCK).max(1) * BLOCK
    }

    /// Adds the products of one panel of columns, in blocks of filters, or of columns where there
    /// are few filters.
    fn add_panel<'a, X: Columns>(&self, w: &'a PackedMatrix<'a>, x: X, mut y: ArrayViewMut2<'_, f32>, parallel: bool)
    where
        for<'b> Product<'b, X>: Task,
    {
        let (filters, columns) = y.dim();
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        let (axis, block) = if filters < BLOCK * threads && columns >= BLOCK * threads {
            (1, columns.div_ceil(threads).next_multiple_of(BLOCK))
        } else {
            let each = filters.div_ceil(threads).max(1);
            let in_cache = (CODES / w.encoding().bytes(w.filter_len()).max(1)).max(BLOCK);
            (0, if columns == 1 { each } else { each.min(in_cache) })
        };
        let add = |(i, y): (usize, ArrayViewMut2<'_, f32>)| {
            let mut first = [0; 2];
            first[axis] = i * block;
            self.isa.run(Product { w, x, first, y });
        };
        let blocks = y.axis_chunks_iter_mut(Axis(axis), block);
        if parallel { blocks.into_par_iter().enumerate().for_each(add) } else { blocks.enumerate().for_each(add) }
    }

    /// The same by tables. Each thread needs the words of its filters once for all columns, and tables
    /// for its columns once for up to [`FILTERS`] filters.
    fn add_table_panel<'a>(
        &self,
        w: &'a PackedMatrix<'a>,
        x: Rows<'a>,
        words: &mut [u32],
        mut y: ArrayViewMut2<'_, f32>,
        parallel: bool,
    ) {
        let (filters, columns) = y.dim();
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        let (axis, block) = if filters < FILTERS * threads && columns >= 2 * BLOCK * threads {
            (1, columns.div_ceil(threads).next_multiple_of(BLOCK))
        } else {
            (0, filters.div_ceil(threads))
        };
        let each = filters.min(FILTERS) * x.runs.words();
        let add = |((i, y), words): ((usize, ArrayViewMut2<'_, f32>), &mut [u32])| {
            let mut first = [0; 2];
            first[axis] = i * block;
            self.isa.run(TableProduct { w, x, first, y, words });
        };
        let blocks = y.axis_chunks_iter_mut(Axis(axis), block);
        if parallel {
            blocks.into_par_iter().enumerate().zip(words.par_chunks_mut(each)).for_each(add);
        } else {
            blocks.enumerate().zip(words.chunks_mut(each)).for_each(add);
        }
    }
}

/// A slice in row-major order, which has just so many elements.
fn view<'x, const N: usize>(x: &'x [f32], shape: [usize; N], what: &str) -> Result<ArrayView<'x, f32, Dim<[usize; N]>>>
where
    Dim<[usize; N]>: Dimension,
    [usize; N]: IntoDimension<Dim = Dim<[usize; N]>>,
{
    has_length(x.len(), &shape, what)?;
    ArrayView::from_shape(shape.into_dimension(), x).map_err(|error| Error::Request(format!("{what}: {error}")))
}

fn view_mut<'y, const N: usize>(
    y: &'y mut [f32],
    shape: [usize; N],
    what: &str,
) -> Result<ArrayViewMut<'y, f32, Dim<[usize; N]>>>
where
    Dim<[usize; N]>: Dimension,
    [usize; N]: IntoDimension<Dim = Dim<[usize; N]>>,
{
    has_length(y.len(), &shape, what)?;
    ArrayViewMut::from_shape(shape.into_dimension(), y).map_err(|error| Error::Request(format!("{what}: {error}")))
}

/// Views take slices that are too long.
fn has_length(length: usize, shape: &[usize], what: &str) -> Result<()> {
    let expected = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    if expected == Some(length) {
        return Ok(());
    }
    let expected = expected.map_or("too many".to_owned(), |expected| expected.to_string());
    Err(Error::Request(format!("{what}, {shape:?}, has {expected} elements; the slice has {length}")))
}

/// Whether so many filters and columns are worth tables.
fn is_many(w: &PackedMatrix<'_>, columns: usize) -> bool {
    columns >= MANY_COLUMNS && w.filters().saturating_mul(columns.min(BLOCK)) >= MANY
}

/// Room for the words of all threads.
fn words(filters: usize, runs: Runs, parallel: bool) -> usize {
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    threads * filters.min(FILTERS) * runs.words()
}

/// Whether a product is worth more than one thread; `filter_len` weights for each of `outputs`.
fn is_large(filter_len: usize, outputs: usize) -> bool {
    filter_len.saturating_mul(outputs) >= SMALL && rayon::current_num_threads() > 1
}
