//! Products as the definition has them, in `f64`, one weight after the other: what every other path
//! is held against. Not here: anything fast.

use ndarray::{Array2, ArrayView2};

use super::PackedMatrix;

/// W·X for X of `filter_len` × columns: Σ_p Σ_j α_p·t_pj·x_jc, where zero weights take no part.
///
/// # Errors
/// What is wrong with the packed bytes.
///
/// # Panics
/// When `x` does not have `filter_len` rows.
pub fn matrix(w: &PackedMatrix<'_>, x: ArrayView2<'_, f32>) -> Result<Array2<f64>, String> {
    assert_eq!(x.nrows(), w.filter_len(), "rows of X");
    let group = w.group().unwrap_or(w.filter_len()).max(1);
    let mut codes = vec![0; w.filter_len()];
    let mut y = Array2::zeros((w.filters(), x.ncols()));
    for plane in 0..w.planes() {
        for (filter, mut y) in y.rows_mut().into_iter().enumerate() {
            w.encoding().unpack(w.codes(plane, filter), &mut codes)?;
            for (j, code) in codes.iter().enumerate().filter(|(_, code)| **code != 1) {
                let weight = f64::from(w.scales(plane, filter)[j / group]) * (f64::from(*code) - 1.0);
                y.iter_mut().zip(x.row(j)).for_each(|(y, &x)| *y += weight * f64::from(x));
            }
        }
    }
    Ok(y)
}
