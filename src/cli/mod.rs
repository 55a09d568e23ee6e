//! The command line: parse → run → exit code. One file per subcommand. Not here: any work on
//! tensors; that is the library's.

mod budget;
mod calibrate;
mod calibration;
mod data;
mod eval;
mod exit;
mod export;
mod fold;
mod inspect;
mod memory;
mod network;
mod pack;
mod plot;
mod progress;
mod repair;
mod rules;
mod train;
mod unpack;
mod verify;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use twn_pack::net::Source;
use twn_pack::{Container, Error, Plan, Rules, Settings, convert, import, select};

use self::exit::Exit;

/// Pack a float checkpoint into ternary weights: {-1, 0, +1} times a scale, 2 bits each.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = exit::HELP
)]
struct Cli {
    #[command(flatten)]
    pack: pack::PackArgs,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    global: Global,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Threads to use (default: one per core, but at most 16 to pack, inspect, sweep, verify, unpack and export)
    #[arg(short = 'j', long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print errors only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// How to show progress on stderr: a bar where that is a terminal, JSON lines, or nothing
    #[arg(long, global = true, value_name = "HOW", default_value = "auto")]
    progress: progress::Mode,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a .twn file holds and what it cost, or what packing a checkpoint would give
    Inspect(inspect::InspectArgs),
    /// Show how size and error of a checkpoint depend on each other, without packing it
    Sweep(Box<budget::SweepArgs>),
    /// Check every byte of a .twn file, and compare it with its checkpoint
    Verify(verify::VerifyArgs),
    /// Turn a .twn file back into .safetensors
    Unpack(unpack::UnpackArgs),
    /// Write a .twn file in another program's format
    #[command(after_help = export::formats())]
    Export(export::ExportArgs),
    /// Run a network over a data set: accuracy, images per second, memory
    Eval(eval::EvalArgs),
    /// Fold batch norm into the scales and biases of the layers before it
    Fold(fold::FoldArgs),
    /// Collect statistics of the inputs of a network's layers, for --calibration
    Calibrate(calibrate::CalibrateArgs),
    /// Train a network whose weights are ternary, from a float checkpoint or from scratch
    Train(Box<train::TrainArgs>),
    /// Draw the accuracy of training runs over their epochs, as SVG
    Plot(plot::PlotArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff), or write those of all commands
    Man {
        /// Write the page of every command into this directory instead; it need not be there
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ColorWhen {
    Auto,
    Always,
    Never,
}

impl ColorWhen {
    fn on_stdout(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => io::IsTerminal::is_terminal(&io::stdout()) && std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

/// What every subcommand gets besides its own arguments.
struct Session {
    global: Global,
    cancel: Arc<AtomicBool>,
}

/// Of two arguments that are no options clap says that the second cannot be a command there.
fn clearer(error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(second)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    let mut command = Cli::command();
    if error.kind() != ErrorKind::ArgumentConflict || command.find_subcommand(second).is_some() {
        return error;
    }
    let commands: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    let message = format!(
        "unexpected argument `{second}`: one checkpoint is packed at a time, into what -o names; the commands are {}",
        commands.join(", ")
    );
    command.error(ErrorKind::UnknownArgument, message)
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| clearer(error).exit());
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            // A reader that went away (`| head`) is no error of ours.
            if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
                return Exit::Success.into();
            }
            let _ = writeln!(io::stderr(), "twn-pack: {}", message(&format!("{error:#}")));
            Exit::of(&error).into()
        }
    }
}

