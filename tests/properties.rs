//! Properties over random checkpoints: what is packed opens, verifies, dequantizes to exactly
//! scale times code, and packs to the same codes again; the bytes depend on nothing but the input.

mod common;

use std::path::Path;

use common::{FLOATS, Made, Random, filters};
use ndarray::{ArrayD, Axis, IxDyn, Slice};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use twn_pack::convert::Options;
use twn_pack::{Checkpoint, Container, Dtype, Error, Isa, Plan, Rules, Settings, Tensor, TernaryTensor};
use twn_pack::{convert, memory, unpack, verify};

/// The same cases on every run.
fn cases(cases: u32, seed: u64) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() }
}

/// A tensor and settings that fit it.
#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    shape: Vec<usize>,
    settings: String,
    seed: u64,
}

impl Case {
    fn settings(&self) -> Settings {
        Settings::parse(&self.settings).unwrap()
    }

    fn tensor(&self) -> Made {
        let mut random = Random(self.seed);
        let n = self.shape.iter().product();
        let kind = random.below(4);
        let mut values: Vec<f64> = (0..n)
            .map(|_| match kind {
                0 => random.gaussian(),
                1 => random.below(5) as f64 - 2.0,
                2 => random.laplace() * 3.0,
                _ => random.gaussian() * 0.5 + 0.2,
            })
            .collect();
        // Some filters of zeros, some zeros of either sign.
        let zeros = random.below(n.max(1) as u64 + 1) as usize / 3;
        values[..zeros].iter_mut().for_each(|w| *w *= 0.0);
        Made::new("layer.weight", self.dtype, &self.shape, &values)
    }
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    let small = prop::collection::vec(0usize..=17, 2..=5);
    let long = (1usize..=3, 1_000usize..60_000, any::<bool>()).prop_map(|(a, b, swap)| match swap {
        true => vec![b, a],
        false => vec![a, b],
    });
    // Over one piece of work, so that a filter is cut.
    let longest = (245_000usize..270_000).prop_map(|n| vec![1, n]);
    prop_oneof![60 => small, 5 => long, 1 => longest].prop_map(|mut shape| {
        // Bounded work: the last dimensions give way.
        for i in (0..shape.len()).rev() {
            if shape.iter().product::<usize>() > 5_000 && shape.len() > 2 {
                shape[i] = shape[i].min(2);
            }
        }
        shape
    })
}

fn case() -> impl Strategy<Value = Case> {
    let granularity = prop_oneof![
        Just("filter".to_owned()),
        Just("tensor".to_owned()),
        (1u64..80).prop_map(|g| format!("group:{g}")),
        prop::sample::select(vec!["group:1000".to_owned(), "group:250001".to_owned(), format!("group:{}", u64::MAX)]),
    ];
    let method = prop::sample::select(vec!["twn", "twn,factor=0.5", "optimal", "absmean", "bwn"]);
    let scale = prop::sample::select(vec!["f32", "f16"]);
    let dtype = prop::sample::select(FLOATS.to_vec());
    (shape(), dtype, granularity, method, scale, 0usize..3, 0usize..5, any::<u64>()).prop_map(
        |(shape, dtype, granularity, method, scale, encoding, axis, seed)| {
            let encodings: &[&str] = if method == "bwn" { &["b1", "t2", "t5"] } else { &["t2", "t5"] };
            let encoding = encodings[encoding % encodings.len()];
            let axis = axis % shape.len();
            let settings = format!(
                "method={method},granularity={granularity},encoding={encoding},scale-dtype={scale},axis={axis}"
            );
            Case { dtype, shape, settings, seed }
        },
    )
}

fn pack(checkpoint: &Checkpoint, settings: &Settings, output: &Path, isa: Isa) {
    let rules = Rules { settings: settings.clone(), ..Rules::default() };
    let plan = Plan::new(checkpoint, &rules).unwrap();
    convert::pack(checkpoint, &plan, output, &Options { overwrite: true, isa: Some(isa), ..Options::default() })
        .unwrap();
}

