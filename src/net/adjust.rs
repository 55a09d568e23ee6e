//! Batch norm's statistics, and biases, predicted for ternary weights without any images: from the weights,
//! and from what the batch norms before a layer say of its inputs (arXiv 1906.04721, section 4.2.1). Not
//! here: measuring them on images ([`super::reestimate`]), which is better.
//!
//! A batch norm with weight γ and bias β gives values of mean β and variance γ² per channel, taken as normal
//! ones; behind a ReLU their mean μ and variance v are those of the rectified normal. A filter's outputs
//! then have
//!
//! ```text
//! mean      s·Σ wμ + b
//! variance  p·Σ w²v + q·Σ_c v_c·(Σ_{w in c} w)²      c: the channels of its inputs
//! ```
//!
//! where neighbouring values of a channel go together (q), as they do in images. The float filters' means
//! and variances are known: they are the running ones. s, p and q are what fits those best, over all
//! filters of the layer; the ternary filters' are the float ones, plus what the formula says they change by.
//! Inputs of the first layer are taken to have one mean and one variance.

use super::layers::{BatchNorm, Described, Layer, Residual};
use super::{Description, Source, Tensors};
use crate::container::Replacement;
use crate::{Error, Result};

/// Running means and variances for the ternary weights of `packed`, where those of `float` are known; and
/// biases of layers without a batch norm behind them.
///
/// # Errors
/// A tensor that is missing, damaged, or of another shape or type; a network with nothing to change.
pub fn adjust(description: &Description, float: &Source, packed: &Source) -> Result<Vec<Replacement>> {
    description.check_distinct("adjusting batch norm")?;
    let (float, packed) = (Tensors::new(float, true)?, Tensors::new(packed, true)?);
    let mut walk = Walk { float, packed, replacements: Vec::new() };
    let channels = description.input()[0];
    walk.layers(description.layers(), Spread { mean: vec![1.0; channels], variance: vec![1.0; channels] })?;
    if walk.replacements.is_empty() {
        let name = description.name();
        return Err(Error::Request(format!(
            "{name}: no layer has a batch norm or a bias behind its weights to change"
        )));
    }
    Ok(walk.replacements)
}

struct Walk<'a> {
    float: Tensors<'a>,
    packed: Tensors<'a>,
    replacements: Vec<Replacement>,
}

/// How the values of each channel are spread.
#[derive(Debug, Clone)]
struct Spread {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

/// A layer's filters: what each multiplies by.
struct Filters {
    float: Vec<f32>,
    ternary: Vec<f32>,
    /// Weights per filter, and how many of them in a row are for one channel.
    len: usize,
    per_channel: usize,
    /// Filters that have the same inputs.
    per_group: usize,
}

/// Σ wμ, Σ w²v and Σ_c v_c·(Σ w)² of a filter.
#[derive(Debug, Clone, Copy)]
struct Terms([f64; 3]);

impl Walk<'_> {
    fn layers(&mut self, layers: &[Described], mut x: Spread) -> Result<Spread> {
        let mut rest = layers.iter().peekable();
        while let Some(described) = rest.next() {
            let channels = described.input[0];
            x = match &described.layer {
                Layer::Conv2d(conv) => {
                    let (shape, groups) = (conv.shape(channels), conv.geometry().groups);
                    let filters = self.filters(&conv.weight, &shape, groups)?;
                    let norm = rest.next_if(|next| matches!(next.layer, Layer::BatchNorm(_)));
                    self.weights(&filters, conv.bias.as_deref(), norm, &x)?
                }
                Layer::Linear(linear) => {
                    let filters = self.filters(&linear.weight, &[linear.outputs, channels], 1)?;
                    let norm = rest.next_if(|next| matches!(next.layer, Layer::BatchNorm(_)));
                    self.weights(&filters, linear.bias.as_deref(), norm, &x)?
                }
                Layer::BatchNorm(norm) => self.normal(norm, channels)?,
                Layer::Relu => x.rectified(),
                Layer::Flatten => x.repeated(described.input[1] * described.input[2]),
                Layer::Residual(Residual { body, shortcut }) => {
                    let (body, shortcut) = (self.layers(body, x.clone())?, self.layers(shortcut, x)?);
                    body.plus(&shortcut)
                }
                Layer::MaxPool(_) | Layer::AvgPool(_) | Layer::GlobalAvgPool => x,
            };
        }
        Ok(x)
    }

    fn filters(&self, name: &str, shape: &[usize], groups: usize) -> Result<Filters> {
        Ok(Filters {
            float: self.float.values(name, shape)?,
            ternary: self.packed.values(name, shape)?,
            len: shape[1..].iter().product(),
            per_channel: shape[2..].iter().product(),
            per_group: shape[0] / groups,
        })
    }

