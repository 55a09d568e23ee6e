//! Networks with residual layers and averages give the numbers that PyTorch gave. Not here: other layers
//! (`networks.rs`), what descriptions say (`descriptions.rs`).

#![cfg(feature = "cli")]

mod common;

use common::networks::{checkpoint, classes, difference, f64s, fixture, logits, packed};
use ndarray::{Array4, Axis};
use twn_pack::kernel::{Arithmetic, Kernel};
use twn_pack::net::{Buffers, Description, Network, Overrides, Source, Weights, fold};
use twn_pack::select::Override;
use twn_pack::{Checkpoint, Container, Isa, Plan, Rules, Settings, Tensor, convert};

/// The networks of `fixtures/residual/make_golden.py`, with their images and logits.
fn golden() -> [(&'static str, Description, Array4<f32>, Vec<f64>); 2] {
    let file = Checkpoint::open(fixture("residual/golden.safetensors")).unwrap();
    let cifar = Overrides { width: Some(1.0 / 32.0), classes: Some(7), input: Some([3, 16, 16]) };
    let networks = [
        ("resnet18-cifar", Description::open("resnet18-cifar").unwrap().with(cifar).unwrap()),
        ("small", Description::open(fixture("residual/small.toml").to_str().unwrap()).unwrap()),
    ];
    networks.map(|(name, description)| {
        let [images, logits] = ["images", "logits"].map(|what| {
            let tensor = file.by_name(&format!("{name}.{what}")).unwrap();
            (tensor.shape.to_vec(), common::decode(tensor.dtype, tensor.stored))
        });
        let [channels, height, width] = description.input();
        assert_eq!((images.0, logits.0), (vec![8, channels, height, width], vec![8, description.classes()]));
        let images = images.1.into_iter().map(|x| x as f32).collect();
        (name, description, Array4::from_shape_vec((8, channels, height, width), images).unwrap(), logits.1)
    })
}

#[test]
fn float_logits_are_those_of_pytorch() {
    let kernel = Kernel::new(Arithmetic::ExactF32).unwrap();
    // One set of buffers for both networks, and for batches of every size.
    let mut buffers = Buffers::default();
    for (name, description, images, golden) in golden() {
        let source = checkpoint(fixture(&format!("residual/{name}.safetensors")));
        let network = Network::load(&description, &source, false).unwrap();
        for (threads, batch) in [(1, 8), (2, 8), (2, 1), (3, 3)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let parts = images.axis_chunks_iter(Axis(0), batch).zip(golden.chunks(batch * description.classes()));
            for (part, golden) in parts {
                let found = pool.install(|| network.forward(part, &kernel, &mut buffers).unwrap().to_owned());
                let worst = difference(&found, golden);
                assert!(worst < 2e-6, "{name}, {threads} threads, batches of {batch}: {worst}");
            }
        }
    }
}

#[test]
fn packed_weights_give_what_their_floats_give() {
    for (name, description, images, _) in golden() {
        for settings in ["method=twn", "method=optimal,encoding=t5,scale-dtype=f16", "method=bwn,encoding=b1"] {
            let source = packed(&fixture(&format!("residual/{name}.safetensors")), settings);
            let [network, floats] = [false, true].map(|float| Network::load(&description, &source, float).unwrap());
            let packed = network.weights().filter(|weights| matches!(weights, Weights::Packed(_))).count();
            assert_eq!(packed, if name == "small" { 6 } else { 21 }, "{name}: all weights");
            assert!(floats.weights().all(|weights| matches!(weights, Weights::Dense(_))));
            let [exact, expected] = [&network, &floats].map(|n| logits(n, Arithmetic::ExactF32, images.view()));
            let worst = difference(&exact, &f64s(&expected));
            assert!(worst < 2e-6, "{name}, {settings}: {worst}");
            assert_eq!(classes(&exact), classes(&expected), "{name}, {settings}");
        }
    }
}

/// As many images as there may be, and one more: they are one number, seen very often.
#[test]
fn too_many_images_at_once_are_refused() {
    let text = "input = [1, 4096, 4096]\nlayers = [{ residual = { body = [\"relu\"] } }, \"global_avg_pool\"]";
    let description = Description::parse("large", text).unwrap();
    let source = checkpoint(fixture("residual/small.safetensors"));
    let network = Network::load(&description, &source, false).unwrap();
    let one = Array4::from_elem((1, 1, 1, 1), 0.5);
    let kernel = Kernel::with_isa(Arithmetic::ExactF32, Isa::PORTABLE);
    let forward = |count: usize| {
        let images = one.broadcast((count, 1, 4096, 4096)).unwrap();
        network.forward(images, &kernel, &mut Buffers::default()).map(|logits| logits.to_owned())
    };
    assert_eq!(forward(1).unwrap().into_raw_vec_and_offset().0, [1.0]);
    let error = forward(22).unwrap_err().to_string();
    let says = "22 images at once need 4429185024 bytes between the layers, expected at most 4294967296; run fewer at a \
                time (--batch)";
    assert_eq!(error, says);
    assert!(forward(usize::MAX / (1 << 26)).unwrap_err().to_string().contains("run fewer at a time"));
}

#[test]
fn batch_norm_goes_into_scales_and_biases() {
    let directory = tempfile::tempdir().unwrap();
    let mut ways = vec![None];
    ways.extend(
        [
            "method=twn",
            "method=twn,granularity=tensor,scale-dtype=f16",
            "granularity=group:4,encoding=t5",
            "method=bwn",
        ]
        .map(Some),
    );
    for (name, description, images, golden) in golden() {
        for (i, settings) in ways.iter().enumerate() {
            let file = fixture(&format!("residual/{name}.safetensors"));
            let source = settings.map_or_else(|| checkpoint(file.clone()), |settings| packed(&file, settings));
            let network = Network::load(&description, &source, false).unwrap();
            let expected = match settings {
                None => golden.clone(),
                Some(_) => f64s(&logits(&network, Arithmetic::ExactF32, images.view())),
            };
            let found = fold(&description, &source).unwrap();
            assert_eq!(
                (found.folded.len(), found.left.len()),
                if name == "small" { (3, 0) } else { (20, 0) },
                "{name}"
            );
            // Written, read, and packed without being told how.
            let path = directory.path().join(format!("{name}-{i}.safetensors"));
            found.save(&path, false).unwrap();
            let text = found.description.to_toml().unwrap();
            let folded = Description::parse("folded.toml", &text).unwrap();
            assert_eq!(folded.checksum(), found.description.checksum(), "{name}: {text}");
            assert!(!text.contains("batch_norm"), "{text}");
            let source = if settings.is_some() { packed(&path, "") } else { checkpoint(path) };
            let without = Network::load(&folded, &source, false).unwrap();
            let packed = |network: &Network<'_>| {
                network.weights().filter(|weights| matches!(weights, Weights::Packed(_))).count()
            };
            assert_eq!(packed(&without), packed(&network), "{name}, {settings:?}");
            let worst = difference(&logits(&without, Arithmetic::ExactF32, images.view()), &expected);
            assert!(worst < 4e-6, "{name}, {settings:?}: {worst}");
        }
    }
}

