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

mod conv;
mod matrix;
pub mod reference;

use ndarray::{ArrayView1, ArrayView2, ArrayView4, ArrayViewMut1, ArrayViewMut2, ArrayViewMut4};

pub use self::conv::Conv2d;
pub use self::matrix::PackedMatrix;
use crate::{Error, Isa, Result};

/// How activations are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Activations stay `f32`; weights only select, add and subtract.
    ExactF32,
    /// Each vector of activations is rounded to 8 bits first, x ≈ s·q with s = max|x|/127, and
    /// summed as integers.
    Int8,
}

/// Multiplies packed matrices with one arithmetic and one instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    arithmetic: Arithmetic,
    isa: Isa,
}

/// Memory that products need besides their operands. Grows to what is asked of it and is used
/// again: from the second product of the same shapes on, nothing is allocated.
#[derive(Debug, Default)]
pub struct Workspace {}

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
        let (x, y) = (x.into(), y.into());
        self.matrix(w, x.insert_axis(ndarray::Axis(1)), y.insert_axis(ndarray::Axis(1)), workspace)
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
        _workspace: &mut Workspace,
    ) -> Result<()> {
        let exact = reference::matrix(w, x).map_err(Error::Request)?;
        y.assign(&exact.mapv(|y| y as f32));
        Ok(())
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
        self.matrix(w, x.t(), y.view_mut().reversed_axes(), workspace)?;
        if let Some(bias) = bias {
            y.rows_mut().into_iter().for_each(|mut row| row += &ArrayView1::from(bias));
        }
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
}
