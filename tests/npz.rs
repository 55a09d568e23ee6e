//! Arrays of numpy as checkpoints: files that numpy wrote against what the safetensors library wrote of the same
//! arrays, and files by hand that lie, are cut off, or would fill the disk.

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::zip::{Entry, zip};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use twn_pack::{Checkpoint, Dtype, Fault, import};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/foreign/npz").join(name)
}

fn tensors(checkpoint: &Checkpoint) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let tensor = |t: twn_pack::TensorView<'_>| (t.name.to_owned(), (t.dtype, t.shape.to_vec(), common::c_order(&t)));
    checkpoint.tensors().map(tensor).collect()
}

fn open(name: &str) -> Checkpoint {
    import::open(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn open_bytes(bytes: &[u8]) -> twn_pack::Result<Checkpoint> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.npz");
    std::fs::write(&path, bytes).unwrap();
    import::open(&path)
}

fn refusal(bytes: &[u8]) -> String {
    let error = open_bytes(bytes).unwrap_err();
    assert_eq!(error.fault(), Fault::Input, "{error}");
    error.to_string()
}

#[test]
fn every_type_and_order_is_what_numpy_says_it_is() {
    let golden = tensors(&Checkpoint::open(fixture("arrays.safetensors")).unwrap());
    for name in ["stored.npz", "deflated.npz"] {
        let checkpoint = open(name);
        assert_eq!(tensors(&checkpoint), golden, "{name}");
        assert_eq!(checkpoint.warnings(), [""; 0]);
        assert_eq!(checkpoint.files().count(), 1);
        assert_eq!(checkpoint.file_bytes(), std::fs::metadata(fixture(name)).unwrap().len());
    }
    for name in ["version2.npz", "version3.npz"] {
        let found = tensors(&open(name));
        assert_eq!(found.len(), 2, "{name}");
        assert!(found.iter().all(|(array, found)| golden[array] == *found), "{name}");
    }
    assert_eq!(tensors(&open("single.npy"))["single"], golden["f4"]);
    assert_eq!(tensors(&open("fortran.npy"))["fortran"], golden["fortran"]);
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    for (name, says) in [
        ("objects.npz", "array `o`: type |O, expected no pickled objects"),
        ("big-endian.npz", "array `w`: type >f4, expected one of the types |u1, <f2, <f4, "),
        ("complex.npz", "array `w`: type <c8, expected"),
        ("text.npz", "array `w`: type <U2, expected"),
        ("records.npz", "array `w`: {'descr': [('a', '<f4'), ('b', '<i4')]"),
        (
            "other.zip",
            "a zip file of 1 entries (the first: `model.safetensors`), expected data.pkl of torch.save, or .npy",
        ),
    ] {
        let found = refusal(&std::fs::read(fixture(name)).unwrap());
        assert!(found.contains(says), "{name}: {found}");
    }
}

/// A .npy file of version 1.
fn npy(descr: &str, fortran: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), values].concat()
}

fn deflated(name: &str, bytes: &[u8]) -> Entry {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    let data = encoder.finish().unwrap();
    Entry {
        method: 8,
        unpacked: Some(bytes.len() as u64),
        crc: Some(crc32fast::hash(bytes)),
        ..Entry::new(name, &data)
    }
}

#[test]
fn what_macos_lays_beside_arrays_is_none() {
    let array = npy("<f4", "False", "(1,)", &[0; 4]);
    let entries = [deflated("w.npy", &array), deflated("__MACOSX/._w.npy", b"\0\x05\x16\x07")];
    let checkpoint = open_bytes(&zip(&entries)).unwrap();
    assert_eq!(checkpoint.len(), 1);
    assert_eq!(checkpoint.warnings(), ["1 zip entries that are no arrays are left out: `__MACOSX/._w.npy`"]);
}

