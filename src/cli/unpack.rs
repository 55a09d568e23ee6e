//! `twn-pack unpack`: back to `.safetensors`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use twn_pack::{Container, Dtype, report, unpack};

use super::exit::Exit;
use super::progress::Display;
use super::{Session, message, print, refuse_outputs};

#[derive(Debug, Args)]
pub(super) struct UnpackArgs {
    /// The .twn file
    file: PathBuf,
    /// The .safetensors file to write
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: PathBuf,
    /// The type of dequantized tensors; dense tensors never change [default: each its source's]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<FloatType>,
    /// Replace the output if it exists; of a symbolic link the link itself, not what it leads to
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FloatType {
    F64,
    F32,
    F16,
    Bf16,
}

pub(super) fn run(args: UnpackArgs, session: &Session) -> anyhow::Result<Exit> {
    refuse_outputs(&[Some(&args.output)], &[])?;
    let container = Container::open(&args.file)?;
    let dtype = args.dtype.map(|dtype| match dtype {
        FloatType::F64 => Dtype::F64,
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    });
    let display = Display::new(&session.global);
    let options = unpack::Options {
        dtype,
        overwrite: args.force,
        progress: Some(&|progress| display.show(progress)),
        cancel: Some(&session.cancel),
    };
    let length = unpack::unpack(&container, &args.output, &options)?;
    drop(display);
    if session.global.quiet {
        return Ok(Exit::Success);
    }
    let (tensors, output) = (container.index().tensors.len(), args.output.display());
    print(message(&format!("{output}: {tensors} tensors, {}", report::bytes(length))) + "\n")
}
