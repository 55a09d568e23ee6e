//! Networks as data: a TOML file of layers in their order, with the names of their tensors. Not here:
//! the layers ([`super::layers`]), the tensors themselves, or any arithmetic.
//!
//! ```toml
//! input = [1, 28, 28]     # channels, height, width
//! width = 1               # multiplies the filters and outputs of all layers but the classifier
//! classes = 10            # of the classifier: the last layer that has weights
//! layers = [
//!     # kernel, stride, padding and dilation: one number, or [height, width].
//!     { conv2d = { weight = "conv1.weight", bias = "conv1.bias", filters = 32, kernel = 5,
//!                  stride = 1, padding = 0, dilation = 1, groups = 1 } },
//!     { batch_norm = { weight = "bn1.weight", bias = "bn1.bias",
//!                      mean = "bn1.running_mean", variance = "bn1.running_var", eps = 1e-5 } },
//!     { batch_norm = "bn1" },                                     # the same, by PyTorch's names
//!     { max_pool = { kernel = 2, stride = 2, padding = 0 } },     # stride: as the kernel
//!     { avg_pool = { kernel = 2, stride = 2, padding = 0 } },     # padding counts, as zeros
//!     "relu",
//!     # body(x) + shortcut(x), which have to agree in shape; without shortcut, + x.
//!     { residual = { body = [{ conv2d = { … } }, "relu", { conv2d = { … } }], shortcut = [] } },
//!     "global_avg_pool",                                          # to 1 × 1
//!     "flatten",
//!     { linear = { weight = "fc.weight", bias = "fc.bias", outputs = 10 } },
//! ]
//! ```
//!
//! Or a built-in network with something changed, any of the three:
//!
//! ```toml
//! base = "resnet18"
//! width = 1.5
//! classes = 100
//! input = [3, 64, 64]
//! ```

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::layers::{BatchNorm, Convolution, Described, Layer, Linear, Residual, Written, maps, size};
use crate::error::NetworkProblem;
use crate::limits::{LAYER_VALUES, NETWORK_BYTES, RESIDUAL_DEPTH};
use crate::mapped::open_regular;
use crate::{Checkpoint, Error, Result};

/// The networks that are built in: name and description.
pub const NETWORKS: [(&str, &str); 10] = [
    ("lenet5", include_str!("networks/lenet5.toml")),
    ("vgg7", include_str!("networks/vgg7.toml")),
    ("resnet18", include_str!("networks/resnet18.toml")),
    ("resnet18b", include_str!("networks/resnet18b.toml")),
    ("resnet34", include_str!("networks/resnet34.toml")),
    ("resnet50", include_str!("networks/resnet50.toml")),
    ("resnet18-cifar", include_str!("networks/resnet18-cifar.toml")),
    ("resnet18b-cifar", include_str!("networks/resnet18b-cifar.toml")),
    ("resnet34-cifar", include_str!("networks/resnet34-cifar.toml")),
    ("resnet50-cifar", include_str!("networks/resnet50-cifar.toml")),
];

/// A network's layers, checked: each can take what the one before it gives.
#[derive(Debug, Clone)]
pub struct Description {
    /// What it is called: a built-in name, or a file's.
    name: String,
    /// What it is made from.
    written: Vec<Written>,
    overrides: Overrides,
    /// Channels, height and width of an image.
    input: [usize; 3],
    layers: Vec<Described>,
}

/// What can be said of a network besides its layers; `None` leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overrides {
    /// Channels, height and width of an image.
    pub input: Option<[usize; 3]>,
    /// Multiplies the filters of every convolution and the outputs of every linear layer as they are
    /// written, rounded to the nearest whole number; not those of the classifier. Groups stay.
    pub width: Option<f64>,
    /// The outputs of the classifier: the last layer with weights, where that is no part of a residual
    /// layer.
    pub classes: Option<usize>,
}

/// The file as it is written. What can be overridden are fields of their own: with `flatten`, errors
/// would lose their lines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    base: Option<String>,
    input: Option<[usize; 3]>,
    width: Option<f64>,
    classes: Option<usize>,
    layers: Option<Vec<Written>>,
}

