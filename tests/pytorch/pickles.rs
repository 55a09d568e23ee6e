//! Pickles by hand: strides, lies, and what would run something. Not here: the zip around them ([`crate::archives`]).

use std::path::Path;
use std::time::{Duration, Instant};

use twn_pack::Fault;

use crate::*;

#[test]
fn nothing_of_a_pickle_is_run() {
    let found = refusal("code.pt");
    assert!(found.contains("`posix.system`") && found.contains("nothing of it was run"), "{found}");
    assert!(!Path::new("executed").exists());
    // Nobody is told to run it; what merely is not known can be loaded by whoever trusts it.
    assert!(!found.contains("weights_only=False") && found.contains("do not load it with Python"), "{found}");
    for (name, runs) in [
        ("os\nsystem", true),
        ("subprocess\nPopen", true),
        ("builtins\neval", true),
        ("__builtin__\nexec", true),
        ("importlib.util\nfind_spec", true),
        ("osprey\nModel", false),
        ("mymodel\nNet", false),
    ] {
        let found = state(format!("c{name}\n)R.").as_bytes(), &[]).unwrap_err().to_string();
        assert_eq!(found.contains("weights_only=False"), !runs, "{found}");
    }
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
        assert!(common::c_order(&found) == in_order(&big, offset, &shape, &strides), "{shape:?} {strides:?}");
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
    // Of bytes that were viewed as larger values some can be left over, which torch does not count.
    let left_over = [&storage[..], &[1, 2, 3]].concat();
    let checkpoint = state(&dict(&[("w", tensor(6, 0, &[2, 3], &[3, 1]))]), &[("0", &left_over)]).unwrap();
    assert_eq!(checkpoint.by_name("w").unwrap().stored, storage);
    // Many that are small enough each.
    let many: Vec<_> = (0..2000).map(|i| tensor(6, 0, &[1 << 16, 1 + i], &[0, 0])).collect();
    let items: Vec<(String, Vec<u8>)> = many.into_iter().enumerate().map(|(i, t)| (format!("w{i}"), t)).collect();
    let items: Vec<(&str, Vec<u8>)> = items.iter().map(|(name, t)| (&**name, t.clone())).collect();
    let found = state(&dict(&items), &[("0", &storage)]).unwrap_err().to_string();
    assert!(found.contains("beside") && found.contains("all are limited to"), "{found}");
    // The same one under many names, of which each is packed.
    let items: Vec<(String, Vec<u8>)> =
        (0..20).map(|i| (format!("w{i}"), tensor(6, 0, &[1 << 20, 1], &[0, 0]))).collect();
    let some = |n: usize| items[..n].iter().map(|(name, t)| (&**name, t.clone())).collect::<Vec<_>>();
    assert_eq!(state(&dict(&some(16)), &[("0", &storage)]).unwrap().len(), 16);
    let found = state(&dict(&some(20)), &[("0", &storage)]).unwrap_err().to_string();
    assert!(found.contains("tensor `w16`: a copy of 4194304 bytes is needed beside 67108864 of others"), "{found}");
}

/// Readers differ in which they take.
#[test]
fn two_entries_of_one_name_are_refused() {
    let w = tensor(6, 0, &[2], &[1]);
    let nested = [&b"}"[..], &text("b"), &w, b"s"].concat();
    for (first, second, value, name) in [
        (text("w"), text("w"), &w, "w"),
        (text("a.b"), text("a"), &nested, "a.b"),
        (b"K\x01".to_vec(), text("1"), &w, "1"),
    ] {
        let pickle = [b"\x80\x02}(", &first[..], &w, &second, value, b"u."].concat();
        let found = state(&pickle, &[("0", &floats(6))]).unwrap_err().to_string();
        assert!(found.contains(&format!("tensor `{name}`: two entries of the file have this name")), "{found}");
        assert!(found.contains("rename one of them"), "{found}");
    }
}

