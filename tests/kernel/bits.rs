//! Results do not depend on the number of threads, on the other columns, nor on what a workspace
//! was used for before. (That instruction sets agree is held everywhere: [`crate::assert_right`].)

use ndarray::{Array4, Axis, s};
use twn_pack::Granularity::{Filter, Group};
use twn_pack::kernel::{Conv2d, Workspace};

use crate::common::Random;
use crate::naive::{ENCODINGS, Weights};
use crate::{bits, gaussian, kernels, product};

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

#[test]
fn threads_do_not_matter() {
    let mut random = Random(1);
    let pools = [1, 2, 3].map(pool);
    // Each over 2²⁰ multiplications, where work is shared out; 2²² of one column.
    for (case, (filters, n, columns)) in [(2100, 2001, 1), (300, 700, 5), (17, 1000, 70)].into_iter().enumerate() {
        assert!(filters * n * columns > 1 << 20);
        for encoding in ENCODINGS {
            let granularity = [Filter, Group(160)][case % 2];
            let w = Weights::random(&mut random, encoding, [1, filters, n], granularity);
            let x = gaussian(&mut random, (n, columns));
            for (path, _, kernel) in kernels() {
                let run = |pool: &rayon::ThreadPool| {
                    pool.install(|| bits(&product(kernel, &w.packed(), x.view(), &mut Workspace::default())))
                };
                let one = run(&pools[0]);
                assert!(run(&pools[1]) == one, "{path}: 2 threads, {w}, {columns} columns");
                assert!(run(&pools[2]) == one, "{path}: 3 threads, {w}, {columns} columns");
            }
        }
    }
}

#[test]
fn threads_do_not_matter_to_convolutions() {
    let mut random = Random(2);
    let pools = [1, 2, 3].map(pool);
    let geometry = Conv2d { padding: [1, 1], groups: 2, ..Conv2d::new([3, 3]) };
    // Shared out by images, and within one.
    for (batch, size, filters) in [(7, 8, 40), (1, 24, 40), (2, 16, 40)] {
        let w = Weights::random(&mut random, ENCODINGS[batch % 3], [1, filters, 16 * 9], Filter);
        let x = Array4::from_shape_simple_fn((batch, 32, size, size), || random.gaussian() as f32);
        assert!(w.n * filters * batch * size * size > 1 << 20);
        for (path, _, kernel) in kernels() {
            let run = |pool: &rayon::ThreadPool| {
                let mut y = Array4::from_elem((batch, filters, size, size), f32::NAN);
                let done =
                    || kernel.conv2d(&w.packed(), None, &geometry, x.view(), y.view_mut(), &mut Workspace::default());
                pool.install(done).unwrap();
                bits(&y)
            };
            let one = run(&pools[0]);
            assert!(run(&pools[1]) == one, "{path}: 2 threads, {w}, {batch} images");
            assert!(run(&pools[2]) == one, "{path}: 3 threads, {w}, {batch} images");
        }
    }
}

#[test]
fn a_column_does_not_depend_on_the_others() {
    let (mut random, mut workspace) = (Random(3), Workspace::default());
    for (case, encoding) in ENCODINGS.into_iter().cycle().take(12).enumerate() {
        let n = [40, 256, 300, 1000][case % 4];
        let w = Weights::random(&mut random, encoding, [1 + case % 2, 9, n], [Filter, Group(160), Group(9)][case / 4]);
        let x = gaussian(&mut random, (n, 37));
        for (path, _, kernel) in kernels() {
            let all = product(kernel, &w.packed(), x.view(), &mut workspace);
            for (c, x) in x.columns().into_iter().enumerate() {
                let one = product(kernel, &w.packed(), x.insert_axis(Axis(1)), &mut workspace);
                assert_eq!(bits(&one), bits(all.column(c)), "{path}: column {c}, {w}");
            }
            let some = product(kernel, &w.packed(), x.slice(s![.., 5..22]), &mut workspace);
            assert_eq!(bits(&some), bits(all.slice(s![.., 5..22])), "{path}: {w}");
        }
    }
}

#[test]
fn a_workspace_leaves_nothing_behind() {
    let (mut random, mut used) = (Random(4), Workspace::default());
    let geometry = Conv2d { padding: [1, 1], ..Conv2d::new([3, 3]) };
    // Larger and smaller by turns, so that there is always something left of the one before.
    for (case, n) in [900, 9, 513, 1, 256, 90, 640, 27].into_iter().enumerate() {
        let encoding = ENCODINGS[case % 3];
        let w = Weights::random(&mut random, encoding, [1, 5, n], Filter);
        let x = gaussian(&mut random, (n, [1, 20, 4][case % 3]));
        for (path, _, kernel) in kernels() {
            let again = product(kernel, &w.packed(), x.view(), &mut used);
            let fresh = product(kernel, &w.packed(), x.view(), &mut Workspace::default());
            assert_eq!(bits(&again), bits(&fresh), "{path}: {w}");
            if n % 9 == 0 {
                let x = Array4::from_shape_simple_fn((1, n / 9, 5, 4), || random.gaussian() as f32);
                let [again, fresh] = [&mut used, &mut Workspace::default()].map(|workspace| {
                    let mut y = Array4::from_elem((1, 5, 5, 4), f32::NAN);
                    kernel.conv2d(&w.packed(), None, &geometry, x.view(), y.view_mut(), workspace).unwrap();
                    bits(&y)
                });
                assert_eq!(again, fresh, "{path}: convolution, {w}");
            }
        }
    }
}
