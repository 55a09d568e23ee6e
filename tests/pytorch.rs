//! Checkpoints of `torch.save`: files that PyTorch wrote against what the safetensors library wrote of the same
//! tensors, and files by hand that lie, are cut off, or want to run something.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::zip::{End, Entry, zip, zip_ending};
use twn_pack::convert::{self, Options};
use twn_pack::{Checkpoint, Container, Dtype, Fault, Plan, Rules, Tensor, import};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/foreign/pytorch").join(name)
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let tensor = |t: twn_pack::TensorView<'_>| (t.name.to_owned(), (t.dtype, t.shape.to_vec(), t.data.to_vec()));
    checkpoint.tensors().map(tensor).collect()
}

fn golden(name: &str) -> Tensors {
    tensors(&Checkpoint::open(fixture(name)).unwrap())
}

fn open(name: &str) -> Checkpoint {
    import::open(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn refusal(name: &str) -> String {
    let error = import::open(fixture(name)).unwrap_err();
    assert_eq!(error.fault(), Fault::Input, "{error}");
    error.to_string()
}

/// Of a file with these bytes.
fn open_bytes(bytes: &[u8]) -> twn_pack::Result<Checkpoint> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.pt");
    std::fs::write(&path, bytes).unwrap();
    import::open(&path)
}

#[test]
fn every_type_and_layout_is_what_torch_says_it_is() {
    let golden = golden("state.safetensors");
    for name in ["state.pt", "protocol3.pt", "protocol4.pt", "protocol5.pt"] {
        let checkpoint = open(name);
        assert_eq!(tensors(&checkpoint), golden, "{name}");
        let warnings = checkpoint.warnings().join("\n");
        assert!(warnings.contains("5 tensors, ") && warnings.contains("not in C order"), "{name}: {warnings}");
        // Only the file that was given, not the temporary one.
        assert_eq!(checkpoint.files().count(), 1);
        assert_eq!(checkpoint.file_bytes(), std::fs::metadata(fixture(name)).unwrap().len());
    }
}

#[test]
fn tied_weights_share_their_bytes() {
    let checkpoint = open("state.pt");
    let bytes = |name| checkpoint.by_name(name).unwrap().data.as_ptr();
    assert_eq!(bytes("f32"), bytes("tied"));
    assert_ne!(bytes("f32"), bytes("transposed"));
    // Row 2 of 6 values of 4 bytes.
    assert_eq!(bytes("row") as usize - bytes("f32") as usize, 48);
}

#[test]
fn checkpoints_of_a_training_give_the_state_dict() {
    let checkpoint = open("training.pt");
    assert_eq!(tensors(&checkpoint), golden("training.safetensors"));
    let warnings = checkpoint.warnings().join("\n");
    assert!(warnings.contains("the tensors under `state_dict` are taken; left out: epoch, optimizer, "), "{warnings}");

    let golden = golden("state.safetensors");
    let checkpoint = open("nested.pt");
    for name in ["f32", "tied", "transposed"] {
        let tensor = checkpoint.by_name(&format!("encoder.{name}")).unwrap();
        assert_eq!((tensor.dtype, tensor.shape.to_vec(), tensor.data.to_vec()), golden[name]);
    }
    assert!(checkpoint.warnings().concat().contains("from under `model`"), "{:?}", checkpoint.warnings());

    let names: Vec<String> = tensors(&open("two-models.pt")).into_keys().collect();
    assert_eq!(
        names,
        ["critic.linear.bias", "critic.linear.weight", "generator.linear.bias", "generator.linear.weight"]
    );
    let warnings = open("two-models.pt").warnings().concat();
    assert!(warnings.contains("1 values that are no tensors are left out: `step`"), "{warnings}");
    let list = tensors(&open("list.pt"));
    assert_eq!((&list["0"], &list["1"]), (&golden["f32"], &golden["transposed"]));
    assert_eq!(tensors(&open("tensor.pt")), [("tensor".to_owned(), golden["f32"].clone())].into());
}

#[test]
fn shards_are_joined_by_an_index_or_a_directory() {
    let golden = golden("state.safetensors");
    for path in ["sharded", "sharded/pytorch_model.bin.index.json"] {
        assert_eq!(tensors(&open(path)), golden, "{path}");
        assert_eq!(open(path).warnings(), [""; 0]);
    }
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let (first, second) = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin");
    for name in [first, second] {
        std::fs::copy(fixture("sharded").join(name), here.join(name)).unwrap();
    }
    assert_eq!(tensors(&import::open(here).unwrap()), golden);
    // Without an index the names say how many there should be.
    std::fs::rename(here.join(first), here.join("elsewhere")).unwrap();
    let missing = import::open(here).unwrap_err().to_string();
    assert!(missing.contains(&format!("holds `{second}`, but not `{first}`")), "{missing}");
    std::fs::rename(here.join("elsewhere"), here.join(first)).unwrap();

    let index = here.join("pytorch_model.bin.index.json");
    let answer = |index_json: String| {
        std::fs::write(&index, index_json).unwrap();
        import::open(here).map(|c| c.warnings().join("\n")).map_err(|e| e.to_string())
    };
    let map = |entries: &[(&str, &str)]| {
        serde_json::json!({"weight_map": entries.iter().copied().collect::<BTreeMap<_, _>>()}).to_string()
    };
    let missing = answer(map(&[("f32", first), ("gone", second)])).unwrap_err();
    assert!(missing.contains("tensor `gone` should be in `pytorch_model-00002-of-00002.bin`"), "{missing}");
    let name = answer(map(&[("f32", "../elsewhere.bin")])).unwrap_err();
    assert!(name.contains("not a plain file name"), "{name}");
    let unlisted = answer(map(&[("f32", first), ("f16", second)])).unwrap();
    assert!(unlisted.contains("is not in the index; taken all the same"), "{unlisted}");
    // The second shard anew, with a tensor of the first.
    std::fs::copy(here.join(first), here.join(second)).unwrap();
    let others = answer(map(&[("f32", second), ("f16", first)])).unwrap_err();
    assert!(others.contains("is in both"), "{others}");
    std::fs::remove_file(&index).unwrap();
    let twice = import::open(here).unwrap_err().to_string();
    assert!(twice.contains("is in both"), "{twice}");
    // Safetensors win.
    std::fs::copy(fixture("training.safetensors"), here.join("model.safetensors")).unwrap();
    let checkpoint = import::open(here).unwrap();
    assert_eq!(checkpoint.len(), 2);
    assert!(checkpoint.warnings().concat().contains("the safetensors are taken"));
}

#[test]
fn a_directory_with_one_file_is_that_file() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["model.pt", "weights.pth", "state.bin"] {
        let path = directory.path().join(name);
        std::fs::copy(fixture("state.pt"), &path).unwrap();
        assert_eq!(tensors(&import::open(directory.path()).unwrap()), golden("state.safetensors"), "{name}");
        std::fs::remove_file(path).unwrap();
    }
    for name in ["model.pt", "optimizer.pt"] {
        std::fs::copy(fixture("state.pt"), directory.path().join(name)).unwrap();
    }
    let error = import::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("holds several checkpoints (`model.pt`, `optimizer.pt`); give the file"), "{error}");
}

