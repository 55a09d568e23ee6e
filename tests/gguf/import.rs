//! Files of others: of gguf-py, in parts, of version 2, damaged and lying. Not here: what we export.

use twn_pack::export::Options;
use twn_pack::{Container, Dtype, Tensor, import};

use crate::common;
use crate::file::*;

#[test]
fn a_file_of_gguf_py_is_read() {
    let checkpoint = import::open("fixtures/foreign/gguf/small.gguf").unwrap();
    for name in ["TQ1_0", "TQ2_0"] {
        let (codes, scales) = moved(&checkpoint, name).unwrap();
        let expected = checkpoint.by_name(&format!("{name}.values")).unwrap();
        assert_eq!((expected.shape, expected.dtype), (&[3, 512][..], Dtype::F32));
        let values = codes.iter().enumerate().map(|(i, &code)| scales[i / 256] * (f32::from(code) - 1.0));
        assert_eq!(f32s(values), expected.stored, "{name}");
    }
    let (half, count) = (checkpoint.by_name("half").unwrap(), checkpoint.by_name("count").unwrap());
    assert_eq!((half.dtype, half.shape, half.stored.len()), (Dtype::F16, &[2, 3, 5][..], 60));
    assert_eq!((count.dtype, count.stored), (Dtype::I64, &7i64.to_le_bytes()[..]));
    let expected = [
        ("general.architecture", "none"),
        ("k.bool", "true"),
        ("k.f32", "0.1"),
        ("k.f64", "0.1"),
        ("k.i16", "-30000"),
        ("k.i32", "-2000000000"),
        ("k.i64", "-4611686018427387904"),
        ("k.i8", "-100"),
        ("k.string", "ä string"),
        ("k.u16", "60000"),
        ("k.u32", "4000000000"),
        ("k.u64", "9223372036854775808"),
        ("k.u8", "200"),
    ];
    let found: Vec<_> = checkpoint.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(found, expected);
    assert!(checkpoint.warnings()[0].contains("2 keys that are arrays (or no text) are not kept (`k.strings`"));
}

/// As gguf-py's dequantizers have them, bit by bit.
#[test]
fn what_llama_quantize_makes_of_embeddings_and_heads_is_read_as_floats() {
    let checkpoint = import::open("fixtures/foreign/gguf/quantized.gguf").unwrap();
    for name in ["Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K"] {
        let (found, expected) =
            (checkpoint.by_name(name).unwrap(), checkpoint.by_name(&format!("{name}.values")).unwrap());
        assert_eq!((found.shape, found.dtype), (&[3, 512][..], Dtype::F32));
        assert!(found.stored == expected.stored, "{name}");
    }
    let warning = &checkpoint.warnings()[0];
    assert!(warning.contains("`Q4_0` and 4 others are Q4_0, Q4_K, Q5_0, Q6_K, Q8_0: they are read"), "{warning}");
}

#[test]
fn files_in_parts_are_one_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let (_, blocks) = golden();
    for (number, name) in [(1u16, "a"), (2, "b")] {
        let keys = [key("split.no", 2, &(number - 1).to_le_bytes()), key("split.count", 2, &2u16.to_le_bytes())];
        let file = assemble(32, &keys, &[raw(name, &[256, 1], 35, blocks[&35].clone())]);
        write(directory.path(), &format!("m-x-{number:05}-of-00002.gguf"), &file);
    }
    for number in [1, 2] {
        let checkpoint = import::open(directory.path().join(format!("m-x-{number:05}-of-00002.gguf"))).unwrap();
        assert_eq!(checkpoint.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((checkpoint.files().count(), checkpoint.metadata().len()), (2, 0));
    }
    let renamed = directory.path().join("renamed.gguf");
    std::fs::copy(directory.path().join("m-x-00001-of-00002.gguf"), &renamed).unwrap();
    assert!(import::open(&renamed).unwrap_err().to_string().contains("one of 2 files"));
    // Another part, or none at all, under the name of the second.
    let [first, second] = [1, 2].map(|number| directory.path().join(format!("m-x-{number:05}-of-00002.gguf")));
    let alone = assemble(32, &[], &[raw("c", &[256, 1], 35, blocks[&35].clone())]);
    for (file, found) in [(std::fs::read(&first).unwrap(), "split.no is 0"), (alone, "split.no is missing")] {
        std::fs::write(&second, file).unwrap();
        let error = import::open(&first).unwrap_err().to_string();
        assert!(error.contains(found) && error.contains("expected 1 and 2"), "{error}");
    }
    std::fs::remove_file(second).unwrap();
    let error = import::open(directory.path().join("m-x-00001-of-00002.gguf")).unwrap_err().to_string();
    assert!(error.contains("m-x-00002-of-00002.gguf"), "{error}");
}

