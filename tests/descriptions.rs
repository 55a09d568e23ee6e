//! Networks as data: what descriptions say, what they refuse, and the networks that are built in. Not here:
//! networks that run (`networks.rs`, `residual.rs`).

#![cfg(feature = "cli")]

use std::collections::BTreeMap;

use twn_pack::net::{Description, NETWORKS, Overrides};
use twn_pack::{Checkpoint, Fault};

/// Residual layers inside each other.
fn nested(depth: usize) -> String {
    format!("{}\"relu\"{}", "{ residual = { body = [".repeat(depth), "] } }".repeat(depth))
}

fn refused(text: &str) -> String {
    let error = Description::parse("net.toml", text).unwrap_err();
    assert_eq!(error.fault(), Fault::Request);
    error.to_string()
}

#[test]
fn descriptions_that_make_no_sense_say_why() {
    let layer = |layer: &str| format!("input = [2, 8, 8]\nlayers = [{layer}, \"flatten\"]");
    let conv = |more: &str| layer(&format!("{{ conv2d = {{ weight = \"w\", filters = 4, {more} }} }}"));
    let pool = |more: &str| layer(&format!("{{ max_pool = {{ {more} }} }}"));
    for (text, says) in [
        (String::new(), "missing field `layers`, or a `base` that has some"),
        ("layers = []".to_owned(), "missing field `input`, or a `base` that has one"),
        ("input = [1, 2]\nlayers = []".to_owned(), "an array of length 3"),
        ("input = [1, 2, 3]\nlayers = []".to_owned(), "layers: expected at least one"),
        ("input = [0, 2, 3]\nlayers = [\"relu\"]".to_owned(), "input: 0 × 2 × 3 values, expected at least 1 of each"),
        (
            "input = [1, 2, 3]\nlayers = [\"relu\"]".to_owned(),
            "the last layer gives 1 × 2 × 3 values, expected one number",
        ),
        ("input = [1, 2, 3]\nlayer = []\nlayers = []".to_owned(), "unknown field `layer`"),
        (layer("\"softmax\""), "unknown variant `softmax`, expected one of `conv2d`, `linear`"),
        (conv("kernel = 3, size = 1"), "unknown field `size`"),
        (conv("stride = 3"), "missing field `kernel`"),
        (conv("kernel = \"3\""), "expected a whole number, or [height, width]"),
        (conv("kernel = -3"), "expected a whole number, or [height, width]"),
        (conv("kernel = [3, 3, 3]"), "expected a whole number, or [height, width]"),
        (conv("kernel = 9"), "layer 1 (conv2d): kernel = [9, 9], stride = [1, 1]"),
        (conv("kernel = 0"), "layer 1 (conv2d): kernel = [0, 0]"),
        (conv("kernel = 3, stride = [1, 0]"), "stride = [1, 0]"),
        (conv("kernel = 3, dilation = 0"), "dilation = [0, 0]"),
        (conv("kernel = 3, groups = 0"), "groups = 0, expected a divisor of 2 channels and of 4 filters"),
        (conv("kernel = 3, groups = 4"), "groups = 4, expected a divisor"),
        (conv("kernel = 3, padding = 4000000000000000000"), "gathers more than"),
        (conv("kernel = 1, padding = 100000"), "gathers more than 67108864 values per image"),
        (conv("kernel = 1, padding = 9223372036854775807"), "padding"),
        // Few outputs of an image that is mostly padding.
        (conv("kernel = 1, stride = 40000, padding = 16000"), "layer 1 (conv2d): with its padding: "),
        (pool("kernel = 2, padding = 2"), "padding = [2, 2], expected at most half of the kernel"),
        (pool("kernel = 9"), "layer 1 (max_pool): kernel = [9, 9], stride = [9, 9]"),
        (pool("kernel = 2, stride = 0"), "stride = [0, 0]"),
        (
            layer("{ linear = { weight = \"w\", outputs = 4 } }"),
            "layer 1 (linear): takes one row of numbers, found 2 × 8 × 8 values; put \"flatten\"",
        ),
        (layer("\"flatten\", { linear = { weight = \"w\", outputs = 0 } }"), "layer 2 (linear): 0 × 1 × 1 values"),
        (layer("{ batch_norm = { weight = \"w\", bias = \"b\", mean = \"m\" } }"), "missing field `variance`"),
        (
            layer("{ batch_norm = { weight = \"w\", bias = \"b\", mean = \"m\", variance = \"v\", eps = nan } }"),
            "eps = NaN",
        ),
        (pool("kernel = 2, ceil_mode = true"), "unknown field `ceil_mode`"),
        (layer("{ avg_pool = { kernel = 2, padding = 2 } }"), "layer 1 (avg_pool): padding = [2, 2], expected at most"),
        (layer("{ residual = { shortcut = [] } }"), "missing field `body`"),
        (
            layer("{ residual = { body = [], shortcut = [\"relu\"] } }"),
            "layer 1 (residual): body: expected at least one",
        ),
        (layer("{ residual = { body = [\"relu\"], short = [] } }"), "unknown field `short`"),
        (
            layer("\"relu\", { residual = { body = [\"relu\", { max_pool = { kernel = 2 } }] } }"),
            "layer 2 (residual): body gives 2 × 4 × 4 values, shortcut gives 2 × 8 × 8 values, expected the same shape",
        ),
        (
            layer("\"relu\", { residual = { body = [\"relu\", { max_pool = { kernel = 9 } }] } }"),
            "net.toml: layer 2 (residual), body 2 (max_pool): kernel = [9, 9]",
        ),
        (
            layer("{ residual = { body = [\"relu\"], shortcut = [{ linear = { weight = \"w\", outputs = 1 } }] } }"),
            "net.toml: layer 1 (residual), shortcut 1 (linear): takes one row of numbers",
        ),
        (layer(&nested(9)), "body 1 (residual): inside 8 others, expected at most 8 in all"),
        (layer(&nested(2000)), "net.toml: "),
        ("base = \"lenet6\"".to_owned(), "base: unknown network `lenet6`; known are lenet5, vgg7"),
        ("base = \"lenet5\"\nlayers = []".to_owned(), "both `layers` and `base`: lenet5 has its own"),
        ("base = \"lenet5\"\ninput = [3, 32, 32]\nwidth = 0".to_owned(), "width = 0, expected a number over 0"),
        ("classes = 3\ninput = [3, 1, 1]\nlayers = [\"relu\"]".to_owned(), "classes = 3: no layer to set them"),
    ] {
        let found = refused(&text);
        assert!(found.starts_with("net.toml: ") && found.contains(says), "{text}\n{says}\n{found}");
    }
    assert!(Description::parse("net.toml", &layer(&nested(8))).is_ok());
    let unknown = Description::open("lenet6").unwrap_err().to_string();
    assert!(unknown.starts_with("unknown network `lenet6`; known are lenet5, vgg7, "), "{unknown}");
    // What the parser points at is shown on lines of its own.
    let found = Description::parse("net.toml", "layers = [{ relu = 1 }]\ninput = 3").unwrap_err().to_string();
    assert!(found.lines().count() > 3 && found.lines().skip(1).all(|line| line.starts_with("  ")), "{found}");
    assert_eq!(Description::open("no/such.toml").unwrap_err().fault(), Fault::Io);
}