#[test]
fn what_is_not_read_is_refused_by_name_with_a_way_out() {
    for (name, says, way_out) in [
        ("module.pt", "the class `__main__.Net`, a whole model, expected a state dict", "state_dict()"),
        ("sequential.pt", "`torch.nn.modules.container.Sequential`, a whole model", "state_dict()"),
        ("complex.pt", "tensor `w`: is a complex tensor", "leave it out"),
        ("quantized.pt", "tensor `w`: is a quantized tensor", "convert it"),
        ("sparse.pt", "tensor `w`: is a sparse tensor", "convert it"),
        ("meta.pt", "tensor `w`: is a tensor on the device `meta`", "leave it out"),
        ("negated.pt", "tensor `w`: is a conjugated or negated view", "resolve_neg()"),
        ("legacy.pt", "the form that torch.save wrote before version 1.6", "save it again"),
        ("bare.pkl", "a bare pickle of Python", "safetensors"),
        ("script.pt", "a TorchScript program", "torch.jit.load"),
        ("no-tensors.pt", "it holds no tensors", "safetensors"),
        ("big-endian.pt", "byte order \"big\", expected \"little\"", "save it"),
        ("no-storage.pt", "its storage, entry `data/0`, is not in the file", "damaged"),
        ("short-storage.pt", "has 92 bytes, expected 24 values of 4", "damaged"),
    ] {
        let found = refusal(name);
        assert!(found.contains(says) && found.contains(way_out) && found.contains(name), "{name}: {found}");
    }
    // A tar file, by its magic number.
    let tar = [&b"pickle\0\0"[..], &[0; 249], b"ustar\x0000", &[0; 248]].concat();
    let found = open_bytes(&[b"sys_info", &tar[8..]].concat()).unwrap_err().to_string();
    assert!(found.contains("a tar file"), "{found}");
}

