//! How fast every format goes in and out, against reading its input and copying it, and nothing else:
//! `cargo run --release --no-default-features --example format_speed [DIRECTORY] [TENSORS]`. Makes a file of TENSORS
//! (20: a third of a gigabyte) times 4096 × 16384 weights as TQ2_0 in the directory, packs it, exports it to each
//! format, packs what can be packed again, and removes everything. Medians of three rounds. What comes back has to have
//! the codes that it began with.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use twn_pack::export::{self, WriteOptions};
use twn_pack::{AtomicFile, Container, MappedFile, Plan, Rules, Tensor, convert, import};

const ROWS: usize = 4096;
const BLOCKS: usize = 64;
const TILE: usize = 1 << 18;
const ROUNDS: usize = 3;

/// What each format's file is called here, and whether it is read again.
const FORMATS: [(&str, &str, bool); 8] = [
    ("safetensors", "packed.safetensors", false),
    ("tq1_0", "tq1_0.gguf", true),
    ("tq2_0", "tq2_0.gguf", true),
    ("q2_0", "q2_0.gguf", true),
    ("bitnet", "bitnet.safetensors", true),
    ("gptq", "gptq.safetensors", false),
    ("onnx", "int2.onnx", true),
    ("onnx-nbits", "nbits.onnx", false),
];

fn main() -> twn_pack::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let parent = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let tensors = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(20);
    let directory = tempfile::tempdir_in(parent).expect("a directory of its own");
    let path = |name: &str| directory.path().join(name);
    let (input, twn, again, copied) = (path("in.gguf"), path("m.twn"), path("again.twn"), path("copy"));
    make(&input, tensors).expect("a GGUF file");
    std::fs::write(path("into.onnx"), model(tensors)).expect("an ONNX file");
    std::fs::write(path("into.json"), "{\"dtype\": \"float32\"}\n").expect("a config");
    pack(&input, &twn)?;
    let container = Container::open(&twn)?;
    println!("{} threads, {} bytes of weights in 2 bits", rayon::current_num_threads(), container.bytes().len());
    for (format, name, comes_back) in FORMATS {
        let output = path(name);
        measure(&format!(".twn → {format}"), &twn, &copied, || {
            let into = match format {
                "onnx" | "onnx-nbits" => Some(path("into.onnx")),
                "bitnet" => Some(path("into.json")),
                _ => None,
            };
            let options = export::Options { into, ..export::Options::default() };
            let export = export::format(format)?.export(&container, &options)?;
            export::write(&container, &export, &output, &WriteOptions { overwrite: true, ..WriteOptions::default() })?;
            Ok(())
        })?;
        if comes_back {
            measure(&format!("{format} → .twn"), &output, &copied, || pack(&output, &again))?;
            same_codes(&container, &Container::open(&again)?);
        }
        std::fs::remove_file(&output).expect("it is there");
    }
    Ok(())
}

fn pack(input: &Path, output: &Path) -> twn_pack::Result<()> {
    let checkpoint = import::open(input)?;
    let options = convert::Options { overwrite: true, ..convert::Options::default() };
    convert::pack(&checkpoint, &Plan::new(&checkpoint, &Rules::default())?, output, &options)?;
    Ok(())
}

fn same_codes(one: &Container, other: &Container) {
    for (name, tensor) in one.tensors() {
        match (tensor, other.by_name(name)) {
            (Tensor::Ternary(one), Some(Tensor::Ternary(other))) => assert!(one.packed() == other.packed(), "{name}"),
            _ => panic!("{name} did not come back as ternary"),
        }
    }
}

/// Runs it a few times, each time after reading and after copying its input.
fn measure(what: &str, input: &Path, copied: &Path, run: impl Fn() -> twn_pack::Result<()>) -> twn_pack::Result<()> {
    let bytes = MappedFile::open(input)?.len();
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let steps: [&dyn Fn() -> twn_pack::Result<()>; 3] = [&|| read(input), &|| copy(input, copied), &run];
        for (rates, step) in rates.iter_mut().zip(steps) {
            let begin = Instant::now();
            step()?;
            rates.push(bytes as f64 / begin.elapsed().as_secs_f64() / 1e9);
        }
    }
    let [reading, copying, rate] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    });
    println!(
        "{what:<22} {rate:6.2} GB/s; reading {reading:6.2}, ratio {:.2}; copying {copying:5.2}, ratio {:.2}",
        rate / reading,
        rate / copying
    );
    Ok(())
}

