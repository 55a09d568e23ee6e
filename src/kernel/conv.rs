//! Convolutions: what lies under the filter at each place of the output is a column of activations.
//! Not here: how it gets there ([`super::image`]).

use ndarray::{ArrayView3, ArrayView4, ArrayViewMut2, ArrayViewMut3, ArrayViewMut4, Axis};
use rayon::prelude::*;

use super::digits::{B1, Digits, T2, T5};
use super::rows::Runs;
use super::{Arithmetic, Kernel, PackedMatrix, Workspace, is_large, view, view_mut, words};
use crate::pack::Encoding;
use crate::{Error, Result};

/// How a convolution walks over its input: `[height, width]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// The filter's size in space.
    pub kernel: [usize; 2],
    /// Steps between outputs. At least 1.
    pub stride: [usize; 2],
    /// Zeros around the input.
    pub padding: [usize; 2],
    /// Steps between the inputs of one output. At least 1.
    pub dilation: [usize; 2],
    /// Channels and filters fall into so many groups that do not see each other. At least 1.
    pub groups: usize,
}

impl Conv2d {
    /// A dense convolution without padding, stride or dilation.
    pub fn new(kernel: [usize; 2]) -> Self {
        Self { kernel, stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 }
    }

    /// Weights per filter over so many channels; `None` where the groups do not divide them, or
    /// there are too many.
    pub fn filter_len(&self, channels: usize) -> Option<usize> {
        let per_group = channels.checked_div(self.groups).filter(|_| channels.is_multiple_of(self.groups))?;
        self.kernel.iter().try_fold(per_group, |n, &k| n.checked_mul(k))
    }

    /// The output's size for an input's, as in PyTorch; `None` where no filter fits, or a stride,
    /// dilation or kernel is 0.
    pub fn output(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let along = |i: usize| {
            let padded = self.padding[i].checked_mul(2)?.checked_add(input[i])?;
            let reach = self.kernel[i].checked_sub(1)?.checked_mul(self.dilation[i])?;
            let steps = padded.checked_sub(reach)?.checked_sub(1)?;
            (self.dilation[i] > 0).then_some(())?;
            Some(steps.checked_div(self.stride[i])? + 1)
        };
        Some([along(0)?, along(1)?])
    }

    /// [`Conv2d::output`], or why there is none.
    fn walk(&self, [height, width]: [usize; 2]) -> Result<[usize; 2]> {
        self.output([height, width]).ok_or_else(|| {
            Error::Request(format!(
                "{self:?} does not walk over {height} × {width}: kernel, stride and dilation have to be 1 or more, and \
                 the dilated kernel has to fit into the image with its padding"
            ))
        })
    }
}

