//! The options of `pack` that change biases and batch norms once the weights are ternary. Not here: how
//! they are changed; that is the library's.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use twn_pack::container::Replacement;
use twn_pack::convert::Repair;
use twn_pack::data::DataSet;
use twn_pack::kernel::{Arithmetic, Kernel};
use twn_pack::net::{self, Description, ReestimateOptions, Source};
use twn_pack::report::TensorReport;
use twn_pack::{Calibration, Checkpoint, Container, Error, Plan, Report, Result, convert, import};

use super::data::{NormalizationName, SplitName};
use super::network::OverrideArgs;
use super::progress::Display;
use super::{Global, Session};

#[derive(Debug, Args)]
#[command(next_help_heading = "Repair without training")]
pub(super) struct RepairArgs {
    /// The network that the checkpoint is of, by name or described in a file
    #[arg(long, value_name = "NAME|PATH.toml")]
    net: Option<String>,
    #[command(flatten)]
    overrides: OverrideArgs,
    /// Measure the means and variances of batch norm again, with the ternary weights, on images of this
    /// data set (labels are not used)
    #[arg(long, value_name = "DIR", requires = "net")]
    reestimate_bn: Option<PathBuf>,
    /// Which part of the data set [default: train]
    #[arg(long, requires = "reestimate_bn")]
    split: Option<SplitName>,
    /// On so many images, from the first [default: 5000]
    #[arg(long, value_name = "N", requires = "reestimate_bn", value_parser = clap::value_parser!(u32).range(2..))]
    images: Option<u32>,
    /// So many at a time, about: statistics of many are nearer to those of all [default: 250]
    #[arg(long, value_name = "N", requires = "reestimate_bn", value_parser = clap::value_parser!(u32).range(2..))]
    batch: Option<u32>,
    /// How every channel is normalized; without, pixels are 0 to 1
    #[arg(long, value_name = "HOW", requires = "reestimate_bn")]
    normalize: Option<NormalizationName>,
    /// Predict those means and variances from the weights and the batch norms before them, without images;
    /// of a layer without batch norm behind it, change the bias
    #[arg(long, requires = "net", conflicts_with_all = ["reestimate_bn", "correct_bias"])]
    adjust_bn: bool,
    /// Take from each bias what the error of the weights adds to it, for the mean input of --calibration
    #[arg(long, requires = "calibration")]
    correct_bias: bool,
}

/// What was asked for, opened.
pub(super) struct Repairs<'a> {
    checkpoint: &'a Checkpoint,
    calibration: Option<&'a Calibration>,
    adjust: Option<(Description, Source)>,
    reestimate: Option<(Description, DataSet, u32, u32)>,
    global: &'a Global,
    cancel: &'a AtomicBool,
}

impl RepairArgs {
    /// Where the network is described, unless that is a name.
    pub fn net(&self) -> Option<&Path> {
        self.net.as_deref().map(Path::new)
    }

    /// Says which biases could not be corrected.
    pub fn warn_of_missing(&self, report: &Report, session: &Session) {
        if !self.correct_bias {
            return;
        }
        let repaired = |name: String| report.tensors.iter().any(|t| t.name == name && t.repaired.is_some());
        let uncorrected = |t: &&TensorReport| {
            t.alpha.is_some() && !t.name.strip_suffix(".weight").is_some_and(|layer| repaired(format!("{layer}.bias")))
        };
        let mut missing = report.tensors.iter().filter(uncorrected);
        if let Some(first) = missing.next() {
            let others = match missing.count() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            session.warn(&[format!(
                "`{}`{others}: no bias to correct (`NAME.weight` goes with `NAME.bias`), or no `x_sum` and `rows` in the \
                 statistics",
                first.name
            )]);
        }
    }

