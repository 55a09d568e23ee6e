//! Statistics of the inputs that a layer sees, from a `.safetensors` file: for a weight NAME the second
//! moment XᵀX (`NAME.xtx`) or its diagonal (`NAME.xtx_diagonal`). `spec/calibration-v1.md` is normative.
//! Not here: how they are collected, or which weights are packed with them ([`crate::convert`]).

pub(crate) mod solve;

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::CalibrationProblem as Problem;
use crate::source::{Checkpoint, Dtype, FilterView, TensorView};
use crate::{Error, Isa, Result};

/// Behind the name of a weight: XᵀX, n × n, or one per group of filters.
pub const FULL: &str = ".xtx";
/// Its diagonal alone, n.
pub const DIAGONAL: &str = ".xtx_diagonal";
/// Σx over the same rows, n. For biases, not for codes.
pub const SUM: &str = ".x_sum";
/// How many rows x were summed.
pub const ROWS: &str = ".rows";

/// Statistics of inputs, and how they are used.
#[derive(Debug)]
pub struct Calibration {
    file: Checkpoint,
    /// λ/mean(diagonal) in H + λI: 0 or more.
    damping: f64,
    act_order: bool,
}

/// What is known of the inputs of one tensor.
#[derive(Debug, Clone)]
pub(crate) struct Moments<'a> {
    path: &'a Path,
    tensor: TensorView<'a>,
    /// All of XᵀX.
    pub full: bool,
    /// Filters of each group have inputs of their own.
    pub groups: usize,
    /// Rows that were summed, where the file says so.
    pub rows: Option<u64>,
    n: usize,
}

impl Calibration {
    /// Ten times that of GPTQ: of several tried, the best for inputs that were not in the statistics (`docs/quality.md`).
    pub const DAMPING: f64 = 0.1;

