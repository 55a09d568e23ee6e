//! Exporters and importers are the proof of the public interface: here both modules are compiled once more, as a part of
//! another crate in which `crate::` is what the library has public and nothing else. One private item, field or method
//! in use, and this file does not compile. That it is no other code is held by the bytes. Not here: what the formats do
//! (their own tests).

#![allow(dead_code, reason = "what the library's other modules use of these is not used here")]

use twn_pack::*;

#[path = "../src/export/mod.rs"]
mod export;
#[path = "../src/import/mod.rs"]
mod import;

use std::path::Path;

use twn_pack::select::Override;

#[test]
fn from_outside_they_do_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lenet5-mnist.safetensors");
    let settings = Settings::parse("granularity=tensor,planes=2").unwrap();
    let planes = Override { pattern: "fc1.weight".to_owned(), settings };
    let settings = Settings::parse("granularity=tensor").unwrap();
    let rules = Rules { settings, overrides: vec![planes], ..Rules::default() };
    let checkpoint = Checkpoint::open(fixture).unwrap();
    let plan = Plan::new(&checkpoint, &rules).unwrap();
    convert::pack(&checkpoint, &plan, &path("m.twn"), &convert::Options::default()).unwrap();
    let container = Container::open(path("m.twn")).unwrap();
    let mut read = 0;
    for (ours, theirs) in twn_pack::export::FORMATS.into_iter().zip(export::FORMATS) {
        let name = ours.name();
        assert_eq!(name, theirs.name());
        if name.starts_with("onnx") {
            continue;
        }
        let refused_as_dense = name != "safetensors";
        let options = twn_pack::export::Options { refused_as_dense, ..Default::default() };
        let exported = ours.export(&container, &options).unwrap();
        twn_pack::export::write(&container, &exported, &path(name), &Default::default()).unwrap();
        let options = export::Options { refused_as_dense, ..Default::default() };
        let exported = theirs.export(&container, &options).unwrap();
        let options = export::WriteOptions { overwrite: true, ..Default::default() };
        export::write(&container, &exported, &path("outside"), &options).unwrap();
        assert_eq!(std::fs::read(path(name)).unwrap(), std::fs::read(path("outside")).unwrap(), "{name}");
        let (ours, theirs) = (twn_pack::import::open(path(name)), import::open(path(name)));
        if let Ok(ours) = &ours {
            read += 1;
            let theirs = theirs.as_ref().unwrap();
            assert!(
                ours.tensors().map(|t| (t.name, t.stored)).eq(theirs.tensors().map(|t| (t.name, t.stored))),
                "{name}"
            );
        }
        assert_eq!(ours.err().map(|e| e.to_string()), theirs.err().map(|e| e.to_string()), "{name}");
    }
    assert!(read >= 4, "{read}");
}
