//! CIFAR and arrays as they come: read, cut off, forged. Each file is made here byte by byte. Not here:
//! IDX (`tests/idx.rs`), folders of images and what is random (`tests/images.rs`).

#![cfg(feature = "eval")]

#[path = "common/data_sets.rs"]
mod common;

use std::path::Path;

use common::{directory, refusal};
use half::f16;
use ndarray::{Array4, ArrayView3, s};
use twn_pack::data::{DataSet, Normalization, Split};
use twn_pack::{Error, Fault};

fn open(files: &[(&str, Vec<u8>)], split: Split) -> Result<DataSet, Error> {
    DataSet::open(directory(files).path(), split)
}

/// What is wrong with a directory of these files, which is the files' fault.
fn message(files: &[(&str, Vec<u8>)], split: Split) -> String {
    refusal(directory(files).path(), split)
}

fn read(data: &DataSet, indices: &[usize]) -> Array4<f32> {
    let [channels, height, width] = data.shape();
    let mut batch = Array4::from_elem((indices.len(), channels, height, width), f32::NAN);
    data.read(indices, None, batch.view_mut()).unwrap();
    batch
}

/// A pixel's byte, another one for each place near it.
fn pixel(image: usize, channel: usize, y: usize, x: usize) -> u8 {
    (image * 89 + channel * 71 + y * 7 + x * 3) as u8
}

/// Records of CIFAR: labels, red, green, blue.
fn records(first: usize, labels: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, labels) in labels.iter().enumerate() {
        bytes.extend_from_slice(labels);
        for (channel, y, x) in ndarray::indices((3, 32, 32)) {
            bytes.push(pixel(first + i, channel, y, x));
        }
    }
    bytes
}

fn check_cifar_image(image: ArrayView3<'_, f32>, number: usize) {
    for ((channel, y, x), &value) in image.indexed_iter() {
        assert_eq!(value, f32::from(pixel(number, channel, y, x)) / 255.0, "{number}: {channel}, {y}, {x}");
    }
}

fn cifar10() -> Vec<(&'static str, Vec<u8>)> {
    let mut files = vec![("test_batch.bin", records(0, &[&[3], &[8], &[0]]))];
    let names = ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
    files.extend(names.iter().enumerate().map(|(i, name)| (*name, records(2 * i, &[&[i as u8], &[9 - i as u8]]))));
    files
}

#[test]
fn cifar10_is_channel_after_channel_and_batch_after_batch() {
    let data = open(&cifar10(), Split::Test).unwrap();
    assert_eq!((data.len(), data.shape(), data.classes(), data.labels()), (3, [3, 32, 32], 10, &[3, 8, 0][..]));
    let batch = read(&data, &[2, 0, 2]);
    for (image, number) in batch.outer_iter().zip([2, 0, 2]) {
        check_cifar_image(image, number);
    }
    let data = open(&cifar10(), Split::Train).unwrap();
    assert_eq!(data.labels(), [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]);
    let all: Vec<usize> = (0..10).collect();
    read(&data, &all).outer_iter().enumerate().for_each(|(number, image)| check_cifar_image(image, number));
}

#[test]
fn cifar100_has_two_labels_and_the_fine_one_counts() {
    let files = [("cifar-100-binary/test.bin", records(0, &[&[19, 99], &[0, 7]]))];
    let data = open(&files, Split::Test).unwrap();
    assert_eq!((data.len(), data.classes(), data.labels()), (2, 100, &[99, 7][..]));
    check_cifar_image(read(&data, &[1]).slice(s![0, .., .., ..]), 1);
    let found = message(&files, Split::Train);
    assert!(found.contains("no CIFAR-100 training images here: train.bin expected"), "{found}");
}

