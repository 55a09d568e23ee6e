//! `twn-pack eval`: a network over a data set.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use twn_pack::kernel::{Arithmetic, Kernel};
use twn_pack::net::{self, Network, Weights};
use twn_pack::{Error, Isa, report};

use super::data::{DataArgs, SplitName};
use super::exit::Exit;
use super::memory::memory;
use super::network::NetworkArgs;
use super::progress::Display;
use super::{Session, open_ternary, print, printable, refuse_outputs};

#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// A .twn file, or a checkpoint, which runs in float
    file: PathBuf,
    #[command(flatten)]
    net: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Which part of the data set
    #[arg(long, default_value = "test")]
    split: SplitName,
    /// How packed layers add up activations [default: exact]
    #[arg(long, conflicts_with = "float")]
    arithmetic: Option<ArithmeticName>,
    /// Unpack ternary weights and run them as floats
    #[arg(long)]
    float: bool,
    /// Of a checkpoint: make it ternary first, by twn, optimal, absmean or bwn; none: run it as it is
    /// [default: as it was trained, if `train` wrote it]
    #[arg(short, long, value_name = "NAME")]
    method: Option<String>,
    /// Images per forward pass
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Only the first N images
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Write the predicted classes there, one per line
    #[arg(long, value_name = "OUT.txt")]
    predictions: Option<PathBuf>,
    /// Replace that file if it exists
    #[arg(short, long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArithmeticName {
    /// Activations stay f32
    Exact,
    /// Activations are rounded to 8 bits, per image or column
    Int8,
}

impl ArithmeticName {
    fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Int8 => "int8",
        }
    }
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Results {
    file: PathBuf,
    net: String,
    /// What filters and outputs were multiplied by.
    width: f64,
    images: usize,
    correct: usize,
    /// Images of which all logits are NaN; they count as wrong.
    #[serde(skip_serializing_if = "is_zero")]
    undecided: usize,
    /// A fraction.
    accuracy: f64,
    /// Of the forward passes; reading the data is apart.
    images_per_second: f64,
    seconds: f64,
    batch: u32,
    threads: usize,
    /// Convolutions and linear layers.
    weight_layers: usize,
    packed_layers: usize,
    /// "float" where no layer is packed.
    arithmetic: &'static str,
    /// Of the packed layers.
    instruction_set: Option<&'static str>,
    resident_bytes: Option<u64>,
    peak_resident_bytes: Option<u64>,
}

pub(super) fn run(args: EvalArgs, session: &Session) -> anyhow::Result<Exit> {
    refuse_outputs(&[args.predictions.as_deref()], &[Some(&args.file), Some(args.net.path())])?;
    let description = args.net.open()?;
    let source = open_ternary(&args.file, args.method.as_deref(), session)?;
    let network = Network::load(&description, &source, args.float)?;
    let packed = network.weights().filter(|weights| matches!(weights, Weights::Packed(_))).count();
    if let (Some(arithmetic), 0) = (args.arithmetic, packed) {
        let (file, name) = (args.file.display(), arithmetic.name());
        let message = format!("--arithmetic {name} is for packed layers, and {file} has none of this network's");
        return Err(Error::Request(message).into());
    }
    let data = args.data.open(args.split.into(), network.input())?;

    let isa = Isa::detect()?;
    let arithmetic = args.arithmetic.unwrap_or(ArithmeticName::Exact);
    let kernel = match arithmetic {
        ArithmeticName::Exact => Kernel::with_isa(Arithmetic::ExactF32, isa),
        ArithmeticName::Int8 => Kernel::with_isa(Arithmetic::Int8, isa),
    };
    let display = Display::of_images(&session.global);
    let options = net::Options {
        batch: args.batch as usize,
        limit: args.limit.map(|limit| limit as usize),
        predictions: args.predictions.as_deref(),
        overwrite: args.force,
        progress: Some(&|done, total| display.advance(done as u64, total as u64, None)),
        cancel: Some(&session.cancel),
    };
    let found = net::evaluate(&network, &data, &kernel, &options)?;
    drop(display);

    let (images, seconds) = (found.predictions.len(), found.time.as_secs_f64());
    let results = Results {
        net: description.name().to_owned(),
        width: description.width(),
        images,
        correct: found.correct,
        undecided: found.undecided,
        accuracy: found.correct as f64 / images as f64,
        images_per_second: images as f64 / seconds.max(f64::MIN_POSITIVE),
        seconds,
        batch: args.batch,
        threads: rayon::current_num_threads(),
        weight_layers: network.weights().count(),
        packed_layers: packed,
        arithmetic: if packed > 0 { arithmetic.name() } else { "float" },
        instruction_set: (packed > 0).then(|| isa.name()),
        resident_bytes: memory("VmRSS:"),
        peak_resident_bytes: memory("VmHWM:"),
        file: args.file,
    };
    if args.json {
        return print(serde_json::to_string_pretty(&results)? + "\n");
    }
    if session.global.quiet {
        return Ok(Exit::Success);
    }
    print(printable(&results.text()))
}

impl Results {
    fn text(&self) -> String {
        let layers = format!("{} of {} weight layers packed", self.packed_layers, self.weight_layers);
        let undecided = match self.undecided {
            0 => String::new(),
            images => format!("undecided   {images} of {}: all their logits are NaN; counted as wrong\n", self.images),
        };
        let isa = self.instruction_set.map(|isa| format!(", {isa}")).unwrap_or_default();
        let bytes = |bytes: Option<u64>| bytes.map_or("-".to_owned(), report::bytes);
        let threads = format!("{} thread{}", self.threads, if self.threads == 1 { "" } else { "s" });
        format!(
            "{file}: {net}, {layers}\n\
             accuracy    {percent:.2} %  {correct} of {images}\n\
             {undecided}\
             arithmetic  {arithmetic}{isa}\n\
             speed       {speed:.0} images/s  {images} in {seconds:.3} s, batches of {batch}, {threads}\n\
             memory      {resident} resident, {peak} at most\n",
            file = self.file.display(),
            net = self.net,
            percent = 100.0 * self.accuracy,
            correct = self.correct,
            images = self.images,
            arithmetic = self.arithmetic,
            speed = self.images_per_second,
            seconds = self.seconds,
            batch = self.batch,
            resident = bytes(self.resident_bytes),
            peak = bytes(self.peak_resident_bytes),
        )
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}
