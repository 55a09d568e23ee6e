//! What may be asked for: rules and settings, what contradicts itself, outputs that would replace an input. Not here: what comes out.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use twn_pack::Dtype;

use crate::World;
use crate::common::{self, BINARY, Made, expect};

#[test]
fn rules_choose_tensors_and_settings() {
    let world = World::new();
    let default = world.ternary(&[]);
    assert_eq!(default.len(), 7);
    assert_eq!(world.ternary(&["--include", "layer1.*"]).len(), 2);
    assert_eq!(world.ternary(&["--include", "layer1.*", "--include", "fc.weight"]).len(), 3);
    assert_eq!(
        world.ternary(&["--include", "*", "--exclude", "layer*"]),
        ["conv1.weight", "fc.weight", "odd,\"name\""]
    );
    // Excluded stays excluded; rank 1 stays dense whatever is asked.
    assert!(
        !world.ternary(&["-x", "fc.*", "-i", "fc.*", "--set", "fc.*", "keep=ternary"]).contains(&"fc.weight".into())
    );
    let plan = world.plan(&["--include", "bn1.weight"]);
    assert!(plan.iter().all(|t| t.1 == "dense") && plan.iter().any(|t| t.2 == "rank 1"), "{plan:?}");
    assert_eq!(world.ternary(&["--set", "*", "keep=dense"]).len(), 0);
    // The ends by name, numbers as numbers: layer10 is not the last, fc is.
    let kept = world.ternary(&["--keep-first-last", "-x", "odd*"]);
    assert!(
        !kept.contains(&"conv1.weight".into()) && !kept.contains(&"fc.weight".into()) && kept.len() == 4,
        "{kept:?}"
    );
    // They are the ends of all layers: who excludes one, or asks for some, does not move them; `keep` decides alone.
    let inner = world.ternary(&["--keep-first-last", "-x", "odd*", "-x", "conv1*"]);
    assert_eq!(inner, kept);
    assert_eq!(world.ternary(&["--keep-first-last", "-x", "odd*", "-i", "layer1.*"]).len(), 2);
    let asked = world.ternary(&["--keep-first-last", "-x", "odd*", "--set", "conv1*", "keep=ternary"]);
    assert!(asked.contains(&"conv1.weight".into()) && asked.len() == 5, "{asked:?}");

    let set = ["--set", "layer*", "method=bwn,granularity=tensor", "--set", "layer2*", "method=optimal,axis=1"];
    assert_eq!(world.became(&set, "layer1.0.conv1.weight"), "b1 bwn tensor");
    assert_eq!(world.became(&set, "layer2.0.conv1.weight"), "t2 optimal tensor axis 1");
    assert_eq!(world.became(&set, "fc.weight"), "t2 twn filter");

    let rules = world.path("rules.toml");
    let toml = "method = \"optimal\"\nencoding = \"t5\"\nexclude = [\"layer10*\"]\n\
                [[override]]\nmatch = \"fc.*\"\ngranularity = \"group:32\"\nscale-dtype = \"f16\"\n";
    std::fs::write(&rules, toml).unwrap();
    assert_eq!(world.became(&["--rules", &rules], "conv1.weight"), "t5 optimal filter");
    assert_eq!(world.became(&["--rules", &rules], "fc.weight"), "t5 optimal group:32");
    assert_eq!(world.became(&["--rules", &rules], "layer10.0.conv1.weight"), "dense");
    // What is given on the command line wins.
    assert_eq!(world.became(&["--rules", &rules, "-m", "absmean"], "conv1.weight"), "t5 absmean filter");
    assert_eq!(world.became(&["--rules", &rules, "-e", "t2"], "conv1.weight"), "t2 optimal filter");
    assert_eq!(
        world.became(&["--rules", &rules, "--set", "fc.*", "granularity=tensor"], "fc.weight"),
        "t5 optimal tensor"
    );
    // A warning, not an error: a pattern that matches nothing.
    let (_, stderr) = expect(0, &[&world.model, "-n", "-x", "layer99*"]);
    assert!(stderr.contains("warning: pattern `layer99*` matches no tensor"), "{stderr}");
}

