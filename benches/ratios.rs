//! The speed table of `docs/performance.md`: whole commands against the plain read bandwidth of
//! the same mapping, in one run, medians of several rounds. Not a criterion benchmark: what is
//! timed takes long enough, and what counts is the ratio.
//!
//! `cargo bench --bench ratios [-- --gib 1 --rounds 9 --dir DIR]`

use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crc32fast::Hasher;
use twn_pack::container::{ContainerWriter, Index, Producer, Stats, TensorEntry, TernaryEntry};
use twn_pack::{Dtype, Settings, memory};

/// (filters, weights per filter), again and again until the file is full.
const SHAPES: [(usize, usize); 5] = [(4096, 576), (2048, 1152), (1024, 2304), (4096, 4096), (2048, 8192)];

fn main() {
    let args = Args::parse();
    let f32s = checkpoint(&args.dir, "f32", Dtype::F32, args.gib);
    let f16s = checkpoint(&args.dir, "f16", Dtype::F16, args.gib);
    let bf16s = checkpoint(&args.dir, "bf16", Dtype::BF16, args.gib);
    let packed = args.dir.join("packed.twn");
    let verified = container(&args.dir, args.gib);
    println!("input {} GiB of f32 per command, {} rounds, medians", args.gib, args.rounds);
    for threads in [1, 2] {
        type Timed<'a> = (&'static str, Box<dyn Fn() -> f64 + 'a>);
        let (f32s, f16s, bf16s, packed, verified) = (&f32s, &f16s, &bf16s, &packed, &verified);
        let rows: Vec<Timed<'_>> = vec![
            ("read", Box::new(move || read(f32s, threads))),
            ("twn t2", Box::new(move || pack(f32s, packed, threads, &["-m", "twn"]))),
            ("twn t5", Box::new(move || pack(f32s, packed, threads, &["-m", "twn", "-e", "t5"]))),
            ("optimal t2", Box::new(move || pack(f32s, packed, threads, &["-m", "optimal"]))),
            ("absmean t2", Box::new(move || pack(f32s, packed, threads, &["-m", "absmean"]))),
            ("bwn b1", Box::new(move || pack(f32s, packed, threads, &["-m", "bwn"]))),
            ("twn f16", Box::new(move || pack(f16s, packed, threads, &["-m", "twn"]))),
            ("twn bf16", Box::new(move || pack(bf16s, packed, threads, &["-m", "twn"]))),
            ("inspect f32", Box::new(move || run(&["inspect", path(f32s), "--json"], threads))),
            ("read .twn", Box::new(move || read(verified, threads))),
            ("verify", Box::new(move || run(&["verify", path(verified)], threads))),
        ];
        let mut times = vec![Vec::new(); rows.len()];
        for _ in 0..=args.rounds {
            for (times, (_, timed)) in times.iter_mut().zip(&rows) {
                times.push(timed());
            }
        }
        // The first round warmed caches.
        let medians: Vec<f64> = times.iter_mut().map(|t| median(&mut t[1..])).collect();
        let of = |name: &str| medians[rows.iter().position(|row| row.0 == name).expect("a row of that name")];
        let weights = std::fs::metadata(f32s).expect("the input is there").len() as f64 / 4.0;
        println!("\n{threads} thread(s)      ms    G weights/s   of read bandwidth   against twn t2");
        for ((name, _), time) in rows.iter().zip(&medians) {
            let read = if matches!(*name, "verify" | "read .twn") { of("read .twn") } else { of("read") };
            // A byte of the .twn holds four weights, of the f32 input a quarter.
            let weights = if matches!(*name, "verify" | "read .twn") { 16.0 * weights } else { weights };
            println!(
                "{name:<14} {:>7.1}   {:>9.2}   {:>17.2}   {:>14.2}",
                time * 1e3,
                weights / time / 1e9,
                read / time,
                time / of("twn t2")
            );
        }
    }
    println!("\nopening a .twn of 2,000 tensors: {:.2} ms", open_many(&args.dir) * 1e3);
    if !args.keep {
        for file in [f32s, f16s, bf16s, packed, verified] {
            let _ = std::fs::remove_file(file);
        }
    }
}

struct Args {
    gib: usize,
    rounds: usize,
    dir: PathBuf,
    keep: bool,
}

impl Args {
    fn parse() -> Self {
        let args: Vec<String> = std::env::args().collect();
        let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
        let number = |name, default| value(name).map_or(default, |v| v.parse().expect("a number"));
        let dir = value("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
        let keep = args.iter().any(|a| a == "--keep");
        Self { gib: number("--gib", 1), rounds: number("--rounds", 9), dir, keep }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Maps the file, reads every byte, threads taking pieces of 1 MiB in turn, and unmaps it again, as
/// the commands do too.
fn read(file: &Path, threads: usize) -> f64 {
    let start = Instant::now();
    let file = File::open(file).expect("the input opens");
    // SAFETY: nobody else writes to the benchmark's own file.
    let map = unsafe { memmap2::Mmap::map(&file) }.expect("the input maps");
    let (next, pieces) = (AtomicUsize::new(0), map.len().div_ceil(1 << 20));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= pieces {
                        break;
                    }
                    let piece = &map[i << 20..map.len().min((i + 1) << 20)];
                    let mut lanes = [0u64; 16];
                    for chunk in piece.as_chunks::<128>().0 {
                        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
                            *lane ^= u64::from_le_bytes(*word);
                        }
                    }
                    black_box(lanes);
                }
            });
        }
    });
    drop(map);
    start.elapsed().as_secs_f64()
}

fn pack(input: &Path, output: &Path, threads: usize, more: &[&str]) -> f64 {
    // To replace a file costs what it takes the system to let go of the old one.
    let _ = std::fs::remove_file(output);
    let mut args = vec![path(input), "-o", path(output)];
    args.extend(more);
    run(&args, threads)
}

