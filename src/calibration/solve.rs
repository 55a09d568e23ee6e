//! Codes and scales that keep the outputs of a layer: those of least (w − ŵ)ᵀH(w − ŵ), H = XᵀX.
//!
//! Codes: weights are rounded one after another, and what each loses is made up for by those still to
//! come (GPTQ, arXiv 2210.17323). Written with H + λI = LLᵀ, in the order in which the last column of L is
//! rounded first, the error is Σ_j (L_jj·e_j + Σ_{i>j} L_ij·e_i)² over e = w − ŵ, so column j goes to the
//! value nearest to
//!
//! ```text
//! w_j + Σ_{i>j} L_ij·e_i / L_jj
//! ```
//!
//! which is GPTQ's update, without an inverse. It is done in blocks of columns for some filters at a
//! time: what all columns before a block add is one matrix product.
//!
//! Scales: what columns are rounded for is spread wider than the weights themselves, so the first scales are fitted
//! to that; some more starts are a little larger or smaller, the more the shorter filters are. From each start
//! codes, and then least-squares scales under H + λI, group by group; of one plane, unless filters are long, codes
//! for these scales, and scales again. One more start is what the filter is without H. The best of all counts, for each
//! filter, so that none is worse under H + λI than without. And then column by column to the
//! best value, all others as they are, and scales once more; that can only lower the error. All of it is under
//! H + λI: where rows are few, what is best for them alone is worse for others. Only the first scales, which are
//! fitted input by input, are by the diagonal of H alone, and by λ for inputs that were always 0: with λ for all they made
//! no difference beyond chance (`docs/quality.md`).
//!
//! Everything is in f64, and each filter's numbers are its own: neither threads nor the filters beside it change
//! a bit.
//! Not here: where H comes from ([`super`]), or how codes are stored. The steps are in [`filters`].

mod filters;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

pub(crate) use self::filters::FOR_A_START;
use self::filters::Filters;
use crate::error::CalibrationProblem;
use crate::ternarize::planes::{LeastSquares, Levels};
use crate::ternarize::{Fitted, ScaleDtype};

/// Sweeps over all columns after the compensation, at most.
const SWEEPS: usize = 3;

/// A sweep that leaves more than this share of the error is the last.
const WORTHWHILE: f64 = 0.98;

/// How the weights of a filter are to be rounded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Codes are never 0.
    pub binary: bool,
    pub planes: usize,
    /// Weights that share their scales.
    pub group: usize,
    pub dtype: ScaleDtype,
    /// Filters of other calls have the same scales: they stay as they are, and [`Solved::system`] says which would be
    /// better. The group is a whole filter then.
    pub shared: bool,
}

/// What filters are without H.
#[derive(Debug)]
pub(crate) struct Plain {
    /// `[planes][filters][n]`, t.
    pub codes: Vec<Vec<i8>>,
    /// `[filters][groups][planes]`.
    pub scales: Vec<f32>,
}

impl Plain {
    /// None yet, of so many planes.
    pub fn new(planes: usize) -> Self {
        Self { codes: vec![Vec::new(); planes], scales: Vec::new() }
    }

    /// Weights that share their scales, of so many filters.
    pub fn add(&mut self, fit: &Fitted, weights: &[f64], filters: usize) {
        for &w in weights {
            self.codes.iter_mut().zip(fit.codes(w)).for_each(|(codes, t)| codes.push(t));
        }
        self.scales.extend(fit.scales().repeat(filters));
    }
}

/// How far below 0, as a share of the mean input's energy and as one per input, rounding may put what an input
/// combination's energy is.
const ROUNDING: (f64, f64) = (1e-3, 1e-5);

/// H and its factor.
#[derive(Debug)]
pub(crate) struct Solver {
    n: usize,
    /// Row by row, symmetric, without λ.
    h: Vec<f64>,
    lambda: f64,
    /// L, column by column, of H + λI with its rows and columns in `order`; above the diagonal anything.
    factor: Vec<f64>,
    /// The input of each row; the last one is rounded first.
    order: Vec<usize>,
}

