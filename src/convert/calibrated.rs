//! A tensor of which the inputs are known: some filters at a time are rounded together
//! ([`crate::calibration`]), on all threads. Not here: the arithmetic, or tensors without statistics.

use std::ops::Range;

use super::int8::Int8Work;
use super::job::{Done, Places, Run};
use super::journal::stamp;
use super::tensor::{Output, PlaneBytes, TernaryWork, push_scale};
use super::unit::AsUnit;
use super::{Options, in_order};
use crate::Result;
use crate::calibration::solve::{Grid, Solved, Solver, energy};
use crate::calibration::{Calibration, Moments};
use crate::container::CalibrationEntry;
use crate::error::WeightsProblem;
use crate::source::{FilterView, TensorView};
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
    /// XᵀX, only to measure by.
    Measure(Vec<f64>),
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

/// Which statistics they are and how they are used, for a run to be resumed.
pub(super) fn identity(options: &Options<'_>) -> Result<String> {
    let Some(calibration) = options.calibration else { return Ok("none".to_owned()) };
    let (damping, order) = (calibration.damping(), calibration.act_order());
    Ok(format!("{}{damping} {order}", stamp(calibration.path())?))
}

/// What is known of the inputs of a tensor, if that can be used; one scale for a whole tensor cannot.
///
/// # Errors
/// Statistics that do not fit the tensor.
pub(super) fn of<'a>(
    options: &Options<'a>,
    tensor: TensorView<'_>,
    view: FilterView<'_>,
    whole_tensor: bool,
) -> Result<Option<Calibrated<'a>>> {
    let (Some(calibration), false) = (options.calibration, whole_tensor) else { return Ok(None) };
    let moments = calibration.moments(tensor.name, view.filters(), view.filter_len())?;
    Ok(moments.map(|moments| Calibrated { moments, calibration }))
}

impl Calibrated<'_> {
    /// All the work on a ternary tensor.
    pub fn ternary(
        &self,
        tensor: TensorView<'_>,
        work: &TernaryWork<'_>,
        places: Places,
        run: Run<'_>,
    ) -> Result<Vec<Done>> {
        self.each_group(tensor, work.view, places, run, true, |inputs, filters| match work.view.is_f64() {
            true => inputs.round::<f64>(work, filters, run.isa),
            false => inputs.round::<f32>(work, filters, run.isa),
        })
    }

    /// All the work on an int8 tensor: only its error is measured by the inputs.
    pub fn int8(&self, tensor: TensorView<'_>, work: &Int8Work<'_>, places: Places, run: Run<'_>) -> Result<Vec<Done>> {
        self.each_group(tensor, work.view, places, run, false, |inputs, filters| match work.view.is_f64() {
            true => inputs.int8::<f64>(work, filters, run.isa),
            false => inputs.int8::<f32>(work, filters, run.isa),
        })
    }

    /// Gives all filters to `round`, some at a time, with what is known of their inputs; `solve`: for codes.
    fn each_group(
        &self,
        tensor: TensorView<'_>,
        view: FilterView<'_>,
        places: Places,
        run: Run<'_>,
        solve: bool,
        round: impl Fn(&Inputs, Range<usize>) -> Result<Output, WeightsProblem> + Sync,
    ) -> Result<Vec<Done>> {
        let filters = view.filters() / self.moments.groups;
        let mut done = Vec::new();
        for group in 0..self.moments.groups {
            let inputs = self.inputs(group, view.filter_len(), solve, run.isa)?;
            let pieces: Vec<Range<usize>> = super::steps(group * filters..(group + 1) * filters, FILTERS).collect();
            done.extend(in_order(&pieces, |piece| {
                run.output(tensor, piece.len() * view.filter_len(), places, || round(&inputs, piece.clone()))
            })?);
        }
        Ok(done)
    }

    fn inputs(&self, group: usize, n: usize, solve: bool, isa: Isa) -> Result<Inputs> {
        let Self { moments, calibration } = self;
        let values = moments.read(group, isa)?;
        if !moments.full {
            return Ok(Inputs::Diagonal(values));
        }
        let diagonal: Vec<f64> = values.iter().step_by(n + 1).copied().collect();
        if diagonal.iter().all(|&energy| energy == 0.0) {
            // Nothing is known of this group: its weights go to the nearest levels.
            return Ok(Inputs::Diagonal(diagonal));
        }
        if !solve {
            return Ok(Inputs::Measure(values));
        }
        let damping = calibration.damping();
        let solver = Solver::new(values, n, damping, calibration.act_order());
        solver.map(Inputs::Full).map_err(|problem| moments.refused(problem))
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
            Self::Measure(values) => values[j * n + j],
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
            _ => Solved::by_diagonal(&w, &importance, scales, &levels, grid),
        };
        Ok(work.output(filters, &solved, isa))
    }

    fn int8<W: AsUnit>(&self, work: &Int8Work<'_>, filters: Range<usize>, isa: Isa) -> Result<Output, WeightsProblem> {
        let n = work.view.filter_len();
        let range = filters.start * n..filters.end * n;
        let (mut output, scales) = work.filters::<W>(range.clone(), isa)?;
        let mut scratch = Vec::new();
        let w: Vec<f64> = work.view.read::<W>(range, isa, &mut scratch).iter().map(|w| w.to_f64()).collect();
        let codes = output.planes[0].codes.iter().enumerate();
        let value = |(at, &code): (usize, &u8)| f64::from(scales[at / n] * f32::from(code.cast_signed()));
        let e: Vec<f64> = codes.map(value).zip(&w).map(|(value, w)| w - value).collect();
        let energy = |rows: &[f64]| match self {
            Self::Full(solver) => solver.energy(rows),
            Self::Measure(h) => energy(h, n, rows),
            Self::Diagonal(diagonal) => rows.iter().enumerate().map(|(at, x)| diagonal[at % n] * x * x).sum(),
        };
        output.tally.add_output([energy(&e), energy(&w)]);
        Ok(output)
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

/// What the container says of it; `solved`: codes were chosen by it.
pub(super) fn entry(calibrated: Option<&Calibrated<'_>>, solved: bool, output: [f64; 2]) -> CalibrationEntry {
    let Some(Calibrated { moments, calibration }) = calibrated else {
        return CalibrationEntry { kind: CalibrationEntry::NONE.to_owned(), ..CalibrationEntry::default() };
    };
    let full = moments.full;
    let order = if calibration.act_order() { "diagonal" } else { "natural" };
    CalibrationEntry {
        damping: (full && solved).then_some(calibration.damping()),
        kind: if full { CalibrationEntry::FULL } else { CalibrationEntry::DIAGONAL }.to_owned(),
        order: (full && solved).then(|| order.to_owned()),
        rows: moments.rows,
        squared_error: Some(output[0]),
        squared_norm: Some(output[1]),
    }
}
