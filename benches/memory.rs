//! How much anonymous memory the whole command takes at the most, on made checkpoints of several
//! GiB (sparse files, so they need no disk; what is written is real). The mapped input is the
//! kernel's to drop and does not count. Linux only: it samples `RssAnon` every millisecond.
//!
//! `cargo bench --bench memory`, or with `-- --only TEXT` the cases that say so.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const GIB: u64 = 1 << 30;

/// What is asked of the converter: 96 MiB beyond the largest single filter.
const BOUND: u64 = 96 << 20;

struct Case {
    what: &'static str,
    dtype: &'static str,
    size: u64,
    shape: [u64; 2],
    tensors: u64,
    args: &'static [&'static str],
}

fn main() {
    let case = |what, dtype, size, shape, tensors, args| Case { what, dtype, size, shape, tensors, args };
    let cases = [
        case("f32, 8 GiB, filters of 4096", "F32", 4, [32768, 4096], 16, &["-m", "twn"]),
        case(
            "f32, 8 GiB, groups of 32, f16 scales",
            "F32",
            4,
            [32768, 4096],
            16,
            &["-g", "group:32", "--scale-dtype", "f16"],
        ),
        case("f16, 8 GiB, axis 1", "F16", 2, [16384, 16384], 16, &["--axis", "1"]),
        case("f32, 1 GiB, axis 1, filters of 4 M", "F32", 4, [1 << 22, 64], 1, &["--axis", "1"]),
        // In order in memory, and in a temporary file.
        case(
            "f32, 64 MiB, axis 1, one scale per tensor",
            "F32",
            4,
            [1 << 18, 64],
            1,
            &["--axis", "1", "-g", "tensor", "-m", "optimal"],
        ),
        case(
            "f32, 1 GiB, axis 1, one scale per tensor",
            "F32",
            4,
            [1 << 22, 64],
            1,
            &["--axis", "1", "-g", "tensor", "-m", "optimal"],
        ),
        case(
            "bf16, 8 GiB, one scale per tensor, optimal",
            "BF16",
            2,
            [32768, 8192],
            16,
            &["-g", "tensor", "-m", "optimal"],
        ),
        case("bf16, 4 GiB, one filter of 2 G weights", "BF16", 2, [1, 1 << 31], 1, &["-m", "optimal", "-e", "t5"]),
        case("f32, 256 MiB, filters of 1, 16 threads", "F32", 4, [1 << 26, 1], 1, &["-j", "16"]),
        case("f32, 8 GiB, all dense", "F32", 4, [32768, 4096], 16, &["-x", "*"]),
        case("f32, 1 GiB in 20,000 tensors", "F32", 4, [16, 840], 20_000, &["-m", "twn", "--quiet"]),
        case("bf16, 176 MiB in 90,000 tensors", "BF16", 2, [16, 64], 90_000, &["-m", "twn", "--quiet"]),
        case("90,000 tensors, and the table", "BF16", 2, [16, 64], 90_000, &["-m", "twn"]),
    ];
    let option = |name: &str| std::env::args().skip_while(|a| a != name).nth(1);
    let dir = option("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let only = option("--only").unwrap_or_default();
    println!("{:<46} {:>16} {:>14} {:>10}", "checkpoint and options", "peak anonymous", "bound", "");
    for case in cases.into_iter().filter(|case| case.what.contains(&only)) {
        let (input, output) = (dir.join("memory.safetensors"), dir.join("memory.twn"));
        checkpoint(&input, &case);
        let threads: &[&str] = if case.args.contains(&"-j") { &[] } else { &["-j", "2"] };
        let command = [&["--force"], threads, case.args].concat();
        let peak = peak(&input, &output, &command);
        // The largest filter, decoded to f32.
        let filter = if case.args.contains(&"tensor") { 0 } else { case.shape[1] * 4 };
        let verdict = if peak <= BOUND + filter { "ok" } else { "TOO MUCH" };
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        println!("{:<46} {:>16} {:>14} {verdict:>10}", case.what, mib(peak), mib(BOUND));
        for file in [&input, &output] {
            std::fs::remove_file(file).expect("our own file");
        }
    }
}

/// Zeros, as a sparse file, but for a few weights so that it is not all one path.
fn checkpoint(path: &Path, case: &Case) {
    let [filters, n] = case.shape;
    let bytes = filters * n * case.size;
    let entries: Vec<String> = (0..case.tensors)
        .map(|i| {
            let (from, to) = (i * bytes, (i + 1) * bytes);
            format!(
                r#""model.layers.{}.mlp.experts.{}.w1.weight":{{"dtype":"{}","shape":[{filters},{n}],"data_offsets":[{from},{to}]}}"#,
                i / 256,
                i % 256,
                case.dtype
            )
        })
        .collect();
    let mut header = format!("{{{}}}", entries.join(","));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = File::create(path).expect("the directory is writable");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room");
    file.write_all(header.as_bytes()).expect("room");
    let pattern: Vec<u8> = (0..1u32 << 20).flat_map(|i| [(i * 37) as u8, 0x3c | (i % 2 * 0x80) as u8]).collect();
    file.write_all(&pattern[..pattern.len().min((bytes * case.tensors) as usize)]).expect("room");
    file.set_len(8 + header.len() as u64 + bytes * case.tensors).expect("room");
    assert!(bytes * case.tensors <= 8 * GIB);
}

/// Runs the command and samples its anonymous memory.
fn peak(input: &Path, output: &Path, args: &[&str]) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_twn-pack"))
        .arg(input)
        .arg("-o")
        .arg(output)
        .args(args)
        .stdout(Stdio::null())
        .spawn()
        .expect("the command starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(exit) = child.try_wait().expect("our own child") {
            assert!(exit.success(), "{args:?} failed");
            return peak;
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(1));
    }
}
