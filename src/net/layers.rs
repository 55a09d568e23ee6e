//! Layers as a description has them: their fields, the names and shapes of their tensors, and what
//! shape comes out of them. Not here: how a description is read ([`super::description`]), or any
//! arithmetic.

use std::convert::Infallible;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::kernel::Conv2d;
use crate::limits::LAYER_VALUES;

/// A layer; strings are names of tensors. `L` is what a residual layer is made of: [`Written`], or
/// [`Described`].
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Layer<L> {
    /// Zeros around the image are its padding.
    Conv2d(Convolution),
    /// y = x·Wᵀ + bias, over channels × 1 × 1.
    Linear(Linear),
    /// Per channel, in evaluation with the statistics of training.
    BatchNorm(BatchNorm),
    /// The largest value of each window; padding is not looked at.
    MaxPool(Pool),
    /// The mean of each window; padding counts as zeros, as by default in PyTorch.
    AvgPool(Pool),
    /// The mean of each channel: channels × 1 × 1.
    GlobalAvgPool,
    /// max(0, x).
    Relu,
    /// Channels × height × width become as many channels of 1 × 1, in C order.
    Flatten,
    /// body(x) + shortcut(x).
    Residual(Residual<L>),
}

/// A layer as it stands in a file.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Written(pub Layer<Written>);

/// A layer in its place: it can take what comes to it.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    /// With `width` and `classes` applied.
    pub layer: Layer<Described>,
    /// The shape of what it takes for one image: channels × height × width.
    pub input: [usize; 3],
    /// The shape of what it gives for one image.
    pub output: [usize; 3],
}

/// `weight` is filters × channels per group × kernel height × kernel width, `bias` one per filter.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Convolution {
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
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Linear {
    pub weight: String,
    pub bias: Option<String>,
    pub outputs: usize,
}

/// One of each tensor's elements per channel. A string stands for PyTorch's names behind it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BatchNorm {
    pub weight: String,
    pub bias: String,
    /// The running mean.
    pub mean: String,
    /// The running variance.
    pub variance: String,
    pub eps: f32,
}

/// How a window walks over each channel.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    kernel: Extent,
    stride: Option<Extent>,
    #[serde(default)]
    padding: Extent,
}

/// Both start from the same input and give the same shape.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Residual<L> {
    /// At least one layer.
    pub body: Vec<L>,
    /// None: the input as it is.
    #[serde(default = "Vec::new")]
    pub shortcut: Vec<L>,
}

/// `3`, or `[3, 5]`: height and width.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
#[serde(from = "NumberOrPair")]
struct Extent([usize; 2]);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number, or [height, width]")]
enum NumberOrPair {
    Both(usize),
    Each([usize; 2]),
}

impl From<NumberOrPair> for Extent {
    fn from(written: NumberOrPair) -> Self {
        match written {
            NumberOrPair::Both(n) => Self([n, n]),
            NumberOrPair::Each(extent) => Self(extent),
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

/// PyTorch's.
const EPS: f32 = 1e-5;

fn default_eps() -> f32 {
    EPS
}

/// By hand, since an untagged enum could not say which field is missing.
impl<'de> Deserialize<'de> for BatchNorm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrFields;

        impl<'de> Visitor<'de> for NameOrFields {
            type Value = BatchNorm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("what PyTorch calls the layer, or { weight, bias, mean, variance, eps }")
            }

            fn visit_str<E>(self, name: &str) -> Result<BatchNorm, E> {
                let [weight, bias, mean, variance] =
                    ["weight", "bias", "running_mean", "running_var"].map(|tensor| format!("{name}.{tensor}"));
                Ok(BatchNorm { weight, bias, mean, variance, eps: EPS })
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<BatchNorm, A::Error> {
                let Fields { weight, bias, mean, variance, eps } =
                    Fields::deserialize(MapAccessDeserializer::new(fields))?;
                Ok(BatchNorm { weight, bias, mean, variance, eps })
            }
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            weight: String,
            bias: String,
            mean: String,
            variance: String,
            #[serde(default = "default_eps")]
            eps: f32,
        }

        deserializer.deserialize_any(NameOrFields)
    }
}

impl Convolution {
    /// How it walks over the image.
    pub fn geometry(&self) -> Conv2d {
        Conv2d {
            kernel: self.kernel.0,
            stride: self.stride.0,
            padding: self.padding.0,
            dilation: self.dilation.0,
            groups: self.groups,
        }
    }

    /// The shape of its weights over so many channels, which its groups divide.
    pub fn shape(&self, channels: usize) -> [usize; 4] {
        let [height, width] = self.kernel.0;
        [self.filters, channels / self.groups, height, width]
    }
}

impl Pool {
    /// How its window moves, as that of a convolution.
    pub fn geometry(&self) -> Conv2d {
        let stride = self.stride.unwrap_or(self.kernel).0;
        Conv2d { stride, padding: self.padding.0, ..Conv2d::new(self.kernel.0) }
    }
}

impl Described {
    /// As it would stand in a file.
    pub fn written(&self) -> Written {
        let Ok(layer) = self.layer.map(|_, layers| Ok::<_, Infallible>(layers.iter().map(Self::written).collect()));
        Written(layer)
    }

