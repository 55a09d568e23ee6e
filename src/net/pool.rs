//! Pooling: the largest value of each window, or their mean. Not here: how windows walk
//! ([`Conv2d`]).

use std::ops::Range;

use rayon::prelude::*;

use super::im2col;
use crate::kernel::Conv2d;

/// The largest value of each window, NaN where there is one. `x` is `[images × channels][height][width]`
/// of the size `input`, `y` the same of the size `output`; padding is at most half of the kernel, and
/// never wins: a window sees only what is there.
pub(super) fn max_pool(geometry: &Conv2d, x: &[f32], input: [usize; 2], y: &mut [f32], output: [usize; 2]) {
    let larger = |max: f32, x: f32| if x > max || x.is_nan() { x } else { max };
    windows(geometry, x, input, y, output, (f32::NEG_INFINITY, larger), |max| max);
}

/// The mean of each window, summed in `f64`; padding counts, as zeros. Shapes are those of [`max_pool`].
pub(super) fn avg_pool(geometry: &Conv2d, x: &[f32], input: [usize; 2], y: &mut [f32], output: [usize; 2]) {
    let share = 1.0 / (geometry.kernel[0] as f64 * geometry.kernel[1] as f64);
    let add = |sum: f64, x: f32| sum + f64::from(x);
    windows(geometry, x, input, y, output, (0.0, add), |sum| (sum * share) as f32);
}

/// Each output from what its window sees: folded row by row, then finished.
fn windows<T: Copy + Sync + Send>(
    geometry: &Conv2d,
    x: &[f32],
    input: [usize; 2],
    y: &mut [f32],
    output: [usize; 2],
    (first, fold): (T, impl Fn(T, f32) -> T + Sync),
    finish: impl Fn(T) -> f32 + Sync,
) {
    let windows = Windows::new(geometry, input, output);
    let planes = y.par_chunks_mut(output[0] * output[1]).zip(x.par_chunks(input[0] * input[1]));
    planes.for_each_init(
        || vec![first; output[1]],
        |folded, (y, x)| {
            for (oy, y) in y.chunks_mut(output[1]).enumerate() {
                folded.fill(first);
                windows.line(oy, |seen, start| {
                    let folded = folded[seen.outputs.clone()].iter_mut();
                    seen.each(folded, &x[start..], |folded, x, _| **folded = fold(**folded, x));
                });
                y.iter_mut().zip(&*folded).for_each(|(y, folded)| *y = finish(*folded));
            }
        },
    );
}

/// How windows walk over maps of one size, a line of outputs at a time.
pub(crate) struct Windows<'a> {
    geometry: &'a Conv2d,
    input: [usize; 2],
    columns: Vec<Seen>,
}

/// One column of the windows of a line, or two that are neighbours.
pub(crate) struct Seen {
    /// The outputs for whose windows it lies inside the map.
    pub outputs: Range<usize>,
    /// Where in a row of the map it is for the first of them, and how much further on for each next one.
    first: usize,
    stride: usize,
    /// Whether it is two, of windows that are two apart: together they are all that lies there.
    two: bool,
}

impl<'a> Windows<'a> {
    pub fn new(geometry: &'a Conv2d, input: [usize; 2], output: [usize; 2]) -> Self {
        let stride = geometry.stride[1];
        let mut columns: Vec<Seen> = Vec::new();
        for column in 0..geometry.kernel[1] {
            let (outputs, first) = im2col::inside(geometry, 1, column, input, output);
            match columns.last_mut() {
                Some(last) if stride == 2 && !last.two && last.outputs == outputs => last.two = true,
                _ if !outputs.is_empty() => columns.push(Seen { outputs, first, stride, two: false }),
                _ => {}
            }
        }
        Self { geometry, input, columns }
    }

    /// Calls `see` with what the windows of line `y` see, in the order in which it lies there, and where in the map
    /// that begins.
    pub fn line(&self, y: usize, mut see: impl FnMut(&Seen, usize)) {
        for row in inside(self.geometry, 0, y, self.input) {
            self.columns.iter().for_each(|seen| see(seen, row * self.input[1] + seen.first));
        }
    }
}

impl Seen {
    /// Calls `f` with something of each output, with what it sees of `x`, and with 1 for the second of two columns.
    #[inline(always)]
    pub fn each<A, T: Copy>(&self, outputs: impl Iterator<Item = A>, x: &[T], mut f: impl FnMut(&mut A, T, u32)) {
        if self.two {
            outputs.zip(x.as_chunks::<2>().0).for_each(|(mut output, &[x, next])| {
                f(&mut output, x, 0);
                f(&mut output, next, 1);
            });
        } else if self.stride == 1 {
            outputs.zip(x).for_each(|(mut output, &x)| f(&mut output, x, 0));
        } else {
            outputs.zip(x.iter().step_by(self.stride)).for_each(|(mut output, &x)| f(&mut output, x, 0));
        }
    }
}

/// What a window sees of the input along one axis.
pub(crate) fn inside(geometry: &Conv2d, axis: usize, output: usize, input: [usize; 2]) -> Range<usize> {
    let (from, padding) = (output * geometry.stride[axis], geometry.padding[axis]);
    from.saturating_sub(padding)..(from + geometry.kernel[axis] - padding).min(input[axis])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_at_the_edges_and_nan_stays() {
        let x = [-1.0, -5.0, -2.0, -4.0, -3.0, -9.0, -8.0, -7.0, -6.0];
        let pool = |geometry: Conv2d, x: &[f32]| {
            let output = geometry.output([3, 3]).unwrap();
            let mut y = vec![0.0; output[0] * output[1]];
            max_pool(&geometry, x, [3, 3], &mut y, output);
            y
        };
        let two = Conv2d { stride: [2, 2], ..Conv2d::new([2, 2]) };
        assert_eq!(pool(two, &x), [-1.0], "what is left over is not seen");
        assert_eq!(pool(Conv2d { padding: [1, 1], ..two }, &x), [-1.0, -2.0, -4.0, -3.0]);
        assert_eq!(pool(Conv2d::new([1, 3]), &x), [-1.0, -3.0, -6.0]);
        let mut x = x;
        x[3] = f32::NAN;
        assert!(pool(Conv2d::new([2, 2]), &x)[..].iter().map(|y| y.is_nan()).eq([true, false, true, false]));
    }

    #[test]
    fn means_count_padding_and_keep_nan() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, f32::NAN];
        let pool = |geometry: Conv2d| {
            let output = geometry.output([3, 3]).unwrap();
            let mut y = vec![0.0; output[0] * output[1]];
            avg_pool(&geometry, &x, [3, 3], &mut y, output);
            y
        };
        let two = Conv2d { stride: [2, 2], ..Conv2d::new([2, 2]) };
        assert_eq!(pool(two), [3.0], "what is left over is not seen");
        let padded = pool(Conv2d { padding: [1, 1], ..two });
        assert_eq!(padded[..3], [0.25, 1.25, 2.75], "a quarter each");
        assert!(padded[3].is_nan());
        assert_eq!(pool(Conv2d::new([3, 1]))[..2], [4.0, 5.0]);
    }
}