/// What the files in which the weights of these networks go around have in them: parameters as torchvision
/// counts them, and tensors with the statistics of batch norm.
#[test]
fn built_in_networks_are_described_well() {
    let small = [3, 32, 32];
    let large = [3, 224, 224];
    for (name, input, classes, tensors, parameters) in [
        ("lenet5", [1, 28, 28], 10, 17, 582_634),
        ("vgg7", small, 10, 37, 12_979_082),
        ("resnet18", large, 1000, 102, 11_689_512),
        ("resnet34", large, 1000, 182, 21_797_672),
        ("resnet50", large, 1000, 267, 25_557_032),
        ("resnet18b", large, 1000, 102, 25_901_896),
        ("resnet18-cifar", small, 10, 102, 11_173_962),
        ("resnet18b-cifar", small, 10, 102, 25_129_066),
        ("resnet34-cifar", small, 10, 182, 21_282_122),
        ("resnet50-cifar", small, 10, 267, 23_520_842),
    ] {
        let description = Description::open(name).unwrap();
        assert_eq!(description.name(), name);
        assert_eq!((description.input(), description.classes()), (input, classes), "{name}");
        let found = description.tensors();
        let shapes: BTreeMap<_, _> = found.iter().cloned().collect();
        assert_eq!((found.len(), shapes.len()), (tensors, tensors), "{name}: names are used once");
        let trained = found.iter().filter(|(tensor, _)| !tensor.contains(".running_"));
        assert_eq!(trained.map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), parameters, "{name}");
    }
    assert_eq!(NETWORKS.len(), 10);
}