/// What is wrong, and in which layer: the outermost first.
struct Misfit {
    place: Vec<String>,
    message: String,
}

/// Puts layers into their places.
struct Builder {
    width: f64,
    classes: Option<usize>,
    /// Which of the outermost layers has the classes.
    classifier: Option<usize>,
}

impl Overrides {
    /// These, and where they say nothing, what `other` says.
    fn or(self, other: Self) -> Self {
        Self {
            input: self.input.or(other.input),
            width: self.width.or(other.width),
            classes: self.classes.or(other.classes),
        }
    }
}

impl Description {
    /// A built-in network by its name, or a TOML file by its path: what has a `.` or a separator in it.
    ///
    /// # Errors
    /// An unknown name, a file that cannot be read, or one that describes no network.
    pub fn open(network: &str) -> Result<Self> {
        if let Some(text) = built_in(network) {
            return Self::parse(network, text);
        }
        if !network.contains(['.', '/', std::path::MAIN_SEPARATOR]) {
            let known = known();
            return Err(Error::Request(format!(
                "unknown network `{network}`; known are {known}, or the path of a description, NAME.toml"
            )));
        }
        let path = Path::new(network);
        let mut text = String::new();
        let mut file = open_regular(path)?.take(NETWORK_BYTES + 1);
        file.read_to_string(&mut text).map_err(Error::io(path, "read the network in"))?;
        if text.len() as u64 > NETWORK_BYTES {
            return Err(Error::Request(format!("{network}: expected at most {NETWORK_BYTES} bytes, found more")));
        }
        Self::parse(network, &text)
    }

