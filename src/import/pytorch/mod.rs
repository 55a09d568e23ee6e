//! Checkpoints that `torch.save` wrote: a zip file with a pickle and the bytes of each storage. Tensors stay mapped
//! where they lie; those whose values do not lie side by side are copied once into a temporary file. Nothing of the
//! pickle is ever run. Not here: pickles as such ([`super::pickle`]), what the names in them mean ([`names`]).
//!
//! ```text
//! NAME/data.pkl      a dict of names and tensors: storage, offset, shape, strides, as calls of torch's functions
//! NAME/byteorder     "little" or "big"
//! NAME/data/KEY      the bytes of a storage, stored
//! ```
//! Source: `torch/serialization.py` and `torch/_utils.py` of PyTorch 1.6 to 2.15.

mod names;
mod shards;
mod state;

use std::collections::HashMap;
use std::path::Path;

use self::names::{Name, known};
pub(super) use self::shards::open as open_shards;
use self::state::{State, Storage};
use super::copies::Copies;
use super::pickle::Pickle;
use super::zip::Entry;
use crate::source::{CheckpointBuilder, Strided};
use crate::{Checkpoint, Dtype, MappedFile, Result, limits};

const FORMAT: &str = "PyTorch";

/// How to get weights out of what is not read, whole models and arrays of numpy among them, once it is loaded so. Dicts
/// and lists stay as they are nested.
macro_rules! resave {
    ($load:literal) => {
        concat!(
            "where you trust it, save its tensors alone, with the program that made it: ",
            $load,
            "; t = lambda v: t(v.state_dict()) if isinstance(v, torch.nn.Module) else \
             {str(k): t(x) for k, x in v.items()} if hasattr(v, 'items') else \
             [t(x) for x in v] if isinstance(v, tuple) or hasattr(v, 'append') else \
             torch.as_tensor(v) if hasattr(v, 'shape') and getattr(v.dtype, 'kind', 'f') in 'biufc' else None; \
             torch.save(t(d), OUT)"
        )
    };
}

const RESAVE: &str = resave!("d = torch.load(FILE, map_location='cpu', weights_only=False)");

/// Whether these are the entries of a file of `torch.save`.
pub(super) fn is(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| entry.name.ends_with("/data.pkl"))
}

/// What there is against a file that is no zip file but comes from PyTorch or Python all the same.
pub(super) fn refusal(file: &[u8]) -> Option<String> {
    // Its length is what a safetensors file begins with.
    let no_header = file.first_chunk().is_some_and(|length| u64::from_le_bytes(*length) > limits::HEADER_BYTES);
    let load = "where you trust it, load it with PyTorch and save it again, \
                torch.save(torch.load(FILE, map_location='cpu', weights_only=False), OUT)";
    if file.starts_with(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") {
        return Some(format!("it is in the form that torch.save wrote before version 1.6, not a zip file; {load}"));
    }
    if no_header && file.get(257..262) == Some(b"ustar") {
        return Some(format!("it is a tar file, the form that torch.save wrote before version 0.1.10; {load}"));
    }
    // Dicts and lists of protocols 0 and 1, which do not say that they are pickles.
    let is_old = ["(dp", "(lp", "}q", "]q", "ccollections\n"].iter().any(|begins| file.starts_with(begins.as_bytes()));
    if no_header && (is_old || file[0] == 0x80 && (2..=5).contains(&file[1])) {
        // torch.load does not read these.
        let way_out = resave!("with open(FILE, 'rb') as f: d = pickle.load(f)");
        return Some(format!("it is a bare pickle of Python, expected the zip file that torch.save writes; {way_out}"));
    }
    None
}

/// Opens a file of `torch.save` with these entries.
pub(super) fn open(path: &Path, file: MappedFile, entries: &[Entry]) -> Result<Checkpoint> {
    let mut builder = CheckpointBuilder::new(path);
    add(&mut builder, file, entries, |_, _| true)?;
    builder.finish()
}

/// Adds the tensors of a file that are wanted.
fn add(
    builder: &mut CheckpointBuilder,
    file: MappedFile,
    entries: &[Entry],
    wanted: impl Fn(&mut CheckpointBuilder, &str) -> bool,
) -> Result<()> {
    let path = file.path().to_path_buf();
    let foreign = |message: String| super::foreign(&path, FORMAT, message);
    let archive = Archive::of(&file, entries).map_err(foreign)?;
    let pickle = Pickle::parse(archive.pickle, Name::FromType, known).map_err(foreign)?;
    let state = State::read(&pickle, |key| archive.storage(key)).map_err(foreign)?;
    archive.warnings.into_iter().chain(state.warnings).for_each(|warning| builder.warn(warning));

    let mut copies = Copies::new(&path, FORMAT, (file.len() as u64).saturating_add(limits::EXPANDED_BYTES));
    let mut copied: HashMap<(usize, Strided), std::ops::Range<usize>> = HashMap::new();
    let mut later = Vec::new();
    let number = builder.file(file.clone());
    for (name, tensor) in state.tensors {
        if !wanted(builder, &name) {
            continue;
        }
        let Storage { bytes, begin } = tensor.storage;
        let strided = tensor.strided;
        // Where its values lie side by side.
        let range = || match strided.shape.iter().product::<usize>() {
            0 => begin..begin,
            count => begin + strided.offset * strided.size..begin + (strided.offset + count) * strided.size,
        };
        if strided.is_contiguous() {
            builder.tensor(&name, tensor.dtype, &strided.shape, number, range())?;
            continue;
        }
        if let Some(order) = strided.order() {
            builder.permuted(&name, tensor.dtype, (&strided.shape, &order), number, range())?;
            continue;
        }
        let key = (begin, strided);
        let range = match copied.get(&key) {
            Some(range) => {
                // What is expanded counts under each of its names: a few bytes would become any number of them.
                if range.len() > bytes.len() {
                    copies.again(&name, range.len() as u64)?;
                }
                range.clone()
            }
            None => copies.add_strided(&name, &key.1, bytes)?,
        };
        later.push((name, tensor.dtype, key.1.shape.clone(), range.clone()));
        copied.insert(key, range);
    }
    let Some(file) = copies.map()? else { return Ok(()) };
    builder.warn(format!(
        "{} tensors, {} bytes, do not lie side by side; copied into a temporary file",
        later.len(),
        file.len()
    ));
    let number = builder.file(file);
    later.into_iter().try_for_each(|(name, dtype, shape, range)| builder.tensor(&name, dtype, &shape, number, range))
}