impl Kernel {
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
        let Some(n) = geometry.filter_len(channels).filter(|_| w.filters().is_multiple_of(geometry.groups)) else {
            return Err(Error::Request(format!(
                "{geometry:?}: {channels} channels and {} filters do not fall into {} groups",
                w.filters(),
                geometry.groups
            )));
        };
        let [output_height, output_width] = geometry.walk([height, width])?;
        w.check("filters of channels per group × kernel", &[w.filter_len()], &[n])?;
        let shape = [batch, w.filters(), output_height, output_width];
        w.check("y of batch × filters × output height × output width", y.shape(), &shape)?;
        match bias {
            Some(bias) => {
                w.check("bias per filter", &[bias.len()], &[w.filters()])?;
                y.axis_iter_mut(Axis(1)).zip(bias).for_each(|(mut y, &bias)| y.fill(bias));
            }
            None => y.fill(0.0),
        }
        if w.filter_len() == 0 || w.planes() == 0 || y.is_empty() {
            return Ok(());
        }
        match w.encoding() {
            Encoding::T2 => self.convolve::<T2>(w, geometry, x, y, workspace),
            Encoding::T5 => self.convolve::<T5>(w, geometry, x, y, workspace),
            Encoding::B1 => self.convolve::<B1>(w, geometry, x, y, workspace),
        }
    }

    /// The same on slices in row-major order, `x` of that shape and `y` of the output's.
    ///
    /// # Errors
    /// When a length or the geometry does not fit.
    #[expect(clippy::too_many_arguments, reason = "those of `conv2d`, and a shape")]
    pub fn conv2d_slices(
        &self,
        w: &PackedMatrix<'_>,
        bias: Option<&[f32]>,
        geometry: &Conv2d,
        x: &[f32],
        [batch, channels, height, width]: [usize; 4],
        y: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let x = view(x, [batch, channels, height, width], "x of batch × channels × height × width")?;
        let [output_height, output_width] = geometry.walk([height, width])?;
        let shape = [batch, w.filters(), output_height, output_width];
        let y = view_mut(y, shape, "y of batch × filters × output height × output width")?;
        self.conv2d(w, bias, geometry, x, y, workspace)
    }

    /// Images in parallel where each thread has some, else the product of each image.
    fn convolve<D: Digits>(
        &self,
        w: &PackedMatrix<'_>,
        geometry: &Conv2d,
        x: ArrayView4<'_, f32>,
        mut y: ArrayViewMut4<'_, f32>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let threads = rayon::current_num_threads();
        let each = x.dim().0.div_ceil(threads);
        if each < 2 || !is_large(w.filter_len(), y.len()) {
            let parallel = is_large(w.filter_len(), y.len() / x.dim().0);
            let mut images = x.outer_iter().zip(y.outer_iter_mut());
            return images.try_for_each(|(x, y)| self.convolve_image::<D>(w, geometry, x, y, workspace, parallel));
        }
        let images = x.axis_chunks_iter(Axis(0), each).into_par_iter();
        let images = images.zip(y.axis_chunks_iter_mut(Axis(0), each)).zip(workspace.of_threads(threads));
        images.try_for_each(|((x, mut y), workspace)| {
            let mut images = x.outer_iter().zip(y.outer_iter_mut());
            images.try_for_each(|(x, y)| self.convolve_image::<D>(w, geometry, x, y, workspace, false))
        })
    }

    fn convolve_image<D: Digits>(
        &self,
        w: &PackedMatrix<'_>,
        geometry: &Conv2d,
        x: ArrayView3<'_, f32>,
        mut y: ArrayViewMut3<'_, f32>,
        workspace: &mut Workspace,
        parallel: bool,
    ) -> Result<()> {
        let (filters, channels) = (w.filters() / geometry.groups, x.dim().0 / geometry.groups);
        let (height, width) = (x.dim().1, x.dim().2);
        let runs = self.runs::<D>(&w.rows(0..filters), y.dim().1 * y.dim().2);
        if workspace.image.walk::<D>(geometry, [channels, height, width], self.arithmetic, runs).is_none() {
            return Err(Error::Request(format!(
                "an image of {channels} × {height} × {width} with a padding of {:?} is too large: at most 2³¹ numbers",
                geometry.padding
            )));
        }
        let images = x.axis_chunks_iter(Axis(0), channels);
        for ((group, x), mut y) in images.enumerate().zip(y.axis_chunks_iter_mut(Axis(0), filters)) {
            let w = w.rows(group * filters..(group + 1) * filters);
            let scale = workspace.image.copy(x, geometry.padding, self.arithmetic);
            let outputs = y.len() / filters;
            // All outputs at once, or row by row where they are not neighbours.
            match y.view_mut().into_shape_with_order((filters, outputs)) {
                Ok(y) => self.convolve_outputs::<D>(&w, scale, runs, 0, y, workspace, parallel),
                Err(_) => {
                    let width = y.dim().2;
                    for (i, y) in y.axis_iter_mut(Axis(1)).enumerate() {
                        self.convolve_outputs::<D>(&w, scale, runs, i * width, y, workspace, parallel);
                    }
                }
            }
        }
        Ok(())
    }

    /// The outputs from `first` on, in panels.
    #[expect(clippy::too_many_arguments, reason = "what to compute, and with what")]
    fn convolve_outputs<D: Digits>(
        &self,
        w: &PackedMatrix<'_>,
        scale: f32,
        runs: Option<Runs>,
        first: usize,
        mut y: ArrayViewMut2<'_, f32>,
        workspace: &mut Workspace,
        parallel: bool,
    ) {
        let panel = self.panel::<D>(w.filter_len(), runs);
        for (i, y) in y.axis_chunks_iter_mut(Axis(1), panel).enumerate() {
            let outputs = first + i * panel..first + i * panel + y.ncols();
            if let Some(runs) = runs {
                let words = words(w.filters(), runs, parallel);
                let (isa, arithmetic) = (self.isa, self.arithmetic);
                let (x, words) = workspace.output_rows(isa, arithmetic, runs, scale, outputs, words, parallel);
                self.add_table_panel(w, x, words, y, parallel);
                continue;
            }
            match self.arithmetic {
                Arithmetic::Int8 => {
                    self.add_panel(w, workspace.outputs8::<D>(self.isa, scale, outputs, parallel), y, parallel);
                }
                Arithmetic::ExactF32 => {
                    self.add_panel(w, workspace.outputs32::<D>(self.isa, outputs, parallel), y, parallel);
                }
            }
        }
    }
}
