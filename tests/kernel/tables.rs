//! Sums from tables: many filters with many columns, in exact arithmetic. (Groups that are not whole
//! lanes take that way always: they are in all the other files.)

use ndarray::{Array2, Array4, ArrayView3, s};
use twn_pack::Encoding;
use twn_pack::Granularity::{Filter, Group, Tensor};
use twn_pack::kernel::{Arithmetic, Conv2d, Workspace};

use crate::common::Random;
use crate::naive::{ENCODINGS, Expected, Weights};
use crate::{assert_right, bits, gaussian, kernels, product};

#[test]
fn lengths_filters_columns() {
    let (mut random, mut workspace) = (Random(1), Workspace::default());
    let lengths = (1..=70).chain([127, 128, 255, 256, 257, 300, 321, 513, 1000]);
    for (case, n) in lengths.enumerate() {
        for (i, encoding) in ENCODINGS.into_iter().enumerate() {
            let (filters, columns) = [(64, 16), (128, 8), (65, 17), (257, 16), (130, 9), (70, 33)][(case + i) % 6];
            let granularity =
                [Filter, Group(160), Tensor, Group(16), Group(20), Group(32), Group(13)][(case + 2 * i) % 7];
            let w = Weights::random(&mut random, encoding, [1 + case % 2, filters, n], granularity);
            assert_right("", &w, gaussian(&mut random, (n, columns)).view(), &mut workspace);
        }
    }
}

#[test]
fn on_both_sides_of_what_decides() {
    let (mut random, mut workspace) = (Random(2), Workspace::default());
    for (filters, columns) in [(63, 16), (64, 16), (64, 15), (127, 8), (128, 8), (128, 7), (1000, 7)] {
        let w = Weights::random(&mut random, ENCODINGS[columns % 3], [1, filters, 100], Filter);
        assert_right("", &w, gaussian(&mut random, (100, columns)).view(), &mut workspace);
    }
}

#[test]
fn columns_and_threads_do_not_matter() {
    let (mut random, mut workspace) = (Random(3), Workspace::default());
    let pools = [1, 2, 3].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    // Shared out by filters, and by columns.
    for (filters, n, columns) in [(1100, 133, 17), (70, 133, 290)] {
        for encoding in ENCODINGS {
            let w = Weights::random(&mut random, encoding, [1, filters, n], Group(64));
            let x = gaussian(&mut random, (n, columns));
            assert!(filters * n * columns > 1 << 20);
            for (path, _, kernel) in kernels() {
                let run = |pool: &rayon::ThreadPool| {
                    pool.install(|| product(kernel, &w.packed(), x.view(), &mut Workspace::default()))
                };
                let one = run(&pools[0]);
                assert!(bits(&run(&pools[1])) == bits(&one), "{path}: 2 threads, {w}");
                assert!(bits(&run(&pools[2])) == bits(&one), "{path}: 3 threads, {w}");
                let some = product(kernel, &w.packed(), x.slice(s![.., 1..17]), &mut workspace);
                assert!(bits(&some) == bits(one.slice(s![.., 1..17])), "{path}: 16 of the columns, {w}");
            }
        }
    }
}

