//! Max and average pooling. Not here: where windows may stand, which the description has checked.

use std::ops::Range;

use rayon::prelude::*;

use super::{Layer, Pass};
use crate::kernel::Conv2d;
use crate::net::pool::inside;
use crate::train::maps::{Maps, Real};

/// The largest value of each window; the first of equals, or NaN where there is one, as in PyTorch.
#[derive(Debug)]
pub struct MaxPool {
    geometry: Conv2d,
    /// Where in its map each output's value came from.
    places: Vec<u32>,
}

impl MaxPool {
    /// With windows that walk in that way.
    pub fn new(geometry: Conv2d) -> Self {
        Self { geometry, places: Vec::new() }
    }
}

/// The windows' values: rows and columns of a map that each output sees.
fn windows(geometry: &Conv2d, input: [usize; 2], output: [usize; 2]) -> impl Iterator<Item = [Range<usize>; 2]> {
    (0..output[0]).flat_map(move |y| {
        let rows = inside(geometry, 0, y, input);
        (0..output[1]).map(move |x| [rows.clone(), inside(geometry, 1, x, input)])
    })
}

fn sizes<R: Real>(x: &Maps<R>, y: &Maps<R>) -> ([usize; 2], [usize; 2]) {
    ([x.shape[2], x.shape[3]], [y.shape[2], y.shape[3]])
}

impl<R: Real> Layer<R> for MaxPool {
    fn kind(&self) -> &'static str {
        "max_pool"
    }

    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, _pass: Pass) {
        let (input, output) = sizes(x, y);
        self.places.resize(y.values.len(), 0);
        let (from, to) = (x.map_len(), y.map_len());
        let maps = y.values.par_chunks_mut(to).zip(self.places.par_chunks_mut(to)).zip(x.values.par_chunks(from));
        maps.for_each(|((y, places), x)| {
            let outputs = y.iter_mut().zip(places).zip(windows(&self.geometry, input, output));
            for ((y, place), [rows, columns]) in outputs {
                let first = rows.start * input[1] + columns.start;
                let (mut best, mut at) = (x[first], first);
                for row in rows {
                    let start = row * input[1] + columns.start;
                    for (i, &value) in x[start..start + columns.len()].iter().enumerate() {
                        if value > best || value.partial_cmp(&value).is_none() {
                            (best, at) = (value, start + i);
                        }
                    }
                }
                (*y, *place) = (best, at as u32);
            }
        });
    }

    fn backward(&mut self, _x: &Maps<R>, y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        let Some(dx) = dx else { return };
        let (from, to) = (dx.map_len(), y.map_len());
        let maps = dx.values.par_chunks_mut(from).zip(dy.values.par_chunks(to)).zip(self.places.par_chunks(to));
        maps.for_each(|((dx, dy), places)| {
            dx.fill(R::zero());
            dy.iter().zip(places).for_each(|(&dy, &place)| dx[place as usize] += dy);
        });
    }
}

/// The mean of each window, summed in `f64`; the padding counts as zeros, as PyTorch's default has it.
#[derive(Debug)]
pub struct AvgPool {
    /// `None`: one window over all of the map.
    geometry: Option<Conv2d>,
}

impl AvgPool {
    /// With windows that walk in that way.
    pub fn new(geometry: Conv2d) -> Self {
        Self { geometry: Some(geometry) }
    }

    /// The mean of each map.
    pub fn global() -> Self {
        Self { geometry: None }
    }

    fn geometry(&self, input: [usize; 2]) -> Conv2d {
        self.geometry.unwrap_or(Conv2d::new(input))
    }
}

impl<R: Real> Layer<R> for AvgPool {
    fn kind(&self) -> &'static str {
        if self.geometry.is_some() { "avg_pool" } else { "global_avg_pool" }
    }

    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, _pass: Pass) {
        let (input, output) = sizes(x, y);
        let geometry = self.geometry(input);
        let share = 1.0 / geometry.kernel.iter().product::<usize>() as f64;
        let maps = y.values.par_chunks_mut(y.shape[2] * y.shape[3]).zip(x.values.par_chunks(x.map_len()));
        maps.for_each(|(y, x)| {
            for (y, [rows, columns]) in y.iter_mut().zip(windows(&geometry, input, output)) {
                let values = rows.flat_map(|row| &x[row * input[1]..][columns.clone()]);
                *y = R::from_f64(values.map(|x| x.to_f64()).sum::<f64>() * share);
            }
        });
    }

    fn backward(&mut self, x: &Maps<R>, y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        let Some(dx) = dx else { return };
        let (input, output) = sizes(x, y);
        let geometry = self.geometry(input);
        let count = R::from_f64(geometry.kernel.iter().product::<usize>() as f64);
        let maps = dx.values.par_chunks_mut(x.map_len()).zip(dy.values.par_chunks(y.map_len()));
        maps.for_each(|(dx, dy)| {
            dx.fill(R::zero());
            for (&dy, [rows, columns]) in dy.iter().zip(windows(&geometry, input, output)) {
                let share = dy / count;
                rows.for_each(|row| dx[row * input[1]..][columns.clone()].iter_mut().for_each(|dx| *dx += share));
            }
        });
    }
}
