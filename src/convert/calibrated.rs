//! A tensor of which the inputs are known: some filters at a time are rounded together
//! ([`crate::calibration`]), on all threads. Not here: the arithmetic, or tensors without statistics.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::int8::Int8Work;
use super::job::{Done, Places, Run};
use super::journal::stamp;
use super::tensor::{Output, PlaneBytes, TernaryWork, push_scale};
use super::{Options, in_order, weights_error};
use crate::Result;
use crate::calibration::solve::{FOR_A_START, Grid, Plain, Solved, Solver, energy};
use crate::calibration::{Calibration, Moments};
use crate::container::{CalibrationEntry, Granularity};
use crate::error::WeightsProblem;
use crate::select::{Plan, Treatment};
use crate::source::weights::Element;
use crate::source::{Checkpoint, FilterView, TensorView};
use crate::ternarize::planes::{LeastSquares, Levels, WORTHWHILE, refine_weighted};
use crate::ternarize::{Fitted, PlanesFit};
use crate::vector::Isa;

/// Filters that are rounded together.
const FILTERS: usize = 256;

/// Turns of all codes and the scales that a whole tensor shares, before the last codes.
const ROUNDS: usize = 2;

/// The inputs of one tensor, and how they are used.
#[derive(Debug, Clone)]
pub(super) struct Calibrated<'a> {
    pub moments: Moments<'a>,
    pub calibration: &'a Calibration,
    shared: Shared,
}

/// What the inputs of a tensor say, for all that it may become: read and factored once. Where groups of filters have
/// inputs of their own nothing is kept: those are small.
pub(super) type Shared = Option<Arc<Mutex<Option<Arc<Inputs>>>>>;

/// For several works on one tensor.
pub(super) fn shared() -> Shared {
    Some(Arc::default())
}

/// What the inputs of one group of filters say.
#[derive(Debug)]
pub(super) enum Inputs {
    Full(Solver),
    /// XᵀX, only to measure by.
    Measure(Vec<f64>),
    Diagonal(Vec<f64>),
}

/// Whether the run was given statistics.
pub(super) fn is_asked(options: &Options<'_>) -> bool {
    options.calibration.is_some()
}

/// The tensors that a plan gives codes and that nothing is known of; reads no weights.
///
/// # Errors
/// As [`Plan::check`], and statistics that do not fit a tensor of the plan. (What is wrong with their numbers is found when they are used.)
pub fn uncalibrated<'a>(checkpoint: &'a Checkpoint, plan: &Plan, calibration: &Calibration) -> Result<Vec<&'a str>> {
    let mut missing = Vec::new();
    plan.check(checkpoint)?;
    for (i, planned) in plan.tensors.iter().enumerate() {
        let input = checkpoint.input(i);
        let Some(view) = planned.decision.filters(input)? else { continue };
        if calibration.moments(input.tensor.name, view.filters(), view.filter_len())?.is_none() {
            missing.push(input.tensor.name);
        }
    }
    Ok(missing)
}

/// Notices statistics that were written to since they were opened.
pub(super) fn check_unchanged(options: &Options<'_>) -> Result<()> {
    options.calibration.map_or(Ok(()), Calibration::check_unchanged)
}

/// Whether the statistics are that file, by its canonical path.
pub(super) fn reads(options: &Options<'_>, path: &Path) -> bool {
    options.calibration.is_some_and(|calibration| calibration.reads(path))
}

/// Which statistics they are and how they are used, for a run to be resumed.
pub(super) fn identity(options: &Options<'_>) -> Result<String> {
    let Some(calibration) = options.calibration else { return Ok("none".to_owned()) };
    let (damping, order) = (calibration.damping(), calibration.act_order());
    Ok(format!("{}{damping} {order}", stamp(calibration.path())?))
}

/// What is known of the inputs of a tensor.
///
/// # Errors
/// Statistics that do not fit the tensor.
pub(super) fn of<'a>(
    options: &Options<'a>,
    tensor: TensorView<'_>,
    view: FilterView<'_>,
    shared: &Shared,
) -> Result<Option<Calibrated<'a>>> {
    let Some(calibration) = options.calibration else { return Ok(None) };
    let moments = calibration.moments(tensor.name, view.filters(), view.filter_len())?;
    let shared = shared.clone().filter(|_| moments.as_ref().is_some_and(|moments| moments.groups == 1));
    Ok(moments.map(|moments| Calibrated { moments, calibration, shared }))
}

