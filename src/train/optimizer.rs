//! How gradients move parameters: SGD with momentum, and Adam, as PyTorch defines them (weight decay is
//! added to the gradient). Not here: learning rates over time ([`super::schedule`]).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::maps::Real;
use super::network::Network;

/// Which rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// v ← μ·v + g; w ← w − rate·v
    Sgd {
        /// μ
        momentum: f64,
    },
    /// Adam (arXiv 1412.6980) with β = (0.9, 0.999), ε = 1e-8.
    Adam,
}

/// What a rule remembers of every parameter, in the order in which they come.
#[derive(Debug)]
pub struct Optimizer<R> {
    rule: Rule,
    weight_decay: f64,
    /// Steps that were begun.
    step: u64,
    /// Of the parameter in turn.
    next: usize,
    /// Per parameter its momenta, one after the other.
    pub(super) momenta: Vec<Vec<R>>,
}

/// Elements per piece of work.
const PIECE: usize = 1 << 14;

impl<R: Real> Optimizer<R> {
    /// With no step made; or after `step` of them, with the momenta put in afterwards.
    pub fn new(rule: Rule, weight_decay: f64, step: u64) -> Self {
        Self { rule, weight_decay, step, next: 0, momenta: Vec::new() }
    }

    /// Momenta per element.
    pub fn per_element(rule: Rule) -> usize {
        match rule {
            Rule::Sgd { .. } => 1,
            Rule::Adam => 2,
        }
    }

    /// Makes room for the momenta of every parameter of the network, all 0.
    pub(super) fn reserve(&mut self, network: &mut Network<R>) {
        self.momenta.clear();
        let size = Self::per_element(self.rule);
        network.parameters(&mut |value, _| self.momenta.push(vec![R::zero(); size * value.len()]));
    }

    /// Begins a step: every parameter has to follow, in the same order each time.
    pub fn begin(&mut self) {
        (self.step, self.next) = (self.step + 1, 0);
    }

    /// Moves one parameter; `decay`: whether weight decay is for it.
    pub fn update(&mut self, value: &mut [R], gradient: &[R], rate: f64, decay: bool) {
        let (rule, step) = (self.rule, self.step);
        let len = value.len();
        if self.next == self.momenta.len() {
            self.momenta.push(vec![R::zero(); Self::per_element(rule) * len]);
        }
        let momenta = &mut self.momenta[self.next];
        self.next += 1;
        let decay = R::from_f64(if decay { self.weight_decay } else { 0.0 });
        let pieces = value.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
        match rule {
            Rule::Sgd { momentum } => {
                let (rate, momentum) = (R::from_f64(rate), R::from_f64(momentum));
                pieces.zip(momenta.par_chunks_mut(PIECE)).for_each(|((value, gradient), velocity)| {
                    for ((w, &g), v) in value.iter_mut().zip(gradient).zip(velocity) {
                        *v = momentum * *v + (g + decay * *w);
                        *w -= rate * *v;
                    }
                });
            }
            Rule::Adam => {
                const BETA: [f64; 2] = [0.9, 0.999];
                let [one, two] = BETA.map(|beta| 1.0 - beta.powf(step as f64));
                let (rate, root) = (R::from_f64(rate / one), R::from_f64(two.sqrt()));
                let [b1, b2] = BETA.map(R::from_f64);
                let [c1, c2] = BETA.map(|beta| R::from_f64(1.0 - beta));
                let eps = R::from_f64(1e-8);
                let (first, second) = momenta.split_at_mut(len);
                let momenta = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
                pieces.zip(momenta).for_each(|((value, gradient), (first, second))| {
                    for (((w, &g), m), v) in value.iter_mut().zip(gradient).zip(first).zip(second) {
                        let g = g + decay * *w;
                        *m = b1 * *m + c1 * g;
                        *v = b2 * *v + c2 * g * g;
                        *w -= rate * *m / ((*v).sqrt() / root + eps);
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two parameters over three steps, against the rules written out.
    #[test]
    fn steps_are_those_of_the_rules() {
        let gradient = |w: f64| 2.0 * w - 1.0;
        for rule in [Rule::Sgd { momentum: 0.9 }, Rule::Adam] {
            let mut optimizer = Optimizer::<f64>::new(rule, 0.01, 0);
            let (mut w, mut expected) = ([0.3, -2.0], [[0.3, 0.0, 0.0], [-2.0, 0.0, 0.0]]);
            for step in 1..=3 {
                let g = w.map(gradient);
                optimizer.begin();
                optimizer.update(&mut w, &g, 0.1, true);
                for [w, m, v] in &mut expected {
                    let g = gradient(*w) + 0.01 * *w;
                    match rule {
                        Rule::Sgd { .. } => {
                            *m = 0.9 * *m + g;
                            *w -= 0.1 * *m;
                        }
                        Rule::Adam => {
                            *m = 0.9 * *m + 0.1 * g;
                            *v = 0.999 * *v + 0.001 * g * g;
                            let (m, v) = (*m / (1.0 - 0.9f64.powi(step)), *v / (1.0 - 0.999f64.powi(step)));
                            *w -= 0.1 * m / (v.sqrt() + 1e-8);
                        }
                    }
                }
            }
            for (w, [expected, ..]) in w.iter().zip(expected) {
                assert!((w - expected).abs() < 1e-12, "{rule:?}: {w} against {expected}");
            }
        }
    }
}
