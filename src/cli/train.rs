//! `twn-pack train`: a network learns with ternary weights. Not here: the loop; that is the library's.

mod outputs;
mod recipe;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use twn_pack::data::Split;
use twn_pack::net::{Description, Source};
use twn_pack::select::Keep;
use twn_pack::train::{self, LayerMethod, Metrics, Recipe, Request, Setup};
use twn_pack::{Error, Result, Rules, Settings, report};

use self::outputs::{check_outputs, pack, publish};
use self::recipe::{RecipeArgs, warnings};
use super::data::DataArgs;
use super::exit::Exit;
use super::memory::{available, memory};
use super::network::NetworkArgs;
use super::plot::draw_run;
use super::progress::Display;
use super::rules::WhichArgs;
use super::{Session, open_source, print, printable, refuse_outputs};

#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    net: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Start from these weights (.twn, or a checkpoint of any format); without, from random ones
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
    /// Directory for the run's state, its metrics.jsonl and accuracy.svg [default: the output's name with .run]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Go on with an interrupted run, bit for bit; all else has to be given as before
    #[arg(long)]
    resume: bool,
    /// With --resume: another recipe from there on, such as a lower --rate; batch and optimizer stay
    #[arg(long, requires = "resume")]
    new_recipe: bool,
    /// With --resume: images or labels that changed since, as where one was mended or removed
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
        let method = rules.settings.method.as_deref().unwrap_or_default();
        if methods.is_empty() && train::method::<f32>(method, &Request::default())?.is_some() {
            session.warn(&[format!("no layer is left for `{method}`: the network is trained in full precision")]);
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
    session.warn(&warnings(&recipe));
    let directory = args.run.clone().unwrap_or_else(|| args.output.with_extension("run"));
    let inputs = [Some(args.net.path()), args.methods.rules.as_deref()];
    refuse_outputs(&[Some(&args.output), args.pack.as_deref()], &inputs)?;
    check_outputs(&args, &directory, recipe.epochs)?;
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
    let needed = train::memory(&description, &setup, rayon::current_num_threads());
    if let Some(available) = available().filter(|&available| needed > available) {
        let [needed, available] = [needed, available].map(report::bytes);
        return Err(Error::Request(format!(
            "training takes up to {needed} of memory besides the images, and {available} are free; expected a smaller \
             --batch or --width"
        ))
        .into());
    }
    let display = Display::of_images(&session.global);
    let (json, start) = (display.is_json(), Cell::new(None));
    let say = |text: &str| {
        if !session.global.quiet {
            let _ = writeln!(io::stderr(), "{}", printable(text));
        }
    };
    if !json {
        say(&format!("{}; up to {}", summary(&setup), all_memory(needed, init.as_ref())));
    }
    let options = train::Options {
        init: init.as_ref(),
        directory: &directory,
        resume: args.resume,
        new_recipe: args.new_recipe,
        new_data: args.new_data,
        progress: Some(&|progress| {
            let train::Progress { done, total, epoch, loss, accuracy, images_per_second } = *progress;
            let (began, before) = start.get().unwrap_or_else(|| (Instant::now(), done));
            start.set(Some((began, before)));
            display.tell(done, total, &format!("epoch {epoch}: loss {loss:.4}, {:.2} %", 100.0 * accuracy), || {
                // Evaluations between the epochs take their time, too; of the first step alone nobody knows.
                let speed = if done > before {
                    (done - before) as f64 / began.elapsed().as_secs_f64()
                } else {
                    images_per_second
                };
                serde_json::json!({
                    "done": done, "total": total, "epoch": epoch, "loss": loss, "accuracy": accuracy,
                    "images_per_second": images_per_second, "seconds_left": (total - done) as f64 / speed,
                })
            });
        }),
        epoch: Some(&|metrics| {
            if !json {
                display.above(|| say(&line(metrics)));
            }
        }),
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
    let replace = args.force || args.resume;
    publish(&args.output, &args, |path| outcome.network.save(path, replace, &setup.methods, outcome.steps))?;
    if let Some(output) = &args.pack {
        publish(output, &args, |path| pack(&args.output, path, replace, session))?;
    }
    // Without metrics, which are lost when their file is, there is nothing to draw.
    if train::last_metrics(&directory)?.is_some() {
        draw_run(&directory)?;
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

/// Of the program itself: what is not in memory before the first step.
const CODE: u64 = 6 << 20;

/// What the process will have held at most: what training needs, and what is there already, as the images.
fn all_memory(needed: u64, init: Option<&Source>) -> String {
    let file = init.map_or(0, file_bytes);
    // Pages of a mapped file count for the process, but the system takes them back where memory is short.
    let mapped = init.map_or(String::new(), |_| format!(", {} of it --init, mapped", report::bytes(file)));
    match memory("VmRSS:") {
        Some(held) => format!(
            "{} of memory{mapped}",
            report::bytes([held, CODE, file].into_iter().fold(needed, u64::saturating_add))
        ),
        None => format!("{} of memory besides images and program{mapped}", report::bytes(needed.saturating_add(file))),
    }
}

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
