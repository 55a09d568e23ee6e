//! Networks as data: a TOML file of layers in their order, with the names of their tensors. Not here:
//! the tensors themselves, or any arithmetic.
//!
//! ```toml
//! input = [1, 28, 28]     # channels, height, width
//! layers = [
//!     # kernel, stride, padding and dilation: one number, or [height, width].
//!     { conv2d = { weight = "conv1.weight", bias = "conv1.bias", filters = 32, kernel = 5,
//!                  stride = 1, padding = 0, dilation = 1, groups = 1 } },
//!     { batch_norm = { weight = "bn1.weight", bias = "bn1.bias",
//!                      mean = "bn1.running_mean", variance = "bn1.running_var", eps = 1e-5 } },
//!     { max_pool = { kernel = 2, stride = 2, padding = 0 } },     # stride: as the kernel
//!     "relu",
//!     "flatten",
//!     { linear = { weight = "fc.weight", bias = "fc.bias", outputs = 10 } },
//! ]
//! ```

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::kernel::Conv2d;
use crate::limits::{LAYER_VALUES, NETWORK_BYTES};
use crate::mapped::open_regular;
use crate::{Error, Result};

/// The networks that are built in: name and description.
pub const NETWORKS: [(&str, &str); 1] = [("lenet5", include_str!("networks/lenet5.toml"))];

/// A network's layers, checked: each can take what the one before it gives.
#[derive(Debug, Clone)]
pub struct Description {
    /// What it is called: a built-in name, or a file's.
    name: String,
    /// Channels, height and width of an image.
    input: [usize; 3],
    layers: Vec<Described>,
}

/// A layer, and the shape of what it gives for one image: channels × height × width.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub layer: Layer,
    pub output: [usize; 3],
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    input: [usize; 3],
    layers: Vec<Layer>,
}

/// A layer as it is described; strings are names of tensors.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Layer {
    Conv2d(Convolution),
    Linear(Linear),
    BatchNorm(BatchNorm),
    MaxPool(MaxPool),
    Relu,
    Flatten,
}

/// `weight` is filters × channels per group × kernel height × kernel width, `bias` one per filter.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Convolution {
    pub weight: String,
    pub bias: Option<String>,
    pub filters: usize,
    kernel: Extent,
    #[serde(default = "Extent::one")]
    stride: Extent,
    #[serde(default)]
    padding: Extent,
    #[serde(default = "Extent::one")]
    dilation: Extent,
    #[serde(default = "one")]
    groups: usize,
}

/// `weight` is outputs × inputs, `bias` one per output.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Linear {
    pub weight: String,
    pub bias: Option<String>,
    pub outputs: usize,
}

/// One of each tensor's elements per channel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchNorm {
    pub weight: String,
    pub bias: String,
    pub mean: String,
    pub variance: String,
    /// PyTorch's default.
    #[serde(default = "default_eps")]
    pub eps: f32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MaxPool {
    kernel: Extent,
    stride: Option<Extent>,
    #[serde(default)]
    padding: Extent,
}

/// `3`, or `[3, 5]`: height and width.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(from = "Written")]
struct Extent([usize; 2]);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number, or [height, width]")]
enum Written {
    Both(usize),
    Each([usize; 2]),
}

impl From<Written> for Extent {
    fn from(written: Written) -> Self {
        match written {
            Written::Both(n) => Self([n, n]),
            Written::Each(extent) => Self(extent),
        }
    }
}

impl Extent {
    fn one() -> Self {
        Self([1, 1])
    }
}

fn one() -> usize {
    1
}

fn default_eps() -> f32 {
    1e-5
}

impl Convolution {
    pub fn geometry(&self) -> Conv2d {
        Conv2d {
            kernel: self.kernel.0,
            stride: self.stride.0,
            padding: self.padding.0,
            dilation: self.dilation.0,
            groups: self.groups,
        }
    }
}

impl MaxPool {
    /// How its window moves, as that of a convolution.
    pub fn geometry(&self) -> Conv2d {
        let stride = self.stride.unwrap_or(self.kernel).0;
        Conv2d { stride, padding: self.padding.0, ..Conv2d::new(self.kernel.0) }
    }
}

