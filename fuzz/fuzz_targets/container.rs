//! Any bytes as a `.twn` file, in three ways: as they are; with their checksums mended, so that
//! what lies behind them is reached; and (where they do not begin with the magic number) as a list
//! of changes to a good file, mended as well. What opens is read in every way there is.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use twn_pack::container::Body;
use twn_pack::{Checkpoint, Container, ContainerWriter, Dtype, Error, Granularity, Report, Tensor, TernaryTensor};
use twn_pack::{unpack, verify};
use twn_pack_fuzz::{Bytes, bits, fixture};

/// The files that changes are made to.
const GOOD: [&[u8]; 14] = [
    fixture!("by-hand.twn"),
    fixture!("two-planes.twn"),
    fixture!("metadata.t2.twn"),
    fixture!("no-tensors.t2.twn"),
    fixture!("layouts.b1-group7-axis1.twn"),
    fixture!("layouts.b1-tensor-axis0.twn"),
    fixture!("layouts.int8-axis0.twn"),
    fixture!("layouts.int8-axis1.twn"),
    fixture!("layouts.t2-filter-axis0.twn"),
    fixture!("layouts.t2-group7-f16.twn"),
    fixture!("layouts.t5-group7-axis1.twn"),
    fixture!("layouts.t5-tensor-axis0.twn"),
    fixture!("sharded.t2.twn"),
    fixture!("unaligned.t2.twn"),
];

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    if data.first() != Some(&0x89) {
        exercise(&changed(&mut Bytes(data)));
        return;
    }
    exercise(data);
    let offset = data.get(16..24).map_or(0, |at| u64::from_le_bytes(at.try_into().unwrap()));
    if let Some((head, json)) = data.split_at_checked(usize::try_from(offset).unwrap_or(usize::MAX))
        && head.len() >= 64
    {
        exercise(&sealed(head[64..].to_vec(), json));
    }
});

/// A file of these sections and that index, with every checksum right that can be found.
fn sealed(sections: Vec<u8>, json: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes.extend(sections);
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    let offset = bytes.len();
    // As the writer spells a section: `{"crc32":1,"length":2,"offset":3}`.
    let (mut rest, key) = (json, b"\"crc32\":".as_slice());
    while let Some(at) = rest.windows(key.len()).position(|window| window == key) {
        let (before, after) = rest.split_at(at + key.len());
        bytes.extend(before);
        let digits = after.iter().take_while(|b| b.is_ascii_digit()).count();
        rest = &after[digits..];
        match number(after, b"\"length\":").zip(number(after, b"\"offset\":")) {
            Some((length, at)) if at.checked_add(length).is_some_and(|end| end <= offset) => {
                let crc32 = crc32fast::hash(&bytes[at..at + length]);
                bytes.extend(crc32.to_string().bytes());
            }
            _ => bytes.extend(&after[..digits]),
        }
    }
    bytes.extend(rest);
    let length = bytes.len();
    bytes[0..8].copy_from_slice(b"\x89TWN\r\n\x1a\n");
    bytes[8] = 1;
    bytes[16..24].copy_from_slice(&(offset as u64).to_le_bytes());
    bytes[24..32].copy_from_slice(&((length - offset) as u64).to_le_bytes());
    bytes[32..40].copy_from_slice(&(length as u64).to_le_bytes());
    let crc32 = crc32fast::hash(&bytes[offset..]);
    bytes[40..44].copy_from_slice(&crc32.to_le_bytes());
    let crc32 = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc32.to_le_bytes());
    bytes
}

/// The number behind the first such key, if it is near.
fn number(json: &[u8], key: &[u8]) -> Option<usize> {
    let near = &json[..json.len().min(80)];
    let at = near.windows(key.len()).position(|window| window == key)? + key.len();
    let digits: String = near[at..].iter().take_while(|b| b.is_ascii_digit()).map(|&b| char::from(b)).collect();
    digits.parse().ok()
}

