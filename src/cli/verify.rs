//! `twn-pack verify`: every checksum, every code, and the errors against the checkpoint.

use std::mem::ManuallyDrop;
use std::path::PathBuf;

use clap::Args;
use twn_pack::{Container, Error, Fault, import, report, verify};

use super::exit::Exit;
use super::progress::Display;
use super::{Session, message, print};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The .twn file
    file: PathBuf,
    /// The checkpoint it was made from: compare dense tensors bit by bit, recompute the errors
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: VerifyArgs, session: &Session) -> anyhow::Result<Exit> {
    let mut result = match Container::open(&args.file) {
        Ok(container) => {
            // When the process ends, the system lets go of a mapping faster than we would.
            let container = ManuallyDrop::new(container);
            let display = Display::new(&session.global);
            let progress = |done, total| display.advance(done, total, None);
            let mut result = verify::verify_with_progress(&container, Some(&session.cancel), &progress)?;
            drop(display);
            if let (Some(model), true) = (&args.against, result.is_good()) {
                let checkpoint = import::open(model)?;
                session.warn(checkpoint.warnings());
                result = verify::verify_against(&container, &checkpoint, Some(&session.cancel))?;
            }
            result
        }
        // A file that cannot even be opened for what it holds has failed verification.
        Err(error) if error.fault() == Fault::Input => {
            verify::Verification { problems: vec![problem_only(&error)], ..Default::default() }
        }
        Err(error) => return Err(error.into()),
    };
    if args.json {
        let mut text = serde_json::to_string_pretty(&result)?;
        text.push('\n');
        print(text)?;
    } else if !result.is_good() {
        let file = args.file.display();
        let lines: Vec<String> =
            result.problems.drain(..).map(|problem| message(&format!("{file}: {problem}")) + "\n").collect();
        print(lines.concat())?;
        return Ok(Exit::VerificationFailed);
    } else if !session.global.quiet {
        let but = match result.repaired {
            0 => String::new(),
            n => format!(" but of {n} repaired tensors"),
        };
        let against = args.against.as_ref().map(|model| {
            format!("; agrees with {} in every dense byte{but} and in every tensor's error", model.display())
        });
        let (file, tensors, size) = (args.file.display(), result.tensors, report::bytes(result.bytes));
        print(message(&format!("{file}: good: {tensors} tensors, {size}{}", against.unwrap_or_default())) + "\n")?;
    }
    Ok(if result.is_good() { Exit::Success } else { Exit::VerificationFailed })
}

/// The error without the path, which stands before every problem anyway.
fn problem_only(error: &Error) -> String {
    match error {
        Error::Container { problem, .. } => problem.to_string(),
        other => other.to_string(),
    }
}