    /// Opens a file; reads and checks its header only.
    ///
    /// # Errors
    /// A file that cannot be read or that is not what it claims to be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { file: Checkpoint::open(path)?, damping: Self::DAMPING, act_order: true })
    }

    /// With `damping` times the mean of its diagonal added to the diagonal of each XᵀX.
    ///
    /// # Errors
    /// No number from 0 to 1000.
    pub fn with_damping(self, damping: f64) -> Result<Self> {
        if (0.0..=1000.0).contains(&damping) {
            return Ok(Self { damping, ..self });
        }
        Err(Error::Request(format!(
            "damping is {damping}; it must be a number from 0 to 1000 ({} by default)",
            Self::DAMPING
        )))
    }

    /// Whether columns are rounded in the order of their inputs' energy, largest first (as long as nothing is said), or as
    /// they stand.
    #[must_use]
    pub fn with_act_order(self, act_order: bool) -> Self {
        Self { act_order, ..self }
    }

    /// λ/mean(diagonal).
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Whether columns go by their inputs' energy.
    pub fn act_order(&self) -> bool {
        self.act_order
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Notices a file that was written to since it was opened.
    ///
    /// # Errors
    /// As [`Checkpoint::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.file.check_unchanged()
    }

    /// Whether they are in that file, by its canonical path.
    pub(crate) fn reads(&self, path: &Path) -> bool {
        self.file.reads(path)
    }

    /// What looks odd: statistics that belong to no tensor of the checkpoint.
    pub fn warnings(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let names: BTreeSet<&str> = checkpoint.tensors().map(|tensor| tensor.name).collect();
        let belongs = |name: &str| {
            let weight = [FULL, DIAGONAL, SUM, ROWS].into_iter().find_map(|suffix| name.strip_suffix(suffix));
            weight.is_some_and(|weight| names.contains(weight))
        };
        let stray: Vec<&str> = self.file.tensors().map(|tensor| tensor.name).filter(|name| !belongs(name)).collect();
        let mut warnings = self.file.warnings().to_vec();
        if let Some(first) = stray.first() {
            let path = self.path().display();
            let others =
                if stray.len() > 1 { format!(" and {} more belong", stray.len() - 1) } else { " belongs".into() };
            warnings.push(format!(
                "{path}: `{first}`{others} to no tensor of the checkpoint; names are the weight's, with {FULL}, {DIAGONAL}, \
                 {SUM} or {ROWS}"
            ));
        }
        warnings
    }

    /// What is to be said of weights that are packed by it: of which groups it has seen only zeros.
    pub fn unseen<'a>(&self, weights: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let of = |weight: &str, suffix: &str| self.file.by_name(&format!("{weight}{suffix}"));
        let used = |weight: &str| of(weight, FULL).or_else(|| of(weight, DIAGONAL));
        let say = |tensor: TensorView<'_>| {
            let (group, unseen, groups) = unseen_groups(tensor)?;
            let (path, name) = (self.path().display(), tensor.name);
            let others = if unseen > 1 { format!(" and {} more", unseen - 1) } else { String::new() };
            Some(format!(
                "{path}: `{name}`: group {group}{others} of {groups} has seen only zeros; its filters are packed without \
                 statistics"
            ))
        };
        weights.into_iter().filter_map(|weight| used(weight).and_then(say)).collect()
    }

    /// What the file says of the inputs of `weight`, whose filters have the length `n`; nothing where it
    /// has only seen zeros.
    ///
    /// # Errors
    /// Statistics of another shape or type.
    pub(crate) fn moments(&self, weight: &str, filters: usize, n: usize) -> Result<Option<Moments<'_>>> {
        let of = |suffix: &str| self.file.by_name(&format!("{weight}{suffix}"));
        let (tensor, full) = match (of(FULL), of(DIAGONAL)) {
            (Some(tensor), _) => (tensor, true),
            (None, Some(tensor)) => (tensor, false),
            (None, None) => return Ok(None),
        };
        let own: &[usize] = if full { &[n, n] } else { &[n] };
        let (groups, rows) = (self.groups(tensor, own, filters)?, self.rows(weight)?);
        let moments = Moments { path: self.path(), tensor, full, groups, rows, n };
        Ok((!moments.are_zero()?).then_some(moments))
    }

    /// The mean input of `weight`, Σx / rows: n numbers, or that per group of its filters; nothing where the
    /// file has not both.
    ///
    /// # Errors
    /// Sums of another shape or type, or that are not finite.
    pub(crate) fn means(&self, weight: &str, filters: usize, n: usize) -> Result<Option<Vec<f64>>> {
        let (sum, rows) = (self.file.by_name(&format!("{weight}{SUM}")), self.rows(weight)?.unwrap_or(0));
        let Some(sum) = sum.filter(|_| rows > 0) else { return Ok(None) };
        self.groups(sum, &[n], filters)?;
        let Some(view) = FilterView::new(sum, 0) else { return Ok(None) };
        let mut scratch = Vec::new();
        let sums: &[f64] = view.read(0..view.filters() * view.filter_len(), Isa::detect()?, &mut scratch);
        if let Some(index) = sums.iter().position(|sum| !sum.is_finite()) {
            return Err(self.refused(sum.name, Problem::NonFinite { index, value: sums[index] }));
        }
        Ok(Some(sums.iter().map(|sum| sum / rows as f64).collect()))
    }

    /// How many groups of filters a tensor has statistics for, of the shape `own` each.
    fn groups(&self, tensor: TensorView<'_>, own: &[usize], filters: usize) -> Result<usize> {
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F64) {
            let problem = Problem::Dtype { found: tensor.dtype, expected: "F32 or F64" };
            return Err(self.refused(tensor.name, problem));
        }
        match tensor.shape {
            shape if shape == own => Ok(1),
            [groups, rest @ ..] if rest == own && *groups > 0 && filters.is_multiple_of(*groups) => Ok(*groups),
            found => {
                let expected = format!("{own:?}, or that per group of the {filters} filters");
                Err(self.refused(tensor.name, Problem::Shape { found: found.to_vec(), expected }))
            }
        }
    }

    /// How many rows x were summed for `weight`, where the file says so.
    fn rows(&self, weight: &str) -> Result<Option<u64>> {
        let Some(rows) = self.file.by_name(&format!("{weight}{ROWS}")) else { return Ok(None) };
        if rows.dtype != Dtype::I64 {
            let problem = Problem::Dtype { found: rows.dtype, expected: "I64" };
            return Err(self.refused(rows.name, problem));
        }
        if rows.elements() != 1 {
            let problem =
                Problem::Shape { found: rows.shape.to_vec(), expected: "one number, the count of rows".to_owned() };
            return Err(self.refused(rows.name, problem));
        }
        Ok(rows.stored.first_chunk().and_then(|bytes| u64::try_from(i64::from_le_bytes(*bytes)).ok()))
    }

    /// What is wrong with one of its tensors.
    fn refused(&self, tensor: &str, problem: Problem) -> Error {
        Error::Calibration { path: self.path().to_path_buf(), tensor: tensor.to_owned(), problem }
    }
}

/// Of statistics per group of filters: the first group with a diagonal of zeros, how many such there are, and how many
/// groups; nothing where all are such, since then the tensor has none.
fn unseen_groups(tensor: TensorView<'_>) -> Option<(usize, usize, usize)> {
    let (groups, step) = match tensor.shape {
        [groups, n, m] if n == m && tensor.name.ends_with(FULL) => (*groups, n + 1),
        [groups, _] if tensor.name.ends_with(DIAGONAL) => (*groups, 1),
        _ => return None,
    };
    let (size, length) = (tensor.dtype.bitsize() / 8, tensor.stored.len().checked_div(groups)?);
    let zero = |group: &usize| is_zero(&tensor.stored[group * length..(group + 1) * length], size, step);
    let unseen: Vec<usize> = (0..groups).filter(zero).collect();
    let first = *unseen.first().filter(|_| length > 0 && unseen.len() < groups)?;
    Some((first, unseen.len(), groups))
}

