//! Whole filters held in memory, because in the file (the filter axis is not 0) their weights lie
//! so far apart that every pass over one of them would fetch the lines of all its neighbours.
//! Not here: what is done with them.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{PIECE, steps};
use crate::MappedFile;
use crate::mapped::in_large_pages;
use crate::source::FilterView;
use crate::source::weights::Element;
use crate::vector::Isa;

/// Two lines of the cache: from so many bytes on, neighbours are not worth waiting for.
const NEAR: usize = 128;

/// Bytes of decoded weights that are held at once, unless a single filter has more.
const HELD: usize = if cfg!(test) { 4 << 20 } else { 64 << 20 };

/// Filters that are held at once, or `None` where reading them one by one costs little: their runs
/// in the file are long, or the filters of a piece of work lie together.
pub(super) fn filters_held(view: &FilterView<'_>) -> Option<usize> {
    let n = view.filter_len();
    let neighbours = (PIECE / n).clamp(1, view.filters());
    if view.contiguous() || neighbours == view.filters() || neighbours * view.run_bytes() >= NEAR {
        return None;
    }
    // Cut where pieces are cut. More filters than these would not be read any faster.
    let cut = (PIECE / n).max(1);
    // Each thread may hold what two filters take beside them: what planes leave of one, what `optimal` sorts.
    let (one, threads) = (filter_bytes(view), rayon::current_num_threads());
    let room = (HELD / 4).max(HELD.saturating_sub(threads.saturating_mul(2 * one)));
    let held = (room / one).min(NEAR) / cut * cut;
    // A view of decoded weights is one of little-endian bytes.
    cfg!(target_endian = "little").then_some(held.max(cut))
}

/// Bytes of a filter, decoded.
fn filter_bytes(view: &FilterView<'_>) -> usize {
    view.filter_len() * if view.is_f64() { 8 } else { 4 }
}

/// Some filters of a tensor, decoded; the memory serves for the next ones.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// `f32` or `f64`, as the view says.
    memory: Vec<f64>,
    /// Bytes of what it holds.
    length: usize,
}

impl Held {
    /// These filters of `view` as a tensor of their own along axis 0.
    pub fn read(&mut self, view: FilterView<'_>, filters: Range<usize>, isa: Isa) -> FilterView<'_> {
        let (count, weights) = (filters.len(), filters.len() * view.filter_len());
        self.length = count * filter_bytes(&view);
        let length = self.length.div_ceil(size_of::<f64>());
        if self.memory.capacity() < length {
            self.memory = Vec::with_capacity(length);
            in_large_pages(self.memory.spare_capacity_mut());
        }
        self.memory.resize(length, 0.0);
        match view.is_f64() {
            true => read_filters(view, filters, isa, &mut self.memory),
            false => {
                read_filters::<f32>(view, filters, isa, &mut bytemuck::cast_slice_mut(&mut self.memory)[..weights])
            }
        }
        rows(self.bytes(), count, view.is_f64())
    }

    /// What it holds.
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.memory)[..self.length]
    }
}

/// Reads filters, so many at a time as fill the lines of the cache.
fn read_filters<W: Element>(view: FilterView<'_>, filters: Range<usize>, isa: Isa, weights: &mut [W]) {
    let n = view.filter_len();
    let step = (PIECE / n).max(NEAR);
    for (filters, weights) in steps(filters, step).zip(weights.chunks_mut(step * n)) {
        view.read_filters(filters, isa, weights);
    }
}

/// Weights in memory as so many filters.
fn rows(bytes: &[u8], filters: usize, is_f64: bool) -> FilterView<'_> {
    match is_f64 {
        true => FilterView::of_rows::<f64>(bytemuck::cast_slice(bytes), filters),
        false => FilterView::of_rows::<f32>(bytemuck::cast_slice(bytes), filters),
    }
}

/// All weights of a tensor whose filters do not each lie in one run, decoded, the filter axis first: for who goes over
/// them several times.
#[derive(Debug)]
pub(super) struct Ordered {
    weights: Weights,
    filters: usize,
    is_f64: bool,
}

#[derive(Debug)]
enum Weights {
    Here(Held),
    /// Where they are too many for that, in a temporary file.
    There(MappedFile),
}

