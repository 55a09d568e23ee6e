//! `twn-pack export`: a `.twn` file in another program's format.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use twn_pack::{Container, Error, export, report};

use super::exit::Exit;
use super::progress::Display;
use super::{Session, print, printable, refuse_outputs, warn_of_existing};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The .twn file
    file: PathBuf,
    /// The format (see below)
    #[arg(short, long, value_name = "FORMAT")]
    to: String,
    /// The file to write
    #[arg(short, long, value_name = "OUT", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// A file of that format: its tensors of the same names are replaced, everything else of it is kept
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// Where the format has one plane only, write planes as tensors of their own, whose sum is the weight
    #[arg(long)]
    planes_as_tensors: bool,
    /// Write as floats what the format cannot hold as codes, instead of refusing
    #[arg(long)]
    refused_as_dense: bool,
    /// Do not export tensors that are called like this (a glob; repeatable), such as what the format's programs do not know
    #[arg(long, value_name = "GLOB")]
    leave_out: Vec<String>,
    /// Say of every tensor what it would become, or why it cannot; write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Replace the output if it exists; of a symbolic link the link itself, not what it leads to
    #[arg(short, long)]
    force: bool,
}

/// The formats, for the help.
pub(super) fn formats() -> String {
    let lines = export::FORMATS.iter().map(|format| format!("\n  {:<14} {}", format.name(), format.about()));
    format!("Formats:{}", lines.collect::<String>())
}

pub(super) fn run(args: ExportArgs, session: &Session) -> anyhow::Result<Exit> {
    refuse_outputs(&[args.output.as_deref()], &[])?;
    let format = export::format(&args.to)?;
    let container = Container::open(&args.file)?;
    let options = export::Options {
        into: args.into,
        planes_as_tensors: args.planes_as_tensors,
        refused_as_dense: args.refused_as_dense,
        leave_out: args.leave_out,
    };
    let export = format.export(&container, &options)?;
    // What to do with a file that does not come about is of no use.
    let complete = export.check().is_ok();
    if complete {
        session.warn(&export.warnings);
    }
    match &args.output {
        Some(output) if !args.dry_run => {
            let display = Display::new(&session.global);
            let options = export::WriteOptions {
                overwrite: args.force,
                cancel: Some(&session.cancel),
                progress: Some(&|done, total| display.advance(done, total, None)),
            };
            export::write(&container, &export, output, &options)?;
        }
        None if !args.dry_run => return Err(Error::Request("give an output with -o".to_owned()).into()),
        Some(output) if !args.force => {
            let beside = export.beside.iter().map(|(name, _)| output.with_file_name(name));
            warn_of_existing(std::iter::once(output.clone()).chain(beside), session);
        }
        _ => {}
    }
    let exit = if complete { Exit::Success } else { Exit::Usage };
    if args.json {
        let beside: Vec<_> =
            export.beside.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes.len() })).collect();
        let report =
            json!({ "format": format.name(), "bytes": export.len(), "beside": beside, "tensors": export.tensors });
        print(serde_json::to_string_pretty(&report)? + "\n")?;
    } else if !session.global.quiet {
        print(printable(&table(&export)))?;
    }
    Ok(exit)
}

/// A line per tensor, and the whole.
fn table(export: &export::Export<'_>) -> String {
    let width = export.tensors.iter().map(|line| line.tensor.chars().count()).max().unwrap_or_default().min(60);
    let lines = export.tensors.iter().map(|line| match &line.becomes {
        Ok(becomes) => {
            let rounding = match line.rounding {
                0.0 => String::new(),
                rounding => format!(", scales rounded by up to {rounding:.1e}"),
            };
            format!("{:<width$}  {becomes}, {}{rounding}\n", line.tensor, report::bytes(line.bytes))
        }
        Err(reason) => format!("{:<width$}  REFUSED: {reason}\n", line.tensor),
    });
    let refused = export.tensors.iter().filter(|line| line.becomes.is_err()).count();
    let whole = match refused {
        0 => format!("{} tensors, {}\n", export.tensors.len(), report::bytes(export.len())),
        refused => format!("{refused} of {} tensors refused\n", export.tensors.len()),
    };
    let beside =
        export.beside.iter().map(|(name, bytes)| format!("beside it: {name}, {}\n", report::bytes(bytes.len() as u64)));
    lines.chain([whole]).chain(beside).collect()
}