#[test]
fn names_and_shapes_are_those_of_torchvision() {
    let tensors = |name: &str| -> BTreeMap<String, Vec<usize>> {
        let description = Description::open(name).unwrap();
        description.tensors().into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect()
    };
    let resnet50 = tensors("resnet50");
    for (name, shape) in [
        ("conv1.weight", &[64, 3, 7, 7][..]),
        ("layer1.0.conv1.weight", &[64, 64, 1, 1]),
        ("layer1.0.downsample.0.weight", &[256, 64, 1, 1]),
        ("layer1.0.downsample.1.running_var", &[256]),
        ("layer2.0.conv1.weight", &[128, 256, 1, 1]),
        ("layer3.5.conv2.weight", &[256, 256, 3, 3]),
        ("layer4.2.bn3.running_mean", &[2048]),
        ("fc.weight", &[1000, 2048]),
        ("fc.bias", &[1000]),
    ] {
        assert_eq!(resnet50.get(name).map(Vec::as_slice), Some(shape), "{name}");
    }
    // PyTorch's modules named the tensors of this file.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/residual/resnet18-cifar.safetensors");
    let written: Vec<String> = Checkpoint::open(path).unwrap().tensors().map(|view| view.name.to_owned()).collect();
    for name in ["resnet18", "resnet18b", "resnet18-cifar"] {
        assert!(tensors(name).keys().eq(&written), "{name}");
    }
}

