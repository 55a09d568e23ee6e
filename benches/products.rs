//! Products of packed weights against the memory's own speed and against `f32`, as one table.
//!
//! `cargo bench --bench products` (a few minutes; `-- SECONDS` for each line, 0.3 by default)
//!
//! From memory: the weights rotate among copies of 512 MiB together, so that no cache holds them.
//! "read" sums the same bytes, several streams at a time. Activations are laid down, and rounded,
//! within the time.

use std::hint::black_box;
use std::time::Instant;

use ndarray::linalg::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::ParallelSlice;
use twn_pack::kernel::{Arithmetic, Kernel, PackedMatrix, Workspace};
use twn_pack::{Encoding, Granularity, Isa};

/// More than any cache.
const MEMORY: usize = 512 << 20;

fn main() {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0.3);
    let codes: Vec<u8> = random().map(valid).take(MEMORY).collect();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| table(threads, &codes, seconds));
    }
}

fn table(threads: usize, codes: &[u8], seconds: f64) {
    let read = codes.len() as f64 / time(seconds, || read(threads, codes));
    println!("\n{threads} thread(s): plain reading {:.1} GB/s\n", read / 1e9);
    println!(
        "{:<12} {:>7} {:<10} {:<10} {:>16} {:>14} {:>12}",
        "weights", "columns", "arithmetic", "set", "G weights·col/s", "of reading", "against f32"
    );
    for (filters, n) in [(4096, 4096), (11008, 4096), (8192, 28672)] {
        let f32_of = |columns| dense(filters, n, columns, seconds);
        for columns in [1, 8, 32, 512] {
            let dense = f32_of(columns);
            line(filters, n, columns, "f32", "", dense, None, dense);
            for arithmetic in [Arithmetic::Int8, Arithmetic::ExactF32] {
                let rate = packed(codes, filters, n, columns, Kernel::new(arithmetic).unwrap(), seconds);
                let share = (columns == 1).then_some(rate / 4.0 / read);
                line(filters, n, columns, name(arithmetic), "", rate, share, dense);
            }
        }
    }
    let in_cache = &codes[..256 * 4096 / 4];
    for columns in [1, 512] {
        let dense = dense(256, 4096, columns, seconds);
        line(256, 4096, columns, "f32", "", dense, None, dense);
        for arithmetic in [Arithmetic::Int8, Arithmetic::ExactF32] {
            for isa in Isa::all() {
                let rate = packed(in_cache, 256, 4096, columns, Kernel::with_isa(arithmetic, isa), seconds);
                line(256, 4096, columns, name(arithmetic), isa.name(), rate, None, dense);
            }
        }
    }
}

fn name(arithmetic: Arithmetic) -> &'static str {
    match arithmetic {
        Arithmetic::Int8 => "int8",
        Arithmetic::ExactF32 => "exact f32",
    }
}

#[expect(clippy::too_many_arguments, reason = "the columns of a table")]
fn line(filters: usize, n: usize, columns: usize, what: &str, isa: &str, rate: f64, share: Option<f64>, dense: f64) {
    let share = share.map_or(String::new(), |share| format!("{share:.2}"));
    let shape = format!("{filters}x{n}");
    let (rate, against) = (rate / 1e9, rate / dense);
    println!("{shape:<12} {columns:>7} {what:<10} {isa:<10} {rate:>16.1} {share:>14} {against:>12.2}");
}

/// Weights × columns per second of packed matrices that rotate through `codes`.
fn packed(codes: &[u8], filters: usize, n: usize, columns: usize, kernel: Kernel, seconds: f64) -> f64 {
    let scales = vec![0.02; filters];
    let matrices: Vec<PackedMatrix<'_>> = codes
        .chunks_exact(filters * n / 4)
        .map(|codes| {
            PackedMatrix::from_parts(Encoding::T2, [1, filters, n], Granularity::Filter, codes, &scales[..]).unwrap()
        })
        .collect();
    let x = activations(n, columns);
    let mut y = Array2::zeros((filters, columns));
    let mut workspace = Workspace::default();
    let mut next = (0..matrices.len()).cycle();
    let took = time(seconds, || {
        kernel.matrix(&matrices[next.next().unwrap()], x.view(), y.view_mut(), &mut workspace).unwrap();
        black_box(&y);
    });
    (filters * n * columns) as f64 / took
}

/// The same of `ndarray` (`matrixmultiply`) on as many threads as the pool has.
fn dense(filters: usize, n: usize, columns: usize, seconds: f64) -> f64 {
    let copies = if filters * n < 1 << 21 { 1 } else { (MEMORY / (filters * n * 4)).max(1) };
    let w: Vec<Array2<f32>> = (0..copies).map(|_| activations(filters, n)).collect();
    let x = activations(n, columns);
    let mut y = Array2::zeros((filters, columns));
    let mut next = (0..copies).cycle();
    let took = time(seconds, || {
        let w = &w[next.next().unwrap()];
        let rows = filters.div_ceil(rayon::current_num_threads());
        y.axis_chunks_iter_mut(Axis(0), rows)
            .into_par_iter()
            .zip(w.axis_chunks_iter(Axis(0), rows).into_par_iter())
            .for_each(|(mut y, w): (_, ArrayView2<'_, f32>)| {
                if columns == 1 {
                    y.column_mut(0).assign(&w.dot(&x.column(0)));
                } else {
                    general_mat_mul(1.0, &w, &x, 0.0, &mut y);
                }
            });
        black_box(&y);
    });
    (filters * n * columns) as f64 / took
}

/// Reads every byte, eight streams per thread.
fn read(threads: usize, codes: &[u8]) {
    let sum: u64 = codes
        .par_chunks(codes.len() / threads)
        .map(|codes| {
            let words: &[u64] = bytemuck::cast_slice(codes);
            let (streams, _) = words.as_chunks::<8>();
            let quarter = streams.len() / 8;
            let streams: [&[[u64; 8]]; 8] = std::array::from_fn(|s| &streams[s * quarter..(s + 1) * quarter]);
            let mut sums = [[0u64; 8]; 8];
            for i in 0..quarter {
                for (sums, stream) in sums.iter_mut().zip(&streams) {
                    for (sum, word) in sums.iter_mut().zip(stream[i]) {
                        *sum ^= word;
                    }
                }
            }
            sums.as_flattened().iter().fold(0, |all, sum| all ^ sum)
        })
        .sum();
    black_box(sum);
}

/// The median time of one call, after one to warm up.
fn time(seconds: f64, mut run: impl FnMut()) -> f64 {
    run();
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || start.elapsed().as_secs_f64() < seconds {
        let one = Instant::now();
        run();
        times.push(one.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn activations(rows: usize, columns: usize) -> Array2<f32> {
    let mut random = random();
    Array2::from_shape_simple_fn((rows, columns), || f32::from(random.next().unwrap()) / 128.0 - 1.0)
}

/// Invalid codes become zeros.
fn valid(byte: u8) -> u8 {
    let both = byte & byte >> 1 & 0x55;
    byte & !(both << 1)
}

fn random() -> impl Iterator<Item = u8> {
    let mut state = 1u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}
