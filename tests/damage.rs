//! Damage: every cut and every changed byte of a `.twn` file is noticed, and nothing that a file
//! may hold makes the library panic, behind good checksums either.

mod common;

use std::path::Path;

use common::{Made, Random};
use twn_pack::convert::{self, Options};
use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, Settings, Tensor, select, unpack, verify};

/// All encodings, both scale types, groups, an axis, dense tensors, padding of every section.
fn small_file(directory: &Path) -> Vec<u8> {
    let mut tensors = vec![
        Made::gaussian("t2", Dtype::F32, &[3, 7], 1),
        Made::gaussian("t5", Dtype::F64, &[4, 9], 2),
        Made::gaussian("b1", Dtype::BF16, &[5, 3], 3),
        Made::gaussian("i8", Dtype::F32, &[3, 2, 3], 6),
        Made::gaussian("bias", Dtype::F16, &[5], 4),
        Made::gaussian("empty", Dtype::F32, &[0, 4], 5),
    ];
    tensors.push(Made { name: "steps".to_owned(), dtype: Dtype::I64, shape: vec![], data: vec![7; 8] });
    let input = directory.join("in.safetensors");
    std::fs::write(&input, common::safetensors(&tensors, &[("format", "pt")])).unwrap();
    let set = |pattern: &str, settings: &str| select::Override {
        pattern: pattern.to_owned(),
        settings: Settings::parse(settings).unwrap(),
    };
    let overrides = vec![
        set("t5", "encoding=t5,granularity=group:4,scale-dtype=f16,axis=1"),
        set("i8", "keep=int8,scale-dtype=f16,axis=1"),
        set("b1", "method=bwn,granularity=tensor"),
    ];
    let checkpoint = Checkpoint::open(&input).unwrap();
    let plan = Plan::new(&checkpoint, &Rules { overrides, ..Rules::default() }).unwrap();
    let output = directory.join("out.twn");
    convert::pack(&checkpoint, &plan, &output, &Options::default()).unwrap();
    std::fs::read(&output).unwrap()
}

/// Whether the file is refused or found damaged. Views of what opens are used, so that they panic
/// here if they ever do.
fn is_noticed(bytes: Vec<u8>) -> bool {
    let Ok(container) = Container::from_bytes("damaged.twn", bytes) else { return true };
    let noticed = !verify::verify(&container, None).unwrap().is_good();
    for (_, tensor) in container.tensors() {
        match tensor {
            Tensor::Dense(_) => {}
            Tensor::Int8(int8) => drop(int8.to_array()),
            Tensor::Ternary(ternary) => drop(ternary.to_array()),
        }
    }
    noticed
}

#[test]
fn every_cut_and_every_extra_byte_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let good = small_file(directory.path());
    assert!(!is_noticed(good.clone()));
    for length in 0..good.len() {
        assert!(is_noticed(good[..length].to_vec()), "cut to {length} of {} bytes", good.len());
    }
    for extra in [&b"\0"[..], b" ", b"\n", &[0; 64], &[0; 4096], &good] {
        assert!(is_noticed([&good, extra].concat()), "{} bytes more", extra.len());
    }
    // A hole: writing went on after a part that never reached the disk.
    for start in (0..good.len()).step_by(64) {
        let mut torn = good.clone();
        let end = (start + 64).min(torn.len());
        let changes = torn[start..end].iter().any(|byte| *byte != 0);
        torn[start..end].fill(0);
        assert!(!changes || is_noticed(torn), "zeros at {start}");
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = small_file(directory.path());
    for at in 0..bytes.len() {
        let good = bytes[at];
        for change in [1, 2, 4, 8, 16, 32, 64, 128, 0xff, 0x55, 0xaa, good] {
            bytes[at] = good ^ change;
            assert!(change == 0 || is_noticed(bytes.clone()), "byte {at}: {good:#04x} to {:#04x}", bytes[at]);
        }
        bytes[at] = good;
    }
}

#[test]
fn an_index_that_lies_behind_good_checksums_panics_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let good = small_file(directory.path());
    let index = good.len() - Container::from_bytes("good.twn", good.clone()).unwrap().index_bytes() as usize;
    let mut opened = 0;
    let mut random = Random(6);
    for at in index..good.len() {
        for byte in [b'0', b'1', b'9', b'5', b'-', b'.', b'e', b'"', b'\\', b',', b'}', b'[', 0, 0xff, b'n'] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            // Now and then a second change, so that two lies can agree.
            if random.below(4) == 0 {
                let other = index + random.below((good.len() - index) as u64) as usize;
                bytes[other] = b'0' + random.below(10) as u8;
            }
            common::reseal(&mut bytes);
            if let Ok(container) = Container::from_bytes("lie.twn", bytes.clone()) {
                opened += 1;
                is_noticed(bytes);
                if opened % 50 == 0 {
                    let output = directory.path().join("unpacked.safetensors");
                    let _ =
                        unpack::unpack(&container, &output, &unpack::Options { overwrite: true, ..Default::default() });
                }
            }
        }
    }
    assert!(opened > 100, "only {opened} of the lies were consistent");
}