#[test]
fn nothing_of_a_pickle_is_run() {
    let found = refusal("code.pt");
    assert!(found.contains("`posix.system`") && found.contains("nothing of it was run"), "{found}");
    assert!(!Path::new("executed").exists());
    for (module, name) in
        [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch.storage", "_load_from_bytes")]
    {
        for pickle in [
            format!("\u{2}c{module}\n{name}\n(X\u{4}\0\0\0codetR.").into_bytes(),
            [
                &b"\x04\x8c"[..],
                &[module.len() as u8],
                module.as_bytes(),
                b"\x8c",
                &[name.len() as u8],
                name.as_bytes(),
                b"\x93)R.",
            ]
            .concat(),
        ] {
            let found = state(&[&[0x80], &pickle[..]].concat(), &[]).unwrap_err().to_string();
            assert!(found.contains(&format!("`{module}.{name}`")), "{found}");
        }
    }
}

/// A file with this pickle and these storages.
fn file(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut entries = vec![Entry::new("model/data.pkl", pickle)];
    entries.extend(storages.iter().map(|(key, bytes)| Entry::new(&format!("model/data/{key}"), bytes)));
    zip(&entries)
}

fn state(pickle: &[u8], storages: &[(&str, &[u8])]) -> twn_pack::Result<Checkpoint> {
    open_bytes(&file(pickle, storages))
}

/// The opcodes that make a number.
fn int(value: i64) -> Vec<u8> {
    [&[0x8a, 8], &value.to_le_bytes()[..]].concat()
}

fn tuple(values: &[i64]) -> Vec<u8> {
    [b"(", &values.iter().flat_map(|v| int(*v)).collect::<Vec<u8>>()[..], b"t"].concat()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The opcodes that make a tensor of float32, of storage `0` with so many values.
fn tensor(count: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage =
        [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), &int(count), b"tQ"].concat();
    let ordered = b"ccollections\nOrderedDict\n)R";
    let parts = [&storage[..], &int(offset), &tuple(shape), &tuple(strides), b"\x89", ordered].concat();
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", &parts[..], b"tR"].concat()
}

/// The pickle of a dict.
fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"\x80\x02}(", &items[..], b"u."].concat()
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// Value by value, from what strides mean.
fn in_order(bytes: &[u8], offset: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let Some((&first, rest)) = shape.split_first() else { return bytes[offset * 4..offset * 4 + 4].to_vec() };
    (0..first).flat_map(|i| in_order(bytes, offset + i * strides[0], rest, &strides[1..])).collect()
}

#[test]
fn strides_are_followed() {
    // Over 4 MiB, which are put in order at once; storages of any size before and behind.
    let big = floats(3 * 1100 * 700 + 5);
    for (offset, shape, strides) in [
        (0usize, vec![1100usize, 2100], vec![1usize, 1100]),
        (5, vec![700, 3, 1100], vec![1, 700, 2100]),
        (1, vec![2, 1, 1100, 350], vec![1, 9, 2100, 6]),
        (0, vec![3, 1, 5], vec![0, 7, 0]),
        (3, vec![1 << 20, 3], vec![2, 1]),
        (7, vec![2_000_000], vec![1]),
        (7, vec![], vec![]),
        (9, vec![4, 1], vec![3, 1]),
    ] {
        let wide = |values: &[usize]| values.iter().map(|v| *v as i64).collect::<Vec<_>>();
        let pickle = dict(&[("w", tensor(big.len() as i64 / 4, offset as i64, &wide(&shape), &wide(&strides)))]);
        let checkpoint = state(&pickle, &[("0", &big)]).unwrap();
        let found = checkpoint.by_name("w").unwrap();
        assert_eq!(found.shape, shape);
        assert!(found.data == in_order(&big, offset, &shape, &strides), "{shape:?} {strides:?}");
    }
}