/// Version 2 has the same bytes but for its number; of version 1 and others it is said what to do.
#[test]
fn version_2_is_read_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (trits, blocks) = golden();
    let mut file = assemble(32, &[key("k", 8, &text("v"))], &[raw("w", &[256, 1], 35, blocks[&35].clone())]);
    file[4] = 2;
    let checkpoint = open(directory.path(), &file).unwrap();
    let codes: Vec<u8> = trits.iter().map(|trit| (1.0 + trit) as u8).collect();
    assert_eq!(moved(&checkpoint, "w").unwrap(), (codes, vec![0.5]));
    assert_eq!(checkpoint.metadata()["k"], "v");
    // Into such a file the tensors go as into any other, and it stays of its version.
    let container = pack(directory.path(), &[("w", Dtype::F32, &[1, 256], random(3, 256), "")], &[]);
    let into = write(directory.path(), "v2.gguf", &file);
    let (_, after) = export(&container, "tq2_0", &Options { into: Some(into), ..Options::default() });
    assert_eq!(after.unwrap()[4..8], [2, 0, 0, 0]);
    for version in [1, 4] {
        file[4] = version;
        let error = open(directory.path(), &file).unwrap_err().to_string();
        assert!(error.contains(&format!("version {version}")), "{error}");
    }
}

/// A file that is alone in its directory needs no name.
#[test]
fn a_directory_with_one_file_is_that_file() {
    let directory = tempfile::tempdir().unwrap();
    let (_, blocks) = golden();
    let file = assemble(32, &[], &[raw("w", &[256, 1], 35, blocks[&35].clone())]);
    write(directory.path(), "m.gguf", &file);
    write(directory.path(), "README.md", b"words");
    assert_eq!(import::open(directory.path()).unwrap().len(), 1);
    write(directory.path(), "other.onnx", b"");
    let error = import::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("holds several checkpoints (`m.gguf`, `other.onnx`); give the file"), "{error}");
    // All parts of one file are one.
    let split = tempfile::tempdir().unwrap();
    for (number, name) in [(1u16, "a"), (2, "b")] {
        let keys = [key("split.no", 2, &(number - 1).to_le_bytes()), key("split.count", 2, &2u16.to_le_bytes())];
        let file = assemble(32, &keys, &[raw(name, &[256, 1], 35, blocks[&35].clone())]);
        write(split.path(), &format!("m-{number:05}-of-00002.gguf"), &file);
    }
    assert_eq!(import::open(split.path()).unwrap().len(), 2);
    let none = import::open(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(none.contains("holds no .safetensors file, nor one .gguf"), "{none}");
}

/// −d with codes t is d with codes −t.
#[test]
fn negative_scales_negate_codes() {
    let directory = tempfile::tempdir().unwrap();
    let (trits, blocks) = golden();
    for (_, kind, weights, size) in TYPES {
        let at = [(34, 52), (35, 64), (42, 0)].into_iter().find(|t| t.0 == kind).unwrap().1;
        let mut block = blocks[&kind].clone();
        block.chunks_exact_mut(size).for_each(|block| block[at + 1] |= 0x80);
        let checkpoint = open(directory.path(), &assemble(32, &[], &[raw("w", &[256, 1], kind, block)])).unwrap();
        let codes: Vec<u8> = trits.iter().map(|trit| (1.0 - trit) as u8).collect();
        assert_eq!(moved(&checkpoint, "w").unwrap(), (codes, vec![0.5; 256 / weights]));
    }
}

