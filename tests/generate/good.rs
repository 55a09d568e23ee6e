//! Checkpoints as they should be, each with something in it that is easy to get wrong.

use super::Files;
use super::bytes::{Lcg, Safetensors, floats};

pub fn checkpoints() -> Files {
    let mut files: Files = [
        ("every-dtype.safetensors", every_dtype()),
        ("odd-lengths.safetensors", odd_lengths()),
        ("edges.safetensors", edges()),
        ("ranks.safetensors", ranks()),
        ("layouts.safetensors", layouts()),
        ("unaligned.safetensors", unaligned()),
        ("metadata.safetensors", metadata()),
        ("long-filter.safetensors", long_filter()),
        ("no-tensors.safetensors", Safetensors::default().build()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    files.extend(sharded());
    files
}

fn every_dtype() -> Vec<u8> {
    // Every finite byte of both 8-bit types: E4M3 has two NaNs, E5M2 two infinities and six NaNs.
    let e4m3: Vec<u8> = (0..=255).filter(|b| b & 0x7f != 0x7f).collect();
    let e5m2: Vec<u8> = (0..=255).filter(|b| b & 0x7c != 0x7c).collect();
    let integers = |width: usize| (0..6 * width as u8).map(|b| b.wrapping_mul(37)).collect::<Vec<u8>>();
    Safetensors::default()
        .random("f64.weight", "F64", &[4, 15], 1)
        .tensor("i64.weight", "I64", &[2, 3], &integers(8))
        .random("f32.weight", "F32", &[4, 3, 5], 2)
        .tensor("i32.weight", "I32", &[2, 3], &integers(4))
        .random("bf16.weight", "BF16", &[4, 15], 3)
        .random("f16.weight", "F16", &[4, 15], 4)
        .tensor("f8_e4m3.weight", "F8_E4M3", &[2, 127], &e4m3)
        .tensor("f8_e5m2.weight", "F8_E5M2", &[8, 31], &e5m2)
        .tensor("u8.weight", "U8", &[2, 3], &integers(1))
        .tensor("bool.mask", "BOOL", &[2, 3], &[1, 0, 0, 1, 1, 0])
        .build()
}

/// Filter lengths around the groups of 4, 5, 8 and 16 in which weights are packed and summed.
fn odd_lengths() -> Vec<u8> {
    let mut file = Safetensors::default();
    for (seed, n) in (10..).zip([1, 3, 4, 5, 31, 257]) {
        file = file.random(&format!("f32.{n:03}"), "F32", &[3, n], seed);
    }
    for (seed, n) in (20..).zip([1, 3, 4, 5, 31, 257]) {
        file = file.random(&format!("bf16.{n:03}"), "BF16", &[3, n], seed);
    }
    file.build()
}

fn edges() -> Vec<u8> {
    let tiny = f64::from(f32::from_bits(1));
    let mut zero_filter = Lcg(30).weights(3 * 6);
    zero_filter[6..12].fill(0.0);
    let negative_zeros: Vec<f64> = [-0.0, 0.5, -0.0, -0.5, 0.0, -0.25, -0.0, -0.0].to_vec();
    let denormals: Vec<f64> = (0..10).map(|i| f64::from(i - 5) * 3.0 * tiny).collect();
    let half_denormals: Vec<f64> = (0..10).map(|i| f64::from(i - 5) / 16_777_216.0).collect();
    let ternary_already: Vec<f64> = (0..12).map(|i| f64::from(i % 3 - 1) * 0.125).collect();
    // The mean is 1, so Δ of `absmean` is 0.5 exactly, and two weights lie on it.
    let ties = [0.5, -0.5, 1.0, -2.0];
    let wide = [1e-30, -1e30, 3e29, 2e-38, -7e29, 1.0];
    Safetensors::default()
        .tensor("f64.wide", "F64", &[2, 3], &floats("F64", &wide))
        .tensor("denormals", "F32", &[2, 5], &floats("F32", &denormals))
        .tensor("negative_zeros", "F32", &[2, 4], &floats("F32", &negative_zeros))
        .tensor("scalar", "F32", &[], &floats("F32", &[3.5]))
        .tensor("ternary_already", "F32", &[3, 4], &floats("F32", &ternary_already))
        .tensor("ties", "F32", &[1, 4], &floats("F32", &ties))
        .tensor("zero_filter", "F32", &[3, 6], &floats("F32", &zero_filter))
        .tensor("zeros", "F32", &[2, 3], &floats("F32", &[0.0; 6]))
        .tensor("zero_size.columns", "F32", &[3, 0], &[])
        .tensor("zero_size.rank1", "F32", &[0], &[])
        .tensor("zero_size.rows", "BF16", &[0, 3], &[])
        .tensor("half_denormals", "F16", &[2, 5], &floats("F16", &half_denormals))
        .tensor("scalar.bool", "BOOL", &[], &[1])
        .build()
}

fn ranks() -> Vec<u8> {
    Safetensors::default()
        .random("rank1", "F32", &[7], 40)
        .random("rank2", "F32", &[3, 5], 41)
        .random("rank3", "F32", &[2, 3, 4], 42)
        .random("rank4", "F32", &[2, 3, 2, 3], 43)
        .random("rank5", "F32", &[2, 3, 1, 2, 2], 44)
        .build()
}

/// Small: every encoding, granularity and axis is packed from it.
fn layouts() -> Vec<u8> {
    Safetensors::default().random("a", "F32", &[4, 3, 5], 50).random("b", "BF16", &[7, 9], 51).build()
}

/// A header of odd length, and three bytes before the floats.
fn unaligned() -> Vec<u8> {
    Safetensors::default()
        .tensor("0.bytes", "U8", &[3], &[1, 2, 3])
        .random("1.weight", "F32", &[3, 9], 60)
        .random("2.weight", "F16", &[3, 9], 61)
        .random("3.weight", "F64", &[3, 9], 62)
        .build_unaligned()
}

fn metadata() -> Vec<u8> {
    Safetensors::default()
        .metadata("format", "pt")
        .metadata("empty", "")
        .metadata("quotes \"and\" \\", "line\nbreak, tab\t, null \u{0}")
        .metadata("ünïcödé", "三値 🙂")
        .random("weight", "F32", &[2, 4], 70)
        .build()
}

/// One filter much longer than the others, as a language-model head beside biases.
fn long_filter() -> Vec<u8> {
    Safetensors::default().random("long", "BF16", &[1, 5_000], 80).random("short", "BF16", &[40, 3], 81).build()
}

fn sharded() -> Files {
    let first = Safetensors::default()
        .metadata("format", "pt")
        .random("layers.0.weight", "F32", &[3, 8], 90)
        .random("layers.0.bias", "F32", &[3], 91)
        .build();
    let second = Safetensors::default()
        .metadata("format", "pt")
        .random("layers.1.weight", "BF16", &[5, 3], 92)
        .random("embed.weight", "F32", &[4, 3], 93)
        .build();
    // As the usual writers leave it; `total_size` is often wrong, and nobody may rely on it.
    let index = concat!(
        r#"{"metadata": {"total_size": 1}, "weight_map": {"#,
        r#""embed.weight": "model-00002-of-00002.safetensors", "#,
        r#""layers.0.bias": "model-00001-of-00002.safetensors", "#,
        r#""layers.0.weight": "model-00001-of-00002.safetensors", "#,
        r#""layers.1.weight": "model-00002-of-00002.safetensors"}}"#
    );
    [
        ("sharded/model-00001-of-00002.safetensors", first),
        ("sharded/model-00002-of-00002.safetensors", second),
        ("sharded/model.safetensors.index.json", index.as_bytes().to_vec()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}
