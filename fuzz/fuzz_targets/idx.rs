//! Any bytes as the two IDX files of a data set, gzipped or not. What opens has as many labels as images,
//! and pixels for all of them; what is not gzipped opens just where a reader of a few lines says so.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ndarray::Array4;
use twn_pack::Error;
use twn_pack::data::{DataSet, Split};
use twn_pack_fuzz::Bytes;

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let (zipped, length) = (bytes.u8(), bytes.u16());
    let files = [("images-idx3", bytes.take(length.into())), ("labels-idx1", bytes.0)];
    let directory = twn_pack_fuzz::directory();
    for (i, (name, bytes)) in files.iter().enumerate() {
        let gz = if zipped >> i & 1 == 1 { ".gz" } else { "" };
        std::fs::write(directory.path().join(format!("train-{name}-ubyte{gz}")), bytes).unwrap();
    }
    let opened = DataSet::open_idx(directory.path(), Split::Train);
    if zipped & 3 == 0 {
        let [images, labels] = [dimensions(files[0].1, 0x803, 3), dimensions(files[1].1, 0x801, 1)];
        let good = images.is_some_and(|images| labels.is_some_and(|labels| images[0] == labels[0]));
        assert_eq!(opened.is_ok(), good, "{opened:?}");
    }
    let set = match opened {
        Ok(set) => set,
        Err(error @ Error::Data { .. }) => {
            assert!(!error.to_string().is_empty());
            return;
        }
        Err(other) => panic!("{other}"),
    };
    assert_eq!(set.labels().len(), set.len());
    let [channels, height, width] = set.shape();
    // The last image is the last byte's.
    let mut image = Array4::from_elem((1, channels, height, width), f32::NAN);
    set.read(&[set.len() - 1], None, image.view_mut()).unwrap();
    assert!(image.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
    let most = set.labels().iter().copied().max().map_or(0, |label| label as usize);
    assert!(set.check_labels(set.len(), most + 1).is_ok());
    assert!(most == 0 || set.check_labels(set.len(), most).is_err());
});

/// Of a file that is one of that kind, and as long as it says.
fn dimensions(file: &[u8], magic: u32, rank: usize) -> Option<Vec<u32>> {
    let header = file.get(..4 + 4 * rank)?;
    let numbers: Vec<u32> = header.as_chunks().0.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect();
    let size = numbers[1..].iter().try_fold(1u64, |product, &n| product.checked_mul(n.into()))?;
    let good = numbers[0] == magic && size > 0 && (file.len() - header.len()) as u64 == size;
    good.then(|| numbers[1..].to_vec())
}
