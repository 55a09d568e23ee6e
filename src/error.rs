//! Errors, sorted by who is at fault, each with what was expected, what was found and a way out.
//! Not here: how an error is shown; the command line maps [`Fault`] to an exit code.

mod calibration;
mod checkpoint;
mod container;
mod data;

use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

pub use self::calibration::CalibrationProblem;
pub use self::checkpoint::CheckpointProblem;
pub use self::container::ContainerProblem;
pub use self::data::DataProblem;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. `Display` is one line that names the file and, where there is one, the tensor;
/// the operating system's own words are its `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: missing file, no permission, disk full.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted, as a verb phrase ("open", "write the temporary file").
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The input checkpoint is not what it claims to be.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The checkpoint file, or its index.
        path: PathBuf,
        /// What is wrong with it.
        problem: CheckpointProblem,
    },
    /// The `.twn` file is damaged, or needs a newer reader.
    #[error("{}: {problem}", path.display())]
    Container {
        /// The `.twn` file.
        path: PathBuf,
        /// What is wrong with it.
        problem: ContainerProblem,
    },
    /// The bytes are fine but these weights cannot become ternary.
    #[error("tensor `{tensor}`: {problem}")]
    Weights {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with its weights.
        problem: WeightsProblem,
    },
    /// A tensor of this file is not what a network needs.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Network {
        /// The `.twn` file or checkpoint.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: NetworkProblem,
    },
    /// Statistics of inputs do not fit the weights, or are none.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Calibration {
        /// The calibration file.
        path: PathBuf,
        /// The tensor in it.
        tensor: String,
        /// What is wrong with it.
        problem: CalibrationProblem,
    },
    /// A data set is not what it claims to be.
    #[error("{}: {problem}", path.display())]
    Data {
        /// Its file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: DataProblem,
    },
    /// What was asked for makes no sense: a rule, a setting, a combination.
    #[error("{0}")]
    Request(String),
    /// The output exists and nobody said that it may be replaced.
    #[error("{}: exists already; give another path, or --force to replace it", path.display())]
    OutputExists {
        /// The path that is taken.
        path: PathBuf,
    },
    /// The file would have more bytes than [`crate::convert::Options::limit`]; nothing was published.
    #[error(
        "the file would have {found} bytes, more than the {limit} that it may have; ask for a larger size, or for less"
    )]
    TooLarge {
        /// What it would have.
        found: u64,
        /// What it may have.
        limit: u64,
    },
    /// The input changed between opening and the end of the run; the output was discarded.
    #[error("{}: changed while it was being read ({what}); the output was discarded, run again once the file is at rest", path.display())]
    InputChanged {
        /// The input file.
        path: PathBuf,
        /// What changed.
        what: &'static str,
    },
    /// The caller asked to stop; nothing was published.
    #[error("interrupted; no output was written")]
    Cancelled,
}

/// Who can mend an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller: a wrong option, an output that exists.
    Request,
    /// The input file: damaged, inconsistent, or weights that cannot become ternary.
    Input,
    /// The machine: files, permissions, space.
    Io,
    /// Nobody: the run was cancelled.
    Cancelled,
}

impl Error {
    /// Who can mend it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Io { .. } => Fault::Io,
            Self::Checkpoint { .. }
            | Self::Container { .. }
            | Self::Weights { .. }
            | Self::Network { .. }
            | Self::Calibration { .. }
            | Self::Data { .. }
            | Self::InputChanged { .. } => Fault::Input,
            Self::Request(_) | Self::OutputExists { .. } | Self::TooLarge { .. } => Fault::Request,
            Self::Cancelled => Fault::Cancelled,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    pub(crate) fn checkpoint(path: &Path) -> impl Fn(CheckpointProblem) -> Self {
        let path = path.to_path_buf();
        move |problem| Self::Checkpoint { path: path.clone(), problem }
    }

    pub(crate) fn container(path: &Path) -> impl Fn(ContainerProblem) -> Self {
        let path = path.to_path_buf();
        move |problem| Self::Container { path: path.clone(), problem }
    }
}

/// Why weights cannot become ternary.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum WeightsProblem {
    /// NaN or infinity.
    #[error(
        "weight {index} of filter {filter} is {value}; mend the checkpoint, or keep such tensors dense with --non-finite dense"
    )]
    NonFinite {
        /// Filter number.
        filter: usize,
        /// Position inside the filter.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A scale that its storage type cannot hold.
    #[error("filter {filter}: scale {scale:e} does not fit {dtype}; {advice}")]
    Scale {
        /// Filter number (0 where one scale serves the whole tensor).
        filter: usize,
        /// The scale.
        scale: f64,
        /// The storage type.
        dtype: &'static str,
        /// The way out.
        advice: &'static str,
    },
    /// A [`Ternarizer`](crate::Ternarizer) gave what its interface does not allow.
    #[error("filter {filter}: method `{method}` gave {what}; that is a bug of the method")]
    Method {
        /// Its name.
        method: &'static str,
        /// Filter number.
        filter: usize,
        /// What it gave.
        what: &'static str,
    },
    /// A tensor that is ternary in the checkpoint has codes or scales that are none.
    #[error(
        "{message}{}",
        if message.contains("; ") { "" } else { "; the checkpoint is damaged, or not ternary: get it again" }
    )]
    Packed {
        /// What was found, what was expected, and a way out where there is a better one.
        message: String,
    },
    /// A sum over the whole tensor that no `f64` holds, so that its file could not say it.
    #[error(
        "{what} is {found}, should be finite; keep the tensor dense with --exclude, rescale it, or take a smaller factor"
    )]
    Statistics {
        /// Which one.
        what: &'static str,
        /// Its value.
        found: f64,
    },
}

/// Why a tensor does not fit into a network.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum NetworkProblem {
    /// No tensor of that name.
    #[error("is missing, expected one of shape {expected:?}; is this a file of that network, with the same names?")]
    Missing {
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// Another shape.
    #[error("shape {found:?}, expected {expected:?}; is this a file of that network?")]
    Shape {
        /// The shape it should have.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A number that a network cannot learn with.
    #[error("element {at} is {found}; expected {expected}")]
    Value {
        /// Which element.
        at: usize,
        /// What it is.
        found: f32,
        /// "finite numbers" or "a variance, from 0 on".
        expected: &'static str,
    },
    /// Codes and scales in another program's layout.
    #[error(
        "is ternary in the checkpoint already, {dtype} of shape {shape:?}, and not floats; pack it without loss with \
         twn-pack MODEL -o OUT.twn --method auto, and give that file"
    )]
    Ternary {
        /// The type that its weights stand for.
        dtype: Dtype,
        /// The shape of the weights.
        shape: Vec<usize>,
    },
    /// No floating-point type.
    #[error("dtype {found}, expected a floating-point type (F64, F32, F16, BF16, F8_E4M3, F8_E5M2)")]
    Dtype {
        /// Its type.
        found: Dtype,
    },
    /// Several planes, where one is needed.
    #[error("has {found} planes, expected one: sums of planes are not ternary; do this to the float checkpoint")]
    Planes {
        /// How many it has.
        found: usize,
    },
    /// Packed along an axis that is not the layer's outputs.
    #[error(
        "packed with filters along axis {found}, expected axis 0, the layer's outputs; pack it with --axis 0, or run it with --float"
    )]
    FilterAxis {
        /// The filter axis.
        found: usize,
    },
    /// Its codes do not unpack.
    #[error("{0}; pack it again")]
    Codes(String),
}