fn ternary(container: &Container) -> Option<TernaryTensor<'_>> {
    match container.by_name("layer.weight").unwrap() {
        Tensor::Ternary(ternary) => Some(ternary),
        Tensor::Dense(_) | Tensor::Int8(_) => None,
    }
}

/// codes, planes, packed bytes and dequantized values all say the same.
fn assert_views_agree(tensor: &TernaryTensor<'_>) {
    let mut values = vec![0.0; tensor.filter_len];
    let array = tensor.to_array().unwrap();
    let array: Vec<f32> = array.iter().copied().collect();
    let rows = filters(&array, &tensor.shape, tensor.axis);
    let mut counts = [0; 3];
    assert_eq!(tensor.packed().len(), tensor.filters * tensor.filter_bytes());
    for (filter, row) in rows.iter().enumerate() {
        let mut codes = vec![9; tensor.filter_len];
        tensor.codes(0, filter, &mut codes).unwrap();
        tensor.dequantize_filter(filter, &mut values).unwrap();
        let (zero, sign) = (tensor.zero_plane(0, filter).unwrap(), tensor.sign_plane(0, filter).unwrap());
        let packed = tensor.packed_filter(0, filter);
        assert_eq!(packed, &tensor.packed()[filter * packed.len()..][..packed.len()]);
        for (j, &code) in codes.iter().enumerate() {
            counts[usize::from(code)] += 1;
            assert_eq!(plain_code(tensor.encoding.name(), packed, j), code, "filter {filter}, weight {j}");
            assert_eq!((zero[j], sign[j]), (code == 1, code == 0));
            let expected = tensor.scale(0, filter, j) * (f32::from(code) - 1.0);
            assert_eq!((values[j], row[j]), (expected, expected), "filter {filter}, weight {j}");
        }
    }
    assert_eq!(counts, [tensor.stats.negative, tensor.stats.zeros, tensor.stats.positive]);
}

