//! Exports a `.twn` file as a C99 header for programs that have no file system:
//!
//! ```text
//! cargo run --example export_c_header -- MODEL.twn MODEL.h
//! ```
//!
//! Every ternary tensor becomes codes (2 bits each, as in `t2`), scales, macros that say how they
//! lie, and a function that decodes one weight. Dense F32 tensors become arrays of float, all
//! others arrays of bytes. What C99 or this layout cannot express is refused, tensor by tensor.
//!
//! It uses the public API alone; copy it to write an exporter of your own. What to copy: verify
//! first, collect everything that has to be refused before writing, write beside the output and
//! rename, and trust no name that comes from a file.

use std::collections::HashSet;
use std::error::Error;
use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use twn_pack::{Container, DenseTensor, Dtype, Granularity, Int8Tensor, Tensor, TernaryTensor, verify};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: export_c_header MODEL.twn MODEL.h");
        return ExitCode::from(2);
    };
    match run(input.as_ref(), output.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("export_c_header: {error}");
            ExitCode::FAILURE
        }
    }
}

pub fn run(input: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    let stem = output.file_stem().ok_or("the output needs a file name")?.to_string_lossy();
    let text = header(&Container::open(input)?, &stem)?;
    // Beside the output, so that the renaming cannot cross file systems. An existing file stays.
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)] // Else only its owner could read it.
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(parent)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(output).map_err(|e| format!("{}: {}", output.display(), e.error))?;
    Ok(())
}

/// The whole header; `stem` begins every identifier. All refusals are in the error, a line each.
pub fn header(container: &Container, stem: &str) -> Result<String, Box<dyn Error>> {
    // From here on every code is 0, 1 or 2 and every scale is finite.
    let found = verify::verify(container, None)?;
    if !found.is_good() {
        return Err(found.problems.join("\n").into());
    }
    let mut identifiers = Identifiers { prefix: sanitised(stem), taken: HashSet::new() };
    let guard = format!("{}_INCLUDED", identifiers.prefix.to_uppercase());
    let mut text = format!("#ifndef {guard}\n#define {guard}\n\n#include <stddef.h>\n#include <stdint.h>\n");
    let mut refusals = Vec::new();
    for (name, tensor) in container.tensors() {
        let id = identifiers.next(name);
        write!(text, "\n/* {}: ", in_comment(name))?;
        let written = match tensor {
            Tensor::Int8(tensor) => int8(&mut text, &id, &tensor),
            Tensor::Ternary(tensor) => ternary(&mut text, &id, &tensor),
            Tensor::Dense(tensor) => dense(&mut text, &id, &tensor),
        };
        refusals.extend(written.err().map(|reason| format!("tensor {name:?}: {reason}")));
    }
    writeln!(text, "\n#endif")?;
    if refusals.is_empty() { Ok(text) } else { Err(refusals.join("\n").into()) }
}

fn ternary(text: &mut String, id: &str, tensor: &TernaryTensor) -> Result<(), String> {
    if tensor.planes != 1 {
        return Err(format!("it has {} planes, this header has place for one", tensor.planes));
    }
    let (filters, n, upper) = (tensor.filters, tensor.filter_len, id.to_uppercase());
    let filter_bytes = n.div_ceil(4);
    // Through codes of one byte each, so that t5 and b1 come out as t2 as well. Shape: [filters][n].
    let (mut codes, mut packed) = (vec![0; n], Vec::with_capacity(filters * filter_bytes));
    for filter in 0..filters {
        tensor.codes(0, filter, &mut codes)?;
        for four in codes.chunks(4) {
            let code = |k: usize| four.get(k).copied().unwrap_or(1) << (2 * k);
            packed.push(code(0) | code(1) | code(2) | code(3));
        }
    }
    // Which scale weight j of a filter has; `spec/twn-v1.md`, section 4.4.
    let scale = match tensor.granularity {
        Granularity::Tensor => "0".to_owned(),
        Granularity::Filter => "filter".to_owned(),
        Granularity::Group(_) => {
            format!("filter * {}u + j / {}u", n.div_ceil(tensor.scale_run()), tensor.scale_run())
        }
    };
    let (method, granularity) = (in_comment(&tensor.method.name), tensor.granularity);
    line(text, format_args!("{method}, one scale per {granularity}; filter i: index i along the axis */"));
    shape(text, &upper, &tensor.shape);
    line(text, format_args!("#define {upper}_AXIS {}", tensor.axis));
    line(text, format_args!("#define {upper}_FILTERS {filters}u"));
    line(text, format_args!("#define {upper}_FILTER_LEN {n}u"));
    line(text, format_args!("#define {upper}_FILTER_BYTES {filter_bytes}u"));
    array(text, "uint8_t", &format!("{id}_codes"), &packed);
    let scales: Vec<String> = tensor.scales().map(literal).collect::<Result<_, _>>()?;
    array(text, "float", &format!("{id}_scales"), &scales);
    line(
        text,
        format_args!(
            "/* Weight j of a filter: -scale, 0 or scale. */\n\
             static inline float {id}_weight(size_t filter, size_t j)\n{{\n    \
             const unsigned byte = {id}_codes[filter * {upper}_FILTER_BYTES + j / 4u];\n    \
             const unsigned code = (byte >> (2u * (unsigned)(j % 4u))) & 3u;\n    \
             return ((float)code - 1.0f) * {id}_scales[{scale}];\n}}"
        ),
    );
    Ok(())
}

