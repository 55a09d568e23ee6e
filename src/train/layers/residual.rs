//! Residual block (arXiv 1512.03385): y = body(x) + shortcut(x). A shortcut without layers is x itself.

use super::{Layer, Pass, Sequential, Tensor};
use crate::train::maps::{Maps, Real};

/// Two branches that are added.
#[derive(Default)]
pub struct Residual<R: Real> {
    pub body: Sequential<R>,
    pub shortcut: Sequential<R>,
    /// The derivatives by x that come through the shortcut.
    through: Maps<R>,
}

impl<R: Real> Residual<R> {
    /// Of these two.
    pub fn new(body: Sequential<R>, shortcut: Sequential<R>) -> Self {
        Self { body, shortcut, through: Maps::default() }
    }
}

impl<R: Real> Layer<R> for Residual<R> {
    fn forward(&mut self, x: &Maps<R>, y: &mut Maps<R>, pass: Pass) {
        let (body, shortcut) = (self.body.forward(x, pass), self.shortcut.forward(x, pass));
        let branches = body.values.iter().zip(&shortcut.values);
        y.values.iter_mut().zip(branches).for_each(|(y, (&a, &b))| *y = a + b);
    }

    fn backward(&mut self, x: &Maps<R>, _y: &Maps<R>, dy: &Maps<R>, dx: Option<&mut Maps<R>>) {
        let Some(dx) = dx else {
            self.body.backward(x, dy, None);
            return self.shortcut.backward(x, dy, None);
        };
        self.body.backward(x, dy, Some(dx));
        self.through.resize(x.images(), x.image());
        self.shortcut.backward(x, dy, Some(&mut self.through));
        dx.values.iter_mut().zip(&self.through.values).for_each(|(dx, &through)| *dx += through);
    }

    fn kind(&self) -> &'static str {
        "residual"
    }

    fn first_broken(&mut self) -> Option<String> {
        self.body.first_broken().or_else(|| self.shortcut.first_broken())
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Tensor<'_, R>)) {
        self.body.visit(visit);
        self.shortcut.visit(visit);
    }
}