/// What some filters became.
#[derive(Debug, Default)]
pub(crate) struct Solved {
    /// `[planes][filters][n]`, t+1.
    pub codes: Vec<Vec<u8>>,
    /// `[filters][groups][planes]`.
    pub scales: Vec<f32>,
    /// ‖W − Ŵ‖² and ‖W‖².
    pub squared: [f64; 2],
    /// The same under H.
    pub output: [f64; 2],
    /// ‖W − Ŵ‖² under H + λI.
    pub damped: f64,
    /// Of the changes of scales that all filters share.
    pub system: LeastSquares,
}

impl Solver {
    /// Of H, n × n and symmetric; λ is `damping` times the mean of its diagonal. With `by_diagonal` the columns of
    /// largest diagonal come first, else the first ones.
    ///
    /// # Errors
    /// H + λI that is not positive definite, or memory that is not there.
    pub fn new(h: Vec<f64>, n: usize, damping: f64, by_diagonal: bool) -> Result<Self, CalibrationProblem> {
        let indefinite = || CalibrationProblem::Indefinite { damping };
        let no_memory = || CalibrationProblem::Memory(8 * n * n);
        let diagonal = |i: usize| h[i * n + i];
        let mut order: Vec<usize> = (0..n).rev().collect();
        if by_diagonal {
            order.sort_by(|&a, &b| diagonal(a).total_cmp(&diagonal(b)));
        }
        let mean = (0..n).map(diagonal).sum::<f64>() / n as f64;
        let lambda = damping * mean;
        let mut factor = Vec::new();
        factor.try_reserve_exact(n * n).map_err(|_| no_memory())?;
        factor.resize(n * n, 0.0);
        let mut memory = MemBuffer::try_new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()))
            .map_err(|_| no_memory())?;
        let mut is_definite = |lambda: f64| {
            for (c, column) in factor.chunks_exact_mut(n).enumerate() {
                let row = &h[order[c] * n..][..n];
                column.iter_mut().zip(&order).skip(c).for_each(|(to, &input)| *to = row[input]);
                column[c] += lambda;
            }
            let matrix = MatMut::from_column_major_slice_mut(&mut factor, n, n);
            // On one thread: then nothing depends on how many there are.
            let found =
                cholesky_in_place(matrix, Default::default(), Par::Seq, MemStack::new(&mut memory), Default::default());
            found.is_ok() && (0..n).all(|i| factor[i * n + i].is_normal() && factor[i * n + i] > 0.0)
        };
        // Damping is for what sums of few rows, or in `f32`, leave, and not to make something of a matrix that is none.
        let slack = ROUNDING.0 + ROUNDING.1 * n as f64;
        if damping > slack && !is_definite(slack * mean) {
            return Err(CalibrationProblem::NegativeEnergy { share: slack });
        }
        if is_definite(lambda) { Ok(Self { n, h, lambda, factor, order }) } else { Err(indefinite()) }
    }

    /// Σ xᵀHx over rows x.
    pub fn energy(&self, rows: &[f64]) -> f64 {
        energy(&self.h, self.n, rows)
    }

    /// How much input j weighs by itself where scales are fitted: its energy; λ if there never was any.
    pub fn importance(&self, j: usize) -> f64 {
        let energy = self.h[j * self.n + j];
        if energy > 0.0 { energy } else { self.lambda }
    }

    /// Rows x·(H + λI).
    fn product(&self, rows: &[f64]) -> Vec<f64> {
        let mut products = vec![0.0; rows.len()];
        let h = MatRef::from_row_major_slice(&self.h, self.n, self.n);
        product(&mut products, self.n, rows.len() / self.n, (rows, self.n), h, Accum::Replace);
        products.iter_mut().zip(rows).for_each(|(product, x)| *product += self.lambda * x);
        products
    }

    /// Rounds filters, `w` holds them one after another; `scales` are those to begin with, `[filters][groups][planes]`.
    pub fn solve(&self, w: &[f64], scales: Vec<f32>, plain: &Plain, grid: Grid) -> Solved {
        let mut filters = Filters::new(self, w, scales, grid);
        filters.compensate();
        if grid.shared {
            filters.residual();
            filters.take_better(&filters.plain(plain));
        } else {
            filters.fit_targets();
            filters = filters.best_start(plain);
        }
        let mut last = filters.error();
        for _ in 0..SWEEPS {
            filters.sweep(true);
            let error = filters.error();
            if error > last * WORTHWHILE {
                break;
            }
            last = error;
        }
        let mut system = LeastSquares::default();
        if grid.shared {
            let (systems, _) = filters.systems(0, self.n);
            systems.iter().for_each(|next| system.add(next));
        }
        Solved { system, ..filters.finish() }
    }
}