impl Calibrated<'_> {
    /// From the scales that all filters share, fitted to the weights, to such as fit the outputs: by turns all codes,
    /// and the least-squares scales for them. The best scales count, so that nothing gets worse by the inputs.
    pub fn fit_tensor(&self, tensor: TensorView<'_>, work: &mut TernaryWork<'_>, run: Run<'_>) -> Result<()> {
        let Treatment { scale_dtype, method, .. } = work.treatment;
        let (mut best, mut least) = (work.fits.clone(), f64::INFINITY);
        for round in 0..=ROUNDS {
            let (mut system, mut damped) = (LeastSquares::default(), 0.0);
            let job = |inputs: &Inputs, filters| {
                run.monitor.check()?;
                let solved = match work.view.is_f64() {
                    true => inputs.solve::<f64>(work, filters, run.isa),
                    false => inputs.solve::<f32>(work, filters, run.isa),
                };
                let solved = solved.map_err(|problem| weights_error(tensor.name, problem))?;
                Ok((solved.system, solved.damped))
            };
            self.each_group(work.view, run, true, job, |(next, error)| {
                system.add(&next);
                damped += error;
            })?;
            if damped < least {
                (least, best) = (damped, work.fits.clone());
            }
            if round == ROUNDS {
                break;
            }
            let old: Vec<f64> = work.fits[0].scales().iter().map(|&scale| f64::from(scale)).collect();
            let Some(new) = system.rescaled(&old, *scale_dtype) else { break };
            let scales = new.into_iter().map(|scale| scale.abs() as f32).collect();
            work.fits = vec![Fitted::Several(PlanesFit::given(scales, method.binary()))];
        }
        work.fits = best;
        Ok(())
    }

    /// All the work on a ternary tensor.
    pub fn ternary(
        &self,
        tensor: TensorView<'_>,
        work: &TernaryWork<'_>,
        places: Places,
        run: Run<'_>,
    ) -> Result<Done> {
        let mut done = Done::of_planes(work.treatment.planes);
        let job = |inputs: &Inputs, filters: Range<usize>| {
            run.output(tensor, filters.len() * work.view.filter_len(), places, || match work.view.is_f64() {
                true => inputs.round::<f64>(work, filters.clone(), run.isa),
                false => inputs.round::<f32>(work, filters.clone(), run.isa),
            })
        };
        self.each_group(work.view, run, true, job, |next| done.add(&next))?;
        Ok(done)
    }

    /// All the work on an int8 tensor: only its error is measured by the inputs.
    pub fn int8(&self, tensor: TensorView<'_>, work: &Int8Work<'_>, places: Places, run: Run<'_>) -> Result<Done> {
        let mut done = Done::of_planes(1);
        let job = |inputs: &Inputs, filters: Range<usize>| {
            run.output(tensor, filters.len() * work.view.filter_len(), places, || match work.view.is_f64() {
                true => inputs.int8::<f64>(work, filters.clone(), run.isa),
                false => inputs.int8::<f32>(work, filters.clone(), run.isa),
            })
        };
        self.each_group(work.view, run, false, job, |next| done.add(&next))?;
        Ok(done)
    }

    /// Gives all filters to `job`, some at a time, with what is known of their inputs (`solve`: for codes), and what
    /// comes of it to `add`, in their order.
    fn each_group<T: Send>(
        &self,
        view: FilterView<'_>,
        run: Run<'_>,
        solve: bool,
        job: impl Fn(&Inputs, Range<usize>) -> Result<T> + Sync,
        mut add: impl FnMut(T) + Send,
    ) -> Result<()> {
        let filters = view.filters() / self.moments.groups;
        for group in 0..self.moments.groups {
            let inputs = self.inputs(group, view.filter_len(), solve, run.isa)?;
            let pieces = super::steps(group * filters..(group + 1) * filters, FILTERS);
            in_order(pieces, |piece| job(&inputs, piece.clone()), |_, next| add(next))?;
        }
        Ok(())
    }

    /// What is known of a group's inputs; `solve`: enough to find codes by.
    fn inputs(&self, group: usize, n: usize, solve: bool, isa: Isa) -> Result<Arc<Inputs>> {
        let Some(shared) = &self.shared else { return self.read(group, n, solve, isa).map(Arc::new) };
        let mut known = shared.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(inputs) if !(solve && matches!(**inputs, Inputs::Measure(_))) => Ok(inputs.clone()),
            _ => Ok(known.insert(Arc::new(self.read(group, n, solve, isa)?)).clone()),
        }
    }

    fn read(&self, group: usize, n: usize, solve: bool, isa: Isa) -> Result<Inputs> {
        let Self { moments, calibration, .. } = self;
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
    fn round<W: Element>(
        &self,
        work: &TernaryWork<'_>,
        filters: Range<usize>,
        isa: Isa,
    ) -> Result<Output, WeightsProblem> {
        Ok(work.output(filters.clone(), &self.solve::<W>(work, filters, isa)?, isa))
    }

    fn solve<W: Element>(
        &self,
        work: &TernaryWork<'_>,
        filters: Range<usize>,
        isa: Isa,
    ) -> Result<Solved, WeightsProblem> {
        let (n, treatment) = (work.view.filter_len(), work.treatment);
        let shared = treatment.granularity == Granularity::Tensor;
        let range = filters.start * n..filters.end * n;
        let mut scratch = Vec::new();
        let weights: &[W] = work.view.read(range.clone(), isa, &mut scratch);
        let w: Vec<f64> = weights.iter().map(|w| w.to_f64()).collect();
        let importance = |j: usize| match self {
            Self::Full(solver) => solver.importance(j),
            Self::Measure(values) => values[j * n + j],
            Self::Diagonal(values) => values[j],
        };
        let importance: Vec<f64> = (0..n).map(importance).collect();
        // Where codes follow from the scales alone, these are the last.
        let worthwhile = if matches!(self, Self::Full(_)) { FOR_A_START } else { WORTHWHILE };
        let (unit, binary) = (work.unit_len().min(n), treatment.method.binary());
        let (mut scales, mut levels) = (Vec::new(), Vec::new());
        let mut plain = Plain::new(treatment.planes);
        if let (true, Some(fit)) = (shared, work.fits.first()) {
            scales = fit.scales().repeat(filters.len());
            levels = vec![Levels::new(fit.scales(), binary); filters.len()];
            plain.add(fit, &w, filters.len());
        }
        for (row, filter) in w.chunks_exact(n).enumerate().filter(|_| !shared) {
            for (g, group) in filter.chunks(unit).enumerate() {
                let start = row * n + g * unit;
                let fit = work.fit_unit(&weights[start..start + group.len()], range.start + start, isa)?;
                let importance = &importance[g * unit..][..group.len()];
                plain.add(&fit, group, 1);
                let start = fit.scales().to_vec();
                let (refined, its_levels) =
                    refine_weighted(group, importance, start, treatment.scale_dtype, binary, worthwhile);
                scales.extend(refined);
                levels.push(its_levels);
            }
        }
        let grid = Grid { binary, planes: treatment.planes, group: unit, dtype: treatment.scale_dtype, shared };
        Ok(match self {
            Self::Full(solver) => solver.solve(&w, scales, &plain, grid),
            _ => Solved::by_diagonal(&w, &importance, scales, &levels, &plain, grid),
        })
    }

    fn int8<W: Element>(&self, work: &Int8Work<'_>, filters: Range<usize>, isa: Isa) -> Result<Output, WeightsProblem> {
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
        // Scales that all filters share are written by themselves.
        let shared = self.treatment.granularity == Granularity::Tensor;
        let units = if shared { 0 } else { n.div_ceil(self.unit_len()) };
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
            for scales in solved.scales.chunks_exact(planes).filter(|_| !shared) {
                push_scale(&mut bytes.scales, treatment.scale_dtype, scales[p]);
            }
        }
        output.tally.add_errors(solved.squared[0], solved.squared[1]);
        for scales in solved.scales.chunks_exact(planes).filter(|_| !shared) {
            output.tally.add_unit(scales, None, 0.0, 0.0);
        }
        output.tally.add_output(solved.output);
        output
    }
}

