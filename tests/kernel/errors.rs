//! What does not fit is refused in words, by [`PackedMatrix::from_parts`] and by every product.

use ndarray::{Array1, Array2, Array4};
use twn_pack::Encoding::{B1, T2, T5};
use twn_pack::Granularity::{Filter, Group, Tensor};
use twn_pack::kernel::{Conv2d, Kernel, PackedMatrix, Workspace};
use twn_pack::{Error, Isa};

use crate::BOTH;
use crate::common::Random;
use crate::naive::Weights;

/// The words of an error that is the caller's.
#[track_caller]
fn request<T>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Request(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("was accepted"),
    }
}

#[test]
fn parts_that_do_not_fit() {
    let huge = usize::MAX;
    // Encoding, shape, granularity, bytes, scales; what the message says.
    let cases = [
        (T2, [1, 3, 5], Filter, 5, 3, "6 bytes of codes and 3 scales; given are 5 and 3"),
        (T2, [1, 3, 5], Filter, 7, 3, "6 bytes of codes and 3 scales; given are 7 and 3"),
        (T5, [1, 3, 5], Filter, 3, 2, "3 bytes of codes and 3 scales; given are 3 and 2"),
        (T5, [1, 3, 5], Filter, 3, 4, "3 bytes of codes and 3 scales; given are 3 and 4"),
        (B1, [2, 3, 9], Filter, 12, 3, "12 bytes of codes and 6 scales"),
        (T2, [2, 3, 4], Tensor, 6, 6, "6 bytes of codes and 2 scales"),
        (T2, [1, 3, 9], Group(4), 9, 3, "9 bytes of codes and 9 scales"),
        (T2, [1, 3, 9], Group(0), 9, 3, "groups of 0 weights"),
        (T2, [1, 0, 9], Filter, 1, 0, "0 bytes of codes"),
        (T2, [0, 3, 9], Tensor, 0, 1, "0 bytes of codes and 0 scales"),
        (T2, [2, huge, 9], Filter, 0, 0, "too many bytes of codes and too many scales"),
        (B1, [1, huge, huge], Group(1), 0, 0, "too many bytes of codes"),
        (T5, [1, 2, huge], Group(1), 0, 0, "scales; given are 0 and 0"),
        (T2, [huge, 1, 1], Tensor, 1, 1, "given are 1 and 1"),
    ];
    for (encoding, shape, granularity, bytes, scales, words) in cases {
        let codes = vec![0; bytes];
        let text = request(PackedMatrix::from_parts(encoding, shape, granularity, &codes, vec![1.0; scales]));
        assert!(text.contains(words), "{encoding:?} {shape:?} {granularity:?}: {text}");
    }
}

#[test]
fn parts_that_hold_nothing() {
    for (shape, granularity, scales) in
        [([0, 3, 9], Filter, 0), ([1, 0, 9], Filter, 0), ([2, 3, 0], Filter, 6), ([2, 3, 0], Group(4), 0)]
    {
        let packed = PackedMatrix::from_parts(T2, shape, granularity, &[], vec![1.0; scales]).unwrap();
        for kernel in BOTH.map(|arithmetic| Kernel::with_isa(arithmetic, Isa::PORTABLE)) {
            let x = Array2::ones((shape[2], 2));
            let y = crate::product(kernel, &packed, x.view(), &mut Workspace::default());
            assert!(y.dim() == (shape[1], 2) && y.iter().all(|&y| y == 0.0), "{shape:?}: {y}");
        }
    }
}

#[test]
fn rows_that_are_not_there() {
    let w = Weights::random(&mut Random(1), T2, [1, 4, 9], Filter);
    let packed = w.packed();
    let rows = |from: usize, to: usize| {
        let rows = std::panic::AssertUnwindSafe(|| packed.rows(from..to).filters());
        std::panic::catch_unwind(rows).is_err()
    };
    assert!(rows(0, 5) && rows(5, 5) && rows(3, 2) && rows(0, usize::MAX));
    assert!(!rows(4, 4) && !rows(0, 4));
}

#[test]
fn products_that_do_not_fit() {
    let w = Weights::random(&mut Random(2), T2, [1, 4, 9], Filter);
    let (w, mut workspace) = (w.packed(), Workspace::default());
    let zeros = Array2::<f32>::zeros;
    for kernel in BOTH.map(|arithmetic| Kernel::new(arithmetic).unwrap()) {
        // x, y
        for (x, y, words) in [
            ((8, 3), (4, 3), "expected [9, 3], found [8, 3]"),
            ((10, 3), (4, 3), "expected [9, 3], found [10, 3]"),
            ((9, 3), (5, 3), "expected [4, 3], found [5, 3]"),
            ((9, 3), (4, 2), "expected [4, 3], found [4, 2]"),
            ((9, 0), (4, 1), "expected [4, 0], found [4, 1]"),
        ] {
            let text = request(kernel.matrix(&w, zeros(x).view(), zeros(y).view_mut(), &mut workspace));
            assert!(text.contains(words), "{text}");
            let text = request(kernel.linear(
                &w,
                None,
                zeros(x).view().reversed_axes(),
                zeros(y).view_mut().reversed_axes(),
                &mut workspace,
            ));
            let turned = |text: &str| text.matches(|c: char| c.is_ascii_digit()).count();
            assert_eq!(turned(&text), turned("4 filters of 9 weights") + turned(words), "{text}");
        }
        for bias in [&[0.0; 3][..], &[0.0; 5], &[]] {
            let (x, mut y) = (zeros((2, 9)), zeros((2, 4)));
            let text = request(kernel.linear(&w, Some(bias), x.view(), y.view_mut(), &mut workspace));
            assert!(text.contains(&format!("bias per filter: expected [4], found [{}]", bias.len())), "{text}");
        }
        for (x, columns, y) in [(26, 3, 12), (27, 3, 11), (27, 2, 12), (0, 0, 1), (9, usize::MAX, 4)] {
            let text = request(kernel.matrix_slices(&w, &vec![0.0; x], columns, &mut vec![0.0; y], &mut workspace));
            let slices = [x, y].map(|length| format!("the slice has {length}"));
            assert!(slices.iter().any(|says| text.contains(says)), "{text}");
        }
        for (x, batch, y) in [(17, 2, 8), (18, 2, 9), (18, 3, 12), (9, usize::MAX, 4)] {
            request(kernel.linear_slices(&w, None, &vec![0.0; x], batch, &mut vec![0.0; y], &mut workspace));
        }
        for (x, y) in [(8, 4), (10, 4), (9, 3), (9, 5), (0, 0)] {
            let (x, mut y) = (Array1::<f32>::zeros(x), Array1::<f32>::zeros(y));
            request(kernel.vector(&w, x.view(), y.view_mut(), &mut workspace));
        }
    }
}