    /// From the text of a description; `name` is what errors call it.
    ///
    /// # Errors
    /// What is not understood, or a layer that cannot take what the one before it gives.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let (written, overrides) = read(text).map_err(|message| refused(name, &message))?;
        Self::new(name, written, overrides)
    }

    /// The same layers with something changed; what is `None` stays as it is. A width is always one of
    /// the layers as they are written: it replaces the one before.
    ///
    /// # Errors
    /// When a layer cannot take what the one before it gives any more.
    pub fn with(self, overrides: Overrides) -> Result<Self> {
        Self::new(&self.name, self.written, overrides.or(self.overrides))
    }

    fn new(name: &str, written: Vec<Written>, overrides: Overrides) -> Result<Self> {
        let refused = |message: &str| refused(name, message);
        let input = overrides.input.ok_or_else(|| refused("missing field `input`, or a `base` that has one"))?;
        size(input).map_err(|message| refused(&format!("input: {message}")))?;
        if written.is_empty() {
            return Err(refused("layers: expected at least one"));
        }
        let builder = Builder::new(&written, overrides).map_err(|message| refused(&message))?;
        let layers = builder
            .layers("layer", &written, input, 0)
            .map_err(|Misfit { place, message }| refused(&format!("{}: {message}", place.join(", "))))?;
        match layers.last().map_or(input, |last| last.output) {
            [_, 1, 1] => Ok(Self { name: name.to_owned(), written, overrides, input, layers }),
            found => Err(refused(&format!(
                "the last layer gives {}, expected one number per class; end with a linear layer",
                maps(found)
            ))),
        }
    }

    /// The built-in name, or the file's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Channels, height and width of an image.
    pub fn input(&self) -> [usize; 3] {
        self.input
    }

    /// How many numbers come out for an image.
    pub fn classes(&self) -> usize {
        self.layers.last().map_or(0, |described| described.output[0])
    }

    /// What filters and outputs are multiplied by: 1 where nothing says otherwise.
    pub fn width(&self) -> f64 {
        self.overrides.width.unwrap_or(1.0)
    }

    /// The names and shapes of all tensors, in the order of the layers; of a residual layer, those of
    /// its body come first.
    pub fn tensors(&self) -> Vec<(&str, Vec<usize>)> {
        let mut found = Vec::new();
        self.layers.iter().for_each(|described| described.tensors(&mut found));
        found
    }

    /// A number that another network hardly has: of the layers, their tensors' names and the input.
    pub fn checksum(&self) -> u32 {
        crc32fast::hash(format!("{:?}{:?}", self.input, self.layers).as_bytes())
    }

    /// The names of what convolutions and linear layers multiply by, in the order of the layers.
    pub fn weight_names(&self) -> Vec<&str> {
        self.tensors().into_iter().filter(|(_, shape)| shape.len() > 1).map(|(name, _)| name).collect()
    }

    /// The names of the tensors that hold the running means of batch norms.
    pub fn running_means(&self) -> Vec<&str> {
        self.batch_norms().into_iter().map(|norm| norm.mean.as_str()).collect()
    }

    /// Every batch norm, in the order in which they run.
    pub(super) fn batch_norms(&self) -> Vec<&BatchNorm> {
        fn find<'a>(layers: &'a [Described], found: &mut Vec<&'a BatchNorm>) {
            for described in layers {
                match &described.layer {
                    Layer::BatchNorm(norm) => found.push(norm),
                    Layer::Residual(Residual { body, shortcut }) => {
                        find(body, found);
                        find(shortcut, found);
                    }
                    _ => {}
                }
            }
        }
        let mut found = Vec::new();
        find(&self.layers, &mut found);
        found
    }

    /// Whether each tensor is that of one layer; `who` wants it so.
    ///
    /// # Errors
    /// A name that two tensors have.
    pub(crate) fn check_distinct(&self, who: &str) -> Result<()> {
        let mut names = BTreeSet::new();
        match self.tensors().into_iter().find(|(name, _)| !names.insert(*name)) {
            None => Ok(()),
            Some((name, _)) => {
                Err(refused(&self.name, &format!("two layers have a tensor `{name}`; {who} wants one for each")))
            }
        }
    }

    /// Whether a checkpoint has every tensor, in the shape that the layers want.
    ///
    /// # Errors
    /// The first that is missing or has another shape.
    pub fn check_tensors(&self, checkpoint: &Checkpoint) -> Result<()> {
        for (name, expected) in self.tensors() {
            let ternary = checkpoint.ternary_by_name(name);
            let problem = match checkpoint.by_name(name) {
                _ if let Some((dtype, shape)) = ternary => NetworkProblem::Ternary { dtype, shape: shape.to_vec() },
                Some(tensor) if tensor.shape == expected => continue,
                Some(tensor) => NetworkProblem::Shape { expected, found: tensor.shape.to_vec() },
                None => NetworkProblem::Missing { expected },
            };
            let (path, tensor) = (checkpoint.path().to_path_buf(), name.to_owned());
            return Err(Error::Network { path, tensor, problem });
        }
        Ok(())
    }

    /// The network as a file: every layer as it is, with width and classes applied.
    ///
    /// # Errors
    /// None for what was read.
    pub fn to_toml(&self) -> Result<String> {
        let mut text = format!("input = {:?}\nlayers = [\n", self.input);
        for described in &self.layers {
            let layer = toml::Value::try_from(described.written()).map_err(|e| refused(&self.name, &e.to_string()))?;
            text += &format!("    {layer},\n");
        }
        Ok(text + "]\n")
    }

    /// These layers after one another.
    pub(super) fn from_layers(name: &str, input: [usize; 3], layers: Vec<Written>) -> Result<Self> {
        Self::new(name, layers, Overrides { input: Some(input), ..Overrides::default() })
    }

    /// The layers in their order, at least one.
    pub(crate) fn layers(&self) -> &[Described] {
        &self.layers
    }
}

fn refused(name: &str, message: &str) -> Error {
    Error::Request(format!("{name}: {}", message.trim_end()))
}

fn built_in(network: &str) -> Option<&'static str> {
    NETWORKS.iter().find(|(name, _)| *name == network).map(|(_, text)| *text)
}

fn known() -> String {
    NETWORKS.map(|(name, _)| name).join(", ")
}