/// The whole command, from start to exit.
fn run(args: &[&str], threads: usize) -> f64 {
    let start = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_twn-pack"))
        .args(args)
        .args(["-j", &threads.to_string()])
        .stdout(Stdio::null())
        .status()
        .expect("the command starts");
    assert!(status.success(), "{args:?} failed");
    start.elapsed().as_secs_f64()
}

/// A `.twn` of `gib` GiB: one tensor in `t2`, its codes a block repeated.
fn container(dir: &Path, gib: usize) -> PathBuf {
    const N: usize = 4096;
    let path = dir.join("ratios-verify.twn");
    let settings = Settings::default().treatment().expect("the defaults");
    let block = gaussian(1 << 20);
    let block = ndarray::ArrayView2::from_shape((block.len() / N, N), &block).expect("whole filters");
    let block = memory::ternarize("w", &block, &settings).expect("finite weights");
    let times = (gib << 30) / block.packed().len();
    let mut writer = ContainerWriter::create(&path, true).expect("the directory is writable");
    let (mut codes, mut crc) = (writer.reserve((times * block.packed().len()) as u64).expect("room"), Hasher::new());
    for i in 0..times {
        writer.write_at(block.packed(), codes.offset + (i * block.packed().len()) as u64).expect("room");
        crc.update(block.packed());
    }
    codes.crc32 = crc.finalize();
    let scales = writer.section(&block.scale_bytes().repeat(times)).expect("room");
    let (once, stats) = (block.stats.clone(), |n: u64| n * times as u64);
    let stats =
        Stats { negative: stats(once.negative), zeros: stats(once.zeros), positive: stats(once.positive), ..once };
    let entry = TernaryEntry {
        axis: 0,
        calibration: None,
        codes,
        encoding: block.encoding,
        granularity: block.granularity,
        method: block.method.clone(),
        planes: 1,
        reason: String::new(),
        scale_dtype: block.scale_dtype,
        scales,
        source_bytes: None,
        stats,
    };
    let shape = vec![(times * block.filters) as u64, N as u64];
    let tensors = vec![TensorEntry::ternary("w".to_owned(), Dtype::F32, shape, entry)];
    let index = Index { metadata: BTreeMap::new(), producer: Producer::this(), tensors };
    writer.finish(&index).expect("an index that adds up");
    path
}

/// The median time of opening a file of 2,000 tensors.
fn open_many(dir: &Path) -> f64 {
    let (input, output) = (dir.join("ratios-many.safetensors"), dir.join("ratios-many.twn"));
    let entries: Vec<String> = (0..2000)
        .map(|i| {
            let name = format!("model.layers.{}.self_attn.projection_{}.weight", i / 7, i % 7);
            format!(r#""{name}":{{"dtype":"F32","shape":[16,64],"data_offsets":[{},{}]}}"#, i * 4096, (i + 1) * 4096)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let data: Vec<u8> = gaussian(2000 * 1024).iter().flat_map(|w| w.to_le_bytes()).collect();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    std::fs::write(&input, file).expect("room for the input");
    pack(&input, &output, 1, &[]);
    let mut times = Vec::new();
    for _ in 0..21 {
        let start = Instant::now();
        let container = twn_pack::Container::open(&output).expect("a good file");
        times.push(start.elapsed().as_secs_f64());
        assert_eq!(container.tensors().len(), 2000);
    }
    for file in [input, output] {
        let _ = std::fs::remove_file(file);
    }
    median(&mut times)
}

/// Writes a checkpoint of Gaussian weights, `gib` GiB of f32 or as many weights of another type.
fn checkpoint(dir: &Path, name: &str, dtype: Dtype, gib: usize) -> PathBuf {
    let path = dir.join(format!("ratios-{name}.safetensors"));
    let size = if dtype == Dtype::F32 { 4 } else { 2 };
    let (mut header, mut offset, mut weights, mut tensors) = (String::from("{"), 0, gib << 28, Vec::new());
    for (i, (filters, n)) in SHAPES.into_iter().cycle().enumerate() {
        let filters = filters.min(weights / n);
        if filters == 0 {
            break;
        }
        weights -= filters * n;
        let end = offset + filters * n * size;
        let comma = if i == 0 { "" } else { "," };
        header += &format!(
            r#"{comma}"layer.{i}.weight":{{"dtype":"{dtype}","shape":[{filters},{n}],"data_offsets":[{offset},{end}]}}"#
        );
        offset = end;
        tensors.push(filters * n);
    }
    header += "}";
    while header.len() % 64 != 56 {
        header.push(' ');
    }
    if std::fs::metadata(&path).is_ok_and(|m| m.len() as usize == 8 + header.len() + offset) {
        return path;
    }
    // A block of Gaussian weights, repeated with a shifting start: no two filters alike.
    let block: Vec<f32> = gaussian(1 << 20);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).expect("the directory is writable"));
    out.write_all(&(header.len() as u64).to_le_bytes()).expect("room for the input");
    out.write_all(header.as_bytes()).expect("room for the input");
    for (i, count) in tensors.into_iter().enumerate() {
        for at in i * 7919..i * 7919 + count {
            let w = block[at & ((1 << 20) - 1)];
            match dtype {
                Dtype::F32 => out.write_all(&w.to_le_bytes()),
                Dtype::F16 => out.write_all(&half::f16::from_f32(w).to_le_bytes()),
                _ => out.write_all(&half::bf16::from_f32(w).to_le_bytes()),
            }
            .expect("room for the input");
        }
    }
    out.flush().expect("room for the input");
    path
}

/// Box–Muller over an LCG.
fn gaussian(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..n).map(|_| (0.02 * (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}