#[test]
fn codes_and_padding_that_no_writer_writes_are_noticed_behind_good_checksums() {
    let directory = tempfile::tempdir().unwrap();
    let good = small_file(directory.path());
    // An invalid code, a tail that is not filled up, a byte over 242, scales that are negative or infinite.
    for (name, part, at, byte) in [
        ("t2", 0, 0, 0x03),
        ("t2", 0, 1, 0x15 ^ 0xc0),
        ("t5", 0, 0, 243),
        ("b1", 0, 0, 0xff),
        ("t2", 1, 3, 0x80),
        ("t2", 1, 3, 0x7f),
        ("t5", 1, 1, 0x7c),
    ] {
        let bytes = common::with_section(&good, name, part, |bytes| {
            if (name, part, byte) == ("t2", 1, 0x7f) {
                bytes[2] = 0x80;
            }
            bytes[at] = byte;
        });
        let container = Container::from_bytes("crafted.twn", bytes).unwrap();
        let problems = verify::verify(&container, None).unwrap().problems;
        assert!(problems.len() == 1 && !problems[0].contains("CRC"), "{name} {part} {byte:#x}: {problems:?}");
    }
}

/// Opens, plans and measures; the result does not matter, that there is one does.
fn try_checkpoint(path: &Path, bytes: &[u8]) -> bool {
    std::fs::write(path, bytes).unwrap();
    let Ok(checkpoint) = Checkpoint::open(path) else { return false };
    let Ok(plan) = Plan::new(&checkpoint, &Rules::default()) else { return false };
    convert::measure(&checkpoint, &plan, &Options::default()).is_ok()
}

#[test]
fn damaged_checkpoints_are_results_not_panics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("in.safetensors");
    let tensors = [Made::gaussian("w", Dtype::F32, &[3, 5], 1), Made::gaussian("b", Dtype::F16, &[3], 2)];
    let mut bytes = common::safetensors(&tensors, &[("format", "pt")]);
    assert!(try_checkpoint(&path, &bytes));
    for length in 0..bytes.len() {
        assert!(!try_checkpoint(&path, &bytes[..length]), "cut to {length} bytes");
    }
    assert!(!try_checkpoint(&path, &[&bytes[..], b"\0"].concat()));
    let header = bytes.len() - tensors.iter().map(|t| t.data.len()).sum::<usize>();
    for at in 0..bytes.len() {
        let good = bytes[at];
        for change in [1, 2, 4, 8, 16, 32, 64, 128, 0xff] {
            bytes[at] = good ^ change;
            let usable = try_checkpoint(&path, &bytes);
            assert!(at >= 8 || !usable, "byte {at} of the header's length, change {change:#04x}");
            // Another weight is only bad where it is not finite.
            let finite = tensors[0].data.len() + header <= at || {
                let start = header + (at.max(header) - header) / 4 * 4;
                f32::from_le_bytes(bytes[start..start + 4].try_into().unwrap()).is_finite()
            };
            assert!(at < header || usable == finite, "byte {at}, change {change:#04x}");
        }
        bytes[at] = good;
    }
}

/// Of a filter that is longer than what is looked at together, too.
#[test]
fn a_bad_code_is_named_by_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let good = common::pack(directory.path(), &[(Made::gaussian("w", Dtype::F32, &[2, 1_200_000], 1), "encoding=t2")]);
    let at = good.index().tensors[0].sections().next().unwrap().1.offset as usize;
    for (byte, filter, within) in [(262_144, 0, 262_144), (299_999, 0, 299_999), (524_288, 1, 224_288)] {
        let mut bytes = good.bytes().to_vec();
        bytes[at + byte] = 0xff;
        let problems = verify::verify(&Container::from_bytes("bad.twn", bytes).unwrap(), None).unwrap().problems;
        let named = |problem: &String| {
            problem.contains(&format!("filter {filter}")) && problem.contains(&format!("byte {within} is 0xff"))
        };
        assert!(problems.iter().any(named), "{problems:?}");
    }
}