/// A good file with changes to its index and its sections, and new checksums.
fn changed(input: &mut Bytes<'_>) -> Vec<u8> {
    let good = input.pick(&GOOD);
    let offset = u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
    let mut index: Value = serde_json::from_slice(&good[offset..]).unwrap();
    let mut sections = good[64..offset].to_vec();
    for _ in 0..input.u8() % 8 {
        change(&mut index, input);
    }
    let flags = input.u8();
    if flags & 1 != 0 {
        sections = consistent(&mut index, input, flags & 2 != 0);
    }
    for _ in 0..input.u8() % 8 {
        let at = input.below(sections.len());
        let byte = input.u8();
        if let Some(place) = sections.get_mut(at) {
            *place = byte;
        }
    }
    let mut json = serde_json::to_vec(&index).unwrap();
    if flags & 4 != 0 {
        for _ in 0..input.u8() % 8 {
            let (at, length) = (input.below(json.len()), input.below(4));
            let end = (at + length).min(json.len());
            let new = input.u8() % 8;
            json.splice(at..end, input.take(usize::from(new)).iter().copied());
        }
    }
    sealed(sections, &json)
}

/// Changes one value of the index.
fn change(index: &mut Value, input: &mut Bytes<'_>) {
    let mut paths = Vec::new();
    walk(index, String::new(), &mut paths);
    let donor = index.pointer(&paths[input.below(paths.len())]).unwrap().clone();
    let path = &paths[input.below(paths.len())];
    const NUMBERS: [u64; 12] = [0, 1, 2, 3, 5, 16, 17, 64, 1 << 32, 1 << 58, 1 << 63, u64::MAX];
    const WORDS: [&str; 24] = [
        "t2",
        "t5",
        "b1",
        "f32",
        "f16",
        "filter",
        "tensor",
        "group:1",
        "group:3",
        "group:18446744073709551615",
        "F64",
        "F32",
        "F16",
        "BF16",
        "F8_E4M3",
        "F8_E5M2",
        "F4",
        "C64",
        "BOOL",
        "",
        "__metadata__",
        "a\u{0}b",
        "=1+1\",\"\r\n",
        "ß",
    ];
    let operation = input.u8() % 10;
    let Some(value) = index.pointer_mut(path) else { return };
    match (operation, value) {
        (0, value) => *value = json!(input.pick(&NUMBERS)),
        (1, value) => *value = json!(input.pick(&WORDS)),
        (2, value) => *value = donor,
        (3, value) => {
            let near = value.as_u64().unwrap_or(0).wrapping_add(u64::from(input.u8())).wrapping_sub(128);
            *value = json!(near);
        }
        (4, value) => *value = json!(f64::from_bits(input.u64())),
        (5, value) => {
            let length = input.below(16);
            *value = json!(String::from_utf8_lossy(input.take(length)));
        }
        (6, Value::Array(items)) => {
            items.truncate(input.below(items.len() + 1));
        }
        (6, Value::Object(map)) => {
            let key = map.keys().nth(input.below(map.len())).cloned();
            key.map(|key| map.remove(&key));
        }
        (7, Value::Array(items)) => items.push(donor),
        (7, Value::Object(map)) => {
            map.insert(
                input.pick(&["dense", "int8", "ternary", "reason", "delta", "parameters", "x", "reason"]).to_owned(),
                donor,
            );
        }
        (8, Value::Array(items)) => {
            if let Some(item) = items.get(input.below(items.len())).cloned() {
                items.push(item);
            }
        }
        (_, Value::Array(items)) => items.reverse(),
        (_, value) => *value = json!(input.u8() % 8),
    }
}

fn walk(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| walk(item, format!("{path}/{i}"), paths));
        }
        Value::Object(map) => map.iter().for_each(|(key, item)| walk(item, format!("{path}/{key}"), paths)),
        _ => {}
    }
    paths.push(path);
}

/// Lays the sections out anew, as shapes, encodings and granularities want them; and, where asked,
/// with codes and scales that are valid and counted. What makes no sense stays as it is.
fn consistent(index: &mut Value, input: &mut Bytes<'_>, valid: bool) -> Vec<u8> {
    let mut sections = Vec::new();
    let mut place = |bytes: Vec<u8>| {
        let section = json!({ "crc32": 0, "length": bytes.len(), "offset": sections.len() + 64 });
        sections.extend(bytes);
        sections.resize(sections.len().next_multiple_of(64), 0);
        section
    };
    for tensor in index.get_mut("tensors").and_then(Value::as_array_mut).into_iter().flatten() {
        lay_out(tensor, input, valid, &mut place);
    }
    sections
}