#[test]
fn overrides_change_a_network_and_nothing_else() {
    let open = |overrides: Overrides| Description::open("resnet18").unwrap().with(overrides);
    let shape = |description: &Description, name: &str| {
        description.tensors().into_iter().find(|(tensor, _)| *tensor == name).unwrap().1
    };
    let input = Some([1, 64, 96]);
    let changed = open(Overrides { width: Some(0.1), classes: Some(7), input }).unwrap();
    assert_eq!((changed.input(), changed.classes(), changed.width()), ([1, 64, 96], 7, 0.1));
    assert_eq!(shape(&changed, "conv1.weight"), [6, 1, 7, 7]);
    assert_eq!(shape(&changed, "layer4.0.conv1.weight"), [51, 26, 3, 3]);
    assert_eq!(shape(&changed, "fc.weight"), [7, 51]);
    // What is not said stays; a width is one of what is written.
    let again = changed.with(Overrides { width: Some(0.5), ..Default::default() }).unwrap();
    assert_eq!((again.input(), shape(&again, "conv1.weight")), ([1, 64, 96], vec![32, 1, 7, 7]));
    assert_eq!(shape(&again, "fc.weight"), [7, 256]);
    let wide = Description::parse("wide", "base = \"resnet18b\"\nclasses = 3").unwrap();
    assert_eq!((wide.width(), wide.classes(), shape(&wide, "conv1.weight")), (1.5, 3, vec![96, 3, 7, 7]));
    let narrow = Description::parse("narrow", "base = \"resnet18b\"\nwidth = 0.5\ninput = [1, 9, 9]").unwrap();
    assert_eq!((narrow.width(), shape(&narrow, "conv1.weight")), (0.5, vec![32, 1, 7, 7]));
    for (overrides, says) in [
        (Overrides { width: Some(f64::NAN), ..Default::default() }, "width = NaN, expected a number over 0"),
        (Overrides { width: Some(-1.0), ..Default::default() }, "width = -1, expected a number over 0"),
        (
            Overrides { width: Some(1e-3), ..Default::default() },
            "layer 1 (conv2d): width = 0.001 makes 0 of 64 outputs",
        ),
        (Overrides { width: Some(1e300), ..Default::default() }, "of 64 outputs, expected 1 to 67108864"),
        (Overrides { classes: Some(0), ..Default::default() }, "(linear): 0 × 1 × 1 values, expected at least 1"),
        (Overrides { input: Some([3, 0, 9]), ..Default::default() }, "input: 3 × 0 × 9 values, expected at least 1"),
    ] {
        let error = open(overrides).unwrap_err().to_string();
        assert!(error.starts_with("resnet18: ") && error.contains(says), "{says}\n{error}");
    }
    let vgg7 = Description::open("vgg7").unwrap().with(Overrides { input: Some([3, 4, 4]), ..Default::default() });
    let error = vgg7.unwrap_err().to_string();
    assert!(error.contains("vgg7: layer 21 (max_pool): kernel = [2, 2]"), "{error}");
}

/// The classifier is what the classes come from: its outputs are not the width's.
#[test]
fn the_last_layer_with_weights_is_the_classifier() {
    let conv = |name: &str, filters: usize| {
        format!("{{ conv2d = {{ weight = \"{name}\", filters = {filters}, kernel = 1 }} }}")
    };
    let text = |layers: &[&str]| format!("input = [2, 3, 3]\nlayers = [{}, \"global_avg_pool\"]", layers.join(", "));
    let overrides = Overrides { width: Some(2.0), classes: Some(5), input: None };
    let all = text(&[&conv("a", 4), "\"relu\"", &conv("b", 3), "\"relu\""]);
    let description = Description::parse("net", &all).unwrap().with(overrides).unwrap();
    assert_eq!(description.tensors(), [("a", vec![8, 2, 1, 1]), ("b", vec![5, 8, 1, 1])]);
    let residual = text(&[&conv("a", 4), &format!("{{ residual = {{ body = [{}] }} }}", conv("b", 4))]);
    let description = Description::parse("net", &residual).unwrap();
    let error = description.clone().with(overrides).unwrap_err().to_string();
    assert!(error.contains("classes = 5: no layer to set them, expected a linear layer at the end"), "{error}");
    let wide = description.with(Overrides { classes: None, ..overrides }).unwrap();
    assert_eq!(wide.tensors(), [("a", vec![8, 2, 1, 1]), ("b", vec![8, 8, 1, 1])]);
}

#[test]
fn batch_norm_has_a_short_form() {
    let text = |norm: &str| format!("input = [2, 1, 1]\nlayers = [{{ batch_norm = {norm} }}]");
    let short = Description::parse("net", &text("\"n.0\"")).unwrap();
    let long =
        r#"{ weight = "n.0.weight", bias = "n.0.bias", mean = "n.0.running_mean", variance = "n.0.running_var" }"#;
    assert_eq!(short.tensors(), Description::parse("net", &text(long)).unwrap().tensors());
    let error = refused(&text("3"));
    assert!(error.contains("what PyTorch calls the layer, or {"), "{error}");
}

/// A pipe would be waited for, and a device read for ever.
#[cfg(unix)]
#[test]
fn descriptions_are_regular_files_of_some_size() {
    let error = Description::open("/dev/zero").unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("not a regular file"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("long.toml");
    std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    let error = Description::open(path.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("expected at most 1048576 bytes"), "{error}");
}