#[test]
fn lying_tensors_are_refused() {
    let storage = floats(6);
    let refused = |value: Vec<u8>| state(&dict(&[("w", value)]), &[("0", &storage)]).unwrap_err().to_string();
    let max = i64::MAX;
    for (shape, strides, offset, says) in [
        (vec![7], vec![1], 0, "reaches past the 24 bytes of its storage"),
        (vec![2, 3], vec![3, 1], 1, "reaches past"),
        (vec![2], vec![max], 0, "reaches past"),
        (vec![max, max], vec![max, max], 0, "reaches past"),
        (vec![2], vec![1], max, "reaches past"),
        (vec![2], vec![1], -1, "storage offset -1"),
        (vec![-2], vec![1], 0, "-2 in its shape"),
        (vec![2], vec![-1], 0, "-1 in its strides"),
        (vec![2], vec![1, 1], 0, "2 strides, expected 1"),
        (vec![1; 17], vec![1; 17], 0, "17 shape, expected at most 16"),
        // Endless values of one.
        (vec![1 << 40], vec![0], 0, "a copy of 4398046511104 bytes is needed"),
        (vec![max, max], vec![0, 0], 0, "a copy of 18446744073709551615 bytes"),
        (vec![1 << 16, 1 << 16, 1 << 16, 1 << 16], vec![0; 4], 0, "a copy of"),
    ] {
        let found = refused(tensor(6, offset, &shape, &strides));
        assert!(found.contains(says) && found.contains("tensor `w`"), "{shape:?} {strides:?} {offset}: {found}");
    }
    for count in [5, 7, -1, max] {
        let found = refused(tensor(count, 0, &[2], &[1]));
        assert!(found.contains(&format!("has 24 bytes, expected {count} values of 4")), "{found}");
    }
    // Many that are small enough each.
    let many: Vec<_> = (0..2000).map(|i| tensor(6, 0, &[1 << 16, 1 + i], &[0, 0])).collect();
    let items: Vec<(String, Vec<u8>)> = many.into_iter().enumerate().map(|(i, t)| (format!("w{i}"), t)).collect();
    let items: Vec<(&str, Vec<u8>)> = items.iter().map(|(name, t)| (&**name, t.clone())).collect();
    let found = state(&dict(&items), &[("0", &storage)]).unwrap_err().to_string();
    assert!(found.contains("beside") && found.contains("all are limited to"), "{found}");
    // One name twice.
    let value = tensor(6, 0, &[2], &[1]);
    let found = state(&dict(&[("w", value.clone()), ("w", value)]), &[("0", &storage)]).unwrap_err().to_string();
    assert!(found.contains("tensor `w`: the name stands twice"), "{found}");
}

/// As Python 2 writes them: not what `torch.save` does today, and nothing of it may get lost.
#[test]
fn dicts_made_of_lists_are_refused() {
    let w = tensor(6, 0, &[2], &[1]);
    let pair = [&b"]("[..], &text("a"), &w, b"e"].concat();
    let made = [&b"ccollections\nOrderedDict\n(]("[..], &pair, b"etR"].concat();
    let storage = floats(6);
    let found = state(&dict(&[("c", w), ("d", made)]), &[("0", &storage)]).unwrap_err().to_string();
    assert!(found.contains("`d`: a dict that is made of a list"), "{found}");
}

