//! `twn-pack train`: a network learns with ternary weights. Not here: the loop; that is the library's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use twn_pack::data::Split;
use twn_pack::net::{Description, Source};
use twn_pack::select::Keep;
use twn_pack::train::{self, Augment, LayerMethod, Loss, Metrics, Recipe, Request, Rule, Schedule, Setup};
use twn_pack::{Error, Plan, Result, Rules, Settings, convert, import, report};

use super::data::DataArgs;
use super::exit::Exit;
use super::memory::{available, memory};
use super::network::NetworkArgs;
use super::progress::Display;
use super::rules::WhichArgs;
use super::{Session, open_source, print, printable};

#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    net: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Start from these weights (.safetensors or .twn); without, from random ones
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    /// The checkpoint to write
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: PathBuf,
    /// Pack it too
    #[arg(long, value_name = "OUT.twn")]
    pack: Option<PathBuf>,
    /// Replace outputs that exist
    #[arg(short, long)]
    force: bool,
    /// Directory for the run's state and its metrics.jsonl [default: the output's name with .run]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Go on with an interrupted run, bit for bit; all else has to be given as before
    #[arg(long)]
    resume: bool,
    /// With --resume: another recipe from there on, such as a lower --rate; batch and optimizer stay
    #[arg(long, requires = "resume")]
    new_recipe: bool,
    /// With --resume: images or labels that changed since, as where one was mended
    #[arg(long, requires = "resume")]
    new_data: bool,
    #[command(flatten)]
    methods: MethodArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// What first weights, the images' order and their changes follow from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only the first N training images
    #[arg(long, value_name = "N")]
    train_images: Option<usize>,
    /// Only the first N test images
    #[arg(long, value_name = "N")]
    test_images: Option<usize>,
    /// Print the last epoch's metrics as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What becomes ternary, and how")]
