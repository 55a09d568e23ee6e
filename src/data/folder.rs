//! Folders of images, one per class, decoded when they are asked for. Not here: resizing them.
//!
//! ```text
//! train/CLASS/*.jpg …   val/CLASS/*.jpg … or test/CLASS/*.jpg …    (.jpg, .jpeg, .png)
//! ```

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use image::{ImageFormat, ImageReader, Limits};

use super::image::{Element, Image, Images};
use super::{DataSet, Split};
use crate::error::DataProblem;
use crate::limits::{IMAGE_BYTES, IMAGE_FILE_BYTES, IMAGE_SIDE};
use crate::mapped::open_regular;
use crate::{Error, Result};

/// Height and width while nobody asks for others.
const SIZE: usize = 224;

/// What images' names end with, in small or large letters.
const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// Opens a split: the classes of `train`, or those of `val` or `test` with the numbers they have there.
pub(super) fn open(directory: &Path, split: Split) -> Result<DataSet> {
    let train = directory.join("train");
    if split == Split::Train {
        if !train.is_dir() {
            return Err(missing(directory, "training images", "train"));
        }
        return read(&train, None);
    }
    // ImageNet's `test` has no classes, and is no choice then.
    let tests: Vec<PathBuf> = ["val", "test"].map(|name| directory.join(name)).into();
    let tests: Vec<PathBuf> = tests.into_iter().filter(|path| path.is_dir()).collect();
    let test = match &tests[..] {
        [] => return Err(missing(directory, "test images", "val, test")),
        [one] => one,
        [val, test] if !has_classes(test) => val,
        [val, test] if !has_classes(val) => test,
        _ => {
            let found = "test images in val/ and in test/ (for one of them, move the other away, or give it to eval with --split whole)".to_owned();
            return Err(Error::Data { path: directory.to_path_buf(), problem: DataProblem::Ambiguous { found } });
        }
    };
    read(test, train.is_dir().then_some(&*train))
}

fn missing(directory: &Path, what: &str, names: &str) -> Error {
    let problem = DataProblem::NotFound { what: what.to_owned(), names: names.to_owned() };
    Error::Data { path: directory.to_path_buf(), problem }
}

/// Opens a directory of classes.
pub(super) fn open_whole(directory: &Path) -> Result<DataSet> {
    read(directory, None)
}

/// Whether a directory holds a folder with an image in it.
pub(super) fn has_classes(directory: &Path) -> bool {
    let classes = list(directory, true).unwrap_or_default();
    classes.iter().any(|class| list(&directory.join(class), false).is_ok_and(|files| !files.is_empty()))
}

/// The classes of a directory, numbered as in `numbers` if that is given.
fn read(directory: &Path, numbers: Option<&Path>) -> Result<DataSet> {
    let problem = |path: &Path, problem| Error::Data { path: path.to_path_buf(), problem };
    let names = list(directory, true)?;
    if names.is_empty() {
        let problem_ = DataProblem::Empty { what: "folder of a class", expected: "one folder of images per class" };
        return Err(problem(directory, problem_));
    }
    let classes = numbers.map_or_else(|| Ok(names.clone()), |numbers| list(numbers, true))?;
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        let Ok(number) = classes.binary_search(&name) else {
            let (class, train) = (name.to_string_lossy().into_owned(), numbers.unwrap_or(directory).to_path_buf());
            return Err(problem(directory, DataProblem::Class { class, train }));
        };
        let path = directory.join(&name);
        let images = list(&path, false)?;
        if images.is_empty() {
            let expected = ".jpg, .jpeg or .png files directly in the folder of a class";
            return Err(problem(&path, DataProblem::Empty { what: "image", expected }));
        }
        labels.resize(labels.len() + images.len(), number as u32);
        files.extend(images.into_iter().map(OsString::into_boxed_os_str));
    }
    let count = classes.len();
    let images = Folder { directory: directory.to_path_buf(), classes, labels: labels.clone(), files };
    let mut data = DataSet::of(images, [3, SIZE, SIZE], labels, directory.to_path_buf(), count);
    data.resized = true;
    Ok(data)
}

/// The names of the folders or of the images in a directory, sorted. What begins with a dot is none.
fn list(directory: &Path, folders: bool) -> Result<Vec<OsString>> {
    let failed = || Error::io(directory, "list");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") || (!folders && !is_image(&name)) {
            continue;
        }
        let kind = entry.file_type().map_err(failed())?;
        let folder = if kind.is_symlink() { entry.path().is_dir() } else { kind.is_dir() };
        if folder == folders {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_image(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[derive(Debug)]
struct Folder {
    directory: PathBuf,
    classes: Vec<OsString>,
    /// The number of its class for each file.
    labels: Vec<u32>,
    files: Vec<Box<OsStr>>,
}

impl Images for Folder {
    fn get(&self, number: usize) -> Result<Image<'_>> {
        decode(&self.path(number))
    }

    fn checksum(&self, number: usize) -> Result<u32> {
        let path = self.path(number);
        let bytes = read_file(&path)?;
        check(&bytes).map_err(|message| problem(&path, message))?;
        Ok(crc32fast::hash(&bytes))
    }

    fn path(&self, number: usize) -> PathBuf {
        self.directory.join(&self.classes[self.labels[number] as usize]).join(&*self.files[number])
    }
}

/// What is wrong with an image's file.
fn problem(path: &Path, message: String) -> Error {
    Error::Data { path: path.to_path_buf(), problem: DataProblem::Image(message) }
}

/// A file's bytes, if they are not too many.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open_regular(path)?;
    BufReader::new(file).take(IMAGE_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > IMAGE_FILE_BYTES {
        return Err(problem(path, format!("more than {IMAGE_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Reads and decodes a file to RGB. Without an alpha channel; grey becomes three times the same.
fn decode(path: &Path) -> Result<Image<'static>> {
    let problem = |message: String| problem(path, message);
    let bytes = read_file(path)?;
    let format = check(&bytes).map_err(problem)?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(IMAGE_SIDE);
    limits.max_image_height = Some(IMAGE_SIDE);
    limits.max_alloc = Some(IMAGE_BYTES);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| problem(error.to_string()))?.into_rgb8();
    let shape = [3, image.height() as usize, image.width() as usize];
    if shape.contains(&0) {
        return Err(problem(format!("{} × {} pixels", shape[1], shape[2])));
    }
    Ok(Image { bytes: Cow::Owned(image.into_raw()), element: Element::U8, shape, interleaved: true })
}

/// What can be told of an image without decoding it.
fn check(bytes: &[u8]) -> std::result::Result<ImageFormat, String> {
    if is_cut_off(bytes) {
        return Err("ends in the middle of the image".to_owned());
    }
    // By its first bytes: names lie.
    match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png)) => Ok(format),
        _ => Err("neither JPEG nor PNG".to_owned()),
    }
}

/// Whether a JPEG's pixels have no end; the decoder makes up what is missing. Among pixels the byte FF
/// has a 0 behind it, so that behind the last start of a scan there is an end, or there should be.
fn is_cut_off(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
    let jpeg = bytes.starts_with(&[0xff, 0xd8]);
    jpeg && last([0xff, 0xda]).is_some_and(|scan| last([0xff, 0xd9]).is_none_or(|end| end < scan))
}