#[test]
fn what_is_not_ternary_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_, blocks) = golden();
    // With a negative scale, `sign` is where that has it.
    for (kind, at, weight, sign) in [(35, 40, 128 + 8, 0), (42, 20, 64, 0), (35, 40, 128 + 8, 65), (42, 20, 64, 19)] {
        let mut block = blocks[&kind].clone();
        block[at] |= 3;
        if sign > 0 {
            block[sign] |= 0x80;
        }
        let checkpoint = open(directory.path(), &assemble(32, &[], &[raw("w", &[256, 1], kind, block)])).unwrap();
        let error = moved(&checkpoint, "w").unwrap_err();
        assert!(error.contains(&format!("filter 0: weight {weight} has code 3")), "{error}");
    }
    let mut block = blocks[&35].clone();
    block[65] = 0x7c;
    let checkpoint = open(directory.path(), &assemble(32, &[], &[raw("w", &[256, 1], 35, block)])).unwrap();
    assert!(moved(&checkpoint, "w").unwrap_err().contains("scale 0 is inf"));
}

/// A block of TQ2_0, and what is said of it.
fn described(json: &str) -> Vec<u8> {
    let (_, blocks) = golden();
    let mut bytes = blocks[&35].repeat(2);
    bytes[66 + 64] = 1;
    assemble(32, &[key("twn_pack.tensors", 8, &text(json))], &[raw("w", &[512, 1], 35, bytes)])
}

