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
//! for these scales, and scales again. The best of all counts, for each filter. And then column by column to the
//! best value, all others as they are, and scales once more; that can only lower the error. All of it is under
//! H + λI: where rows are few, what is best for them alone is worse for others. Only the first scales, which are
//! fitted input by input, are by the diagonal of H alone: with λ they made no difference beyond chance
//! (`docs/quality.md`).
//!
//! Everything is in f64, and each filter's numbers are its own: neither threads nor the filters beside it change
//! a bit.
//! Not here: where H comes from ([`super`]), or how codes are stored.

use std::rc::Rc;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::error::CalibrationProblem;
use crate::limits::PACKED_PLANES as MAX;
use crate::ternarize::ScaleDtype;
use crate::ternarize::planes::{LeastSquares, Levels, refine_weighted};

/// Columns per block.
const BLOCK: usize = 128;

/// Sweeps over all columns after the compensation, at most.
const SWEEPS: usize = 3;

/// Scales to start with, in units of those that fit what is rounded: so many of them that one start's work on short
/// filters adds up to that on filters of [`STARTED`] weights.
const STARTS: [f64; 8] = [1.0, 1.2, 1.1, 0.9, 1.3, 0.8, 1.45, 1.6];
const STARTED: usize = 4096;

/// Codes and scales for them from each start, so often; of several planes, whose scales move less, once, and so of filters
/// that are too long for more than one start.
const ROUNDS: usize = 2;

