//! The largest, the smallest, zero, infinity and NaN; sums that only just fit.

use ndarray::{Array2, Axis};
use twn_pack::Granularity::{Filter, Group};
use twn_pack::kernel::{Arithmetic, Workspace};

use crate::common::Random;
use crate::naive::{ENCODINGS, Weights};
use crate::{assert_right, bits, gaussian, kernels, product};

#[test]
fn nothing_saturates_in_8_bits() {
    // Every activation is ±127 steps of 1, every weight ±1, so that every product has its largest size.
    let mut workspace = Workspace::default();
    for encoding in ENCODINGS {
        for n in (1..=1100).step_by(73).chain([256, 320, 512, 70_001]) {
            for (t, sign) in [(1, 1.0), (1, -1.0), (-1, 1.0), (-1, -1.0)] {
                for granularity in [Filter, Group(32), Group(160)] {
                    let w = Weights::new(encoding, [1, 5, n], granularity, |_| t, || 1.0);
                    let x = Array2::from_elem((n, 5), 127.0 * sign);
                    let exact = f32::from(t) * sign * 127.0 * n as f32;
                    for (path, _, kernel) in kernels() {
                        let y = product(kernel, &w.packed(), x.view(), &mut workspace);
                        // All these are whole numbers below 2²⁴.
                        assert!(y.iter().all(|&y| y == exact), "{path}: {w}: {y} for {exact}");
                    }
                }
            }
            // Signs by turns, so that neighbours work against each other, or all together.
            for phase in 0..2 {
                let sign = |j: usize| if j % 2 == phase { 1.0 } else { -1.0 };
                let x = Array2::from_shape_fn((n, 1), |(j, _)| 127.0 * sign(j));
                assert_right("±127", &Weights::all(encoding, n, 1), x.view(), &mut workspace);
                let with = Weights::new(encoding, [1, 1, n], Filter, |j| sign(j) as i8, || 1.0);
                assert_right("±127 with the same sign", &with, x.view(), &mut workspace);
            }
        }
    }
}

#[test]
fn long_filters_go_beyond_32_bits() {
    // 2·127·9,000,001 > 2³¹: the sum of digits times activations needs more than 32 bits.
    let n = 9_000_001;
    let x = Array2::from_elem((n, 1), 127.0);
    let mut workspace = Workspace::default();
    for encoding in ENCODINGS {
        let w = Weights::all(encoding, n, 1);
        for (path, _, kernel) in kernels().filter(|(_, arithmetic, _)| *arithmetic == Arithmetic::Int8) {
            let y = product(kernel, &w.packed(), x.view(), &mut workspace);
            assert_eq!(y[[0, 0]], (127 * n as i64) as f32, "{path}: {w}");
        }
    }
}

#[test]
fn tiny_and_large() {
    let (mut random, mut workspace) = (Random(1), Workspace::default());
    // Largest activations of 2^e, down to the smallest number there is, and up to where sums end.
    for exponent in (-149..=110).step_by(7).chain([-148, -147, -127, -126, -125, -100, -99]) {
        for (i, encoding) in ENCODINGS.into_iter().enumerate() {
            let n = [20, 300][i % 2];
            let w = Weights::random(&mut random, encoding, [1 + i, 3, n], [Filter, Group(16), Group(7)][i]);
            let x =
                Array2::from_shape_simple_fn((n, 3), || (random.sign() * random.unit() * 2f64.powi(exponent)) as f32);
            assert_right(&format!("2^{exponent}"), &w, x.view(), &mut workspace);
        }
    }
}

#[test]
fn the_largest_number() {
    let mut workspace = Workspace::default();
    for encoding in ENCODINGS {
        // Half of it, where rounding up does not lead to infinity.
        let w = Weights::new(encoding, [1, 1, 1], Filter, |_| 1, || 0.5);
        for x in [f32::MAX, f32::MIN] {
            assert_right("the largest number", &w, Array2::from_elem((1, 1), x).view(), &mut workspace);
        }
        // Opposite signs in turn: no partial sum leaves the range.
        let w = Weights::new(encoding, [1, 2, 600], Filter, |j| if j % 2 == 0 { 1 } else { -1 }, || 0.25);
        assert_right("± the largest number", &w, Array2::from_elem((600, 2), f32::MAX).view(), &mut workspace);
    }
}

