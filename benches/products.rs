//! Products of packed weights against the memory's own speed and against `f32`, as one table.
//!
//! `cargo bench --bench products` (some minutes; `-- SECONDS WEIGHTS`: for each line, 0.3 by default; only
//! weights with that in their name, as 8192)
//!
//! From memory: the weights rotate among copies of 512 MiB together, so that no cache holds them.
//! "reading" is the best of several plain ways to read the same bytes. Activations are laid down,
//! and rounded, within the time. `f32` is `ndarray`'s `dot` and `general_mat_mul` (`matrixmultiply`),
//! filters split among the threads.

use std::hint::black_box;
use std::time::Instant;

use ndarray::linalg::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, Array4, ArrayView2, Axis, s};
use rayon::prelude::{ParallelSlice, ParallelSliceMut};
use twn_pack::kernel::{Arithmetic, Conv2d, Kernel, PackedMatrix, Workspace};
use twn_pack::net::dense;
use twn_pack::{Encoding, Granularity, Isa};

/// More than any cache.
const MEMORY: usize = 512 << 20;

fn main() {
    // Cargo adds a `--bench` of its own.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let seconds = args.next().and_then(|s| s.parse().ok()).unwrap_or(0.3);
    let only = args.next().unwrap_or_default();
    let mut codes = vec![0; MEMORY];
    codes.par_chunks_mut(1 << 20).for_each(|codes| {
        let random = random(codes.as_ptr() as u64);
        codes.iter_mut().zip(random).for_each(|(code, byte)| *code = valid(byte));
    });
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| table(threads, &codes, seconds, &only));
    }
}

/// One line of the table.
struct Line {
    weights: String,
    columns: usize,
    what: &'static str,
    set: &'static str,
    /// Weights × columns per second.
    rate: f64,
    /// Bytes of weights per second, of what plain reading gives.
    of_reading: Option<f64>,
    f32_rate: f64,
}

impl Line {
    fn print(self) {
        let share = self.of_reading.map_or(String::new(), |share| format!("{share:.2}"));
        println!(
            "{:<14} {:>7} {:<14} {:<10} {:>9.1} {:>10} {:>11.2}",
            self.weights,
            self.columns,
            self.what,
            self.set,
            self.rate / 1e9,
            share,
            self.rate / self.f32_rate
        );
    }
}

fn table(threads: usize, codes: &[u8], seconds: f64, only: &str) {
    let ways = [(1, false), (2, false), (4, false), (4, true), (8, false), (8, true)];
    let times = ways.map(|(streams, ahead)| time(seconds, || read(threads, codes, streams, ahead)));
    let best = (0..ways.len()).min_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap();
    let reading = || read(threads, codes, ways[best].0, ways[best].1);
    let rate = codes.len() as f64 / times[best] / 1e9;
    println!("\n{threads} thread(s): plain reading {rate:.1} GB/s; G is 10⁹ weights × columns per second\n");
    println!(
        "{:<14} {:>7} {:<14} {:<10} {:>9} {:>10} {:>11}",
        "weights", "columns", "arithmetic", "set", "G", "of reading", "against f32"
    );
    for (filters, n) in [(4096, 4096), (11008, 4096), (8192, 28672)] {
        let weights = format!("{filters}×{n}");
        if !weights.contains(only) {
            continue;
        }
        for columns in [1, 8, 32, 512] {
            let f32_rate = dense_matrix(filters, n, columns, seconds);
            let line = |what, set, rate, of_reading| {
                Line { weights: weights.clone(), columns, what, set, rate, of_reading, f32_rate }.print();
            };
            line("f32", "", f32_rate, None);
            for arithmetic in [Arithmetic::Int8, Arithmetic::ExactF32] {
                let layout = Layout { encoding: Encoding::T2, group: None, filters, n };
                let rate = layout.rate(codes, columns, Kernel::new(arithmetic).unwrap(), seconds);
                let share = (columns == 1).then(|| layout.of_reading(codes, Kernel::new(arithmetic).unwrap(), reading));
                line(name(arithmetic), "", rate, share);
            }
        }
    }
    if "256×4096".contains(only) {
        in_cache(codes, seconds);
    }
    for batch in [1, 32].into_iter().filter(|_| "conv 3×3".contains(only)) {
        convolution(codes, batch, seconds);
    }
}