fn lay_out(
    tensor: &mut Value,
    input: &mut Bytes<'_>,
    valid: bool,
    place: &mut impl FnMut(Vec<u8>) -> Value,
) -> Option<()> {
    let seed = input.take(8).to_vec();
    let make = |length: u64| -> Vec<u8> {
        (0..length as usize).map(|i| seed.get(i % 11).copied().unwrap_or(i as u8 % 81)).collect()
    };
    let shape: Vec<u64> = tensor.get("shape")?.as_array()?.iter().filter_map(Value::as_u64).collect();
    let dtype: Dtype = serde_json::from_value(tensor.get("dtype")?.clone()).ok()?;
    let count = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1))).filter(|&n| n <= 2048)?;
    let count = if shape.contains(&0) { 0 } else { count };
    if let Some(dense) = tensor.get_mut("dense") {
        *dense.get_mut("section")? = place(make(count * dtype.bitsize() as u64 / 8));
    }
    if let Some(int8) = tensor.get_mut("int8") {
        let filters = *shape.get(int8.get("axis")?.as_u64()? as usize)?;
        let mut codes = make(count);
        if valid {
            codes.iter_mut().filter(|code| **code == 0x80).for_each(|code| *code = 1);
        }
        let (scales, [min, max]) = scales(make, filters, int8.get("scale_dtype")?.as_str()?, valid);
        let (codes, scales) = (place(codes), place(scales));
        let map = int8.as_object_mut()?;
        map.insert("codes".to_owned(), codes);
        map.insert("scales".to_owned(), scales);
        if valid {
            let stats = map.get_mut("stats")?.as_object_mut()?;
            stats.insert("alpha".to_owned(), json!({ "max": max, "mean": min, "min": min }));
        }
    }
    let ternary = tensor.get_mut("ternary")?;
    let filters = *shape.get(ternary.get("axis")?.as_u64()? as usize)?;
    let planes = ternary.get("planes")?.as_u64().filter(|&p| p <= 16)?;
    let n = count.checked_div(filters)?;
    let encoding = ternary.get("encoding")?.as_str()?.to_owned();
    let w = match encoding.as_str() {
        "t2" => 4,
        "t5" => 5,
        _ => 8,
    };
    let mut codes = make(planes * filters * n.div_ceil(w));
    let mut counts = [0u64; 3];
    if valid && n > 0 {
        for row in codes.chunks_mut(n.div_ceil(w) as usize) {
            for (b, byte) in row.iter_mut().enumerate() {
                *byte = repack(&encoding, *byte, (n - w * b as u64).min(w) as usize, &mut counts);
            }
        }
    }
    let per_plane = match ternary.get("granularity")?.as_str()? {
        "filter" => filters,
        "tensor" => 1,
        group => filters * n.div_ceil(group.strip_prefix("group:")?.parse().ok().filter(|&size: &u64| size > 0)?),
    };
    let (scales, [min, max]) = scales(make, planes * per_plane, ternary.get("scale_dtype")?.as_str()?, valid);
    let (codes, scales) = (place(codes), place(scales));
    let map = ternary.as_object_mut()?;
    map.insert("codes".to_owned(), codes);
    map.insert("scales".to_owned(), scales);
    let stats: &mut Map<_, _> = map.get_mut("stats")?.as_object_mut()?;
    if valid {
        stats.insert("alpha".to_owned(), json!({ "max": max, "mean": min, "min": min }));
    } else {
        counts = [0, 0, planes * count];
    }
    for (key, count) in ["negative", "zeros", "positive"].into_iter().zip(counts) {
        stats.insert(key.to_owned(), json!(count));
    }
    Some(())
}

/// So many scales of that type, and the smallest and largest of them where they are to be valid.
fn scales(make: impl Fn(u64) -> Vec<u8>, count: u64, dtype: &str, valid: bool) -> (Vec<u8>, [f32; 2]) {
    let size = if dtype == "f16" { 2 } else { 4 };
    let mut scales = make(count * size);
    let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
    for scale in scales.chunks_mut(size as usize).filter(|_| valid) {
        // Clear the sign and one bit of the exponent: finite and not negative.
        *scale.last_mut().unwrap() &= if size == 2 { 0x3b } else { 0x3f };
        let value = match *scale {
            [a, b] => half::f16::from_le_bytes([a, b]).to_f32(),
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            _ => 0.0,
        };
        (min, max) = (min.min(value), max.max(value));
    }
    (scales, [min, max])
}

