//! Checkpoints: one safetensors file, a directory of them, or an index over shards, memory-mapped
//! and checked; and what readers of other formats ([`crate::import`]) make one with. Not here: which tensors
//! become ternary ([`crate::select`]).

mod builder;
mod config;
pub(crate) mod header;
mod npy;
mod shards;
mod strided;
mod ternary;
pub(crate) mod weights;
#[cfg(feature = "eval")]
pub(crate) mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::builder::{CheckpointBuilder, Taken};
pub use self::config::{config_text, model_config};
use self::header::Header;
pub use self::header::{PACKED_KEY, safetensors_header, safetensors_order, stands_instead};
pub use self::npy::NpyHeader;
pub use self::shards::{ShardIndex, missing_shard};
pub use self::strided::Strided;
pub use self::ternary::{TernaryLayout, TernaryPlane, TernaryView};
pub use self::weights::FilterView;
pub use crate::dtype::Dtype;
use crate::error::CheckpointProblem;
pub use crate::mapped::MappedFile;
use crate::{Error, Result};

/// A float checkpoint, memory-mapped and checked. The files must not be written to while it is
/// open: a file that is cut short under a mapping ends the process with SIGBUS.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<MappedFile>,
    /// What no tensor lies in, but says where they lie or what their bytes mean: an index, a `config.json`.
    beside: Vec<MappedFile>,
    tensors: Vec<Entry>,
    metadata: BTreeMap<String, String>,
    warnings: Vec<String>,
    /// Names of tensors that are scales of weights which are quantized already.
    scales: BTreeSet<String>,
    /// Names of tensors that are biases.
    biases: BTreeSet<String>,
}

#[derive(Debug)]
struct Entry {
    name: Box<str>,
    dtype: Dtype,
    shape: Box<[usize]>,
    file: usize,
    range: Range<usize>,
    /// How the axes are nested there, where that is not C order.
    order: Option<Box<[usize]>>,
    /// What its bytes are, where they are codes and scales.
    ternary: Option<Arc<Ternary>>,
}

/// A tensor that is ternary in the checkpoint: its own type and shape, and its planes, the first of which the entry shows.
#[derive(Debug)]
struct Ternary {
    dtype: Dtype,
    shape: Vec<usize>,
    planes: Vec<TernaryPlane>,
}

/// A tensor of a checkpoint, borrowed from its mapping.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Its name, unique in the checkpoint.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first; empty for a scalar.
    pub shape: &'a [usize],
    /// Its bytes as they are stored: little-endian, not aligned to anything. In C order where `order` is `None`;
    /// [`TensorView::read`] puts them in that order where it is not.
    pub stored: &'a [u8],
    /// The axes of `shape`, each once, as they are nested in `stored`, the outermost first (`[1, 0]` for a transposed matrix).
    pub order: Option<&'a [usize]>,
}

/// A tensor as a run takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    pub tensor: TensorView<'a>,
    /// Its codes and scales, where it is ternary already.
    pub ternary: Option<TernaryView<'a>>,
}

impl Input<'_> {
    /// Its bytes in the checkpoint, those of all planes.
    pub fn bytes(&self) -> usize {
        self.ternary.map_or(self.tensor.stored.len(), |ternary| ternary.bytes())
    }
}

impl<'a> TensorView<'a> {
    /// Of elements in C order, little-endian; `stored` has as many bytes as `dtype` and `shape` need.
    pub fn new(name: &'a str, dtype: Dtype, shape: &'a [usize], stored: &'a [u8]) -> Self {
        Self { name, dtype, shape, stored, order: None }
    }