#[test]
fn packed_arrays_are_held_to_their_headers() {
    let array = npy("<f4", "False", "(2, 3)", &[1; 24]);
    let good = deflated("w.npy", &array);
    assert_eq!(open_bytes(&zip(std::slice::from_ref(&good))).unwrap().by_name("w").unwrap().stored, [1; 24]);
    // Of one byte, less than is read of a header at first.
    let tiny =
        open_bytes(&zip(&[deflated("w.npy", &npy("|u1", "False", "()", &[7])), Entry::new("README", b"")])).unwrap();
    assert_eq!((tiny.by_name("w").unwrap().shape, tiny.by_name("w").unwrap().stored), (&[][..], &[7][..]));
    assert_eq!(tiny.warnings(), ["1 zip entries that are no arrays are left out: `README`"]);
    // Many of them are one warning.
    let others = (0..1000).map(|i| Entry::new(&format!("x{i}"), b""));
    let many = open_bytes(&zip(&[Entry::new("w.npy", &array)].into_iter().chain(others).collect::<Vec<_>>())).unwrap();
    let expected = "1000 zip entries that are no arrays are left out: `x0`, `x1`, `x2`, `x3`, …";
    assert_eq!(many.warnings(), [expected]);

    // As Python 2 wrote it.
    let old = open_bytes(&zip(&[Entry::new("w.npy", &npy("<f4", "False", "(2L, 3L)", &[1; 24]))])).unwrap();
    assert_eq!(old.by_name("w").unwrap().shape, [2, 3]);

    let long = [&array[..], &[1; 1000]].concat();
    let short = &array[..array.len() - 1];
    let claims = |entry: Entry, bytes: usize| Entry { unpacked: Some(bytes as u64), wide: true, ..entry };
    let bomb = npy("<f4", "False", "(2147483648, 2147483648)", &[]);
    let fat = npy("<f4", "False", "(8589934592,)", &[]);
    for (what, entry, says) in [
        ("longer", deflated("w.npy", &long), "bytes unpacked, expected"),
        ("longer than it says", claims(deflated("w.npy", &long), array.len()), "goes on behind its values"),
        ("shorter", deflated("w.npy", short), "bytes unpacked, expected"),
        ("shorter than it says", claims(deflated("w.npy", short), array.len()), "23 bytes of values, expected 24"),
        ("checksum", Entry { crc: Some(1), ..good.clone() }, "expected 00000001"),
        ("cut off", Entry { data: good.data[..good.data.len() - 3].to_vec(), ..good.clone() }, "array `w`: "),
        ("no deflate", Entry { data: vec![0xff; 50], ..good.clone() }, "deflate: "),
        ("nothing", deflated("w.npy", b""), "the header"),
        ("no array", deflated("w.npy", b"PK\x03\x04 and so on"), "expected \\x93NUMPY"),
        ("bomb", claims(deflated("w.npy", &bomb), usize::MAX), "expected less than 2^63 bytes"),
        ("fat", claims(deflated("w.npy", &fat), fat.len() + (1 << 35)), "all are limited to 17179869184"),
        ("stored", Entry::new("w.npy", &long), "goes on after"),
        ("stored, short", Entry::new("w.npy", short), "was the download cut off?"),
    ] {
        let found = refusal(&zip(&[entry]));
        assert!(found.contains(says) && found.contains("`w`"), "{what}: {found}");
    }
    // Several that are small enough each: the first ends too soon, so nothing is written for the others.
    let third = npy("<f4", "False", "(1610612736,)", &[]);
    let entries: Vec<Entry> =
        (0..3).map(|i| claims(deflated(&format!("w{i}.npy"), &third), third.len() + 6_442_450_944)).collect();
    assert!(refusal(&zip(&entries)).contains("`w0`: 0 bytes of values, expected 6442450944"));
}