fn int8(text: &mut String, id: &str, tensor: &Int8Tensor) -> Result<(), String> {
    let upper = id.to_uppercase();
    line(text, "8 bits, one scale per filter; filter i: index i along the axis */");
    shape(text, &upper, &tensor.shape);
    line(text, format_args!("#define {upper}_AXIS {}", tensor.axis));
    line(text, format_args!("#define {upper}_FILTERS {}u", tensor.filters));
    line(text, format_args!("#define {upper}_FILTER_LEN {}u", tensor.filter_len));
    array(text, "int8_t", &format!("{id}_codes"), tensor.codes());
    let scales: Vec<String> = tensor.scales().map(literal).collect::<Result<_, _>>()?;
    array(text, "float", &format!("{id}_scales"), &scales);
    line(
        text,
        format_args!(
            "/* Weight j of a filter. */\n\
             static inline float {id}_weight(size_t filter, size_t j)\n{{\n    \
             return (float){id}_codes[filter * {upper}_FILTER_LEN + j] * {id}_scales[filter];\n}}"
        ),
    );
    Ok(())
}

fn dense(text: &mut String, id: &str, tensor: &DenseTensor) -> Result<(), String> {
    line(text, format_args!("{}, dense, little-endian, last index fastest */", tensor.dtype));
    shape(text, &id.to_uppercase(), &tensor.shape);
    if tensor.data.is_empty() {
        line(text, "/* no elements, and C99 has no empty arrays */");
    } else if tensor.dtype == Dtype::F32 {
        let floats = tensor.data.as_chunks().0.iter().map(|&bytes| literal(f32::from_le_bytes(bytes)));
        array(text, "float", &format!("{id}_data"), &floats.collect::<Result<Vec<_>, _>>()?);
    } else {
        array(text, "uint8_t", &format!("{id}_data"), tensor.data);
    }
    Ok(())
}

/// A scalar has rank 0, and as C99 has no empty initialisers, no macro for its shape.
fn shape(text: &mut String, upper: &str, shape: &[usize]) {
    line(text, format_args!("#define {upper}_RANK {}", shape.len()));
    if !shape.is_empty() {
        let lengths: Vec<_> = shape.iter().map(|d| format!("{d}u")).collect();
        line(text, format_args!("#define {upper}_SHAPE {{{}}}", lengths.join(", ")));
    }
}

/// The shortest decimal that gives this float again, bit by bit.
fn literal(value: f32) -> Result<String, String> {
    if value.is_finite() { Ok(format!("{value:?}f")) } else { Err(format!("C99 has no literal for {value}")) }
}

fn array(text: &mut String, element: &str, id: &str, values: &[impl Display]) {
    let rows = values.chunks(12).map(|row| row.iter().map(|v| format!("{v},")).collect::<Vec<_>>().join(" "));
    let rows: Vec<String> = rows.collect();
    line(text, format_args!("static const {element} {id}[{}] = {{\n    {}\n}};", values.len(), rows.join("\n    ")));
}

fn line(text: &mut String, line: impl Display) {
    writeln!(text, "{line}").expect("a string takes everything");
}

/// Names for C, made from names that may hold anything.
struct Identifiers {
    prefix: String,
    taken: HashSet<String>,
}

impl Identifiers {
    /// Different for every call: `a.b` and `a_b` become `a_b` and `a_b_2`. All in lower case, as
    /// their macros in upper case have to differ too; what is put behind them (`_codes`, `_data`)
    /// never makes two equal, as no such ending is the end of another.
    fn next(&mut self, name: &str) -> String {
        let first = format!("{}_{}", self.prefix, sanitised(name));
        let numbered = (2..).map(|i| format!("{first}_{i}"));
        let free = std::iter::once(first.clone()).chain(numbered).find(|id| !self.taken.contains(id));
        let id = free.expect("numbers do not end");
        self.taken.insert(id.clone());
        id
    }
}

/// Only a-z, 0-9 and `_`, and a letter in front.
fn sanitised(name: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let name: String = name.chars().map(clean).collect();
    if name.starts_with(|c: char| c.is_ascii_lowercase()) { name } else { format!("t{name}") }
}

/// A name inside a comment cannot end it.
fn in_comment(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.chars().map(|c| if plain(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}
