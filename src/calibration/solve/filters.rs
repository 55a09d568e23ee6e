//! Filters on their way to codes and scales under H: rounded with compensation, started from several scales, swept.
//! Not here: H and its factor ([`super`]).

use std::rc::Rc;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatRef, Par};

use super::{Grid, Plain, Solved, Solver, dot, product, strided, value_of};
use crate::limits::PACKED_PLANES as MAX;
use crate::ternarize::planes::{LeastSquares, Levels, refine_weighted};

/// Columns per block.
const BLOCK: usize = 128;

/// Scales to start with, in units of those that fit what is rounded: so many of them that one start's work on short
/// filters adds up to that on filters of [`STARTED`] weights.
const STARTS: [f64; 8] = [1.0, 1.2, 1.1, 0.9, 1.3, 0.8, 1.45, 1.6];
const STARTED: usize = 4096;

/// Codes and scales for them from each start, so often; of several planes, whose scales move less, once, and so of filters
/// that are too long for more than one start.
const ROUNDS: usize = 2;

/// First scales are fitted until a step lowers their error by less than this share.
pub(crate) const FOR_A_START: f64 = 1e-4;

/// What lowers the error by less than this share of it is none better: rounding must not choose.
const BETTER: f64 = 1e-9;

/// Some filters under way. All matrices are `[filters][n]`, row by row.
#[derive(Clone)]
pub(super) struct Filters<'a> {
    solver: &'a Solver,
    grid: Grid,
    groups: usize,
    rows: usize,
    w: &'a [f64],
    scales: Vec<f32>,
    levels: Vec<Levels>,
    /// W − Ŵ.
    pub(super) e: Vec<f64>,
    /// E·(H + λI); until it is known, what each code was chosen for.
    pub(super) r: Vec<f64>,
    /// t per plane.
    t: Vec<Vec<i8>>,
    /// W·(H + λI), where scales are those of whole filters.
    wh: Rc<[f64]>,
}

impl<'a> Filters<'a> {
    pub(super) fn new(solver: &'a Solver, w: &'a [f64], scales: Vec<f32>, grid: Grid) -> Self {
        let n = solver.n;
        let levels = scales.chunks_exact(grid.planes).map(|scales| Levels::new(scales, grid.binary)).collect();
        let (groups, rows) = (n.div_ceil(grid.group), w.len() / n);
        let (e, r, t) = (vec![0.0; w.len()], vec![0.0; w.len()], vec![vec![0; w.len()]; grid.planes]);
        let wh = if grid.group >= n { solver.product(w) } else { Vec::new() };
        Self { solver, grid, groups, rows, w, scales, levels, e, r, t, wh: wh.into() }
    }

    /// The scales that fit what the codes were chosen for, instead of the weights.
    pub(super) fn fit_targets(&mut self) {
        let (n, Grid { group, planes, dtype, binary, .. }) = (self.solver.n, self.grid);
        let importance: Vec<f64> = (0..n).map(|j| self.solver.importance(j)).collect();
        let units = self.r.chunks_exact(n).flat_map(|row| row.chunks(group).zip(importance.chunks(group)));
        for ((targets, importance), unit) in units.zip(0..) {
            let scales = &mut self.scales[unit * planes..][..planes];
            let (fitted, levels) = refine_weighted(targets, importance, scales.to_vec(), dtype, binary, FOR_A_START);
            scales.copy_from_slice(&fitted);
            self.levels[unit] = levels;
        }
    }

    /// The best that comes of some starts, for each filter; one of them is what it is without H, so none gets worse by H.
    pub(super) fn best_start(self, plain: &Plain) -> Self {
        let starts = (STARTED / self.solver.n).max(1);
        let rounds = if self.grid.planes == 1 && starts > 1 { ROUNDS } else { 1 };
        let mut best = self.plain(plain);
        if starts > 1 {
            best.sweep(false);
        }
        for factor in STARTS.into_iter().take(starts) {
            let mut next = self.clone();
            next.scale(factor);
            for _ in 0..rounds {
                next.compensate();
                next.residual();
                next.sweep(false);
                best.take_better(&next);
            }
        }
        best
    }

    /// The same filters as they are without H.
    pub(super) fn plain(&self, plain: &Plain) -> Self {
        let (n, Grid { planes, binary, group, .. }) = (self.solver.n, self.grid);
        let levels = plain.scales.chunks_exact(planes).map(|scales| Levels::new(scales, binary)).collect();
        let mut filters = Self { scales: plain.scales.clone(), levels, t: plain.codes.clone(), ..self.clone() };
        for at in 0..self.w.len() {
            filters.e[at] = filters.lost(at / n * self.groups + at % n / group, at);
        }
        filters.residual();
        filters
    }

    /// w − ŵ of a weight, for the scales of its unit and its codes.
    fn lost(&self, unit: usize, at: usize) -> f64 {
        let scales = &self.scales[unit * self.grid.planes..][..self.grid.planes];
        self.w[at] - value_of(scales, self.t.iter().map(|t| t[at]))
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
    pub(super) fn take_better(&mut self, other: &Self) {
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
    pub(super) fn compensate(&mut self) {
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
    pub(super) fn residual(&mut self) {
        self.r = self.solver.product(&self.e);
    }

    /// The error under H + λI.
    pub(super) fn error(&self) -> f64 {
        dot(&self.e, &self.r)
    }

    /// Once over all columns: with `codes` each to its best value, and the scales of each group.
    pub(super) fn sweep(&mut self, codes: bool) {
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
            self.levels[unit] = Levels::new(&self.scales[unit * planes..][..planes], self.grid.binary);
            for j in 0..width {
                let at = row * n + start + j;
                let lost = self.lost(unit, at);
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
    pub(super) fn systems(&mut self, start: usize, end: usize) -> (Vec<LeastSquares>, Vec<Vec<f64>>) {
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

    pub(super) fn finish(self) -> Solved {
        let codes = self.t.iter().map(|t| t.iter().map(|t| (t + 1) as u8).collect()).collect();
        let squared = [dot(&self.e, &self.e), dot(self.w, self.w)];
        let damped_norm = if self.wh.is_empty() { None } else { Some(dot(self.w, &self.wh)) };
        let norm = damped_norm.map_or_else(|| self.solver.energy(self.w), |sum| sum - self.solver.lambda * squared[1]);
        let damped = self.error();
        // Rounding may put an error of nothing below 0; what is no number has to stay seen.
        let output = [damped - self.solver.lambda * squared[0], norm].map(|sum| if sum < 0.0 { 0.0 } else { sum });
        Solved { codes, scales: self.scales, squared, output, damped, system: LeastSquares::default() }
    }
}
