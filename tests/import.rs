//! Tensors that are ternary before they are packed: in another program's layout, or as floats that have three values.
//! Not here: any format; the layout here is made up.

mod common;

use std::path::Path;

use twn_pack::convert::{self, NATIVE, NOT_NATIVE};
use twn_pack::select::{Decision, MOVED, Override};
use twn_pack::source::{CheckpointBuilder, TernaryLayout, TernaryPlane};
use twn_pack::{
    Checkpoint, Container, Dtype, Encoding, Granularity, MappedFile, Plan, Rules, ScaleDtype, Settings, Tensor, verify,
};

/// A byte per code, behind one f32 per unit; filter after filter.
#[derive(Debug)]
struct Plain {
    n: usize,
    unit_len: usize,
}

impl Plain {
    fn filter_bytes(&self) -> usize {
        4 * self.n.div_ceil(self.unit_len) + self.n
    }
}

impl TernaryLayout for Plain {
    fn unit_len(&self) -> usize {
        self.unit_len
    }

    fn codes(&self, data: &[u8], filter: usize, codes: &mut [u8]) -> Result<(), String> {
        let end = (filter + 1) * self.filter_bytes();
        codes.copy_from_slice(&data[end - self.n..end]);
        Ok(())
    }

    fn scale(&self, data: &[u8], filter: usize, unit: usize) -> f32 {
        let at = filter * self.filter_bytes() + 4 * unit;
        f32::from_le_bytes(data[at..at + 4].try_into().unwrap())
    }
}

/// The scales and codes of a filter.
type Filter<'a> = (&'a [f32], &'a [u8]);