impl Ordered {
    /// `None` where there is no room for a temporary file, or once `cancel` is set.
    pub fn new(view: FilterView<'_>, isa: Isa, cancel: Option<&AtomicBool>) -> Option<Self> {
        // A view of decoded weights is one of little-endian bytes.
        if cfg!(target_endian = "big") {
            return None;
        }
        let (filters, is_f64, mut held) = (view.filters(), view.is_f64(), Held::default());
        let filter_bytes = filter_bytes(&view);
        // Every thread has some memory of its own beside this.
        let room = (HELD + (4 << 20)).saturating_sub(rayon::current_num_threads() * (3 << 19));
        if filters * filter_bytes <= room {
            held.read(view, 0..filters, isa);
            return Some(Self { weights: Weights::Here(held), filters, is_f64 });
        }
        let mut file = tempfile::tempfile().ok()?;
        for filters in steps(0..filters, (room / 2 / filter_bytes).max(1)) {
            if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return None;
            }
            held.read(view, filters, isa);
            file.write_all(held.bytes()).ok()?;
        }
        let file = MappedFile::of_temporary(file, "the weights in order").ok()?;
        Some(Self { weights: Weights::There(file), filters, is_f64 })
    }

    /// They, as a tensor of their own along axis 0.
    pub fn view(&self) -> FilterView<'_> {
        let bytes = match &self.weights {
            Weights::Here(held) => held.bytes(),
            Weights::There(file) => file,
        };
        rows(bytes, self.filters, self.is_f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::container::{Container, Tensor, TernaryTensor};
    use crate::convert::{Options, measure, pack, ternarize};
    use crate::error::WeightsProblem;
    use crate::select::{Plan, Rules, Settings, Treatment};
    use crate::source::{Checkpoint, Dtype, TensorView};

    /// Weights of any type whose elements have so many bytes, all finite and of ordinary size.
    fn random(elements: usize, size: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut bytes = Vec::with_capacity(elements * size);
        for _ in 0..elements {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut element = state.to_le_bytes();
            // Sign and the upper bits of the exponent.
            element[7] = element[7] & 0x80 | 0x3c;
            bytes.extend(&element[8 - size..]);
        }
        bytes
    }

    /// `[outer, filters, inner]` with the filter axis first.
    fn transposed(bytes: &[u8], [outer, filters, inner]: [usize; 3], size: usize) -> Vec<u8> {
        let run = inner * size;
        let places = (0..filters).flat_map(|f| (0..outer).map(move |o| (o * filters + f) * run));
        places.flat_map(|at| &bytes[at..at + run]).copied().collect()
    }

    fn same(found: &TernaryTensor<'_>, expected: &TernaryTensor<'_>, case: &str) {
        assert!(found.packed() == expected.packed(), "{case}: codes");
        assert!(found.scale_bytes() == expected.scale_bytes(), "{case}: scales");
        assert_eq!(found.stats, expected.stats, "{case}");
    }

    fn checkpoint(directory: &std::path::Path, tensor: TensorView<'_>) -> Checkpoint {
        let (dtype, shape, end) = (tensor.dtype, tensor.shape, tensor.stored.len());
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[0,{end}]}}}}"#);
        let path = directory.join("in.safetensors");
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(&path, [&length, header.as_bytes(), tensor.stored].concat()).unwrap();
        Checkpoint::open(path).unwrap()
    }

    /// Axis 1 gives what axis 0 gives for the transposed tensor, in memory and in a file, with any
    /// number of threads.
    #[test]
    fn scattered_filters_are_the_same_filters() {
        for (shape, dtype, settings) in [
            ([250_001, 9, 1], Dtype::F32, "method=twn"),
            ([250_001, 9, 1], Dtype::F32, "method=optimal,granularity=tensor"),
            ([250_001, 9, 1], Dtype::BF16, "method=twn,granularity=group:7,encoding=t5"),
            ([250_001, 5, 1], Dtype::F64, "method=optimal"),
            ([90_000, 7, 3], Dtype::F32, "method=bwn,granularity=group:260000"),
            ([60_001, 67, 1], Dtype::F16, "method=absmean"),
            ([1_100_000, 3, 1], Dtype::F32, "method=twn"),
            ([60_001, 67, 1], Dtype::F32, "method=twn,granularity=tensor,scale-dtype=f16"),
        ] {
            let [outer, filters, inner] = shape;
            let size = dtype.bitsize() / 8;
            let bytes = random(outer * filters * inner, size);
            let settings = Settings { axis: Some(1), ..Settings::parse(settings).unwrap() };
            let case = format!("{shape:?} {dtype} {settings:?}");
            let tensor = TensorView::new("w", dtype, &shape, &bytes);
            let treatment = settings.treatment().unwrap();
            let held = filters_held(&FilterView::new(tensor, 1).unwrap());
            assert!(held.is_some_and(|held| held < filters), "{case}: {held:?} filters at once");

            let flipped = transposed(&bytes, shape, size);
            let shape = [filters, outer, inner];
            let flipped = TensorView::new("w", dtype, &shape, &flipped);
            let isa = Isa::detect().unwrap();
            let expected = ternarize(flipped, &Treatment { axis: 0, ..treatment.clone() }, isa).unwrap();
            same(&ternarize(tensor, &treatment, isa).unwrap(), &expected, &case);

            let directory = tempfile::tempdir().unwrap();
            let checkpoint = checkpoint(directory.path(), tensor);
            let plan = Plan::new(&checkpoint, &Rules { settings, ..Rules::default() }).unwrap();
            for threads in [1, 3] {
                let output = directory.path().join(format!("{threads}.twn"));
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| pack(&checkpoint, &plan, &output, &Options::default())).unwrap();
                let container = Container::open(&output).unwrap();
                let crcs: Vec<u32> = container.index().tensors[0].sections().map(|(_, s)| s.crc32).collect();
                assert_eq!(crcs, [expected.packed(), expected.scale_bytes()].map(crc32fast::hash), "{case}");
                let Some((_, Tensor::Ternary(packed))) = container.tensors().next() else { panic!("{case}") };
                same(&packed, &expected, &case);
            }
        }
    }

    #[test]
    fn a_bad_weight_is_named_by_its_place_in_the_tensor() {
        let shape = [250_001, 9, 1];
        let mut bytes = random(250_001 * 9, 4);
        bytes[4 * (70_000 * 9 + 7)..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let tensor = TensorView::new("w", Dtype::F32, &shape, &bytes);
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(directory.path(), tensor);
        for settings in ["axis=1", "axis=1,granularity=group:64", "axis=1,granularity=tensor"] {
            let settings = Settings::parse(settings).unwrap();
            let plan = Plan::new(&checkpoint, &Rules { settings, ..Rules::default() }).unwrap();
            match measure(&checkpoint, &plan, &Options::default()) {
                Err(Error::Weights { problem: WeightsProblem::NonFinite { filter, index, .. }, .. }) => {
                    assert_eq!((filter, index), (7, 70_000));
                }
                other => panic!("{other:?}"),
            }
            let options = Options { keep_non_finite_dense: true, ..Options::default() };
            assert_eq!(measure(&checkpoint, &plan, &options).unwrap().tensors[0].became, "dense");
        }
    }
}