#[test]
fn what_is_wrong_with_cifar_is_named() {
    let subdirectory = |name: &str| format!("cifar-10-batches-bin/{name}");
    for (name, bytes, says) in [
        ("test_batch.bin", vec![], "0 bytes, expected one or more records of 3073 bytes"),
        ("test_batch.bin", vec![0; 3073 * 2 - 1], "6145 bytes, expected one or more records of 3073"),
        ("test_batch.bin", records(0, &[&[3], &[10]]), "label 10 of image 1, expected 0 to 9"),
        ("test.bin", vec![0; 3073], "3073 bytes, expected one or more records of 3074"),
        ("test.bin", records(0, &[&[20, 0]]), "coarse label 20 of image 0, expected 0 to 19"),
        ("test.bin", records(0, &[&[0, 100]]), "fine label 100 of image 0, expected 0 to 99"),
    ] {
        let found = message(&[(name, bytes.clone())], Split::Test);
        assert!(found.contains(says) && found.contains(&format!("{name}: ")), "{says}\n{found}");
        if name == "test_batch.bin" {
            assert!(message(&[(&subdirectory(name), bytes)], Split::Test).contains(says));
        }
    }
    let mut files = cifar10();
    files.remove(3);
    let found = message(&files, Split::Train);
    assert!(found.contains("no CIFAR-10 training images here: data_batch_3.bin expected"), "{found}");
}

/// A .npy file of version 1.
fn npy(header: &str, values: &[u8]) -> Vec<u8> {
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), values].concat()
}

fn header(descr: &str, shape: &str) -> String {
    format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}    \n")
}

fn safetensors(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let (mut json, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let (from, to) = (data.len(), data.len() + bytes.len());
        json.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#));
        data.extend_from_slice(bytes);
    }
    let json = format!("{{{}}}", json.join(","));
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &data].concat()
}

const SHAPE: [usize; 4] = [2, 2, 1, 3];
const VALUES: [f32; 12] = [0.0, 1.0, -2.5, 3.0, 0.5, 6.0, 0.25, 7.0, 8.0, -9.0, 10.0, 1024.0];

