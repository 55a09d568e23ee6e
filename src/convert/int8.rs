//! One tensor on its way to codes of 8 bits: where the work may be cut, and the work on one piece. Not
//! here: how a scale is chosen ([`crate::int8`]), files and threads ([`super`]).

use std::ops::Range;

use super::bad_weights::{misfit, non_finite};
use super::job::{Done, Places, Run};
use super::tensor::{Output, PlaneBytes, push_scale};
use super::window::{Held, filters_held};
use super::{PIECE, in_order, steps};
use crate::Result;
use crate::error::WeightsProblem;
use crate::int8::{Fit8, encode};
use crate::select::Int8;
use crate::source::weights::Element;
use crate::source::{FilterView, TensorView};
use crate::vector::Isa;
use crate::vector::block::BLOCK;

/// A tensor and its treatment.
#[derive(Debug)]
pub(super) struct Int8Work<'a> {
    pub view: FilterView<'a>,
    pub treatment: Int8,
    /// The number of the first filter, where these are some of a tensor's.
    first: usize,
}

impl<'a> Int8Work<'a> {
    pub fn new(view: FilterView<'a>, treatment: Int8) -> Self {
        Self { view, treatment, first: 0 }
    }

    /// Bytes of codes and of scales.
    pub fn bytes(&self) -> (u64, u64) {
        let (filters, n) = (self.view.filters() as u64, self.view.filter_len() as u64);
        (filters * n, filters * self.treatment.scale_dtype.size() as u64)
    }

    /// Whether all the work is done by [`Int8Work::by_windows`].
    pub fn is_scattered(&self) -> bool {
        filters_held(&self.view).is_some()
    }

    /// All the work, on as many filters at a time as are held in memory; nothing where they are not scattered.
    pub fn by_windows(&self, tensor: TensorView<'_>, places: Places, run: Run<'_>) -> Result<Done> {
        let (mut held, mut done) = (Held::default(), Done::of_planes(1));
        let Some(window) = filters_held(&self.view) else { return Ok(done) };
        for filters in steps(0..self.view.filters(), window) {
            let view = held.read(self.view, filters.clone(), run.isa);
            let part = Int8Work { view, first: filters.start, ..*self };
            let job = |range: &Range<usize>| part.piece(tensor, range.clone(), places, run);
            in_order(part.pieces().into_iter(), job, |_, next| done.add(&next))?;
        }
        Ok(done)
    }

    /// Where the work may be cut, in order: whole filters, as weights.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        let (filters, n) = (self.view.filters(), self.view.filter_len());
        steps(0..filters * n, (PIECE / n).max(1) * n).collect()
    }

    pub fn piece(&self, tensor: TensorView<'_>, range: Range<usize>, places: Places, run: Run<'_>) -> Result<Done> {
        run.output(tensor, range.len(), places, || {
            let (output, _) = match self.view.is_f64() {
                true => self.filters::<f64>(range.clone(), run.isa)?,
                false => self.filters::<f32>(range.clone(), run.isa)?,
            };
            Ok(output)
        })
    }

    /// What whole filters, the weights `range`, become, and their scales.
    pub fn filters<W: Element>(&self, range: Range<usize>, isa: Isa) -> Result<(Output, Vec<f32>), WeightsProblem> {
        let n = self.view.filter_len();
        let at = self.first + range.start / n;
        let mut output = Output {
            codes_at: (at * n) as u64,
            scales_at: (at * self.treatment.scale_dtype.size()) as u64,
            planes: vec![PlaneBytes { codes: Vec::with_capacity(range.len()), scales: Vec::new() }],
            ..Output::default()
        };
        let (mut all, mut scratch) = (Vec::new(), Vec::new());
        // A long filter is decoded on every pass, block by block; of others all of the piece at once.
        let held = if n <= PIECE { self.view.read::<W>(range.clone(), isa, &mut scratch) } else { &[] };
        for start in range.clone().step_by(n) {
            let filter = start..start + n;
            let each = |visit: &mut dyn FnMut(&[W])| {
                if let Some(weights) = held.get(start - range.start..start - range.start + n) {
                    return visit(weights);
                }
                let mut scratch = Vec::new();
                steps(filter.clone(), BLOCK).for_each(|block| visit(self.view.read(block, isa, &mut scratch)));
            };
            let fit = self.fit(filter.clone(), isa, each)?;
            let PlaneBytes { codes, scales } = &mut output.planes[0];
            each(&mut |weights| {
                let from = codes.len();
                codes.resize(from + weights.len(), 0);
                encode(isa, weights, fit.scale, &mut codes[from..]);
            });
            push_scale(scales, self.treatment.scale_dtype, fit.scale);
            all.push(fit.scale);
            output.tally.add_unit(&[fit.scale], None, fit.squared_error, fit.squared_norm);
        }
        Ok((output, all))
    }

    /// The scale of the filter that has the weights `range`.
    fn fit<W: Element>(
        &self,
        range: Range<usize>,
        isa: Isa,
        each: impl Fn(&mut dyn FnMut(&[W])),
    ) -> Result<Fit8, WeightsProblem> {
        let fit = Fit8::new(isa, self.treatment.scale_dtype, each);
        let filter = self.first + range.start / self.view.filter_len();
        match fit.exact_scale {
            scale if !scale.is_finite() => Err(non_finite(&self.view, self.first, range, isa)),
            scale if !fit.scale_fits() => Err(misfit(filter, scale, self.treatment.scale_dtype)),
            _ => Ok(fit),
        }
    }
}