/// The bit order as documented, one weight at a time.
fn plain_code(encoding: &str, packed: &[u8], j: usize) -> u8 {
    match encoding {
        "t2" => packed[j / 4] >> (2 * (j % 4)) & 3,
        "t5" => packed[j / 5] / 3u8.pow((j % 5) as u32) % 3,
        _ => 2 * (packed[j / 8] >> (j % 8) & 1),
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

proptest! {
    #![proptest_config(cases(250, 1))]

    #[test]
    fn packed_opens_verifies_and_packs_to_the_same_again(case in case()) {
        let directory = tempfile::tempdir().unwrap();
        let (made, settings) = (case.tensor(), case.settings());
        let input = common::checkpoint(directory.path(), "in.safetensors", std::slice::from_ref(&made));
        let output = directory.path().join("out.twn");
        let checkpoint = Checkpoint::open(&input).unwrap();
        pack(&checkpoint, &settings, &output, Isa::PORTABLE);
        let container = Container::open(&output).unwrap();
        prop_assert!(verify::verify(&container, None).unwrap().is_good());
        let against = verify::verify_against(&container, &checkpoint, None).unwrap();
        prop_assert!(against.is_good(), "{:?}", against.problems);
        let Some(tensor) = ternary(&container) else {
            prop_assert!(made.data.is_empty());
            return Ok(());
        };
        assert_views_agree(&tensor);

        // Every type that holds the scales gives the same codes again.
        for dtype in [None, Some(Dtype::F32), Some(Dtype::F64)] {
            let (back, again) = (directory.path().join("back.safetensors"), directory.path().join("again.twn"));
            match unpack::unpack(&container, &back, &unpack::Options { dtype, overwrite: true, ..Default::default() }) {
                Err(Error::Request(text)) if dtype.is_none() && text.contains("cannot hold") => continue,
                result => result.unwrap(),
            };
            let unpacked = Checkpoint::open(&back).unwrap();
            prop_assert_eq!(unpacked.tensor(0).dtype, dtype.unwrap_or(case.dtype));
            pack(&unpacked, &settings, &again, Isa::PORTABLE);
            let again = Container::open(&again).unwrap();
            let second = ternary(&again).unwrap();
            prop_assert_eq!(second.packed(), tensor.packed());
            // Where the scale is the mean of what is kept, nothing is lost the second time.
            let exact = matches!(unpacked.tensor(0).dtype, Dtype::F32 | Dtype::F64);
            if exact && settings.method.as_deref() != Some("absmean") {
                prop_assert_eq!(second.scale_bytes(), tensor.scale_bytes());
                prop_assert_eq!(second.stats.squared_error, 0.0);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(60, 2))]

    #[test]
    fn bytes_depend_on_nothing_but_the_input(case in case(), other in case()) {
        let directory = tempfile::tempdir().unwrap();
        let mut second = other.tensor();
        second.name = "other.weight".to_owned();
        let tensors = [case.tensor(), second, Made::gaussian("bias", Dtype::F32, &[5], 1)];
        let input = common::checkpoint(directory.path(), "in.safetensors", &tensors);
        let checkpoint = Checkpoint::open(&input).unwrap();
        let mut settings = case.settings();
        settings.axis = settings.axis.map(|axis| axis % other.shape.len());
        let output = directory.path().join("out.twn");
        let run = |threads: usize, isa| {
            pool(threads).install(|| pack(&checkpoint, &settings, &output, isa));
            std::fs::read(&output).unwrap()
        };
        let first = run(1, Isa::PORTABLE);
        for threads in [1, 2, 5] {
            prop_assert!(run(threads, Isa::PORTABLE) == first, "{} threads", threads);
        }
        for isa in Isa::all() {
            prop_assert!(run(2, isa) == first, "{}", isa.name());
        }
    }
}

/// The array path of the library on a view, against the file path on the same weights in C order.
fn assert_memory_is_file<T: memory::Element + Clone + Into<f64>>(
    view: ndarray::ArrayViewD<'_, T>,
    settings: &Settings,
) {
    let directory = tempfile::tempdir().unwrap();
    let values: Vec<f64> = view.iter().map(|w| (*w).into()).collect();
    let made = Made::new("layer.weight", T::DTYPE, view.shape(), &values);
    let input = common::checkpoint(directory.path(), "in.safetensors", &[made]);
    let output = directory.path().join("out.twn");
    pack(&Checkpoint::open(&input).unwrap(), settings, &output, Isa::detect().unwrap());
    let container = Container::open(&output).unwrap();
    let treatment = settings.treatment().unwrap();
    let Some(file) = ternary(&container) else {
        assert!(memory::ternarize("layer.weight", &view, &treatment).is_err(), "an empty array");
        return;
    };
    let array = memory::ternarize("layer.weight", &view, &treatment).unwrap();
    assert_eq!(array.shape, view.shape());
    assert_eq!((array.packed(), array.scale_bytes()), (file.packed(), file.scale_bytes()));
    assert_eq!((&array.stats, &array.method, array.dtype), (&file.stats, &file.method, file.dtype));
    assert_views_agree(&array);
}

proptest! {
    #![proptest_config(cases(80, 3))]

    #[test]
    fn arrays_in_any_memory_order_are_what_files_are(case in case(), double in any::<bool>(), layout in 0u8..5) {
        let tensor = case.tensor();
        let array = ArrayD::from_shape_vec(IxDyn(&case.shape), tensor.values()).unwrap();
        let single = array.mapv(|w| w as f32);
        let mut settings = case.settings();
        macro_rules! check {
            ($array:expr) => {{
                let mut view = $array.view();
                match layout {
                    0 => {}
                    1 => view = view.reversed_axes(),
                    2 => view.invert_axis(Axis(1)),
                    3 => view.slice_axis_inplace(Axis(1), Slice::new(0, None, 2)),
                    _ => {
                        view.swap_axes(0, 1);
                        view.slice_axis_inplace(Axis(0), Slice::new(0, None, -3));
                    }
                }
                settings.axis = settings.axis.map(|axis| axis % view.ndim());
                assert_memory_is_file(view, &settings);
            }};
        }
        if double { check!(array) } else { check!(single) }
    }
}