#[test]
fn requests_that_make_no_sense_exit_with_2() {
    let world = World::new();
    let rules = world.path("rules.toml");
    for (arguments, says) in [
        (&["-m", "magic"][..], "unknown method `magic`"),
        (&["--factor=-1"], "factor is -1"),
        (&["--factor", "1e308"], "factor is 1e308;"),
        (&["--factor", "nan"], "factor"),
        (&["-m", "bwn", "--factor", "0.7"], "takes no factor"),
        (&["-g", "group:0"], "group"),
        (&["-g", "row"], "granularity"),
        (&["-e", "t3"], "t3"),
        (&["-e", "b1"], "b1"),
        (&["--scale-dtype", "f64"], "f64"),
        (&["--axis", "7"], "filter axis 7"),
        (&["--set", "*", "colour=red"], "colour"),
        (&["--set", "*", "method"], "key=value"),
        (&["--set", "*", "axis=0,axis=1"], "twice"),
        (&["--set", "*", "axis=-1"], "axis"),
        (&["--set", "*", "keep=dense,axis=1"], "`axis` is of no use with keep=dense"),
        (&["--set", "*", "keep=int8,planes=2"], "`planes` is of no use with keep=int8"),
        (&["--include", "a[b"], "pattern `a[b`"),
        (&["-x", "{a"], "pattern `{a`"),
        (&["-j", "0"], "0"),
        (&["--nonsense"], "--nonsense"),
        (&["--rules", &rules], "mehtod"),
    ] {
        std::fs::write(&rules, "mehtod = \"twn\"\n").unwrap();
        let all = [&[world.model.as_str(), "-o", &world.twn], arguments].concat();
        let output = Command::new(BINARY).args(&all).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says) && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty() && !Path::new(&world.twn).exists());
    }
    expect(2, &[&world.model]);
    expect(2, &["-o", &world.twn]);
    expect(4, &[world.model.as_str(), "-n", "--rules", &world.path("missing.toml")]);
}

/// `--force` is for outputs of before, not for what is read.
#[test]
fn inputs_are_not_replaced() {
    let world = World::new();
    let (rules, net, index) =
        (world.path("rules.toml"), world.path("net.toml"), world.path("m.safetensors.index.json"));
    std::fs::write(&rules, "method = \"twn\"\n").unwrap();
    std::fs::write(&net, "name = \"net\"\n").unwrap();
    let map = Value::Object(world.plan(&[]).into_iter().map(|(name, ..)| (name, "model.safetensors".into())).collect());
    std::fs::write(&index, format!("{{\"weight_map\": {map}}}")).unwrap();
    let directory = world.directory.path().to_str().unwrap();
    let statistics = Made::new("fc.weight.xtx", Dtype::F32, &[64, 64], &[1.0; 64 * 64]);
    let other = tempfile::tempdir().unwrap();
    let statistics = common::checkpoint(other.path(), "stats.safetensors", &[statistics]);
    let statistics = statistics.to_str().unwrap();
    let before = [&rules, &net, &index, &world.model, statistics].map(|path| std::fs::read(path).unwrap());
    for arguments in [
        &[&world.model, "-o", &world.model][..],
        &[&world.model, "--rules", &rules, "-o", &rules],
        &[&world.model, "--net", &net, "--adjust-bn", "-o", &net],
        &[&world.model, "--calibration", statistics, "-o", statistics],
        &[&index, "-o", &index],
        &[directory, "-o", &index],
        &[directory, "-o", &world.model],
        &["calibrate", &world.model, "--net", &net, "--data", directory, "-o", &net],
        &["fold", &world.model, "--net", &net, "-o", &world.twn, "--write-net", &net],
    ] {
        let (_, stderr) = expect(2, &[arguments, &["--force"]].concat());
        assert!(stderr.contains("input; give another output"), "{arguments:?}: {stderr}");
    }
    assert_eq!([&rules, &net, &index, &world.model, statistics].map(|path| std::fs::read(path).unwrap()), before);
    std::fs::copy(&world.model, world.path("other.safetensors")).unwrap();
    let (_, stderr) = expect(0, &[directory, "-n"]);
    assert!(stderr.contains("`other.safetensors` left out: the index does not name it"), "{stderr}");
    for arguments in [[world.model.as_str(), &world.twn], ["verfy", &world.twn]] {
        let (_, stderr) = expect(2, &arguments);
        assert!(stderr.contains("into what -o names; the commands are inspect, sweep, verify"), "{stderr}");
    }
    let (_, stderr) = expect(2, &[&world.model, "-o", "-"]);
    assert!(stderr.contains("give ./-"), "{stderr}");
}

