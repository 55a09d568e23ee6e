//! Codes that no writer writes. They give numbers, the same on every instruction set, and never
//! more than that; what lies in the padding of a last byte gives nothing at all.

use twn_pack::Encoding::{self, B1, T2, T5};
use twn_pack::Granularity::{Filter, Group};
use twn_pack::kernel::{PackedMatrix, Workspace};

use crate::common::Random;
use crate::naive::Weights;
use crate::{BOTH, bits, gaussian, kernels, product};

/// Any byte; more often one that is not valid.
fn byte(random: &mut Random, encoding: Encoding) -> u8 {
    let byte = random.bits() as u8;
    match encoding {
        T2 if byte.is_multiple_of(3) => 0xff,
        T5 if byte.is_multiple_of(3) => 243 + byte % 13,
        _ => byte,
    }
}

#[test]
fn any_bytes_give_numbers() {
    let (mut random, mut workspace) = (Random(1), Workspace::default());
    for round in 0..240 {
        let (encoding, n) = ([T2, T5, B1][round % 3], [1, 5, 63, 256, 321, 512, 900][round % 7]);
        let granularity = [Filter, Group(16), Group(20), Group(32), Group(7)][round % 5];
        let (planes, filters, columns) = (1 + round % 2, 1 + round % 9, [1, 2, 5, 16][round % 4]);
        let codes: Vec<u8> = (0..planes * filters * encoding.bytes(n)).map(|_| byte(&mut random, encoding)).collect();
        let scales = vec![1.0; planes * granularity.scales(filters as u64, n as u64) as usize];
        let packed = PackedMatrix::from_parts(encoding, [planes, filters, n], granularity, &codes, scales).unwrap();
        let x = gaussian(&mut random, (n, columns));
        for arithmetic in BOTH {
            let mut first = None;
            for (path, _, kernel) in kernels().filter(|(_, a, _)| *a == arithmetic) {
                let y = product(kernel, &packed, x.view(), &mut workspace);
                // A weight is at most 2 in size, an activation less than 10.
                let limit = (planes * n) as f32 * 20.0;
                let case = || format!("{path}: {} {granularity:?} n {n}", encoding.name());
                assert!(y.iter().all(|y| y.abs() <= limit), "{}: {y}", case());
                let y = bits(&y);
                assert!(y == *first.get_or_insert_with(|| y.clone()), "{}: another number", case());
            }
        }
    }
}

/// Something else behind the last weight of every filter.
fn soil(w: &Weights, random: &mut Random) -> Option<Vec<u8>> {
    let per_byte = w.encoding.weights_per_byte();
    let (bytes, used) = (w.encoding.bytes(w.n), w.n % per_byte);
    (used > 0).then(|| {
        let mut codes = w.codes.clone();
        for last in codes.iter_mut().skip(bytes - 1).step_by(bytes) {
            let (before, dirt) = (*last, random.bits() as u8);
            *last = match w.encoding {
                T2 => before & ((1 << (2 * used)) - 1) | dirt << (2 * used),
                B1 => before & ((1 << used) - 1) | dirt << used,
                T5 => {
                    let unit = 3u8.pow(used as u32);
                    before % unit + dirt % (243 / unit) * unit
                }
            };
        }
        codes
    })
}

#[test]
fn padding_has_no_influence() {
    let (mut random, mut workspace) = (Random(2), Workspace::default());
    let mut soiled = 0;
    for n in (1..=40).chain(250..=330).chain(505..=520) {
        for encoding in [T2, T5, B1] {
            let granularity = [Filter, Group(16), Group(20), Group(32), Group(7)][n % 5];
            let w = Weights::random(&mut random, encoding, [1 + n % 2, 5, n], granularity);
            let Some(codes) = soil(&w, &mut random) else { continue };
            soiled += usize::from(codes != w.codes);
            let x = gaussian(&mut random, (n, 1 + n % 5));
            for (path, _, kernel) in kernels() {
                let clean = product(kernel, &w.packed(), x.view(), &mut workspace);
                let dirty = product(kernel, &w.packed_from(&codes), x.view(), &mut workspace);
                assert_eq!(bits(&dirty), bits(&clean), "{path}: {w}");
            }
        }
    }
    assert!(soiled > 200, "{soiled}");
}
