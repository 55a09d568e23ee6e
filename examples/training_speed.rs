//! Times training steps on made images: `training_speed BATCH METHOD THREADS STEPS [NETWORK]` prints images per
//! second, after a step that does not count; LeNet-5's where no network is named.
//! `benches/training_vs_pytorch.py` compares it with PyTorch.

use std::time::Instant;

use twn_pack::net::Description;
use twn_pack::train::{Loss, Maps, Network, Optimizer, Request, Rule, method};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [batch, name, threads, steps, network @ ..] = &arguments[..] else {
        return Err("expected BATCH METHOD THREADS STEPS [NETWORK]".into());
    };
    let network = network.first().map_or("lenet5", |network| network);
    let (batch, threads, steps): (usize, usize, u32) = (batch.parse()?, threads.parse()?, steps.parse()?);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let speed = pool.install(|| -> twn_pack::Result<f64> {
        let description = Description::open(network)?;
        let mut network = Network::<f32>::new(&description, 1, &mut |_| method(name, &Request::default()))?;
        network.begin();
        let mut optimizer = Optimizer::new(Rule::Sgd { momentum: 0.9 }, 1e-4, 0);
        let mut x = Maps::default();
        x.resize(batch, description.input());
        x.values.iter_mut().enumerate().for_each(|(i, x)| *x = (i * 37 % 101) as f32 / 100.0);
        let labels: Vec<usize> = (0..batch).map(|i| i % description.classes()).collect();
        let mut step = || {
            network.learn(&x, &labels, Loss::CrossEntropy);
            network.step(&mut optimizer, 0.01, 1e-3);
        };
        step();
        let start = Instant::now();
        (0..steps).for_each(|_| step());
        Ok(batch as f64 * f64::from(steps) / start.elapsed().as_secs_f64())
    })?;
    println!("{speed:.1}");
    Ok(())
}
