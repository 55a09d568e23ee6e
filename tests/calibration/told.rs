//! What is refused, warned of, and shown. Not here: what the weights become.

use twn_pack::Dtype;

use crate::common::{self, Made, Random};
use crate::{pack, rows, second_moment, xtx};

#[test]
fn statistics_that_do_not_fit_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let weight = Made::gaussian("layer.weight", Dtype::F32, &[6, 4], 1);
    let identity = |scale: f64| -> Vec<f64> { (0..16).map(|at| if at % 5 == 0 { scale } else { 0.0 }).collect() };
    let changed = |at: usize, value: f64| {
        let mut h = identity(1.0);
        h[at] = value;
        xtx(&h, &[4, 4])
    };
    let beside = |value: f64| {
        let mut h = [0.0; 16];
        (h[6], h[9]) = (value, value);
        xtx(&h, &[4, 4])
    };
    let with = |others: &[(usize, f64)]| {
        let mut h = identity(1.0);
        others.iter().for_each(|&(at, value)| h[at] = value);
        xtx(&h, &[4, 4])
    };
    // Each pair by itself would do: their cosines are 0.9, 0.9 and −0.9.
    let indefinite = [(1, 0.9), (4, 0.9), (2, 0.9), (8, 0.9), (6, -0.9), (9, -0.9)];
    let beside_all: Vec<(usize, f64)> = (0..16).filter(|at| at % 5 != 0).map(|at| (at, -0.35)).collect();
    let integers = Made { dtype: Dtype::I64, ..xtx(&identity(1.0), &[4, 4]) };
    let rows_f64 = Made::new("layer.weight.rows", Dtype::F64, &[], &[1.0]);
    let rows_two = Made { dtype: Dtype::I64, ..Made::new("layer.weight.rows", Dtype::F64, &[2], &[1.0, 1.0]) };
    for (statistics, expected) in [
        (vec![xtx(&identity(1.0)[..9], &[3, 3])], "shape [3, 3], expected [4, 4]"),
        (
            vec![xtx(&identity(1.0).repeat(4), &[4, 4, 4])],
            "shape [4, 4, 4], expected [4, 4], or that per group of the 6",
        ),
        (vec![xtx(&identity(1.0), &[16])], "shape [16]"),
        (vec![Made::new("layer.weight.xtx_diagonal", Dtype::F32, &[5], &[1.0; 5])], "shape [5], expected [4]"),
        (vec![integers], "dtype I64, expected F32 or F64"),
        (vec![Made::new("layer.weight.xtx", Dtype::F16, &[4, 4], &identity(1.0))], "dtype F16"),
        (vec![changed(6, f64::NAN)], "element 6 is NaN"),
        (vec![changed(15, f64::INFINITY)], "element 15 is inf"),
        (vec![changed(5, -1.0)], "diagonal element 1 is -1"),
        (vec![changed(6, 0.5)], "elements [2, 1] and [1, 2] are 0 and 0.5"),
        (vec![beside(f64::NAN)], "element 6 is NaN, expected at most 0"),
        (vec![beside(7.0)], "not positive definite: element 6 is 7, expected at most 0"),
        (vec![with(&[(1, 3.0), (4, 3.0)])], "not positive definite: element 4 is 3, expected at most 1,"),
        (vec![with(&[(5, 0.0), (1, 0.1), (4, 0.1)])], "element 4 is 0.1, expected at most 0.00000"),
        (vec![with(&indefinite)], "not positive semidefinite: an eigenvalue is below"),
        // One of -0.05, which the default damping would hide.
        (vec![with(&beside_all)], "not positive semidefinite: an eigenvalue is below"),
        (vec![xtx(&identity(1.0), &[4, 4]), rows_f64], "dtype F64, expected I64"),
        (vec![xtx(&identity(1.0), &[4, 4]), rows_two], "shape [2], expected one number"),
    ] {
        let error = pack(directory.path(), &weight, &statistics, "").unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("stats.safetensors: tensor `layer.weight."), "{text}");
        assert_eq!(error.fault(), twn_pack::Fault::Input, "{text}");
    }
}