    /// A layer with weights and the batch norm behind it: what comes out.
    fn weights(
        &mut self,
        filters: &Filters,
        bias: Option<&str>,
        norm: Option<&Described>,
        x: &Spread,
    ) -> Result<Spread> {
        let count = filters.float.len() / filters.len;
        let [float, ternary] = [&filters.float, &filters.ternary].map(|weights| filters.terms(weights, x));
        let offsets: Vec<f64> = match bias {
            Some(bias) => self.float.vector(bias, count)?.into_iter().map(f64::from).collect(),
            None => vec![0.0; count],
        };
        let both = || float.iter().zip(&ternary);
        let norm = norm.and_then(|norm| if let Layer::BatchNorm(norm) = &norm.layer { Some(norm) } else { None });
        let Some(norm) = norm else {
            if let Some(bias) = bias {
                let terms = both().zip(&offsets).map(|((w, t), b)| (b + w.0[0] - t.0[0]) as f32);
                self.replace(bias, terms.collect());
            }
            let mean = float.iter().zip(&offsets).map(|(w, b)| w.0[0] + b).collect();
            return Ok(Spread { mean, variance: float.iter().map(|w| w.0[1]).collect() });
        };
        let (mean, variance) = (self.float.vector(&norm.mean, count)?, self.float.vector(&norm.variance, count)?);
        let scale =
            through_origin(float.iter().zip(&mean).zip(&offsets).map(|((w, m), b)| (w.0[0], f64::from(*m) - b)));
        let [p, q] = two_terms(float.iter().zip(&variance).map(|(w, v)| [w.0[1], w.0[2], f64::from(*v)]));
        let means = both().zip(&mean).map(|((w, t), m)| (f64::from(*m) + scale * (t.0[0] - w.0[0])) as f32);
        self.replace(&norm.mean, means.collect());
        let variances = both().zip(&variance).map(|((w, t), v)| {
            let [before, after] = [w, t].map(|terms| p * terms.0[1] + q * terms.0[2]);
            if before > 0.0 && after > 0.0 { (f64::from(*v) * after / before) as f32 } else { *v }
        });
        self.replace(&norm.variance, variances.collect());
        self.normal(norm, count)
    }

    fn replace(&mut self, name: &str, values: Vec<f32>) {
        let by = "predicted for the ternary weights".to_owned();
        self.replacements.push(Replacement { name: name.to_owned(), values, by });
    }

    /// What a batch norm gives.
    fn normal(&self, norm: &BatchNorm, channels: usize) -> Result<Spread> {
        let (weight, bias) = (self.float.vector(&norm.weight, channels)?, self.float.vector(&norm.bias, channels)?);
        let variance = weight.iter().map(|&w| f64::from(w) * f64::from(w)).collect();
        Ok(Spread { mean: bias.iter().map(|&b| f64::from(b)).collect(), variance })
    }
}

impl Filters {
    fn terms(&self, weights: &[f32], x: &Spread) -> Vec<Terms> {
        let channels = self.len / self.per_channel;
        let of = |(filter, weights): (usize, &[f32])| {
            let first = filter / self.per_group * channels;
            let mut terms = [0.0; 3];
            for (c, weights) in weights.chunks_exact(self.per_channel).enumerate() {
                let (mean, variance) = (x.mean[first + c], x.variance[first + c]);
                let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
                let squares: f64 = weights.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
                terms[0] += sum * mean;
                terms[1] += squares * variance;
                terms[2] += sum * sum * variance;
            }
            Terms(terms)
        };
        weights.chunks_exact(self.len).enumerate().map(of).collect()
    }
}

impl Spread {
    /// max(0, x) of normal values.
    fn rectified(self) -> Self {
        let (mean, variance) =
            self.mean.iter().zip(&self.variance).map(|(&mean, &variance)| rectified(mean, variance)).unzip();
        Self { mean, variance }
    }

    fn repeated(self, times: usize) -> Self {
        let repeat = |values: Vec<f64>| values.into_iter().flat_map(|v| std::iter::repeat_n(v, times)).collect();
        Self { mean: repeat(self.mean), variance: repeat(self.variance) }
    }

    fn plus(mut self, other: &Self) -> Self {
        self.mean.iter_mut().zip(&other.mean).for_each(|(a, b)| *a += b);
        self.variance.iter_mut().zip(&other.variance).for_each(|(a, b)| *a += b);
        self
    }
}

/// Mean and variance of max(0, x) for normal x.
fn rectified(mean: f64, variance: f64) -> (f64, f64) {
    let deviation = variance.sqrt();
    if deviation == 0.0 {
        return (mean.max(0.0), 0.0);
    }
    let z = mean / deviation;
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let share = 0.5 * (1.0 + libm::erf(z / std::f64::consts::SQRT_2));
    let first = mean * share + deviation * density;
    let second = (mean * mean + variance) * share + mean * deviation * density;
    (first, (second - first * first).max(0.0))
}

/// The s of the least Σ (s·x − y)², at least 0.
fn through_origin(points: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (xy, xx) = points.fold((0.0, 0.0), |(xy, xx), (x, y)| (xy + x * y, xx + x * x));
    if xx > 0.0 { (xy / xx).max(0.0) } else { 0.0 }
}

/// The p and q, both at least 0, of the least Σ ((p·a + q·b)/y − 1)².
fn two_terms(points: impl Iterator<Item = [f64; 3]>) -> [f64; 2] {
    let mut sums = [0.0; 5];
    for [a, b, y] in points.filter(|[.., y]| *y > 0.0) {
        let (a, b) = (a / y, b / y);
        for (sum, term) in sums.iter_mut().zip([a * a, a * b, b * b, a, b]) {
            *sum += term;
        }
    }
    let [aa, ab, bb, a, b] = sums;
    let one = |x: f64, xx: f64| if xx > 0.0 { x / xx } else { 0.0 };
    let determinant = aa * bb - ab * ab;
    if determinant > 1e-9 * aa * bb {
        let (p, q) = ((a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant);
        if p >= 0.0 && q >= 0.0 {
            return [p, q];
        }
    }
    // On one of the borders: the one with the smaller error, n − x²/xx.
    if a * one(a, aa) >= b * one(b, bb) { [one(a, aa), 0.0] } else { [0.0, one(b, bb)] }
}