/// Every instruction set, encoding and group, on weights that stay in the cache.
fn in_cache(codes: &[u8], seconds: f64) {
    let (filters, n) = (256, 4096);
    let weights = format!("{filters}×{n}");
    for columns in [1, 8, 32, 512] {
        let f32_rate = dense_matrix(filters, n, columns, seconds);
        let line = |what, set, rate| {
            Line { weights: weights.clone(), columns, what, set, rate, of_reading: None, f32_rate }.print()
        };
        line("f32", "", f32_rate);
        for arithmetic in [Arithmetic::Int8, Arithmetic::ExactF32] {
            for isa in Isa::all() {
                let layout = Layout { encoding: Encoding::T2, group: None, filters, n };
                let kernel = Kernel::with_isa(arithmetic, isa);
                line(name(arithmetic), isa.name(), layout.rate(codes, columns, kernel, seconds));
            }
        }
        for (what, encoding, group) in [
            ("int8 t5", Encoding::T5, None),
            ("int8 b1", Encoding::B1, None),
            ("int8 group:64", Encoding::T2, Some(64)),
        ] {
            let layout = Layout { encoding, group, filters, n };
            line(what, "", layout.rate(codes, columns, Kernel::new(Arithmetic::Int8).unwrap(), seconds));
        }
    }
}

fn name(arithmetic: Arithmetic) -> &'static str {
    match arithmetic {
        Arithmetic::Int8 => "int8",
        Arithmetic::ExactF32 => "exact f32",
    }
}

/// How a matrix is packed.
#[derive(Clone, Copy)]
struct Layout {
    encoding: Encoding,
    group: Option<u64>,
    filters: usize,
    n: usize,
}

impl Layout {
    /// Weights × columns per second of matrices that rotate through `codes`.
    fn rate(self, codes: &[u8], columns: usize, kernel: Kernel, seconds: f64) -> f64 {
        let (_, mut product) = self.products(codes, columns, kernel);
        (self.filters * self.n * columns) as f64 / time(seconds, &mut product)
    }

