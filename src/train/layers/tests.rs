//! Every layer's backward pass against finite differences in `f64`: the loss is Σ y·c with fixed c.

use super::*;
use crate::kernel;
use crate::train::random::{Purpose, generator, symmetric};

fn random(seed: u64, len: usize) -> Vec<f64> {
    let mut generator = generator(seed, Purpose::Weights(0));
    (0..len).map(|_| symmetric(&mut generator)).collect()
}

fn maps(seed: u64, shape: [usize; 4]) -> Maps<f64> {
    Maps { values: random(seed, shape.iter().product()), shape }
}

/// What can be changed: the input's values, and every learned parameter's.
fn parameters(layer: &mut dyn Layer<f64>) -> Vec<(String, Vec<f64>, Vec<f64>)> {
    let mut found = Vec::new();
    layer.visit(&mut |tensor| match tensor {
        Tensor::Weights(w) => {
            found.push((w.name.clone(), w.value.iter().copied().collect(), w.gradient.iter().copied().collect()));
        }
        Tensor::Vector { name, value, gradient } => found.push((name.to_owned(), value.to_vec(), gradient.to_vec())),
        Tensor::Statistics { .. } => {}
    });
    found
}

fn change(layer: &mut dyn Layer<f64>, which: &str, at: usize, by: f64) {
    layer.visit(&mut |tensor| match tensor {
        Tensor::Weights(w) if w.name == which => *w.value.iter_mut().nth(at).unwrap() += by,
        Tensor::Vector { name, value, .. } if name == which => value[at] += by,
        _ => {}
    });
}

fn fill(layer: &mut dyn Layer<f64>) {
    let mut seed = 100;
    layer.visit(&mut |tensor| {
        seed += 1;
        match tensor {
            Tensor::Weights(w) => {
                let values = random(seed, w.value.len());
                w.value.iter_mut().zip(values).for_each(|(w, v)| *w = v);
            }
            Tensor::Vector { value, .. } => value.copy_from_slice(&random(seed, value.len())),
            Tensor::Statistics { .. } => {}
        }
    });
}

fn check(layer: &mut dyn Layer<f64>, input: [usize; 4], output: [usize; 3]) {
    fill(layer);
    let mut x = maps(1, input);
    let c = maps(2, [input[0], output[0], output[1], output[2]]);
    let mut y = Maps::default();
    let mut loss = |layer: &mut dyn Layer<f64>, x: &Maps<f64>| {
        y.resize(x.images(), output);
        y.values.fill(f64::NAN);
        layer.forward(x, &mut y, Pass::Train);
        (y.values.iter().zip(&c.values).map(|(y, c)| y * c).sum::<f64>(), y.clone())
    };
    let (_, given) = loss(layer, &x);
    let mut dx = x.clone();
    dx.values.fill(f64::NAN);
    layer.backward(&x, &given, &c, Some(&mut dx));
    let found = parameters(layer);
    let step = 1e-5;
    let close = |what: &str, i: usize, gradient: f64, difference: f64| {
        assert!(
            (gradient - difference).abs() <= 1e-6 * (1.0 + difference.abs()),
            "{what}[{i}]: backward {gradient}, difference {difference}"
        );
    };
    for i in 0..x.values.len() {
        let middle = x.values[i];
        let ends = [middle + step, middle - step].map(|value| {
            x.values[i] = value;
            loss(layer, &x).0
        });
        x.values[i] = middle;
        close("x", i, dx.values[i], (ends[0] - ends[1]) / (2.0 * step));
    }
    for (name, values, gradient) in found {
        assert_eq!(values.len(), gradient.len());
        for (i, gradient) in gradient.into_iter().enumerate() {
            let ends = [step, -step].map(|by| {
                change(layer, &name, i, by);
                let end = loss(layer, &x).0;
                change(layer, &name, i, -by);
                end
            });
            close(&name, i, gradient, (ends[0] - ends[1]) / (2.0 * step));
        }
    }
}

fn conv(filters: usize, per_group: usize, geometry: kernel::Conv2d) -> Conv2d<f64> {
    let shape = [filters, per_group, geometry.kernel[0], geometry.kernel[1]];
    Conv2d::new(Weights::new("w", &shape, None), Some(Bias::new("b", filters)), geometry)
}