/// What only reads, packs and writes takes some MiB per thread, and is as fast as memory with a few: its memory is bounded
/// where nothing is said of threads. 0 leaves it to rayon: what `RAYON_NUM_THREADS` says, or one per core.
fn threads_for(command: Option<&Command>) -> usize {
    const ENOUGH: usize = 16;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    match command {
        _ if cores <= ENOUGH || std::env::var_os("RAYON_NUM_THREADS").is_some() => 0,
        None
        | Some(
            Command::Inspect(_) | Command::Sweep(_) | Command::Verify(_) | Command::Unpack(_) | Command::Export(_),
        ) => ENOUGH,
        Some(_) => 0,
    }
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let session = Session { global: cli.global, cancel: Arc::new(AtomicBool::new(false)) };
    let cancel = Arc::clone(&session.cancel);
    // The first asks, the second does not wait for an answer.
    let interrupt = move || {
        if cancel.swap(true, Ordering::Relaxed) {
            std::process::exit(Exit::Interrupted as i32);
        }
    };
    ctrlc::set_handler(interrupt).context("cannot watch for Ctrl-C")?;
    prepare_signals();
    let threads = session.global.threads.map_or_else(|| threads_for(cli.command.as_ref()), usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("cannot start threads")?;
    pool.install(|| match cli.command {
        None => pack::run(cli.pack, &session),
        Some(Command::Inspect(args)) => inspect::run(args, &session),
        Some(Command::Sweep(args)) => budget::sweep(*args, &session),
        Some(Command::Verify(args)) => verify::run(args, &session),
        Some(Command::Unpack(args)) => unpack::run(args, &session),
        Some(Command::Export(args)) => export::run(args, &session),
        Some(Command::Eval(args)) => eval::run(args, &session),
        Some(Command::Fold(args)) => fold::run(args, &session),
        Some(Command::Calibrate(args)) => calibrate::run(args, &session),
        Some(Command::Train(args)) => train::run(*args, &session),
        Some(Command::Plot(args)) => plot::run(args),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "twn-pack", &mut script);
            print(&script)
        }
        Some(Command::Man { to: Some(directory) }) => {
            std::fs::create_dir_all(&directory)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &directory))
                .with_context(|| format!("cannot write manual pages into {}", directory.display()))?;
            Ok(Exit::Success)
        }
        Some(Command::Man { to: None }) => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            print(&page)
        }
    })
}

/// Errors about weights name the tensor; here it is known which checkpoint it is of.
fn naming_input(error: twn_pack::Error, input: &Path) -> anyhow::Error {
    let weights = matches!(error, twn_pack::Error::Weights { .. });
    let error = anyhow::Error::from(error);
    if weights { error.context(input.display().to_string()) } else { error }
}

/// What a command writes must be a file, and none of these inputs, however either is spelt. (The library refuses the
/// checkpoint that is packed, and what is unpacked or exported.)
fn refuse_outputs(outputs: &[Option<&Path>], inputs: &[Option<&Path>]) -> Result<(), Error> {
    let place = |path: &&Path| path.canonicalize().ok();
    for output in outputs.iter().flatten() {
        if *output == Path::new("-") {
            let message = "-: outputs are files that appear whole or not at all; of one that is called so, give ./-";
            return Err(Error::Request(message.to_owned()));
        }
        let inputs = || inputs.iter().flatten().filter_map(place);
        if place(output).is_some_and(|output| inputs().any(|input| input == output)) {
            return Err(Error::Request(format!("{} is an input; give another output", output.display())));
        }
    }
    Ok(())
}

/// Of outputs that a run would not replace, where a dry run does not get so far.
fn warn_of_existing(outputs: impl IntoIterator<Item = PathBuf>, session: &Session) {
    for path in outputs.into_iter().filter(|output| output.exists()) {
        session.warn(&[format!("{} exists already: the run will need --force", path.display())]);
    }
}

/// By its first bytes; a file called .twn stays one even where they are damaged.
fn is_container(path: &Path) -> Result<bool, Error> {
    // A directory is a checkpoint; to look into a pipe would wait for ever, and opening it as a
    // checkpoint says what is wrong with it.
    if !path.is_file() {
        return Ok(false);
    }
    let mut magic = [0; 4];
    let io = |source| Error::Io { path: path.to_path_buf(), action: "open", source };
    let read = File::open(path).map_err(io)?.read(&mut magic).map_err(io)?;
    Ok(read == 4 && magic == *b"\x89TWN" || path.extension().is_some_and(|extension| extension == "twn"))
}

/// A `.twn` file or a checkpoint, with its warnings.
fn open_source(path: &Path, session: &Session) -> Result<Source, Error> {
    if is_container(path)? {
        return Ok(Source::Container(Container::open(path)?));
    }
    let checkpoint = import::open(path)?;
    session.warn(checkpoint.warnings());
    Ok(Source::Checkpoint(checkpoint))
}