/// Makes a byte of codes valid, of which the first `used` count.
fn repack(encoding: &str, byte: u8, used: usize, counts: &mut [u64; 3]) -> u8 {
    let (w, base): (usize, u32) = match encoding {
        "t2" => (4, 4),
        "t5" => (5, 3),
        _ => (8, 2),
    };
    let mut rest = u32::from(byte);
    let mut packed = 0;
    for k in 0..w {
        let mut digit = rest % base;
        rest /= base;
        if k >= used {
            digit = if base == 2 { 0 } else { 1 };
        } else {
            digit = digit.min(2);
            counts[if base == 2 { 2 * digit as usize } else { digit as usize }] += 1;
        }
        packed += digit * base.pow(k as u32);
    }
    packed as u8
}

/// Opens the file and reads everything in every way.
fn exercise(bytes: &[u8]) {
    let container = match Container::from_bytes("fuzz.twn", bytes.to_vec()) {
        Ok(container) => container,
        Err(error) => {
            assert!(matches!(error, Error::Container { .. }), "{error}");
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let report = Report::of_index(container.index(), bytes.len() as u64);
    let json: Value = serde_json::from_str(&report.to_json()).expect("a report is JSON");
    assert_eq!(json["tensors"].as_array().map(Vec::len), Some(container.index().tensors.len()));
    assert!(report.to_csv().lines().count() > container.index().tensors.len());
    report.worst(3);
    let verified = verify::verify(&container, None).expect("nobody cancels");
    let good = verified.is_good();
    for (name, tensor) in container.tensors() {
        assert!(container.by_name(name).is_some());
        match tensor {
            Tensor::Dense(dense) => {
                let bits = dense.shape.iter().product::<usize>() * dense.dtype.bitsize();
                assert_eq!(dense.data.len() * 8, bits);
            }
            Tensor::Int8(tensor) => {
                let valid = tensor.codes().iter().all(|&code| code != i8::MIN);
                assert_eq!(tensor.codes().len(), tensor.filters * tensor.filter_len);
                assert_eq!((tensor.to_array().is_ok(), valid || !good), (valid, true));
            }
            Tensor::Ternary(tensor) => read(&tensor, good),
        }
    }
    for entry in &container.index().tensors {
        let checked = container.check_sections(entry);
        assert!(checked.is_ok() || !good);
    }
    let directory = twn_pack_fuzz::directory();
    let unpacked = directory.path().join("out.safetensors");
    match unpack::unpack(&container, &unpacked, &unpack::Options { dtype: Some(Dtype::F32), ..Default::default() }) {
        Ok(length) => {
            assert_eq!(length, std::fs::metadata(&unpacked).unwrap().len());
            let checkpoint = Checkpoint::open(&unpacked).expect("what was unpacked opens");
            assert_eq!(checkpoint.len(), container.index().tensors.len());
            assert_eq!(checkpoint.metadata(), &container.index().metadata);
            verify::verify_against(&container, &checkpoint, None).expect("nobody cancels");
            for (name, tensor) in container.tensors() {
                let back = checkpoint.by_name(name).expect("every tensor").stored;
                match tensor {
                    Tensor::Dense(dense) => assert_eq!(dense.data, back),
                    Tensor::Int8(tensor) => same(name, tensor.to_array(), back),
                    Tensor::Ternary(tensor) => same(name, tensor.to_array(), back),
                }
            }
        }
        Err(Error::Container { .. }) => assert!(!good),
        Err(Error::Request(message)) => assert!(container.tensors().any(|(_, tensor)| overflows(&tensor)), "{message}"),
        Err(other) => panic!("{other}"),
    }
    if good {
        rewrite(&container, &directory.path().join("out.twn"));
    }
}

/// Whether a scale, which may be good by itself, makes the largest code an infinity.
fn overflows(tensor: &Tensor<'_>) -> bool {
    matches!(tensor, Tensor::Int8(int8) if int8.scales().any(|scale| (127.0 * scale).is_infinite()))
}

/// What was unpacked is what is read from memory.
fn same(name: &str, array: Result<ndarray::ArrayD<f32>, String>, back: &[u8]) {
    let array = array.expect("it was unpacked");
    let back = back.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    assert!(array.into_iter().map(bits).eq(back.map(bits)), "{name}");
}

/// Every view of a tensor. In a good file all of them have to succeed, and to say the same.
fn read(tensor: &TernaryTensor<'_>, good: bool) {
    let (filters, n) = (tensor.filters, tensor.filter_len);
    assert_eq!(filters * n, tensor.shape.iter().product::<usize>());
    assert_eq!(tensor.packed().len(), tensor.planes * filters * tensor.filter_bytes());
    assert_eq!(tensor.scale_bytes().len(), tensor.scales().len() * tensor.scale_dtype.size());
    let valid = tensor.scales().all(|scale| scale.is_finite() && scale.is_sign_positive());
    assert!(valid || !good);
    let (mut codes, mut values) = (vec![0; n], vec![0.0; n]);
    let mut all_values = Vec::new();
    let mut counts = [0u64; 3];
    let mut decoded = true;
    for filter in 0..filters {
        let mut expected = vec![0.0f32; n];
        let mut whole = true;
        for plane in 0..tensor.planes {
            let result = tensor.codes(plane, filter, &mut codes);
            let (zeros, signs) = (tensor.zero_plane(plane, filter), tensor.sign_plane(plane, filter));
            assert_eq!((zeros.is_ok(), signs.is_ok()), (result.is_ok(), result.is_ok()));
            let (Ok(()), Ok(zeros), Ok(signs)) = (result, zeros, signs) else {
                whole = false;
                continue;
            };
            for (j, &code) in codes.iter().enumerate() {
                counts[usize::from(code)] += 1;
                assert_eq!((zeros[j], signs[j]), (code == 1, code == 0));
                let alpha = tensor.scale(plane, filter, j);
                let term = [-alpha, 0.0, alpha][usize::from(code)];
                expected[j] = if plane == 0 { term } else { expected[j] + term };
            }
        }
        assert_eq!(tensor.dequantize_filter(filter, &mut values).is_ok(), whole);
        decoded &= whole;
        if whole {
            assert!(values.iter().zip(&expected).all(|(a, b)| bits(*a) == bits(*b)), "{values:?} {expected:?}");
            all_values.push(values.clone());
        }
    }
    assert!(decoded || !good);
    match tensor.to_array() {
        Err(_) => assert!(!decoded),
        Ok(array) => {
            assert!(decoded && array.shape() == tensor.shape.as_slice());
            let inner: usize = tensor.shape[tensor.axis + 1..].iter().product();
            let array = array.as_slice().expect("standard layout");
            for (i, row) in all_values.iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    assert_eq!(bits(array[(j / inner * filters + i) * inner + j % inner]), bits(*value));
                }
            }
        }
    }
    if good {
        assert_eq!(counts, [tensor.stats.negative, tensor.stats.zeros, tensor.stats.positive]);
        let run = if tensor.granularity == Granularity::Tensor { n } else { tensor.scale_run() };
        assert!(run >= 1);
    }
}

