//! What is multiplied: float weights that learn, and what a method makes of them for the forward pass.
//! Not here: the methods ([`crate::train::methods`]).

use ndarray::Array2;

use super::Pass;
use crate::train::maps::Real;
use crate::train::methods::Method;

/// The weights of a convolution or a linear layer: a row per filter.
#[derive(Debug)]
pub struct Weights<R: Real> {
    /// The tensor's name.
    pub name: String,
    /// The tensor's shape, filters first.
    pub shape: Vec<usize>,
    /// The float weights.
    pub value: Array2<R>,
    /// The loss's derivatives by them, after [`Weights::learn`]; before, by what was used.
    pub gradient: Array2<R>,
    /// What the method made of the float weights; `None` where they are used as they are.
    used: Option<Array2<R>>,
    /// How they become ternary; `None` where they do not.
    pub method: Option<Box<dyn Method<R>>>,
}

impl<R: Real> Weights<R> {
    /// Weights of that shape, all 0.
    pub fn new(name: &str, shape: &[usize], method: Option<Box<dyn Method<R>>>) -> Self {
        let matrix = (shape[0], shape[1..].iter().product());
        Self {
            name: name.to_owned(),
            shape: shape.to_vec(),
            value: Array2::zeros(matrix),
            gradient: Array2::zeros(matrix),
            used: method.is_some().then(|| Array2::zeros(matrix)),
            method,
        }
    }

    /// What the forward pass multiplies by.
    pub fn used(&self) -> &Array2<R> {
        self.used.as_ref().unwrap_or(&self.value)
    }

    /// The gradient, and what was used while it came about.
    pub fn gradient_and_used(&mut self) -> (&mut Array2<R>, &Array2<R>) {
        (&mut self.gradient, self.used.as_ref().unwrap_or(&self.value))
    }

    /// Makes what is used of the float weights: after every change of them.
    pub fn ternarize(&mut self, pass: Pass) {
        if let (Some(method), Some(used)) = (&mut self.method, &mut self.used) {
            method.ternarize(self.value.view(), used.view_mut(), pass);
        }
    }

    /// From the loss's derivatives by what was used to those by the float weights: after every
    /// backward pass.
    pub fn learn(&mut self) {
        if let (Some(method), Some(used)) = (&mut self.method, &self.used) {
            method.backward(self.value.view(), used.view(), self.gradient.view_mut());
        }
    }
}

/// One learned number per filter.
#[derive(Debug)]
pub struct Bias<R> {
    /// The tensor's name.
    pub name: String,
    /// Its elements.
    pub value: Vec<R>,
    /// The loss's derivatives by them.
    pub gradient: Vec<R>,
}

impl<R: Real> Bias<R> {
    /// So many, all 0.
    pub fn new(name: &str, length: usize) -> Self {
        Self { name: name.to_owned(), value: vec![R::zero(); length], gradient: vec![R::zero(); length] }
    }
}