/// Errors that no `f64` holds could not be written into an index.
#[test]
fn sums_beyond_all_numbers_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let weight = Made::new("layer.weight", Dtype::F32, &[2, 3], &[1e30, -2e30, 3e30, 1e30, 1e29, 4e30]);
    for (name, shape) in [("xtx", &[3, 3][..]), ("xtx_diagonal", &[3])] {
        let huge: Vec<f64> =
            (0..shape.iter().product()).map(|at| if at % 4 == 0 || shape.len() == 1 { 1e300 } else { 0.0 }).collect();
        let statistics = Made::new(&format!("layer.weight.{name}"), Dtype::F64, shape, &huge);
        let error = pack(directory.path(), &weight, &[statistics], "").unwrap_err().to_string();
        assert!(error.contains("should be finite") || error.contains("not positive definite"), "{error}");
    }
}

#[test]
fn inspect_tells_what_packing_gives() {
    let directory = tempfile::tempdir().unwrap();
    let weight = Made::gaussian("layer.weight", Dtype::F32, &[20, 30], 1);
    let h = second_moment(&rows(&mut Random(26), 64, 30));
    let (_, report) = pack(directory.path(), &weight, &[xtx(&h, &[30, 30])], "planes=2").unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let stats = path("stats.safetensors");
    let calibrated = ["--calibration", stats.as_str(), "--planes", "2"];
    let json = common::run(&[&["inspect", &path("in.safetensors"), "--json"][..], &calibrated].concat());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let tensor = &json["tensors"][0];
    assert_eq!(tensor["relative_output_error"].as_f64(), report.tensors[0].relative_output_error);
    assert_eq!(tensor["became"], "t2 twn filter planes 2 calibrated");
    let table = common::run(&["inspect", &path("out.twn")]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("t2 twn filter planes 2 calibrated") && table.contains(", outputs 0.0"), "{table}");
    let csv = String::from_utf8(common::run(&["inspect", &path("out.twn"), "--csv"]).stdout).unwrap();
    let line = csv.lines().nth(1).unwrap();
    let last = format!("full,{},,6.4", report.tensors[0].relative_output_error.unwrap());
    assert!(
        csv.contains("ratio,calibration,relative_output_error,repaired,bits_per_weight") && line.ends_with(&last),
        "{csv}"
    );
    for (arguments, expected) in [
        (vec!["inspect", &path("out.twn"), "--calibration", &stats], "packed already"),
        (vec![&path("in.safetensors"), "-n", "--damping", "0.1"], "--calibration"),
        (vec![&path("in.safetensors"), "-n", "--planes", "5"], "expected 1 to 4"),
    ] {
        let output = common::run(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

#[test]
fn what_is_missing_or_belongs_nowhere_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let weights =
        [Made::gaussian("a.weight", Dtype::F32, &[6, 4], 1), Made::gaussian("b.weight", Dtype::F32, &[6, 4], 2)];
    let input = common::checkpoint(directory.path(), "in.safetensors", &weights);
    let identity: Vec<f64> = (0..16).map(|at| f64::from(u8::from(at % 5 == 0))).collect();
    let statistics = [
        Made::new("a.weight.xtx", Dtype::F32, &[4, 4], &identity),
        Made::new("a.weight.x_sum", Dtype::F32, &[4], &[0.0; 4]),
        Made::new("c.weight.xtx", Dtype::F32, &[4, 4], &identity),
        Made::new("b.weight", Dtype::F32, &[4, 4], &identity),
    ];
    let stats = common::checkpoint(directory.path(), "stats.safetensors", &statistics);
    let output = directory.path().join("out.twn");
    let arguments = [input.as_os_str(), "--calibration".as_ref(), stats.as_os_str(), "-o".as_ref(), output.as_os_str()];
    let run = common::run(&arguments);
    let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{stderr}");
    assert!(stderr.contains("`b.weight`: no statistics, or such of zeros only; packed without"), "{stderr}");
    assert!(stderr.contains("`c.weight.xtx` and 1 more belong to no tensor"), "{stderr}");
    assert!(stdout.contains("t2 twn filter calibrated") && stdout.contains("t2 twn filter uncalibrated"), "{stdout}");
    let whole = common::run(&[&arguments[..], &["-f".as_ref(), "--granularity".as_ref(), "tensor".as_ref()]].concat());
    let stderr = String::from_utf8_lossy(&whole.stderr);
    assert!(whole.status.success() && stderr.contains("`b.weight`: no statistics"), "{stderr}");
    assert!(String::from_utf8_lossy(&whole.stdout).contains("t2 twn tensor calibrated"));
    // A dry run says it beforehand, and finds what does not fit.
    let dry = common::run(&[&arguments[..3], &["--dry-run".as_ref()]].concat());
    let stderr = String::from_utf8_lossy(&dry.stderr);
    assert!(dry.status.success() && stderr.contains("`b.weight`: no statistics"), "{stderr}");
    let other = [Made::new("a.weight.xtx", Dtype::F32, &[2, 2], &identity[..4])];
    common::checkpoint(directory.path(), "stats.safetensors", &other);
    let dry = common::run(&[&arguments[..3], &["--dry-run".as_ref()]].concat());
    let stderr = String::from_utf8_lossy(&dry.stderr);
    assert!(!dry.status.success() && stderr.contains("shape [2, 2], expected [4, 4]"), "{stderr}");
}

/// Of a grouped convolution some groups' inputs may be dead: their filters were packed as without statistics, and called
/// calibrated without a word.
#[test]
fn groups_that_saw_only_zeros_are_said() {
    let directory = tempfile::tempdir().unwrap();
    let weights = [
        Made::gaussian("a.weight", Dtype::F32, &[6, 4], 1),
        Made::gaussian("b.weight", Dtype::F32, &[6, 4], 2),
        Made::gaussian("c.weight", Dtype::F32, &[6, 4], 3),
    ];
    let input = common::checkpoint(directory.path(), "in.safetensors", &weights);
    let group = |energy: f64| (0..16).map(move |at| if at % 5 == 0 { energy } else { 0.0 });
    let seen = |groups: &[f64]| -> Vec<f64> { groups.iter().flat_map(|&energy| group(energy)).collect() };
    let statistics = [
        Made::new("a.weight.xtx", Dtype::F32, &[3, 4, 4], &seen(&[2.0, 0.0, -0.0])),
        Made::new("b.weight.xtx_diagonal", Dtype::F64, &[2, 4], &[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
        Made::new("c.weight.xtx", Dtype::F32, &[2, 4, 4], &seen(&[1.0, 3.0])),
    ];
    let stats = common::checkpoint(directory.path(), "stats.safetensors", &statistics);
    let output = directory.path().join("out.twn");
    let [input, stats, output] = [&input, &stats, &output].map(|path| path.to_str().unwrap());
    let (_, warnings) = common::expect(0, &[input, "--calibration", stats, "-o", output]);
    let said = |line: &str| warnings.contains(&format!("stats.safetensors: `{line}; its filters are packed without"));
    assert!(said("a.weight.xtx`: group 1 and 1 more of 3 has seen only zeros"), "{warnings}");
    assert!(said("b.weight.xtx_diagonal`: group 0 of 2 has seen only zeros"), "{warnings}");
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
    // Nothing of tensors that are not packed by them.
    let rules = ["-x", "a.weight", "--int8", "b.weight", "--force"];
    let (_, warnings) = common::expect(0, &[&[input, "--calibration", stats, "-o", output][..], &rules].concat());
    assert_eq!(warnings, "");
}
