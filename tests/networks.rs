//! Networks that run: every path gives the numbers that PyTorch gave, or a naive loop in `f64` gives. Not
//! here: what descriptions say (`descriptions.rs`), and residual layers (`residual.rs`).

#![cfg(feature = "cli")]

mod common;

use std::path::{Path, PathBuf};

use common::networks::{checkpoint, classes, difference, f64s, fixture, logits, packed};
use common::{Made, Random};
use ndarray::{Array2, Array4, ArrayView2, Axis};
use tempfile::TempDir;
use twn_pack::data::{DataSet, Split};
use twn_pack::kernel::{Arithmetic, Conv2d, Kernel};
use twn_pack::net::{self, Buffers, Description, Network, Source, Weights, dense};
use twn_pack::{Checkpoint, Container, Dtype, Error, Fault, Isa, Plan, Rules, convert};

fn lenet5() -> Description {
    Description::open("lenet5").unwrap()
}

fn mnist64() -> Array4<f32> {
    let data = DataSet::open_idx(fixture("mnist64"), Split::Test).unwrap();
    let mut images = Array4::zeros((64, 1, 28, 28));
    data.read(&(0..64).collect::<Vec<_>>(), None, images.view_mut()).unwrap();
    images
}

/// What `fixtures/mnist64/make_golden.py` wrote: 64 × 10 logits by PyTorch in float64.
fn golden() -> Vec<f64> {
    let checkpoint = Checkpoint::open(fixture("mnist64/logits.safetensors")).unwrap();
    let tensor = checkpoint.by_name("logits").unwrap();
    assert_eq!(tensor.shape, [64, 10]);
    common::decode(tensor.dtype, tensor.stored)
}

#[test]
fn float_logits_are_those_of_pytorch() {
    let source = checkpoint(fixture("lenet5-mnist.safetensors"));
    let network = Network::load(&lenet5(), &source, false).unwrap();
    assert_eq!(network.weights().filter(|w| matches!(w, Weights::Dense(_))).count(), 4);
    let (images, kernel, golden) = (mnist64(), Kernel::new(Arithmetic::ExactF32).unwrap(), golden());
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // One set of buffers for batches of every size, larger and smaller ones.
        let mut buffers = Buffers::default();
        for batch in [64, 1, 7] {
            for (part, golden) in images.axis_chunks_iter(Axis(0), batch).zip(golden.chunks(10 * batch)) {
                let found = pool.install(|| network.forward(part, &kernel, &mut buffers).unwrap().to_owned());
                let worst = found.iter().zip(golden).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                assert!(worst < 2e-5, "{threads} threads, batches of {batch}: {worst}");
            }
        }
    }
}

/// One plane per encoding, granularity and type of scale, all on the codes as they lie in the file.
#[test]
fn packed_weights_give_what_their_floats_give() {
    let images = mnist64();
    for settings in [
        "method=twn",
        "method=optimal,encoding=t5",
        "method=bwn,encoding=b1",
        "method=optimal,granularity=tensor",
        "method=optimal,granularity=group:7,scale-dtype=f16",
        "method=twn,granularity=group:64,encoding=t5",
    ] {
        let source = packed(&fixture("lenet5-mnist.safetensors"), settings);
        let network = Network::load(&lenet5(), &source, false).unwrap();
        assert_eq!(network.weights().filter(|w| matches!(w, Weights::Packed(_))).count(), 4);
        let floats = Network::load(&lenet5(), &source, true).unwrap();
        assert_eq!(floats.weights().filter(|w| matches!(w, Weights::Dense(_))).count(), 4);
        let expected = logits(&floats, Arithmetic::ExactF32, images.view());
        let exact = logits(&network, Arithmetic::ExactF32, images.view());
        let worst = difference(&exact, &f64s(&expected));
        assert!(worst < 1e-5, "{settings}: {worst}");
        assert_eq!(classes(&exact), classes(&expected), "{settings}");
        // Rounded activations tip a near tie: seen are 0 to 2 of 64, and 22 of all 10,000 for `twn`.
        let int8 = logits(&network, Arithmetic::Int8, images.view());
        let differ = classes(&int8).iter().zip(classes(&expected)).filter(|(a, b)| *a != b).count();
        println!("{settings}: exact {worst:e}, int8 {:e}, {differ} differ", difference(&int8, &f64s(&expected)));
        assert!(differ <= 3, "{settings}: int8 predicts {differ} of 64 otherwise");
    }
}

