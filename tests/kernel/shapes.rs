//! Lengths, filters, columns, groups, planes, and where codes lie in memory.

use ndarray::Array2;
use twn_pack::Granularity::{self, Filter, Group, Tensor};
use twn_pack::kernel::{Arithmetic, Kernel, PackedMatrix, Workspace, reference};
use twn_pack::{Encoding, Isa};

use crate::common::Random;
use crate::naive::{ENCODINGS, Expected, Weights};
use crate::{assert_packed_right, assert_right, bits, gaussian, kernels, product};

/// Whole lanes of each encoding (16, 20, 32), parts of lanes, primes, whole chunks.
const GROUPS: [u64; 26] =
    [1, 2, 3, 7, 13, 16, 20, 31, 32, 33, 40, 48, 64, 80, 96, 97, 100, 128, 160, 192, 256, 320, 499, 512, 640, 1000];

/// Number `i` of all the ways in which `n` weights share scales.
fn granularity(i: usize, n: usize) -> Granularity {
    let n = n as u64;
    match i % 32 {
        0 | 1 => Filter,
        2 => Tensor,
        3 => Group(n.max(2) - 1),
        4 => Group(n.max(1)),
        5 => Group([n + 1, u64::MAX][i / 32 % 2]),
        i => Group(GROUPS[i - 6]),
    }
}

#[test]
fn every_length() {
    let (mut random, mut workspace) = (Random(1), Workspace::default());
    for n in 0..=1100 {
        for (i, encoding) in ENCODINGS.into_iter().enumerate() {
            for round in 0..2 {
                let granularity = granularity(7 * n + 11 * i + 16 * round, n);
                let planes = [1, 1, 2, 3][(n + i) % 4];
                let filters = [1, 5, 2, 4, 3, 9][(n + round) % 6];
                let columns = [1, 3, 5, 2, 1, 4, 17][(n + i) % 7];
                let w = Weights::random(&mut random, encoding, [planes, filters, n], granularity);
                assert_right("", &w, gaussian(&mut random, (n, columns)).view(), &mut workspace);
            }
        }
    }
}

#[test]
fn every_granularity() {
    let (mut random, mut workspace) = (Random(2), Workspace::default());
    for (i, encoding) in ENCODINGS.into_iter().enumerate() {
        for way in 0..64 {
            let n = [61, 256, 321, 700, 1024][(way + i) % 5];
            let shape = [1 + way % 3, [4, 1, 5, 8, 3][way % 5], n];
            let w = Weights::random(&mut random, encoding, shape, granularity(way, n));
            assert_right("", &w, gaussian(&mut random, (n, [1, 4, 5][way % 3])).view(), &mut workspace);
        }
    }
}

#[test]
fn every_number_of_filters_and_columns() {
    let (mut random, mut workspace) = (Random(3), Workspace::default());
    let mut case = 0;
    for filters in (0..=9).chain([16, 33]) {
        for columns in [0, 1, 2, 3, 4, 5, 7, 16, 17, 33, 70] {
            let encoding = ENCODINGS[case % 3];
            let n = [37, 260, 130, 5][case % 4];
            let w = Weights::random(&mut random, encoding, [1 + case % 2, filters, n], granularity(5 * case, n));
            assert_right("", &w, gaussian(&mut random, (n, columns)).view(), &mut workspace);
            case += 1;
        }
    }
}

#[test]
fn more_columns_than_are_laid_down_at_a_time() {
    let (mut random, mut workspace) = (Random(4), Workspace::default());
    // 4 MiB of activations: 48 columns of 20,480 floats, 192 of as many bytes.
    for (encoding, columns) in ENCODINGS.into_iter().zip([49, 70, 200]) {
        let w = Weights::random(&mut random, encoding, [1, 1, 20_480], Filter);
        assert_right("", &w, gaussian(&mut random, (w.n, columns)).view(), &mut workspace);
    }
}

/// A column of over 16 KiB meets tiles of two filters or of eight, as the machine's nearest cache has room: with 48 KiB
/// there are two up to 28,672 weights.
#[test]
fn long_filters() {
    let (mut random, mut workspace) = (Random(9), Workspace::default());
    for (i, n) in [16_384, 16_385, 16_640, 20_003, 40_000, 28_672, 17_001].into_iter().enumerate() {
        for (k, encoding) in ENCODINGS.into_iter().enumerate() {
            let filters = [8, 7, 9, 19, 16][(i + k) % 5];
            let w = Weights::random(
                &mut random,
                encoding,
                [1 + i % 2, filters, n],
                [Filter, Tensor, Group(64)][(i + k) % 3],
            );
            assert_right("", &w, gaussian(&mut random, (n, [1, 1, 2, 5][i % 4])).view(), &mut workspace);
        }
    }
}

/// They are laid down 64 or 512 at a time; the last chunk and the last block have fewer than others.
#[test]
fn many_columns() {
    let (mut random, mut workspace) = (Random(8), Workspace::default());
    for (i, encoding) in ENCODINGS.into_iter().enumerate() {
        for (n, columns) in [(300, 128), (700, 147), (513, 256), (256, 65), (77, 600), (1, 40)] {
            let w = Weights::random(&mut random, encoding, [1, 3, n], granularity(i, n));
            assert_right("", &w, gaussian(&mut random, (n, columns)).view(), &mut workspace);
        }
    }
}