#[test]
fn pickles_that_grow_or_go_in_circles_end_soon() {
    let w = tensor(6, 0, &[2], &[1]);
    // Dict by dict, ten keys of the one before: 10^30 tensors, or 10^30 of nothing.
    let laughs = |inner: &[u8]| {
        let mut pickle = [b"\x80\x02", inner, b"q\0"].concat();
        for _ in 0..30 {
            pickle.extend(b"0}(");
            (0..10).for_each(|key| pickle.extend([b'K', key, b'h', 0]));
            pickle.extend(b"uq\0");
        }
        pickle.push(b'.');
        pickle
    };
    let deep = |times: usize, begin: &[u8], end: &[u8]| {
        [b"\x80\x02", &begin.repeat(times)[..], b"N", &end.repeat(times), b"."].concat()
    };
    // A parameter of a parameter of …
    let parameters = [
        b"\x80\x02}X\x01\0\0\0w",
        &b"ctorch._utils\n_rebuild_parameter\n".repeat(5000)[..],
        &w,
        &b"\x85R".repeat(5000),
        b"s.",
    ]
    .concat();
    // Many names, each as long as names may be.
    let filler = b"}0".repeat(20_000);
    let mut long = [b"\x80\x02", &filler[..], &w, b"q\x000", &text(&"n".repeat(4000)), b"q\x010"].concat();
    long.extend(b"]q\x02(");
    (0..60_000).for_each(|_| long.extend(b"h\0"));
    long.extend(b"e0}h\x01h\x02s.");
    let parts: [(&str, Vec<u8>, &str); 12] = [
        ("laughs", laughs(&w), "too much of it stands in several places"),
        ("laughs at nothing", laughs(b"N"), "too much of it stands in several places"),
        ("circle", b"\x80\x02}q\0X\x01\0\0\0ah\0s.".to_vec(), "more than 64 dicts and lists inside each other"),
        ("deep tuples", deep(1 << 20, b"", b"\x85"), "more than 64"),
        ("deep lists", deep(1 << 20, b"](", b"e"), "more than 64"),
        ("parameters", parameters, "is not what torch.save writes"),
        ("names", long, "names that are too long"),
        ("marks", [b"\x80\x02", &b"(".repeat(5_000_000)[..]].concat(), "more than 4194304 values"),
        ("values", [b"\x80\x02", &b"}0".repeat(5_000_000)[..]].concat(), "more than 4194304 values"),
        ("stack", [b"\x80\x02", &b"N".repeat(5_000_000)[..]].concat(), "more than 4194304 values"),
        ("memo", [b"\x80\x04N", &b"\x94".repeat(5_000_000)[..]].concat(), "more than 4194304 values"),
        ("pickle", vec![b'N'; 100_000_001], "a pickle of 100000001 bytes, expected at most 100000000"),
    ];
    for (what, pickle, says) in parts {
        let start = Instant::now();
        let found = state(&pickle, &[("0", &floats(6))]).unwrap_err().to_string();
        assert!(found.contains(says), "{what}: {found}");
        assert!(start.elapsed() < Duration::from_secs(100), "{what}: {:?}", start.elapsed());
    }
}

#[test]
fn malformed_pickles_are_refused() {
    for pickle in [
        &b""[..],
        b"\x80",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x01N.",
        b"\x80\x06N.",
        b"\x80\x020.",
        b"\x80\x02e.",
        b"\x80\x02(0.",
        b"\x80\x02NN.",
        b"\x80\x02(Nu.",
        b"\x80\x02}(Nu.",
        b"\x80\x02NNs.",
        b"\x80\x02Na.",
        b"\x80\x02h\0.",
        b"\x80\x02j\0\0\0\0.",
        b"\x80\x02NNR.",
        b"\x80\x02ccollections\nOrderedDict\nNR.",
        b"\x80\x02ccollections",
        b"\x80\x02c\xff\n\xff\n.",
        b"\x80\x02NN\x93.",
        b"\x80\x02X\xff\xff\xff\xffab.",
        b"\x80\x02X\x01\0\0\0\xff.",
        b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02\x8a\x09.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x95\xff",
        b"\x80\x02\x82\x01.",
        b"\x80\x02P1\n.",
        b"\x80\x02I1\n.",
        b"\x80\x02Nb.",
        b"\x80\x02N\x85\x86.",
        b"\x80\x05\x97.",
    ] {
        let error = state(pickle, &[]).unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        assert!(
            error.to_string().contains("not a PyTorch file that can be read"),
            "{}: {error}",
            pickle.escape_ascii()
        );
    }
}