/// Only some layers packed: each runs as what it is.
#[test]
fn packed_and_dense_layers_mix() {
    let directory = tempfile::tempdir().unwrap();
    let input = Checkpoint::open(fixture("lenet5-mnist.safetensors")).unwrap();
    let rules = Rules { include: vec!["fc*".to_owned()], ..Default::default() };
    let plan = Plan::new(&input, &rules).unwrap();
    let path = directory.path().join("mixed.twn");
    convert::pack(&input, &plan, &path, &convert::Options::default()).unwrap();
    let source = Source::Container(Container::open(&path).unwrap());
    let network = Network::load(&lenet5(), &source, false).unwrap();
    let packed: Vec<bool> = network.weights().map(|weights| matches!(weights, Weights::Packed(_))).collect();
    assert_eq!(packed, [false, false, true, true]);
    let floats = Network::load(&lenet5(), &source, true).unwrap();
    let [found, expected] = [network, floats].map(|n| logits(&n, Arithmetic::ExactF32, mnist64().view()));
    assert!(difference(&found, &f64s(&expected)) < 1e-5);
}

/// By the definition, in `f64`.
fn naive_conv2d(w: &Array2<f32>, bias: &[f32], geometry: &Conv2d, x: &Array4<f32>) -> Array4<f64> {
    let (batch, channels, height, width) = x.dim();
    let [out_height, out_width] = geometry.output([height, width]).unwrap();
    let (per_in, per_out) = (channels / geometry.groups, w.nrows() / geometry.groups);
    let [kernel_height, kernel_width] = geometry.kernel;
    Array4::from_shape_fn((batch, w.nrows(), out_height, out_width), |(b, f, oy, ox)| {
        let mut sum = f64::from(bias[f]);
        for c in 0..per_in {
            for (ky, kx) in (0..kernel_height).flat_map(|ky| (0..kernel_width).map(move |kx| (ky, kx))) {
                let at = |o: usize, k: usize, i: usize| {
                    (o * geometry.stride[i] + k * geometry.dilation[i]).checked_sub(geometry.padding[i])
                };
                let (Some(iy), Some(ix)) = (at(oy, ky, 0), at(ox, kx, 1)) else { continue };
                if let Some(x) = x.get((b, f / per_out * per_in + c, iy, ix)) {
                    sum += f64::from(*x) * f64::from(w[[f, (c * kernel_height + ky) * kernel_width + kx]]);
                }
            }
        }
        sum
    })
}

fn naive_linear(w: &Array2<f32>, bias: &[f32], x: ArrayView2<'_, f64>) -> Array2<f64> {
    Array2::from_shape_fn((x.nrows(), w.nrows()), |(b, o)| {
        let products = w.row(o).into_iter().zip(x.row(b)).map(|(w, x)| f64::from(*w) * x);
        f64::from(bias[o]) + products.sum::<f64>()
    })
}

#[test]
fn dense_convolutions_follow_the_definition() {
    let mut random = Random(11);
    let mut columns = Vec::new();
    for case in 0..300 {
        let mut pick = |n: u64| 1 + random.below(n) as usize;
        let groups = pick(3);
        let (channels, filters, batch) = (groups * pick(3), groups * pick(3), pick(5));
        let geometry = Conv2d {
            kernel: [pick(4), pick(4)],
            stride: [pick(3), pick(3)],
            padding: [pick(5) - 1, pick(5) - 1],
            dilation: [pick(3), pick(3)],
            groups,
        };
        let size = [pick(9), pick(9)];
        let Some(output) = geometry.output(size) else { continue };
        let mut gaussian = |_: usize| random.gaussian() as f32;
        let column = channels / groups * geometry.kernel[0] * geometry.kernel[1];
        let w = Array2::from_shape_fn((filters, column), |_| gaussian(0));
        let x = Array4::from_shape_fn((batch, channels, size[0], size[1]), |_| gaussian(0));
        let bias: Vec<f32> = (0..filters).map(&mut gaussian).collect();
        let mut y = Array4::from_elem((batch, filters, output[0], output[1]), f32::NAN);
        dense::conv2d(w.view(), Some(&bias), &geometry, x.view(), y.view_mut(), &mut columns).unwrap();
        let expected = naive_conv2d(&w, &bias, &geometry, &x);
        let worst = y.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-5, "case {case}: {geometry:?} over {size:?}: {worst}");
    }
}