#[test]
fn what_is_wrong_with_rules_is_said_with_its_line() {
    let world = World::new();
    let rules = world.path("rules.toml");
    let good = "# Rules.\nmethod = \"twn\"\n\n[[override]]\nmatch = \"fc.*\"\n\n[[override]]\nmatch = \"conv*\"\n";
    std::fs::write(&rules, good).unwrap();
    expect(0, &[&world.model, "-n", "--rules", &rules]);
    for (from, to, line, says) in [
        (
            "method = \"twn\"",
            "mehtod = 1",
            2,
            "unknown field `mehtod`, expected `include`, `exclude`, `int8`, `keep-first-last`,",
        ),
        ("method = \"twn\"", "int8 = [\"a[b\"]", 2, "pattern `a[b`"),
        ("method = \"twn\"", "method = 1", 2, "expected a string"),
        ("method = \"twn\"", "method = \"magic\"", 2, "unknown method `magic`"),
        ("method = \"twn\"", "method = \"bwn\"\nfactor = 0.7", 3, "takes no factor"),
        ("method = \"twn\"", "keep = \"dense\"", 2, "belongs into an [[override]]"),
        ("method = \"twn\"", "exclude = [\n\"a\", \"a[b\"]", 3, "pattern `a[b`"),
        ("method = \"twn\"", "include = [7]", 2, "expected a string"),
        ("method = \"twn\"", "keep-first-last = \"yes\"", 2, "expected a boolean"),
        ("method = \"twn\"", "method = twn", 2, ""),
        ("[[override]]\nmatch = \"conv*\"", "[[override]]\nmethod = \"bwn\"", 7, "needs `match"),
        ("\"conv*\"", "\"{a\"", 8, "pattern `{a`"),
        ("\"conv*\"", "\"c*\"\ngranularity = \"group:0\"", 9, "granularity is `group:0`"),
        ("\"conv*\"", "\"c*\"\n\ncolour = 1", 10, "unknown field `colour`"),
        ("\"conv*\"", "\"c*\"\nmethod = \"magic\"", 9, "unknown method `magic`"),
        ("method = \"twn\"", "planes = 9", 2, "9 planes; expected 1 to 4"),
        ("method = \"twn\"", "factor = 5000.0", 2, "factor is 5000"),
        ("\"conv*\"", "\"c*\"\n\nplanes = 0", 10, "0 planes; expected 1 to 4"),
        ("\"conv*\"", "\"c*\"\nkeep = \"dense\"\nmethod = \"bwn\"", 7, "`method` is of no use with keep=dense"),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(&rules, good.replacen(from, to, 1)).unwrap();
        let (_, stderr) = expect(2, &[&world.model, "-n", "--rules", &rules]);
        let start = format!("rules.toml: line {line}: ");
        assert!(stderr.contains(&start) && stderr.contains(says) && stderr.lines().count() == 1, "{to}: {stderr}");
    }
    std::fs::write(&rules, "int8 = [\"layer1*\"]\n[[override]]\nmatch = \"*downsample*\"\nkeep = \"dense\"\n").unwrap();
    let (stdout, _) = expect(0, &[&world.model, "-n", "--rules", &rules, "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let became = |name: &str| {
        let tensors = plan["tensors"].as_array().unwrap();
        tensors.iter().find(|tensor| tensor["name"] == name).unwrap()["became"].to_string()
    };
    let [int8, dense] = [became("layer1.0.conv1.weight"), became("layer1.0.downsample.0.weight")];
    assert!(int8.contains("int8") && dense.contains("dense"), "{stdout}");
    std::fs::write(&rules, "override = 7").unwrap();
    let (_, stderr) = expect(2, &[&world.model, "-n", "--rules", &rules]);
    assert!(stderr.contains("line 1: overrides are tables"), "{stderr}");
}
