//! The `twn-pack` command. Not here: anything but the way in and out; see `cli`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
