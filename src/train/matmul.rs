//! Matrix products of training: the `gemm` crate, which is twice as fast as `ndarray`'s `matrixmultiply`
//! where there is AVX-512. On one thread, so that the order of additions is always the same. Not
//! here: products of packed weights ([`crate::kernel`]).

use gemm::{Parallelism, gemm};
use ndarray::{ArrayView2, ArrayViewMut2};

use super::maps::Real;

/// C = A·B, or C += A·B with `add`; m × k times k × n.
///
/// # Panics
/// When the shapes do not fit.
pub(super) fn matmul<R: Real>(a: ArrayView2<'_, R>, b: ArrayView2<'_, R>, mut c: ArrayViewMut2<'_, R>, add: bool) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert!(b.nrows() == k && c.dim() == (m, n), "{m} × {k} times {:?} into {:?}", b.dim(), c.dim());
    let ([c_row, c_column], [a_row, a_column], [b_row, b_column]) = (strides(&c.view()), strides(&a), strides(&b));
    // SAFETY: every element of the three matrices lies at row·stride + column·stride from its pointer, for
    // the views' own pointers and strides and the shapes just checked; C is borrowed mutably, so that
    // nothing else reads or writes it meanwhile. gemm finds out what `R` is, and panics where it is not one of its types.
    unsafe {
        gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_column,
            c_row,
            add,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            R::one(),
            R::one(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn strides<R>(matrix: &ArrayView2<'_, R>) -> [isize; 2] {
    let strides = matrix.strides();
    [strides[0], strides[1]]
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;

    #[test]
    fn products_are_those_of_ndarray_whatever_the_strides() {
        let made = |rows: usize, columns: usize, seed: usize| {
            Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 7 + j * 13 + seed) % 11) as f64 - 5.0)
        };
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (33, 17, 65), (4, 0, 3)] {
            let (a, b) = (made(m, k, 1), made(n, k, 2));
            let expected = a.dot(&b.t());
            let mut c = Array2::from_elem((n, m + 2), f64::NAN);
            matmul(a.view(), b.t(), c.slice_mut(s![.., 1..=m]).reversed_axes(), false);
            assert_eq!(c.slice(s![.., 1..=m]).t(), expected);
            assert!(c.column(0).iter().chain(c.column(m + 1)).all(|x| x.is_nan()), "what lies beside stays");
            let mut c = made(m, n, 3);
            matmul(a.view(), b.t(), c.view_mut(), true);
            assert_eq!(c, expected + made(m, n, 3));
        }
    }
}