    /// The bytes per second of products with one column, of what plain reading gives; each is measured right
    /// after the other, since the memory's speed changes with what else the machine does.
    fn of_reading(self, codes: &[u8], kernel: Kernel, reading: impl Fn()) -> f64 {
        let (copies, mut product) = self.products(codes, 1, kernel);
        let once = |run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        };
        let bytes = copies * self.filters * self.encoding.bytes(self.n);
        let mut ratios: Vec<f64> = (0..15)
            .map(|_| {
                let read = once(&mut || reading()) / codes.len() as f64;
                read / (once(&mut || (0..copies).for_each(|_| product())) / bytes as f64)
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    }

    /// How many matrices there are in `codes`, and the product with the next of them.
    fn products(self, codes: &[u8], columns: usize, kernel: Kernel) -> (usize, impl FnMut()) {
        let Self { encoding, group, filters, n } = self;
        let granularity = group.map_or(Granularity::Filter, Granularity::Group);
        let scales = vec![0.02; granularity.scales(filters as u64, n as u64) as usize];
        let bytes = filters * encoding.bytes(n);
        // Small ones stay in the cache.
        let copies = if bytes < 1 << 20 { 1 } else { codes.len() / bytes };
        let x = activations(n, columns);
        let mut y = Array2::zeros((filters, columns));
        let mut workspace = Workspace::default();
        let mut next = (0..copies).cycle();
        let product = move || {
            let codes = &codes[next.next().unwrap() * bytes..][..bytes];
            let w = PackedMatrix::from_parts(encoding, [1, filters, n], granularity, codes, &scales[..]).unwrap();
            kernel.matrix(&w, x.view(), y.view_mut(), &mut workspace).unwrap();
            black_box(&y);
        };
        (copies, product)
    }
}

/// The same in `f32`.
fn dense_matrix(filters: usize, n: usize, columns: usize, seconds: f64) -> f64 {
    let copies = if filters * n < 1 << 21 { 1 } else { (MEMORY / (filters * n * 4)).max(1) };
    let w: Vec<Array2<f32>> = (0..copies).map(|_| activations(filters, n)).collect();
    let x = activations(n, columns);
    let mut y = Array2::zeros((filters, columns));
    let mut next = w.iter().cycle();
    let took = time(seconds, || {
        let rows = filters.div_ceil(rayon::current_num_threads());
        let w = next.next().unwrap().axis_chunks_iter(Axis(0), rows).into_par_iter();
        let y_rows = y.axis_chunks_iter_mut(Axis(0), rows).into_par_iter();
        y_rows.zip(w).for_each(|(mut y, w): (_, ArrayView2<'_, f32>)| {
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

/// 256 filters of 3×3 over 256 channels of 16×16, against im2col and a matrix product in `f32`.
fn convolution(codes: &[u8], batch: usize, seconds: f64) {
    let (filters, n, geometry) = (256, 256 * 9, Conv2d { padding: [1, 1], ..Conv2d::new([3, 3]) });
    let x = activations(batch * 256, 256).into_shape_with_order((batch, 256, 16, 16)).unwrap();
    let mut y = Array4::zeros((batch, filters, 16, 16));
    let work = (filters * n * batch * 256) as f64;
    let w = activations(filters, n);
    let mut columns = vec![Vec::new(); 2];
    let f32_rate = work
        / time(seconds, || {
            let half = filters / 2;
            if batch > 1 || rayon::current_num_threads() == 1 {
                let y = y.view_mut();
                dense::conv2d(w.view(), None, &geometry, x.view(), y, &mut columns[0]).unwrap();
            } else {
                // One image: each thread takes half of the filters.
                let (y0, y1) = y.view_mut().split_at(Axis(1), half);
                let (c0, c1) = columns.split_at_mut(1);
                let conv = |rows, y, columns: &mut Vec<f32>| {
                    dense::conv2d(w.slice(s![rows, ..]), None, &geometry, x.view(), y, columns).unwrap();
                };
                rayon::join(|| conv(0..half, y0, &mut c0[0]), || conv(half..filters, y1, &mut c1[0]));
            }
            black_box(&y);
        });
    let line = |what, rate| {
        let weights = format!("conv 3×3 ×{batch}");
        Line { weights, columns: 256 * batch, what, set: "", rate, of_reading: None, f32_rate }.print();
    };
    line("f32", f32_rate);
    let scales = vec![0.02; filters];
    let w = PackedMatrix::from_parts(
        Encoding::T2,
        [1, filters, n],
        Granularity::Filter,
        &codes[..filters * n / 4],
        &scales[..],
    );
    let (w, mut workspace) = (w.unwrap(), Workspace::default());
    for arithmetic in [Arithmetic::Int8, Arithmetic::ExactF32] {
        let kernel = Kernel::new(arithmetic).unwrap();
        let took = time(seconds, || {
            kernel.conv2d(&w, None, &geometry, x.view(), y.view_mut(), &mut workspace).unwrap();
            black_box(&y);
        });
        line(name(arithmetic), work / took);
    }
}

/// Reads every byte, so many streams per thread, asking for what comes or not.
fn read(threads: usize, codes: &[u8], streams: usize, ahead: bool) {
    let sum: u64 = codes
        .par_chunks(codes.len() / threads)
        .map(|codes| {
            let (lines, _) = bytemuck::cast_slice::<u8, u64>(codes).as_chunks::<8>();
            let each = lines.len() / streams;
            let mut sums = [[0; 8]; 8];
            for i in 0..each {
                for (s, sums) in sums.iter_mut().enumerate().take(streams) {
                    let line = &lines[s * each + i];
                    if ahead {
                        prefetch(line);
                    }
                    sums.iter_mut().zip(line).for_each(|(sum, word)| *sum ^= word);
                }
            }
            sums.as_flattened().iter().fold(0, |all, sum| all ^ sum)
        })
        .sum();
    black_box(sum);
}

/// Asks for the line a KiB further on.
fn prefetch(line: &[u64; 8]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(128).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
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
    let mut random = random(1);
    Array2::from_shape_simple_fn((rows, columns), || f32::from(random.next().unwrap()) / 128.0 - 1.0)
}

/// Codes of 3 become 1.
fn valid(byte: u8) -> u8 {
    let both = byte & byte >> 1 & 0x55;
    byte & !(both << 1)
}

fn random(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}
