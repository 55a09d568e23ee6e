//! A part of an image in another size: bilinear, and averaged where it becomes smaller, as Pillow's
//! `resize` with BILINEAR (without rounding in between). Not here: which part.

use super::image::Image;

/// A rectangle in an image, in pixels; not empty, and not outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Region {
    pub y: f64,
    pub x: f64,
    pub height: f64,
    pub width: f64,
}

/// What accuracy is measured on: the middle, with 224 of 256 of what is left of the image once its
/// longer side is cut.
pub(super) fn centre(image: &Image<'_>, shape: [usize; 3], out: &mut [f32]) {
    let [height, width] = [image.shape[1] as f64, image.shape[2] as f64];
    let [rows, columns] = [shape[1] as f64, shape[2] as f64];
    let step = (height / rows).min(width / columns) * 224.0 / 256.0;
    let (cut_h, cut_w) = (step * rows, step * columns);
    let region = Region { y: (height - cut_h) / 2.0, x: (width - cut_w) / 2.0, height: cut_h, width: cut_w };
    resample(image, region, shape, out);
}

/// Writes a region as `[channels][height][width]` values of `shape`, of as many channels as the image.
pub(super) fn resample(image: &Image<'_>, region: Region, shape: [usize; 3], out: &mut [f32]) {
    let [channels, rows, columns] = shape;
    let vertical = taps(region.y, region.height, rows, image.shape[1]);
    let horizontal = taps(region.x, region.width, columns, image.shape[2]);
    // The rows of the image that count, each in the new width; and what of a row counts.
    let (top, bottom) = span(&vertical);
    let (left, right) = span(&horizontal);
    let mut wide = vec![0.0f32; (bottom - top) * columns];
    let mut line = vec![0.0f32; right - left];
    for (channel, out) in (0..channels).zip(out.chunks_exact_mut(rows * columns)) {
        for (y, row) in (top..bottom).zip(wide.chunks_exact_mut(columns)) {
            image.row(channel, y, left, &mut line);
            for (value, tap) in row.iter_mut().zip(&horizontal) {
                *value = tap.weights.iter().zip(&line[tap.first - left..]).map(|(weight, x)| weight * x).sum();
            }
        }
        for (row, tap) in out.chunks_exact_mut(columns).zip(&vertical) {
            row.fill(0.0);
            for (weight, source) in tap.weights.iter().zip(wide[(tap.first - top) * columns..].chunks_exact(columns)) {
                row.iter_mut().zip(source).for_each(|(value, x)| *value += weight * x);
            }
        }
    }
}

/// What a value is made of: so many neighbours and their weights, whose sum is 1.
struct Tap {
    first: usize,
    weights: Vec<f32>,
}

/// The pixels that count, from the first to behind the last.
fn span(taps: &[Tap]) -> (usize, usize) {
    let ends = taps.iter().map(|tap| tap.first + tap.weights.len());
    (taps.first().map_or(0, |tap| tap.first), ends.max().unwrap_or(0))
}

/// For each of `count` values that a part of a line of `length` pixels becomes. Their first
/// pixels ascend.
fn taps(start: f64, extent: f64, count: usize, length: usize) -> Vec<Tap> {
    let step = extent / count as f64;
    let support = step.max(1.0);
    let tap = |i: usize| {
        let centre = start + (i as f64 + 0.5) * step;
        let first = ((centre - support + 0.5).max(0.0) as usize).min(length - 1);
        let last = ((centre + support + 0.5).max(0.0) as usize).clamp(first + 1, length);
        let triangle = |x: usize| (1.0 - ((x as f64 + 0.5 - centre) / support).abs()).max(0.0);
        let weights: Vec<f64> = (first..last).map(triangle).collect();
        let sum: f64 = weights.iter().sum();
        if sum > 0.0 {
            return Tap { first, weights: weights.iter().map(|w| (w / sum) as f32).collect() };
        }
        Tap { first, weights: vec![1.0] }
    };
    (0..count).map(tap).collect()
}