struct MethodArgs {
    /// none (full precision), twn, bwn, absmean, optimal, tga, esa or binaryconnect [default: the recipe's, as tga
    /// of tga-imagenet, else twn]
    #[arg(short, long, value_name = "NAME")]
    method: Option<String>,
    /// The factor f of twn, Δ = f·mean|w| [default: 0.7]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    factor: Option<f64>,
    /// Which weights share a scale: filter, tensor or group:N [default: as the method has it]
    #[arg(short, long, value_name = "WHICH")]
    granularity: Option<String>,
    /// The paper's controller of sparsity for esa, between 0 and 2 [default: 0.5]
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    sparsity_alpha: Option<f64>,
    #[command(flatten)]
    which: WhichArgs,
    /// Read rules from a TOML file, as for packing; options given here win over its own settings, --set over its
    /// overrides
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "How to train")]
struct RecipeArgs {
    /// repair, twn-mnist, twn-cifar10, twn-imagenet, tga-imagenet or binaryconnect: what the options
    /// below start from [default: repair with --init, else none and --epochs is needed]
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    /// Times through the training images; milestones keep their share
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// Images per step
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// The learning rate at the start
    #[arg(long, value_name = "RATE")]
    rate: Option<f64>,
    /// The rate over time: constant, cosine, or epochs and a divisor, as 15,25/10
    #[arg(long, value_name = "HOW", value_parser = schedule)]
    schedule: Option<Schedule>,
    /// How gradients move weights
    #[arg(long)]
    optimizer: Option<OptimizerName>,
    /// Of sgd
    #[arg(long, value_name = "M")]
    momentum: Option<f64>,
    /// Added to every gradient, times the weight
    #[arg(long, value_name = "D")]
    weight_decay: Option<f64>,
    /// What is made small
    #[arg(long)]
    loss: Option<LossName>,
    /// How training images are changed at random: none, cifar, imagenet, or pad:N or crop, with or without
    /// flip, as pad:4 or crop,flip
    #[arg(long, value_name = "HOW", value_parser = Augment::parse)]
    augment: Option<Augment>,
    /// How hard esa's penalty pulls weights to −1, 0 and 1, at the first step and at the last: in each step
    /// this, over the number of steps, down its slope, whatever the rate [default: 1 100]
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    penalty: Option<Vec<f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerName {
    Sgd,
    Adam,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LossName {
    CrossEntropy,
    Hinge,
    SquaredHinge,
}

fn schedule(text: &str) -> std::result::Result<Schedule, String> {
    match text {
        "constant" => Ok(Schedule::Constant),
        "cosine" => Ok(Schedule::Cosine),
        _ => {
            let expected = "expected constant, cosine, or epochs and a divisor, as 15,25/10";
            let (epochs, divisor) = text.split_once('/').ok_or(expected)?;
            let milestones: Option<Vec<u32>> = epochs.split(',').map(|epoch| epoch.parse().ok()).collect();
            let divisor = divisor.parse().ok().filter(|divisor: &f64| divisor.is_finite() && *divisor > 0.0);
            Ok(Schedule::MultiStep { milestones: milestones.ok_or(expected)?, divisor: divisor.ok_or(expected)? })
        }
    }
}

impl RecipeArgs {
    fn recipe(&self, from_scratch: bool) -> Result<Recipe> {
        let mut recipe = match &self.recipe {
            Some(name) => Recipe::named(name)?,
            None if from_scratch && self.epochs.is_none() => {
                let message = "from random weights, say how to train: --recipe NAME, or at least --epochs";
                return Err(Error::Request(message.to_owned()));
            }
            None => Recipe::named("repair")?,
        };
        if let Some(epochs) = self.epochs {
            recipe = recipe.with_epochs(epochs);
        }
        let momentum = match (self.optimizer, recipe.rule) {
            (Some(OptimizerName::Adam), _) | (None, Rule::Adam) => None,
            (_, Rule::Sgd { momentum }) => Some(self.momentum.unwrap_or(momentum)),
            (Some(OptimizerName::Sgd), Rule::Adam) => Some(self.momentum.unwrap_or(0.9)),
        };
        if momentum.is_none() && self.momentum.is_some() {
            return Err(Error::Request("--momentum is for sgd; adam has none".to_owned()));
        }
        recipe.rule = momentum.map_or(Rule::Adam, |momentum| Rule::Sgd { momentum });
        recipe.batch = self.batch.unwrap_or(recipe.batch);
        recipe.rate = self.rate.unwrap_or(recipe.rate);
        recipe.weight_decay = self.weight_decay.unwrap_or(recipe.weight_decay);
        recipe.schedule = self.schedule.clone().unwrap_or(recipe.schedule);
        recipe.loss = match self.loss {
            None => recipe.loss,
            Some(LossName::CrossEntropy) => Loss::CrossEntropy,
            Some(LossName::Hinge) => Loss::Hinge,
            Some(LossName::SquaredHinge) => Loss::SquaredHinge,
        };
        recipe.augment = self.augment.unwrap_or(recipe.augment);
        if let Some([from, to]) = self.penalty.as_deref() {
            recipe.penalty = [*from, *to];
        }
        recipe.check()?;
        Ok(recipe)
    }
}

impl MethodArgs {
    /// With the method that the recipe was made for, if nobody names one.
    fn rules(&self, recipe: Option<&str>) -> Result<Rules> {
        let known = |name: &str, factor| {
            let request = Request { factor, ..Request::default() };
            train::method::<f32>(name, &request).map(drop)
        };
        let path = self.rules.as_ref();
        let mut rules = path.map_or_else(|| Ok(Rules::default()), |path| Rules::from_toml_file_with(path, &known))?;
        let granularity = self.granularity.as_ref().map(|text| format!("granularity={text}"));
        let settings = Settings::parse(&granularity.unwrap_or_default())?;
        let (method, sparsity_alpha) = (self.method.clone(), self.sparsity_alpha);
        let asked = Settings { method, factor: self.factor, sparsity_alpha, ..settings };
        rules.settings = asked.or(&rules.settings);
        let usual = recipe.and_then(Recipe::method).unwrap_or("twn");
        rules.settings.method.get_or_insert_with(|| usual.to_owned());
        self.which.add_to(&mut rules)?;
        Ok(rules)
    }

    /// By the name of a layer's weights.
    fn methods(
        &self,
        description: &Description,
        recipe: Option<&str>,
        session: &Session,
    ) -> Result<BTreeMap<String, LayerMethod>> {
        let rules = self.rules(recipe)?;
        let names = description.weight_names();
        let warn = |pattern| format!("pattern `{pattern}` matches no layer's weights");
        session.warn(&rules.unused_patterns(&names)?.into_iter().map(warn).collect::<Vec<_>>());
        let mut methods = BTreeMap::new();
        for (name, settings) in names.iter().zip(rules.for_layers(&names)?) {
            let Settings { planes, axis, encoding, scale_dtype, .. } = &settings;
            if planes.is_some() || axis.is_some() || encoding.is_some() || scale_dtype.is_some() {
                let message = "planes, axis, encoding and scale-dtype are for packing; training has no use for them";
                return Err(Error::Request(message.to_owned()));
            }
            if settings.keep == Some(Keep::Int8) {
                let message = "keep=int8 is for packing; training has no use for it: ternary or dense";
                return Err(Error::Request(message.to_owned()));
            }
            let chosen = settings.method.unwrap_or_default();
            let mut request = Request {
                factor: settings.factor,
                granularity: settings.granularity,
                // What is said for all layers is for those with esa.
                sparsity_alpha: settings
                    .sparsity_alpha
                    .filter(|_| chosen == "esa" || settings.sparsity_alpha != rules.settings.sparsity_alpha),
            };
            if Some(&chosen) != rules.settings.method.as_ref() && train::method::<f32>(&chosen, &request).is_err() {
                // --factor and --granularity are for --method; a layer with another one may have no use for them.
                request.factor = request.factor.filter(|_| settings.factor != rules.settings.factor);
                request.granularity =
                    request.granularity.filter(|_| settings.granularity != rules.settings.granularity);
            }
            // Says what is wrong with it before the long work.
            let ternary = train::method::<f32>(&chosen, &request)?.is_some();
            if ternary && settings.keep != Some(Keep::Dense) {
                methods.insert((*name).to_owned(), LayerMethod { name: chosen, request });
            }
        }
        if rules.settings.sparsity_alpha.is_some() && !uses_esa(&methods) {
            return Err(Error::Request("sparsity-alpha is for esa, and no layer has that method".to_owned()));
        }
        Ok(methods)
    }
}

fn uses_esa(methods: &BTreeMap<String, LayerMethod>) -> bool {
    methods.values().any(|method| method.name == "esa")
}

pub(super) fn run(args: TrainArgs, session: &Session) -> anyhow::Result<Exit> {
    let description = args.net.open()?;
    let recipe = args.recipe.recipe(args.init.is_none())?;
    let methods = args.methods.methods(&description, args.recipe.recipe.as_deref(), session)?;
    if args.recipe.penalty.is_some() && !uses_esa(&methods) {
        return Err(Error::Request("--penalty is for esa, and no layer has that method".to_owned()).into());
    }
    let directory = args.run.clone().unwrap_or_else(|| args.output.with_extension("run"));
    check_outputs(&args, &directory)?;
    if args.pack.is_some() && methods.is_empty() {
        let message =
            "--pack: no layer becomes ternary in this training; pack what it writes with `twn-pack MODEL -o OUT.twn`";
        return Err(Error::Request(message.to_owned()).into());
    }
    let [train, test] = [Split::Train, Split::Test].map(|split| args.data.open(split, description.input()));
    let (train, test) = (train?, test?);
    let init = args.init.as_deref().map(|path| open_source(path, session)).transpose()?;
    session.warn(&init.as_ref().and_then(|init| left_over(init, &description)).into_iter().collect::<Vec<_>>());
    let train_images = args.train_images.unwrap_or(train.len());
    let test_images = args.test_images.unwrap_or(test.len());
    let setup = Setup {
        network: name_of(description.name()),
        layers: description.checksum(),
        data: [train.checksum(train_images)?, test.checksum(test_images)?],
        methods,
        recipe,
        seed: args.seed,
        train_images,
        test_images,
    };
    let needed = train::memory(&description, &setup);
    if let Some(available) = available().filter(|&available| needed > available) {
        let [needed, available] = [needed, available].map(report::bytes);
        return Err(Error::Request(format!(
            "training takes up to {needed} of memory besides the images, and {available} are free; expected a smaller \
             --batch or --width"
        ))
        .into());
    }
    let say = |text: &str| {
        if !session.global.quiet {
            let _ = writeln!(io::stderr(), "{}", printable(text));
        }
    };
    // Pages of a mapped file count for the process, but the system takes them back where memory is short.
    let mapped = init.as_ref().map(|init| format!(" and {} of --init, mapped", report::bytes(file_bytes(init))));
    let mapped = mapped.unwrap_or_default();
    say(&format!("{}; up to {} of memory besides the images{mapped}", summary(&setup), report::bytes(needed)));
    let display = Display::of_images(&session.global);
    let options = train::Options {
        init: init.as_ref(),
        directory: &directory,
        resume: args.resume,
        new_recipe: args.new_recipe,
        new_data: args.new_data,
        progress: Some(&|progress| {
            let state = format!("loss {:.4}, {:.2} %", progress.loss, 100.0 * progress.accuracy);
            let what = format!("epoch {}: {state}", progress.epoch);
            display.advance(progress.done, progress.total, Some(&what));
        }),
        epoch: Some(&|metrics| display.above(|| say(&line(metrics)))),
        cancel: Some(&session.cancel),
    };
    let outcome = train::train(&description, (&train, &test), &setup, &options);
    drop(display);
    let mut outcome = match outcome {
        Err(Error::Cancelled) => {
            let directory = directory.display();
            say(&format!("interrupted; the run is in {directory}: the same command with --resume goes on with it"));
            return Err(Error::Cancelled.into());
        }
        // As an image that cannot be decoded.
        Err(error @ Error::Data { .. }) if directory.join(train::STATE).exists() => {
            let directory = directory.display();
            say(&format!(
                "the run is in {directory}: once the images are mended, the same command with --resume --new-data goes on \
                 with it"
            ));
            return Err(error.into());
        }
        outcome => outcome?,
    };
    if let Some(settled) = outcome.metrics.settled.filter(|settled| *settled < SETTLED) {
        session.warn(&[format!(
            "{:.1} % of the weights of esa had settled when they were rounded, so that the last of them may have cost \
             accuracy; more --epochs, or a larger second value of --penalty, lets them settle",
            100.0 * settled
        )]);
    }
    outcome.network.save(&args.output, args.force, outcome.steps)?;
    if let Some(output) = &args.pack {
        pack(&args.output, output, args.force, session)?;
    }
    if args.json {
        return print(serde_json::to_string_pretty(&outcome.metrics)? + "\n");
    }
    if session.global.quiet {
        return Ok(Exit::Success);
    }
    let peak = memory("VmHWM:").map_or("-".to_owned(), report::bytes);
    let percent = 100.0 * outcome.metrics.test_accuracy;
    print(format!("test accuracy {percent:.2} %, {peak} of memory at most\n"))
}

/// With fewer of the weights near their ternary values, the end of a run is another network than its last epoch's.
const SETTLED: f64 = 0.99;

fn file_bytes(init: &Source) -> u64 {
    match init {
        Source::Checkpoint(checkpoint) => checkpoint.file_bytes(),
        Source::Container(container) => std::fs::metadata(container.path()).map_or(0, |file| file.len()),
    }
}

/// What of a file is for no layer of the network: it is read for nothing, or a name is another one than was meant.
fn left_over(init: &Source, description: &Description) -> Option<String> {
    let known: BTreeSet<&str> = description.tensors().into_iter().map(|(name, _)| name).collect();
    let names: Vec<&str> = match init {
        Source::Checkpoint(checkpoint) => checkpoint.tensors().map(|tensor| tensor.name).collect(),
        Source::Container(container) => container.tensors().map(|(name, _)| name).collect(),
    };
    let unknown = |name: &&&str| !known.contains(**name) && !name.ends_with("num_batches_tracked");
    let left: Vec<&str> = names.iter().filter(unknown).copied().collect();
    let more = left.len().saturating_sub(8);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let path = init.path().display();
    (!left.is_empty()).then(|| {
        format!(
            "{path}: the network has no tensor of these names, which are left out: {}{more}",
            left[..left.len().min(8)].join(", ")
        )
    })
}

/// The same wherever a description's file is seen from.
fn name_of(network: &str) -> String {
    Path::new(network).file_name().map_or(network.into(), |name| name.to_string_lossy().into_owned())
}

/// Before the long work, so that it is not in vain.
fn check_outputs(args: &TrainArgs, directory: &Path) -> Result<()> {
    let outputs: Vec<&PathBuf> = [Some(&args.output), args.pack.as_ref()].into_iter().flatten().collect();
    let places: Vec<PathBuf> = outputs.iter().map(|output| place(output)).collect();
    for (i, output) in outputs.iter().enumerate() {
        if places[..i].contains(&places[i]) || places[i] == place(directory) {
            let output = output.display();
            return Err(Error::Request(format!("{output}: expected different paths for -o, --pack and --run")));
        }
        if output.is_dir() {
            let output = output.display();
            return Err(Error::Request(format!(
                "{output} is a directory; expected the name of a file for -o and --pack"
            )));
        }
        if output.exists() && !output.is_file() {
            let output = output.display();
            return Err(Error::Request(format!("{output}: expected a regular file to replace for -o and --pack")));
        }
        if output.exists() && !args.force {
            return Err(Error::OutputExists { path: (*output).clone() });
        }
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            return Err(Error::Request(format!("{}: there is no directory {}", output.display(), parent.display())));
        }
    }
    Ok(())
}

/// One file has one place, however it is spelt.
fn place(path: &Path) -> PathBuf {
    if let Ok(place) = path.canonicalize() {
        return place;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_path_buf(),
    }
}

/// The checkpoint, packed as it was trained.
fn pack(checkpoint: &Path, output: &Path, overwrite: bool, session: &Session) -> Result<()> {
    let checkpoint = import::open(checkpoint)?;
    let plan = Plan::new(&checkpoint, &Rules::default())?;
    let options = convert::Options { overwrite, cancel: Some(&session.cancel), ..convert::Options::default() };
    convert::pack(&checkpoint, &plan, output, &options).map(drop)
}

/// One line on what is to come.
fn summary(setup: &Setup) -> String {
    let Recipe { epochs, batch, rate, .. } = setup.recipe;
    let mut methods: Vec<&str> = setup.methods.values().map(|method| &*method.name).collect();
    methods.sort_unstable();
    methods.dedup();
    let methods = if methods.is_empty() { "full precision".to_owned() } else { methods.join(", ") };
    format!(
        "{}: {methods} in {} layers; {epochs} epochs of {} images in batches of {batch}, rate {rate}, seed {}",
        setup.network,
        setup.methods.len(),
        setup.train_images,
        setup.seed
    )
}

fn line(metrics: &Metrics) -> String {
    let sparsity = metrics.sparsity.map_or(String::new(), |share| format!("  {:.1} % zeros", 100.0 * share));
    let settled = metrics.settled.map_or(String::new(), |share| format!("  {:.1} % settled", 100.0 * share));
    format!(
        "epoch {:3}  rate {:.2e}  loss {:.4}  train {:.2} %  test {:.2} %{sparsity}{settled}  {:.0} images/s",
        metrics.epoch,
        metrics.rate,
        metrics.loss,
        100.0 * metrics.train_accuracy,
        100.0 * metrics.test_accuracy,
        metrics.images_per_second
    )
}
