//! The table of README.md under "Other formats", cell by cell: every format that is written, under every condition that
//! it names, is read back and compared, or refused with a way out. Not here: the bytes of a format, and formats that are
//! only read (the files that the table names).

mod common;

use std::path::Path;

use common::Made;
use half::f16;
use twn_pack::export::{self, Options, WriteOptions};
use twn_pack::onnx::{Message, data_type};
use twn_pack::select::Override;
use twn_pack::{
    Checkpoint, Container, Dtype, Granularity, Plan, Rules, Settings, Tensor, convert, import, unpack, verify,
};

/// `=`: read back the same. `~`: but for scales rounded to f16. `w`: written, and no checkpoint for anybody (the file that
/// holds it down is the format's own). `-`: refused.
const TABLE: [(&str, &[usize], &str); 21] = [
    //                                          safetensors tq1_0 tq2_0 q2_0 onnx onnx-nbits bitnet gptq
    ("w ~ ~ ~ = = - w", &[16, 256], ""),
    ("w ~ ~ ~ = = = w", &[16, 256], "granularity=tensor"),
    ("w ~ ~ ~ = = - w", &[16, 512], "granularity=group:256"),
    ("w - - ~ = = - w", &[16, 256], "granularity=group:64"),
    ("w - - - = = - w", &[16, 256], "granularity=group:32"),
    ("w - - - = = - -", &[16, 192], "granularity=group:48"),
    ("w - - - = = - -", &[16, 200], "granularity=group:8"),
    ("w - - ~ = = - w", &[16, 64], ""),
    ("w - - - = = - -", &[16, 40], ""),
    ("w - - - = = = -", &[20, 40], "granularity=tensor"),
    ("w ~ ~ ~ = = - -", &[3, 256], "granularity=tensor"),
    ("w ~ ~ ~ = = - -", &[16, 64, 2, 2], ""),
    ("w - - ~ = = - -", &[16, 64, 2, 2], "granularity=group:64"),
    ("w - - - = = - -", &[256, 16], "axis=1"),
    ("w - - - = = - -", &[4, 16, 4, 4], "axis=1"),
    ("w - - - - - - -", &[4, 16, 4, 4], "axis=1,granularity=group:8"),
    ("w - - - - - - -", &[16, 256], "planes=2"),
    ("w - - - = = - -", &[16, 256], "keep=int8"),
    ("w ~ ~ ~ = = - w", &[16, 256], "encoding=t5"),
    ("w ~ ~ ~ = = - w", &[16, 256], "method=bwn"),
    ("w ~ ~ ~ = = - w", &[16, 256], "scale-dtype=f16"),
];

/// The same with `--planes-as-tensors`.
const PLANES: [(&str, &[usize], &str); 5] = [
    ("- ~ ~ ~ = = - -", &[16, 256], "planes=2"),
    ("- ~ ~ ~ = = - -", &[16, 256], "planes=4,granularity=tensor"),
    ("- - - ~ = = - -", &[16, 256], "planes=3,granularity=group:64"),
    ("- ~ ~ ~ = = - -", &[16, 64, 2, 2], "planes=2"),
    ("- - - - = = - -", &[256, 16], "planes=2,axis=1"),
];

const NAME: &str = "x.weight";

struct World {
    directory: tempfile::TempDir,
    container: Container,
}