#[test]
fn dense_layers_refuse_what_does_not_fit() {
    let (w, x) = (Array2::zeros((2, 9)), Array4::zeros((1, 1, 5, 5)));
    let geometry = Conv2d::new([3, 3]);
    let conv = |w: &Array2<f32>, bias: Option<&[f32]>, geometry: &Conv2d, y: [usize; 4]| {
        dense::conv2d(w.view(), bias, geometry, x.view(), Array4::zeros(y).view_mut(), &mut Vec::new())
    };
    conv(&w, None, &geometry, [1, 2, 3, 3]).unwrap();
    assert!(conv(&w, None, &geometry, [1, 2, 3, 4]).is_err());
    assert!(conv(&w, None, &geometry, [2, 2, 3, 3]).is_err());
    assert!(conv(&w, Some(&[0.0]), &geometry, [1, 2, 3, 3]).is_err());
    assert!(conv(&Array2::zeros((2, 8)), None, &geometry, [1, 2, 3, 3]).is_err());
    assert!(conv(&w, None, &Conv2d { groups: 2, ..geometry }, [1, 2, 3, 3]).is_err());
    assert!(conv(&w, None, &Conv2d { groups: 0, ..geometry }, [1, 2, 3, 3]).is_err());
    assert!(conv(&w, None, &Conv2d { kernel: [6, 6], ..geometry }, [1, 2, 3, 3]).is_err());
    let linear = |w: [usize; 2], bias: Option<&[f32]>, x: [usize; 2], y: [usize; 2]| {
        let (w, x, mut y) = (Array2::zeros(w), Array2::zeros(x), Array2::zeros(y));
        dense::linear(w.view(), bias, x.view(), y.view_mut())
    };
    linear([3, 4], Some(&[0.0; 3]), [2, 4], [2, 3]).unwrap();
    for (w, bias, x, y) in [
        ([3, 4], None, [2, 5], [2, 3]),
        ([3, 4], None, [2, 4], [2, 4]),
        ([3, 4], None, [2, 4], [1, 3]),
        ([3, 4], Some(&[0.0; 4][..]), [2, 4], [2, 3]),
        ([3, 0], None, [2, 0], [2, 3]),
    ] {
        assert!(linear(w, bias, x, y).is_err(), "{w:?} {x:?} {y:?}");
    }
}

/// A network of one's own, with the options that LeNet-5 does not use.
const SMALL: &str = r#"
input = [2, 7, 6]
layers = [
    { conv2d = { weight = "c.w", bias = "c.b", filters = 4, kernel = [3, 2], stride = [2, 1], padding = 1,
                 dilation = [1, 2], groups = 2 } },
    { batch_norm = { weight = "n.w", bias = "n.b", mean = "n.m", variance = "n.v", eps = 0.5 } },
    "relu",
    "flatten",
    { linear = { weight = "l.w", bias = "l.b", outputs = 3 } },
]
"#;

/// Its tensors, with values that all types hold exactly.
fn small(dtype: Dtype) -> Vec<Made> {
    let mut random = Random(3);
    let mut made = |name: &str, shape: &[usize]| {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| random.below(9) as f64 / 4.0 - 1.0).collect();
        Made::new(name, dtype, shape, &values)
    };
    let mut tensors = vec![
        made("c.w", &[4, 1, 3, 2]),
        made("c.b", &[4]),
        made("n.w", &[4]),
        made("n.b", &[4]),
        made("n.m", &[4]),
        made("l.w", &[3, 96]),
        made("l.b", &[3]),
    ];
    tensors.push(Made::new("n.v", dtype, &[4], &[0.5, 1.0, 0.25, 2.0]));
    tensors
}

