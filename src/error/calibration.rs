//! What can be wrong with statistics of inputs. Not here: how an error is shown.

use safetensors::Dtype;

/// What can be wrong with a tensor of a calibration file (`spec/calibration-v1.md`).
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum CalibrationProblem {
    /// Another shape than the weights ask for.
    #[error(
        "shape {found:?}, expected {expected}; was it collected from this model, with filters along the same axis?"
    )]
    Shape {
        /// Its shape.
        found: Vec<usize>,
        /// The shapes that it may have.
        expected: String,
    },
    /// Another type.
    #[error("dtype {found}, expected {expected}; convert it when it is saved")]
    Dtype {
        /// Its type.
        found: Dtype,
        /// The types that it may have.
        expected: &'static str,
    },
    /// NaN or infinity.
    #[error("element {index} is {value}, expected finite numbers; sum in F64, or over fewer or smaller inputs")]
    NonFinite {
        /// Which one, in C order.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// A sum of squares below 0.
    #[error("diagonal element {index} is {value}, expected a sum of squares, at least 0; collect it again")]
    Negative {
        /// Which one.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// More than its two elements of the diagonal allow.
    #[error(
        "not positive definite: element {index} is {value}, expected at most {bound}, the root of what its row and column \
         have on the diagonal; no XᵀX is like that, collect it again"
    )]
    OffDiagonal {
        /// Which one, in C order.
        index: usize,
        /// Its value.
        value: f64,
        /// What no sum of products exceeds.
        bound: f64,
    },
    /// No XᵀX.
    #[error(
        "elements [{row}, {column}] and [{column}, {row}] are {value} and {mirrored}, expected a symmetric matrix; collect it again, XᵀX over rows x"
    )]
    Asymmetric {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// Its value.
        value: f64,
        /// The value opposite.
        mirrored: f64,
    },
    /// Still not positive definite.
    #[error(
        "not positive definite with damping {damping}, expected XᵀX; raise --damping, or collect it in F64 over more inputs"
    )]
    Indefinite {
        /// The damping.
        damping: f64,
    },
    /// Some combination of inputs would have negative energy.
    #[error(
        "not positive semidefinite: an eigenvalue is below -{share:.1e} of the diagonal's mean, which no XᵀX has; expected \
         sums of x·xᵀ, every element over the same rows"
    )]
    NegativeEnergy {
        /// What rounding may explain.
        share: f64,
    },
    /// More than memory holds.
    #[error("{0} bytes do not fit into memory; give its diagonal (`.xtx_diagonal`) instead")]
    Memory(usize),
}
