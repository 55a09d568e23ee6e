//! What the weights become, and what that costs. Not here: what is refused or shown.

use std::path::Path;

use twn_pack::container::Body;
use twn_pack::convert::Options;
use twn_pack::{Calibration, Checkpoint, Container, Dtype, Isa};

use crate::common::{self, Made, Random};
use crate::{decoded, pack, quadratic, recorded, rows, second_moment, with, xtx};

/// The least error of one plane over all codes, each with its best scale.
fn brute_force(h: &[f64], w: &[f64]) -> f64 {
    let n = w.len();
    let dot = |a: &[f64], b: &[f64]| (0..n * n).map(|at| a[at / n] * h[at] * b[at % n]).sum::<f64>();
    let codes = |mut number: usize| -> Vec<f64> {
        (0..n)
            .map(|_| {
                let t = (number % 3) as f64 - 1.0;
                number /= 3;
                t
            })
            .collect()
    };
    let gains = (0..3usize.pow(n as u32)).map(codes).filter(|t| t.iter().any(|&t| t != 0.0)).map(|t| {
        let along = dot(&t, w);
        along * along / dot(&t, &t)
    });
    dot(w, w) - gains.fold(0.0, f64::max)
}

#[test]
fn one_plane_is_near_the_best_of_all_codes() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(21);
    let (n, filters) = (7, 40);
    let (mut found_sum, mut best_sum, mut plain_sum, mut exact) = (0.0, 0.0, 0.0, 0);
    for _ in 0..4 {
        let h = second_moment(&rows(&mut random, 30, n));
        let weight = Made::new("layer.weight", Dtype::F32, &[filters, n], &random.gaussians(filters * n));
        let (container, _) = pack(directory.path(), &weight, &[xtx(&h, &[n, n])], "").unwrap();
        let (plain, _) = pack(directory.path(), &weight, &[], "").unwrap();
        let (calibrated, plain, weights) = (decoded(&container), decoded(&plain), weight.values());
        for ((w, values), plain) in weights.chunks(n).zip(&calibrated).zip(&plain) {
            let lost = |values: &[f64]| w.iter().zip(values).map(|(w, v)| w - v).collect::<Vec<_>>();
            let (found, best) = (quadratic(&h, &lost(values)), brute_force(&h, w));
            assert!(found >= best - 1e-6 * quadratic(&h, w), "{found} below the best, {best}");
            exact += usize::from(found <= best * (1.0 + 1e-6));
            found_sum += found;
            best_sum += best;
            plain_sum += quadratic(&h, &lost(plain));
        }
    }
    eprintln!("{exact} of {} the best; {found_sum} against {best_sum}, plain {plain_sum}", 4 * filters);
    assert!(found_sum < 2.0 * best_sum && found_sum < 0.5 * plain_sum, "{found_sum}, {best_sum}, {plain_sum}");
}

