//! Packed products on every instruction set, in both arithmetics, against a sum in `f64` that
//! shares no code with them ([`naive`]), within the error bounds that [`Arithmetic`] states.
//! Not here: memory that products ask for (`tests/kernel_memory.rs`), arbitrary bytes
//! (`fuzz/fuzz_targets/kernel.rs`).

#[path = "../common/mod.rs"]
mod common;

mod bits;
mod bounds;
mod containers;
mod convolutions;
mod errors;
mod extremes;
mod invalid;
mod layouts;
mod naive;
mod random;
mod shapes;
mod tables;

use ndarray::{Array2, ArrayView2};
use twn_pack::Isa;
use twn_pack::kernel::{Arithmetic, Kernel, PackedMatrix, Workspace};

use common::Random;
use naive::{Expected, Weights};

const BOTH: [Arithmetic; 2] = [Arithmetic::ExactF32, Arithmetic::Int8];

/// Every arithmetic on every instruction set of this machine.
fn kernels() -> impl Iterator<Item = (String, Arithmetic, Kernel)> {
    BOTH.into_iter().flat_map(|arithmetic| {
        let kernel = move |isa: Isa| {
            (format!("{arithmetic:?} on {}", isa.name()), arithmetic, Kernel::with_isa(arithmetic, isa))
        };
        Isa::all().into_iter().map(kernel)
    })
}

/// W·X into memory that held something else.
fn product(kernel: Kernel, w: &PackedMatrix<'_>, x: ArrayView2<'_, f32>, workspace: &mut Workspace) -> Array2<f32> {
    let mut y = Array2::from_elem((w.filters(), x.ncols()), f32::NAN);
    kernel.matrix(w, x, y.view_mut(), workspace).unwrap();
    y
}

/// Normal numbers.
fn gaussian(random: &mut Random, shape: (usize, usize)) -> Array2<f32> {
    Array2::from_shape_simple_fn(shape, || random.gaussian() as f32)
}

/// The bits of every element, with every NaN the same.
fn bits<'a>(y: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    y.into_iter().map(|y| if y.is_nan() { f32::NAN.to_bits() } else { y.to_bits() }).collect()
}

/// Every path agrees with the naive sum within the bounds, and with every other path to the bit.
fn assert_right(what: &str, w: &Weights, x: ArrayView2<'_, f32>, workspace: &mut Workspace) {
    assert_packed_right(what, w, &w.packed(), x, workspace);
}

/// The same where the codes of `w` lie somewhere else.
fn assert_packed_right(
    what: &str,
    w: &Weights,
    packed: &PackedMatrix<'_>,
    x: ArrayView2<'_, f32>,
    workspace: &mut Workspace,
) {
    let expected = Expected::of_columns(w, 0..w.filters, x);
    let mut first: [Option<Vec<u32>>; 2] = [None, None];
    for (path, arithmetic, kernel) in kernels() {
        let y = product(kernel, packed, x, workspace);
        let case = || format!("{path}: {what}, {w}, {} columns", x.ncols());
        expected.assert_holds(arithmetic, y.view(), case);
        let bits = bits(&y);
        let first = first[arithmetic as usize].get_or_insert_with(|| bits.clone());
        assert!(bits == *first, "{} is not what the first instruction set gives", case());
    }
}