impl World {
    /// A weight with those settings, a bias and a counter.
    fn new(shape: &[usize], settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tensors = [
            Made::gaussian(NAME, Dtype::F32, shape, 7),
            Made::gaussian("b.bias", Dtype::F32, &[5], 8),
            Made { name: "count".to_owned(), dtype: Dtype::I64, shape: vec![1], data: vec![3; 8] },
        ];
        let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "m.safetensors", &tensors)).unwrap();
        let container = pack(&checkpoint, settings, &directory.path().join("m.twn"));
        Self { directory, container }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// The model that a format needs: a product or a convolution with the weight.
    fn model(&self) -> Vec<u8> {
        let dims: Vec<u64> = self.container.index().tensors.iter().find(|t| t.name == NAME).unwrap().shape.clone();
        let by_row = Message::default().bytes(1, "transB").int(3, 1).int(20, 2);
        let node = Message::default().bytes(1, "in").bytes(1, NAME).bytes(2, "out");
        let node = match dims[..] {
            [256, 16] => node.bytes(4, "MatMul"),
            [_, _] => node.bytes(4, "Gemm").message(5, &by_row),
            _ => node.bytes(4, "Conv"),
        };
        let tensor = |name: &str, kind: i32, dims: &[u64], size: usize| {
            let data = vec![0; dims.iter().product::<u64>() as usize * size];
            let tensor = dims.iter().fold(Message::default(), |tensor, &dim| tensor.int(1, dim as i64));
            tensor.int(2, kind.into()).bytes(8, name).bytes(9, data)
        };
        let graph = Message::default().message(1, &node);
        let graph = graph.message(5, &tensor(NAME, data_type::FLOAT, &dims, 4));
        let graph = graph.message(5, &tensor("b.bias", data_type::FLOAT, &[5], 4));
        let graph = graph.message(5, &tensor("count", data_type::INT64, &[1], 8));
        let graph =
            graph.message(11, &Message::default().bytes(1, "in")).message(12, &Message::default().bytes(1, "out"));
        Message::default().int(1, 13).message(8, &Message::default().int(2, 25)).message(7, &graph).0
    }

    /// The export as a file; or why not.
    fn export(&self, format: &str, options: &Options) -> Result<std::path::PathBuf, String> {
        let mut options = options.clone();
        let name = match format {
            "onnx" | "onnx-nbits" => {
                std::fs::write(self.path("into.onnx"), self.model()).unwrap();
                options.into = Some(self.path("into.onnx"));
                "out.onnx"
            }
            "tq1_0" | "tq2_0" | "q2_0" => "out.gguf",
            // It has to have its config beside it.
            "bitnet" => "model.safetensors",
            _ => "out.safetensors",
        };
        let exported = export::format(format).unwrap().export(&self.container, &options);
        let exported =
            exported.and_then(|export| export.check().map(|()| export)).map_err(|error| error.to_string())?;
        let overwrite = WriteOptions { overwrite: true, ..WriteOptions::default() };
        export::write(&self.container, &exported, &self.path(name), &overwrite).unwrap();
        if format == "bitnet" {
            let config = std::fs::read_to_string(self.path("quantization_config.json")).unwrap();
            std::fs::write(self.path("config.json"), format!("{{\"quantization_config\": {config}}}")).unwrap();
        }
        Ok(self.path(name))
    }

    /// The values of the weight by definition: Σ α·t, planes in their order.
    fn values(&self) -> Vec<f32> {
        values(&self.container, |scale| scale)
    }
}

fn pack(checkpoint: &Checkpoint, settings: &str, output: &Path) -> Container {
    let settings = Settings::parse(settings).unwrap();
    let rules = Rules { overrides: vec![Override { pattern: NAME.to_owned(), settings }], ..Rules::default() };
    let options = convert::Options { overwrite: true, ..convert::Options::default() };
    convert::pack(checkpoint, &Plan::new(checkpoint, &rules).unwrap(), output, &options).unwrap();
    let container = Container::open(output).unwrap();
    assert_eq!(verify::verify(&container, None).unwrap().problems, [""; 0]);
    container
}

/// The weights in C order from codes and scales, which `round` may change.
fn values(container: &Container, round: impl Fn(f32) -> f32) -> Vec<f32> {
    let Some(Tensor::Ternary(ternary)) = container.by_name(NAME) else {
        let Some(Tensor::Int8(int8)) = container.by_name(NAME) else { panic!("it is dense") };
        return int8.to_array().unwrap().iter().copied().collect();
    };
    let inner: usize = ternary.shape[ternary.axis + 1..].iter().product();
    let mut values = vec![0.0; ternary.shape.iter().product()];
    for (plane, filter) in (0..ternary.planes).flat_map(|p| (0..ternary.filters).map(move |f| (p, f))) {
        let mut codes = vec![0; ternary.filter_len];
        ternary.codes(plane, filter, &mut codes).unwrap();
        for (j, code) in codes.into_iter().enumerate() {
            let at = (j / inner * ternary.filters + filter) * inner + j % inner;
            values[at] += round(ternary.scale(plane, filter, j)) * (f32::from(code) - 1.0);
        }
    }
    values
}

/// What is read back is what went out: codes and scales as they say, dense tensors bit for bit.
fn compare(world: &World, path: &Path, rounded: bool, case: &str) {
    let checkpoint = import::open(path).unwrap_or_else(|error| panic!("{case}: {error}"));
    let int8 = matches!(world.container.by_name(NAME), Some(Tensor::Int8(_)));
    for (name, tensor) in world.container.tensors() {
        if let Tensor::Dense(dense) = tensor {
            let back = checkpoint.by_name(name).unwrap_or_else(|| panic!("{case}: {name}"));
            assert_eq!((back.dtype, back.stored), (dense.dtype, dense.data), "{case}: {name}");
        }
    }
    if int8 {
        // Its codes and scales are tensors of their own.
        let codes = checkpoint.by_name("x.weight.codes").unwrap();
        assert_eq!((codes.dtype, codes.shape), (Dtype::I8, &[16, 256][..]), "{case}");
        return;
    }
    let back = pack(&checkpoint, "", &world.path("back.twn"));
    let (Some(Tensor::Ternary(old)), Some(Tensor::Ternary(new))) = (world.container.by_name(NAME), back.by_name(NAME))
    else {
        panic!("{case}: it is not ternary any more")
    };
    assert_eq!((&*new.method.name, &new.shape, new.planes), ("as-packed", &old.shape, old.planes), "{case}");
    if old.granularity != Granularity::Tensor {
        assert_eq!((new.axis, new.granularity), (old.axis, old.granularity), "{case}");
    }
    let round = |scale| if rounded { f16::from_f32(scale).to_f32() } else { scale };
    assert_eq!(values(&world.container, round), values(&back, |scale| scale), "{case}");
}

