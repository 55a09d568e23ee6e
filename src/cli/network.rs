//! Which network: what all commands that have one take. Not here: what they do with it.

use std::path::Path;

use clap::Args;
use twn_pack::net::{Description, Overrides};

#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// The network: lenet5, vgg7, resnet18, resnet18b, resnet34, resnet50, resnet18-cifar,
    /// resnet18b-cifar, resnet34-cifar, resnet50-cifar, or a file that describes one
    #[arg(long, value_name = "NAME|PATH.toml")]
    net: String,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// What of a network is other than it is described.
#[derive(Debug, Args)]
pub(super) struct OverrideArgs {
    /// Multiply the filters of all its layers but the last (of resnet18b and resnet18b-cifar: instead of their own 1.5)
    #[arg(long, value_name = "FACTOR", requires = "net")]
    width: Option<f64>,
    /// Classes that it tells apart
    #[arg(long, value_name = "N", requires = "net")]
    classes: Option<usize>,
    /// Its images: channels, height and width, as 3x224x224
    #[arg(long, value_name = "CxHxW", requires = "net", value_parser = shape)]
    input: Option<[usize; 3]>,
}

impl NetworkArgs {
    /// Where it is described, unless that is a name.
    pub fn path(&self) -> &Path {
        Path::new(&self.net)
    }

    /// As described, with what was changed.
    pub fn open(&self) -> twn_pack::Result<Description> {
        self.overrides.open(&self.net)
    }
}

impl OverrideArgs {
    /// That network, with what was changed.
    pub fn open(&self, net: &str) -> twn_pack::Result<Description> {
        let Self { width, classes, input } = *self;
        Description::open(net)?.with(Overrides { input, width, classes })
    }
}

fn shape(text: &str) -> Result<[usize; 3], String> {
    let numbers: Option<Vec<usize>> = text.split('x').map(|number| number.parse().ok()).collect();
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or("expected CxHxW, as 3x224x224".to_owned())
}