    /// Opens what the repairs need, before any work is done.
    pub fn open<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        calibration: Option<&'a Calibration>,
        session: &'a Session,
    ) -> Result<Repairs<'a>> {
        let description = self.net.as_ref().map(|net| self.overrides.open(net)).transpose()?;
        if description.is_some() && self.reestimate_bn.is_none() && !self.adjust_bn {
            return Err(Error::Request("--net is for --reestimate-bn DIR or --adjust-bn; give one of them".to_owned()));
        }
        if let Some(description) = &description {
            description.check_tensors(checkpoint)?;
        }
        let mut repairs = Repairs {
            checkpoint,
            calibration: calibration.filter(|_| self.correct_bias),
            adjust: None,
            reestimate: None,
            global: &session.global,
            cancel: &session.cancel,
        };
        if let (Some(description), Some(directory)) = (&description, &self.reestimate_bn) {
            let normalize = self.normalize.unwrap_or(NormalizationName::None);
            let split = self.split.unwrap_or(SplitName::Train);
            let data = normalize.open(directory, split.into(), description.input())?;
            let (images, batch) = (self.images.unwrap_or(5000), self.batch.unwrap_or(250));
            repairs.reestimate = Some((description.clone(), data, images, batch));
        }
        if let (Some(description), true) = (description, self.adjust_bn) {
            repairs.adjust = Some((description, Source::Checkpoint(import::open(checkpoint.path())?)));
        }
        Ok(repairs)
    }
}

impl Repairs<'_> {
    /// Bytes that they add to an index at most: each changed tensor says by what, and has another checksum.
    pub fn reserve(&self, plan: &Plan) -> u64 {
        const OF_ONE: usize = 64;
        let statistics = |network: &Description| 2 * network.running_means().len();
        let biases = self.calibration.map_or(0, |_| plan.ternary_count());
        let adjusted = self.adjust.as_ref().map_or(0, |(network, _)| statistics(network) + plan.ternary_count());
        let measured = self.reestimate.as_ref().map_or(0, |(network, ..)| statistics(network));
        ((biases + adjusted + measured) * OF_ONE) as u64
    }

    /// Says which batch norms stay as they were although they were to be adjusted.
    pub fn warn_of_unadjusted(&self, report: &Report, session: &Session) {
        let Some((network, _)) = &self.adjust else { return };
        let changed = |name: &str| report.tensors.iter().any(|t| t.name == name && t.repaired.is_some());
        let left: Vec<&str> = network.running_means().into_iter().filter(|mean| !changed(mean)).collect();
        if let Some(first) = left.first() {
            let others = if left.len() > 1 { format!(" and {} more", left.len() - 1) } else { String::new() };
            session.warn(&[format!(
                "`{first}`{others}: not directly behind weights, which is where it could be predicted; left as it was \
                 (--reestimate-bn measures it)"
            )]);
        }
    }

    /// One after another: each sees what the one before it wrote.
    pub fn list(&self) -> Vec<Box<Repair<'_>>> {
        let mut list: Vec<Box<Repair<'_>>> = Vec::new();
        if let Some(calibration) = self.calibration {
            list.push(Box::new(move |container| convert::correct_bias(self.checkpoint, calibration, &container)));
        }
        if let Some((description, source)) = &self.adjust {
            list.push(Box::new(move |packed| net::adjust(description, source, &Source::Container(packed))));
        }
        if let Some((description, data, images, batch)) = &self.reestimate {
            list.push(Box::new(move |packed| self.reestimate(description, data, *images, *batch, packed)));
        }
        list
    }

    fn reestimate(
        &self,
        description: &Description,
        data: &DataSet,
        images: u32,
        batch: u32,
        packed: Container,
    ) -> Result<Vec<Replacement>> {
        let display = Display::of_images(self.global);
        let options = ReestimateOptions {
            batch: batch as usize,
            limit: Some(images as usize),
            progress: Some(&|done, total| display.advance(done as u64, total as u64, None)),
            cancel: Some(self.cancel),
        };
        let kernel = Kernel::new(Arithmetic::ExactF32)?;
        net::reestimate(description, &Source::Container(packed), data, &kernel, &options)
    }
}
