//! A tensor of which the inputs are known: some filters at a time are rounded together
//! ([`crate::calibration`]), on all threads. Not here: the arithmetic, or tensors without statistics.

use std::ops::Range;

use super::job::{Done, Places, Run};
use super::tensor::{Output, PlaneBytes, TernaryWork, push_scale};
use super::unit::AsUnit;
use super::{Options, in_order};
use crate::Result;
use crate::calibration::solve::{Grid, Solved, Solver};
use crate::calibration::{Calibration, Moments};
use crate::container::{CalibrationEntry, Granularity};
use crate::error::{CalibrationProblem, WeightsProblem};
use crate::source::TensorView;
use crate::ternarize::planes::refine_weighted;
use crate::vector::Isa;

/// Filters that are rounded together.
const FILTERS: usize = 256;

/// The inputs of one tensor, and how they are used.
#[derive(Debug, Clone)]
pub(super) struct Calibrated<'a> {
    pub moments: Moments<'a>,
    pub calibration: &'a Calibration,
}

/// What the inputs of one group of filters say.
enum Inputs {
    Full(Solver),
    Diagonal(Vec<f64>),
}

/// Whether the run was given statistics.
pub(super) fn is_asked(options: &Options<'_>) -> bool {
    options.calibration.is_some()
}

/// Notices statistics that were written to since they were opened.
pub(super) fn check_unchanged(options: &Options<'_>) -> Result<()> {
    options.calibration.map_or(Ok(()), Calibration::check_unchanged)
}

/// What is known of the inputs of a tensor, if that can be used.
///
/// # Errors
/// Statistics that do not fit the tensor.
pub(super) fn of<'a>(
    options: &Options<'a>,
    tensor: TensorView<'_>,
    work: &TernaryWork<'_>,
) -> Result<Option<Calibrated<'a>>> {
    let (Some(calibration), false) = (options.calibration, work.treatment.granularity == Granularity::Tensor) else {
        return Ok(None);
    };
    let moments = calibration.moments(tensor.name, work.view.filters(), work.view.filter_len())?;
    Ok(moments.map(|moments| Calibrated { moments, calibration }))
}

impl Calibrated<'_> {
    /// All the work on a tensor.
    pub fn run(
        &self,
        tensor: TensorView<'_>,
        work: &TernaryWork<'_>,
        places: Places,
        run: Run<'_>,
    ) -> Result<Vec<Done>> {
        let filters = work.view.filters() / self.moments.groups;
        let mut done = Vec::new();
        for group in 0..self.moments.groups {
            let inputs = self.inputs(group, work.view.filter_len(), run.isa)?;
            let pieces: Vec<Range<usize>> = super::steps(group * filters..(group + 1) * filters, FILTERS).collect();
            done.extend(in_order(&pieces, |piece| {
                run.output(tensor, piece.len() * work.view.filter_len(), places, || {
                    if work.view.is_f64() {
                        inputs.round::<f64>(work, piece.clone(), run.isa)
                    } else {
                        inputs.round::<f32>(work, piece.clone(), run.isa)
                    }
                })
            })?);
        }
        Ok(done)
    }

    fn inputs(&self, group: usize, n: usize, isa: Isa) -> Result<Inputs> {
        let Self { moments, calibration } = self;
        let values = moments.read(group, isa)?;
        if !moments.full {
            return Ok(Inputs::Diagonal(values));
        }
        let diagonal: Vec<f64> = values.iter().step_by(n + 1).copied().collect();
        if diagonal.iter().all(|&energy| energy == 0.0) {
            // Nothing is known of this group: its filters become what they would be without.
            return Ok(Inputs::Diagonal(diagonal));
        }
        let damping = calibration.damping();
        let solver = Solver::new(values, n, damping, calibration.act_order());
        solver.map(Inputs::Full).ok_or_else(|| moments.refused(CalibrationProblem::Indefinite { damping }))
    }
}

