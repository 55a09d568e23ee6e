//! Convolutions, against the definition: each output's activations are gathered here, one by one,
//! and become a column of a product.

use std::ops::Range;

use ndarray::{Array2, Array4, ArrayView4, ArrayViewMut4, Axis, Slice, s};
use twn_pack::Granularity::{Filter, Group, Tensor};
use twn_pack::kernel::{Conv2d, Kernel, Workspace};

use crate::common::Random;
use crate::naive::{ENCODINGS, Expected, Weights, larger};
use crate::{bits, kernels};

struct Case {
    geometry: Conv2d,
    /// Batch, channels, height, width.
    input: [usize; 4],
    filters: usize,
}

/// Kernel, stride, padding, dilation, groups; input; filters.
type Row = ([usize; 2], [usize; 2], [usize; 2], [usize; 2], usize, [usize; 4], usize);

const CASES: [Row; 18] = [
    // Plain, more filters than a tile; an output of one row, one column, one element.
    ([3, 3], [1, 1], [0, 0], [1, 1], 1, [1, 4, 8, 9], 9),
    ([3, 3], [1, 1], [0, 0], [1, 1], 1, [3, 4, 3, 9], 5),
    ([3, 2], [1, 1], [0, 0], [1, 1], 1, [1, 4, 7, 2], 4),
    ([5, 5], [1, 1], [0, 0], [1, 1], 1, [2, 3, 5, 5], 6),
    // Padding: as usual, wider than the filter, on one side only.
    ([3, 3], [1, 1], [1, 1], [1, 1], 1, [1, 16, 6, 6], 8),
    ([2, 2], [1, 1], [3, 4], [1, 1], 1, [1, 3, 2, 1], 4),
    ([3, 3], [1, 1], [0, 2], [1, 1], 1, [1, 2, 4, 4], 3),
    // Strides that do not end at the edge, and one that leaves the image at once.
    ([3, 3], [2, 3], [1, 0], [1, 1], 1, [3, 5, 8, 10], 4),
    ([2, 1], [9, 9], [0, 0], [1, 1], 1, [1, 3, 5, 5], 2),
    // Dilation; all at once.
    ([3, 3], [1, 1], [0, 0], [2, 3], 1, [1, 3, 9, 9], 4),
    ([3, 2], [2, 1], [2, 1], [2, 2], 2, [3, 6, 9, 8], 8),
    // Groups; depthwise; depthwise with several filters per channel.
    ([3, 3], [1, 1], [1, 1], [1, 1], 4, [1, 8, 5, 5], 12),
    ([3, 3], [1, 1], [1, 1], [1, 1], 6, [3, 6, 6, 7], 6),
    ([3, 3], [2, 2], [1, 1], [1, 1], 3, [1, 3, 7, 7], 9),
    // 1×1, with and without stride; a filter as long as a chunk and one weight more.
    ([1, 1], [1, 1], [0, 0], [1, 1], 1, [1, 40, 5, 7], 10),
    ([1, 1], [2, 2], [1, 1], [1, 1], 1, [3, 257, 4, 4], 5),
    // No images, no filters.
    ([3, 3], [1, 1], [1, 1], [1, 1], 1, [0, 4, 5, 5], 3),
    ([3, 3], [1, 1], [1, 1], [1, 1], 1, [2, 4, 5, 5], 0),
];

impl Case {
    fn new((kernel, stride, padding, dilation, groups, input, filters): Row) -> Self {
        Self { geometry: Conv2d { kernel, stride, padding, dilation, groups }, input, filters }
    }

    fn n(&self) -> usize {
        self.input[1] / self.geometry.groups * self.geometry.kernel[0] * self.geometry.kernel[1]
    }

    /// Counted: how often the filter can be put down.
    fn output(&self) -> [usize; 2] {
        std::array::from_fn(|i| {
            let g = &self.geometry;
            let (padded, reach) = (self.input[2 + i] + 2 * g.padding[i], (g.kernel[i] - 1) * g.dilation[i]);
            (0..padded).step_by(g.stride[i]).filter(|start| start + reach < padded).count()
        })
    }

    fn filters_of(&self, group: usize) -> Range<usize> {
        let each = self.filters / self.geometry.groups;
        group * each..(group + 1) * each
    }

    /// What lies under the filter, n × outputs.
    fn columns(&self, x: ArrayView4<'_, f32>, image: usize, group: usize) -> Array2<f32> {
        let (g, [_, width]) = (&self.geometry, self.output());
        let channels = self.input[1] / g.groups;
        let at = |start: usize, tap: usize, i: usize| {
            (start * g.stride[i] + tap * g.dilation[i]).checked_sub(g.padding[i]).filter(|&at| at < self.input[2 + i])
        };
        Array2::from_shape_fn((self.n(), self.output().iter().product()), |(j, output)| {
            let (channel, tap) = (group * channels + j / (g.kernel[0] * g.kernel[1]), j % (g.kernel[0] * g.kernel[1]));
            let y = at(output / width, tap / g.kernel[1], 0);
            let x_place = at(output % width, tap % g.kernel[1], 1);
            y.zip(x_place).map_or(0.0, |(y, x_place)| x[[image, channel, y, x_place]])
        })
    }