fn check(table: &[(&str, &[usize], &str)], planes_as_tensors: bool) {
    for (cells, shape, settings) in table {
        let world = World::new(shape, settings);
        let floats = world.path("floats.safetensors");
        unpack::unpack(&world.container, &floats, &unpack::Options::default()).unwrap();
        let floats = Checkpoint::open(&floats).unwrap();
        let unpacked = common::decode(Dtype::F32, floats.by_name(NAME).unwrap().stored);
        assert!(unpacked.iter().zip(world.values()).all(|(&a, b)| a == f64::from(b)), "{shape:?} {settings}");
        let cells: Vec<&str> = cells.split_whitespace().collect();
        assert_eq!(cells.len(), export::FORMATS.len());
        for (cell, format) in cells.into_iter().zip(export::FORMATS.map(|format| format.name())) {
            let case = format!("{format} of {shape:?} {settings}");
            let options = Options { planes_as_tensors, ..Options::default() };
            match (cell, world.export(format, &options)) {
                ("w", Ok(path)) if format == "safetensors" => {
                    let error = import::open(path).unwrap_err().to_string();
                    assert!(error.contains("give that file, or what it unpacks to"), "{case}: {error}");
                }
                ("w", Ok(path)) => {
                    let checkpoint = import::open(path).unwrap();
                    assert_eq!(checkpoint.by_name("x.qweight").unwrap().dtype, Dtype::I32, "{case}");
                    assert!((0..checkpoint.len()).all(|i| checkpoint.ternary(i).is_none()), "{case}");
                    // Its scales stay what they are, too.
                    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
                    assert_eq!(plan.ternary_count(), 0, "{case}");
                    assert!(
                        plan.warnings[0].contains("`x.scales` are scales of weights"),
                        "{case}: {:?}",
                        plan.warnings
                    );
                }
                ("=" | "~", Ok(path)) => compare(&world, &path, cell == "~", &case),
                ("-", Err(error)) => {
                    let ways = ["--refused-as-dense", "pack it", "leave out", "--planes-as-tensors"];
                    assert!(ways.iter().any(|way| error.contains(way)), "{case}: {error}");
                    // As floats it goes out all the same, to the values that `unpack` gives.
                    if format != "safetensors" {
                        // Where a format has no planes at all, asking for them is an error of its own.
                        let planes_as_tensors = planes_as_tensors && !["bitnet", "gptq"].contains(&format);
                        let options = Options { refused_as_dense: true, planes_as_tensors, ..options };
                        let path = world.export(format, &options).unwrap_or_else(|error| panic!("{case}: {error}"));
                        let checkpoint = import::open(path).unwrap();
                        let back = checkpoint.by_name(NAME).unwrap_or_else(|| panic!("{case}"));
                        assert_eq!((back.dtype, back.shape), (Dtype::F32, *shape), "{case}");
                        assert_eq!(common::decode(Dtype::F32, back.stored), unpacked, "{case}");
                    }
                }
                (cell, found) => panic!("{case}: {cell} in the table, {found:?}"),
            }
        }
    }
}

#[test]
fn every_condition_of_every_format() {
    check(&TABLE, false);
}

#[test]
fn planes_as_tensors_of_every_format() {
    check(&PLANES, true);
}

/// The table names every format that is written, and files that are there.
#[test]
fn the_table_names_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let table = readme.split("| format | direction | what is kept |").nth(1).unwrap().split("\n\n").next().unwrap();
    for format in export::FORMATS {
        assert!(table.contains(&format!("`--to {}", format.name())) || table.contains(&format!("`{}`", format.name())));
    }
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert!(rows.len() > 15, "{rows:?}");
    for row in rows {
        let tests = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
        let files: Vec<&str> = tests.split('`').filter(|part| part.starts_with("tests/")).collect();
        assert!(!files.is_empty() && files.iter().all(|file| root.join(file).exists()), "{row}");
    }
}