/// The errors in the index are those of what is stored, for every form of weights, scales and inputs;
/// the bytes are the same for any number of threads and instruction set; and it is better than without.
#[test]
fn the_file_says_what_it_costs() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(22);
    for (shape, axis, groups, dtype, settings) in [
        (vec![9, 40], 0, 1, Dtype::F32, ""),
        (vec![300, 33], 0, 1, Dtype::F64, "planes=2,method=optimal"),
        (vec![12, 3, 3, 3], 0, 1, Dtype::BF16, "planes=3,encoding=t5,granularity=group:8"),
        (vec![12, 3, 3, 3], 0, 4, Dtype::F32, "planes=2,scale-dtype=f16"),
        (vec![150, 20], 1, 1, Dtype::F32, "planes=2,granularity=group:64"),
        (vec![5, 300], 0, 1, Dtype::F16, "method=bwn"),
        (vec![5, 150], 0, 1, Dtype::F32, "method=bwn,planes=2,granularity=group:7,scale-dtype=f16"),
        (vec![5, 290], 0, 1, Dtype::F32, "method=absmean,encoding=t5"),
    ] {
        let settings = format!("axis={axis},{settings}");
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| 0.1 * random.gaussian()).collect();
        let weight = Made::new("layer.weight", dtype, &shape, &values);
        let filters = shape[axis];
        let n = values.len() / filters;
        let moments: Vec<Vec<f64>> = (0..groups).map(|_| second_moment(&rows(&mut random, n / 2 + 20, n))).collect();
        // [groups] where there are several, then n × n or n.
        let shaped = |own: &[usize]| if groups > 1 { [&[groups], own].concat() } else { own.to_vec() };
        let full = xtx(&moments.concat(), &shaped(&[n, n]));
        let diagonals: Vec<f64> = moments.iter().flat_map(|h| (0..n).map(|i| h[i * n + i])).collect();
        let diagonal = Made::new("layer.weight.xtx_diagonal", Dtype::F32, &shaped(&[n]), &diagonals);
        let (plain, _) = pack(directory.path(), &weight, &[], &settings).unwrap();
        assert_eq!(recorded(&plain), ("none".to_owned(), None, None));
        let rows = common::filters(&weight.values(), &weight.shape, axis);
        for (statistics, kind) in [(full, "full"), (diagonal, "diagonal")] {
            let inputs = |filter: usize| -> Vec<f64> {
                let group = filter / (filters / groups);
                match kind {
                    "full" => moments[group].clone(),
                    _ => {
                        let one = |at: usize| if at % n == at / n { diagonals[group * n + at % n] } else { 0.0 };
                        (0..n * n).map(one).collect()
                    }
                }
            };
            let cost = |container: &Container| -> [f64; 2] {
                let mut sums = [0.0; 2];
                for (filter, (w, values)) in rows.iter().zip(decoded(container)).enumerate() {
                    let (h, lost) = (inputs(filter), w.iter().zip(&values).map(|(w, v)| w - v).collect::<Vec<_>>());
                    sums = [sums[0] + quadratic(&h, &lost), sums[1] + quadratic(&h, w)];
                }
                sums
            };
            let (container, report) =
                pack(directory.path(), &weight, std::slice::from_ref(&statistics), &settings).unwrap();
            let [error, norm] = cost(&container);
            let found = recorded(&container);
            assert_eq!(found.0, kind, "{settings}");
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * norm;
            assert!(close(found.1.unwrap(), error), "{settings}, {kind}: {found:?}, computed {error}");
            assert!(close(found.2.unwrap(), norm), "{settings}, {kind}: {found:?}, computed {norm}");
            let relative = report.tensors[0].relative_output_error.unwrap();
            assert!((relative - error / norm).abs() < 1e-5 && report.tensors[0].calibration.as_deref() == Some(kind));
            let [without, _] = cost(&plain);
            eprintln!("{settings}, {kind}: {:.4} instead of {:.4}", error / norm, without / norm);
            assert!(error < without, "{settings}, {kind}: {error}, without {without}");
            for (threads, isa) in [(1, Isa::PORTABLE), (3, Isa::detect().unwrap())] {
                let options = Options { isa: Some(isa), ..Options::default() };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let statistics = std::slice::from_ref(&statistics);
                let again =
                    pool.install(|| with(directory.path(), &weight, statistics, &settings, Ok, &options)).unwrap();
                assert!(again.0.bytes() == container.bytes(), "{settings}, {kind}: {threads} threads");
            }
        }
    }
}

/// Means instead of sums, and in F32: the same codes.
#[test]
fn one_factor_over_all_inputs_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(23);
    let weight = Made::gaussian("layer.weight", Dtype::F32, &[20, 30], 1);
    let h: Vec<f64> = second_moment(&rows(&mut random, 64, 30)).iter().map(|&x| f64::from(x as f32)).collect();
    let mean: Vec<f64> = h.iter().map(|x| x / 64.0).collect();
    let files: Vec<Container> =
        [xtx(&h, &[30, 30]), xtx(&mean, &[30, 30]), Made::new("layer.weight.xtx", Dtype::F32, &[1, 30, 30], &h)]
            .map(|statistics| pack(directory.path(), &weight, &[statistics], "planes=2").unwrap().0)
            .into();
    assert!(files.windows(2).all(|pair| decoded(&pair[0]) == decoded(&pair[1])));
}

