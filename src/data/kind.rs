//! Which kind of data set a directory holds, by the names in it. Not here: what is in the files.

use std::path::Path;

use super::cifar::{CIFAR10, CIFAR100};
#[cfg(feature = "train")]
use super::folder;
use super::{DataSet, Split, arrays, idx};
use crate::error::DataProblem;
use crate::{Error, Result};

type Open = Box<dyn Fn(Split) -> Result<DataSet>>;

/// Opens the one data set of a directory.
pub(super) fn open(directory: &Path, split: Split) -> Result<DataSet> {
    // That there is no such directory is the machine's answer, not the data set's.
    std::fs::read_dir(directory).map_err(Error::io(directory, "open the directory"))?;
    if split == Split::Whole {
        return whole(directory);
    }
    let mut kinds = found(directory);
    if kinds.len() > 1 {
        let found = kinds.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::Data { path: directory.to_path_buf(), problem: DataProblem::Ambiguous { found } });
    }
    match kinds.pop() {
        Some((_, open)) => open(split),
        None => Err(nothing(directory)),
    }
}

/// What a directory holds: each with a name for it.
fn found(directory: &Path) -> Vec<(String, Open)> {
    let mut kinds: Vec<(String, Open)> = Vec::new();
    let mut add = |what: &str, example: &str, open: Open| kinds.push((format!("{what} ({example})"), open));
    let present =
        |names: &[&str]| names.iter().find(|name| directory.join(name).is_file()).map(|name| (*name).to_owned());
    let here = directory.to_path_buf();
    if let Some(name) = [Split::Test, Split::Train].into_iter().find_map(|split| idx::find_any(directory, split)) {
        let here = here.clone();
        add("IDX files", &name, Box::new(move |split| idx::open(&here, split)));
    }
    for cifar in [&CIFAR10, &CIFAR100] {
        if let Some(place) = cifar.find(directory) {
            let example = cifar.names().find(|name| place.join(name).is_file()).unwrap_or(cifar.directory);
            add(cifar.name, example, Box::new(move |split| cifar.open(&place, split)));
        }
    }
    if let Some(name) = present(&SAFETENSORS) {
        let here = here.clone();
        add("tensors", &name, Box::new(move |split| arrays::open_safetensors(&here, split)));
    }
    if let Some(name) = present(&NPY) {
        let here = here.clone();
        add("arrays", &name, Box::new(move |split| arrays::open_npy(&here, split)));
    }
    if let Some(name) = FOLDERS.iter().find(|name| directory.join(name).is_dir()) {
        add("folders of images", &format!("{name}/"), Box::new(move |split| open_folder(&here, split)));
    }
    kinds
}

const SAFETENSORS: [&str; 2] = ["train.safetensors", "test.safetensors"];
const NPY: [&str; 4] = ["train-images.npy", "train-labels.npy", "test-images.npy", "test-labels.npy"];
const FOLDERS: [&str; 3] = ["train", "val", "test"];

/// No kind at all: says what was looked for.
fn nothing(directory: &Path) -> Error {
    #[cfg(feature = "train")]
    if folder::has_classes(directory) {
        return Error::Data { path: directory.to_path_buf(), problem: DataProblem::NoSplits };
    }
    let names = "t10k-images-idx3-ubyte or train-images-idx3-ubyte (MNIST; .gz too), test_batch.bin or \
                 data_batch_1.bin (CIFAR-10), test.bin or train.bin (CIFAR-100), test.safetensors or \
                 train.safetensors, test-images.npy or train-images.npy, folders train and val or test with a \
                 folder of images per class";
    let problem = DataProblem::NotFound { what: "data set".to_owned(), names: names.to_owned() };
    Error::Data { path: directory.to_path_buf(), problem }
}

#[cfg(feature = "train")]
fn open_folder(directory: &Path, split: Split) -> Result<DataSet> {
    folder::open(directory, split)
}

#[cfg(feature = "train")]
fn whole(directory: &Path) -> Result<DataSet> {
    folder::open_whole(directory)
}

#[cfg(not(feature = "train"))]
fn open_folder(directory: &Path, _: Split) -> Result<DataSet> {
    whole(directory)
}

#[cfg(not(feature = "train"))]
fn whole(directory: &Path) -> Result<DataSet> {
    let path = directory.display();
    Err(Error::Request(format!("{path}: folders of images are read by builds with the feature `train`; enable it")))
}
