//! README.md shows what the program really prints: its `console` blocks are run, in order, in a
//! directory of their own, with its TOML as `rules.toml`. A line `…` stands for lines left out.
//! (Its Rust is compiled as a doctest; see `lib.rs`.)

mod common;

use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../README.md");

/// The fenced blocks of that language.
fn blocks(language: &str) -> Vec<&'static str> {
    let open = format!("```{language}\n");
    README.split(open.as_str()).skip(1).map(|rest| rest.split_once("```").expect("a closed block").0).collect()
}

/// Words of a shell line; single quotes keep words together.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('\'').enumerate();
    parts
        .flat_map(|(i, part)| if i % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
        .map(str::to_owned)
        .collect()
}

/// Whether `shown` is `printed`, but for what `…` leaves out.
fn check(command: &str, shown: &[&str], printed: &str) {
    let mut printed = printed.lines();
    let mut skip = false;
    for line in shown {
        if *line == "…" {
            skip = true;
            continue;
        }
        let found = if skip { printed.find(|p| p == line) } else { printed.next() };
        assert_eq!(found, Some(*line), "{command}");
        skip = false;
    }
    assert!(skip || printed.next().is_none(), "{command}: README.md shows less than is printed, without a `…`");
}

#[test]
fn examples_print_what_the_readme_shows() {
    let directory = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    std::fs::create_dir(directory.path().join("fixtures")).unwrap();
    let network = "fixtures/lenet5-mnist.safetensors";
    std::fs::copy(fixtures.join("lenet5-mnist.safetensors"), directory.path().join(network)).unwrap();
    std::fs::create_dir(directory.path().join("fixtures/mnist64")).unwrap();
    for name in common::names(&fixtures.join("mnist64")) {
        let images = Path::new("mnist64").join(name);
        std::fs::copy(fixtures.join(&images), directory.path().join("fixtures").join(&images)).unwrap();
    }
    std::fs::write(directory.path().join("rules.toml"), blocks("toml")[0]).unwrap();
    let mut run = 0;
    for block in blocks("console") {
        let lines: Vec<&str> = block.lines().collect();
        for example in lines.chunk_by(|_, next| !next.starts_with("$ ")) {
            let command = example[0].strip_prefix("$ ").expect("a command first");
            let arguments = command.strip_prefix("twn-pack ").or(command.strip_prefix("cargo run --release -- "));
            // Output that goes elsewhere, and commands of others, are not shown.
            let Some(arguments) = arguments.filter(|_| !command.contains('>')) else { continue };
            let output =
                Command::new(common::BINARY).args(words(arguments)).current_dir(directory.path()).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            check(command, &example[1..], std::str::from_utf8(&output.stdout).unwrap());
            run += 1;
        }
    }
    assert_eq!(run, 13, "commands in README.md");
}

#[test]
fn options_and_exit_codes_are_those_of_the_program() {
    let (help, _) = common::expect(0, &["--help"]);
    for option in README.split('`').filter(|span| span.starts_with("--")) {
        let option = option.split_whitespace().next().unwrap();
        let known = ["", "inspect", "verify", "unpack", "export", "eval", "fold", "train", "plot", "sweep"].iter().any(
            |command| {
                let arguments: Vec<&str> = [*command, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
                common::expect(0, &arguments).0.contains(option)
            },
        );
        assert!(known, "{option} is in README.md, but in no --help");
    }
    for line in help.lines().skip_while(|line| *line != "Exit codes:").skip(1).take_while(|line| !line.is_empty()) {
        let (code, meaning) = line.trim().split_once(' ').unwrap();
        assert!(README.contains(&format!("| {code} | {} |", meaning.trim())), "{line}");
    }
}