/// The layers of a file or of its base, and what is said of them. Only built-in networks are a base,
/// and none of those goes round in circles.
fn read(text: &str) -> Result<(Vec<Written>, Overrides), String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string().trim_end().replace('\n', "\n  "))?;
    let overrides = Overrides { input: file.input, width: file.width, classes: file.classes };
    match (file.base, file.layers) {
        (None, Some(layers)) => Ok((layers, overrides)),
        (None, None) => Err("missing field `layers`, or a `base` that has some".to_owned()),
        (Some(base), Some(_)) => Err(format!("both `layers` and `base`: {base} has its own; leave one of them out")),
        (Some(base), None) => {
            let text =
                built_in(&base).ok_or_else(|| format!("base: unknown network `{base}`; known are {}", known()))?;
            let (layers, of_base) = read(text)?;
            Ok((layers, overrides.or(of_base)))
        }
    }
}

impl Misfit {
    /// In a layer that is part of `outer`.
    fn within(mut self, outer: String) -> Self {
        self.place.insert(0, outer);
        self
    }
}

impl Builder {
    fn new(layers: &[Written], overrides: Overrides) -> Result<Self, String> {
        let width = overrides.width.unwrap_or(1.0);
        if !width.is_finite() || width <= 0.0 {
            return Err(format!("width = {width}, expected a number over 0"));
        }
        let last = layers
            .iter()
            .rposition(|Written(layer)| matches!(layer, Layer::Conv2d(_) | Layer::Linear(_) | Layer::Residual(_)));
        let classifier = last.filter(|&i| !matches!(layers[i].0, Layer::Residual(_)));
        if let (Some(classes), None) = (overrides.classes, classifier) {
            return Err(format!("classes = {classes}: no layer to set them, expected a linear layer at the end"));
        }
        Ok(Self { width, classes: overrides.classes, classifier })
    }

    /// Layers one after the other; errors call each a `part`. `depth` is how many residual layers they
    /// lie in.
    fn layers(
        &self,
        part: &str,
        layers: &[Written],
        input: [usize; 3],
        depth: usize,
    ) -> Result<Vec<Described>, Misfit> {
        let mut shape = input;
        let mut described = Vec::with_capacity(layers.len());
        for (i, Written(written)) in layers.iter().enumerate() {
            let place = || format!("{part} {} ({})", i + 1, written.name());
            let misfit = |message| Misfit { place: vec![place()], message };
            let classifier = depth == 0 && self.classifier == Some(i);
            if let Layer::Residual(Residual { body, .. }) = written {
                if depth == RESIDUAL_DEPTH {
                    return Err(misfit(format!("inside {depth} others, expected at most {RESIDUAL_DEPTH} in all")));
                }
                if body.is_empty() {
                    return Err(misfit("body: expected at least one layer".to_owned()));
                }
            }
            let mut layer = written.map(|part, layers| {
                self.layers(part, layers, shape, depth + 1).map_err(|misfit| misfit.within(place()))
            })?;
            if let Layer::Conv2d(Convolution { filters: outputs, .. }) | Layer::Linear(Linear { outputs, .. }) =
                &mut layer
            {
                *outputs = self.outputs(*outputs, classifier).map_err(misfit)?;
            }
            let output = layer.output(shape).map_err(misfit)?;
            described.push(Described { layer, input: shape, output });
            shape = output;
        }
        Ok(described)
    }

    /// How many filters or outputs a layer has of those that are written.
    fn outputs(&self, written: usize, classifier: bool) -> Result<usize, String> {
        if classifier {
            return Ok(self.classes.unwrap_or(written));
        }
        // Without a width nothing is rounded, and what is wrong is said of the shape.
        if self.width == 1.0 {
            return Ok(written);
        }
        let found = (written as f64 * self.width).round();
        if !(1.0..=LAYER_VALUES as f64).contains(&found) {
            let width = self.width;
            return Err(format!("width = {width} makes {found} of {written} outputs, expected 1 to {LAYER_VALUES}"));
        }
        Ok(found as usize)
    }
}