#[test]
fn order_and_damping_are_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(24);
    let weight = Made::gaussian("layer.weight", Dtype::F32, &[20, 30], 1);
    let rows_there =
        Made { data: 7i64.to_le_bytes().to_vec(), ..Made::new("layer.weight.rows", Dtype::F64, &[], &[0.0]) };
    let rows_there = Made { dtype: Dtype::I64, ..rows_there };
    let statistics = [xtx(&second_moment(&rows(&mut random, 64, 30)), &[30, 30]), rows_there];
    let mut found = Vec::new();
    for (damping, act_order) in [(0.01, false), (0.01, true), (1.0, false)] {
        let change = |calibration: Calibration| Ok(calibration.with_damping(damping)?.with_act_order(act_order));
        let (container, _) = with(directory.path(), &weight, &statistics, "", change, &Options::default()).unwrap();
        let Body::Ternary(entry) = container.index().tensors[0].body() else { panic!("ternary") };
        let entry = entry.calibration.clone().unwrap();
        assert_eq!((entry.damping, entry.rows), (Some(damping), Some(7)));
        assert_eq!(entry.order.as_deref(), Some(if act_order { "diagonal" } else { "natural" }));
        found.push(decoded(&container));
    }
    assert!(found[0] != found[1] && found[0] != found[2]);
    for damping in [-0.1, f64::NAN, f64::INFINITY, 1001.0] {
        let change = |calibration: Calibration| calibration.with_damping(damping);
        let error = with(directory.path(), &weight, &statistics, "", change, &Options::default()).unwrap_err();
        assert!(error.to_string().contains("damping"), "{error}");
    }
}

/// A few rows only: singular, and yet damping makes something of it. Inputs that were never seen: their
/// weights become what they would be without.
#[test]
fn few_rows_and_dead_inputs() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(25);
    let n = 40;
    let mut few = rows(&mut random, 5, n);
    few.iter_mut().for_each(|row| row[3..9].fill(0.0));
    let h = second_moment(&few);
    let weight = Made::gaussian("layer.weight", Dtype::F32, &[10, n], 1);
    let (container, report) = pack(directory.path(), &weight, &[xtx(&h, &[n, n])], "planes=2").unwrap();
    assert!(report.tensors[0].relative_output_error.unwrap() < 0.01, "{report:?}");
    for (w, values) in weight.values().chunks(n).zip(decoded(&container)) {
        assert!((3..9).all(|j| (w[j] - values[j]).abs() < 1.5), "{w:?} {values:?}");
    }
    // Nothing seen at all: nothing known.
    let zeros = vec![0.0; n * n];
    let (container, _) = pack(directory.path(), &weight, &[xtx(&zeros, &[n, n])], "").unwrap();
    assert_eq!(recorded(&container).0, "none");
    let (container, _) =
        pack(directory.path(), &weight, &[Made::new("layer.weight.xtx_diagonal", Dtype::F32, &[n], &zeros[..n])], "")
            .unwrap();
    assert_eq!(recorded(&container).0, "none");
    let (container, _) = pack(directory.path(), &weight, &[xtx(&vec![-0.0; n * n], &[n, n])], "").unwrap();
    assert_eq!(recorded(&container).0, "none");
}