    /// How many elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes `range` of its elements in C order, whole elements: what is stored, where that is in this order, else
    /// `scratch`, into which they were put.
    ///
    /// # Panics
    /// When there are no such bytes.
    pub fn read<'s>(&self, range: Range<usize>, scratch: &'s mut Vec<u8>) -> &'s [u8]
    where
        'a: 's,
    {
        let Some(strided) = self.strided() else { return &self.stored[range] };
        scratch.resize(range.len(), 0);
        strided.read(self.stored, range.start / strided.size..range.end / strided.size, scratch);
        scratch
    }

    /// How its elements lie, where that is not C order.
    pub(crate) fn strided(&self) -> Option<Strided> {
        let (mut strides, mut stride) = (vec![0; self.shape.len()], 1);
        for &axis in self.order?.iter().rev() {
            strides[axis] = stride;
            stride *= self.shape[axis];
        }
        Some(Strided { size: self.dtype.bitsize() / 8, offset: 0, shape: self.shape.to_vec(), strides })
    }
}

impl Checkpoint {
    /// Opens a `.safetensors` file, a directory that holds one or several, or a
    /// `model.safetensors.index.json`. Reads and checks every header, no weights. All its tensors are in C order.
    ///
    /// # Errors
    /// A file that cannot be read, or that is not what it claims to be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shards = shards::find(path)?;
        let mut checkpoint = Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            beside: shards.index.iter().cloned().collect(),
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
            warnings: Vec::new(),
            scales: BTreeSet::new(),
            biases: BTreeSet::new(),
        };
        for file in &shards.files {
            checkpoint.add(file, &shards)?;
        }
        checkpoint.check_complete(&shards)?;
        if let Some(first) = shards.left_out.first() {
            let others = match shards.left_out.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            let path = path.display();
            checkpoint.warnings.push(format!("{path}: `{first}`{others} left out: the index does not name it"));
        }
        Ok(checkpoint)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its tensors lie in.
    pub(crate) fn mapped(&self) -> &[MappedFile] {
        &self.files
    }

    /// Every file it consists of, without an index.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().filter(|file| !file.is_temporary()).map(MappedFile::path)
    }

    /// Every file that what is read depends on: those it consists of, and those beside them that say what they hold.
    pub(crate) fn read_files(&self) -> impl Iterator<Item = &Path> {
        self.files().chain(self.beside.iter().map(MappedFile::path))
    }

    /// Whether that file, by its canonical path, is one of these or an index over them.
    pub(crate) fn reads(&self, path: &Path) -> bool {
        let same = |file: &Path| file.canonicalize().is_ok_and(|file| file == path);
        let is_index = path.parent().is_some_and(|parent| {
            let directory = self.path.canonicalize().is_ok_and(|directory| directory == parent);
            directory && file_name(path).ends_with(".index.json")
        });
        is_index || same(&self.path) || self.read_files().any(same)
    }

    /// The sum of the files' sizes in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().filter(|file| !file.is_temporary()).map(|file| file.len() as u64).sum()
    }

    /// What the files' `__metadata__` says, merged. Where two shards give one key different values,
    /// the later value is kept under `key@shard`, with one more `@shard` for each time that this is taken.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What looked odd but does not stop anything.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether its format says that the tensor of that name is scales of weights which are quantized already.
    pub fn is_scales(&self, name: &str) -> bool {
        self.scales.contains(name)
    }

    /// Whether its format says that the tensor of that name is a bias.
    pub fn is_bias(&self, name: &str) -> bool {
        self.biases.contains(name)
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensors, in the order of their bytes in the files.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        (0..self.len()).map(|i| self.tensor(i))
    }

    /// Tensor number `i` in that order.
    ///
    /// # Panics
    /// When there is no such tensor.
    pub fn tensor(&self, i: usize) -> TensorView<'_> {
        let entry = &self.tensors[i];
        TensorView {
            name: &entry.name,
            dtype: entry.dtype,
            shape: &entry.shape,
            stored: &self.files[entry.file][entry.range.clone()],
            order: entry.order.as_deref(),
        }
    }

    /// Both views of tensor number `i`.
    pub(crate) fn input(&self, i: usize) -> Input<'_> {
        Input { tensor: self.tensor(i), ternary: self.ternary(i) }
    }

    /// Tensor number `i` where it is ternary already: codes and scales in another program's layout, which
    /// [`Checkpoint::tensor`] shows as the bytes that they are (of several planes, the first one's).
    ///
    /// # Panics
    /// When there is no such tensor.
    pub fn ternary(&self, i: usize) -> Option<TernaryView<'_>> {
        let entry = &self.tensors[i];
        let Ternary { dtype, shape, planes } = &**entry.ternary.as_ref()?;
        Some(TernaryView { name: &entry.name, dtype: *dtype, shape, files: &self.files, planes })
    }

    /// The tensor of that name.
    pub fn by_name(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors().find(|tensor| tensor.name == name)
    }

    /// Type and shape of the weights of that name, where they are ternary already.
    #[cfg(feature = "eval")]
    pub(crate) fn ternary_by_name(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let entry = self.tensors.iter().find(|entry| *entry.name == *name)?;
        entry.ternary.as_ref().map(|ternary| (ternary.dtype, &ternary.shape[..]))
    }

    /// Notices files that were written to since they were opened, and an index or `config.json` that they were read by.
    ///
    /// # Errors
    /// [`Error::InputChanged`] when a file's length or modification time is another one.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().chain(&self.beside).try_for_each(MappedFile::check_unchanged)
    }

    fn add(&mut self, path: &Path, shards: &shards::Shards) -> Result<()> {
        let file = MappedFile::open(path)?;
        let header = Header::parse(&file).map_err(Error::checkpoint(path))?;
        let shard = file_name(path);
        let number = self.files.len();
        self.tensors.reserve(header.tensors.len());
        for tensor in header.tensors {
            if !self.counts(&tensor.name, &shard, shards)? {
                continue;
            }
            self.tensors.push(Entry {
                name: tensor.name.into(),
                dtype: tensor.dtype,
                shape: tensor.shape.into(),
                file: number,
                range: tensor.range,
                order: None,
                ternary: None,
            });
        }
        for (key, value) in header.metadata {
            match self.metadata.get(&key) {
                Some(known) if *known != value => {
                    let mut kept = format!("{key}@{shard}");
                    while self.metadata.get(&kept).is_some_and(|known| *known != value) {
                        kept += &format!("@{shard}");
                    }
                    self.warnings.push(format!("metadata key `{key}` differs between shards; kept as `{kept}` too"));
                    self.metadata.insert(kept, value);
                }
                _ => {
                    self.metadata.insert(key, value);
                }
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// Whether this shard's tensor of that name is the one that counts.
    fn counts(&mut self, name: &str, shard: &str, shards: &shards::Shards) -> Result<bool> {
        match shards.weight_map.as_ref().map(|map| map.get(name)) {
            Some(Some(owner)) if owner != shard => {
                self.warnings
                    .push(format!("tensor `{name}` in `{shard}` is ignored: the index takes it from `{owner}`"));
                Ok(false)
            }
            Some(None) => {
                self.warnings.push(format!("tensor `{name}` in `{shard}` is not in the index; taken all the same"));
                Ok(true)
            }
            _ => Ok(true),
        }
    }

    /// No name twice; which file has which name.
    fn owners(&self) -> Result<BTreeMap<&str, usize>> {
        let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
        for tensor in &self.tensors {
            let Some(first) = owners.insert(&tensor.name, tensor.file) else { continue };
            let (tensor, [first, second]) =
                (tensor.name.to_string(), [first, tensor.file].map(|file| file_name(self.files[file].path())));
            return Err(Error::checkpoint(&self.path)(match first == second {
                true => CheckpointProblem::DuplicateKey(tensor),
                false => CheckpointProblem::DuplicateTensor { tensor, first, second },
            }));
        }
        Ok(owners)
    }

    /// No name twice, and everything there that the index promises.
    fn check_complete(&self, shards: &shards::Shards) -> Result<()> {
        let owners = self.owners()?;
        for (tensor, shard) in shards.weight_map.iter().flatten() {
            if !owners.contains_key(tensor.as_str()) {
                return Err(Error::checkpoint(&self.path)(crate::error::CheckpointProblem::MissingTensor {
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                }));
            }
        }
        Ok(())
    }
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