/// What the container says of it; `solved`: codes were chosen by it.
pub(super) fn entry(calibrated: Option<&Calibrated<'_>>, solved: bool, output: [f64; 2]) -> CalibrationEntry {
    let Some(Calibrated { moments, calibration, .. }) = calibrated else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Dtype;

    /// All rungs of a tensor have one factor of XᵀX; one that needs none takes what is there.
    #[test]
    fn a_factor_is_shared() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stats.safetensors");
        let header = r#"{"w.xtx":{"dtype":"F64","shape":[2,2],"data_offsets":[0,32]}}"#;
        let values: Vec<u8> = [2.0f64, 1.0, 1.0, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat()).unwrap();
        let calibration = Calibration::open(&path).unwrap();
        let options = Options { calibration: Some(&calibration), ..Options::default() };
        let data = [0u8; 16];
        let tensor = TensorView::new("w", Dtype::F32, &[2, 2], &data);
        let view = FilterView::new(tensor, 0).unwrap();
        let shared = shared();
        let [first, second] = [&shared, &shared].map(|shared| of(&options, tensor, view, shared).unwrap().unwrap());
        let isa = Isa::PORTABLE;
        let measured = first.inputs(0, 2, false, isa).unwrap();
        assert!(matches!(*measured, Inputs::Measure(_)));
        let solver = first.inputs(0, 2, true, isa).unwrap();
        assert!(matches!(*solver, Inputs::Full(_)));
        assert!([true, false].into_iter().all(|solve| Arc::ptr_eq(&solver, &second.inputs(0, 2, solve, isa).unwrap())));
        let alone = of(&options, tensor, view, &None).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&solver, &alone.inputs(0, 2, true, isa).unwrap()));
    }
}