/// Whether every number, or every `step`th, of `size` bytes each is 0, of either sign.
fn is_zero(data: &[u8], size: usize, step: usize) -> bool {
    let zero =
        |bytes: &[u8]| bytes.split_last().is_none_or(|(last, rest)| last & 0x7f == 0 && rest.iter().all(|&b| b == 0));
    data.chunks_exact(size.max(1)).step_by(step).all(zero)
}

impl Moments<'_> {
    /// What is wrong with them.
    pub fn refused(&self, problem: Problem) -> Error {
        Error::Calibration { path: self.path.to_path_buf(), tensor: self.tensor.name.to_owned(), problem }
    }

    /// Whether no input was ever anything else.
    ///
    /// # Errors
    /// A diagonal that says so, and elements beside it that do not.
    fn are_zero(&self) -> Result<bool> {
        let size = self.tensor.dtype.bitsize() / 8;
        let step = if self.full { self.n + 1 } else { 1 };
        let mut groups = self.tensor.stored.chunks_exact(self.tensor.stored.len() / self.groups);
        if !groups.all(|group| is_zero(group, size, step)) {
            return Ok(false);
        }
        match self.tensor.stored.chunks_exact(size).position(|bytes| !is_zero(bytes, size, 1)) {
            None => Ok(true),
            Some(index) => {
                let value = FilterView::new(self.tensor, 0).map_or(f64::NAN, |view| {
                    let mut scratch = Vec::new();
                    view.read::<f64>(index..index + 1, Isa::PORTABLE, &mut scratch)[0]
                });
                Err(self.refused(Problem::OffDiagonal { index, value, bound: 0.0 }))
            }
        }
    }

    /// The matrix, n × n, or the diagonal, n, of one group.
    ///
    /// # Errors
    /// NaN, infinity, a negative sum of squares, or no symmetric matrix.
    pub fn read(&self, group: usize, isa: Isa) -> Result<Vec<f64>> {
        let Self { n, full, .. } = *self;
        let count = if full { n * n } else { n };
        let Some(view) = FilterView::new(self.tensor, 0) else { return Ok(Vec::new()) };
        let mut values: Vec<f64> = Vec::new();
        let room = values.try_reserve_exact(count);
        room.map_err(|_| self.refused(Problem::Memory(8 * count)))?;
        let mut scratch = Vec::new();
        const STEP: usize = 1 << 16;
        for at in (group * count..(group + 1) * count).step_by(STEP) {
            let range = at..(at + STEP).min((group + 1) * count);
            values.extend_from_slice(view.read::<f64>(range, isa, &mut scratch));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(self.refused(Problem::NonFinite { index: group * count + at, value: values[at] }));
        }
        let diagonal = |i: usize| if full { values[i * n + i] } else { values[i] };
        if let Some(index) = (0..n).find(|&i| diagonal(i) < 0.0) {
            return Err(self.refused(Problem::Negative { index, value: diagonal(index) }));
        }
        if full {
            self.is_second_moment(&values, group * count)?;
        }
        Ok(values)
    }

    /// Opposite elements are the same, and none is more than the diagonal allows (Cauchy and Schwarz), but for what sums
    /// in `f32` lose: squares become 0 long before products do. `first` is the number of the first element.
    fn is_second_moment(&self, h: &[f64], first: usize) -> Result<()> {
        const TILE: usize = 64;
        let n = self.n;
        let least = 1e-12 * h.iter().step_by(n + 1).sum::<f64>() / n as f64;
        let tiles = (0..n).step_by(TILE).flat_map(|r| (0..=r).step_by(TILE).map(move |c| (r, c)));
        for (rows, columns) in tiles {
            for row in rows..(rows + TILE).min(n) {
                for column in columns..(columns + TILE).min(row) {
                    let (value, mirrored) = (h[row * n + column], h[column * n + row]);
                    let size = h[row * n + row].sqrt() * h[column * n + column].sqrt();
                    if (value - mirrored).abs() > 1e-3 * size + f64::MIN_POSITIVE {
                        return Err(self.refused(Problem::Asymmetric { row, column, value, mirrored }));
                    }
                    let bound = h[row * n + row].max(least).sqrt() * h[column * n + column].max(least).sqrt();
                    if value.abs() > 1.001 * bound {
                        let index = first + row * n + column;
                        return Err(self.refused(Problem::OffDiagonal { index, value, bound }));
                    }
                }
            }
        }
        Ok(())
    }
}
