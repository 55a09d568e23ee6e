//! What the layers of a network take for some images: XᵀX over the rows x that each filter is
//! multiplied with, as `spec/calibration-v1.md` has it. Not here: what that is good for
//! ([`crate::calibration`]).

use std::path::Path;
use std::sync::atomic::AtomicBool;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatRef, Par};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::batches::Batches;
use super::im2col::im2col;
use super::{Buffers, Network};
use crate::atomic_file::AtomicFile;
use crate::calibration::solve::strided;
use crate::calibration::{FULL, ROWS, SUM};
use crate::data::DataSet;
use crate::kernel::{Conv2d, Kernel};
use crate::{Error, Result};

/// Rows of XᵀX that one thread adds to at a time.
const TILE: usize = 128;

/// Rows x that are gathered before they are added.
const GATHERED: usize = 1 << 22;

/// How to collect.
#[derive(Clone, Copy)]
pub struct CollectOptions<'a> {
    /// Images per forward pass, at least 1.
    pub batch: usize,
    /// Only so many images, from the first.
    pub limit: Option<usize>,
    /// Replace the output if it exists.
    pub overwrite: bool,
    /// Is told how many images are done, and of how many.
    pub progress: Option<&'a dyn Fn(usize, usize)>,
    /// Set it to stop the run.
    pub cancel: Option<&'a AtomicBool>,
}

/// The sums of one layer.
#[derive(Debug)]
pub(super) struct Sums {
    groups: usize,
    /// Weights per filter.
    n: usize,
    rows: u64,
    /// `[groups][n][n]`; until the end only what is on and below the diagonal.
    xtx: Vec<f64>,
    /// `[groups][n]`.
    sum: Vec<f64>,
    /// Rows that are not added yet, and the group they are of: `[rows][n]`.
    gathered: Vec<f64>,
    columns: Vec<f32>,
}

/// The sums of all layers with weights, in the order in which they run.
#[derive(Debug, Default)]
pub(super) struct Collected {
    layers: Vec<Sums>,
    /// The layer that comes next.
    next: usize,
}

impl Collected {
    /// What a convolution takes for `count` images.
    pub fn conv2d(
        &mut self,
        x: &[f32],
        input: [usize; 3],
        output: [usize; 3],
        geometry: &Conv2d,
        n: usize,
    ) -> Result<()> {
        let sums = self.layer(geometry.groups, n)?;
        let places = output[1] * output[2];
        sums.columns.resize(n * places, 0.0);
        let group_in = input.iter().product::<usize>() / geometry.groups;
        for group in 0..geometry.groups {
            for image in x.chunks_exact(input.iter().product()) {
                let x = &image[group * group_in..][..group_in];
                let columns = &mut sums.columns;
                im2col(x, [input[1], input[2]], geometry, [output[1], output[2]], columns);
                let rows = (0..places).flat_map(|place| columns.iter().skip(place).step_by(places));
                sums.gathered.extend(rows.map(|&x| f64::from(x)));
                if sums.gathered.len() >= GATHERED {
                    sums.add(group);
                }
            }
            sums.add(group);
        }
        Ok(())
    }

    /// What a linear layer takes: rows of `n`.
    pub fn linear(&mut self, x: &[f32], n: usize) -> Result<()> {
        let sums = self.layer(1, n)?;
        for rows in x.chunks(GATHERED.next_multiple_of(n)) {
            sums.gathered.extend(rows.iter().map(|&x| f64::from(x)));
            sums.add(0);
        }
        Ok(())
    }

    fn layer(&mut self, groups: usize, n: usize) -> Result<&mut Sums> {
        if self.next == self.layers.len() {
            let mut xtx: Vec<f64> = Vec::new();
            xtx.try_reserve_exact(groups * n * n).map_err(|_| {
                Error::Request(format!("no memory for XᵀX of {groups} × {n} × {n} numbers; take a narrower network"))
            })?;
            xtx.resize(groups * n * n, 0.0);
            let (sum, gathered, columns) = (vec![0.0; groups * n], Vec::new(), Vec::new());
            self.layers.push(Sums { groups, n, rows: 0, xtx, sum, gathered, columns });
        }
        self.next += 1;
        Ok(&mut self.layers[self.next - 1])
    }
}

