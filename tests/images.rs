//! Folders of images and what is changed at random, against references written naively here. Not here:
//! data sets of one file or a few (`tests/data_sets.rs`).

#![cfg(feature = "train")]

#[path = "common/data_sets.rs"]
mod common;

use std::collections::BTreeSet;
use std::io::Cursor;

use common::{directory, refusal};
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage, RgbaImage, imageops};
use ndarray::{Array3, Array4, ArrayView3, s};
use twn_pack::data::{Augmentation, Crop, DataSet, Normalization, Split};
use twn_pack::{Error, Fault};

/// A pattern that no two places near each other have in common.
fn pattern(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 5 + y) as u8, (y * 3 + x / 7) as u8, ((x ^ y) * 9) as u8]))
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
    encoded(image, ImageFormat::Png)
}

fn zeros(data: &DataSet, images: usize) -> Array4<f32> {
    let [channels, height, width] = data.shape();
    Array4::from_elem((images, channels, height, width), f32::NAN)
}

fn read(data: &DataSet, indices: &[usize], augmentation: Option<(&Augmentation, u64)>) -> Array4<f32> {
    let mut batch = zeros(data, indices.len());
    data.read(indices, augmentation, batch.view_mut()).unwrap();
    batch
}

fn planes(image: &RgbImage) -> Array3<f32> {
    Array3::from_shape_fn((3, image.height() as usize, image.width() as usize), |(c, y, x)| {
        f32::from(image[(x as u32, y as u32)].0[c]) / 255.0
    })
}