/// What a file of `torch.save` consists of.
struct Archive<'a> {
    file: &'a [u8],
    pickle: &'a [u8],
    /// Key → where.
    storages: HashMap<&'a str, &'a Entry>,
    warnings: Vec<String>,
}

impl<'a> Archive<'a> {
    fn of(file: &'a [u8], entries: &'a [Entry]) -> Result<Self, String> {
        let mut pickles = entries.iter().filter(|entry| entry.name.ends_with("/data.pkl"));
        let (Some(pickle), None) = (pickles.next(), pickles.next()) else {
            return Err(format!("several entries data.pkl, expected one; {RESAVE}"));
        };
        let prefix = pickle.name.strip_suffix("data.pkl").unwrap_or_default();
        let inside = |entry: &'a Entry| entry.name.strip_prefix(prefix).map(|name| (name, entry));
        let entries: HashMap<&str, &Entry> = entries.iter().filter_map(inside).collect();
        if entries.contains_key("constants.pkl") {
            let way_out = "torch.save(torch.jit.load(FILE).state_dict(), OUT)";
            return Err(format!("it is a TorchScript program, expected a state dict; {way_out}"));
        }
        if let Some(packed) = entries.values().find(|entry| entry.deflated) {
            let name = super::zip::shown(&packed.name);
            return Err(format!(
                "zip entry `{name}` is compressed, expected it stored as torch.save does; unpack it and zip it with -0"
            ));
        }
        let order = entries.get("byteorder").map_or(b"little".as_slice(), |entry| &file[entry.range.clone()]);
        if order != b"little" {
            let way_out = match order {
                b"big" => "save it anew, on this machine: torch.save(torch.load(FILE, map_location='cpu'), OUT)",
                _ => "was the file damaged?",
            };
            let order = order[..order.len().min(16)].escape_ascii();
            return Err(format!("byte order \"{order}\", expected \"little\"; {way_out}"));
        }
        let mut warnings = Vec::new();
        let bytes = &file[pickle.range.clone()];
        if bytes.len() > limits::PICKLE_BYTES {
            let (found, limit) = (bytes.len(), limits::PICKLE_BYTES);
            return Err(format!("a pickle of {found} bytes, expected at most {limit}; save the weights alone"));
        }
        // torch.save can be told to leave the checksums out, and torch.load never looks at them.
        if crc32fast::hash(bytes) != pickle.crc {
            warnings.push("data.pkl does not have its checksum: it was damaged, or saved without".to_owned());
        }
        let storages =
            entries.iter().filter_map(|(name, entry)| name.strip_prefix("data/").map(|key| (key, *entry))).collect();
        Ok(Self { file, pickle: bytes, storages, warnings })
    }

    /// The storage of that key.
    fn storage(&self, key: &str) -> Option<Storage<'a>> {
        let range = self.storages.get(key)?.range.clone();
        Some(Storage { begin: range.start, bytes: &self.file[range] })
    }
}

/// The types of storages and tensors, as torch names them.
const TYPES: [(&str, &str, Dtype); 19] = [
    ("FloatStorage", "float32", Dtype::F32),
    ("DoubleStorage", "float64", Dtype::F64),
    ("HalfStorage", "float16", Dtype::F16),
    ("BFloat16Storage", "bfloat16", Dtype::BF16),
    ("LongStorage", "int64", Dtype::I64),
    ("IntStorage", "int32", Dtype::I32),
    ("ShortStorage", "int16", Dtype::I16),
    ("CharStorage", "int8", Dtype::I8),
    ("ByteStorage", "uint8", Dtype::U8),
    ("BoolStorage", "bool", Dtype::BOOL),
    ("", "uint16", Dtype::U16),
    ("", "uint32", Dtype::U32),
    ("", "uint64", Dtype::U64),
    ("", "float8_e4m3fn", Dtype::F8_E4M3),
    ("", "float8_e5m2", Dtype::F8_E5M2),
    ("", "float8_e4m3fnuz", Dtype::F8_E4M3FNUZ),
    ("", "float8_e5m2fnuz", Dtype::F8_E5M2FNUZ),
    ("", "float8_e8m0fnu", Dtype::F8_E8M0),
    ("", "half", Dtype::F16),
];

impl Name {
    fn of_type(name: &str) -> Option<Self> {
        TYPES.iter().find_map(|&(storage, dtype, is)| match name {
            "" => None,
            _ if name == storage => Some(Self::Storage(is)),
            _ if name == dtype => Some(Self::Type(is)),
            _ => None,
        })
    }
}