/// Every byte looked at, on all threads.
fn read(path: &Path) -> twn_pack::Result<()> {
    let file = MappedFile::open(path)?;
    let sum =
        |tile: &[u8]| tile.as_chunks::<8>().0.iter().fold(0u64, |sum, x| sum.wrapping_add(u64::from_le_bytes(*x)));
    std::hint::black_box(file.par_chunks(TILE).map(sum).reduce(|| 0, u64::wrapping_add));
    Ok(())
}

/// From one mapped file into another, on all threads, synced and published as an export is.
fn copy(from: &Path, to: &Path) -> twn_pack::Result<()> {
    let file = MappedFile::open(from)?;
    let output = AtomicFile::create(to, true)?;
    file.par_chunks(TILE).enumerate().try_for_each(|(i, tile)| output.write_at(tile, (i * TILE) as u64))?;
    output.publish()
}

fn name(tensor: usize) -> String {
    format!("blk.{tensor}.ffn_up.weight")
}

/// Random codes, one scale per tensor, which every format has room for.
fn make(path: &Path, tensors: usize) -> std::io::Result<()> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors as u64).to_le_bytes());
    header.extend(0u64.to_le_bytes());
    for tensor in 0..tensors {
        header.extend(text(&name(tensor)));
        header.extend(2u32.to_le_bytes());
        header.extend((256 * BLOCKS as u64).to_le_bytes());
        header.extend((ROWS as u64).to_le_bytes());
        header.extend(35u32.to_le_bytes());
        header.extend(((tensor * ROWS * BLOCKS * 66) as u64).to_le_bytes());
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let mut file = BufWriter::with_capacity(TILE, File::create(path)?);
    file.write_all(&header)?;
    let valid: Vec<u8> = (0..=255u8).filter(|byte| byte & byte >> 1 & 0x55 == 0).collect();
    let mut state = 1u32;
    for tensor in 0..tensors {
        let scale = half::f16::from_f32(0.01 + tensor as f32 / 1000.0).to_le_bytes();
        for _ in 0..ROWS * BLOCKS {
            let codes: [u8; 64] = std::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                valid[(state >> 16) as usize % valid.len()]
            });
            file.write_all(&codes)?;
            file.write_all(&scale)?;
        }
    }
    file.flush()
}

/// A model of as many products, whose weights are said to lie in a file that nobody needs.
fn model(tensors: usize) -> Vec<u8> {
    fn int(number: u64, mut value: u64) -> Vec<u8> {
        let mut bytes = vec![(number * 8) as u8];
        while value > 127 {
            bytes.push(value as u8 | 128);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }
    fn message(number: u64, value: &[u8]) -> Vec<u8> {
        let mut bytes = int(number, value.len() as u64);
        bytes[0] |= 2;
        [bytes, value.to_vec()].concat()
    }
    let mut graph = Vec::new();
    for tensor in 0..tensors {
        let (x, w, y) = (format!("x{tensor}"), name(tensor), format!("y{tensor}"));
        let by_row = [message(1, b"transB"), int(3, 1), vec![0xa0, 0x01, 2]].concat();
        let node = [message(1, x.as_bytes()), message(1, w.as_bytes()), message(2, y.as_bytes()), message(4, b"Gemm")];
        graph.extend(message(1, &[node.concat(), message(5, &by_row)].concat()));
        let place = [message(1, b"location"), message(2, b"nowhere.bin")].concat();
        let dims = [int(1, ROWS as u64), int(1, 256 * BLOCKS as u64)].concat();
        let tensor = [dims, int(2, 1), message(8, w.as_bytes()), message(13, &place), int(14, 1)].concat();
        graph.extend(message(5, &tensor));
    }
    [int(1, 10), message(7, &graph), message(8, &int(2, 21))].concat()
}
