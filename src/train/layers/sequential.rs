//! Layers one after the other, with the maps between them. Not here: branches ([`super::residual`]).

use super::{Layer, Pass, Tensor};
use crate::train::maps::{Maps, Real};

/// Layers in their order.
#[derive(Default)]
pub struct Sequential<R: Real> {
    steps: Vec<Step<R>>,
    /// The derivatives by what stands before and behind the layer in turn.
    gradients: [Maps<R>; 2],
}

struct Step<R: Real> {
    layer: Box<dyn Layer<R>>,
    /// Channels, height and width of what it gives.
    output: [usize; 3],
    /// What it gave last.
    y: Maps<R>,
}

impl<R: Real> Sequential<R> {
    /// Appends a layer that gives maps of that size.
    pub fn push(&mut self, layer: impl Layer<R> + 'static, output: [usize; 3]) {
        self.steps.push(Step { layer: Box::new(layer), output, y: Maps::default() });
    }

    /// What the last layer gives; `x` where there is none.
    pub fn forward<'a>(&'a mut self, mut x: &'a Maps<R>, pass: Pass) -> &'a Maps<R> {
        for Step { layer, output, y } in &mut self.steps {
            y.resize(x.images(), *output);
            layer.forward(x, y, pass);
            x = y;
        }
        x
    }

    /// The first layer that last gave something that is not a finite number, innermost: its kind, and its first
    /// tensor or else its place, counted from 1.
    pub fn first_broken(&mut self) -> Option<String> {
        let broken = |step: &Step<R>| step.y.values.iter().any(|y| !y.to_f64().is_finite());
        let at = self.steps.iter().position(broken)?;
        let layer = &mut self.steps[at].layer;
        layer.first_broken().or_else(|| {
            let mut first = None;
            layer.visit(&mut |tensor| {
                first.get_or_insert_with(|| tensor.name().to_owned());
            });
            let kind = layer.kind();
            Some(first.map_or_else(|| format!("{kind}, layer {}", at + 1), |name| format!("{kind} `{name}`")))
        })
    }

    /// After [`Sequential::forward`] with the same `x`: from the derivatives by what the last layer gave to
    /// those by `x`, if they are asked for.
    pub fn backward(&mut self, x: &Maps<R>, dy: &Maps<R>, mut dx: Option<&mut Maps<R>>) {
        if self.steps.is_empty() {
            if let Some(dx) = dx {
                dx.values.copy_from_slice(&dy.values);
            }
            return;
        }
        let [mut behind, mut before] = [0, 1].map(|i| std::mem::take(&mut self.gradients[i]));
        let last = self.steps.len() - 1;
        for i in (0..=last).rev() {
            let (earlier, rest) = self.steps.split_at_mut(i);
            let Step { layer, y, .. } = &mut rest[0];
            let dy = if i == last { dy } else { &behind };
            match earlier.last() {
                Some(Step { y: x, .. }) => {
                    before.resize(x.images(), x.image());
                    layer.backward(x, y, dy, Some(&mut before));
                }
                None => layer.backward(x, y, dy, dx.take()),
            }
            std::mem::swap(&mut before, &mut behind);
        }
        self.gradients = [behind, before];
    }

    /// Shows everything that is learned or remembered, in the order of the layers.
    pub fn visit(&mut self, visit: &mut dyn FnMut(Tensor<'_, R>)) {
        self.steps.iter_mut().for_each(|step| step.layer.visit(visit));
    }
}