#[test]
fn no_planes_are_nothing() {
    let w = Weights::random(&mut Random(5), ENCODINGS[0], [0, 3, 50], Filter);
    assert_right("", &w, Array2::ones((50, 2)).view(), &mut Workspace::default());
}

#[test]
fn codes_at_every_address_modulo_64() {
    let (mut random, mut workspace) = (Random(6), Workspace::default());
    for (i, encoding) in ENCODINGS.into_iter().enumerate() {
        for offset in 0..64 {
            let n = [700, 256, 1001, 63][(offset + i) % 4];
            let w = Weights::random(&mut random, encoding, [1, 5, n], granularity(offset + i, n));
            let mut memory = vec![0xff; w.codes.len() + 128];
            let start = memory.as_ptr().align_offset(64) + offset;
            let codes = &mut memory[start..][..w.codes.len()];
            codes.copy_from_slice(&w.codes);
            assert_eq!(codes.as_ptr() as usize % 64, offset);
            let x = gaussian(&mut random, (n, 1 + 4 * (offset % 2)));
            assert_packed_right(&format!("offset {offset}"), &w, &w.packed_from(codes), x.view(), &mut workspace);
        }
    }
}

#[test]
fn some_rows_are_those_rows() {
    let (mut random, mut workspace) = (Random(7), Workspace::default());
    for (i, encoding) in ENCODINGS.into_iter().enumerate() {
        for (way, granularity) in [Filter, Tensor, Group(16), Group(20), Group(7)].into_iter().enumerate() {
            let n = [300, 77][(way + i) % 2];
            let w = Weights::random(&mut random, encoding, [2, 9, n], granularity);
            let (packed, x) = (w.packed(), gaussian(&mut random, (n, 3)));
            for (path, _, kernel) in kernels() {
                let all = product(kernel, &packed, x.view(), &mut workspace);
                let rows = |from: usize, to: usize| bits(all.slice(ndarray::s![from..to, ..]));
                for (from, to) in [(0, 9), (0, 1), (3, 8), (8, 9), (4, 4), (9, 9)] {
                    let some = packed.rows(from..to);
                    assert_eq!((some.filters(), some.filter_len(), some.planes()), (to - from, n, 2));
                    let y = product(kernel, &some, x.view(), &mut workspace);
                    assert_eq!(bits(&y), rows(from, to), "{path}: {from}..{to} of {w}");
                }
                let within = packed.rows(2..9);
                let y = product(kernel, &within.rows(1..4), x.view(), &mut workspace);
                assert_eq!(bits(&y), rows(3, 6), "{path}: rows of rows of {w}");
            }
        }
    }
}

#[test]
fn views_show_what_they_were_made_from() {
    let w = Weights::random(&mut Random(8), ENCODINGS[1], [2, 4, 33], Group(10));
    let packed: PackedMatrix<'_> = w.packed();
    assert_eq!((packed.encoding(), packed.granularity()), (w.encoding, w.granularity));
    assert_eq!((packed.planes(), packed.filters(), packed.filter_len()), (2, 4, 33));
    for (plane, filter) in (0..2).flat_map(|plane| (0..4).map(move |filter| (plane, filter))) {
        let at = plane * 4 + filter;
        assert_eq!(packed.codes(plane, filter), &w.codes[at * 7..][..7]);
        assert_eq!(packed.scales(plane, filter), &w.scales[at * 4..][..4]);
        let row = packed.rows(filter..4);
        assert_eq!(
            (row.codes(plane, 0), row.scales(plane, 0)),
            (packed.codes(plane, filter), packed.scales(plane, filter))
        );
    }
}

#[test]
fn the_reference_of_the_crate_is_the_naive_sum() {
    let mut random = Random(9);
    for case in 0..96 {
        let (encoding, n) = (ENCODINGS[case % 3], [0, 1, 40, 333][case / 3 % 4]);
        let w = Weights::random(&mut random, encoding, [1 + case % 2, 4, n], granularity(case, n));
        let x = gaussian(&mut random, (n, 3));
        let found = reference::matrix(&w.packed(), x.view()).unwrap();
        let expected = Expected::of_columns(&w, 0..4, x.view());
        for (found, expected) in found.iter().zip(&expected.y) {
            assert!((found - expected).abs() < 1e-12 * (1.0 + n as f64), "{w}: {found} for {expected}");
        }
    }
    let codes = [0b11_01_01_01];
    let invalid = PackedMatrix::from_parts(ENCODINGS[0], [1, 1, 4], Filter, &codes, vec![1.0]).unwrap();
    let error = reference::matrix(&invalid, Array2::zeros((4, 1)).view()).unwrap_err();
    assert!(error.contains("code"), "{error}");
}

/// Nothing to compute: whatever the other dimension claims.
#[test]
fn products_of_nothing_do_nothing() {
    for shape in [[1, 0, 1 << 62], [0, 3, 1 << 62]] {
        let filters = shape[1];
        let scales = vec![0.0; if shape[0] == 0 { 0 } else { filters }];
        let w = PackedMatrix::from_parts(Encoding::T2, shape, Granularity::Filter, &[], scales).unwrap();
        for arithmetic in [Arithmetic::ExactF32, Arithmetic::Int8] {
            let kernel = Kernel::with_isa(arithmetic, Isa::PORTABLE);
            kernel.matrix_slices(&w, &[], 0, &mut [], &mut Workspace::default()).unwrap();
        }
    }
}