#[test]
fn networks_of_ones_own_run_in_every_type() {
    let description = Description::parse("small", SMALL).unwrap();
    let mut random = Random(5);
    let x = Array4::from_shape_fn((5, 2, 7, 6), |_| random.gaussian() as f32);
    let tensors = small(Dtype::F32);
    let get = |name: &str| -> Vec<f32> {
        tensors.iter().find(|t| t.name == name).unwrap().values().iter().map(|&v| v as f32).collect()
    };
    let matrix = |name: &str, rows| Array2::from_shape_vec((rows, get(name).len() / rows), get(name)).unwrap();
    let geometry = Conv2d { kernel: [3, 2], stride: [2, 1], padding: [1, 1], dilation: [1, 2], groups: 2 };
    let mut maps = naive_conv2d(&matrix("c.w", 4), &get("c.b"), &geometry, &x);
    let norm = ["n.w", "n.b", "n.m", "n.v"].map(get);
    maps.indexed_iter_mut().for_each(|((_, c, _, _), y)| {
        let [weight, bias, mean, variance] = [0, 1, 2, 3].map(|i: usize| f64::from(norm[i][c]));
        *y = ((*y - mean) / (variance + 0.5).sqrt() * weight + bias).max(0.0);
    });
    let rows = maps.to_shape((5, 96)).unwrap();
    let expected = naive_linear(&matrix("l.w", 3), &get("l.b"), rows.view());
    for dtype in common::FLOATS {
        let directory = tempfile::tempdir().unwrap();
        let source = checkpoint(common::checkpoint(directory.path(), "small.safetensors", &small(dtype)));
        let network = Network::load(&description, &source, false).unwrap();
        let found = logits(&network, Arithmetic::ExactF32, x.view());
        assert!(difference(&found, &expected) < 1e-6, "{dtype}");
    }
    // Packed, the convolution has groups, strides and all; the float path has just been held to the definition.
    let directory = tempfile::tempdir().unwrap();
    let path = common::checkpoint(directory.path(), "small.safetensors", &tensors);
    let source = packed(&path, "method=optimal");
    let [packed, floats] = [false, true].map(|float| Network::load(&description, &source, float).unwrap());
    assert!(packed.weights().all(|weights| matches!(weights, Weights::Packed(_))));
    let [found, expected] = [packed, floats].map(|network| logits(&network, Arithmetic::ExactF32, x.view()));
    assert!(difference(&found, &f64s(&expected)) < 1e-5);
}

/// The small network's tensors with one thing changed.
fn changed(directory: &TempDir, change: impl Fn(&mut Vec<Made>)) -> PathBuf {
    let mut tensors = small(Dtype::F32);
    change(&mut tensors);
    common::checkpoint(directory.path(), "small.safetensors", &tensors)
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let description = Description::parse("small", SMALL).unwrap();
    let replace = |name: &'static str, dtype: Dtype, shape: &'static [usize]| {
        move |tensors: &mut Vec<Made>| {
            tensors.retain(|t| t.name != name);
            let data = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
            tensors.push(Made { name: name.to_owned(), dtype, shape: shape.to_vec(), data });
        }
    };
    type Change = Box<dyn Fn(&mut Vec<Made>)>;
    let cases: [(Change, &str); 5] = [
        (
            Box::new(|tensors| tensors.retain(|t| t.name != "l.b")),
            "tensor `l.b`: is missing, expected one of shape [3]",
        ),
        (
            Box::new(replace("c.w", Dtype::F32, &[4, 2, 3, 2])),
            "tensor `c.w`: shape [4, 2, 3, 2], expected [4, 1, 3, 2]",
        ),
        (Box::new(replace("l.w", Dtype::F32, &[96, 3])), "tensor `l.w`: shape [96, 3], expected [3, 96]"),
        (Box::new(replace("n.v", Dtype::F32, &[])), "tensor `n.v`: shape [], expected [4]"),
        (Box::new(replace("n.m", Dtype::I64, &[4])), "tensor `n.m`: dtype I64, expected a floating-point type"),
    ];
    for (change, says) in cases {
        let path = changed(&directory, change);
        for source in [checkpoint(&path), packed(&path, "method=twn")] {
            let error = Network::load(&description, &source, false).unwrap_err();
            assert_eq!(error.fault(), Fault::Input);
            let expected = format!("{}: {says}", source.path().display());
            assert!(error.to_string().starts_with(&expected), "{expected}\n{error}");
        }
    }
}