#[test]
fn convolutions_that_do_not_fit() {
    // 6 filters of 2 channels × 3 × 3.
    let w = Weights::random(&mut Random(3), T5, [1, 6, 18], Filter);
    let (w, plain, huge) = (w.packed(), Conv2d::new([3, 3]), usize::MAX);
    // Geometry, x, y; what the message says.
    let cases = [
        (plain, [1, 2, 2, 5], [1, 6, 1, 3], "kernel has to fit"),
        (plain, [1, 2, 5, 2], [1, 6, 3, 1], "kernel has to fit"),
        (Conv2d { dilation: [2, 2], ..plain }, [1, 2, 4, 5], [1, 6, 1, 1], "kernel has to fit"),
        (Conv2d { stride: [0, 1], ..plain }, [1, 2, 5, 5], [1, 6, 3, 3], "kernel has to fit"),
        (Conv2d { dilation: [1, 0], ..plain }, [1, 2, 5, 5], [1, 6, 3, 3], "kernel has to fit"),
        (Conv2d { kernel: [0, 3], ..plain }, [1, 2, 5, 5], [1, 6, 3, 3], "kernel has to fit"),
        (Conv2d { padding: [huge, 1], ..plain }, [1, 2, 5, 5], [1, 6, 3, 3], "kernel has to fit"),
        (Conv2d { groups: 0, ..plain }, [1, 2, 5, 5], [1, 6, 3, 3], "do not fall into 0 groups"),
        (Conv2d { groups: 4, ..plain }, [1, 8, 5, 5], [1, 6, 3, 3], "6 filters do not fall into 4 groups"),
        (Conv2d { groups: 3, ..plain }, [1, 7, 5, 5], [1, 6, 3, 3], "7 channels and 6 filters do not"),
        (plain, [1, 3, 5, 5], [1, 6, 3, 3], "expected [27], found [18]"),
        (Conv2d { groups: 2, ..plain }, [1, 2, 5, 5], [1, 6, 3, 3], "expected [9], found [18]"),
        (plain, [1, 2, 5, 5], [2, 6, 3, 3], "expected [1, 6, 3, 3], found [2, 6, 3, 3]"),
        (plain, [1, 2, 5, 5], [1, 5, 3, 3], "expected [1, 6, 3, 3], found [1, 5, 3, 3]"),
        (plain, [1, 2, 5, 5], [1, 6, 5, 5], "expected [1, 6, 3, 3], found [1, 6, 5, 5]"),
    ];
    for kernel in BOTH.map(|arithmetic| Kernel::new(arithmetic).unwrap()) {
        let run = |geometry: &Conv2d, bias: Option<&[f32]>, x: [usize; 4], y: [usize; 4]| {
            let (x, mut y) = (Array4::<f32>::zeros(x), Array4::<f32>::zeros(y));
            kernel.conv2d(&w, bias, geometry, x.view(), y.view_mut(), &mut Workspace::default())
        };
        for (geometry, x, y, words) in &cases {
            let text = request(run(geometry, None, *x, *y));
            assert!(text.contains(words), "{geometry:?}, {x:?}: {text}");
            let (mut of_x, mut of_y) = (vec![0.0; x.iter().product()], vec![0.0; y.iter().product()]);
            let workspace = &mut Workspace::default();
            request(kernel.conv2d_slices(&w, None, geometry, &of_x, *x, &mut of_y, workspace));
            of_x.push(0.0);
            request(kernel.conv2d_slices(&w, None, &plain, &of_x, *x, &mut of_y, workspace));
        }
        let text = request(run(&plain, Some(&[0.0; 5]), [1, 2, 5, 5], [1, 6, 3, 3]));
        assert!(text.contains("bias per filter: expected [6], found [5]"), "{text}");
        // More than 2³¹ places once padded, though hardly anything is read.
        let wide = Conv2d { padding: [0, 1 << 30], stride: [1, 1 << 30], ..plain };
        let text = request(run(&wide, None, [1, 2, 3, 3], [1, 6, 1, 3]));
        assert!(text.contains("too large"), "{text}");
        run(&plain, Some(&[0.0; 6]), [1, 2, 3, 3], [1, 6, 1, 1]).unwrap();
    }
}
