//! In place of `calibrated` where the crate is built without the feature `calibration`: nothing is known of
//! any tensor's inputs. Not here: any work.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::path::Path;

use super::Options;
use super::int8::Int8Work;
use super::job::{Done, Places, Run};
use super::tensor::TernaryWork;
use crate::Result;
use crate::container::CalibrationEntry;
use crate::source::{FilterView, TensorView};

/// There is none.
#[derive(Debug, Clone)]
pub(super) struct Calibrated<'a>(Infallible, PhantomData<&'a ()>);

pub(super) fn is_asked(_: &Options<'_>) -> bool {
    false
}

pub(super) fn check_unchanged(_: &Options<'_>) -> Result<()> {
    Ok(())
}

pub(super) fn reads(_: &Options<'_>, _: &Path) -> bool {
    false
}

pub(super) fn identity(_: &Options<'_>) -> Result<String> {
    Ok("none".to_owned())
}

/// Nothing to share.
pub(super) type Shared = Option<Infallible>;

pub(super) fn shared() -> Shared {
    None
}

pub(super) fn of<'a>(
    _: &Options<'a>,
    _: TensorView<'_>,
    _: FilterView<'_>,
    _: &Shared,
) -> Result<Option<Calibrated<'a>>> {
    Ok(None)
}

impl Calibrated<'_> {
    pub fn fit_tensor(&self, _: TensorView<'_>, _: &mut TernaryWork<'_>, _: Run<'_>) -> Result<()> {
        match self.0 {}
    }

    pub fn ternary(&self, _: TensorView<'_>, _: &TernaryWork<'_>, _: Places, _: Run<'_>) -> Result<Done> {
        match self.0 {}
    }

    pub fn int8(&self, _: TensorView<'_>, _: &Int8Work<'_>, _: Places, _: Run<'_>) -> Result<Done> {
        match self.0 {}
    }
}

pub(super) fn entry(_: Option<&Calibrated<'_>>, _: bool, _: [f64; 2]) -> CalibrationEntry {
    CalibrationEntry::default()
}
