//! The loops by themselves, in the cache, per instruction set: weights per second of sums,
//! thresholds and whole ternarization. For whole commands see `ratios.rs`.
//!
//! `cargo bench --bench kernels`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use twn_pack::ternarize::{Optimal, Ternarizer, Unit};
use twn_pack::{Dtype, Isa, Settings, TensorView, convert};

const FILTERS: usize = 16;
const N: usize = 4096;

fn weights() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let normal = |_| (0.02 * (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..FILTERS * N).map(normal).collect()
}

fn sums(c: &mut Criterion) {
    let weights = weights();
    let mut group = c.benchmark_group("sums");
    group.throughput(Throughput::Elements((FILTERS * N) as u64));
    for isa in Isa::all() {
        let units: Vec<Unit<'_>> = weights.chunks(N).map(|filter| Unit::from_f32(isa, filter)).collect();
        group.bench_function(BenchmarkId::new("moments", isa.name()), |b| {
            b.iter(|| {
                weights.chunks(N).for_each(|filter| {
                    let _ = black_box(Unit::from_f32(isa, filter));
                })
            });
        });
        group.bench_function(BenchmarkId::new("above", isa.name()), |b| {
            b.iter(|| {
                units.iter().for_each(|unit| {
                    let _ = black_box(unit.above(black_box(0.011)));
                })
            });
        });
        group.bench_function(BenchmarkId::new("optimal threshold", isa.name()), |b| {
            b.iter(|| {
                units.iter().for_each(|unit| {
                    let _ = black_box(Optimal.threshold(unit));
                })
            });
        });
    }
    group.finish();
}

fn whole(c: &mut Criterion) {
    let weights = weights();
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let tensor = TensorView::new("w", Dtype::F32, &[FILTERS, N], &bytes);
    let mut group = c.benchmark_group("ternarize in memory");
    group.throughput(Throughput::Elements((FILTERS * N) as u64));
    for text in
        ["method=twn", "method=twn,encoding=t5", "method=optimal", "method=bwn", "method=twn,granularity=group:64"]
    {
        let treatment = Settings::parse(text).and_then(|s| s.treatment()).expect("settings that exist");
        for isa in Isa::all() {
            group.bench_function(BenchmarkId::new(text, isa.name()), |b| {
                b.iter(|| black_box(convert::ternarize(tensor, &treatment, isa)).expect("finite weights"));
            });
        }
    }
    group.finish();
}

/// Weights of 16 bits, as the file has them.
fn halves(c: &mut Criterion) {
    let weights = weights();
    let f16s: Vec<u8> = weights.iter().flat_map(|&w| half::f16::from_f32(w).to_le_bytes()).collect();
    let bf16s: Vec<u8> = weights.iter().flat_map(|&w| half::bf16::from_f32(w).to_le_bytes()).collect();
    let mut group = c.benchmark_group("ternarize halves in memory");
    group.throughput(Throughput::Elements((FILTERS * N) as u64));
    let treatment = Settings::parse("method=twn").and_then(|s| s.treatment()).expect("settings that exist");
    for (dtype, data) in [(Dtype::F16, &f16s), (Dtype::BF16, &bf16s)] {
        let tensor = TensorView::new("w", dtype, &[FILTERS, N], data);
        for isa in Isa::all() {
            group.bench_function(BenchmarkId::new(dtype.to_string(), isa.name()), |b| {
                b.iter(|| black_box(convert::ternarize(tensor, &treatment, isa)).expect("finite weights"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, sums, whole, halves);
criterion_main!(benches);
