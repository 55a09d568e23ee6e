//! Names and shapes → a plan: which tensors become ternary, along which axis, how, and why the
//! rest does not. Not here: any weight; a plan is made without reading one.

mod decide;
mod decision;
mod layers;
mod order;
mod rules_file;
mod scales;
mod settings;
mod trained;

use std::borrow::Cow;

use self::decide::{Pattern, checked_treatment, decide, is_layer, matching, moved, segments};
pub use self::decision::{BUDGET, Decision, Int8, MOVED, Moved, Treatment};
pub(crate) use self::decision::{became, became_int8};
use self::scales::Quantized;
pub use self::settings::{Keep, Override, Rules, Settings};
pub use self::trained::{TRAINED_KEY, trained};
pub(crate) use self::trained::{found_again, found_again_as_int8, stays_dense, trained_metadata};
use crate::source::Checkpoint;
use crate::ternarize::AUTO;
use crate::{Error, Result};

/// A tensor's decision and the reason for it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The tensor's name.
    pub name: String,
    /// What is to become of it.
    pub decision: Decision,
    /// Why, in words for a report.
    pub reason: Cow<'static, str>,
    /// Whether its planes or its granularity were asked for by its name, or it was trained so: no budget changes them.
    pub fixed: bool,
}

/// What is to become of every tensor of a checkpoint, in its order. Edit it freely before running it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One entry per tensor of the checkpoint, in the same order.
    pub tensors: Vec<Planned>,
    /// What deserves a second look.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Decides for every tensor.
    ///
    /// # Errors
    /// A pattern or setting that is not valid, or asks for what a tensor cannot be.
    pub fn new(checkpoint: &Checkpoint, rules: &Rules) -> Result<Self> {
        let include = Pattern::all(&rules.include)?;
        let exclude = Pattern::all(&rules.exclude)?;
        let overrides =
            rules.overrides.iter().map(|o| Ok((Pattern::new(&o.pattern)?, &o.settings))).collect::<Result<Vec<_>>>()?;
        rules.settings.treatment()?;
        let trained = trained(checkpoint)?;
        let mut otherwise = Vec::new();
        let mut plan = Self { tensors: Vec::with_capacity(checkpoint.len()), warnings: Vec::new() };
        let (mut overruled, mut last) = (None, None);
        // Weight layers, and whether they stay what they are: a `keep` said so, or they are ternary already.
        let mut layers = Vec::new();
        let (quantized, mut scales) = (Quantized::new(checkpoint), Vec::new());
        for (i, tensor) in checkpoint.tensors().enumerate() {
            let hits = overrides.iter().filter(|(pattern, _)| pattern.matcher.is_match(tensor.name));
            let mut settings = rules.settings.clone();
            let (mut forced, mut fixed) = (None, false);
            for (pattern, its) in hits {
                fixed |= its.planes.is_some() || its.granularity.is_some();
                settings = (*its).clone().or(&settings);
                forced = its.keep.map(|_| pattern.text.as_str()).or(forced);
            }
            if let Some(ternary) = checkpoint.ternary(i) {
                layers.push((i, true));
                let decision = Decision::Moved(moved(tensor, ternary.planes(), &settings, &exclude)?);
                let (name, reason) =
                    (tensor.name.to_owned(), format!("ternary in the checkpoint, {:?}", ternary.shape).into());
                let asked = match &settings {
                    Settings { method: Some(method), .. } if method != AUTO => Some(method.as_str()),
                    Settings { granularity: Some(_), .. } => Some("granularity"),
                    Settings { axis: Some(axis), .. } if *axis != 0 => Some("axis"),
                    _ => None,
                };
                overruled = overruled.or(asked.map(|asked| format!(
                    "`{name}` and others are ternary in the checkpoint: their codes are moved, `{asked}` does not touch them"
                )));
                plan.tensors.push(Planned { name, decision, reason, fixed: true });
                continue;
            }
            let (before, says_method) = (trained.get(tensor.name), settings.method.is_some());
            if before.is_some_and(|before| settings.is_not_as(before)) {
                otherwise.push(tensor.name);
            }
            if let (Some(before), false) = (before, says_method) {
                settings = Settings { keep: settings.keep, ..settings.or(before) };
                fixed = true;
            }
            let before = before.filter(|_| !says_method).and_then(|before| before.keep);
            let (stays, are_scales) = quantized.reason(tensor).unzip();
            if are_scales == Some(true) {
                scales.push(tensor.name);
            }
            let stays = stays.or_else(|| checkpoint.is_bias(tensor.name).then_some("bias".into()));
            let is_layer = is_layer(tensor) && stays.is_none();
            let (keep, reason) = decide(tensor, &settings, (forced, before), stays, &include, &exclude);
            let decision = match keep {
                Keep::Dense => {
                    // What a pattern of many does not fit is nothing to speak of.
                    let forced = forced.filter(|_| settings.keep != Some(Keep::Dense));
                    let by_name = |pattern: &str| pattern == tensor.name;
                    if forced.is_some_and(by_name) || rules.include.iter().any(|pattern| by_name(pattern)) {
                        plan.warnings
                            .push(format!("`{}` was asked for by name, but stays dense: {reason}", tensor.name));
                    }
                    Decision::Dense
                }
                Keep::Ternary => Decision::Ternary(checked_treatment(checkpoint, tensor, &settings, &mut last)?),
                Keep::Int8 => {
                    let Treatment { axis, scale_dtype, .. } =
                        checked_treatment(checkpoint, tensor, &settings, &mut last)?;
                    Decision::Int8(Int8 { axis, scale_dtype })
                }
            };
            if !matches!(decision, Decision::Dense) || is_layer {
                layers.push((i, forced.is_some()));
            }
            plan.tensors.push(Planned { name: tensor.name.to_owned(), decision, reason, fixed });
        }
        plan.warnings.extend(overruled);
        if let Some(first) = otherwise.first() {
            let others = otherwise.len() - 1;
            plan.warnings.push(format!(
                "`{first}` and {others} others were trained in another way than is asked for: what is packed is not what \
                 was trained"
            ));
        }
        if let Some(first) = scales.first() {
            let others = if scales.len() > 1 { format!(" and {} others", scales.len() - 1) } else { String::new() };
            plan.warnings.push(format!(
                "`{first}`{others} are scales of weights that another program has quantized: unless asked for they stay dense, integers stay \
                 integers, and 8-bit floats become ternary without their scales; give the floats that the model was made from"
            ));
        }
        plan.warn_of_unused(checkpoint, include.iter().chain(&exclude).chain(overrides.iter().map(|o| &o.0)));
        plan.warn_of_transposed(checkpoint);
        if rules.keep_first_last {
            plan.keep_first_last(layers);
        }
        Ok(plan)
    }

    /// How many tensors are to become ternary.
    pub fn ternary_count(&self) -> usize {
        self.tensors.iter().filter(|t| matches!(t.decision, Decision::Ternary(_) | Decision::Moved(_))).count()
    }

    /// Whether it can be run on that checkpoint; running it asks as well. What weights forbid is not known before.
    ///
    /// # Errors
    /// Tensors that are not those of the checkpoint, in its order, or are to become what they cannot be: ternary along an axis that they do not
    /// have, or of a type without fractions, in groups of 0, in planes that are not 1 to 4.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        if self.tensors.len() != checkpoint.len() {
            return Err(Error::Request("the plan was made for another checkpoint".to_owned()));
        }
        self.tensors.iter().enumerate().try_for_each(|(i, planned)| {
            let input = checkpoint.input(i);
            if planned.name != input.tensor.name {
                return Err(Error::Request(format!(
                    "the plan has `{}` in the place of tensor `{}`; keep its tensors in the order of the checkpoint, or make a plan for \
                     this one",
                    planned.name, input.tensor.name
                )));
            }
            planned.decision.filters(input).map(drop)
        })
    }

    fn warn_of_unused<'p>(&mut self, checkpoint: &Checkpoint, patterns: impl Iterator<Item = &'p Pattern>) {
        for pattern in patterns {
            if !checkpoint.tensors().any(|tensor| pattern.matcher.is_match(tensor.name)) {
                self.warnings.push(format!("pattern `{}` matches no tensor", pattern.text));
            }
        }
    }

    /// GPT-2's Conv1D stores its weight as [inputs, outputs]; the name alone does not prove it.
    fn warn_of_transposed(&mut self, checkpoint: &Checkpoint) {
        const CONV1D: [&str; 3] = ["c_attn", "c_proj", "c_fc"];
        let suspects = self.tensors.iter().zip(checkpoint.tensors()).filter(|(planned, tensor)| {
            matches!(&planned.decision, Decision::Ternary(treatment) if treatment.axis == 0)
                && tensor.shape.len() == 2
                && segments(tensor.name).any(|segment| CONV1D.contains(&segment.as_str()))
        });
        if let Some((planned, _)) = suspects.into_iter().next() {
            self.warnings.push(format!(
                "`{}` looks like a Conv1D weight of shape [inputs, outputs]; if it is, add --set '*.c_*.weight' axis=1",
                planned.name
            ));
        }
    }

    /// The order of layers is not in a checkpoint: the first is the first by name that is no head
    /// ([`order::of_layers`]), the last is the last head, or else the last by name.
    /// What was set by a `keep`, or is dense for another reason, stays as it is.
    fn keep_first_last(&mut self, mut layers: Vec<(usize, bool)>) {
        layers.retain(|&(i, _)| !order::is_auxiliary(&self.tensors[i].name));
        let skip = order::common(layers.iter().map(|&(i, _)| &*self.tensors[i].name));
        let name = |i: usize| &self.tensors[i].name[skip..];
        layers.sort_by(|&(a, _), &(b, _)| order::of_layers(name(a), name(b)));
        if let [(first, _), .., (last, _)] = layers[..] {
            let [first, last] = [first, last].map(|i| &self.tensors[i].name);
            self.warnings.push(format!(
                "the first layer is taken to be `{first}`, the last `{last}`, by their names; where that is wrong, name the layers \
                 with --exclude instead"
            ));
        }
        for (layer, end) in [(layers.first(), "first"), (layers.last(), "last")] {
            let Some(&(i, stays)) = layer else { continue };
            let Planned { name, decision, reason, .. } = &mut self.tensors[i];
            match decision {
                Decision::Moved(_) => self.warnings.push(format!(
                    "`{name}`, the {end} layer by name, is ternary in the checkpoint: no floats of it could stay dense"
                )),
                Decision::Ternary(_) | Decision::Int8(_) if !stays => {
                    *decision = Decision::Dense;
                    *reason = format!("{end} layer, by name").into();
                }
                _ => {}
            }
        }
    }
}