fn distance(a: ArrayView3<'_, f32>, b: ArrayView3<'_, f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn classes_are_folders_sorted_by_name() {
    let small = png(pattern(4, 4));
    let names =
        ["train/b/2.png", "train/b/1.JPEG", "train/a/x.jpg", "train/c/3.PnG", "train/c/notes.txt", "train/c/.4.png"];
    let mut files: Vec<_> = names.iter().map(|name| (*name, small.clone())).collect();
    files.extend([
        ("train/.hidden/1.png", small.clone()),
        ("val/c/1.png", small.clone()),
        ("val/b/1.png", small.clone()),
    ]);
    let directory = directory(&files);
    let data = DataSet::open(directory.path(), Split::Train).unwrap();
    assert_eq!((data.len(), data.classes(), data.labels()), (4, 3, &[0, 1, 1, 2][..]));
    assert_eq!(data.shape(), [3, 224, 224]);
    // A class that is not tested keeps its number.
    let data = DataSet::open(directory.path(), Split::Test).unwrap();
    assert_eq!((data.classes(), data.labels()), (3, &[1, 2][..]));
    let data = DataSet::open(directory.path().join("val"), Split::Whole).unwrap();
    assert_eq!((data.classes(), data.labels()), (2, &[0, 1][..]));
    assert_eq!(data.with_size(8, 9).unwrap().shape(), [3, 8, 9]);
}

#[test]
fn what_is_wrong_with_folders_is_named() {
    let small = png(pattern(4, 4));
    let file = |name| (name, small.clone());
    for (files, split, says) in [
        (vec![file("a/1.png")], Split::Test, "has classes directly in it, expected folders train and val or test"),
        (vec![file("train/a/1.png")], Split::Test, "no test images here, expected one of val, test"),
        (vec![file("val/a/1.png")], Split::Train, "no training images here, expected one of train"),
        (vec![file("val/a/1.png"), file("test/a/1.png")], Split::Test, "test images in val/ and in test/"),
        (vec![file("train/1.png")], Split::Train, "train: holds no folder of a class, expected one folder"),
        (vec![file("train/a/1.gif"), file("train/b/1.png")], Split::Train, "a: holds no image, expected .jpg"),
        (vec![file("train/a/1.png"), file("val/b/1.png")], Split::Test, "val: class `b` is not in "),
        (vec![file("train.bin")], Split::Whole, "holds no folder of a class"),
        (
            vec![file("train/a/1.png"), file("train.bin")],
            Split::Train,
            "CIFAR-100 (train.bin), folders of images (train/)",
        ),
        (vec![file("x/y/1.png")], Split::Test, "no data set here"),
    ] {
        let found = refusal(directory(&files).path(), split);
        assert!(found.contains(says), "{says}\n{found}");
    }
    // ImageNet's test images have no classes.
    let directory = directory(&[file("val/a/1.png"), file("test/1.png")]);
    assert_eq!(DataSet::open(directory.path(), Split::Test).unwrap().len(), 1);
}

#[test]
fn every_kind_of_pixel_becomes_rgb() {
    let rgb = pattern(32, 32);
    let grey = GrayImage::from_fn(32, 32, |x, y| image::Luma([(x * 7 + y) as u8]));
    let alpha = RgbaImage::from_fn(32, 32, |x, y| {
        let [r, g, b] = rgb[(x, y)].0;
        image::Rgba([r, g, b, (x * 8) as u8])
    });
    let deep = DynamicImage::from(rgb.clone()).into_rgb16();
    let smooth = RgbImage::from_fn(32, 32, |x, y| image::Rgb([(x * 4) as u8, (y * 4) as u8, 128]));
    let directory = directory(&[
        ("a/1.png", png(rgb.clone())),
        ("a/2.png", png(grey.clone())),
        ("a/3.png", png(alpha)),
        ("a/4.png", png(deep)),
        ("a/5.jpg", encoded(smooth.clone(), ImageFormat::Jpeg)),
        // What counts is what is in it.
        ("a/6.jpg", png(rgb.clone())),
    ]);
    let data = DataSet::open(directory.path(), Split::Whole).unwrap().with_size(28, 28).unwrap();
    let batch = read(&data, &[0, 1, 2, 3, 4, 5], None);
    // 28 of 32 are 224 of 256: the middle as it is.
    let grey = RgbImage::from_fn(32, 32, |x, y| image::Rgb([grey[(x, y)].0[0]; 3]));
    for (found, (expected, within)) in
        batch.outer_iter().zip([(&rgb, 1e-6), (&grey, 1e-6), (&rgb, 1e-6), (&rgb, 1e-6), (&smooth, 0.03), (&rgb, 1e-6)])
    {
        let expected = planes(expected);
        let off = distance(found, expected.slice(s![.., 2..30, 2..30]));
        assert!(off <= within, "{off}");
    }
}

#[test]
fn the_middle_is_taken_and_resized() {
    let files =
        [("a/1.png", png(pattern(320, 256))), ("a/2.png", png(pattern(448, 512))), ("a/3.png", png(pattern(100, 60)))];
    let directory = directory(&files);
    let data = DataSet::open(directory.path(), Split::Whole).unwrap();
    let batch = read(&data, &[0, 1], None);
    let whole = planes(&pattern(320, 256));
    assert!(distance(batch.slice(s![0, .., .., ..]), whole.slice(s![.., 16..240, 48..272])) < 1e-6);
    // 392 × 392 of 448 × 512, against another implementation: at the edges that one knows less.
    let cut = imageops::crop_imm(&pattern(448, 512), 28, 60, 392, 392).to_image();
    let small = planes(&imageops::resize(&cut, 224, 224, imageops::FilterType::Triangle));
    let inner = s![.., 2..222, 2..222];
    let off = distance(batch.slice(s![1, .., .., ..]).slice(inner), small.slice(inner));
    assert!(off < 1.5 / 255.0, "{off}");
    // Larger than it is, and not square.
    let data = data.with_size(120, 150).unwrap();
    let found = read(&data, &[2], None);
    let (cut_h, cut_w) = (120.0 * 0.5 * 0.875, 150.0 * 0.5 * 0.875);
    let (top, left) = ((60.0 - cut_h) / 2.0, (100.0 - cut_w) / 2.0);
    let source = planes(&pattern(100, 60));
    for ((c, y, x), value) in found.slice(s![0, .., .., ..]).indexed_iter() {
        let (y, x) = (top + (y as f32 + 0.5) * cut_h / 120.0 - 0.5, left + (x as f32 + 0.5) * cut_w / 150.0 - 0.5);
        let (y0, x0) = (y.floor(), x.floor());
        let at = |y: f32, x: f32| source[[c, y as usize, x as usize]];
        let rows = [0.0, 1.0].map(|i| at(y0 + i, x0) * (x0 + 1.0 - x) + at(y0 + i, x0 + 1.0) * (x - x0));
        let expected = rows[0] * (y0 + 1.0 - y) + rows[1] * (y - y0);
        assert!((value - expected).abs() < 1e-4, "{c}, {y}, {x}: {value}, {expected}");
    }
}

/// Images in memory: `[images][2][height][width]`, floats that count up.
fn counting(count: usize, height: usize, width: usize) -> (tempfile::TempDir, DataSet) {
    arrays(&Array4::from_shape_fn((count, 2, height, width), |(n, c, y, x)| {
        1.0 + (((n * 2 + c) * height + y) * width + x) as f32
    }))
}

fn arrays(images: &Array4<f32>) -> (tempfile::TempDir, DataSet) {
    let npy = |descr: &str, shape: &[usize], bytes: Vec<u8>| {
        let shape: String = shape.iter().map(|n| format!("{n},")).collect();
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape})}}");
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &bytes].concat()
    };
    let labels = vec![0; images.shape()[0]];
    let values = images.iter().flat_map(|x| x.to_le_bytes()).collect();
    let directory = directory(&[
        ("train-images.npy", npy("<f4", images.shape(), values)),
        ("train-labels.npy", npy("|u1", &[labels.len()], labels)),
    ]);
    let data = DataSet::open(directory.path(), Split::Train).unwrap();
    (directory, data)
}

