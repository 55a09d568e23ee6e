//! The example exporter: what a C compiler makes of its headers is what the library dequantizes,
//! bit by bit. Without a C compiler only the refusals and the names are tested.

#[path = "../examples/export_c_header.rs"]
#[allow(dead_code, reason = "the test is the main program here")]
mod export_c_header;

mod common;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Made;
use export_c_header::header;
use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, Tensor, convert};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn open(name: &str) -> Container {
    Container::open(fixture(name)).unwrap()
}

/// A checkpoint, packed with the default rules.
fn packed(tensors: &[Made]) -> Container {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "m.safetensors", tensors)).unwrap();
    let (plan, out) = (Plan::new(&checkpoint, &Rules::default()).unwrap(), directory.path().join("m.twn"));
    convert::pack(&checkpoint, &plan, &out, &convert::Options::default()).unwrap();
    Container::from_bytes("m.twn", std::fs::read(out).unwrap()).unwrap()
}

/// Whether there is a C compiler; says so where there is none.
fn has_cc() -> bool {
    let found = Command::new("cc").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: there is no C compiler `cc`");
    }
    found
}

/// Compiles a program that prints every weight and every element, and returns what it printed.
/// `ids` are the identifiers of the container's tensors, in its order.
fn through_c(container: &Container, ids: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("m.h"), header(container, "m").unwrap()).unwrap();
    let mut code = "#include \"m.h\"\n#include <stdio.h>\n#include <string.h>\n\
                    static void bits(float x) { uint32_t u; memcpy(&u, &x, 4); printf(\"%08lx\\n\", (unsigned long)u); }\n\
                    int main(void) {\n    size_t i, j;\n"
        .to_owned();
    for (id, (_, tensor)) in ids.iter().zip(container.tensors()) {
        let upper = id.to_uppercase();
        let line = match tensor {
            Tensor::Int8(_) | Tensor::Ternary(_) => format!(
                "for (i = 0; i < {upper}_FILTERS; i++) for (j = 0; j < {upper}_FILTER_LEN; j++) bits({id}_weight(i, j));"
            ),
            Tensor::Dense(dense) if dense.data.is_empty() => continue,
            Tensor::Dense(dense) if dense.dtype == Dtype::F32 => {
                format!("for (i = 0; i < sizeof {id}_data / sizeof *{id}_data; i++) bits({id}_data[i]);")
            }
            Tensor::Dense(_) => format!("for (i = 0; i < sizeof {id}_data; i++) printf(\"%02x\\n\", {id}_data[i]);"),
        };
        writeln!(code, "    {line}").unwrap();
    }
    code += "    (void)i; (void)j;\n    return 0;\n}\n";
    std::fs::write(path("m.c"), code).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-o"]).arg(path("m")).arg(path("m.c"));
    let output = cc.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(Command::new(path("m")).output().unwrap().stdout).unwrap()
}

/// What that program should print.
fn by_the_library(container: &Container) -> String {
    let mut text = String::new();
    let mut bits = |value: f32| writeln!(text, "{:08x}", value.to_bits()).unwrap();
    let mut bytes = Vec::new();
    for (_, tensor) in container.tensors() {
        match tensor {
            Tensor::Int8(tensor) => {
                let mut values = vec![0.0; tensor.filter_len];
                for filter in 0..tensor.filters {
                    tensor.dequantize_filter(filter, &mut values).unwrap();
                    values.iter().for_each(|&value| bits(value));
                }
            }
            Tensor::Ternary(tensor) => {
                let mut values = vec![0.0; tensor.filter_len];
                for filter in 0..tensor.filters {
                    tensor.dequantize_filter(filter, &mut values).unwrap();
                    values.iter().for_each(|&value| bits(value));
                }
            }
            Tensor::Dense(tensor) if tensor.dtype == Dtype::F32 => {
                tensor.data.chunks(4).for_each(|b| bits(f32::from_le_bytes(b.try_into().unwrap())));
            }
            Tensor::Dense(tensor) => bytes.extend_from_slice(tensor.data),
        }
    }
    assert!(bytes.is_empty(), "keep tensors of other types out of this, or in order");
    text
}