/// What lowers the error by less than this share of it is none better: rounding must not choose.
const BETTER: f64 = 1e-9;

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
        let lambda = damping * (0..n).map(diagonal).sum::<f64>() / n as f64;
        let mut factor = Vec::new();
        factor.try_reserve_exact(n * n).map_err(|_| no_memory())?;
        factor.resize(n * n, 0.0);
        for (c, column) in factor.chunks_exact_mut(n).enumerate() {
            let row = &h[order[c] * n..][..n];
            column.iter_mut().zip(&order).skip(c).for_each(|(to, &input)| *to = row[input]);
            column[c] += lambda;
        }
        let mut memory = MemBuffer::try_new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()))
            .map_err(|_| no_memory())?;
        let matrix = MatMut::from_column_major_slice_mut(&mut factor, n, n);
        let stack = MemStack::new(&mut memory);
        // On one thread: then nothing depends on how many there are.
        cholesky_in_place(matrix, Default::default(), Par::Seq, stack, Default::default()).map_err(|_| indefinite())?;
        let definite = (0..n).all(|i| factor[i * n + i].is_normal() && factor[i * n + i] > 0.0);
        if definite { Ok(Self { n, h, lambda, factor, order }) } else { Err(indefinite()) }
    }

    /// Σ xᵀHx over rows x.
    pub fn energy(&self, rows: &[f64]) -> f64 {
        energy(&self.h, self.n, rows)
    }

    /// How much input j weighs by itself.
    pub fn diagonal(&self, j: usize) -> f64 {
        self.h[j * self.n + j]
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
    pub fn solve(&self, w: &[f64], scales: Vec<f32>, grid: Grid) -> Solved {
        let mut filters = Filters::new(self, w, scales, grid);
        filters.compensate();
        if grid.shared {
            filters.residual();
        } else {
            filters.fit_targets();
            filters = filters.best_start();
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
    /// Where only the diagonal is known: every weight to the nearest value of its group's levels.
    pub fn by_diagonal(w: &[f64], diagonal: &[f64], scales: Vec<f32>, levels: &[Levels], grid: Grid) -> Self {
        let n = diagonal.len();
        let groups = n.div_ceil(grid.group);
        let mut solved = Self { codes: vec![vec![1; w.len()]; grid.planes], scales, ..Self::default() };
        for (at, &w) in w.iter().enumerate() {
            let j = at % n;
            let (value, t) = levels[at / n * groups + j / grid.group].round(w);
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
        solved
    }
}

/// Some filters under way. All matrices are `[filters][n]`, row by row.
#[derive(Clone)]
struct Filters<'a> {
    solver: &'a Solver,
    grid: Grid,
    groups: usize,
    rows: usize,
    w: &'a [f64],
    scales: Vec<f32>,
    levels: Vec<Levels>,
    /// W − Ŵ.
    e: Vec<f64>,
    /// E·(H + λI); until it is known, what each code was chosen for.
    r: Vec<f64>,
    /// t per plane.
    t: Vec<Vec<i8>>,
    /// W·(H + λI), where scales are those of whole filters.
    wh: Rc<[f64]>,
}

impl<'a> Filters<'a> {
    fn new(solver: &'a Solver, w: &'a [f64], scales: Vec<f32>, grid: Grid) -> Self {
        let n = solver.n;
        let levels = scales.chunks_exact(grid.planes).map(|scales| Levels::new(scales, grid.binary)).collect();
        let (groups, rows) = (n.div_ceil(grid.group), w.len() / n);
        let (e, r, t) = (vec![0.0; w.len()], vec![0.0; w.len()], vec![vec![0; w.len()]; grid.planes]);
        let wh = if grid.group >= n { solver.product(w) } else { Vec::new() };
        Self { solver, grid, groups, rows, w, scales, levels, e, r, t, wh: wh.into() }
    }

    /// The scales that fit what the codes were chosen for, instead of the weights.
    fn fit_targets(&mut self) {
        let (n, Grid { group, planes, dtype, binary, .. }) = (self.solver.n, self.grid);
        let importance: Vec<f64> = (0..n).map(|j| self.solver.diagonal(j)).collect();
        let units = self.r.chunks_exact(n).flat_map(|row| row.chunks(group).zip(importance.chunks(group)));
        for ((targets, importance), unit) in units.zip(0..) {
            let scales = &mut self.scales[unit * planes..][..planes];
            let (fitted, levels) = refine_weighted(targets, importance, scales.to_vec(), dtype, binary);
            scales.copy_from_slice(&fitted);
            self.levels[unit] = levels;
        }
    }

    /// The best that comes of some starts, for each filter.
    fn best_start(self) -> Self {
        let starts = (STARTED / self.solver.n).max(1);
        let rounds = if self.grid.planes == 1 && starts > 1 { ROUNDS } else { 1 };
        let mut best: Option<Self> = None;
        for factor in STARTS.into_iter().take(starts) {
            let mut next = self.clone();
            next.scale(factor);
            for _ in 0..rounds {
                next.compensate();
                next.residual();
                next.sweep(false);
                match &mut best {
                    None => best = Some(next.clone()),
                    Some(best) => best.take_better(&next),
                }
            }
        }
        best.unwrap_or(self)
    }

    /// Scales times that, where their type holds it.
    fn scale(&mut self, factor: f64) {
        let Grid { planes, dtype, binary, .. } = self.grid;
        for (scales, levels) in self.scales.chunks_exact_mut(planes).zip(&mut self.levels) {
            let scaled: Vec<f32> = scales.iter().map(|&scale| dtype.round(f64::from(scale) * factor)).collect();
            if scaled.iter().all(|scale| scale.is_finite()) {
                scales.copy_from_slice(&scaled);
                *levels = Levels::new(scales, binary);
            }
        }
    }

    /// Filters that have a smaller error there become what they are there.
    fn take_better(&mut self, other: &Self) {
        let (n, units) = (self.solver.n, self.groups * self.grid.planes);
        for row in 0..self.rows {
            let at = row * n..(row + 1) * n;
            let [ours, theirs] = [&*self, other].map(|filters| dot(&filters.e[at.clone()], &filters.r[at.clone()]));
            // Of what is no number nothing is better.
            if theirs < ours * (1.0 - BETTER) {
                self.e[at.clone()].copy_from_slice(&other.e[at.clone()]);
                self.r[at.clone()].copy_from_slice(&other.r[at.clone()]);
                self.t
                    .iter_mut()
                    .zip(&other.t)
                    .for_each(|(t, other)| t[at.clone()].copy_from_slice(&other[at.clone()]));
                let (scales, groups) = (row * units..(row + 1) * units, row * self.groups..(row + 1) * self.groups);
                self.scales[scales.clone()].copy_from_slice(&other.scales[scales]);
                self.levels[groups.clone()].clone_from_slice(&other.levels[groups]);
            }
        }
    }

    fn set(&mut self, at: usize, t: [i8; MAX]) {
        self.t.iter_mut().zip(t).for_each(|(plane, t)| plane[at] = t);
    }

    /// Codes and E by compensation, for the scales that are there; R becomes what each code was chosen for.
    fn compensate(&mut self) {
        let Solver { n, ref factor, ref order, .. } = *self.solver;
        // In the order of the factor; `s` is what the columns before a block add to it.
        let (mut e, mut s) = (vec![0.0; self.rows * n], vec![0.0; self.rows * BLOCK]);
        let mut corner = vec![0.0; BLOCK * BLOCK];
        for start in (0..n).step_by(BLOCK).rev() {
            let (end, width) = ((start + BLOCK).min(n), BLOCK.min(n - start));
            if end < n {
                let factor = MatRef::from_column_major_slice_with_stride(&factor[start * n + end..], n - end, width, n);
                product(&mut s, width, self.rows, (&e[end..], n), factor, Accum::Replace);
            }
            for j in 0..width {
                (0..=j).for_each(|c| corner[j * BLOCK + c] = factor[(start + c) * n + start + j]);
            }
            for row in 0..self.rows {
                let s = &mut s[row * width..][..width];
                for j in (0..width).rev() {
                    let (input, corner) = (order[start + j], &corner[j * BLOCK..][..=j]);
                    let at = row * n + input;
                    let target = self.w[at] + s[j] / corner[j];
                    let (value, t) = self.levels[row * self.groups + input / self.grid.group].round(target);
                    let lost = self.w[at] - value;
                    e[row * n + start + j] = lost;
                    (self.e[at], self.r[at]) = (lost, target);
                    self.set(at, t);
                    s[..j].iter_mut().zip(corner).for_each(|(s, l)| *s += l * lost);
                }
            }
            s.fill(0.0);
        }
    }

    /// R = E·(H + λI).
    fn residual(&mut self) {
        self.r = self.solver.product(&self.e);
    }

    /// The error under H + λI.
    fn error(&self) -> f64 {
        dot(&self.e, &self.r)
    }

    /// Once over all columns: with `codes` each to its best value, and the scales of each group.
    fn sweep(&mut self, codes: bool) {
        let n = self.solver.n;
        for g in 0..self.groups {
            let (start, end) = (g * self.grid.group, ((g + 1) * self.grid.group).min(n));
            let mut pending = None;
            for at in (start..end).step_by(BLOCK).filter(|_| codes) {
                let to = (at + BLOCK).min(end);
                let changes = self.best_codes(g, at, to);
                // What a short group's scales change goes to the other columns together with this.
                match (at, to) == (start, end) {
                    true => pending = changes,
                    false => self.spread(changes.as_deref(), at, to, [(0, at), (to, n)]),
                }
            }
            if !self.grid.shared {
                self.best_scales(g, start, end, pending);
            }
        }
    }

    /// Each of these columns to the value of least error, all others as they are: w_j − e_j + r_j / (H_jj + λ). What that
    /// changes in E; R has it in these columns only.
    fn best_codes(&mut self, g: usize, start: usize, end: usize) -> Option<Vec<f64>> {
        let Solver { n, ref h, lambda, .. } = *self.solver;
        let width = end - start;
        let mut changes = vec![0.0; self.rows * width];
        let mut any = false;
        for row in 0..self.rows {
            for j in start..end {
                let (at, diagonal) = (row * n + j, h[j * n + j] + lambda);
                if diagonal <= 0.0 {
                    continue;
                }
                let now = self.w[at] - self.e[at];
                let (value, t) = self.levels[row * self.groups + g].round(now + self.r[at] / diagonal);
                if value != now {
                    let change = now - value;
                    changes[row * width + j - start] = change;
                    any = true;
                    self.e[at] = self.w[at] - value;
                    self.set(at, t);
                    let r = &mut self.r[row * n + start..row * n + end];
                    r.iter_mut().zip(&h[j * n + start..j * n + end]).for_each(|(r, h)| *r += change * h);
                    self.r[at] += change * lambda;
                }
            }
        }
        any.then_some(changes)
    }

    /// R += C·H in some columns, for changes C of E in the columns `start..end`. λ is of these columns alone.
    fn spread(&mut self, changes: Option<&[f64]>, start: usize, end: usize, columns: [(usize, usize); 2]) {
        let Some(changes) = changes else { return };
        let (n, rows, width) = (self.solver.n, self.rows, end - start);
        for (from, to) in columns.into_iter().filter(|(from, to)| from < to) {
            let h = MatRef::from_row_major_slice_with_stride(&self.solver.h[start * n + from..], width, to - from, n);
            let r = strided(&mut self.r[from..], rows, to - from, n);
            let changes = MatRef::from_row_major_slice(changes, rows, width);
            matmul(r, Accum::Add, changes, h, 1.0, Par::Seq);
        }
    }

    /// The scales of one group by least squares, taken where that lowers the error. `pending` are changes of E in the
    /// group's columns that R does not have in the others yet.
    fn best_scales(&mut self, g: usize, start: usize, end: usize, pending: Option<Vec<f64>>) {
        let (n, planes, width) = (self.solver.n, self.grid.planes, end - start);
        let whole = width == n;
        let (systems, mut products) = self.systems(start, end);
        let mut changes = vec![0.0; self.rows * width];
        for (row, system) in systems.into_iter().enumerate() {
            let unit = row * self.groups + g;
            let old: Vec<f64> = self.scales[unit * planes..][..planes].iter().map(|&s| f64::from(s)).collect();
            let Some(new) = system.rescaled(&old, self.grid.dtype) else { continue };
            for (p, scale) in new.iter().enumerate() {
                self.scales[unit * planes + p] = scale.abs() as f32;
                if whole {
                    let products = &products[p][row * n..][..n];
                    let r = self.r[row * n..][..n].iter_mut().zip(products);
                    r.for_each(|(r, th)| *r -= (scale - old[p]) * th);
                }
                if scale.is_sign_negative() {
                    self.t[p][row * n + start..][..width].iter_mut().for_each(|t| *t = -*t);
                    products[p][row * width..][..width].iter_mut().for_each(|th| *th = -*th);
                }
            }
            let scales = &self.scales[unit * planes..][..planes];
            self.levels[unit] = Levels::new(scales, self.grid.binary);
            for j in 0..width {
                let at = row * n + start + j;
                let value = scales.iter().zip(&self.t).map(|(scale, t)| scale * f32::from(t[at])).sum::<f32>();
                let lost = self.w[at] - f64::from(value);
                changes[row * width + j] = lost - self.e[at];
                self.e[at] = lost;
            }
        }
        if !whole {
            self.spread(Some(&changes), start, end, [(start, end), (n, n)]);
            for (row, changes) in changes.chunks_exact(width).enumerate() {
                let r = self.r[row * n + start..][..width].iter_mut().zip(changes);
                r.for_each(|(r, change)| *r += self.solver.lambda * change);
            }
            changes.iter_mut().zip(pending.iter().flatten()).for_each(|(change, pending)| *change += pending);
            self.spread(Some(&changes), start, end, [(0, start), (end, n)]);
        }
    }

    /// For each filter the system for changes of one group's scales; and T·(H + λI) per plane, in these columns. Of
    /// whole filters the first plane's follows from the others': Σ α_p·T_p·(H + λI) = W·(H + λI) − R.
    fn systems(&mut self, start: usize, end: usize) -> (Vec<LeastSquares>, Vec<Vec<f64>>) {
        let (n, rows, width) = (self.solver.n, self.rows, end - start);
        let h = MatRef::from_row_major_slice_with_stride(&self.solver.h[start * n + start..], width, width, n);
        let mut systems = vec![LeastSquares::default(); rows];
        let mut products = vec![vec![0.0; rows * width]; self.grid.planes];
        let mut t = vec![0.0; rows * width];
        for p in (0..self.grid.planes).rev() {
            let [products, others @ ..] = &mut products[p..] else { break };
            for (row, t) in t.chunks_exact_mut(width).enumerate() {
                let codes = &self.t[p][row * n + start..][..width];
                t.iter_mut().zip(codes).for_each(|(to, &t)| *to = f64::from(t));
            }
            match p == 0 && width == n {
                true => self.first_product(&t, others, products),
                false => {
                    product(products, width, rows, (&t, width), h, Accum::Replace);
                    products.iter_mut().zip(&t).for_each(|(th, t)| *th += self.solver.lambda * t);
                }
            }
            for (row, system) in systems.iter_mut().enumerate() {
                let (at, th) = (row * n + start, &products[row * width..][..width]);
                for (to, codes) in system.matrix[p].iter_mut().zip(&self.t) {
                    *to = codes[at..][..width].iter().zip(th).map(|(&t, th)| f64::from(t) * th).sum();
                }
                system.right[p] = dot(&t[row * width..][..width], &self.r[at..][..width]);
            }
        }
        (systems, products)
    }

    /// T·(H + λI) of the first plane of whole filters, from that of the others; where its scale is too small for that,
    /// from its codes.
    fn first_product(&self, t: &[f64], others: &[Vec<f64>], to: &mut [f64]) {
        let (n, planes, h) = (self.solver.n, self.grid.planes, &self.solver.h);
        for (row, to) in to.chunks_exact_mut(n).enumerate() {
            let at = row * n..(row + 1) * n;
            let scales = self.scales[row * planes..][..planes].iter().map(|&scale| f64::from(scale));
            let first = f64::from(self.scales[row * planes]);
            if first <= 1e-3 * scales.clone().fold(0.0, f64::max) {
                to.iter_mut().zip(&t[at.clone()]).for_each(|(to, t)| *to = self.solver.lambda * t);
                for (j, &t) in t[at].iter().enumerate().filter(|(_, t)| **t != 0.0) {
                    to.iter_mut().zip(&h[j * n..]).for_each(|(to, h)| *to += t * h);
                }
                continue;
            }
            to.iter_mut().zip(&self.wh[at.clone()]).zip(&self.r[at.clone()]).for_each(|((to, wh), r)| *to = wh - r);
            for (scale, other) in scales.skip(1).zip(others) {
                to.iter_mut().zip(&other[at.clone()]).for_each(|(to, th)| *to -= scale * th);
            }
            to.iter_mut().for_each(|to| *to /= first);
        }
    }

    fn finish(self) -> Solved {
        let codes = self.t.iter().map(|t| t.iter().map(|t| (t + 1) as u8).collect()).collect();
        let squared = [dot(&self.e, &self.e), dot(self.w, self.w)];
        let damped = if self.wh.is_empty() { None } else { Some(dot(self.w, &self.wh)) };
        let norm = damped.map_or_else(|| self.solver.energy(self.w), |sum| sum - self.solver.lambda * squared[1]);
        // Rounding may put an error of nothing below 0; what is no number has to stay seen.
        let output =
            [self.error() - self.solver.lambda * squared[0], norm].map(|sum| if sum < 0.0 { 0.0 } else { sum });
        Solved { codes, scales: self.scales, squared, output, system: LeastSquares::default() }
    }
}

/// Σ xᵀHx over rows x of n numbers; H is symmetric. Rounding does not put it below 0.
pub(crate) fn energy(h: &[f64], n: usize, rows: &[f64]) -> f64 {
    let (mut products, count) = (vec![0.0; rows.len()], rows.len() / n);
    product(&mut products, n, count, (rows, n), MatRef::from_row_major_slice(h, n, n), Accum::Replace);
    let sum = dot(rows, &products);
    if sum < 0.0 { 0.0 } else { sum }
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