/// Tensors of 8 bits are such again behind the fold, with the same codes but for a factor's sign.
#[test]
fn batch_norm_goes_into_tensors_of_8_bits() {
    let directory = tempfile::tempdir().unwrap();
    let (name, description, images, _) = golden().into_iter().next_back().unwrap();
    let file = Checkpoint::open(fixture(&format!("residual/{name}.safetensors"))).unwrap();
    let settings = Settings::parse("keep=int8").unwrap();
    let rules = Rules { overrides: vec![Override { pattern: "*".to_owned(), settings }], ..Rules::default() };
    let plan = Plan::new(&file, &rules).unwrap();
    let eight = directory.path().join("eight.twn");
    convert::pack(&file, &plan, &eight, &convert::Options::default()).unwrap();
    let source = Source::Container(Container::open(&eight).unwrap());
    let found = fold(&description, &source).unwrap();
    let path = directory.path().join("folded.safetensors");
    found.save(&path, false).unwrap();
    let again = packed(&path, "");
    let logits = [(&description, &source), (&found.description, &again)].map(|(description, source)| {
        logits(&Network::load(description, source, false).unwrap(), Arithmetic::ExactF32, images.view())
    });
    assert!(difference(&logits[1], &f64s(&logits[0])) < 4e-6);
    let [Source::Container(before), Source::Container(after)] = [&source, &again] else { panic!("containers") };
    let mut count = 0;
    for (name, tensor) in before.tensors() {
        let Tensor::Int8(before) = tensor else { continue };
        let Some(Tensor::Int8(after)) = after.by_name(name) else { panic!("{name}: no longer int8") };
        let codes = [before.codes(), after.codes()].map(|codes| codes.chunks(before.filter_len));
        let [codes, codes_after] = codes;
        for (before, after) in codes.zip(codes_after) {
            let same = before == after || before.iter().zip(after).all(|(a, b)| *a == -b);
            assert!(same, "{name}: {before:?} {after:?}");
        }
        count += 1;
    }
    assert_eq!(count, 6);
}

#[test]
fn what_cannot_be_folded_is_left_or_refused() {
    let (name, description, images, _) = golden().into_iter().next_back().unwrap();
    let file = fixture(&format!("residual/{name}.safetensors"));
    // A batch norm of its own, and one behind a bias that has no name yet.
    let text = description.to_toml().unwrap();
    let first = text.lines().find(|line| line.contains("stem_bn")).unwrap().to_owned();
    let apart = Description::parse("apart.toml", &text.replacen(&first, &format!("\"relu\",\n{first}"), 1)).unwrap();
    let source = checkpoint(file.clone());
    let folded = fold(&apart, &source).unwrap();
    assert_eq!(folded.left, ["stem_bn.weight"]);
    assert!(folded.description.to_toml().unwrap().contains("stem_bn.running_var"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("apart.safetensors");
    folded.save(&path, false).unwrap();
    let [before, after] = [(&apart, source), (&folded.description, checkpoint(path))].map(|(description, source)| {
        logits(&Network::load(description, &source, false).unwrap(), Arithmetic::ExactF32, images.view())
    });
    assert!(difference(&after, &f64s(&before)) < 4e-6);
    // The new bias would have the name of another tensor.
    let taken = Description::parse("taken.toml", &text.replace("\"fc.bias\"", "\"plain.bias\"")).unwrap();
    let error = fold(&taken, &checkpoint(file)).unwrap_err().to_string();
    assert!(error.contains("`plain.bias`"), "{error}");
    let across = packed(&fixture("residual/small.safetensors"), "method=twn,axis=1");
    assert!(fold(&description, &across).unwrap_err().to_string().contains("axis 1"));
}
