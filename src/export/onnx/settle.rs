//! What is known once every tensor has been planned: what became of weights that the model has twice, or once for several
//! tensors. Not here: which initializer is which tensor ([`super::find`], [`super::copies`]).

use super::find::WITH_NAMES;
use super::{Line, Planner, copies};
use crate::Tensor;
use crate::container::TensorEntry;
use crate::export::some;

impl<'a> Planner<'_, 'a> {
    /// Refuses what would give other outputs than its codes, and takes back refusals of what is there after all.
    pub fn settle(&mut self, exported: &[(&TensorEntry, Tensor<'a>)], lines: &mut [Line]) {
        self.copies.release();
        for (&initializer, &number) in &self.taken {
            let line = &mut lines[number];
            if line.becomes.is_ok()
                && let Some(again) = self.copies.again(initializer, &exported[number].1)
            {
                let dense = matches!(exported[number].1, Tensor::Dense(_));
                let or = if dense { "" } else { ", or keep the tensor dense when packing (--exclude)" };
                line.becomes = Err(format!(
                    "the model has the same floats, or a part of them, once more, as `{again}`, which would stay as they \
                     are and give other outputs; export the model with these weights, {WITH_NAMES}, so that they are there \
                     once{or}"
                ));
            }
        }
        for &(number, initializer) in &self.merged {
            let of = self.taken.get(&initializer).map(|&of| &exported[of].1);
            if let Some(other) = self.becomes_another(&exported[number].1, initializer, of) {
                lines[number].becomes = Err(other);
            }
        }
        // Tied weights that the container has under all their names. (Norms that are as they were at first are equal without
        // being one.)
        for &number in self.missing.iter().filter(|&&number| copies::is_distinct(&exported[number].1)) {
            let (entry, tensor) = &exported[number];
            let alike = || self.taken.values().filter(|&&of| exported[of].0.shape == entry.shape);
            let equal = alike().find(|&&of| copies::are_equal(&exported[of].1, tensor));
            let tied = || alike().find(|&&of| copies::are_tied(&exported[of].1, tensor));
            lines[number].becomes = match equal.or_else(tied) {
                Some(&of) if equal.is_some() => {
                    Ok(format!("nothing: the model has it as `{}`, which is equal", lines[of].tensor))
                }
                Some(&of) => Err(format!(
                    "the model has it as `{}`, which was packed of the same floats and becomes something else; pack both in \
                     the same way",
                    lines[of].tensor
                )),
                None => continue,
            };
        }
    }

    /// Why the initializer that the model takes for a tensor will not be what the tensor is, if so; `of` is the tensor that
    /// stands for it.
    fn becomes_another(&self, tensor: &Tensor<'a>, initializer: usize, of: Option<&Tensor<'a>>) -> Option<String> {
        let equal = match (of, tensor) {
            (Some(of), _) => copies::are_equal(of, tensor),
            (None, Tensor::Dense(dense)) => self.copies.holds(initializer, dense),
            (None, _) => false,
        };
        (!equal).then(|| {
            format!(
                "the model takes `{}` for it by way of Identity, which becomes something else; export the model with \
                 torch.onnx.export(…, dynamo=True, optimize=False), which does not merge weights, or pack both in the same \
                 way",
                self.model.initializers[initializer].name
            )
        })
    }

    /// A warning of floats that no tensor stands for, which may have been made of weights.
    pub fn stray(&self) -> Option<String> {
        let all: Vec<&str> = self.copies.matrices().map(|initializer| initializer.name).collect();
        (!all.is_empty()).then(|| {
            format!(
                "{}: no tensor stands for these floats of the model, they stay as they are; where the exporter made them of \
                 weights that become others here (multiples, sums), outputs are wrong: export the model {WITH_NAMES} if it was \
                 not",
                some(&all)
            )
        })
    }
}
