//! A module uses only what stands to its left in the picture of `src/lib.rs`. Every `crate::` path
//! in `src/` is held against a list; a new module, or a new dependency, has to be put there first.
//! Paths in comments do not count. Not here: `super::`, which stays inside a module; that `export` and `import` use what is
//! public and nothing else (`tests/outside.rs`).
//! And `unsafe` is written only in the files that a second list names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What everybody may use: the vocabulary.
const SHARED: [&str; 7] = ["error", "limits", "dtype", "float8", "mapped", "strict_json", "vector"];

/// Each module, and what it uses besides the vocabulary. No module here uses one further down.
const MODULES: [(&str, &[&str]); 32] = [
    ("error", &[]),
    ("limits", &[]),
    ("dtype", &[]),
    ("float8", &[]),
    ("mapped", &[]),
    ("strict_json", &[]),
    ("vector", &[]),
    ("write_behind", &[]),
    ("locked_file", &[]),
    ("atomic_file", &["write_behind"]),
    ("source", &["atomic_file"]),
    ("ternarize", &[]),
    ("int8", &["ternarize"]),
    ("pack", &[]),
    ("calibration", &["source", "ternarize"]),
    ("container", &["ternarize", "pack", "atomic_file"]),
    // A treatment names a method, an encoding and a granularity; see `select_only_names`.
    ("select", &["source", "ternarize", "pack", "container"]),
    ("report", &["source", "select", "container"]),
    (
        "convert",
        &[
            "source",
            "select",
            "ternarize",
            "int8",
            "calibration",
            "pack",
            "container",
            "report",
            "atomic_file",
            "locked_file",
        ],
    ),
    ("budget", &["source", "select", "container", "report", "convert"]),
    ("memory", &["source", "select", "container", "convert"]),
    ("verify", &["source", "ternarize", "pack", "container"]),
    ("unpack", &["source", "select", "container", "convert", "atomic_file"]),
    ("gguf", &["pack"]),
    ("onnx", &[]),
    ("import", &["source", "pack", "container", "gguf", "onnx"]),
    ("export", &["source", "ternarize", "pack", "container", "atomic_file", "gguf", "onnx"]),
    ("kernel", &["pack", "container"]),
    ("data", &["source"]),
    ("net", &["source", "ternarize", "calibration", "container", "select", "kernel", "data", "atomic_file"]),
    ("train", &["source", "ternarize", "container", "select", "atomic_file", "locked_file", "kernel", "data", "net"]),
    // The command line is a user of the library like any other: it says `twn_pack::`.
    ("cli", &[]),
];

/// What `select`, which stands to the left of them, may name of those that do the work.
const NAMES_FOR_SELECT: [&str; 7] = [
    "container::Granularity",
    "pack::Encoding",
    "ternarize",
    "ternarize::self",
    "ternarize::AUTO",
    "ternarize::ScaleDtype",
    "ternarize::Ternarizer",
];

/// Where the names come from that `lib.rs` gives to the whole crate.
const ROOT: [(&str, &str); 21] = [
    ("Error", "error"),
    ("Fault", "error"),
    ("Result", "error"),
    ("Isa", "vector"),
    ("Checkpoint", "source"),
    ("Dtype", "dtype"),
    ("FilterView", "source"),
    ("TensorView", "source"),
    ("Ternarizer", "ternarize"),
    ("Encoding", "pack"),
    ("Calibration", "calibration"),
    ("Container", "container"),
    ("Granularity", "container"),
    ("Tensor", "container"),
    ("Plan", "select"),
    ("Report", "report"),
    ("AtomicFile", "atomic_file"),
    ("MappedFile", "mapped"),
    ("ReadAhead", "mapped"),
    ("PARTIAL_SUFFIX", "atomic_file"),
    ("write_atomically", "atomic_file"),
];

/// The files that may say `unsafe`: instruction sets, the mapping of files, signals, matrix products.
const UNSAFE: [&str; 11] = [
    "cli/mod.rs",
    "kernel/lanes/ymm.rs",
    "kernel/lanes/zmm.rs",
    "kernel/lanes/zmm_columns.rs",
    "mapped.rs",
    "train/matmul.rs",
    "vector/avx2.rs",
    "vector/avx512/load.rs",
    "vector/avx512/mod.rs",
    "vector/avx512/moments.rs",
    "vector/x86.rs",
];