/// Small groups in which some inputs are always 0: no filter loses more under XᵀX + λI than it does without statistics.
#[test]
fn dead_inputs_in_small_groups() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(27);
    let n = 64;
    let mut x = rows(&mut random, 300, n);
    let dead: Vec<bool> = (0..n).map(|_| random.below(10) < 3).collect();
    x.iter_mut().for_each(|row| row.iter_mut().zip(&dead).for_each(|(x, dead)| *x *= f64::from(u8::from(!dead))));
    let h = second_moment(&x);
    let lambda = Calibration::DAMPING * h.iter().step_by(n + 1).sum::<f64>() / n as f64;
    let damped: Vec<f64> =
        h.iter().enumerate().map(|(at, h)| h + if at % (n + 1) == 0 { lambda } else { 0.0 }).collect();
    let weight = Made::gaussian("layer.weight", Dtype::F32, &[40, n], 1);
    let lost = |statistics: &Made, settings: &str| -> Vec<f64> {
        let (container, _) = pack(directory.path(), &weight, std::slice::from_ref(statistics), settings).unwrap();
        let error =
            |(w, values): (&[f64], Vec<f64>)| -> Vec<f64> { w.iter().zip(values).map(|(w, v)| w - v).collect() };
        weight.values().chunks(n).zip(decoded(&container)).map(error).map(|e| quadratic(&damped, &e)).collect()
    };
    for settings in ["granularity=group:8,planes=3", "granularity=group:8,planes=2", "granularity=group:16,planes=3"] {
        // Statistics of zeros are none.
        let [plain, calibrated] = [xtx(&vec![0.0; n * n], &[n, n]), xtx(&h, &[n, n])].map(|of| lost(&of, settings));
        for (filter, (plain, calibrated)) in plain.iter().zip(&calibrated).enumerate() {
            assert!(calibrated < plain, "{settings}, filter {filter}: {calibrated}, plain {plain}");
        }
    }
}

/// Under XᵀX + λI nothing gets worse by XᵀX, whatever shares a scale.
#[test]
fn nothing_is_worse_than_without() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(31);
    for case in 0..150 {
        let (n, planes) = (8 + case % 37, 1 + case % 3);
        let filters = [1, 1, 4][case / 50];
        let weight = Made::gaussian("layer.weight", Dtype::F32, &[filters, n], case as u64);
        let inputs: Vec<Vec<f64>> = rows(&mut random, n / 2 + 1, n);
        let mut h = second_moment(&inputs);
        let statistics = [xtx(&h, &[n, n])];
        let lambda = Calibration::DAMPING * (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
        (0..n).for_each(|i| h[i * n + i] += lambda);
        let w = weight.values();
        for granularity in ["filter", "group:5", "tensor"] {
            let settings = format!("granularity={granularity},planes={planes}");
            let [before, after] = [&[][..], &statistics].map(|statistics| -> Vec<f64> {
                let (container, _) = pack(directory.path(), &weight, statistics, &settings).unwrap();
                let lost = |(w, value): (&[f64], Vec<f64>)| w.iter().zip(value).map(|(w, v)| w - v).collect::<Vec<_>>();
                w.chunks(n).zip(decoded(&container)).map(|pair| quadratic(&h, &lost(pair))).collect()
            });
            let whole = |errors: Vec<f64>| if granularity == "tensor" { vec![errors.iter().sum()] } else { errors };
            for (before, after) in whole(before).into_iter().zip(whole(after)) {
                assert!(after <= before * (1.0 + 1e-6), "case {case}, {settings}: {after}, without {before}");
            }
        }
    }
}

