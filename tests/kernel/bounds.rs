//! The stated error bounds, on activations that are made to come near them.

use ndarray::Array2;
use twn_pack::Granularity::{self, Filter, Group};
use twn_pack::kernel::{Arithmetic, Workspace};

use crate::common::Random;
use crate::naive::{ENCODINGS, Expected, Weights};
use crate::{assert_right, kernels, product};

/// Activations that are hard to add: name and rule for number `j`.
type Kind = (&'static str, fn(&mut Random, usize) -> f64);

const HARD: [Kind; 8] = [
    ("each addition loses half a unit", |_, j| if j % 16 == 0 { 1.0 } else { 2f64.powi(-24) }),
    ("a large one first", |_, j| if j == 0 { 1.0 } else { 2f64.powi(-24) }),
    ("cancelling neighbours", |random, j| (1.0 + 1e-6 * random.unit()) * if j % 2 == 0 { 1e6 } else { -1e6 }),
    ("cancelling halves", |random, j| random.gaussian() + if j % 64 < 32 { 1e5 } else { -1e5 }),
    ("60 orders of magnitude", |random, _| random.sign() * 10f64.powf(60.0 * random.unit() - 30.0)),
    ("growing", |random, j| random.sign() * 1.05f64.powi((j % 512) as i32)),
    ("shrinking", |random, j| random.unit() * 0.95f64.powi((j % 512) as i32)),
    ("the middle between two steps", |_, j| if j == 0 { 127.0 } else { (j % 127) as f64 + 0.5 }),
];

fn granularities() -> [Granularity; 7] {
    [Filter, Group(16), Group(20), Group(32), Group(160), Group(7), Group(255)]
}

#[test]
fn hard_sums() {
    let (mut random, mut workspace) = (Random(1), Workspace::default());
    for (name, rule) in HARD {
        for encoding in ENCODINGS {
            for (i, n) in [16, 32, 20, 256, 257, 1000].into_iter().enumerate() {
                for granularity in granularities() {
                    let mut draw = Random(random.bits());
                    let x = Array2::from_shape_fn((n, 2), |(j, _)| rule(&mut draw, j) as f32);
                    // All +1, where nothing but rounding is wrong, and anything.
                    let plus = Weights::new(encoding, [1, 1, n], granularity, |_| 1, || 1.0);
                    assert_right(name, &plus, x.view(), &mut workspace);
                    let any = Weights::random(&mut random, encoding, [1 + i % 3, 2, n], granularity);
                    assert_right(name, &any, x.view(), &mut workspace);
                }
            }
        }
    }
}

/// The largest error of any filter and path, in units of 2⁻²⁴·Σ|α·x|.
fn worst(w: &Weights, x: &Array2<f32>) -> f64 {
    let expected = Expected::of_columns(w, 0..w.filters, x.view());
    let mut worst = 0f64;
    for (_, _, kernel) in kernels().filter(|(_, arithmetic, _)| *arithmetic == Arithmetic::ExactF32) {
        let y = product(kernel, &w.packed(), x.view(), &mut Workspace::default());
        let sum: f64 = x.column(0).iter().map(|&x| f64::from(x).abs()).sum();
        worst = worst.max((f64::from(y[[0, 0]]) - expected.y[[0, 0]]).abs() / sum * f64::from(1 << 24));
    }
    worst
}

#[test]
fn a_lane_adds_one_after_the_other() {
    // What the bound has to allow for: filters that fill one lane only are added up in one row.
    // 1 + 2⁻²⁴ is 1, so that all but the first are lost.
    let cases = [
        (0, 16, Filter, 0, 15.0),
        // The fifth weight of a byte of `t5` comes first.
        (1, 20, Filter, 4, 19.0),
        (2, 32, Filter, 0, 31.0),
    ];
    for (encoding, n, granularity, first, lost) in cases {
        let w = Weights::new(ENCODINGS[encoding], [1, 1, n], granularity, |_| 1, || 1.0);
        let x = Array2::from_shape_fn((n, 1), |(j, _)| if j == first { 1.0 } else { 2f32.powi(-24) });
        let worst = worst(&w, &x);
        assert!((worst - lost).abs() < 0.01, "{w}: {worst} units are lost, not {lost}");
        assert_right("one lane", &w, x.view(), &mut Workspace::default());
    }
}

#[test]
fn int8_comes_near_its_bound() {
    // All weights +1, all activations but one half a step from their numbers: the error is the bound's.
    let mut workspace = Workspace::default();
    for encoding in ENCODINGS {
        let w = Weights::all(encoding, 401, 1);
        let x = Array2::from_shape_fn((401, 1), |(j, _)| if j == 0 { 127.0 } else { 0.499 });
        assert_right("just below half a step", &w, x.view(), &mut workspace);
        for (path, _, kernel) in kernels().filter(|(_, arithmetic, _)| *arithmetic == Arithmetic::Int8) {
            let y = product(kernel, &w.packed(), x.view(), &mut workspace);
            assert_eq!(y[[0, 0]], 127.0, "{path}: {w}");
        }
    }
}

#[test]
fn tables_add_a_word_after_the_other() {
    // A word of 16 weights has one activation that counts, and 1 + 2⁻²⁴ is 1: all words but the first
    // are lost.
    let x = |j: usize| match j {
        0 => 1.0,
        _ if j.is_multiple_of(16) => 2f32.powi(-24),
        _ => 0.0,
    };
    for encoding in ENCODINGS {
        let w = Weights::new(encoding, [1, 64, 1008], Filter, |_| 1, || 1.0);
        let x = Array2::from_shape_fn((w.n, 16), |(j, _)| x(j));
        let worst = worst(&w, &x);
        assert!((worst - 62.0).abs() < 0.01, "{w}: {worst} units are lost, not 62");
        assert_right("words", &w, x.view(), &mut Workspace::default());
    }
}
