//! The options that say what becomes ternary and how; shared by `pack` and `inspect`.

use std::path::{Path, PathBuf};

use clap::Args;
use twn_pack::select::Override;
use twn_pack::{Checkpoint, Error, Plan, Result, Rules, Settings, import};

use super::Session;

/// Which tensors; shared with `train`.
#[derive(Debug, Default, PartialEq, Args)]
pub(super) struct WhichArgs {
    /// Make only tensors that match ternary (repeatable); names that stay dense by default count too
    #[arg(short, long, value_name = "GLOB")]
    include: Vec<String>,
    /// Keep tensors that match dense (repeatable); stronger than --include
    #[arg(short = 'x', long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Keep the first and the last layer dense
    #[arg(long)]
    keep_first_last: bool,
    /// Other settings for tensors that match (repeatable, later ones win): method, factor, granularity,
    /// keep=ternary|int8|dense; for packing planes, axis, encoding, scale-dtype, for training sparsity-alpha; as
    /// key=value,key=value
    #[arg(long, num_args = 2, value_names = ["GLOB", "SETTINGS"], action = clap::ArgAction::Append)]
    set: Vec<String>,
}

impl WhichArgs {
    /// Adds them to the rules.
    pub fn add_to(&self, rules: &mut Rules) -> Result<()> {
        rules.include.extend(self.include.iter().cloned());
        rules.exclude.extend(self.exclude.iter().cloned());
        rules.keep_first_last |= self.keep_first_last;
        for pair in self.set.chunks_exact(2) {
            rules.overrides.push(Override { pattern: pair[0].clone(), settings: Settings::parse(&pair[1])? });
        }
        Ok(())
    }
}

#[derive(Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "What becomes ternary, and how")]
pub(super) struct RuleArgs {
    /// Threshold and scale: twn (Δ = 0.7·mean|w|), optimal (least squared error), absmean, bwn
    /// (signs only), auto (only what is ternary already, without loss; the rest stays dense, or what a target size or error makes of it) [default: twn]
    #[arg(short, long, value_name = "NAME")]
    method: Option<String>,
    /// The factor f of twn, Δ = f·mean|w| [default: 0.7]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    factor: Option<f64>,
    /// Which weights share a scale: filter, tensor or group:N [default: filter]
    #[arg(short, long, value_name = "WHICH")]
    granularity: Option<String>,
    /// How many planes, 1 to 4: W ≈ α₁T₁ + α₂T₂ + …, each with its own scales [default: 1]
    #[arg(long, value_name = "P")]
    planes: Option<usize>,
    /// The filter axis: 0 for PyTorch's Conv and Linear, 1 for GPT-2's Conv1D and ConvTranspose [default: 0]
    #[arg(long, value_name = "N")]
    axis: Option<usize>,
    /// How codes are packed: t2 (2 bits), t5 (five trits a byte), b1 (bwn only) [default: t2, b1 for bwn]
    #[arg(short, long, value_name = "NAME")]
    encoding: Option<String>,
    /// The type of the scales: f32 or f16 [default: f32]
    #[arg(long, value_name = "TYPE")]
    scale_dtype: Option<String>,
    #[command(flatten)]
    which: WhichArgs,
    /// Give tensors that match 8 bits a weight and a scale per filter (repeatable), whatever they are called;
    /// as --set GLOB keep=int8 in front of every --set
    #[arg(long, value_name = "GLOB")]
    int8: Vec<String>,
    /// Read rules from a TOML file; options given here win over its own settings, --set over its
    /// overrides
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

impl RuleArgs {
    /// The file of rules.
    pub fn file(&self) -> Option<&Path> {
        self.rules.as_deref()
    }

    /// A checkpoint and what is to become of it, with the warnings of both.
    pub fn open(&self, model: &Path, session: &Session) -> Result<(Checkpoint, Plan)> {
        let checkpoint = import::open(model)?;
        let plan = Plan::new(&checkpoint, &self.rules()?)?;
        session.warn(checkpoint.warnings());
        session.warn(&plan.warnings);
        Ok((checkpoint, plan))
    }

    /// For runs that choose planes and granularity themselves.
    pub fn refuse_rungs(&self) -> Result<()> {
        let settings = self.rules()?.settings;
        let option = match (settings.planes, settings.granularity) {
            (Some(_), _) => "planes",
            (None, Some(_)) => "granularity",
            (None, None) => return Ok(()),
        };
        Err(Error::Request(format!(
            "{option} with a target or a sweep, which try all of them; leave that out, or fix it for some tensors (--set GLOB \
             {option}=…)"
        )))
    }

    fn rules(&self) -> Result<Rules> {
        let mut rules = match &self.rules {
            Some(path) => Rules::from_toml_file(path)?,
            None => Rules::default(),
        };
        rules.settings = self.settings()?.or(&rules.settings);
        rules.overrides.extend(self.int8.iter().cloned().map(Override::int8));
        self.which.add_to(&mut rules)?;
        Ok(rules)
    }

    /// The same words as in `--set` and in TOML, so one parser serves all three.
    fn settings(&self) -> Result<Settings> {
        let texts = [
            ("method", &self.method),
            ("granularity", &self.granularity),
            ("encoding", &self.encoding),
            ("scale-dtype", &self.scale_dtype),
        ];
        let texts = texts.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?)));
        let settings = Settings::parse(&texts.collect::<Vec<_>>().join(","))?;
        Ok(Settings { factor: self.factor, planes: self.planes, axis: self.axis, ..settings })
    }
}