    /// What every image and group has to give. Each is rounded to 8 bits for itself.
    fn expected(&self, w: &Weights, bias: Option<&[f32]>, x: ArrayView4<'_, f32>) -> Vec<(usize, usize, Expected)> {
        let (groups, channels) = (self.geometry.groups, self.input[1] / self.geometry.groups);
        let pairs = (0..self.input[0]).flat_map(|image| (0..groups).map(move |group| (image, group)));
        let expected = |(image, group): (usize, usize)| {
            let under = x.slice(s![image, group * channels..(group + 1) * channels, .., ..]);
            let largest = under.iter().fold(0.0, |max, &x| larger(max, f64::from(x)));
            let columns = self.columns(x, image, group);
            let filters = self.filters_of(group);
            let expected = Expected::new(w, filters.clone(), columns.view(), &vec![largest; columns.ncols()]);
            let expected = match bias {
                Some(bias) => expected.with_bias(&bias[filters], w.planes),
                None => expected,
            };
            (image, group, expected)
        };
        pairs.map(expected).collect()
    }

    fn run(
        &self,
        kernel: Kernel,
        w: &Weights,
        bias: Option<&[f32]>,
        x: ArrayView4<'_, f32>,
        workspace: &mut Workspace,
    ) -> Array4<f32> {
        let [height, width] = self.output();
        let mut y = Array4::from_elem((self.input[0], self.filters, height, width), f32::NAN);
        kernel.conv2d(&w.packed(), bias, &self.geometry, x, y.view_mut(), workspace).unwrap();
        y
    }
}

fn image(random: &mut Random, [batch, channels, height, width]: [usize; 4]) -> Array4<f32> {
    Array4::from_shape_simple_fn((batch, channels, height, width), || random.gaussian() as f32)
}

#[test]
fn every_geometry() {
    let (mut random, mut workspace) = (Random(1), Workspace::default());
    for (i, row) in CASES.into_iter().enumerate() {
        let case = Case::new(row);
        for (k, encoding) in ENCODINGS.into_iter().enumerate() {
            let granularity = [Filter, Group(16), Tensor, Group(7), Group(20), Group(32)][(i + k) % 6];
            let w = Weights::random(&mut random, encoding, [1 + (i + k) % 2, case.filters, case.n()], granularity);
            let x = image(&mut random, case.input);
            let bias: Vec<f32> = (0..case.filters).map(|_| 10.0 * random.gaussian() as f32).collect();
            let bias = (i % 3 > 0).then_some(bias.as_slice());
            let expected = case.expected(&w, bias, x.view());
            let mut first = [None, None];
            for (path, arithmetic, kernel) in kernels() {
                let y = case.run(kernel, &w, bias, x.view(), &mut workspace);
                let [height, width] = case.output();
                for (image, group, expected) in &expected {
                    let filters = case.filters_of(*group);
                    let y = y.slice(s![*image, filters.clone(), .., ..]);
                    let y = y.to_shape((filters.len(), height * width)).unwrap();
                    expected.assert_holds(arithmetic, y.view(), || {
                        format!("{path}: image {image}, group {group}, {w}, {:?}", case.geometry)
                    });
                }
                let bits = bits(&y);
                assert!(bits == *first[arithmetic as usize].get_or_insert_with(|| bits.clone()), "{path}: {w}");
            }
        }
    }
}

/// The view that a layout takes of memory.
type View = fn(&mut Array4<f32>) -> ArrayViewMut4<'_, f32>;

/// The memory's shape for a view's.
type Shape = fn([usize; 4]) -> [usize; 4];

/// How an image may lie.
const LAYOUTS: [(&str, Shape, View); 5] = [
    ("channels last", |[b, c, h, w]| [b, h, w, c], |memory| memory.view_mut().permuted_axes([0, 3, 1, 2])),
    ("every second column", |[b, c, h, w]| [b, c, h, 2 * w], |memory| every(memory, 3, 2)),
    ("rows reversed", |shape| shape, |memory| every(memory, 2, -1)),
    ("every second channel", |[b, c, h, w]| [b, 2 * c, h, w], |memory| every(memory, 1, 2)),
    ("images reversed", |shape| shape, |memory| every(memory, 0, -1)),
];

fn every(memory: &mut Array4<f32>, axis: usize, step: isize) -> ArrayViewMut4<'_, f32> {
    let mut view = memory.view_mut();
    view.slice_axis_inplace(Axis(axis), Slice::new(0, None, step));
    view
}