#[test]
fn zero_is_zero() {
    let (mut random, mut workspace) = (Random(2), Workspace::default());
    for (encoding, granularity) in ENCODINGS.into_iter().zip([Filter, Group(16), Group(9)]) {
        let w = Weights::random(&mut random, encoding, [2, 6, 333], granularity);
        for (path, _, kernel) in kernels() {
            for zero in [0.0, -0.0] {
                let y = product(kernel, &w.packed(), Array2::from_elem((333, 5), zero).view(), &mut workspace);
                assert!(y.iter().all(|&y| y == 0.0), "{path}: {w}: {y}");
            }
            // Zero beside other columns; and scales of zero.
            let mut x = gaussian(&mut random, (333, 5));
            x.column_mut(2).fill(0.0);
            let y = product(kernel, &w.packed(), x.view(), &mut workspace);
            assert!(y.column(2).iter().all(|&y| y == 0.0), "{path}: {w}: {y}");
            let none = Weights::new(encoding, [1, 4, 333], granularity, |_| 1, || 0.0);
            let y = product(kernel, &none.packed(), x.view(), &mut workspace);
            assert!(y.iter().all(|&y| y == 0.0), "{path}: {none}: {y}");
        }
    }
}

/// What is not a number, or not finite; a NaN whose lowest bits look like a large activation.
fn strange() -> [f32; 6] {
    let nans = [0x7f80_0080, 0xff80_007f, 0xffc0_0000].map(f32::from_bits);
    [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, nans[0], nans[1], nans[2]]
}

#[test]
fn exact_leaves_out_what_meets_zero() {
    // At every third place a weight of zero, there anything.
    let (mut random, mut workspace) = (Random(3), Workspace::default());
    for encoding in [ENCODINGS[0], ENCODINGS[1]] {
        for granularity in [Filter, Group(16), Group(20), Group(7)] {
            for n in [3, 100, 400] {
                let t = |j| [0, 1, -1][j % n % 3];
                let w = Weights::new(encoding, [2, 5, n], granularity, t, || 0.5);
                let clean = gaussian(&mut random, (n, 5));
                let mut x = clean.clone();
                let bad = |(j, mut x): (usize, ndarray::ArrayViewMut1<'_, f32>)| x.fill(strange()[j % 6]);
                x.rows_mut().into_iter().step_by(3).enumerate().for_each(bad);
                for (path, arithmetic, kernel) in kernels() {
                    let y = product(kernel, &w.packed(), x.view(), &mut workspace);
                    match arithmetic {
                        Arithmetic::ExactF32 => {
                            let expected = product(kernel, &w.packed(), clean.view(), &mut workspace);
                            assert_eq!(bits(&y), bits(&expected), "{path}: {w}");
                        }
                        Arithmetic::Int8 => assert!(y.iter().all(|y| y.is_nan()), "{path}: {w}: {y}"),
                    }
                }
            }
        }
    }
}

#[test]
fn infinities_add_up_as_floats_do() {
    // One strange number, or two (infinities of opposite effect are NaN), at any places.
    let (mut random, mut workspace) = (Random(4), Workspace::default());
    for round in 0..120 {
        let (encoding, n) = (ENCODINGS[round % 3], [5, 64, 300, 513][round % 4]);
        let granularity = [Filter, Group(16), Group(32), Group(7), Group(20)][round % 5];
        let w = Weights::random(&mut random, encoding, [1 + round % 2, 6, n], granularity);
        let mut x = gaussian(&mut random, (n, 5));
        for _ in 0..1 + round % 2 {
            let (j, c) = (random.below(n as u64) as usize, random.below(5) as usize);
            x[[j, c]] = strange()[random.below(6) as usize];
        }
        assert_right("not finite", &w, x.view(), &mut workspace);
    }
}

#[test]
fn int8_keeps_columns_apart() {
    let (mut random, mut workspace) = (Random(5), Workspace::default());
    for (round, strange) in strange().into_iter().cycle().take(18).enumerate() {
        let (n, columns) = ([65, 300, 1][round / 6], [2, 5, 20][round % 3]);
        let granularity = [Filter, Group(16), Group(32), Group(7)][round % 4];
        let w = Weights::random(&mut random, ENCODINGS[round / 6], [1, 5, n], granularity);
        let clean = gaussian(&mut random, (n, columns));
        let (bad, mut x) = (round % columns, clean.clone());
        x[[round * 7 % n, bad]] = strange;
        for (path, _, kernel) in kernels().filter(|(_, arithmetic, _)| *arithmetic == Arithmetic::Int8) {
            // Row-major, and each column in one run: two ways to lay columns down.
            for x in [x.clone(), x.t().as_standard_layout().into_owned().reversed_axes()] {
                let before = product(kernel, &w.packed(), clean.view(), &mut workspace);
                let y = product(kernel, &w.packed(), x.view(), &mut workspace);
                for (c, y) in y.axis_iter(Axis(1)).enumerate() {
                    if c == bad {
                        assert!(y.iter().all(|y| y.is_nan()), "{path}: {strange} in {w}: {y}");
                    } else {
                        assert_eq!(bits(y), bits(before.column(c)), "{path}: {strange} went over in {w}");
                    }
                }
            }
        }
    }
}