impl Solved {
    /// Where only the diagonal is known: every weight to the nearest value of its group's levels; or, where that is all
    /// zeros, as without it.
    pub fn by_diagonal(
        w: &[f64],
        diagonal: &[f64],
        scales: Vec<f32>,
        levels: &[Levels],
        plain: &Plain,
        grid: Grid,
    ) -> Self {
        let n = diagonal.len();
        let unseen = diagonal.iter().all(|&energy| energy == 0.0);
        let groups = n.div_ceil(grid.group);
        let mut solved = Self { codes: vec![vec![1; w.len()]; grid.planes], scales, ..Self::default() };
        for (at, &w) in w.iter().enumerate() {
            let j = at % n;
            let unit = at / n * groups + j / grid.group;
            let (mut value, mut t) = levels[unit].round(w);
            if unseen {
                t.iter_mut().zip(&plain.codes).for_each(|(t, codes)| *t = codes[at]);
                value = value_of(&solved.scales[unit * grid.planes..][..grid.planes], t);
            }
            solved.codes.iter_mut().zip(t).for_each(|(codes, t)| codes[at] = (t + 1) as u8);
            let lost = (w - value).powi(2);
            for (p, t_p) in t.iter().enumerate().take(grid.planes) {
                let weighted = diagonal[j] * f64::from(*t_p);
                solved.system.right[p] += weighted * (w - value);
                (0..grid.planes).for_each(|q| solved.system.matrix[p][q] += weighted * f64::from(t[q]));
            }
            solved.squared[0] += lost;
            solved.squared[1] += w * w;
            solved.output[0] += diagonal[j] * lost;
            solved.output[1] += diagonal[j] * w * w;
        }
        solved.damped = solved.output[0];
        solved
    }
}

/// Σ xᵀHx over rows x of n numbers; H is symmetric. Rounding does not put it below 0.
pub(crate) fn energy(h: &[f64], n: usize, rows: &[f64]) -> f64 {
    let (mut products, count) = (vec![0.0; rows.len()], rows.len() / n);
    product(&mut products, n, count, (rows, n), MatRef::from_row_major_slice(h, n, n), Accum::Replace);
    let sum = dot(rows, &products);
    if sum < 0.0 { 0.0 } else { sum }
}

/// ŵ of a weight with these scales and codes. Values are summed in `f32`, as a reader sums them.
fn value_of(scales: &[f32], t: impl IntoIterator<Item = i8>) -> f64 {
    f64::from(scales.iter().zip(t).map(|(scale, t)| scale * f32::from(t)).sum::<f32>())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A part of a matrix that lies row by row. (`from_row_major_slice_with_stride_mut` of faer 0.24.4 mixes up
/// the strides and reaches outside of the slice.)
pub(crate) fn strided(slice: &mut [f64], rows: usize, columns: usize, stride: usize) -> MatMut<'_, f64> {
    MatMut::from_column_major_slice_with_stride_mut(slice, columns, rows, stride).transpose_mut()
}

/// `to` = A·B (or += ), `to` rows × `columns` without gaps; A has `rows` rows of that stride.
fn product(to: &mut [f64], columns: usize, rows: usize, (a, stride): (&[f64], usize), b: MatRef<'_, f64>, add: Accum) {
    let a = MatRef::from_row_major_slice_with_stride(a, rows, b.nrows(), stride);
    let to = MatMut::from_row_major_slice_mut(&mut to[..rows * columns], rows, columns);
    matmul(to, add, a, b, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests;
