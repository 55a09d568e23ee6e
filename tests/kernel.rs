//! Packed products against the naive sum in `f64`, for every instruction set.

use ndarray::Array2;
use twn_pack::kernel::{Arithmetic, Kernel, PackedMatrix, Workspace, reference};
use twn_pack::{Encoding, Granularity, Isa};

#[test]
fn quick() {
    let mut state = 1u64;
    let mut rnd = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for encoding in [Encoding::T2, Encoding::T5, Encoding::B1] {
        for n in [0usize, 1, 3, 4, 5, 63, 64, 255, 256, 257, 320, 512, 700, 1100] {
            for group in [0u64, 160, 16, 7, 100] {
                for filters in [1usize, 4, 5, 9] {
                    for cols in [1usize, 2, 5] {
                        let bytes = encoding.bytes(n);
                        let g = if group == 0 { Granularity::Filter } else { Granularity::Group(group) };
                        let per = encoding.weights_per_byte();
                        let mut codes = vec![0u8; 2 * filters * bytes];
                        for row in codes.chunks_mut(bytes.max(1)) {
                            for j in 0..bytes * per {
                                let c = if encoding == Encoding::B1 {
                                    if j >= n { 0 } else { rnd() % 2 * 2 }
                                } else if j >= n {
                                    1
                                } else {
                                    rnd() % 3
                                } as u8;
                                match encoding {
                                    Encoding::T2 => row[j / 4] |= c << (2 * (j % 4)),
                                    Encoding::T5 => row[j / 5] += c * [1, 3, 9, 27, 81][j % 5],
                                    Encoding::B1 => row[j / 8] |= (c / 2) << (j % 8),
                                }
                            }
                        }
                        let scales: Vec<f32> =
                            (0..2 * g.scales(filters as u64, n as u64)).map(|_| rnd() as f32 / 4e9 + 0.1).collect();
                        let w = PackedMatrix::from_parts(encoding, [2, filters, n], g, &codes, &scales[..]).unwrap();
                        let x = Array2::from_shape_simple_fn((n, cols), || rnd() as f32 / 1e9 - 1.0);
                        let exact = reference::matrix(&w, x.view()).unwrap();
                        for isa in Isa::all() {
                            for a in [Arithmetic::ExactF32, Arithmetic::Int8] {
                                let mut y = Array2::from_elem((filters, cols), 9.0);
                                Kernel::with_isa(a, isa)
                                    .matrix(&w, x.view(), y.view_mut(), &mut Workspace::default())
                                    .unwrap();
                                for ((f, c), y) in y.indexed_iter() {
                                    let e = exact[[f, c]];
                                    let tol = if a == Arithmetic::Int8 {
                                        1.2 * 2.2 / 127.0 * (n as f64) / 2.0 + 1e-6
                                    } else {
                                        1e-5 * (n as f64) + 1e-7
                                    };
                                    assert!(
                                        (f64::from(*y) - e).abs() <= tol,
                                        "{encoding:?} n {n} group {group} filters {filters} cols {cols} {} {a:?} [{f},{c}]: {y} for {e}",
                                        isa.name()
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn convolutions() {
    use ndarray::{Array2, Array4};
    use twn_pack::kernel::Conv2d;
    let mut state = 7u64;
    let mut rnd = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for (groups, stride, padding, dilation, kernel) in
        [(1, [1, 1], [0, 0], [1, 1], [5, 5]), (2, [2, 1], [1, 2], [1, 2], [3, 2]), (4, [1, 3], [2, 0], [2, 1], [1, 3])]
    {
        for batch in [1, 3, 5] {
            let (channels, filters, h, w) = (8, 12, 9, 11);
            let geometry = Conv2d { kernel, stride, padding, dilation, groups };
            let n = channels / groups * kernel[0] * kernel[1];
            let weights = Array2::from_shape_simple_fn((filters, n), || rnd() as f32 / 1e9 - 1.0);
            let t = twn_pack::memory::ternarize("w", &weights, &twn_pack::Settings::default().treatment().unwrap())
                .unwrap();
            let m = PackedMatrix::new(&t);
            let x = Array4::from_shape_simple_fn((batch, channels, h, w), || rnd() as f32 / 1e9 - 1.0);
            let [oh, ow] = geometry.output([h, w]).unwrap();
            let bias: Vec<f32> = (0..filters).map(|i| i as f32).collect();
            for arithmetic in [Arithmetic::ExactF32, Arithmetic::Int8] {
                let mut y = Array4::zeros((batch, filters, oh, ow));
                Kernel::new(arithmetic)
                    .unwrap()
                    .conv2d(&m, Some(&bias), &geometry, x.view(), y.view_mut(), &mut Workspace::default())
                    .unwrap();
                let deq = t.to_array().unwrap();
                for ((b, f, oy, ox), y) in y.indexed_iter() {
                    let g = f / (filters / groups);
                    let mut e = f as f64;
                    for c in 0..channels / groups {
                        for ky in 0..kernel[0] {
                            for kx in 0..kernel[1] {
                                let iy = (oy * stride[0] + ky * dilation[0]).wrapping_sub(padding[0]);
                                let ix = (ox * stride[1] + kx * dilation[1]).wrapping_sub(padding[1]);
                                if iy < h && ix < w {
                                    e += f64::from(deq[[f, (c * kernel[0] + ky) * kernel[1] + kx]])
                                        * f64::from(x[[b, g * (channels / groups) + c, iy, ix]]);
                                }
                            }
                        }
                    }
                    let tol = if arithmetic == Arithmetic::Int8 { 0.6 } else { 1e-4 };
                    assert!((f64::from(*y) - e).abs() < tol, "{y} {e} {geometry:?} {arithmetic:?}");
                }
            }
        }
    }
}