#[test]
fn filters_along_another_axis_run_in_float_only() {
    let directory = tempfile::tempdir().unwrap();
    let description = Description::parse("small", SMALL).unwrap();
    let path = changed(&directory, |_| {});
    let source = packed(&path, "method=optimal,axis=1");
    let error = Network::load(&description, &source, false).unwrap_err();
    let says = "tensor `c.w`: packed with filters along axis 1, expected axis 0, the layer's outputs; pack it";
    assert!(error.to_string().contains(says), "{error}");
    // As floats they are what they are: the unpacked tensor.
    let Source::Container(container) = &source else { unreachable!() };
    let unpacked = directory.path().join("unpacked.safetensors");
    twn_pack::unpack::unpack(container, &unpacked, &Default::default()).unwrap();
    let unpacked = checkpoint(&unpacked);
    let x = Array4::from_shape_fn((2, 2, 7, 6), |(b, c, y, x)| (b + 2 * c + 3 * y + 5 * x) as f32 / 50.0);
    let [found, expected] = [&source, &unpacked].map(|source| {
        let network = Network::load(&description, source, true).unwrap();
        logits(&network, Arithmetic::ExactF32, x.view())
    });
    assert_eq!(found, expected);
}

#[test]
fn damaged_tensors_are_noticed() {
    let Source::Container(container) = packed(&fixture("lenet5-mnist.safetensors"), "method=twn") else {
        unreachable!()
    };
    let entry = container.index().tensors.iter().find(|entry| entry.name == "fc1.weight").unwrap();
    let offset = entry.sections().next().unwrap().1.offset as usize;
    let mut bytes = container.bytes().to_vec();
    bytes[offset] ^= 1;
    let source = Source::Container(Container::from_bytes("damaged.twn", bytes).unwrap());
    for float in [false, true] {
        let error = Network::load(&lenet5(), &source, float).unwrap_err();
        assert!(error.to_string().starts_with("damaged.twn: tensor `fc1.weight`: codes: CRC-32"), "{error}");
    }
}

#[test]
fn images_of_another_shape_are_refused() {
    let source = checkpoint(fixture("lenet5-mnist.safetensors"));
    let network = Network::load(&lenet5(), &source, false).unwrap();
    let kernel = Kernel::with_isa(Arithmetic::ExactF32, Isa::PORTABLE);
    for shape in [(1, 1, 28, 27), (1, 2, 28, 28), (0, 1, 28, 28)] {
        let error = network.forward(Array4::zeros(shape).view(), &kernel, &mut Buffers::default()).unwrap_err();
        assert!(matches!(error, Error::Request(_)), "{error}");
    }
    let error = Description::parse("small", SMALL).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let small = checkpoint(changed(&directory, |_| {}));
    let network = Network::load(&error, &small, false).unwrap();
    let data = DataSet::open_idx(fixture("mnist64"), Split::Test).unwrap();
    let error = net::evaluate(&network, &data, &kernel, &net::Options::default()).unwrap_err();
    assert!(
        error.to_string().contains("[1, 28, 28] (channels, height, width), the network takes [2, 7, 6]"),
        "{error}"
    );
}

/// All 10,000 test images, where they are: `../shared/data/mnist` beside the repository. The figures
/// are those of `fixtures/README.md`, which PyTorch gave. Packed, the first 2,000 have to do: the
/// kernels are slow without optimisation.
#[test]
fn accuracy_on_all_of_mnist() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/mnist");
    if !directory.is_dir() {
        println!("skipped: no MNIST in ../shared/data/mnist");
        return;
    }
    let data = DataSet::open_idx(directory, Split::Test).unwrap();
    let evaluate = |source: &Source, float: bool, arithmetic: Arithmetic, limit: Option<usize>| {
        let network = Network::load(&lenet5(), source, float).unwrap();
        let options = net::Options { limit, ..Default::default() };
        net::evaluate(&network, &data, &Kernel::new(arithmetic).unwrap(), &options).unwrap()
    };
    let input = fixture("lenet5-mnist.safetensors");
    assert_eq!(evaluate(&checkpoint(&input), false, Arithmetic::ExactF32, None).correct, 9931);
    let source = packed(&input, "method=twn");
    let floats = evaluate(&source, true, Arithmetic::ExactF32, None);
    assert_eq!(floats.correct, 2626);
    let exact = evaluate(&source, false, Arithmetic::ExactF32, Some(2000));
    assert_eq!(exact.predictions, floats.predictions[..2000]);
    let int8 = evaluate(&source, false, Arithmetic::Int8, Some(2000));
    let differ = int8.predictions.iter().zip(&floats.predictions).filter(|(a, b)| a != b).count();
    println!("int8: {} right, {differ} predictions differ", int8.correct);
    assert!(differ <= 20, "{differ}");
}