#[test]
fn every_layout_gives_the_same_bits() {
    let (mut random, mut workspace) = (Random(2), Workspace::default());
    let case = Case::new(([3, 2], [1, 2], [1, 1], [1, 1], 2, [3, 6, 6, 7], 8));
    let w = Weights::random(&mut random, ENCODINGS[0], [1, 8, case.n()], Filter);
    let x = image(&mut random, case.input);
    let [height, width] = case.output();
    for (path, _, kernel) in kernels() {
        let plain = case.run(kernel, &w, None, x.view(), &mut workspace);
        let (slice, mut y) = (x.as_slice().unwrap(), vec![f32::NAN; plain.len()]);
        kernel.conv2d_slices(&w.packed(), None, &case.geometry, slice, case.input, &mut y, &mut workspace).unwrap();
        assert_eq!(bits(&y), bits(&plain), "{path}: slices");
        for (name, shape, view) in LAYOUTS {
            let mut x_memory = Array4::from_elem(shape(case.input), f32::NAN);
            view(&mut x_memory).assign(&x);
            let y = case.run(kernel, &w, None, view(&mut x_memory).view(), &mut workspace);
            assert_eq!(bits(&y), bits(&plain), "{path}: x {name}");

            let mut y_memory = Array4::from_elem(shape([3, 8, height, width]), f32::NAN);
            let y = view(&mut y_memory);
            kernel.conv2d(&w.packed(), None, &case.geometry, x.view(), y, &mut workspace).unwrap();
            assert_eq!(bits(view(&mut y_memory).view()), bits(&plain), "{path}: y {name}");
            assert_eq!(y_memory.iter().filter(|y| !y.is_nan()).count(), plain.len(), "{path}: y {name}");
        }
    }
}

#[test]
fn one_by_one_is_a_matrix_product() {
    let mut random = Random(3);
    let case = Case::new(([1, 1], [1, 1], [0, 0], [1, 1], 1, [1, 50, 4, 6], 7));
    let w = Weights::random(&mut random, ENCODINGS[1], [1, 7, 50], Filter);
    let x = image(&mut random, case.input);
    for (path, arithmetic, kernel) in kernels() {
        let y = case.run(kernel, &w, None, x.view(), &mut Workspace::default());
        if arithmetic == twn_pack::kernel::Arithmetic::ExactF32 {
            let x = x.to_shape((50, 24)).unwrap();
            let plain = crate::product(kernel, &w.packed(), x.view(), &mut Workspace::default());
            assert_eq!(bits(&y), bits(&plain), "{path}");
        }
    }
}

#[test]
fn what_is_not_a_number_stays_under_its_filters() {
    let mut random = Random(4);
    let case = Case::new(([3, 3], [1, 1], [1, 1], [1, 1], 2, [2, 4, 5, 5], 4));
    let w = Weights::random(&mut random, ENCODINGS[0], [1, 4, case.n()], Filter);
    let clean = image(&mut random, case.input);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = clean.clone();
        x[[1, 2, 0, 4]] = bad;
        let expected = case.expected(&w, None, x.view());
        for (path, arithmetic, kernel) in kernels() {
            let before = case.run(kernel, &w, None, clean.view(), &mut Workspace::default());
            let y = case.run(kernel, &w, None, x.view(), &mut Workspace::default());
            for (image, group, expected) in &expected {
                let filters = case.filters_of(*group);
                let found = y.slice(s![*image, filters.clone(), .., ..]);
                let found = found.to_shape((filters.len(), 25)).unwrap();
                expected.assert_holds(arithmetic, found.view(), || {
                    format!("{path}: {bad} in image {image}, group {group}")
                });
                if (*image, *group) != (1, 1) {
                    let before = before.slice(s![*image, filters, .., ..]);
                    assert_eq!(bits(&found), bits(before), "{path}: {bad} went over to image {image}, group {group}");
                }
            }
        }
    }
}

#[test]
fn outputs_are_as_many_as_filters_fit() {
    for row in CASES {
        let case = Case::new(row);
        assert_eq!(case.geometry.output([case.input[2], case.input[3]]), Some(case.output()));
    }
    let just = Conv2d { padding: [1, 0], dilation: [3, 1], ..Conv2d::new([3, 4]) };
    assert_eq!(just.output([5, 4]), Some([1, 1]));
    assert_eq!(just.output([4, 4]), None, "one row too few");
    assert_eq!(just.output([5, 3]), None, "one column too few");
    assert_eq!(Conv2d::new([1, 1]).output([0, 3]), None);
    for (field, zero) in [
        ("kernel", Conv2d { kernel: [0, 1], ..Conv2d::new([1, 1]) }),
        ("stride", Conv2d { stride: [1, 0], ..Conv2d::new([1, 1]) }),
        ("dilation", Conv2d { dilation: [0, 1], ..Conv2d::new([1, 1]) }),
    ] {
        assert_eq!(zero.output([5, 5]), None, "{field} of 0");
    }
    let huge = usize::MAX;
    for geometry in [
        Conv2d { padding: [huge, 0], ..Conv2d::new([1, 1]) },
        Conv2d { dilation: [huge, 1], ..Conv2d::new([3, 1]) },
        Conv2d { kernel: [huge, 1], ..Conv2d::new([1, 1]) },
    ] {
        assert_eq!(geometry.output([5, 5]), None, "{geometry:?}");
    }
}
