//! A second product of the same shapes allocates nothing: counted by an allocator of this binary's
//! own. Not here: what products give (`tests/kernel/`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ndarray::{Array1, Array2, Array4};
use twn_pack::kernel::{Arithmetic, Conv2d, Kernel, PackedMatrix, Workspace};
use twn_pack::{Encoding, Granularity, Isa};

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread asks it for.
struct Counting;

// SAFETY: every call goes on to the system's allocator unchanged; counting asks for no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.with(|asked| asked.set(asked.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.with(|asked| asked.set(asked.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How often this thread asks for memory during `work`.
fn asked(work: impl FnOnce()) -> usize {
    let before = ASKED.with(Cell::get);
    work();
    ASKED.with(Cell::get) - before
}

/// Runs it twice; the second time nothing may be asked for.
fn assert_second_is_free(what: &str, mut work: impl FnMut(&mut Workspace)) {
    let mut workspace = Workspace::default();
    assert!(asked(|| work(&mut workspace)) > 0, "{what}: the first product needs memory, so this counts nothing");
    assert_eq!(asked(|| work(&mut workspace)), 0, "{what}: allocations of the second product");
}

/// Every product with filters of n weights (a multiple of 9).
fn assert_products_are_free(filters: usize, n: usize, columns: usize) {
    for (encoding, granularity) in [
        (Encoding::T2, Granularity::Filter),
        (Encoding::T5, Granularity::Group(20)),
        (Encoding::B1, Granularity::Group(7)),
        (Encoding::T2, Granularity::Tensor),
    ] {
        let codes = vec![0; filters * encoding.bytes(n)];
        let scales = vec![1.0; granularity.scales(filters as u64, n as u64) as usize];
        let w = PackedMatrix::from_parts(encoding, [1, filters, n], granularity, &codes, scales).unwrap();
        for (arithmetic, isa) in [Arithmetic::ExactF32, Arithmetic::Int8]
            .into_iter()
            .flat_map(|a| Isa::all().into_iter().map(move |i| (a, i)))
        {
            let kernel = Kernel::with_isa(arithmetic, isa);
            let what = |call| format!("{call}, {arithmetic:?} on {}, {filters} × {n} {granularity}", isa.name());

            let (x, mut y) = (Array1::ones(n), Array1::zeros(filters));
            assert_second_is_free(&what("vector"), |workspace| {
                kernel.vector(&w, x.view(), y.view_mut(), workspace).unwrap();
            });
            let (x, mut y) = (Array2::ones((n, columns)), Array2::zeros((filters, columns)));
            assert_second_is_free(&what("matrix"), |workspace| {
                kernel.matrix(&w, x.view(), y.view_mut(), workspace).unwrap();
            });
            assert_second_is_free(&what("matrix_slices"), |workspace| {
                let (x, y) = (x.as_slice().unwrap(), y.as_slice_mut().unwrap());
                kernel.matrix_slices(&w, x, columns, y, workspace).unwrap();
            });
            let (x, mut y, bias) = (Array2::ones((columns, n)), Array2::zeros((columns, filters)), vec![1.0; filters]);
            assert_second_is_free(&what("linear"), |workspace| {
                kernel.linear(&w, Some(&bias), x.view(), y.view_mut(), workspace).unwrap();
            });
            let geometry = Conv2d { padding: [1, 1], groups: 2, ..Conv2d::new([3, 3]) };
            let (x, mut y) = (Array4::ones((3, 2 * n / 9, 6, 5)), Array4::zeros((3, filters, 6, 5)));
            assert_second_is_free(&what("conv2d"), |workspace| {
                kernel.conv2d(&w, Some(&bias), &geometry, x.view(), y.view_mut(), workspace).unwrap();
            });
        }
    }
}

#[test]
fn small_products_on_the_thread_that_asks() {
    // Below 2²⁰ weights × columns no other thread is woken.
    assert_products_are_free(10, 270, 5);
    assert_products_are_free(10, 270, 40);
    assert_products_are_free(10, 270, 130);
}

#[test]
fn large_products_on_one_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| assert_products_are_free(130, 270, 40));
}
