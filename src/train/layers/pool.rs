//! Max and average pooling. Not here: where windows may stand, which the description has checked.

use std::ops::Range;

use rayon::prelude::*;

use super::{Layer, Pass};
use crate::kernel::Conv2d;
use crate::net::pool::{Windows, inside};
use crate::train::maps::{Maps, Real};

/// The largest value of each window; the first of equals, or NaN where there is one, as in PyTorch.
#[derive(Debug)]
pub struct MaxPool {
    geometry: Conv2d,
    /// Where in its map each output's value came from, less its column times the stride.
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
        let windows = Windows::new(&self.geometry, input, output);
        let stride = self.geometry.stride[1];
        // Where nothing is larger than -∞, the first place counts.
        let first = |column| inside(&self.geometry, 1, column, input).start.wrapping_sub(column * stride);
        let first: Vec<usize> = (0..output[1]).map(first).collect();
        maps.for_each(|((y, places), x)| {
            y.fill(R::from_f64(f64::NEG_INFINITY));
            let lines = y.chunks_mut(output[1]).zip(places.chunks_mut(output[1]));
            for (i, (y, places)) in lines.enumerate() {
                let row = inside(&self.geometry, 0, i, input).start * input[1];
                places.iter_mut().zip(&first).for_each(|(place, first)| *place = row.wrapping_add(*first) as u32);
                windows.line(i, |seen, start| {
                    let place = start.wrapping_sub(seen.outputs.start * stride) as u32;
                    let line = y[seen.outputs.clone()].iter_mut().zip(&mut places[seen.outputs.clone()]);
                    seen.each(line, &x[start..], |(y, at), x, further| {
                        let larger = x > **y || x.partial_cmp(&x).is_none();
                        (**y, **at) = if larger { (x, place.wrapping_add(further)) } else { (**y, **at) };
                    });
                });
            }
        });
    }

    fn backward(&mut self, _x: &Maps<R>, y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        let Some(dx) = dx else { return };
        let (from, to) = (dx.map_len(), y.map_len());
        let (line, stride) = (y.shape[3], self.geometry.stride[1] as u32);
        let maps = dx.values.par_chunks_mut(from).zip(dy.values.par_chunks(to)).zip(self.places.par_chunks(to));
        maps.for_each(|((dx, dy), places)| {
            dx.fill(R::zero());
            for (dy, places) in dy.chunks(line).zip(places.chunks(line)) {
                let columns = (0..line as u32).map(|column| column * stride);
                let places = places.iter().zip(columns).map(|(place, column)| place.wrapping_add(column));
                dy.iter().zip(places).for_each(|(&dy, place)| dx[place as usize] += dy);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition, over edges, ties, infinities and NaN; and by the backward pass, from where.
    #[test]
    fn maxima_are_the_first_of_their_windows() {
        let input = [6, 11];
        let values = |i: usize| match i * 7919 % 13 {
            0 => f32::NAN,
            1..6 => f32::NEG_INFINITY,
            other => (other % 4) as f32,
        };
        let x = Maps { values: (0..2 * 3 * 66).map(values).collect(), shape: [2, 3, 6, 11] };
        for (kernel, padding) in
            [([2, 2], [0, 0]), ([3, 3], [1, 1]), ([2, 5], [1, 2]), ([1, 4], [0, 2]), ([6, 1], [3, 0])]
        {
            for stride in [[1, 1], [2, 2], [1, 3], [3, 2]] {
                let geometry = Conv2d { stride, padding, ..Conv2d::new(kernel) };
                let output = geometry.output(input).unwrap();
                let mut layer = MaxPool::new(geometry);
                let (mut y, mut dx) = (Maps::default(), x.clone());
                y.resize(2, [3, output[0], output[1]]);
                layer.forward(&x, &mut y, Pass::Train);
                let mut dy = y.clone();
                dy.values.iter_mut().enumerate().for_each(|(i, dy)| *dy = i as f32);
                layer.backward(&x, &y, &dy, Some(&mut dx));

                let mut expected = vec![0.0; x.values.len()];
                for (i, (y, dy)) in y.values.iter().zip(&dy.values).enumerate() {
                    let (map, place) = (i / (output[0] * output[1]), i % (output[0] * output[1]));
                    let [rows, columns] =
                        [0, 1].map(|a| inside(&geometry, a, [place / output[1], place % output[1]][a], input));
                    let seen = rows.flat_map(|row| columns.clone().map(move |column| (map * 6 + row) * 11 + column));
                    let larger = |best: usize, at: usize| x.values[at] > x.values[best] || x.values[at].is_nan();
                    let best = seen.reduce(|best, at| if larger(best, at) { at } else { best }).unwrap();
                    assert_eq!(y.to_bits(), x.values[best].to_bits(), "{geometry:?}");
                    expected[best] += dy;
                }
                assert_eq!(dx.values, expected, "{geometry:?}");
            }
        }
    }
}