impl Inputs {
    fn round<W: AsUnit>(
        &self,
        work: &TernaryWork<'_>,
        filters: Range<usize>,
        isa: Isa,
    ) -> Result<Output, WeightsProblem> {
        let (n, treatment) = (work.view.filter_len(), work.treatment);
        let range = filters.start * n..filters.end * n;
        let mut scratch = Vec::new();
        let weights: &[W] = work.view.read(range.clone(), isa, &mut scratch);
        let w: Vec<f64> = weights.iter().map(|w| w.to_f64()).collect();
        let diagonal = |j: usize| match self {
            Self::Full(solver) => solver.diagonal(j),
            Self::Diagonal(values) => values[j],
        };
        let importance: Vec<f64> = (0..n).map(diagonal).collect();
        let (unit, binary) = (work.unit_len(), treatment.method.binary());
        let (mut scales, mut levels) = (Vec::new(), Vec::new());
        for (row, filter) in w.chunks_exact(n).enumerate() {
            for (g, group) in filter.chunks(unit).enumerate() {
                let start = row * n + g * unit;
                let fit = work.fit_unit(&weights[start..start + group.len()], range.start + start, isa)?;
                let importance = &importance[g * unit..][..group.len()];
                let start = fit.scales().to_vec();
                let (refined, its_levels) = refine_weighted(group, importance, start, treatment.scale_dtype, binary);
                scales.extend(refined);
                levels.push(its_levels);
            }
        }
        let grid = Grid { binary, planes: treatment.planes, group: unit, dtype: treatment.scale_dtype };
        let solved = match self {
            Self::Full(solver) => solver.solve(&w, scales, grid),
            Self::Diagonal(importance) => Solved::by_diagonal(&w, importance, scales, &levels, grid),
        };
        Ok(work.output(filters, &solved, isa))
    }
}

impl TernaryWork<'_> {
    /// Packs what some filters became.
    fn output(&self, filters: Range<usize>, solved: &Solved, isa: Isa) -> Output {
        let (n, treatment) = (self.view.filter_len(), self.treatment);
        let (encoding, planes) = (treatment.encoding, treatment.planes);
        let units = n.div_ceil(self.unit_len());
        let mut output = Output {
            codes_at: (filters.start * encoding.bytes(n)) as u64,
            scales_at: (filters.start * units * treatment.scale_dtype.size()) as u64,
            planes: vec![PlaneBytes::default(); planes],
            ..Output::default()
        };
        for (p, (bytes, codes)) in output.planes.iter_mut().zip(&solved.codes).enumerate() {
            for codes in codes.chunks_exact(n) {
                let at = bytes.codes.len();
                bytes.codes.resize(at + encoding.bytes(n), 0);
                encoding.pack(isa, codes, &mut bytes.codes[at..]);
            }
            output.tally.count_codes(codes);
            for scales in solved.scales.chunks_exact(planes) {
                push_scale(&mut bytes.scales, treatment.scale_dtype, scales[p]);
            }
        }
        for (i, scales) in solved.scales.chunks_exact(planes).enumerate() {
            let [error, norm] = if i == 0 { solved.squared } else { [0.0; 2] };
            output.tally.add_unit(scales, None, error, norm);
        }
        output.tally.add_output(solved.output);
        output
    }
}

/// What the container says of it.
pub(super) fn entry(calibrated: Option<&Calibrated<'_>>, output: [f64; 2]) -> CalibrationEntry {
    let Some(Calibrated { moments, calibration }) = calibrated else {
        return CalibrationEntry { kind: CalibrationEntry::NONE.to_owned(), ..CalibrationEntry::default() };
    };
    let full = moments.full;
    let order = if calibration.act_order() { "diagonal" } else { "natural" };
    CalibrationEntry {
        damping: full.then_some(calibration.damping()),
        kind: if full { CalibrationEntry::FULL } else { CalibrationEntry::DIAGONAL }.to_owned(),
        order: full.then(|| order.to_owned()),
        rows: moments.rows,
        squared_error: Some(output[0]),
        squared_norm: Some(output[1]),
    }
}