/// What is seen of an image with `pad` zeros around it, from there on, mirrored or not.
fn shifted(image: ArrayView3<'_, f32>, pad: usize, (dy, dx): (usize, usize), flip: bool) -> Array3<f32> {
    let &[_, height, width] = image.shape() else { unreachable!() };
    Array3::from_shape_fn(image.raw_dim(), |(c, y, x)| {
        let x = if flip { width - 1 - x } else { x };
        let (y, x) = ((y + dy).wrapping_sub(pad), (x + dx).wrapping_sub(pad));
        if y < height && x < width { image[[c, y, x]] } else { 0.0 }
    })
}

/// Every result is one of the padded, cropped, mirrored images; all of them come, about as often.
#[test]
fn pad_and_crop_and_flip() {
    for (height, width, pad) in [(5, 4, 1), (3, 2, 4), (4, 4, 0)] {
        let (_directory, data) = counting(2, height, width);
        let original = read(&data, &[1], None);
        let original = original.slice(s![0, .., .., ..]);
        let places = 2 * pad + 1;
        let (mut seen, mut flips) = (BTreeSet::new(), 0);
        for seed in 0..40 * (places * places) as u64 {
            let found = read(&data, &[1], Some((&Augmentation { crop: Crop::Pad(pad), flip: true }, seed)));
            let found = found.slice(s![0, .., .., ..]);
            let all = ndarray::indices((places, places, 2)).into_iter();
            let same = all.into_iter().find(|&(dy, dx, flip)| shifted(original, pad, (dy, dx), flip == 1) == found);
            let place = same.unwrap_or_else(|| panic!("{seed}: {found}"));
            flips += place.2;
            seen.insert(found.iter().map(|x| *x as u32).collect::<Vec<_>>());
        }
        let all = ndarray::indices((places, places, 2)).into_iter();
        let all: BTreeSet<Vec<u32>> = all
            .map(|(dy, dx, flip)| shifted(original, pad, (dy, dx), flip == 1).iter().map(|x| *x as u32).collect())
            .collect();
        assert_eq!(seen, all);
        if pad == 0 {
            assert!((8..=32).contains(&flips), "{flips} of 40");
        }
    }
}

/// The region, read off an image whose values are the places: within the bounds that were given.
#[test]
fn resized_crops_keep_to_their_bounds() {
    let side = 96;
    let ramp = Array4::from_shape_fn((1, 2, side, side), |(_, c, y, x)| if c == 0 { y as f32 } else { x as f32 });
    let (_directory, data) = arrays(&ramp);
    let crop = Augmentation { flip: false, ..Augmentation::IMAGENET };
    let (mut least, mut most) = (f32::MAX, 0.0f32);
    for seed in 0..300 {
        let found = read(&data, &[0], Some((&crop, seed)));
        // Away from the edges the ramp stays one.
        let step = |a: f32, b: f32| (b - a) / 40.0 * side as f32;
        let height = step(found[[0, 0, 28, 50]], found[[0, 0, 68, 50]]);
        let width = step(found[[0, 1, 50, 28]], found[[0, 1, 50, 68]]);
        let (area, ratio) = (height * width / (side * side) as f32, width / height);
        assert!((0.075..=1.001).contains(&area), "{seed}: {height} × {width}");
        assert!((0.72..=1.39).contains(&ratio), "{seed}: {height} × {width}");
        assert!(found.iter().all(|x| (-0.001..=95.001).contains(x)));
        (least, most) = (least.min(area), most.max(area));
    }
    assert!(least < 0.12 && most > 0.9, "{least}, {most}");
}

#[test]
fn random_means_by_seed_and_image_and_by_nothing_else() {
    let files: Vec<(String, Vec<u8>)> =
        (0..6).map(|i| (format!("a/{i}.png"), png(pattern(40 + 3 * i, 61 - 5 * i)))).collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let directory = directory(&files);
    let folder = DataSet::open(directory.path(), Split::Whole).unwrap().with_size(20, 24).unwrap();
    let (_counting, memory) = counting(6, 9, 8);
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for data in [folder, memory] {
        for augmentation in [Augmentation::CIFAR, Augmentation::IMAGENET, Augmentation { crop: Crop::None, flip: true }]
        {
            let read = |threads, indices: &[usize], seed| {
                pool(threads).install(|| read(&data, indices, Some((&augmentation, seed))))
            };
            let one = read(1, &[5, 0, 3, 1, 2, 4], 7);
            assert_eq!(one, read(4, &[5, 0, 3, 1, 2, 4], 7));
            assert_eq!(one.slice(s![2..3, .., .., ..]), read(2, &[3], 7));
            assert_ne!(one, read(1, &[5, 0, 3, 1, 2, 4], 8));
        }
    }
}