fn floats() -> Vec<u8> {
    VALUES.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn halves() -> Vec<u8> {
    VALUES.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
}

#[test]
fn arrays_of_every_type_and_version_are_read() {
    let bytes: Vec<u8> = (0..12).map(|i| i * 20).collect();
    let small: [u8; 2] = [1, 200];
    let wide = [1i32, 70_000].map(i32::to_le_bytes).concat();
    let long = [1i64, 70_000].map(i64::to_le_bytes).concat();
    for (values, npy_type, dtype, expected) in [
        (&bytes, "|u1", "U8", bytes.iter().map(|x| f32::from(*x) / 255.0).collect::<Vec<_>>()),
        (&floats(), "<f4", "F32", VALUES.to_vec()),
        (&halves(), "<f2", "F16", VALUES.to_vec()),
    ] {
        for (labels, npy_label, label, second) in
            [(&small[..], "|u1", "U8", 200), (&wide, "<i4", "I32", 70_000), (&long, "<i8", "I64", 70_000)]
        {
            let tensors = safetensors(&[("labels", label, &[2], labels), ("images", dtype, &SHAPE, values)]);
            let images = npy(&header(npy_type, "(2, 2, 1, 3)"), values);
            // Version 2 has a longer length.
            let text = header(npy_label, "(2,)");
            let length = (text.len() as u32).to_le_bytes();
            let labels = [b"\x93NUMPY\x02\x00", &length[..], text.as_bytes(), labels].concat();
            let kinds =
                [vec![("test.safetensors", tensors)], vec![("test-images.npy", images), ("test-labels.npy", labels)]];
            for files in kinds {
                let data = open(&files, Split::Test).unwrap();
                assert_eq!((data.len(), data.shape(), data.labels()), (2, [2, 1, 3], &[1, second][..]));
                assert_eq!(data.classes(), second as usize + 1);
                assert_eq!(read(&data, &[0, 1]).into_raw_vec_and_offset().0, expected);
                assert_eq!(read(&data, &[1]).into_raw_vec_and_offset().0, expected[6..]);
            }
        }
    }
}

#[test]
fn normalization_comes_last() {
    let tensors = safetensors(&[("images", "F32", &SHAPE, &floats()), ("labels", "U8", &[2], &[0, 1])]);
    let data = open(&[("train.safetensors", tensors)], Split::Train).unwrap();
    let normalization =
        |mean: &[f32], std: &[f32]| Normalization { mean: mean.to_vec().into(), std: std.to_vec().into() };
    let good = data.clone().with_normalization(normalization(&[1.0, 2.0], &[2.0, 0.5])).unwrap();
    assert_eq!(read(&good, &[0]).into_raw_vec_and_offset().0, [-0.5, 0.0, -1.75, 2.0, -3.0, 8.0]);
    for (mean, std, says) in [
        (&[0.0; 3][..], &[1.0; 3][..], "3 means and 3 standard deviations, expected 2 of each"),
        (&[0.0; 2], &[1.0; 1], "2 means and 1 standard deviations"),
        (&[0.0; 2], &[1.0, 0.0], "expected finite ones, of at least 1e-6"),
        (&[f32::NAN, 0.0], &[1.0; 2], "expected finite ones"),
    ] {
        let error = data.clone().with_normalization(normalization(mean, std)).unwrap_err();
        assert!(error.fault() == Fault::Request && error.to_string().contains(says), "{error}");
    }
}

/// A checksum is of all that is used: a byte of any image or label changes it, one behind them does not.
#[test]
fn checksums_are_of_every_image_and_label() {
    let checksum = |files: &[(&str, Vec<u8>)], images| open(files, Split::Test).unwrap().checksum(images).unwrap();
    let cifar = |labels: [u8; 3], pixel: u8| {
        let mut bytes = records(0, &[&labels[..1], &labels[1..2], &labels[2..]]);
        *bytes.last_mut().unwrap() ^= pixel;
        [("test_batch.bin", bytes)]
    };
    let whole = checksum(&cifar([3, 8, 0], 0), 3);
    assert_eq!(checksum(&cifar([3, 8, 0], 0), 3), whole);
    assert_ne!(checksum(&cifar([3, 8, 1], 0), 3), whole);
    assert_ne!(checksum(&cifar([3, 8, 0], 1), 3), whole);
    let two = checksum(&cifar([3, 8, 0], 0), 2);
    assert_ne!(two, whole);
    assert_eq!(checksum(&cifar([3, 8, 1], 1), 2), two);
    let normalized = open(&cifar([3, 8, 0], 0), Split::Test).unwrap().with_normalization(Normalization::CIFAR10);
    assert_ne!(normalized.unwrap().checksum(3).unwrap(), whole);
}

#[test]
fn requests_that_make_no_sense() {
    let data = open(&cifar10(), Split::Test).unwrap();
    let mut batch = Array4::zeros((1, 3, 32, 32));
    for (indices, says) in
        [(&[0, 1][..], "a batch of [1, 3, 32, 32], expected [2, 3, 32, 32]"), (&[3], "image 3, expected 0 to 2")]
    {
        let error = data.read(indices, None, batch.view_mut()).unwrap_err();
        assert!(error.fault() == Fault::Request && error.to_string().contains(says), "{error}");
    }
    data.read(&[], None, Array4::zeros((0, 3, 32, 32)).view_mut()).unwrap();
    // A batch whose memory has another order.
    let mut turned = Array4::zeros((32, 32, 3, 1));
    data.read(&[1], None, turned.view_mut().reversed_axes().permuted_axes([0, 1, 3, 2])).unwrap();
    check_cifar_image(turned.view().reversed_axes().permuted_axes([0, 1, 3, 2]).slice(s![0, .., .., ..]), 1);
    assert!(data.clone().with_size(0, 5).is_err() && data.clone().with_size(usize::MAX, 2).is_err());
    // CIFAR has one size.
    assert_eq!(data.with_size(8, 8).unwrap().shape(), [3, 32, 32]);
}

#[test]
fn values_that_are_no_numbers_are_found_when_they_are_read() {
    let mut values = floats();
    values[24..28].copy_from_slice(&f32::NAN.to_le_bytes());
    let tensors = safetensors(&[("images", "F32", &SHAPE, &values), ("labels", "U8", &[2], &[0, 1])]);
    let data = open(&[("train.safetensors", tensors)], Split::Train).unwrap();
    read(&data, &[0]);
    let error = data.read(&[0, 1], None, Array4::zeros((2, 2, 1, 3)).view_mut()).unwrap_err();
    assert!(error.to_string().contains("train.safetensors: image 1 has a NaN or an infinity"), "{error}");
}

#[test]
fn what_is_wrong_with_arrays_is_named() {
    let images = npy(&header("|u1", "(2, 1, 2, 2)"), &[0; 8]);
    let labels = npy(&header("|u1", "(2,)"), &[0, 1]);
    let with = |header: &str, bytes: usize| npy(header, &vec![0; bytes]);
    for (name, bytes, says) in [
        ("images", vec![], "ends after 0 bytes, expected 6: the header"),
        ("images", b"PK\x03\x04....".to_vec(), "\"PK\\x03\\x04..\", expected \\x93NUMPY at the beginning"),
        ("images", images[..7].to_vec(), "ends after 7 bytes, expected 8"),
        ("images", images[..9].to_vec(), "ends after 9 bytes, expected 10"),
        ("images", images[..40].to_vec(), "ends after 40 bytes, expected 80: the header"),
        ("images", images[..images.len() - 1].to_vec(), "expected 88: |u1 of [2, 1, 2, 2]"),
        ("images", [&images[..], &[0]].concat(), "goes on after 88 bytes"),
        ("images", [b"\x93NUMPY\x04\x00", &images[8..]].concat(), "version 4.0, expected version 1.0, 2.0 or 3.0"),
        (
            "images",
            [b"\x93NUMPY\x02\x00", &u32::MAX.to_le_bytes()[..]].concat(),
            "4294967295 bytes, expected a header of at most 65536",
        ),
        ("images", with(&header(">f4", "(2, 1, 2, 2)"), 32), "type >f4, expected one of the types |u1"),
        ("images", with(&header("|O", "(2, 1, 2, 2)"), 32), "type |O, expected"),
        ("images", with(&header("|u1", "(2, 1, 2, 2)").replace("False", "True"), 8), "Fortran order, expected C order"),
        ("images", with("{'descr': '|u1'}", 8), "{'descr': '|u1'}, expected a header like {'descr': "),
        ("images", with(&header("|u1", "(2, 1, 2 2)"), 8), "expected a header like"),
        ("images", with(&header("|u1", "(2, 1, 2, -2)"), 8), "expected a header like"),
        ("images", with(&header("|u1", "(8)"), 8), "expected a header like"),
        ("images", with(&header("|u1", "(99999999999999999999,)"), 8), "expected a header like"),
        ("images", with(&header("<f4", "(4294967296, 4294967296)"), 8), "expected less than 2^63 bytes"),
        ("images", with(&header("|u1", "(1152921504606846976, 1, 1, 1)"), 8), "ends after"),
        ("images", with(&header("|u1", "(2, 4)"), 8), "`images` is U8 of [2, 4], expected U8, F16 or F32 of [images, "),
        ("images", with(&header("|u1", "(0, 1, 2, 2)"), 0), "`images` is U8 of [0, 1, 2, 2], expected"),
        ("images", with(&header("<i8", "(1, 1, 1, 1)"), 8), "`images` is I64 of [1, 1, 1, 1], expected"),
        ("labels", with(&header("<f4", "(2,)"), 8), "`labels` is F32 of [2], expected U8, I32 or I64 of [images]"),
        ("labels", with(&header("|u1", "(2, 1)"), 2), "`labels` is U8 of [2, 1], expected"),
        ("labels", with(&header("|u1", "(3,)"), 3), "3 labels, expected 2, one per image of "),
        (
            "labels",
            npy(&header("<i4", "(2,)"), &[[0; 4], [255; 4]].concat()),
            "label -1 of image 1, expected 0 to 1048575",
        ),
        ("labels", npy(&header("<i8", "(2,)"), &[255; 16]), "label -1 of image 0"),
        ("labels", npy(&header("<i4", "(2,)"), &[[0; 4], [0, 0, 16, 0]].concat()), "label 1048576 of image 1"),
    ] {
        let files = match name {
            "images" => [("test-images.npy", bytes), ("test-labels.npy", labels.clone())],
            _ => [("test-images.npy", images.clone()), ("test-labels.npy", bytes)],
        };
        let found = message(&files, Split::Test);
        assert!(found.contains(says) && found.contains(&format!("test-{name}.npy: ")), "{says}\n{found}");
    }
    let found = message(&[("test-labels.npy", labels)], Split::Test);
    assert!(found.contains("no test images here, expected one of test-images.npy"), "{found}");
}

/// Cut off anywhere, a header is an error; with any byte changed it is an error or another good header.
#[test]
fn damaged_headers_never_panic() {
    let images = npy(&header("<f4", "(2, 1, 2, 2)"), &[0; 32]);
    let labels = npy(&header("|u1", "(2,)"), &[0, 1]);
    let files = |images: Vec<u8>| [("test-images.npy", images), ("test-labels.npy", labels.clone())];
    for length in 0..images.len() {
        let found = message(&files(images[..length].to_vec()), Split::Test);
        assert!(found.contains("ends after"), "{length}: {found}");
    }
    for at in 0..images.len() - 32 {
        for byte in [0, b'0', b'9', b'(', b')', b',', b'\'', b'}', 0x7f, 0xff, images[at] ^ 1] {
            let mut damaged = images.clone();
            damaged[at] = byte;
            if let Err(error) = open(&files(damaged), Split::Test) {
                assert_eq!(error.fault(), Fault::Input, "{at}, {byte}: {error}");
            }
        }
    }
}

#[test]
fn what_is_wrong_with_tensors_is_named() {
    let pixels = vec![0; 12];
    let good: [(&str, &str, &[usize], &[u8]); 2] = [("images", "U8", &SHAPE, &pixels), ("labels", "U8", &[2], &[0, 1])];
    for (bytes, says) in [
        (safetensors(&good[..1]), "no tensor `labels` here: `images` and `labels` expected"),
        (safetensors(&good[1..]), "no tensor `images` here"),
        (
            safetensors(&[("images", "I8", &SHAPE, &pixels), good[1]]),
            "`images` is I8 of [2, 2, 1, 3], expected U8, F16",
        ),
        (safetensors(&[("images", "U8", &[3, 4, 1], &pixels), good[1]]), "`images` is U8 of [3, 4, 1], expected"),
        (safetensors(&[good[0], ("labels", "F32", &[2], &[0; 8])]), "`labels` is F32 of [2], expected U8, I32 or I64"),
        (safetensors(&[good[0], ("labels", "U8", &[3], &[0; 3])]), "3 labels, expected 2"),
        (safetensors(&good)[..100].to_vec(), "test.safetensors: not a safetensors file"),
    ] {
        let found = message(&[("test.safetensors", bytes)], Split::Test);
        assert!(found.contains(says), "{says}\n{found}");
    }
    let found = message(&[("test.safetensors", safetensors(&good))], Split::Train);
    assert!(found.contains("no training images and labels here, expected one of train.safetensors"), "{found}");
}

#[test]
fn a_directory_holds_one_data_set() {
    let nothing = message(&[("model.safetensors", vec![])], Split::Test);
    for name in [
        "no data set here",
        "t10k-images-idx3-ubyte",
        "test_batch.bin",
        "test.bin",
        "test.safetensors",
        "test-images.npy",
    ] {
        assert!(nothing.contains(name), "{nothing}");
    }
    let two = message(
        &[("test.bin", vec![]), ("train-labels.npy", vec![]), ("t10k-labels.idx1-ubyte.gz", vec![])],
        Split::Test,
    );
    let names = "IDX files (t10k-labels.idx1-ubyte.gz), CIFAR-100 (test.bin), arrays (train-labels.npy)";
    assert!(two.contains(&format!("holds more than one data set: {names}; give the directory")), "{two}");
    assert_eq!(DataSet::open("no/such/directory", Split::Test).unwrap_err().fault(), Fault::Io);
    let mnist = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mnist64");
    let data = DataSet::open(mnist, Split::Test).unwrap();
    assert_eq!((data.len(), data.shape(), data.classes()), (64, [1, 28, 28], 10));
}