#[test]
fn more_words_than_are_added_before_they_are_scaled() {
    let (mut random, mut workspace) = (Random(4), Workspace::default());
    let n = (1 << 16) + 100;
    for (encoding, granularity) in ENCODINGS.into_iter().zip([Filter, Group(65_999), Group(65_599)]) {
        let filters = if granularity == Filter { 64 } else { 2 };
        let w = Weights::random(&mut random, encoding, [1, filters, n], granularity);
        let columns = if granularity == Filter { 16 } else { 1 };
        assert_right("", &w, gaussian(&mut random, (n, columns)).view(), &mut workspace);
        // Sums of whole numbers, as large as they get.
        let plus = Weights::new(encoding, [1, 1, n], Group(65_599), |_| 1, || 1.0);
        for (path, _, kernel) in kernels() {
            let y = product(kernel, &plus.packed(), Array2::from_elem((n, 1), 127.0).view(), &mut workspace);
            assert_eq!(y[[0, 0]], 127.0 * n as f32, "{path}: {plus}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_where_it_is() {
    let (mut random, mut workspace) = (Random(5), Workspace::default());
    for round in 0..12 {
        let n = [50, 133][round % 2];
        let w = Weights::random(&mut random, ENCODINGS[round % 3], [1, 64, n], [Filter, Group(64)][round / 6]);
        let mut x = gaussian(&mut random, (n, 16));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[[random.below(n as u64) as usize, random.below(16) as usize]] = bad;
        }
        assert_right("not finite", &w, x.view(), &mut workspace);
    }
    // Where all weights are zero, anything at all.
    for encoding in [Encoding::T2, Encoding::T5] {
        let w = Weights::new(encoding, [1, 64, 100], Filter, |j| [0, 1, -1][j % 100 % 3], || 0.5);
        let clean = gaussian(&mut random, (100, 16));
        let mut x = clean.clone();
        x.rows_mut().into_iter().step_by(3).for_each(|mut x| x.fill(f32::NAN));
        for (path, _, kernel) in kernels().filter(|(_, arithmetic, _)| *arithmetic == Arithmetic::ExactF32) {
            let [y, expected] = [&x, &clean].map(|x| product(kernel, &w.packed(), x.view(), &mut workspace));
            assert_eq!(bits(&y), bits(&expected), "{path}: {w}");
        }
    }
}

#[test]
fn invalid_codes_and_padding() {
    let (mut random, mut workspace) = (Random(6), Workspace::default());
    for encoding in ENCODINGS {
        for (n, granularity) in [(61, Filter), (255, Group(64)), (130, Group(7)), (16, Tensor)] {
            let w = Weights::random(&mut random, encoding, [1, 64, n], granularity);
            let codes: Vec<u8> = w.codes.iter().map(|_| random.bits() as u8).collect();
            let x = gaussian(&mut random, (n, 16));
            let mut first = [None, None];
            for (path, arithmetic, kernel) in kernels() {
                let y = product(kernel, &w.packed_from(&codes), x.view(), &mut workspace);
                assert!(y.iter().all(|y| y.abs() <= n as f32 * 20.0), "{path}: {w}: {y}");
                let bits = bits(&y);
                assert!(bits == *first[arithmetic as usize].get_or_insert_with(|| bits.clone()), "{path}: {w}");
            }
            // Behind the last weight, codes that are not valid.
            if encoding == Encoding::T2 && n % 4 != 0 {
                let mut codes = w.codes.clone();
                codes.iter_mut().skip(n / 4).step_by(n / 4 + 1).for_each(|last| *last |= 0xff << (2 * (n % 4)));
                for (path, _, kernel) in kernels() {
                    let [dirty, clean] = [&codes, &w.codes]
                        .map(|codes| product(kernel, &w.packed_from(codes), x.view(), &mut workspace));
                    assert_eq!(bits(&dirty), bits(&clean), "{path}: {w}");
                }
            }
        }
    }
}

#[test]
fn convolutions() {
    let (mut random, mut workspace) = (Random(7), Workspace::default());
    let shapes = [
        // Outputs in rows of 16, of fewer, and with steps between them.
        (Conv2d { padding: [1, 1], ..Conv2d::new([3, 3]) }, [2, 5, 4, 16]),
        (Conv2d::new([3, 2]), [1, 3, 7, 6]),
        (Conv2d { stride: [2, 2], padding: [1, 0], groups: 2, ..Conv2d::new([3, 3]) }, [2, 4, 9, 9]),
    ];
    for (case, (geometry, [batch, channels, height, width])) in shapes.into_iter().enumerate() {
        let output = geometry.output([height, width]).unwrap();
        let (groups, outputs) = (geometry.groups, output[0] * output[1]);
        for (i, encoding) in ENCODINGS.into_iter().enumerate() {
            let n = geometry.filter_len(channels).unwrap();
            let granularity = [Filter, Group(10), Group(32)][(case + i) % 3];
            let w = Weights::random(&mut random, encoding, [1, 70 * groups, n], granularity);
            let x = Array4::from_shape_simple_fn((batch, channels, height, width), || random.gaussian() as f32);
            let mut first = [None, None];
            for (path, arithmetic, kernel) in kernels() {
                let mut y = Array4::from_elem((batch, w.filters, output[0], output[1]), f32::NAN);
                kernel.conv2d(&w.packed(), None, &geometry, x.view(), y.view_mut(), &mut workspace).unwrap();
                let bits = bits(&y);
                assert!(bits == *first[arithmetic as usize].get_or_insert_with(|| bits.clone()), "{path}: {w}");
                for (image, group) in (0..batch).flat_map(|image| (0..groups).map(move |group| (image, group))) {
                    let each = channels / groups;
                    let input = x.slice(s![image, group * each..(group + 1) * each, .., ..]);
                    let largest = input.iter().fold(0f64, |max, &x| max.max(f64::from(x).abs()));
                    let (under, filters) = (under(&geometry, input, output), group * 70..(group + 1) * 70);
                    let expected = Expected::new(&w, filters.clone(), under.view(), &vec![largest; outputs]);
                    let y = y.slice(s![image, filters, .., ..]);
                    let y = y.to_shape((70, outputs)).unwrap();
                    expected.assert_holds(arithmetic, y.view(), || format!("{path}: {w}, {geometry:?}"));
                }
            }
        }
    }
}

/// What lies under the filter at each output.
fn under(geometry: &Conv2d, x: ArrayView3<'_, f32>, [rows, columns]: [usize; 2]) -> Array2<f32> {
    let ([height, width], (channels, x_height, x_width)) = (geometry.kernel, x.dim());
    Array2::from_shape_fn((channels * height * width, rows * columns), |(j, output)| {
        let row = (output / columns * geometry.stride[0] + j / width % height).wrapping_sub(geometry.padding[0]);
        let column = (output % columns * geometry.stride[1] + j % width).wrapping_sub(geometry.padding[1]);
        if row < x_height && column < x_width { x[[j / (height * width), row, column]] } else { 0.0 }
    })
}