/// As `numpy.load` takes them. What depends on the machine (`l`, `int`) is not taken.
#[test]
fn types_are_read_however_they_are_spelled() {
    let all = [
        (Dtype::U8, 1, "|u1 <u1 =u1 u1 B |B uint8"),
        (Dtype::I8, 1, "|i1 <i1 =i1 i1 b <b int8"),
        (Dtype::BOOL, 1, "|b1 <b1 =b1 b1 ? |? bool"),
        (Dtype::F16, 2, "<f2 =f2 |f2 f2 e <e |e float16"),
        (Dtype::F32, 4, "<f4 =f4 |f4 f4 f =f float32"),
        (Dtype::F64, 8, "<f8 =f8 |f8 f8 d <d float64"),
        (Dtype::I16, 2, "<i2 =i2 |i2 i2 h int16"),
        (Dtype::U16, 2, "<u2 =u2 |u2 u2 H uint16"),
        (Dtype::I32, 4, "<i4 =i4 |i4 i4 i int32"),
        (Dtype::U32, 4, "<u4 =u4 |u4 u4 I uint32"),
        (Dtype::I64, 8, "<i8 =i8 |i8 i8 q int64"),
        (Dtype::U64, 8, "<u8 =u8 |u8 u8 Q uint64"),
    ];
    for (dtype, size, spellings) in all {
        for descr in spellings.split(' ') {
            let file = npy(descr, "False", "(3,)", &vec![1; 3 * size]);
            let checkpoint = open_bytes(&file).unwrap_or_else(|e| panic!("{descr}: {e}"));
            assert_eq!(checkpoint.by_name("model").unwrap().dtype, dtype, "{descr}");
        }
    }
    for descr in [">f4", ">i2", "l", "L", "int", "<float32", "==f4", "<", "", "1", "f16", "c8", "S1", "U1", "|V4"] {
        assert!(refusal(&npy(descr, "False", "(3,)", &[0; 24])).contains("expected one of the types"), "{descr}");
    }
}

/// A header may be as long as 64 KiB; what is behind it is told apart.
#[test]
fn long_headers_are_read_whole() {
    let blank = " ".repeat(60_000);
    let header = format!("{{'descr': '<i2', 'fortran_order': False, 'shape': (2,), }}{blank}\n");
    let array =
        [b"\x93NUMPY\x02\x00", &(header.len() as u32).to_le_bytes()[..], header.as_bytes(), &[1, 2, 3, 4]].concat();
    for entry in [deflated("w.npy", &array), Entry::new("w.npy", &array)] {
        assert_eq!(open_bytes(&zip(&[entry])).unwrap().by_name("w").unwrap().stored, [1, 2, 3, 4]);
    }
    let endless = [b"\x93NUMPY\x02\x00\xff\xff\xff\xff", &array[12..]].concat();
    assert!(refusal(&zip(&[deflated("w.npy", &endless)])).contains("expected a header of at most 65536"));
}

#[test]
fn a_name_that_no_output_can_have_is_refused() {
    let array = npy("<f4", "False", "(2,)", &[0; 8]);
    let message = refusal(&zip(&[Entry::new("w.npy", &array), Entry::new("__metadata__.npy", &array)]));
    assert!(message.contains("tensor `__metadata__`") && message.contains("rename it"), "{message}");
}

/// Cut off anywhere it is an error; with any byte changed an error or another good file. Never a panic.
#[test]
fn damaged_files_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.npz");
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match import::open(&path) {
            Ok(checkpoint) => {
                assert!(checkpoint.tensors().map(|tensor| tensor.stored.len()).sum::<usize>() < 1 << 20);
                true
            }
            Err(error) => {
                assert_eq!(error.fault(), Fault::Input, "{error}");
                false
            }
        }
    };
    for name in ["version2.npz", "fortran.npy", "objects.npz"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        assert_eq!(check(&whole), name != "objects.npz");
        for length in 0..whole.len() {
            assert!(!check(&whole[..length]), "{name}, {length}");
        }
        common::every_damage(&whole, |damaged| {
            check(damaged);
        });
    }
}

/// Every byte of a packed array counts: what changes is noticed by its checksum.
#[test]
fn damaged_values_are_noticed() {
    let array = npy("<f4", "False", "(64,)", &(0..=255).collect::<Vec<u8>>());
    let entry = deflated("w.npy", &array);
    for at in 0..entry.data.len() {
        let mut damaged = entry.clone();
        damaged.data[at] ^= 0x10;
        let found = open_bytes(&zip(&[damaged]));
        if let Ok(checkpoint) = found {
            // A bit behind the last block of deflate.
            assert_eq!(checkpoint.by_name("w").unwrap().stored, &array[array.len() - 256..], "{at}");
        }
    }
}