fn write(path: &Path, filters: &[Filter<'_>]) {
    let bytes: Vec<u8> = filters
        .iter()
        .flat_map(|(scales, codes)| scales.iter().flat_map(|s| s.to_le_bytes()).chain(codes.iter().copied()))
        .collect();
    std::fs::write(path, bytes).unwrap();
}

fn checkpoint(path: &Path, shape: &[usize], unit_len: usize) -> Checkpoint {
    let mut builder = CheckpointBuilder::new(path);
    let file = MappedFile::open(path).unwrap();
    let length = file.len();
    let number = builder.file(file);
    let layout = Box::new(Plain { n: shape[1..].iter().product(), unit_len });
    builder.ternary("w", (Dtype::BF16, shape), layout, number, 0..length).unwrap();
    builder.finish().unwrap()
}

fn rules(settings: &str) -> Rules {
    Rules { settings: Settings::parse(settings).unwrap(), ..Rules::default() }
}

#[test]
fn codes_and_scales_are_moved_and_what_scales_share_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("plain");
    let (a, b, zeros) = ([0, 1, 2, 2, 0, 1], [2, 2, 1, 0, 0, 0], [1; 6]);
    let none = [0.0, 0.0];
    let cases: [(&[Filter<'_>], usize, Granularity, &[f32]); 11] = [
        (&[(&[0.5], &a), (&[0.5], &b)], 6, Granularity::Tensor, &[0.5]),
        (&[(&[0.5], &a), (&[0.25], &b)], 6, Granularity::Filter, &[0.5, 0.25]),
        (&[(&[0.5, 0.5], &a), (&[0.25, 0.25], &b)], 4, Granularity::Filter, &[0.5, 0.25]),
        (&[(&[0.5, 0.5], &a), (&[0.25, 3.0], &b)], 4, Granularity::Group(4), &[0.5, 0.5, 0.25, 3.0]),
        // Where all codes are zero, so may be the scale: it says nothing.
        (&[(&[0.5, 0.5], &a), (&none, &zeros)], 4, Granularity::Tensor, &[0.5]),
        (&[(&none, &zeros), (&[0.5, 0.5], &a)], 4, Granularity::Filter, &[0.0, 0.5]),
        (&[(&[0.5, 0.0], &[2, 0, 1, 2, 1, 1]), (&[0.5, 0.5], &b)], 4, Granularity::Tensor, &[0.5]),
        // Where they are not, it does: such weights are 0, whatever their codes.
        (&[(&[0.5, 0.0], &a), (&[0.5, 0.5], &b)], 4, Granularity::Group(4), &[0.5, 0.0, 0.5, 0.5]),
        // Groups of several units, where every change is at the beginning of one.
        (&[(&[0.5, 0.5, 0.25], &a), (&[2.0, 2.0, 3.0], &b)], 2, Granularity::Group(4), &[0.5, 0.25, 2.0, 3.0]),
        (
            &[(&[0.5, 0.5, 0.25], &a), (&[2.0, 3.0, 3.0], &b)],
            2,
            Granularity::Group(2),
            &[0.5, 0.5, 0.25, 2.0, 3.0, 3.0],
        ),
        (
            &[(&[0.5, 0.0, 0.25], &[2, 0, 1, 1, 0, 2]), (&[2.0; 3], &b)],
            2,
            Granularity::Group(4),
            &[0.5, 0.25, 2.0, 2.0],
        ),
    ];
    for (i, (filters, unit_len, granularity, scales)) in cases.into_iter().enumerate() {
        write(&source, filters);
        let checkpoint = checkpoint(&source, &[2, 3, 2], unit_len);
        for encoding in [Encoding::T2, Encoding::T5] {
            let case = format!("case {i}, {}", encoding.name());
            let plan = Plan::new(&checkpoint, &rules(&format!("encoding={}", encoding.name()))).unwrap();
            let output = directory.path().join(format!("{i}{}.twn", encoding.name()));
            let report = convert::pack(&checkpoint, &plan, &output, &convert::Options::default()).unwrap();
            assert_eq!(report.tensors[0].relative_squared_error, Some(0.0), "{case}");
            assert_eq!(report.tensors[0].source_bytes, source.metadata().unwrap().len(), "{case}");
            let container = Container::open(&output).unwrap();
            let Some((_, Tensor::Ternary(tensor))) = container.tensors().next() else { panic!("{case}") };
            assert_eq!((tensor.dtype, &tensor.shape[..], tensor.axis), (Dtype::BF16, &[2, 3, 2][..], 0), "{case}");
            assert_eq!((tensor.encoding, tensor.granularity), (encoding, granularity), "{case}");
            assert_eq!(tensor.method.name, MOVED, "{case}");
            assert_eq!(tensor.scales().collect::<Vec<_>>(), scales, "{case}");
            for (filter, (_, expected)) in filters.iter().enumerate() {
                let mut codes = [9; 6];
                tensor.codes(0, filter, &mut codes).unwrap();
                assert_eq!(codes, *expected, "{case}");
            }
            let norm: f64 = filters
                .iter()
                .flat_map(|(scales, codes)| {
                    codes
                        .iter()
                        .enumerate()
                        .map(|(j, &code)| f64::from(scales[j / unit_len] * (f32::from(code) - 1.0)).powi(2))
                })
                .sum();
            assert!((tensor.stats.squared_norm - norm).abs() < 1e-12, "{case}: {} {norm}", tensor.stats.squared_norm);
            assert!(verify::verify(&container, None).unwrap().is_good(), "{case}");
            let against = verify::verify_against(&container, &checkpoint, None).unwrap();
            assert!(against.is_good(), "{case}: {:?}", against.problems);
        }
    }
}

/// Planes may lie in different files; the coarsest granularity is that of all of them.
#[test]
fn planes_are_moved_together() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b): ([u8; 6], [u8; 6]) = ([0, 1, 2, 2, 0, 1], [2, 2, 1, 0, 0, 0]);
    let planes: [[Filter<'_>; 2]; 2] =
        [[(&[0.5, 0.5, 0.5], &a), (&[0.5; 3], &b)], [(&[0.25, 0.25, 0.125], &b), (&[1.0; 3], &a)]];
    let mut builder = CheckpointBuilder::new(directory.path().join("two"));
    let mut files = 0..9;
    let mut place = |filters: &[Filter<'_>], unit_len| {
        let path = directory.path().join(i32::to_string(&files.next().unwrap()));
        write(&path, filters);
        let file = MappedFile::open(path).unwrap();
        let range = 0..file.len();
        TernaryPlane { layout: Box::new(Plain { n: 6, unit_len }), file: builder.file(file), range }
    };
    let both = vec![place(&planes[0], 2), place(&planes[1], 2)];
    let unlike = vec![place(&planes[0], 2), place(&planes[1], 3)];
    let five = (0..5).map(|_| place(&planes[0], 2)).collect();
    let bytes = both.iter().map(|plane| plane.range.len()).sum::<usize>();
    for (planes, expected) in [
        (unlike, "its planes have scales for other weights each"),
        (five, "it has 5 planes"),
        (vec![], "it has 0 planes"),
    ] {
        let error = builder.ternary_planes("x", (Dtype::F32, &[2, 6]), planes).unwrap_err().to_string();
        assert!(error.contains("`x`") && error.contains(expected), "{error}");
    }
    builder.ternary_planes("w", (Dtype::F32, &[2, 6]), both).unwrap();
    let checkpoint = builder.finish().unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let planned = twn_pack::Report::of_plan(&checkpoint, &plan).unwrap();
    let output = directory.path().join("out.twn");
    let report = convert::pack(&checkpoint, &plan, &output, &convert::Options::default()).unwrap();
    // Two planes of two filters of two bytes; the plan knows no scales yet.
    assert_eq!((planned.totals.code_bytes, report.totals.code_bytes), (8, 8));
    assert_eq!((planned.totals.source_bytes, report.totals.source_bytes), (bytes as u64, bytes as u64));
    let container = Container::open(&output).unwrap();
    assert!(verify::verify(&container, None).unwrap().is_good());
    let Some(Tensor::Ternary(tensor)) = container.by_name("w") else { panic!() };
    assert_eq!((tensor.planes, tensor.granularity), (2, Granularity::Group(4)));
    assert_eq!(tensor.scales().collect::<Vec<_>>(), [0.5, 0.5, 0.5, 0.5, 0.25, 0.125, 1.0, 1.0]);
    let weight = |filter: usize, j: usize| -> f64 {
        let of = planes.iter().map(|plane| f64::from(plane[filter].0[j / 2]) * (f64::from(plane[filter].1[j]) - 1.0));
        of.sum()
    };
    let values = tensor.to_array().unwrap();
    let expected: Vec<f64> = (0..12).map(|i| weight(i / 6, i % 6)).collect();
    assert!(values.iter().zip(&expected).all(|(&a, &b)| f64::from(a) == b), "{values} {expected:?}");
    // The planes overlap: their norms alone do not add up to it.
    assert_eq!(tensor.stats.squared_norm, expected.iter().map(|w| w * w).sum::<f64>());
    assert_eq!(tensor.stats.squared_error, 0.0);
}

#[test]
fn what_was_moved_is_compared_code_by_code() {
    let directory = tempfile::tempdir().unwrap();
    let (source, output) = (directory.path().join("plain"), directory.path().join("out.twn"));
    let codes: [u8; 6] = [0, 1, 2, 2, 0, 1];
    write(&source, &[(&[0.5], &codes), (&[0.25], &codes)]);
    let before = checkpoint(&source, &[2, 6], 6);
    convert::pack(&before, &Plan::new(&before, &Rules::default()).unwrap(), &output, &convert::Options::default())
        .unwrap();
    let container = Container::open(&output).unwrap();
    let other = directory.path().join("other");
    for (filters, expected) in [
        (
            [(&[0.5_f32][..], &codes[..]), (&[0.25], &[0, 1, 2, 2, 1, 1])],
            "weight 4 of filter 1 has code 0, 1 in the checkpoint",
        ),
        ([(&[0.5], &codes), (&[0.26], &codes)], "scale 0 of filter 1 is 2.5e-1, 2.6e-1"),
    ] {
        write(&other, &filters);
        let problems = verify::verify_against(&container, &checkpoint(&other, &[2, 6], 6), None).unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{problems:?}");
    }
}

#[test]
fn what_cannot_be_moved_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (source, output) = (directory.path().join("plain"), directory.path().join("out.twn"));
    let good: [u8; 4] = [0, 1, 2, 2];
    for (scale, codes, expected) in [
        (0.5, [0, 1, 3, 2], "code 3"),
        (f32::NAN, good, "scale 0 is NaN"),
        (f32::INFINITY, good, "scale 0 is inf"),
        (-0.5, good, "scale 0 is -0.5"),
    ] {
        write(&source, &[(&[0.5], &good), (&[scale], &codes)]);
        let checkpoint = checkpoint(&source, &[2, 4], 4);
        let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        let error = convert::pack(&checkpoint, &plan, &output, &convert::Options::default()).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("filter 1") && error.contains(expected), "{error}");
        assert!(!output.exists());
    }
    write(&source, &[(&[0.5], &good), (&[1e-9], &good)]);
    let checkpoint = checkpoint(&source, &[2, 4], 4);
    let plan = Plan::new(&checkpoint, &rules("scale-dtype=f16")).unwrap();
    let error = convert::measure(&checkpoint, &plan, &convert::Options::default()).unwrap_err().to_string();
    assert!(error.contains("does not fit f16"), "{error}");
    for (settings, exclude) in [("encoding=b1,method=bwn", ""), ("planes=2", ""), ("", "w")] {
        let exclude = [exclude].into_iter().filter(|e| !e.is_empty()).map(str::to_owned).collect();
        let error = Plan::new(&checkpoint, &Rules { exclude, ..rules(settings) }).unwrap_err().to_string();
        assert!(error.contains("`w` is ternary in the checkpoint"), "{error}");
    }
    let kept = Override { pattern: "w".to_owned(), settings: Settings::parse("keep=int8").unwrap() };
    let error = Plan::new(&checkpoint, &Rules { overrides: vec![kept], ..Rules::default() }).unwrap_err().to_string();
    assert!(error.contains("no floats that could be dense or int8"), "{error}");
    let mut edited = Plan::new(&checkpoint, &Rules::default()).unwrap();
    edited.tensors[0].decision = Decision::Dense;
    let error = convert::measure(&checkpoint, &edited, &convert::Options::default()).unwrap_err().to_string();
    assert!(error.contains("has no floats to keep"), "{error}");
    let warned = Plan::new(&checkpoint, &rules("granularity=group:4")).unwrap();
    assert!(warned.warnings[0].contains("`granularity` does not touch them"), "{:?}", warned.warnings);
    let warned = Plan::new(&checkpoint, &rules("method=optimal")).unwrap();
    assert!(warned.warnings[0].contains("`optimal` does not touch them"), "{:?}", warned.warnings);
    assert!(matches!(warned.tensors[0].decision, Decision::Moved(moved) if moved.scale_dtype == ScaleDtype::F32));
    let warned = Plan::new(&checkpoint, &Rules { keep_first_last: true, ..Rules::default() }).unwrap();
    assert!(warned.warnings[0].contains("`w`, the first layer by name, is ternary in the checkpoint"));
}

