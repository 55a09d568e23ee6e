//! `twn-pack calibrate`: statistics of the inputs of a network's layers.

use std::path::PathBuf;

use clap::Args;
use twn_pack::kernel::{Arithmetic, Kernel};
use twn_pack::net::{self, CollectOptions, Network};

use super::data::{DataArgs, SplitName};
use super::exit::Exit;
use super::network::NetworkArgs;
use super::progress::Display;
use super::{Session, open_source, print, printable, refuse_outputs};

#[derive(Debug, Args)]
pub(super) struct CalibrateArgs {
    /// The float checkpoint
    file: PathBuf,
    #[command(flatten)]
    net: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Which part of the data set
    #[arg(long, default_value = "train")]
    split: SplitName,
    /// How many images, from the first
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
    /// Images per forward pass
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// The file to write, for --calibration
    #[arg(short, long, value_name = "STATS.safetensors")]
    output: PathBuf,
    /// Replace it if it exists
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(args: CalibrateArgs, session: &Session) -> anyhow::Result<Exit> {
    refuse_outputs(&[Some(&args.output)], &[Some(&args.file), Some(args.net.path())])?;
    let description = args.net.open()?;
    let source = open_source(&args.file, session)?;
    // In floats: statistics are of the inputs that the float network gives its layers.
    let network = Network::load(&description, &source, true)?;
    let data = args.data.open(args.split.into(), network.input())?;
    let display = Display::of_images(&session.global);
    let options = CollectOptions {
        batch: args.batch as usize,
        limit: Some(args.images as usize),
        overwrite: args.force,
        progress: Some(&|done, total| display.advance(done as u64, total as u64, None)),
        cancel: Some(&session.cancel),
    };
    let kernel = Kernel::new(Arithmetic::ExactF32)?;
    net::collect(&network, &description.weight_names(), &data, &kernel, &args.output, &options)?;
    drop(display);
    if session.global.quiet {
        return Ok(Exit::Success);
    }
    let (images, layers) = (data.len().min(args.images as usize), description.weight_names().len());
    print(printable(&format!("{}: inputs of {layers} layers over {images} images\n", args.output.display())))
}