/// They were left out, and the warning said that they were no tensors.
#[test]
fn tensors_under_keys_that_are_no_names_are_refused() {
    let w = tensor(6, 0, &[2, 3], &[3, 1]);
    let open = |items: &[&[u8]]| {
        let pickle = [b"\x80\x04}(", &text("w")[..], &w, &items.concat(), b"u."].concat();
        state(&pickle, &[("0", &floats(6))])
    };
    let nested = [&b"}"[..], &text("w"), &w, b"s"].concat();
    let optimizer = |key: &[u8]| {
        let state = [b"}", key, &w, b"s"].concat();
        [&text("optimizer")[..], b"}(", &text("state"), &state, &text("param_groups"), b"]u"].concat()
    };
    for (key, shown) in [
        ([&b"("[..], &text("a"), b"K\x01t"].concat(), "`(a, 1)`"),
        (b"C\x01a".to_vec(), "`bytes`"),
        (b"c_codecs\nencode\n(X\x01\0\0\0atR".to_vec(), "`an object, such as bytes`"),
        (b"N".to_vec(), "`None`"),
        (b"\x88".to_vec(), "`True`"),
        (b"G\x3f\xf8\0\0\0\0\0\0".to_vec(), "`a float`"),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\x01".to_vec(), "`a number over 64 bits`"),
    ] {
        for value in [&w, &nested] {
            let error = open(&[&key, value]).unwrap_err();
            assert_eq!(error.fault(), Fault::Input);
            let found = error.to_string();
            assert!(
                found.contains(&format!(
                    "the key {shown} in its name is neither text nor a whole number; rename it to text"
                )),
                "{found}"
            );
        }
        // What is left out anyway may have any keys; what stands behind such a key is taken.
        let checkpoint = open(&[&key, b"N", &text("v"), &w]).unwrap();
        assert_eq!(checkpoint.len(), 2);
        assert!(checkpoint.warnings().concat().contains(&format!("left out: {shown}")), "{:?}", checkpoint.warnings());
        assert_eq!(open(&[&optimizer(&key)]).unwrap().len(), 1);
    }
}

/// As protocol 2 writes them. Nothing is made of them; they only have to be no reason to refuse the weights.
#[test]
fn harmless_values_stand_beside_weights() {
    let w = tensor(6, 0, &[2, 3], &[3, 1]);
    let called: [(&str, &[u8]); 10] = [
        ("torch.torch_version\nTorchVersion", b"X\x03\0\0\x002.6\x85\x81"),
        ("decimal\nDecimal", b"X\x01\0\0\x001\x85R"),
        ("fractions\nFraction", b"X\x01\0\0\x001\x85R"),
        ("uuid\nUUID", b")\x81}X\x03\0\0\0intK\x01sb"),
        ("datetime\ntimezone", b"cdatetime\ntimedelta\nK\0K\0K\0\x87R\x85R"),
        ("datetime\ntime", b"c_codecs\nencode\nX\x01\0\0\0aX\x06\0\0\0latin1\x86R\x85R"),
        ("__builtin__\nxrange", b"K\0K\x03K\x01\x87R"),
        ("__builtin__\nbytes", b")R"),
        ("__builtin__\nlong", b""),
        ("__builtin__\nEllipsis", b""),
    ];
    let types = "uint1 uint4 int4 int7 bits8 bits16 bits1x8 quint4x2 float4_e2m1fn_x2 bcomplex32 per_tensor_symmetric \
                 per_channel_affine_float_qparams";
    let types = types.split(' ').map(|name| (format!("torch\n{name}"), &b""[..]));
    for (name, rest) in called.map(|(name, rest)| (name.to_owned(), rest)).into_iter().chain(types) {
        let value = [b"c", name.as_bytes(), b"\n", rest].concat();
        let checkpoint = state(&dict(&[("w", w.clone()), ("o", value)]), &[("0", &floats(6))]);
        let checkpoint = checkpoint.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(checkpoint.len(), 1, "{name}");
        assert!(checkpoint.warnings().concat().contains("left out: `o`"), "{name}: {:?}", checkpoint.warnings());
    }
    // A tensor of such a type.
    let head = w[..w.len() - 2].strip_prefix(b"ctorch._utils\n_rebuild_tensor_v2").unwrap();
    let bits = [b"ctorch._utils\n_rebuild_tensor_v3", head, b"ctorch\nbits8\ntR"].concat();
    let found = state(&dict(&[("w", bits)]), &[("0", &floats(6))]).unwrap_err().to_string();
    assert!(found.contains("tensor `w`: is a tensor of bits or of numbers under 8 bits, which cannot be"), "{found}");
}

/// As Python 2 writes them: not what `torch.save` does today, and nothing of it may get lost.
#[test]
fn dicts_made_of_lists_are_refused() {
    let w = tensor(6, 0, &[2], &[1]);
    let pair = [&b"]("[..], &text("a"), &w, b"e"].concat();
    let made = [&b"ccollections\nOrderedDict\n(]("[..], &pair, b"etR"].concat();
    let storage = floats(6);
    let found = state(&dict(&[("c", w), ("d", made)]), &[("0", &storage)]).unwrap_err().to_string();
    assert!(found.contains("`d`: a dict or deque that is made of a list"), "{found}");
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
    // What is referred to often without being large is no attack: a mask, labels, pairs.
    let many = |value: &[u8], n: usize| {
        let list = [b"]q\x02(".to_vec(), b"h\x01".repeat(n), b"e".to_vec()].concat();
        [&b"\x80\x02"[..], value, b"q\x010}X\x01\0\0\0w", &w, b"sX\x01\0\0\0m", &list, b"s."].concat()
    };
    for pickle in [many(b"N", 1_000_000), many(b"\x88", 5000), many(b"K\x01K\x02\x86", 20_000)] {
        assert_eq!(state(&pickle, &[("0", &floats(6))]).unwrap().len(), 1);
    }
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