#[test]
fn headers_that_lie_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let check = |file: &[u8], expected: &str| {
        let error = open(directory.path(), file).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("model.gguf"), "{expected}: {error}");
    };
    let good = assemble(32, &[number("k", 1)], &[raw("w", &[2, 2], 0, vec![0; 16])]);
    open(directory.path(), &good).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    check(&with(4, &[1]), "version 1");
    check(&with(4, &[4]), "version 4");
    check(&with(4, &[0, 0, 0, 3]), "turn a copy round with gguf-convert-endian");
    check(&with(4, &[0, 0, 0, 3]), "in place and knows no TQ1_0, TQ2_0");
    for huge in [u64::MAX, 1 << 62, 1 << 40, 1000] {
        check(&with(8, &huge.to_le_bytes()), "");
        check(&with(16, &huge.to_le_bytes()), "");
        check(&with(24, &huge.to_le_bytes()), "");
    }
    // Key: 24 length, 32 `k`, 33 type, 37 value; tensor: 41 length, 49 `w`, 50 rank, 54 dimensions, 70 type, 74 offset.
    check(&with(33, &[13]), "type 13");
    check(&with(50, &[5]), "rank 5");
    check(&with(54, &[255; 16]), "2^63");
    check(&with(54, &(1u64 << 40).to_le_bytes()), "cut off");
    check(&with(70, &[36]), "bitnet.cpp");
    check(&with(70, &[99]), "type 99");
    check(&with(70, &[12]), "rows of 2 weights, Q4_K takes multiples of 256");
    check(&with(74, &[32]), "offset 32, expected 0");
    let zero = |dims: &[u64]| assemble(32, &[], &[raw("w", dims, 0, vec![])]);
    open(directory.path(), &zero(&[0, 5])).unwrap();
    check(&zero(&[0, 1 << 62, 1 << 62]), "2^63");
    let q5 = raw("w", &[256], 13, vec![0; 176]);
    check(&assemble(32, &[], &[q5]), "tensor `w`: type Q5_K, which is not read");
    check(&assemble(32, &[], &[raw("w", &[256], 35, vec![0; 66])]), "expected filters along the first dimension");
    let w = || raw("w", &[1], 0, vec![0; 4]);
    check(&assemble(32, &[], &[w(), w()]), "tensor `w` stands twice");
    check(&assemble(32, &[number("k", 1), number("k", 2)], &[]), "key `k` stands twice");
    for alignment in [0, 3, 1 << 17] {
        check(&assemble(32, &[number("general.alignment", alignment)], &[]), "general.alignment is");
    }
    check(&assemble(32, &[key("k", 9, &[&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())], &[]), "cut off");
    check(&assemble(32, &[key("k", 9, &[&10u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())], &[]), "limit");
    // Arrays of arrays: without an end, in the file or in themselves; and of a type that is none.
    let array =
        |kind: u32, count: u64, elements: &[u8]| [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat();
    check(&assemble(32, &[key("k", 9, &array(9, u64::MAX, &array(4, 0, &[]).repeat(20)))], &[]), "");
    check(&assemble(32, &[key("k", 9, &array(13, 1, &[0; 8]))], &[]), "array of type 13");
    let nested = (0..9).fold(array(4, 0, &[]), |inner, _| array(9, 1, &inner));
    check(&assemble(32, &[key("k", 9, &nested)], &[]), "more than 8 arrays inside each other");
    // A fork's Q2_0 has blocks of 34 bytes for 128.
    let fork = [raw("a", &[2048, 1], 42, vec![0; 2048 / 128 * 34]), w()];
    check(&assemble(32, &[], &fork), "groups of 128");
    check(&described("{"), "`twn_pack.tensors` is not what twn-pack writes");
    check(&described(r#"{"w": {"shape": [3, 256]}}"#), "shape [1, 512], but `twn_pack.tensors` says [3, 256]");
    check(&described(r#"{"w": {"shape": [4, 128]}}"#), "multiple of 256");
    check(&described(r#"{"w": {"axis": 1}}"#), "axis 1");
    check(&described(r#"{"w": {"dtype": "I64"}}"#), "I64 of shape [1, 512] cannot be ternary");
    check(&described(r#"{"w": {"granularity": "group:100"}}"#), "group:100, expected a multiple of 256");
    check(&described(r#"{"w": {"granularity": "rows"}}"#), "granularity is `rows`");
    let plain = [raw("w", &[2, 2], 0, vec![0; 16])];
    let wider = assemble(32, &[key("twn_pack.tensors", 8, &text(r#"{"w": {"dtype": "F64"}}"#))], &plain);
    check(&wider, "tensor `w`: `twn_pack.tensors` says F64, of which shape [2, 2] needs 32 bytes, but 16 bytes of F32");
    let checkpoint = open(directory.path(), &described(r#"{"w": {"granularity": "filter"}}"#)).unwrap();
    assert!(moved(&checkpoint, "w").unwrap_err().contains("blocks 0 and 1 have different scales"));
}

/// Whatever is in the file: an error, or a checkpoint that can be read.
#[test]
fn damage_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let json = text(r#"{"w":{"shape":[2,4,64],"granularity":"filter","name":"other","dtype":"F16"}}"#);
    let (_, blocks) = golden();
    let keys = [
        key("twn_pack.tensors", 8, &json),
        number("general.alignment", 32),
        key("a", 9, &[&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text("x")].concat()),
    ];
    let tensors = [raw("w", &[256, 2], 34, blocks[&34].repeat(2)), raw("b", &[3], 1, vec![1; 6])];
    let file = assemble(32, &keys, &tensors);
    let (mut refused, mut read) = (0, 0);
    let mut check = |bytes: &[u8]| match open(directory.path(), bytes) {
        Ok(checkpoint) => {
            for i in 0..checkpoint.len() {
                if let Some(view) = checkpoint.ternary(i) {
                    drop(moved(&checkpoint, view.name));
                }
            }
            read += 1;
        }
        Err(error) => {
            assert!(error.to_string().len() < 1000);
            refused += 1;
        }
    };
    for length in 0..file.len() {
        check(&file[..length]);
    }
    for at in 0..file.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = file.clone();
            bytes[at] ^= flip;
            check(&bytes);
        }
    }
    assert!(refused > file.len() && read > 100, "{refused} refused, {read} read");
}

#[test]
fn the_command_goes_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let container = pack(directory.path(), &[("w", Dtype::F32, &[2, 512], random(1, 1024), "")], &[]);
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (twn, gguf, back) = (path("in.twn"), path("out.gguf"), path("back.twn"));
    let (table, _) = common::expect(0, &["export", &twn, "--to", "tq2_0", "-o", &gguf]);
    assert!(table.contains("TQ2_0 [2, 512]") && table.contains("scales rounded by up to"), "{table}");
    common::expect(0, &[&gguf, "-o", &back]);
    let (Some(Tensor::Ternary(old)), back) = (container.by_name("w"), Container::open(&back).unwrap()) else {
        panic!()
    };
    let Some(Tensor::Ternary(new)) = back.by_name("w") else { panic!() };
    assert_eq!(old.packed(), new.packed());
    let (_, error) =
        common::expect(2, &["export", &twn, "--to", "tq2_0", "-o", &path("x"), "--into", &gguf, "--planes-as-tensors"]);
    assert!(error.contains("--into"), "{error}");
}
