//! Operands in any memory order, and the other forms in which they are handed over: slices, single
//! vectors, linear layers.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, ShapeBuilder, Slice};
use twn_pack::Granularity::{Filter, Group};
use twn_pack::kernel::Workspace;

use crate::common::Random;
use crate::naive::{ENCODINGS, Expected, Weights};
use crate::{bits, gaussian, kernels, product};

/// How a matrix lies in memory that may be larger than it: name, whether column-major, steps.
type Layout = (&'static str, bool, [isize; 2]);

const LAYOUTS: [Layout; 9] = [
    ("row-major", false, [1, 1]),
    ("column-major", true, [1, 1]),
    ("every second row", false, [2, 1]),
    ("every second column", false, [1, 2]),
    ("every second row and column, column-major", true, [2, 2]),
    ("rows reversed", false, [-1, 1]),
    ("columns reversed", false, [1, -1]),
    ("all reversed, column-major", true, [-1, -1]),
    ("every third row from the last, column-major", true, [-3, 1]),
];

/// Memory for a rows × columns matrix in that layout, all NaN.
fn memory((_, turned, steps): Layout, rows: usize, columns: usize) -> Array2<f32> {
    let shape = (rows * steps[0].unsigned_abs(), columns * steps[1].unsigned_abs());
    Array2::from_elem(shape.set_f(turned), f32::NAN)
}

/// The matrix in it.
fn view(memory: &mut Array2<f32>, (_, _, steps): Layout) -> ArrayViewMut2<'_, f32> {
    let mut view = memory.view_mut();
    (0..2).for_each(|axis| view.slice_axis_inplace(Axis(axis), Slice::new(0, None, steps[axis])));
    view
}

#[test]
fn every_layout_gives_the_same_bits() {
    let (mut random, mut workspace) = (Random(1), Workspace::default());
    let mut case = 0;
    for (i, x_layout) in LAYOUTS.into_iter().enumerate() {
        for (k, y_layout) in LAYOUTS.into_iter().enumerate() {
            for n in [[1, 70, 300], [2, 65, 500]][(i + k) % 2] {
                let columns = [1, 5, 17, 2, 16][case % 5];
                let granularity = [Filter, Group(32), Group(9)][case % 3];
                let w = Weights::random(&mut random, ENCODINGS[(case + k) % 3], [1, 6, n], granularity);
                let x = gaussian(&mut random, (n, columns));
                let mut x_memory = memory(x_layout, n, columns);
                view(&mut x_memory, x_layout).assign(&x);
                let strided = view(&mut x_memory, x_layout);
                for (path, _, kernel) in kernels() {
                    let case = || format!("{path}: x {}, y {}, {w}, {columns} columns", x_layout.0, y_layout.0);
                    let plain = product(kernel, &w.packed(), x.view(), &mut workspace);
                    let mut y_memory = memory(y_layout, 6, columns);
                    let y = view(&mut y_memory, y_layout);
                    kernel.matrix(&w.packed(), strided.view(), y, &mut workspace).unwrap();
                    assert_eq!(bits(view(&mut y_memory, y_layout).view()), bits(&plain), "{}", case());
                    let written = y_memory.iter().filter(|y| !y.is_nan()).count();
                    assert_eq!(written, plain.len(), "{}: wrote between the lines", case());
                }
                case += 1;
            }
        }
    }
}

#[test]
fn one_column_spread_over_a_matrix() {
    // A stride of 0: every column is the same memory.
    let mut random = Random(2);
    let w = Weights::random(&mut random, ENCODINGS[0], [1, 5, 100], Filter);
    let x = gaussian(&mut random, (100, 1));
    for (path, _, kernel) in kernels() {
        let one = product(kernel, &w.packed(), x.view(), &mut Workspace::default());
        let many = product(kernel, &w.packed(), x.broadcast((100, 7)).unwrap(), &mut Workspace::default());
        many.columns().into_iter().for_each(|column| assert_eq!(bits(column), bits(&one), "{path}"));
    }
}

