//! `twn-pack fold`: a network without the batch norms that can go into the layers before them. Not here:
//! how that is done.

use std::path::PathBuf;

use clap::Args;
use twn_pack::{Error, net, write_atomically};

use super::exit::Exit;
use super::network::NetworkArgs;
use super::{Session, open_ternary, print, printable, refuse_outputs};

#[derive(Debug, Args)]
pub(super) struct FoldArgs {
    /// A .twn file, or a checkpoint; one that `train` wrote is made ternary first
    file: PathBuf,
    #[command(flatten)]
    net: NetworkArgs,
    /// The checkpoint to write; packing it gives the same codes
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: PathBuf,
    /// Where to describe the network as it is then, for --net
    #[arg(long, value_name = "OUT.toml")]
    write_net: PathBuf,
    /// Replace outputs that exist
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(args: FoldArgs, session: &Session) -> anyhow::Result<Exit> {
    if args.output == args.write_net {
        let output = args.output.display();
        return Err(Error::Request(format!("{output}: expected different paths for -o and --write-net")).into());
    }
    let outputs = [&args.output, &args.write_net].map(|path| Some(path.as_path()));
    refuse_outputs(&outputs, &[Some(&args.file), Some(args.net.path())])?;
    for path in [&args.output, &args.write_net] {
        if path.exists() && !args.force {
            return Err(Error::OutputExists { path: path.clone() }.into());
        }
    }
    let description = args.net.open()?;
    let source = open_ternary(&args.file, None, session)?;
    let folded = net::fold(&description, &source)?;
    write_atomically(&args.write_net, args.force, folded.description.to_toml()?.as_bytes())?;
    folded.save(&args.output, args.force)?;
    if session.global.quiet {
        return Ok(Exit::Success);
    }
    let left = match folded.left.len() {
        0 => String::new(),
        n => format!("; {n} left, with no convolution or linear layer before them: {}", folded.left.join(", ")),
    };
    print(printable(&format!("{} batch norms folded{left}\n", folded.folded.len())))
}