/// One scale for all filters, over more of them than are rounded together, with inputs per group or in common: better
/// for the outputs than without statistics, with the same bytes for any number of threads.
#[test]
fn one_scale_for_a_tensor_is_calibrated() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(31);
    let n = 150;
    let h = second_moment(&rows(&mut random, 300, n));
    let both: Vec<f64> = h.iter().copied().chain(h.iter().map(|x| 3.0 * x)).collect();
    let diagonal: Vec<f64> = (0..n).map(|j| h[j * n + j]).collect();
    let weight = Made::new("layer.weight", Dtype::F32, &[600, n], &random.gaussians(600 * n));
    for (statistics, groups, settings) in [
        (xtx(&h, &[n, n]), 1, "granularity=tensor"),
        (xtx(&both, &[2, n, n]), 2, "granularity=tensor,planes=2,scale-dtype=f16"),
        (
            Made::new("layer.weight.xtx_diagonal", Dtype::F64, &[n], &diagonal),
            1,
            "granularity=tensor,planes=3,encoding=t5",
        ),
        (xtx(&h, &[n, n]), 1, "granularity=tensor,method=bwn"),
    ] {
        let mut bytes = Vec::new();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let statistics = std::slice::from_ref(&statistics);
            pool.install(|| pack(directory.path(), &weight, statistics, settings)).unwrap();
            bytes.push(std::fs::read(directory.path().join("out.twn")).unwrap());
        }
        assert!(bytes[0] == bytes[1], "{settings}");
        let container = Container::open(directory.path().join("out.twn")).unwrap();
        let (kind, error, norm) = recorded(&container);
        let calibrated = decoded(&container);
        let (plain, _) = pack(directory.path(), &weight, &[], settings).unwrap();
        let is_full = statistics.name == "layer.weight.xtx";
        assert_eq!(kind, if is_full { "full" } else { "diagonal" });
        let weights = weight.values();
        let cost = |values: &[Vec<f64>]| -> f64 {
            let filters = weights.chunks(n).zip(values).enumerate();
            let of = |(i, (w, v)): (usize, (&[f64], &Vec<f64>))| {
                let lost: Vec<f64> = w.iter().zip(v).map(|(w, v)| w - v).collect();
                let factor = if groups == 2 && i >= 300 { 3.0 } else { 1.0 };
                let alone = || lost.iter().zip(&diagonal).map(|(e, d)| d * e * e).sum::<f64>();
                factor * if is_full { quadratic(&h, &lost) } else { alone() }
            };
            filters.map(of).sum()
        };
        let (found, before) = (cost(&calibrated), cost(&decoded(&plain)));
        let error = error.unwrap();
        assert!((found - error).abs() <= 1e-5 * found, "{settings}: {found} {error}");
        assert!(norm.unwrap() > found);
        let most = if is_full { 0.5 } else { 1.0 };
        assert!(found < most * before, "{settings}: {found}, without statistics {before}");
    }
}

/// From images to a packed network that is right again, with nothing but the command.
#[test]
fn lenet_stays_right() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let (model, data) = (fixtures.join("lenet5-mnist.safetensors"), fixtures.join("mnist64"));
    let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
    let run = |arguments: &[&str]| {
        let output = common::run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let (stats, packed) = (path("stats.safetensors"), path("out.twn"));
    let said = run(&[
        "calibrate",
        model,
        "--net",
        "lenet5",
        "--data",
        data,
        "--split",
        "test",
        "--images",
        "48",
        "-o",
        &stats,
    ]);
    assert!(said.contains("inputs of 4 layers over 48 images"), "{said}");
    let again = path("again.safetensors");
    let arguments =
        ["calibrate", model, "--net", "lenet5", "--data", data, "--split", "test", "--images", "48", "-o", &again];
    let status = std::process::Command::new(common::BINARY).args(arguments).args(["-j1", "--quiet"]).status().unwrap();
    assert!(status.success());
    let floats = Checkpoint::open(&stats).unwrap();
    assert_eq!(floats.len(), 12);
    assert_eq!(floats.by_name("conv2.weight.rows").unwrap().stored, (48i64 * 64).to_le_bytes());
    assert!(std::fs::read(&stats).unwrap() == std::fs::read(&again).unwrap(), "threads change nothing");
    run(&[model, "--calibration", &stats, "-o", &packed]);
    let accuracy = run(&["eval", &packed, "--net", "lenet5", "--data", data]);
    let right: f64 =
        accuracy.split_whitespace().skip_while(|word| *word != "accuracy").nth(1).unwrap().parse().unwrap();
    assert!(right >= 95.0, "{accuracy}");
}
