//! How fast GGUF goes in and out, against reading and writing the same bytes and nothing else:
//! `cargo run --release --no-default-features --example gguf_speed [DIRECTORY] [TENSORS]`. Makes a file of TENSORS
//! (60: a gigabyte) times 4096 × 16384 weights as TQ2_0 in the directory, packs it, exports it as each type, and
//! removes everything. What comes back as TQ2_0 has to be the file it began with, but for the keys.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use twn_pack::export::{self, WriteOptions};
use twn_pack::{AtomicFile, Container, MappedFile, Plan, Rules, convert, import};

const ROWS: usize = 4096;
const BLOCKS: usize = 64;
const TILE: usize = 1 << 20;

fn main() -> twn_pack::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let tensors = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(60);
    let path = |name: &str| directory.join(format!("gguf-speed.{name}"));
    let (input, twn, copy, output) = (path("in.gguf"), path("twn"), path("copy"), path("out.gguf"));
    make(&input, tensors).expect("a file of its own");
    for round in 0..2 {
        let (rate, bytes) = (read(&input)?, MappedFile::open(&input)?.len());
        println!("round {round}: {bytes} bytes; reading {rate:.2} GB/s, copying {:.2} GB/s", write(&input, &copy)?);
        let begin = Instant::now();
        let checkpoint = import::open(&input)?;
        let options = convert::Options { overwrite: true, ..convert::Options::default() };
        convert::pack(&checkpoint, &Plan::new(&checkpoint, &Rules::default())?, &twn, &options)?;
        report("TQ2_0 → .twn", begin.elapsed(), bytes, read(&input)?, write(&input, &copy)?);
        let container = Container::open(&twn)?;
        for format in ["tq1_0", "tq2_0", "q2_0"] {
            let begin = Instant::now();
            let export = export::format(format)?.export(&container, &export::Options::default())?;
            export::write(&container, &export, &output, &WriteOptions { overwrite: true, ..WriteOptions::default() })?;
            report(
                &format!(".twn → {format}"),
                begin.elapsed(),
                container.bytes().len(),
                read(&twn)?,
                write(&twn, &copy)?,
            );
            let data = tensors * ROWS * BLOCKS * 66;
            if format == "tq2_0" {
                let (old, new) = (MappedFile::open(&input)?, MappedFile::open(&output)?);
                assert!(old[old.len() - data..] == new[new.len() - data..], "the same blocks");
            }
        }
    }
    [input, twn, copy, output].iter().for_each(|path| drop(std::fs::remove_file(path)));
    Ok(())
}

fn report(what: &str, took: Duration, bytes: usize, read: f64, write: f64) {
    let rate = bytes as f64 / took.as_secs_f64() / 1e9;
    println!("  {what}: {rate:.2} GB/s, {:.2} of reading, {:.2} of copying", rate / read, rate / write);
}

/// Gigabytes a second, every byte looked at on all threads.
fn read(path: &Path) -> twn_pack::Result<f64> {
    let (begin, file) = (Instant::now(), MappedFile::open(path)?);
    let sum =
        |tile: &[u8]| tile.as_chunks::<8>().0.iter().fold(0u64, |sum, x| sum.wrapping_add(u64::from_le_bytes(*x)));
    std::hint::black_box(file.par_chunks(TILE).map(sum).reduce(|| 0, u64::wrapping_add));
    Ok(file.len() as f64 / begin.elapsed().as_secs_f64() / 1e9)
}

/// Gigabytes a second from one mapped file into another, on all threads, published as an export is.
fn write(from: &Path, to: &Path) -> twn_pack::Result<f64> {
    let (begin, file) = (Instant::now(), MappedFile::open(from)?);
    let output = AtomicFile::create(to, true)?;
    file.par_chunks(TILE).enumerate().try_for_each(|(i, tile)| output.write_at(tile, (i * TILE) as u64))?;
    output.publish()?;
    Ok(file.len() as f64 / begin.elapsed().as_secs_f64() / 1e9)
}

/// Random codes, one scale per row.
fn make(path: &Path, tensors: usize) -> std::io::Result<()> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors as u64).to_le_bytes());
    header.extend(0u64.to_le_bytes());
    for tensor in 0..tensors {
        header.extend(text(&format!("blk.{tensor}.ffn_up.weight")));
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
    for row in 0..tensors * ROWS {
        let scale = half::f16::from_f32(0.01 + (row % 97) as f32 / 1000.0).to_le_bytes();
        for _ in 0..BLOCKS {
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