/// Packs one tensor by `auto` and says what it became, why, and its error.
fn auto(
    directory: &Path,
    (dtype, shape): (Dtype, &[usize]),
    values: &[f32],
    settings: &str,
) -> (String, String, Option<f64>) {
    let path = directory.join("w.safetensors");
    let bytes: Vec<u8> = match dtype {
        Dtype::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let view = safetensors::tensor::TensorView::new(dtype, shape.to_vec(), &bytes).unwrap();
    std::fs::write(&path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let plan = Plan::new(&checkpoint, &rules(&format!("method=auto{settings}"))).unwrap();
    let report = convert::measure(&checkpoint, &plan, &convert::Options::default()).unwrap();
    let tensor = &report.tensors[0];
    (tensor.became.clone(), tensor.reason.clone(), tensor.relative_squared_error)
}

#[test]
fn auto_packs_what_is_ternary_already_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let run = |dtype, shape: &[usize], values: &[f32], settings: &str| {
        auto(directory.path(), (dtype, shape), values, settings)
    };
    let packed = |what: &str| (what.to_owned(), NATIVE.to_owned(), Some(0.0));
    let dense = ("dense".to_owned(), NOT_NATIVE.to_owned(), None);
    let native = [0.1, -0.1, 0.0, 0.1, 0.3, 0.0, -0.3, -0.3];
    for dtype in [Dtype::BF16, Dtype::F32, Dtype::F64] {
        assert_eq!(run(dtype, &[2, 4], &native, ""), packed("t2 auto filter"), "{dtype}");
        assert_eq!(run(dtype, &[2, 4], &native, ",granularity=tensor"), dense, "{dtype}");
        assert_eq!(run(dtype, &[1, 8], &native, ",granularity=group:4"), packed("t2 auto group:4"), "{dtype}");
        assert_eq!(run(dtype, &[1, 8], &native, ""), dense, "{dtype}");
        assert_eq!(run(dtype, &[2, 4], &[0.5; 8], ",granularity=tensor"), packed("t2 auto tensor"), "{dtype}");
        assert_eq!(run(dtype, &[2, 4], &[0.0; 8], ""), packed("t2 auto filter"), "{dtype}");
        // Axis 1: each column has one magnitude.
        assert_eq!(run(dtype, &[2, 2], &[0.1, -0.3, -0.1, 0.0], ",axis=1"), packed("t2 auto filter axis 1"), "{dtype}");
        assert_eq!(run(dtype, &[2, 2], &[0.1, -0.3, -0.3, 0.0], ",axis=1"), dense, "{dtype}");
    }
    // One weight of many is off by its last bit; f16 scales would round 0.1.
    let mut values = vec![0.1_f32; 100_000];
    assert_eq!(run(Dtype::F32, &[1, 100_000], &values, ""), packed("t2 auto filter"));
    values[99_999] = 0.1_f32.next_up();
    assert_eq!(run(Dtype::F32, &[1, 100_000], &values, ""), dense);
    // Scales that their type does not have.
    assert_eq!(run(Dtype::F32, &[2, 4], &native, ",scale-dtype=f16"), dense);
    assert_eq!(run(Dtype::F32, &[1, 2], &[0.5, -0.5], ",scale-dtype=f16"), packed("t2 auto filter"));
    assert_eq!(run(Dtype::F32, &[1, 2], &[1e6, -1e6], ",scale-dtype=f16"), dense);
    let error = Settings::parse("method=auto,planes=2").unwrap().treatment().unwrap_err().to_string();
    assert!(error.contains("one plane"), "{error}");
}

#[test]
fn files_are_called_what_their_names_say() {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes, expected) in [
        ("m.gguf", &b""[..], "not a GGUF file that can be read: it has 0 bytes and begins with [], expected `GGUF`"),
        ("m.pt", b"\x80\x02", "[80, 02], expected `PK`"),
        ("m.npz", b"12345678", "expected `PK`"),
        ("m.NPY", b"12345678x", "`NUMPY`"),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = twn_pack::import::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
    // Safetensors by another name.
    let path = common::checkpoint(directory.path(), "m.bin", &[common::Made::gaussian("w", Dtype::F32, &[2, 2], 1)]);
    assert_eq!(twn_pack::import::open(path).unwrap().len(), 1);
}

/// Scales of weights that other programs have quantized, by what they call them; and what is only called so.
#[test]
fn scales_of_quantized_weights_stay_dense() {
    use Dtype::{BF16, F8_E4M3, F16, F32, I8, I16, I32, I64, U8, U32};
    for (weights, dtype, scales, scales_dtype, expected) in [
        ("a.qweight", I32, "a.scales", F16, true),
        ("a.weight", F8_E4M3, "a.weight_scale_inv", F32, true),
        ("a.weight", F8_E4M3, "a.weight_scale", BF16, true),
        ("a.weight", I8, "a.weight_scale", F32, true),
        ("a.weight_packed", I32, "a.weight_scale", BF16, true),
        ("a.W_q", U8, "a.zero", F16, true),
        ("a.weight._data", U8, "a.weight._scale", F32, true),
        ("a.weight._data._data", U8, "a.weight._shift", F32, true),
        ("a.weight", F8_E4M3, "a.input_scale", F32, true),
        ("a.weight_packed", I32, "a.input_scale", F32, true),
        ("a.weight", U32, "a.biases", F16, true),
        ("a.codes", I16, "a.codebooks", F16, true),
        ("a.weight", I16, "a.tables2", F16, true),
        ("a.indices", I32, "a.res_centroids.weight", F16, true),
        ("a.up_proj_blocks", U8, "a.up_proj_offsets", BF16, true),
        ("a.attn.bias", U8, "a.attn.rows", F32, false),
        ("a.attn_mask", U8, "a.rows", F32, false),
        ("a.buffer", U8, "a.in_proj_weight", F32, false),
        ("a.attn.buffer", U8, "a.rows", F32, false),
        ("a.table", I64, "a.rows", F32, false),
        ("codes", U8, "rows", F32, false),
        ("a._weight_qdata", F8_E4M3, "a._weight_scale", F32, true),
        ("a.weight", F8_E4M3, "a.scale_weight", F32, true),
        ("a.weight", F8_E4M3, "a.qscale_weight", BF16, true),
        ("a.weight", F8_E4M3, "a.weights_scaling_factor", F32, true),
        ("a.weight", F8_E4M3, "a.weight.scale", F32, true),
        ("a.weight", F8_E4M3, "a.weight_descale", F32, true),
        ("a.weight", F8_E4M3, "a.scales", F32, true),
        ("a.experts.up_proj", F8_E4M3, "a.experts.up_proj_weight_scale", F32, true),
        ("params/a/kernel/qvalue", I8, "params/a/kernel/scale", F32, true),
        ("a/kernel", I8, "a/kernel_scale", F32, true),
        ("a/qweight", I32, "a/scales", F16, true),
        ("qweight", I32, "scales", F16, true),
        ("weight", I8, "weight_scale", F32, true),
        // Networks of 8-bit floats, and what is no scale beside them.
        ("a.weight", F8_E4M3, "a.logit_scale", F8_E4M3, false),
        ("a.weight", F8_E4M3, "a.gamma", F32, false),
        ("a.weight", F32, "a.scale", F32, false),
        ("a.weight", F8_E4M3, "b.scale", F32, false),
        ("a.weight", F32, "a.weight_scale", F32, false),
        ("xqweight", I32, "scales", F16, false),
        ("b.qweight", I32, "a.scales", F16, false),
        ("a.weight", I8, "b.weight_scale", F32, false),
    ] {
        let zeros = |name: &str, dtype: Dtype| {
            let data = vec![0; 16 * dtype.bitsize() / 8];
            common::Made { name: name.to_owned(), dtype, shape: vec![4, 4], data }
        };
        let directory = tempfile::tempdir().unwrap();
        let path = common::checkpoint(
            directory.path(),
            "q.safetensors",
            &[zeros(weights, dtype), zeros(scales, scales_dtype)],
        );
        let checkpoint = Checkpoint::open(&path).unwrap();
        let of = |rules: &Rules| {
            let plan = Plan::new(&checkpoint, rules).unwrap();
            let planned = plan.tensors.iter().find(|planned| planned.name == scales).unwrap();
            (matches!(planned.decision, Decision::Dense), planned.reason.to_string(), plan.warnings.len())
        };
        let (dense, reason, warnings) = of(&Rules::default());
        assert_eq!((dense, warnings), (expected, usize::from(expected)), "{scales} of {weights}: {reason}");
        assert!(!expected || reason.starts_with(&format!("scales of `{weights}`")), "{reason}");
        // Who asks for it gets it.
        assert!(!of(&Rules { include: vec![scales.to_owned()], ..Rules::default() }).0, "{scales}");
    }
}

/// bitsandbytes stores 4 bits as any type: what stands beside the weights says what they are.
#[test]
fn packed_numbers_that_look_like_floats_stay_dense() {
    let directory = tempfile::tempdir().unwrap();
    let zeros = |name: &str, dtype: Dtype, shape: &[usize]| {
        let data = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        common::Made { name: name.to_owned(), dtype, shape: shape.to_vec(), data }
    };
    let tensors = [
        zeros("q.weight", Dtype::BF16, &[32, 1]),
        zeros("q.weight.absmax", Dtype::F32, &[2]),
        zeros("q.weight.quant_map", Dtype::F32, &[16]),
        zeros("r.weight", Dtype::F32, &[32, 1]),
        zeros("r.weight.absmax", Dtype::U8, &[2]),
        zeros("r.weight.quant_state.bitsandbytes__nf4", Dtype::U8, &[80]),
        zeros("w.weight", Dtype::F32, &[32, 1]),
    ];
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "q.safetensors", &tensors)).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    let reason = |name: &str| &*plan.tensors.iter().find(|planned| planned.name == name).unwrap().reason;
    for name in ["q.weight", "r.weight"] {
        assert_eq!(reason(name), "quantized, by what stands below its name");
    }
    assert!(reason("w.weight").starts_with("floating point") && plan.ternary_count() == 1, "{plan:?}");
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
    assert!(plan.warnings[0].contains("`q.weight.absmax` and 1 others are scales of weights"), "{:?}", plan.warnings);
}

/// Scales of one number are as good a sign as matrices.
#[test]
fn a_single_scale_of_8_bit_floats_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let made = |name: &str, dtype, shape: &[usize], bytes| common::Made {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        data: vec![0; bytes],
    };
    let tensors = [made("q.weight", Dtype::F8_E4M3, &[4, 4], 16), made("q.scale_weight", Dtype::F32, &[], 4)];
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "q.safetensors", &tensors)).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    assert!(plan.warnings[0].starts_with("`q.scale_weight` are scales of weights"), "{:?}", plan.warnings);
}

/// bitsandbytes in 8 bits has its scales in vectors, which nobody takes for weights: the integers are worth a warning, too.
#[test]
fn vectors_of_scales_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let zeros = |name: &str, dtype, shape: &[usize], bytes| common::Made {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        data: vec![0; bytes],
    };
    let tensors = [zeros("a.weight", Dtype::I8, &[4, 4], 16), zeros("a.SCB", Dtype::F32, &[4], 16)];
    let checkpoint = Checkpoint::open(common::checkpoint(directory.path(), "q.safetensors", &tensors)).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
    assert!(plan.warnings[0].starts_with("`a.SCB` are scales of weights"), "{:?}", plan.warnings);
}
