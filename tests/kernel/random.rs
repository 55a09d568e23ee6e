//! Properties over anything at all: shapes, scales, encodings, activations of every kind and memory
//! order.

use std::cell::RefCell;

use ndarray::{Array2, ShapeBuilder};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use twn_pack::Granularity;
use twn_pack::kernel::Workspace;

use crate::assert_right;
use crate::common::Random;
use crate::naive::{ENCODINGS, Weights};

/// Activations of one kind.
fn activation(random: &mut Random, kind: usize) -> f32 {
    match kind {
        0 => random.gaussian() as f32,
        1 => random.below(255) as f32 - 127.0,
        // Many zeros, as behind a ReLU.
        2 => random.gaussian().max(0.0) as f32,
        3 => (random.laplace() * 1e-30) as f32,
        4 => (random.sign() * 10f64.powf(30.0 * random.unit() - 20.0)) as f32,
        5 => 127.0 * random.sign() as f32,
        // Here and there something that is not finite.
        _ => match random.below(400) {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => f32::NEG_INFINITY,
            _ => random.gaussian() as f32,
        },
    }
}

#[derive(Clone, Debug)]
struct Case {
    encoding: usize,
    shape: [usize; 3],
    columns: usize,
    granularity: Granularity,
    kind: usize,
    column_major: bool,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let n = prop_oneof![4 => 0usize..150, 3 => 150usize..1500, 1 => 1500usize..6000];
    let columns = prop_oneof![2 => Just(1usize), 5 => 0usize..9, 1 => 9usize..40];
    let granularity = prop_oneof![
        3 => Just(Granularity::Filter),
        1 => Just(Granularity::Tensor),
        2 => prop::sample::select(vec![16u64, 20, 32, 48, 64, 80, 160]).prop_map(Granularity::Group),
        2 => (1u64..700).prop_map(Granularity::Group),
    ];
    let shape = (1usize..4, 0usize..14, n).prop_map(|(planes, filters, n)| [planes, filters, n]);
    (0usize..3, shape, columns, granularity, 0usize..7, any::<bool>(), any::<u64>()).prop_map(
        |(encoding, shape, columns, granularity, kind, column_major, seed)| {
            // Bounded work: long filters are few.
            let filters = if shape[2] > 1000 { shape[1] % 4 } else { shape[1] };
            let columns = if shape[2] > 300 { columns % 6 } else { columns };
            Case { encoding, shape: [shape[0], filters, shape[2]], columns, granularity, kind, column_major, seed }
        },
    )
}

#[test]
fn anything() {
    let config = Config { cases: 400, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
    let workspace = RefCell::new(Workspace::default());
    proptest!(config, |(case in case())| {
        let mut random = Random(case.seed);
        let w = Weights::random(&mut random, ENCODINGS[case.encoding], case.shape, case.granularity);
        let shape = (w.n, case.columns).set_f(case.column_major);
        let x = Array2::from_shape_simple_fn(shape, || activation(&mut random, case.kind));
        assert_right("", &w, x.view(), &mut workspace.borrow_mut());
    });
}