#[test]
fn c_decodes_what_the_library_dequantizes() {
    if !has_cc() {
        return;
    }
    // Every encoding, granularity and axis; scales of both types; lengths that are no multiple of 4.
    let layouts = std::fs::read_dir(fixture("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = layouts.filter(|f| f.starts_with("layouts.") && f.ends_with(".twn")).collect();
    assert!(files.len() > 10, "{files:?}");
    files.extend(["long-filter.t5.twn".to_owned(), "odd-lengths.t5.twn".to_owned()]);
    for file in files {
        let container = open(&file);
        let ids: Vec<String> = container.tensors().map(|(name, _)| format!("m_{}", name.replace('.', "_"))).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        assert_eq!(through_c(&container, &ids), by_the_library(&container), "{file}");
    }
}

#[test]
fn dense_floats_and_bytes_come_through_as_they_are() {
    if !has_cc() {
        return;
    }
    let floats = [0.1, -0.0, 1.0, f64::from(f32::MAX), f64::from(f32::from_bits(1)), 1e10];
    let container = packed(&[
        Made::new("bias", Dtype::F32, &[6], &floats),
        Made::new("half", Dtype::F16, &[2], &[1.0, -2.0]),
        Made::new("none", Dtype::F32, &[0, 3], &[]),
        Made::new("scalar", Dtype::F32, &[], &[0.5]),
    ]);
    let mut expected: Vec<String> = floats.iter().map(|&x| format!("{:08x}", (x as f32).to_bits())).collect();
    expected.extend(["00", "3c", "00", "c0", "3f000000"].map(str::to_owned));
    let ids = ["m_bias", "m_half", "m_none", "m_scalar"];
    assert_eq!(through_c(&container, &ids).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn names_that_hold_anything_become_identifiers_of_their_own() {
    let names = ["a.b", "a_b", "A.B", "a_b_2", "*/ int x; /*\\\n", "", "3", "größe", "x", "x.codes", "x_data"];
    let tensors: Vec<Made> =
        names.iter().zip(1..).map(|(name, seed)| Made::gaussian(name, Dtype::F32, &[2, 5], seed)).collect();
    let container = packed(&tensors);
    let mut order: Vec<&str> = container.tensors().map(|(name, _)| name).collect();
    let text = header(&container, "m").unwrap();
    assert!(!text.contains("int x;"), "{text}");
    order.sort_unstable();
    assert_eq!(order.len(), names.len());
    let ids: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("static inline float ")?.split_once("_weight("))
        .map(|(id, _)| id)
        .collect();
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len(), "{ids:?}");
    if has_cc() {
        assert_eq!(through_c(&container, &ids), by_the_library(&container));
    }
}

#[test]
fn what_cannot_be_expressed_is_refused_with_a_reason() {
    let refusal = |container: &Container| header(container, "m").unwrap_err().to_string();
    assert!(refusal(&open("two-planes.twn")).contains("it has 2 planes"));
    let nan = packed(&[
        Made::new("bias", Dtype::F32, &[2], &[1.0, f64::NAN]),
        Made::new("gain", Dtype::F32, &[1], &[f64::INFINITY]),
    ]);
    assert_eq!(
        refusal(&nan),
        "tensor \"bias\": C99 has no literal for NaN\ntensor \"gain\": C99 has no literal for inf"
    );
    let mut bytes = open("layouts.t2-filter-axis0.twn").bytes().to_vec();
    bytes[64] ^= 1;
    assert!(header(&Container::from_bytes("damaged", bytes).unwrap(), "m").is_err());
}

#[test]
fn the_output_appears_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("m.h");
    export_c_header::run(&fixture("two-planes.twn"), &out).unwrap_err();
    assert!(common::names(directory.path()).is_empty());
    export_c_header::run(&fixture("long-filter.t5.twn"), &out).unwrap();
    assert!(std::fs::read_to_string(&out).unwrap().ends_with("#endif\n"));
    export_c_header::run(&fixture("unaligned.t2.twn"), &out).unwrap_err();
    assert_eq!(common::names(directory.path()), ["m.h"], "an existing file stays");
}