#[test]
fn slices_and_vectors_are_matrices() {
    let (mut random, mut workspace) = (Random(3), Workspace::default());
    for (encoding, n) in ENCODINGS.into_iter().flat_map(|encoding| [0, 1, 90, 301].map(|n| (encoding, n))) {
        let w = Weights::random(&mut random, encoding, [2, 7, n], Group(20));
        for (path, _, kernel) in kernels() {
            for columns in [0, 1, 3] {
                let x = gaussian(&mut random, (n, columns));
                let plain = product(kernel, &w.packed(), x.view(), &mut workspace);
                let mut y = vec![f32::NAN; 7 * columns];
                kernel.matrix_slices(&w.packed(), x.as_slice().unwrap(), columns, &mut y, &mut workspace).unwrap();
                assert_eq!(bits(&y), bits(&plain), "{path}: {w}, {columns} columns");
                let x = x.t().as_standard_layout().into_owned();
                let mut linear = vec![f32::NAN; columns * 7];
                kernel
                    .linear_slices(&w.packed(), None, x.as_slice().unwrap(), columns, &mut linear, &mut workspace)
                    .unwrap();
                assert_eq!(bits(&linear), bits(plain.t()), "{path}: {w}, a batch of {columns}");
            }
            let x = gaussian(&mut random, (n, 1));
            let plain = product(kernel, &w.packed(), x.view(), &mut workspace);
            let x = x.into_raw_vec_and_offset().0;
            let mut y = [f32::NAN; 7];
            kernel.vector(&w.packed(), x.as_slice(), &mut y[..], &mut workspace).unwrap();
            assert_eq!(bits(&y), bits(&plain), "{path}: {w}, slices");
            // Every second element, from the last on.
            let sparse: Vec<f32> = x.iter().rev().flat_map(|&x| [f32::NAN, x]).collect();
            let (sparse, mut to) = (ArrayView1::from(&sparse), ndarray::Array1::from_elem(14, f32::NAN));
            let (x, y) = (sparse.slice(ndarray::s![..;-2]), to.slice_mut(ndarray::s![..;-2]));
            kernel.vector(&w.packed(), x, y, &mut workspace).unwrap();
            let y: Vec<f32> = to.iter().rev().step_by(2).copied().collect();
            assert_eq!(bits(&y), bits(&plain), "{path}: {w}, views");
            assert_eq!(to.iter().filter(|y| y.is_nan()).count(), 7, "{path}: {w}");
        }
    }
}

#[test]
fn linear_layers() {
    let (mut random, mut workspace) = (Random(4), Workspace::default());
    for (case, layout) in LAYOUTS.into_iter().cycle().take(36).enumerate() {
        let (batch, n) = ([1, 0, 2, 5, 19][case % 5], [48, 0, 1, 333][case / 9]);
        let w = Weights::random(&mut random, ENCODINGS[case % 3], [1 + case % 2, 6, n], [Filter, Group(16)][case % 2]);
        let bias: Vec<f32> = (0..6).map(|_| 100.0 * random.gaussian() as f32).collect();
        let mut x_memory = memory(layout, batch, n);
        view(&mut x_memory, layout).assign(&gaussian(&mut random, (batch, n)));
        let x = view(&mut x_memory, layout);
        let expected = || Expected::of_columns(&w, 0..6, x.view().reversed_axes());
        for (path, arithmetic, kernel) in kernels() {
            for bias in [None, Some(bias.as_slice())] {
                let expected = bias.map_or_else(expected, |bias| expected().with_bias(bias, w.planes));
                let mut y_memory = memory(layout, batch, 6);
                kernel.linear(&w.packed(), bias, x.view(), view(&mut y_memory, layout), &mut workspace).unwrap();
                let y: ArrayViewMut2<'_, f32> = view(&mut y_memory, layout);
                let y: ArrayView2<'_, f32> = y.view().reversed_axes();
                expected.assert_holds(arithmetic, y, || format!("{path}: {w}, batch {batch}, {}", layout.0));
            }
        }
    }
}