    /// Adds the names and shapes of its tensors, those of a residual layer body first.
    pub fn tensors<'a>(&'a self, found: &mut Vec<(&'a str, Vec<usize>)>) {
        let channels = self.input[0];
        match &self.layer {
            Layer::Conv2d(conv) => {
                found.push((&conv.weight, conv.shape(channels).to_vec()));
                found.extend(conv.bias.as_deref().map(|bias| (bias, vec![conv.filters])));
            }
            Layer::Linear(linear) => {
                found.push((&linear.weight, vec![linear.outputs, channels]));
                found.extend(linear.bias.as_deref().map(|bias| (bias, vec![linear.outputs])));
            }
            Layer::BatchNorm(BatchNorm { weight, bias, mean, variance, .. }) => {
                found.extend([weight, bias, mean, variance].map(|name| (name.as_str(), vec![channels])));
            }
            Layer::Residual(Residual { body, shortcut }) => {
                body.iter().chain(shortcut).for_each(|described| described.tensors(found));
            }
            Layer::MaxPool(_) | Layer::AvgPool(_) | Layer::GlobalAvgPool | Layer::Relu | Layer::Flatten => {}
        }
    }
}

impl<L> Layer<L> {
    /// The same, with what `nested` makes of a residual layer's parts.
    pub fn map<M, E>(&self, mut nested: impl FnMut(&str, &[L]) -> Result<Vec<M>, E>) -> Result<Layer<M>, E> {
        Ok(match self {
            Self::Conv2d(conv) => Layer::Conv2d(conv.clone()),
            Self::Linear(linear) => Layer::Linear(linear.clone()),
            Self::BatchNorm(norm) => Layer::BatchNorm(norm.clone()),
            Self::MaxPool(pool) => Layer::MaxPool(pool.clone()),
            Self::AvgPool(pool) => Layer::AvgPool(pool.clone()),
            Self::GlobalAvgPool => Layer::GlobalAvgPool,
            Self::Relu => Layer::Relu,
            Self::Flatten => Layer::Flatten,
            Self::Residual(Residual { body, shortcut }) => {
                Layer::Residual(Residual { body: nested("body", body)?, shortcut: nested("shortcut", shortcut)? })
            }
        })
    }

    /// Its name in a description.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Conv2d(_) => "conv2d",
            Self::Linear(_) => "linear",
            Self::BatchNorm(_) => "batch_norm",
            Self::MaxPool(_) => "max_pool",
            Self::AvgPool(_) => "avg_pool",
            Self::GlobalAvgPool => "global_avg_pool",
            Self::Relu => "relu",
            Self::Flatten => "flatten",
            Self::Residual(_) => "residual",
        }
    }
}

impl Layer<Described> {
    /// The shape of what it gives for an image of that shape, or why it cannot take one.
    pub(super) fn output(&self, input: [usize; 3]) -> Result<[usize; 3], String> {
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
                size([gathered(&geometry, channels), h, w])
                    .map_err(|_| format!("gathers more than {LAYER_VALUES} values per image"))?;
                let padded = |i: usize| input[i + 1].saturating_add(geometry.padding[i].saturating_mul(2));
                size([channels, padded(0), padded(1)]).map_err(|message| format!("with its padding: {message}"))?;
                [convolution.filters, h, w]
            }
            Self::MaxPool(pool) | Self::AvgPool(pool) => {
                let geometry = pool.geometry();
                if (0..2).any(|i| geometry.padding[i] > geometry.kernel[i] / 2) {
                    let half = "expected at most half of the kernel: a window has to see the image";
                    return Err(format!("padding = {:?}, {half}", geometry.padding));
                }
                let [h, w] = window(&geometry, input)?;
                [channels, h, w]
            }
            Self::GlobalAvgPool => [channels, 1, 1],
            Self::Linear(_) if [height, width] != [1, 1] => {
                return Err(format!("takes one row of numbers, found {}; put \"flatten\" before it", maps(input)));
            }
            Self::Linear(linear) => [linear.outputs, 1, 1],
            Self::BatchNorm(norm) if !norm.eps.is_finite() || norm.eps < 0.0 => {
                return Err(format!("eps = {}, expected a number of at least 0", norm.eps));
            }
            Self::Flatten => [channels * height * width, 1, 1],
            Self::BatchNorm(_) | Self::Relu => input,
            Self::Residual(Residual { body, shortcut }) => {
                let [body, shortcut] = [body, shortcut].map(|layers| layers.last().map_or(input, |last| last.output));
                if body != shortcut {
                    let (body, shortcut) = (maps(body), maps(shortcut));
                    return Err(format!("body gives {body}, shortcut gives {shortcut}, expected the same shape"));
                }
                body
            }
        };
        size(output)?;
        Ok(output)
    }
}

/// What one group of a convolution gathers for an output, over so many channels in all.
pub(super) fn gathered(geometry: &Conv2d, channels: usize) -> usize {
    geometry.filter_len(channels).unwrap_or(usize::MAX)
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
pub(super) fn size(shape: [usize; 3]) -> Result<usize, String> {
    let size = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    size.filter(|size| (1..=LAYER_VALUES).contains(size))
        .ok_or_else(|| format!("{}, expected at least 1 of each and at most {LAYER_VALUES} in all", maps(shape)))
}

pub(super) fn maps([channels, height, width]: [usize; 3]) -> String {
    format!("{channels} × {height} × {width} values")
}