#[test]
fn convolutions() {
    let plain = kernel::Conv2d::new([3, 2]);
    check(&mut conv(4, 3, plain), [2, 3, 5, 4], [4, 3, 3]);
    let all = kernel::Conv2d { stride: [2, 3], padding: [2, 1], dilation: [2, 1], groups: 2, ..plain };
    let [height, width] = all.output([7, 6]).unwrap();
    check(&mut conv(4, 2, all), [3, 4, 7, 6], [4, height, width]);
    // More images than pieces, and a filter that sees more padding than image.
    let wide = kernel::Conv2d { padding: [3, 3], ..kernel::Conv2d::new([3, 3]) };
    check(&mut conv(2, 1, wide), [19, 1, 2, 2], [2, 6, 6]);
}

#[test]
fn linear_layers() {
    for (images, inputs, outputs) in [(1, 1, 1), (5, 7, 3), (3, 40, 37)] {
        let weights = Weights::new("w", &[outputs, inputs], None);
        let mut layer = Linear { weights, bias: Some(Bias::new("b", outputs)) };
        check(&mut layer, [images, inputs, 1, 1], [outputs, 1, 1]);
    }
}

#[test]
fn batch_norm() {
    let names = ["w", "b", "m", "v"];
    check(&mut BatchNorm::new(names, 3, 1e-5), [4, 3, 2, 5], [3, 2, 5]);
    check(&mut BatchNorm::new(names, 2, 1e-3), [9, 2, 1, 1], [2, 1, 1]);
}

#[test]
fn pools_relu_and_flatten() {
    let window = kernel::Conv2d { stride: [2, 2], padding: [1, 1], ..kernel::Conv2d::new([3, 3]) };
    check(&mut MaxPool::new(window), [2, 3, 6, 5], [3, 3, 3]);
    check(&mut AvgPool::new(window), [2, 3, 6, 5], [3, 3, 3]);
    check(&mut AvgPool::global(), [2, 3, 4, 5], [3, 1, 1]);
    check(&mut Relu, [2, 3, 4, 5], [3, 4, 5]);
    check(&mut Flatten, [2, 3, 4, 5], [60, 1, 1]);
}

#[test]
fn residual_blocks() {
    let same = kernel::Conv2d { padding: [1, 1], ..kernel::Conv2d::new([3, 3]) };
    let mut body = Sequential::default();
    body.push(Conv2d::new(Weights::new("a", &[2, 2, 3, 3], None), None, same), [2, 4, 3]);
    body.push(Relu, [2, 4, 3]);
    body.push(Conv2d::new(Weights::new("b", &[2, 2, 3, 3], None), None, same), [2, 4, 3]);
    check(&mut Residual::new(body, Sequential::default()), [3, 2, 4, 3], [2, 4, 3]);
    let mut body = Sequential::default();
    body.push(conv(3, 2, kernel::Conv2d { stride: [2, 1], ..same }), [3, 2, 3]);
    let mut shortcut = Sequential::default();
    let point = kernel::Conv2d { stride: [2, 1], ..kernel::Conv2d::new([1, 1]) };
    shortcut.push(Conv2d::new(Weights::new("s", &[3, 2, 1, 1], None), None, point), [3, 2, 3]);
    check(&mut Residual::new(body, shortcut), [3, 2, 4, 3], [3, 2, 3]);
}

/// What is used at evaluation are the running statistics, which training moved by a tenth.
#[test]
fn batch_norm_remembers() {
    let mut norm = BatchNorm::new(["w", "b", "m", "v"], 1, 0.0);
    let x = Maps { values: vec![1.0, 2.0, 3.0, 6.0], shape: [4, 1, 1, 1] };
    let mut y = x.clone();
    norm.forward(&x, &mut y, Pass::Train);
    // Mean 3, biased variance 3.5, unbiased 14/3.
    let scaled = x.values.iter().map(|x| (x - 3.0) / 3.5f64.sqrt());
    assert!(y.values.iter().zip(scaled).all(|(y, expected)| (y - expected).abs() < 1e-12));
    let (mean, variance) = (0.1 * 3.0, 0.9 + 0.1 * 14.0 / 3.0);
    norm.forward(&x, &mut y, Pass::Evaluate);
    let scaled = x.values.iter().map(|x| (x - mean) / f64::sqrt(variance));
    assert!(y.values.iter().zip(scaled).all(|(y, expected)| (y - expected).abs() < 1e-12));
}