#[test]
fn modules_use_only_what_stands_to_their_left() {
    let mut wrong = Vec::new();
    for (file, module) in files() {
        let allowed = uses(&module).unwrap_or_else(|| panic!("{}: put `{module}` into MODULES", file.display()));
        for path in paths(&file) {
            let target = target(&path);
            if target != module && !SHARED.contains(&target) && !allowed.contains(&target) {
                wrong.push(format!("{}: `{module}` must not use crate::{path}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_list_has_no_cycle_and_nothing_that_is_gone() {
    let used: BTreeSet<(String, String)> = files()
        .into_iter()
        .flat_map(|(file, module)| paths(&file).into_iter().map(move |path| (module.clone(), target(&path).to_owned())))
        .collect();
    for (i, (module, allowed)) in MODULES.iter().enumerate() {
        for other in *allowed {
            assert!(MODULES[..i].iter().any(|(name, _)| name == other), "`{other}` stands below `{module}`");
            let pair = ((*module).to_owned(), (*other).to_owned());
            assert!(used.contains(&pair), "`{module}` does not use `{other}` any more");
        }
    }
}

#[test]
fn select_only_names() {
    for path in files().iter().filter(|(_, module)| module == "select").flat_map(|(file, _)| paths(file)) {
        if ["ternarize", "pack", "container"].contains(&target(&path)) {
            assert!(NAMES_FOR_SELECT.contains(&path.as_str()), "`select` must not use crate::{path}");
        }
    }
}

#[test]
fn unsafe_is_only_where_it_may_be() {
    let root = root();
    let found: BTreeSet<String> = sources()
        .iter()
        .filter(|file| is_unsafe(&std::fs::read_to_string(file).unwrap()))
        .map(|file| {
            file.strip_prefix(&root).unwrap().iter().map(|part| part.to_str().unwrap()).collect::<Vec<_>>().join("/")
        })
        .collect();
    assert_eq!(found, UNSAFE.map(str::to_owned).into());
}

#[test]
fn unsafe_is_found_in_code_only() {
    for code in ["unsafe { f() }", "x(); unsafe{ f() } // why", "pub unsafe fn f() {}", "let url = 1; /* */ unsafe {}"]
    {
        assert!(is_unsafe(code), "{code}");
    }
    for other in ["// unsafe { f() }", "#![deny(unsafe_op_in_unsafe_fn)]", "let unsafely = 1; // unsafe"] {
        assert!(!is_unsafe(other), "{other}");
    }
}

#[test]
fn paths_are_found_in_every_form() {
    let text = "use crate::{Error, limits};\n/// [`crate::cli`]\nlet x = crate::pack::f(1); // crate::cli\n\
                pub use crate::vector::block::{\n    Above, Moments as M,\n};";
    let expected = ["Error", "limits", "pack::f", "vector::block::Above", "vector::block::Moments"];
    assert_eq!(paths_in(text), expected);
}

fn uses(module: &str) -> Option<&'static [&'static str]> {
    MODULES.iter().find(|(name, _)| *name == module).map(|(_, uses)| *uses)
}

/// The module that a path leads to.
fn target(path: &str) -> &str {
    let first = path.split("::").next().unwrap();
    ROOT.iter().find(|(name, _)| *name == first).map_or(first, |(_, module)| module)
}

/// Whether a line says `unsafe` before any comment.
fn is_unsafe(text: &str) -> bool {
    let code = text.lines().map(|line| line.split("//").next().unwrap());
    code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_')).any(|word| word == "unsafe")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file.
fn sources() -> Vec<PathBuf> {
    let (mut files, mut directories) = (Vec::new(), vec![root()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    assert!(files.len() > 30, "{files:?}");
    files
}

/// Every source file with the module that it belongs to; `lib.rs` and `main.rs` belong to none.
fn files() -> Vec<(PathBuf, String)> {
    let root = root();
    let module = |path: &PathBuf| {
        let module = path.strip_prefix(&root).unwrap().with_extension("");
        module.iter().next().unwrap().to_str().unwrap().to_owned()
    };
    let files = sources().into_iter().map(|path| (path.clone(), module(&path)));
    files.filter(|(_, module)| module != "lib" && module != "main").collect()
}

fn paths(file: &Path) -> Vec<String> {
    paths_in(&std::fs::read_to_string(file).unwrap())
}

/// Every path behind `crate::`, without it; braces (not nested ones) are written out.
fn paths_in(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap()).collect();
    let code = code.join("\n");
    let mut paths = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        let (head, tail) = rest.split_at(end);
        match tail.strip_prefix('{').and_then(|tail| tail.split_once('}')) {
            Some((names, _)) if head.is_empty() || head.ends_with("::") => {
                for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                    paths.push(format!("{head}{}", name.split_whitespace().next().unwrap()));
                }
            }
            _ => paths.push(head.to_owned()),
        }
    }
    paths
}