#[test]
fn lying_zip_files_are_refused() {
    let pickle = dict(&[("w", tensor(6, 0, &[2, 3], &[3, 1]))]);
    let entry = Entry::new("m/data.pkl", &pickle);
    let data = Entry::new("m/data/0", &floats(6));
    let size = |bytes: &[u8]| bytes.len() as u64;
    let good = [entry.clone(), data.clone()];
    let wide = good.clone().map(|entry| Entry { wide: true, ..entry });
    for (entries, end) in [
        (&good, End::default()),
        (&wide, End::default()),
        (&good, End { wide: true, ..End::default() }),
        (&wide, End { wide: true, ..End::default() }),
    ] {
        let checkpoint = open_bytes(&zip_ending(entries, &end)).unwrap();
        assert_eq!(checkpoint.by_name("w").unwrap().data, floats(6));
    }
    let crc = open_bytes(&zip(&[Entry { crc: Some(1), ..entry.clone() }, data.clone()])).unwrap();
    assert!(crc.warnings().concat().contains("does not have its checksum"));

    let with = |change: Entry| vec![entry.clone(), change];
    let max = Some(u64::MAX);
    let cases = [
        ("packed", with(Entry { packed: Some(1 << 31), unpacked: Some(1 << 31), ..data.clone() }), "cut off"),
        ("unpacked", with(Entry { unpacked: Some(1 << 31), ..data.clone() }), "the directory says 2147483648"),
        ("wide sizes", with(Entry { wide: true, packed: max, unpacked: max, ..data.clone() }), "cut off"),
        (
            "wide unpacked",
            with(Entry { wide: true, unpacked: max, ..data.clone() }),
            "the directory says 18446744073709551615",
        ),
        ("wide offset", with(Entry { wide: true, offset: max, ..data.clone() }), "cut off"),
        ("offset", with(Entry { offset: Some(4), ..data.clone() }), "cut off"),
        ("same bytes", with(Entry { offset: Some(0), local_name: None, ..data.clone() }), "another name"),
        ("overlap", with(Entry { packed: Some(25), unpacked: Some(25), ..data.clone() }), "share bytes"),
        ("name", with(Entry { local_name: Some("m/data/1".into()), ..data.clone() }), "another name in its own header"),
        ("twice", vec![entry.clone(), data.clone(), data.clone()], "two entries `m/data/0`"),
        (
            "two pickles",
            vec![entry.clone(), Entry { name: "n/data.pkl".into(), ..entry.clone() }],
            "several entries data.pkl",
        ),
        ("deflated", with(Entry { method: 8, ..data.clone() }), "is compressed, expected it stored"),
        ("method", with(Entry { method: 93, ..data.clone() }), "expected it to be stored or deflated"),
        ("encrypted", with(Entry { flags: 1, ..data.clone() }), "is encrypted"),
        (
            "long pickle",
            vec![
                Entry { packed: Some(size(&pickle) + 1), unpacked: Some(size(&pickle) + 1), ..entry.clone() },
                data.clone(),
            ],
            "share bytes",
        ),
        ("none", vec![], "a zip file of 0 entries"),
        ("other", vec![Entry::new("word/document.xml", b"")], "(the first: `word/document.xml`), expected data.pkl"),
    ];
    for (what, entries, says) in cases {
        let found = open_bytes(&zip(&entries)).unwrap_err().to_string();
        assert!(found.contains(says), "{what}: {found}");
    }
    for wide in [false, true] {
        for (count, size, offset) in [
            (Some(1), None, None),
            (Some(3), None, None),
            (None, None, Some(0)),
            (None, None, Some(1 << 31)),
            (Some(65534), None, None),
            (Some(1 << 40), None, None),
            (None, None, Some(u64::MAX)),
            (None, max, max),
        ] {
            let end = End { wide, count, size, offset };
            if !wide && [count, offset].into_iter().flatten().any(|value| value > u32::MAX.into()) {
                continue;
            }
            let error = open_bytes(&zip_ending(&good, &end)).unwrap_err();
            assert_eq!(error.fault(), Fault::Input, "{error}");
        }
    }
}