#[test]
fn augmentations_that_make_no_sense() {
    let (_directory, data) = counting(1, 3, 3);
    let resized = |scale, ratio| Crop::Resized { scale, ratio };
    for (crop, says) in [
        (Crop::Pad(usize::MAX), "pixels around an image, expected at most 16384"),
        (resized([0.5, 1.5], [1.0, 1.0]), "a crop of scale [0.5, 1.5] and ratio [1.0, 1.0], expected"),
        (resized([0.9, 0.5], [1.0, 1.0]), "a crop of scale"),
        (resized([f32::NAN, 0.5], [1.0, 1.0]), "a crop of scale"),
        (resized([0.5, 1.0], [0.0, 1.0]), "a crop of scale"),
    ] {
        let augmentation = Augmentation { crop, flip: false };
        let error = data.read(&[0], Some((&augmentation, 1)), zeros(&data, 1).view_mut()).unwrap_err();
        assert!(error.fault() == Fault::Request && error.to_string().contains(says), "{error}");
    }
}

#[test]
fn normalization_comes_after_padding() {
    let directory = directory(&[("a/1.png", png(pattern(32, 32)))]);
    let data = DataSet::open(directory.path(), Split::Whole).unwrap().with_size(28, 28).unwrap();
    let normal = data.clone().with_normalization(Normalization::IMAGENET).unwrap();
    let far = Augmentation { crop: Crop::Pad(60), flip: false };
    for seed in 0..20 {
        let (plain, found) = (read(&data, &[0], Some((&far, seed))), read(&normal, &[0], Some((&far, seed))));
        for ((_, c, y, x), value) in found.indexed_iter() {
            let expected = (plain[[0, c, y, x]] - [0.485, 0.456, 0.406][c]) / [0.229, 0.224, 0.225][c];
            assert!((value - expected).abs() < 1e-6);
        }
    }
}

/// The chunks of a PNG up to its pixels, which claims to be of that size.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        bytes.extend((data.len() as u32).to_be_bytes());
        let body = [kind, data].concat();
        bytes.extend(&body);
        bytes.extend(crc32fast::hash(&body).to_be_bytes());
    };
    chunk(b"IHDR", &[&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat());
    chunk(b"IDAT", b"\x78\x9c\x63\x00\x00\x00\x01\x00\x01");
    chunk(b"IEND", b"");
    bytes
}

#[test]
fn hostile_images_are_errors() {
    let failure = |bytes: Vec<u8>| -> Result<(), Error> {
        let directory = directory(&[("a/1.png", png(pattern(8, 8))), ("a/2.jpg", bytes)]);
        let data = DataSet::open(directory.path(), Split::Whole).unwrap().with_size(8, 8).unwrap();
        data.read(&[0, 1], None, zeros(&data, 2).view_mut())
    };
    let message = |bytes: Vec<u8>| {
        let error = failure(bytes).unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        let text = error.to_string();
        assert!(text.contains("2.jpg: not an image that can be read: "), "{text}");
        text
    };
    for (width, height) in [(60_000, 60_000), (u32::MAX >> 1, 1), (16_384, 16_384), (0, 5)] {
        message(bomb(width, height));
    }
    let jpeg = encoded(pattern(40, 30), ImageFormat::Jpeg);
    // The frame header of a JPEG: height and width.
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let mut claims = jpeg.clone();
    claims[frame + 5..frame + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
    message(claims);
    assert!(message(vec![]).contains("neither JPEG nor PNG"));
    assert!(message(b"GIF89a and more".to_vec()).contains("neither JPEG nor PNG"));
    assert!(message(jpeg[..jpeg.len() - 40].to_vec()).contains("ends in the middle of the image"));
    for whole in [jpeg, png(pattern(20, 10))] {
        (0..whole.len() - 16).step_by(7).for_each(|length| _ = message(whole[..length].to_vec()));
        for at in (0..whole.len()).step_by(11) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            if let Err(error) = failure(damaged) {
                assert_eq!(error.fault(), Fault::Input, "{at}: {error}");
            }
        }
    }
}

/// A picture that is gone since is the machine's answer.
#[test]
fn images_that_are_gone() {
    let directory = directory(&[("a/1.png", png(pattern(8, 8)))]);
    let data = DataSet::open(directory.path(), Split::Whole).unwrap();
    std::fs::remove_file(directory.path().join("a/1.png")).unwrap();
    let error = data.read(&[0], None, zeros(&data, 1).view_mut()).unwrap_err();
    assert_eq!(error.fault(), Fault::Io);
}