impl Sums {
    /// Adds the gathered rows. Each element is added to by one thread, in the order of the rows.
    fn add(&mut self, group: usize) {
        let Self { n, ref gathered, .. } = *self;
        let rows = gathered.len() / n;
        let x = MatRef::from_row_major_slice(&gathered[..rows * n], rows, n);
        let xtx = &mut self.xtx[group * n * n..][..n * n];
        xtx.par_chunks_mut(TILE * n).enumerate().for_each(|(tile, xtx)| {
            let (first, height) = (tile * TILE, xtx.len() / n);
            let width = first + height;
            let part = strided(xtx, height, width, n);
            matmul(part, Accum::Add, x.subcols(first, height).transpose(), x.subcols(0, width), 1.0, Par::Seq);
        });
        let sum = &mut self.sum[group * n..][..n];
        for row in gathered.chunks_exact(n) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        if group == 0 {
            self.rows += rows as u64;
        }
        self.gathered.clear();
    }

    fn mirror(&mut self) {
        for xtx in self.xtx.chunks_exact_mut(self.n * self.n) {
            for row in 0..self.n {
                (0..row).for_each(|column| xtx[column * self.n + row] = xtx[row * self.n + column]);
            }
        }
    }
}

/// Runs the network over the data set's images and writes what its layers take, for the weights of
/// those names (the network's, in order), as a `.safetensors` file.
///
/// # Errors
/// Images that the network does not take or that cannot be read, an output that exists or cannot be
/// written, or cancellation.
pub fn collect(
    network: &Network<'_>,
    names: &[&str],
    data: &DataSet,
    kernel: &Kernel,
    output: &Path,
    options: &CollectOptions<'_>,
) -> Result<()> {
    let batches = Batches::new(data, network.input(), options.batch, options.limit)?;
    // Before the long work, so that it is not in vain.
    let file = AtomicFile::create(output, options.overwrite)?;
    let mut buffers = Buffers::default();
    buffers.collected = Some(Collected::default());
    batches.watched(options.progress, options.cancel).each(|images| {
        if let Some(collected) = &mut buffers.collected {
            collected.next = 0;
        }
        network.forward(images, kernel, &mut buffers).map(drop)
    })?;
    write(file, names, buffers.collected.unwrap_or_default().layers)
}

/// A safetensors file: length, JSON, tensors layer by layer. All have elements of 8 bytes; none is copied whole.
fn write(file: AtomicFile, names: &[&str], mut layers: Vec<Sums>) -> Result<()> {
    layers.iter_mut().for_each(Sums::mirror);
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "twn-calibration-1" }));
    let mut at = 0;
    for (name, Sums { groups, n, .. }) in names.iter().zip(&layers) {
        let shape = |own: &[usize]| if *groups == 1 { own.to_vec() } else { [&[*groups], own].concat() };
        for (suffix, dtype, shape) in
            [(FULL, "F64", shape(&[*n, *n])), (SUM, "F64", shape(&[*n])), (ROWS, "I64", vec![])]
        {
            let end = at + 8 * shape.iter().product::<usize>();
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] });
            header.insert(format!("{name}{suffix}"), entry);
            at = end;
        }
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut at = 0;
    let mut write = |bytes: &[u8]| {
        let offset = at;
        at += bytes.len() as u64;
        file.write_at(bytes, offset)
    };
    write(&(json.len() as u64).to_le_bytes())?;
    write(&json)?;
    for layer in layers {
        for values in layer.xtx.chunks(GATHERED).chain([&*layer.sum]) {
            write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        write(&(layer.rows as i64).to_le_bytes())?;
    }
    file.publish()
}