/// Cut off anywhere it is an error; with any byte changed an error or another good file. Never a panic.
#[test]
fn damaged_files_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.pt");
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match import::open(&path) {
            Ok(checkpoint) => {
                let bytes: usize = checkpoint.tensors().map(|tensor| tensor.data.len()).sum();
                assert!(bytes < 1 << 26);
                true
            }
            Err(error) => {
                assert_eq!(error.fault(), Fault::Input, "{error}");
                assert!(error.to_string().len() < 1500, "{error}");
                false
            }
        }
    };
    let whole = std::fs::read(fixture("small.pt")).unwrap();
    assert!(check(&whole));
    for length in 0..whole.len() {
        assert!(!check(&whole[..length]), "{length}");
    }
    common::every_damage(&whole, |damaged| {
        check(damaged);
    });
}

#[test]
fn packing_gives_the_same_weights_as_from_safetensors() {
    let directory = tempfile::tempdir().unwrap();
    let rules = Rules { include: vec!["*".to_owned()], ..Rules::default() };
    let pack = |checkpoint: Checkpoint, name: &str| {
        let path = directory.path().join(name);
        let plan = Plan::new(&checkpoint, &rules).unwrap();
        convert::pack(&checkpoint, &plan, &path, &Options::default()).unwrap();
        Container::open(&path).unwrap()
    };
    let torch = pack(open("state.pt"), "torch.twn");
    let golden = pack(Checkpoint::open(fixture("state.safetensors")).unwrap(), "golden.twn");
    let sections = |container: &Container| -> BTreeMap<String, (String, Vec<u8>, Vec<u8>)> {
        let section = |(name, tensor): (&str, Tensor<'_>)| {
            let sections = match tensor {
                Tensor::Ternary(t) => {
                    (format!("ternary {} {:?}", t.dtype, t.shape), t.packed().to_vec(), t.scale_bytes().to_vec())
                }
                Tensor::Dense(t) => (format!("dense {} {:?}", t.dtype, t.shape), t.data.to_vec(), Vec::new()),
                _ => panic!("{name}"),
            };
            (name.to_owned(), sections)
        };
        container.tensors().map(section).collect()
    };
    assert_eq!(sections(&torch), sections(&golden));
    assert!(sections(&torch)["transposed"].0.starts_with("ternary"));
}

#[test]
fn the_program_reads_them() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.twn");
    let (input, output) = (fixture("training.pt").display().to_string(), output.display().to_string());
    let (_, warnings) = common::expect(0, &[&*input, "-o", &*output, "--include", "*"]);
    assert!(warnings.contains("the tensors under `state_dict` are taken"), "{warnings}");
    common::expect(0, &["verify", &*output, "--against", &*input]);
    let (table, _) = common::expect(0, &["inspect", &*input]);
    assert!(table.contains("linear.weight"), "{table}");
    let (_, refused) = common::expect(3, &["inspect", &*fixture("code.pt").display().to_string()]);
    assert!(refused.contains("posix.system"), "{refused}");
}

/// 2 GiB, of which almost nothing is looked at.
#[test]
fn opening_is_fast_however_large_the_file_is() {
    use std::io::{Seek, SeekFrom, Write};
    const BYTES: u64 = 2 << 30;
    let values = BYTES as i64 / 4;
    let pickle = dict(&[("w", tensor(values, 0, &[values / 1024, 1024], &[1024, 1]))]);
    let small = file(&pickle, &[("0", b"")]);
    // The directory is written anew, for a storage that is a hole of the file system.
    let start = small.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let mut end = small[start..].to_vec();
    let second = 4 + end[4..].windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    for at in [20, 24] {
        end[second + at..second + at + 4].copy_from_slice(&(BYTES as u32).to_le_bytes());
    }
    let offset = end.len() - 6;
    end[offset..offset + 4].copy_from_slice(&((start as u64 + BYTES) as u32).to_le_bytes());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.pt");
    let mut large = std::fs::File::create(&path).unwrap();
    large.write_all(&small[..start]).unwrap();
    large.seek(SeekFrom::Current(BYTES as i64)).unwrap();
    large.write_all(&end).unwrap();
    drop(large);
    let begin = Instant::now();
    let checkpoint = import::open(&path).unwrap();
    let took = begin.elapsed();
    assert_eq!(checkpoint.by_name("w").unwrap().data.len() as u64, BYTES);
    assert!(took < Duration::from_secs(1), "{took:?}");
}
