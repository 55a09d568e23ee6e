//! Exit codes: one per kind of trouble, the same for every command.

use std::process::ExitCode;

use twn_pack::{Error, Fault};

/// Shown below `--help`.
pub(super) const HELP: &str = "\
Exit codes:
  0    all is well
  1    `verify` found something wrong
  2    the request makes no sense: unknown option, contradicting settings, output exists
  3    the input is not what it should be: damaged, inconsistent, NaN weights
  4    the machine refused: no such file, no permission, disk full
  130  interrupted; no output was written

Environment:
  TWN_PACK_ISA   portable, avx2, avxvnni, avx512 or avx512vnni: use that instruction set (the bytes are the same)";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    Success = 0,
    VerificationFailed = 1,
    Usage = 2,
    BadInput = 3,
    Io = 4,
    Interrupted = 130,
}

impl Exit {
    pub fn of(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<Error>().map(Error::fault) {
            Some(Fault::Request) => Self::Usage,
            Some(Fault::Input) => Self::BadInput,
            Some(Fault::Cancelled) => Self::Interrupted,
            Some(Fault::Io) | None => Self::Io,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
