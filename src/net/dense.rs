//! Convolution and linear layer in plain `f32`: im2col and one matrix product (`ndarray`'s, which is
//! `matrixmultiply`) per image and group. What packed products are compared with, in their numbers
//! and in speed. Not here: packed weights ([`crate::kernel`]).

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView1, ArrayView2, ArrayView4, ArrayViewMut2, ArrayViewMut4, s};
use rayon::prelude::*;

use super::im2col::im2col;
use crate::kernel::Conv2d;
use crate::{Error, Result};

/// A convolution over `x` of batch × channels × height × width; `y` is batch × filters × output
/// height × output width ([`Conv2d::output`]), in C order. `w` has a row per filter: channels per group ×
/// kernel height × kernel width. The batch is spread over the threads of the pool; `columns` is
/// memory that is used again.
///
/// # Errors
/// When a shape does not fit, or has a 0.
pub fn conv2d(
    w: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    geometry: &Conv2d,
    x: ArrayView4<'_, f32>,
    mut y: ArrayViewMut4<'_, f32>,
    columns: &mut Vec<f32>,
) -> Result<()> {
    let (batch, channels, height, width) = x.dim();
    let (filters, groups) = (w.nrows(), geometry.groups);
    let refused = |what: String| Err(Error::Request(format!("convolution: {what}")));
    let Some(output) = geometry.output([height, width]) else {
        return refused(format!("{geometry:?} does not fit {height} × {width} values"));
    };
    let Some(column) = geometry.filter_len(channels).filter(|_| filters.is_multiple_of(groups)) else {
        return refused(format!("{groups} groups of {channels} channels and {filters} filters"));
    };
    if w.ncols() != column || bias.is_some_and(|bias| bias.len() != filters) {
        let given = bias.map_or("none".to_owned(), |bias| bias.len().to_string());
        return refused(format!("{column} weights and 1 bias per filter, given {} and {given} in all", w.ncols()));
    }
    if y.dim() != (batch, filters, output[0], output[1]) {
        return refused(format!("expected output {:?}, given {:?}", (batch, filters, output[0], output[1]), y.dim()));
    }
    let outputs = output[0] * output[1];
    let (image_in, image_out) = (channels * height * width, filters * outputs);
    let x = x.as_standard_layout();
    let (Some(x), Some(y)) = (x.as_slice(), y.as_slice_mut()) else {
        return refused("the output has to be in C order".to_owned());
    };
    if x.is_empty() || y.is_empty() {
        return refused("no values".to_owned());
    }
    // Each thread has its own columns and a run of images.
    let threads = rayon::current_num_threads().min(batch);
    let run = batch.div_ceil(threads);
    columns.resize(threads * column * outputs, 0.0);
    let runs = y.par_chunks_mut(run * image_out).zip(x.par_chunks(run * image_in));
    runs.zip(columns.par_chunks_mut(column * outputs)).for_each(|((y, x), columns)| {
        for (y, x) in y.chunks_mut(image_out).zip(x.chunks(image_in)) {
            let groups_in = x.chunks(image_in / groups);
            for (group, (y, x)) in y.chunks_mut(image_out / groups).zip(groups_in).enumerate() {
                im2col(x, [height, width], geometry, output, columns);
                let rows = group * (filters / groups)..(group + 1) * (filters / groups);
                let bias = bias.map(|bias| &bias[rows.clone()]);
                product(w.slice(s![rows, ..]), (&*columns, outputs), bias, y);
            }
        }
    });
    Ok(())
}

/// y = W·X for X with that many columns, and a bias per row.
fn product(w: ArrayView2<'_, f32>, (x, columns): (&[f32], usize), bias: Option<&[f32]>, y: &mut [f32]) {
    let shapes = (ArrayView2::from_shape((w.ncols(), columns), x), ArrayViewMut2::from_shape((w.nrows(), columns), y));
    let (Ok(x), Ok(mut y)) = shapes else { unreachable!("lengths follow from the checked shapes") };
    general_mat_mul(1.0, &w, &x, 0.0, &mut y);
    for (mut row, bias) in y.rows_mut().into_iter().zip(bias.into_iter().flatten()) {
        row += *bias;
    }
}

/// A linear layer: y = x·Wᵀ + bias. `x` is batch × inputs, `w` outputs × inputs, `y` batch × outputs in
/// C order, `bias` one per output. The batch is spread over the threads of the pool.
///
/// # Errors
/// When a shape does not fit, or has a 0.
pub fn linear(
    w: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    x: ArrayView2<'_, f32>,
    mut y: ArrayViewMut2<'_, f32>,
) -> Result<()> {
    let ((batch, inputs), outputs) = (x.dim(), w.nrows());
    if w.ncols() != inputs || y.dim() != (batch, outputs) || bias.is_some_and(|bias| bias.len() != outputs) {
        return Err(Error::Request(format!(
            "linear layer: weights {:?}, input {:?}, output {:?} and a bias of {:?} do not fit",
            w.dim(),
            x.dim(),
            y.dim(),
            bias.map(<[f32]>::len)
        )));
    }
    let x = x.as_standard_layout();
    let (Some(x), Some(y)) = (x.as_slice(), y.as_slice_mut()) else {
        return Err(Error::Request("linear layer: the output has to be in C order".to_owned()));
    };
    if x.is_empty() || y.is_empty() {
        return Err(Error::Request("linear layer: no values".to_owned()));
    }
    let run = batch.div_ceil(rayon::current_num_threads());
    y.par_chunks_mut(run * outputs).zip(x.par_chunks(run * inputs)).for_each(|(y, x)| {
        let batch = x.len() / inputs;
        let (Ok(x), Ok(mut y)) =
            (ArrayView2::from_shape((batch, inputs), x), ArrayViewMut2::from_shape((batch, outputs), y))
        else {
            unreachable!("lengths follow from the checked shapes")
        };
        general_mat_mul(1.0, &x, &w.t(), 0.0, &mut y);
        if let Some(bias) = bias {
            y.rows_mut().into_iter().for_each(|mut y| y += &ArrayView1::from(bias));
        }
    });
    Ok(())
}
