//! IDX files as they come: with both names and both wrappings, cut off, forged, from strangers. Every
//! fault is an error that names the file, what was expected and what was found.

#![cfg(feature = "eval")]

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use twn_pack::data::{DataSet, Split};
use twn_pack::{Error, Fault};

const IMAGES: &str = "t10k-images-idx3-ubyte";
const LABELS: &str = "t10k-labels-idx1-ubyte";

fn header(magic: u32, dimensions: &[u32]) -> Vec<u8> {
    [&[magic], dimensions].concat().into_iter().flat_map(u32::to_be_bytes).collect()
}

/// Three images of 2 × 4 and their labels.
fn files() -> (Vec<u8>, Vec<u8>) {
    let images = [header(0x803, &[3, 2, 4]), (0..24).map(|i| i * 11).collect()].concat();
    (images, [header(0x801, &[3]), vec![0, 9, 4]].concat())
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What a directory with these files opens to.
fn open(files: &[(&str, &[u8])]) -> Result<DataSet, Error> {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    DataSet::open_idx(directory.path(), Split::Test)
}

fn message(result: Result<DataSet, Error>) -> String {
    let error = result.map(|data| data.len()).unwrap_err();
    assert_eq!(error.fault(), Fault::Input, "{error}");
    error.to_string()
}

#[test]
fn both_names_and_both_wrappings_are_read() {
    let (images, labels) = files();
    let dots = [IMAGES, LABELS].map(|name| name.replace("-idx", ".idx"));
    for files in [
        [(IMAGES.to_owned(), images.clone()), (LABELS.to_owned(), labels.clone())],
        [(dots[0].clone(), images.clone()), (dots[1].clone(), labels.clone())],
        [(format!("{IMAGES}.gz"), gz(&images)), (format!("{}.gz", dots[1]), gz(&labels))],
        // Two gzip members, one after the other, are one file.
        [
            (format!("{IMAGES}.gz"), [gz(&images[..20]), gz(&images[20..])].concat()),
            (LABELS.to_owned(), labels.clone()),
        ],
    ] {
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        let data = open(&files).unwrap();
        assert_eq!((data.len(), data.is_empty(), data.shape(), data.labels()), (3, false, [1, 2, 4], &[0, 9, 4][..]));
        let mut batch = ndarray::Array4::zeros((2, 1, 2, 4));
        data.read(&[1, 2], None, batch.view_mut()).unwrap();
        assert_eq!(batch[[0, 0, 0, 0]], 88.0 / 255.0);
        assert_eq!(batch[[1, 0, 1, 3]], 253.0 / 255.0);
    }
    let training = [("train-images-idx3-ubyte", &images[..]), ("train-labels-idx1-ubyte", &labels)];
    assert!(message(open(&training)).contains("no test images here, expected one of t10k-images-idx3-ubyte, "));
}

#[test]
fn the_fixture_is_what_mnist_begins_with() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mnist64");
    let data = DataSet::open_idx(directory, Split::Test).unwrap();
    assert_eq!((data.len(), data.shape()), (64, [1, 28, 28]));
    assert_eq!(data.labels()[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    let error = DataSet::open_idx("no/such/directory", Split::Test).unwrap_err();
    assert_eq!(error.fault(), Fault::Io);
}

#[test]
fn what_is_wrong_is_named() {
    let (images, labels) = files();
    let more = |bytes: &[u8]| [bytes, &[0]].concat();
    let sized = |dimensions: &[u32]| [header(0x803, dimensions), vec![0; 24]].concat();
    for (name, bytes, says) in [
        (IMAGES, labels.clone(), "magic number 0x00000801, expected 0x00000803, images in IDX format"),
        (LABELS, images.clone(), "magic number 0x00000803, expected 0x00000801, labels in IDX format"),
        (IMAGES, gz(&images), "magic number 0x1f8b0800, expected 0x00000803"),
        (IMAGES, vec![], "ends after 0 bytes, expected 4: the magic number"),
        (LABELS, labels[..7].to_vec(), "ends after 7 bytes, expected 8: the header"),
        (IMAGES, images[..30].to_vec(), "ends after 30 bytes, expected 40: 3 images × 2 rows × 4 columns"),
        (IMAGES, more(&images), "goes on after 40 bytes, expected to end there: 3 images × 2 rows × 4 columns"),
        (LABELS, more(&labels), "goes on after 11 bytes"),
        (IMAGES, sized(&[0, 28, 28]), "0 images × 28 rows × 28 columns in the header, expected at least 1 of each"),
        (IMAGES, sized(&[u32::MAX; 3]), "expected at least 1 of each and at most 4294967296 bytes in all"),
        (IMAGES, sized(&[1 << 16, 1 << 8, 1 << 8]), "ends after 40 bytes, expected 4294967312"),
        (LABELS, [header(0x801, &[2]), vec![0, 9]].concat(), "2 labels, expected 3, one per image of "),
    ] {
        let (images, labels) = if name == IMAGES { (&bytes, &labels) } else { (&images, &bytes) };
        let found = message(open(&[(IMAGES, images), (LABELS, labels)]));
        assert!(found.contains(says) && found.contains(&format!("{name}: ")), "{says}\n{found}");
        // Zipped, the same is wrong with it.
        if !says.contains("0x1f8b") {
            let files = [(format!("{IMAGES}.gz"), gz(images)), (format!("{LABELS}.gz"), gz(labels))];
            let found = message(open(&files.each_ref().map(|(name, bytes)| (name.as_str(), &bytes[..]))));
            assert!(found.contains(says), "{says}\n{found}");
        }
    }
}

#[test]
fn labels_are_held_to_the_network() {
    let (images, labels) = files();
    let data = open(&[(IMAGES, &images), (LABELS, &labels)]).unwrap();
    data.check_labels(3, 10).unwrap();
    data.check_labels(1, 1).unwrap();
    let error = data.check_labels(3, 9).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    let expected = "label 9 of image 1, expected 0 to 8: the network has 9 outputs; mend the label, or give the network more with \
                    --classes";
    assert!(error.to_string().ends_with(expected), "{error}");
}

/// Cut off anywhere it is an error; with any bit changed it is an error or, where gzip does not look
/// (the time, the system, bits after the last code), the same images.
#[test]
fn damaged_gzip_is_noticed() {
    let (images, labels) = files();
    let zipped = gz(&images);
    let name = format!("{IMAGES}.gz");
    for length in 0..zipped.len() {
        let found = message(open(&[(&name, &zipped[..length]), (LABELS, &labels)]));
        assert!(found.contains("ends after") || found.contains("gzip: "), "{length}: {found}");
    }
    let read = |data: &DataSet| {
        let mut batch = ndarray::Array4::zeros((3, 1, 2, 4));
        data.read(&[0, 1, 2], None, batch.view_mut()).unwrap();
        batch
    };
    let whole = read(&open(&[(IMAGES, &images), (LABELS, &labels)]).unwrap());
    let mut unnoticed = 0;
    for bit in 0..8 * zipped.len() {
        let mut damaged = zipped.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match open(&[(&name, &damaged), (LABELS, &labels)]) {
            Err(error) => assert_eq!(error.fault(), Fault::Input),
            Ok(data) => {
                assert_eq!(read(&data), whole, "bit {bit}");
                unnoticed += 1;
            }
        }
    }
    assert!(unnoticed < 64, "{unnoticed} of {} bits", 8 * zipped.len());
}

/// What is read follows the header, not what the stream would unpack to.
#[test]
fn a_gzip_bomb_stops_where_its_header_ends() {
    let (images, _) = files();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&header(0x801, &[3])).unwrap();
    (0..64).for_each(|_| encoder.write_all(&[0; 1 << 20]).unwrap());
    let bomb = encoder.finish().unwrap();
    let found = message(open(&[(IMAGES, &images), (&format!("{LABELS}.gz"), &bomb)]));
    assert!(found.contains("goes on after 11 bytes"), "{found}");
}
