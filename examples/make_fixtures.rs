//! Writes the generated files of `fixtures/` anew, and the checksums of what is packed from them:
//! `cargo run --example make_fixtures`. Look at the difference before committing it: packed bytes
//! change only when the format or a method does.

#[path = "../tests/generate/mod.rs"]
mod generate;

use std::fmt::Write;

use twn_pack::Isa;

fn main() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let files = generate::all(scratch.path());
    generate::write(&files, &generate::directory());
    let mut checksums = String::new();
    for recipe in generate::packed::recipes() {
        let bytes = recipe.pack(&generate::directory(), scratch.path(), Isa::PORTABLE);
        writeln!(checksums, "{}", generate::packed::checksum(&recipe.output, &bytes)).expect("memory");
    }
    std::fs::write(generate::directory().join(generate::packed::CHECKSUMS), checksums).expect("fixtures/ is writable");
    println!("{} files, {} bytes", files.len(), files.values().map(Vec::len).sum::<usize>());
}
