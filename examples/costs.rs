//! What ternary weights cost, by method: ‖W − Ŵ‖² / ‖W‖² and the share of zeros, on made-up weights
//! and on a trained network. The tables in README.md are its output:
//!
//! ```text
//! cargo run --release --example costs
//! ```

use std::sync::Arc;

use ndarray::Array2;
use twn_pack::ternarize::{Above, Threshold, Unit};
use twn_pack::{Checkpoint, Granularity, Isa, Settings, Ternarizer, TernaryTensor, Treatment, convert, memory};

/// Made-up weights: so many filters of so many weights, for each seed.
const FILTERS: usize = 256;
const FILTER_LEN: usize = 4096;
const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];

const NETWORK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/lenet5-mnist.safetensors");
const LAYERS: [&str; 4] = ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"];

/// The largest |w| is the scale, the rest is rounded: α = max|w|, Δ = α/2. Not one of the crate's
/// methods; any type with these functions can be one.
#[derive(Debug)]
struct Largest;

impl Ternarizer for Largest {
    fn name(&self) -> &'static str {
        "largest"
    }

    fn threshold(&self, weights: &Unit<'_>) -> Threshold {
        Threshold::Delta(0.5 * weights.moments().max)
    }

    fn scale(&self, weights: &Unit<'_>, _above: &Above) -> f64 {
        weights.moments().max
    }
}

fn main() -> twn_pack::Result<()> {
    let treatments = treatments()?;
    let distributions: [(&str, Draw); 3] =
        [("Gaussian", Random::gaussian), ("Laplace", Random::laplace), ("Student-t(3)", Random::student3)];

    println!("Relative squared error, share of zeros\n");
    println!("{} x {FILTERS} filters of {FILTER_LEN} weights, mean ± standard deviation over seeds\n", SEEDS.len());
    println!("{:<20}{}", "", distributions.map(|(name, _)| format!("{name:>25}")).concat());
    // Shape: [distributions][treatments], a cell of text each.
    let mut columns = Vec::new();
    for (_, draw) in distributions {
        let mut samples = vec![Vec::new(); treatments.len()];
        for seed in SEEDS {
            let mut random = Random(seed);
            let weights = Array2::from_shape_simple_fn((FILTERS, FILTER_LEN), || draw(&mut random) as f32);
            for ((_, treatment), samples) in treatments.iter().zip(&mut samples) {
                samples.push(cost(&memory::ternarize("made up", &weights, treatment)?));
            }
        }
        columns.push(samples.iter().map(|samples| cell(samples)).collect::<Vec<_>>());
    }
    print(&treatments, &columns, 25);

    println!("\nLeNet-5, trained on MNIST\n");
    println!("{:<20}{}", "", LAYERS.map(|name| format!("{name:>17}")).concat());
    let checkpoint = Checkpoint::open(NETWORK)?;
    let mut columns = Vec::new();
    for tensor in checkpoint.tensors().filter(|tensor| LAYERS.contains(&tensor.name)) {
        let cells = treatments.iter().map(|(_, treatment)| {
            let (error, zeros) = cost(&convert::ternarize(tensor, treatment, Isa::detect()?)?);
            Ok(format!("{error:.4}, {:4.1} %", 100.0 * zeros))
        });
        columns.push(cells.collect::<twn_pack::Result<Vec<_>>>()?);
    }
    print(&treatments, &columns, 17);
    Ok(())
}

/// The crate's methods with one scale per filter, and the largest value, also in blocks of 256.
fn treatments() -> twn_pack::Result<Vec<(String, Treatment)>> {
    let named = |settings: &str| Settings::parse(settings)?.treatment();
    let filter = Treatment { method: Arc::new(Largest), ..named("")? };
    let block = Treatment { granularity: Granularity::Group(256), ..filter.clone() };
    let mut treatments = vec![("largest value".to_owned(), filter), ("  in blocks of 256".to_owned(), block)];
    for method in ["bwn", "absmean", "twn", "optimal"] {
        treatments.push((method.to_owned(), named(&format!("method={method}"))?));
    }
    Ok(treatments)
}

/// The relative squared error and the share of zeros.
fn cost(tensor: &TernaryTensor) -> (f64, f64) {
    let stats = &tensor.stats;
    let codes = stats.negative + stats.zeros + stats.positive;
    (stats.squared_error / stats.squared_norm, stats.zeros as f64 / codes as f64)
}

/// Error as mean ± sample standard deviation, zeros as mean.
fn cell(samples: &[(f64, f64)]) -> String {
    let n = samples.len() as f64;
    let (error, zeros) = (samples.iter().map(|s| s.0).sum::<f64>() / n, samples.iter().map(|s| s.1).sum::<f64>() / n);
    let deviation = (samples.iter().map(|s| (s.0 - error).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    format!("{error:.4} ± {deviation:.4}, {:4.1} %", 100.0 * zeros)
}

/// One line per treatment. `columns` has shape [columns][treatments].
fn print(treatments: &[(String, Treatment)], columns: &[Vec<String>], width: usize) {
    for (row, (name, _)) in treatments.iter().enumerate() {
        let cells: String = columns.iter().map(|column| format!("{:>width$}", column[row])).collect();
        println!("{name:<20}{cells}");
    }
}

type Draw = fn(&mut Random) -> f64;

/// Deterministic random numbers (splitmix64).
struct Random(u64);

impl Random {
    /// In (0, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Box-Muller.
    fn gaussian(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    fn laplace(&mut self) -> f64 {
        let magnitude = -self.unit().ln();
        if self.unit() < 0.5 { -magnitude } else { magnitude }
    }

    /// A Gaussian over the root mean square of three others.
    fn student3(&mut self) -> f64 {
        let squares: f64 = (0..3).map(|_| self.gaussian().powi(2)).sum();
        self.gaussian() / (squares / 3.0).sqrt()
    }
}