/// Written anew from what was read, a good file says the same.
fn rewrite(container: &Container, path: &std::path::Path) {
    let mut writer = ContainerWriter::create(path, false).unwrap();
    for (entry, (_, tensor)) in container.index().tensors.iter().zip(container.tensors()) {
        let written: Vec<_> = match &tensor {
            Tensor::Dense(dense) => vec![writer.section(dense.data).unwrap()],
            Tensor::Int8(int8) => {
                let codes: Vec<u8> = int8.codes().iter().map(|code| code.cast_unsigned()).collect();
                vec![writer.section(&codes).unwrap(), writer.section(int8.scale_bytes()).unwrap()]
            }
            Tensor::Ternary(ternary) => {
                vec![writer.section(ternary.packed()).unwrap(), writer.section(ternary.scale_bytes()).unwrap()]
            }
        };
        let sections: Vec<_> = match entry.body() {
            Body::Dense(dense) => vec![dense.section],
            Body::Int8(int8) => vec![int8.codes, int8.scales],
            Body::Ternary(ternary) => vec![ternary.codes, ternary.scales],
        };
        assert_eq!(written, sections);
    }
    writer.finish(container.index()).expect("a good index is good again");
    let again = Container::open(path).expect("what was written opens");
    assert_eq!(again.index(), container.index());
}