impl Description {
    /// A built-in network by its name, or a TOML file by its path: what has a `.` or a separator in it.
    ///
    /// # Errors
    /// An unknown name, a file that cannot be read, or one that describes no network.
    pub fn open(network: &str) -> Result<Self> {
        if let Some((name, text)) = NETWORKS.iter().find(|(name, _)| *name == network) {
            return Self::parse(name, text);
        }
        if !network.contains(['.', '/', std::path::MAIN_SEPARATOR]) {
            let known: Vec<&str> = NETWORKS.iter().map(|(name, _)| *name).collect();
            return Err(Error::Request(format!(
                "unknown network `{network}`; known are {}, or the path of a description, NAME.toml",
                known.join(", ")
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
        let refused = |message: &str| Error::Request(format!("{name}: {}", message.trim_end()));
        let file: File = toml::from_str(text).map_err(|e| refused(&e.to_string()))?;
        size(file.input).map_err(|message| refused(&format!("input: {message}")))?;
        let mut shape = file.input;
        let mut layers = Vec::with_capacity(file.layers.len());
        for (i, layer) in file.layers.into_iter().enumerate() {
            let what = format!("layer {} ({})", i + 1, layer.name());
            shape = layer.output(shape).map_err(|message| refused(&format!("{what}: {message}")))?;
            layers.push(Described { layer, output: shape });
        }
        match (layers.is_empty(), shape) {
            (true, _) => Err(refused("layers: expected at least one")),
            (_, [_, 1, 1]) => Ok(Self { name: name.to_owned(), input: file.input, layers }),
            (_, found) => Err(refused(&format!(
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

    pub(super) fn layers(&self) -> &[Described] {
        &self.layers
    }
}

impl Layer {
    /// Its name in a description.
    fn name(&self) -> &'static str {
        match self {
            Self::Conv2d(_) => "conv2d",
            Self::Linear(_) => "linear",
            Self::BatchNorm(_) => "batch_norm",
            Self::MaxPool(_) => "max_pool",
            Self::Relu => "relu",
            Self::Flatten => "flatten",
        }
    }

    /// The shape of what it gives for an image of that shape, or why it cannot take one.
    fn output(&self, input: [usize; 3]) -> Result<[usize; 3], String> {
        let [channels, height, width] = input;
        let output = match self {
            Self::Conv2d(convolution) => {
                let geometry = convolution.geometry();
                let groups = geometry.groups;
                if groups == 0 || channels % groups != 0 || convolution.filters % groups != 0 {
                    return Err(format!(
                        "groups = {groups}, expected a divisor of {channels} channels and of {} filters",
                        convolution.filters
                    ));
                }
                let [h, w] = window(&geometry, input)?;
                // What one group gathers: a column of the kernel's size per output.
                size([channels / groups, geometry.kernel[0], geometry.kernel[1]])
                    .and_then(|column| size([column, h, w]))
                    .map_err(|_| format!("gathers more than {LAYER_VALUES} values per image"))?;
                let padded = |i: usize| input[i + 1].saturating_add(geometry.padding[i].saturating_mul(2));
                size([channels, padded(0), padded(1)]).map_err(|message| format!("with its padding: {message}"))?;
                [convolution.filters, h, w]
            }
            Self::MaxPool(pool) => {
                let geometry = pool.geometry();
                if (0..2).any(|i| geometry.padding[i] > geometry.kernel[i] / 2) {
                    let half = "expected at most half of the kernel: a window has to see the image";
                    return Err(format!("padding = {:?}, {half}", geometry.padding));
                }
                let [h, w] = window(&geometry, input)?;
                [channels, h, w]
            }
            Self::Linear(_) if [height, width] != [1, 1] => {
                return Err(format!("takes one row of numbers, found {}; put \"flatten\" before it", maps(input)));
            }
            Self::Linear(linear) => [linear.outputs, 1, 1],
            Self::BatchNorm(norm) if !norm.eps.is_finite() || norm.eps < 0.0 => {
                return Err(format!("eps = {}, expected a number of at least 0", norm.eps));
            }
            Self::Flatten => [channels * height * width, 1, 1],
            Self::BatchNorm(_) | Self::Relu => input,
        };
        size(output)?;
        Ok(output)
    }
}

/// Where a window can stand.
fn window(geometry: &Conv2d, [_, height, width]: [usize; 3]) -> Result<[usize; 2], String> {
    geometry.output([height, width]).ok_or_else(|| {
        let Conv2d { kernel, stride, padding, dilation, .. } = geometry;
        format!(
            "kernel = {kernel:?}, stride = {stride:?}, padding = {padding:?}, dilation = {dilation:?} do not fit \
             {height} × {width} values; expected a kernel that is not larger, and no 0 but in padding"
        )
    })
}

/// How many values; none, or too many, are an error.
fn size(shape: [usize; 3]) -> Result<usize, String> {
    let size = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    size.filter(|size| (1..=LAYER_VALUES).contains(size))
        .ok_or_else(|| format!("{}, expected at least 1 of each and at most {LAYER_VALUES} in all", maps(shape)))
}

fn maps([channels, height, width]: [usize; 3]) -> String {
    format!("{channels} × {height} × {width} values")
}