/// A `.twn` file, or a checkpoint: one that is to be ternary, by `method` or as it was trained, is packed
/// first, into a file that is gone with the run.
fn open_ternary(path: &Path, method: Option<&str>, session: &Session) -> anyhow::Result<Source> {
    let checkpoint = match open_source(path, session)? {
        Source::Container(_) if method.is_some() => {
            let message = "--method is for checkpoints; a .twn file is ternary already";
            return Err(Error::Request(message.to_owned()).into());
        }
        Source::Checkpoint(checkpoint) => checkpoint,
        container => return Ok(container),
    };
    if method == Some("none") || method.is_none() && select::trained(&checkpoint)?.is_empty() {
        return Ok(Source::Checkpoint(checkpoint));
    }
    let settings = Settings { method: method.map(str::to_owned), ..Settings::default() };
    let plan = Plan::new(&checkpoint, &Rules { settings, ..Rules::default() })?;
    session.warn(&plan.warnings);
    let directory = tempfile::tempdir().context("cannot make a temporary directory for the packed weights")?;
    let packed = directory.path().join("packed.twn");
    let options = convert::Options { cancel: Some(&session.cancel), ..convert::Options::default() };
    convert::pack(&checkpoint, &plan, &packed, &options).map_err(|e| naming_input(e, path))?;
    // What is mapped stays there when its name is gone.
    Ok(Source::Container(Container::open(&packed)?))
}

/// Results go to stdout.
fn print(text: impl AsRef<[u8]>) -> anyhow::Result<Exit> {
    print_with(|stdout| stdout.write_all(text.as_ref()))
}

/// What is too long to be put together first.
fn print_with(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<Exit> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    write(&mut stdout).and_then(|()| stdout.flush()).context("cannot write to standard output")?;
    Ok(Exit::Success)
}

/// Names come from strangers' files: control characters (a terminal would obey them) are escaped, and those that turn the
/// direction of a text.
fn printable(text: &str) -> String {
    let turns =
        |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let obeyed = |c: char| c.is_control() && c != '\n' || turns(c);
    let escape = |c: char| if obeyed(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// The same of one message, of which only indented lines are lines: names in it cannot begin one.
fn message(text: &str) -> String {
    let mut lines = text.split('\n');
    let first = lines.next().unwrap_or_default().to_owned();
    let joined = lines.fold(first, |text, line| text + if line.starts_with("  ") { "\n" } else { "\\n" } + line);
    printable(&joined)
}

impl Session {
    /// Warnings go to stderr.
    fn warn(&self, warnings: &[String]) {
        for warning in warnings.iter().filter(|_| !self.global.quiet) {
            let _ = writeln!(io::stderr(), "warning: {}", message(warning));
        }
    }
}

/// A mapped file that is cut short under us ends the process with SIGBUS; say so instead of dying
/// without a word. Nothing was published by then: outputs only appear when they are whole.
#[cfg(unix)]
fn prepare_signals() {
    extern "C" fn handler(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
        // SAFETY: the system hands over what it knows of the signal; of a fault (the codes above 0) that is its address.
        let fault = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
        // Whoever reads a mapping holds no lock of the allocator, so that the name may be looked up in memory of its own.
        let name = fault.and_then(mapped_at).unwrap_or_else(|| "an input file".to_owned());
        let text = format!(
            "twn-pack: {name} was cut short while it was being read, or its disk failed; no output was written, but a \
            .twn-partial may lie where it should be (--resume goes on with its own, others can be deleted); run it \
            again when the file is whole\n"
        );
        // SAFETY: write and _exit are async-signal-safe, and `text` has that length.
        unsafe {
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::_exit(Exit::Io as libc::c_int);
        }
    }
    // SAFETY: ignoring a signal has no conditions. A file size limit then is an error like a full disk.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    // SAFETY: all zeros are a valid `sigaction`, whose flags say what type `handler` has.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO;
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// The file that is mapped at this address, where the system tells (Linux).
#[cfg(unix)]
fn mapped_at(address: usize) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let number = |digits| usize::from_str_radix(digits, 16).ok();
    maps.lines().find_map(|line| {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let path = &line[line.find('/')?..];
        (number(from)? <= address && address < number(to)?).then(|| message(path))
    })
}

#[cfg(not(unix))]
fn prepare_signals() {}
