//! Which initializer is which tensor, and which way round: by name, by module, by the floats that are there. Not here: what
//! the tensors become.

use twn_pack::export::Options;
use twn_pack::{Dtype, Tensor, import};

use crate::common::Made;
use crate::model::*;
use crate::wire::*;

/// Both exporters give transposed weights names of their own.
#[test]
fn pytorch_models_are_recognised() {
    let shapes = [("blocks.0.0", [12, 8]), ("blocks.0.2", [8, 12]), ("blocks.1.0", [12, 8]), ("blocks.1.2", [8, 12])];
    for (file, names) in [
        ("linear-script.onnx", ["onnx::MatMul_21", "onnx::MatMul_22", "onnx::MatMul_23", "onnx::MatMul_24"]),
        ("linear-dynamo.onnx", ["val_0", "val_2", "val_3", "val_5"]),
    ] {
        // The other way first: the same files as checkpoints.
        let checkpoint = import::open(fixture(&format!("foreign/onnx/{file}"))).unwrap();
        let own = |name: &str, shape: &[usize]| -> Vec<f64> {
            let tensor = checkpoint.by_name(name).unwrap();
            let values: Vec<f64> =
                tensor.stored.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect();
            // Stored as [inputs, outputs].
            if shape.len() == 2 { transpose(&values, shape[0]) } else { values }
        };
        assert_eq!(checkpoint.by_name(names[0]).unwrap().shape, [8, 12]);
        let mut tensors = Vec::new();
        for (name, (module, shape)) in names.iter().zip(shapes) {
            tensors.push(Made::new(&format!("{module}.weight"), Dtype::F32, &shape, &own(name, &shape)));
        }
        for bias in ["blocks.0.0.bias", "blocks.1.0.bias"] {
            tensors.push(Made::new(bias, Dtype::F32, &[12], &own(bias, &[12])));
        }
        tensors.push(Made {
            name: "blocks.num_batches_tracked".to_owned(),
            dtype: Dtype::I64,
            shape: vec![],
            data: vec![0; 8],
        });
        let packed = Packed::new(&tensors, "");
        let options = Options { into: Some(fixture(&format!("foreign/onnx/{file}"))), ..Options::default() };
        let lines = packed.plan("onnx", &options).unwrap().tensors;
        let becomes = |tensor: &str| lines.iter().find(|line| line.tensor == tensor).unwrap().becomes.clone().unwrap();
        assert!(becomes("blocks.num_batches_tracked").starts_with("nothing"));
        assert_eq!(becomes("blocks.1.0.bias"), "FLOAT [12]");
        let (int2, nbits) = (read(&packed.export("onnx", &options)), read(&packed.export("onnx-nbits", &options)));
        for (name, (module, shape)) in names.iter().zip(shapes) {
            let weight = format!("{module}.weight");
            let [rows, columns] = shape;
            let expected = format!("INT2 [{columns}, {rows}] and scales [{rows}] along axis 1 as `{name}`, transposed");
            assert_eq!(becomes(&weight), expected);
            assert_eq!(int2.weight(name), transpose(&packed.values(&weight), columns), "{file} {weight}");
            let node = nbits
                .nodes
                .iter()
                .find(|node| {
                    texts(node, 1).contains(&format!("{name}.codes"))
                        || texts(node, 1).contains(&format!("{name}.turned.codes"))
                })
                .unwrap();
            assert_eq!(nbits.nbits(node), packed.values(&weight), "{file} {weight}");
        }
        let bias = packed.container.by_name("blocks.1.0.bias").unwrap();
        let Tensor::Dense(bias) = bias else { panic!("{bias:?}") };
        assert_eq!(int2.tensors["blocks.1.0.bias"].2, bias.data);
        // Half of the floats, or others, are not the module's weight.
        for changed in [0.5, -1.0] {
            let values: Vec<f64> = own(names[0], &[12, 8]).iter().map(|value| changed * value).collect();
            let packed = Packed::new(&[Made::new("blocks.0.0.weight", Dtype::F32, &[12, 8], &values)], "");
            let refusal = packed.refusal("onnx", &options);
            assert!(refusal.contains("are not those that were packed"), "{refusal}");
        }
    }
}

/// Exporters fold what a module makes of its weight: that is another weight, whichever way it lies.
#[test]
fn what_a_module_makes_of_its_weight_is_not_the_weight() {
    let nodes = [bytes(
        1,
        [bytes(1, "x"), bytes(1, "folded"), bytes(2, "y"), bytes(3, "/fc/MatMul"), bytes(4, "MatMul")].concat(),
    )];
    for (shape, axis) in [([16, 12], 0), ([12, 16], 0), ([12, 12], 0), ([16, 12], 1), ([12, 12], 1)] {
        let made = Made::gaussian("fc.weight", Dtype::F32, &shape, 1);
        let packed = Packed::new(std::slice::from_ref(&made), &format!("axis={axis}"));
        let own: Vec<f32> = made.values().iter().map(|&w| w as f32).collect();
        let turned = transpose(&own, shape[1]);
        let export = |values: &[f32], dims: [usize; 2]| {
            let file = nodes.concat();
            let file =
                model(21, &[file, bytes(2, "g"), bytes(5, raw("folded", FLOAT, &dims, &floats(values)))].concat());
            packed.plan("onnx", &packed.with(&file)).unwrap().tensors[0].becomes.clone()
        };
        assert!(export(&turned, [shape[1], shape[0]]).unwrap().ends_with(", transposed"), "{shape:?} {axis}");
        assert!(!export(&own, shape).unwrap().ends_with(", transposed"), "{shape:?} {axis}");
        for change in [|w: f32| 0.5 * w, |w: f32| w - 0.1, |w: f32| 2.0 * w] {
            for (values, dims) in [(&turned, [shape[1], shape[0]]), (&own, shape)] {
                let changed: Vec<f32> = values.iter().map(|&w| change(w)).collect();
                let refusal = export(&changed, dims).unwrap_err();
                assert!(refusal.contains("(`folded`) are not those that were packed"), "{shape:?} {axis}: {refusal}");
            }
        }
    }
}

/// The shape of a square matrix does not say whether the model has it transposed; its floats do.
#[test]
fn square_matrices_are_compared() {
    for axis in [0, 1] {
        let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &[8, 8], 1)], &format!("axis={axis}"));
        let own: Vec<f32> = Made::gaussian("w", Dtype::F32, &[8, 8], 1).values().iter().map(|&w| w as f32).collect();
        let turned = transpose(&own, 8);
        for (floats_there, expected) in [(&own, packed.values("w")), (&turned, transpose(&packed.values("w"), 8))] {
            let nodes = [node("MatMul", &["x", "w"], "y", &[])];
            let file = model(21, &graph(&nodes, &[raw("w", FLOAT, &[8, 8], &floats(floats_there))]));
            let exported = read(&packed.export("onnx", &packed.with(&file)));
            assert_eq!(exported.weight("w"), expected, "axis {axis}");
        }
    }
    // Where both ways are alike, or the first filters are empty, the error says it.
    let made =
        |value: &dyn Fn(usize) -> f64| Made::new("w", Dtype::F32, &[80, 80], &Vec::from_iter((0..6400).map(value)));
    let gaussian = Made::gaussian("w", Dtype::F32, &[80, 80], 3).values();
    for made in [made(&|i| 1.0 + 0.1 * gaussian[i]), made(&|i| if i < 70 * 80 { 0.0 } else { gaussian[i] })] {
        let own: Vec<f32> = made.values().iter().map(|&w| w as f32).collect();
        for settings in ["", "granularity=tensor", "method=absmean", "planes=2", "axis=1"] {
            let packed = Packed::new(std::slice::from_ref(&made), settings);
            for (there, turned) in [(own.clone(), false), (transpose(&own, 80), true)] {
                let nodes = [node("MatMul", &["x", "w"], "y", &[])];
                let file = model(21, &graph(&nodes, &[raw("w", FLOAT, &[80, 80], &floats(&there))]));
                let options = Options { planes_as_tensors: true, ..packed.with(&file) };
                let becomes = packed.plan("onnx", &options).unwrap().tensors[0].becomes.clone().unwrap();
                assert_eq!(becomes.contains(", transposed"), turned, "{settings}: {becomes}");
            }
        }
    }
    // Floats of another training say nothing: the name does, unless the filters are not the outputs then.
    let by_row = [attribute_int("transB", 1)];
    for (axis, op, attributes, expected) in [
        (0, "Gemm", &by_row[..], true),
        (1, "Gemm", &by_row, false),
        (0, "MatMul", &[], false),
        (1, "MatMul", &[], true),
    ] {
        for seed in 2..12 {
            let packed = Packed::new(&[Made::gaussian("w", Dtype::F32, &[16, 16], 1)], &format!("axis={axis}"));
            let others = Made::gaussian("w", Dtype::F32, &[16, 16], seed).values();
            let others: Vec<f32> = others.iter().map(|&w| w as f32).collect();
            let nodes = [node(op, &["x", "w"], "y", attributes)];
            let file = model(21, &graph(&nodes, &[raw("w", FLOAT, &[16, 16], &floats(&others))]));
            let options = packed.with(&file);
            if expected {
                assert_eq!(read(&packed.export("onnx", &options)).weight("w"), packed.values("w"), "{op}, axis {axis}");
            } else {
                let line = &packed.plan("onnx", &options).unwrap().tensors[0];
                let reason = line.becomes.as_ref().unwrap_err();
                assert!(reason.contains("which way this square matrix lies"), "{op}, axis {axis}: {reason}");
            }
        }
    }
    // Dense ones likewise.
    let packed = Packed::new(&[Made::gaussian("dense", Dtype::F32, &[8, 8], 1)], "");
    let own: Vec<f32> = Made::gaussian("dense", Dtype::F32, &[8, 8], 1).values().iter().map(|&w| w as f32).collect();
    let turned = transpose(&own, 8);
    let file = model(21, &graph(&[], &[raw("dense", FLOAT, &[8, 8], &floats(&turned))]));
    assert_eq!(read(&packed.export("onnx", &packed.with(&file))).tensors["dense"].2, floats(&turned));
}

/// What exporters merge or hold twice: the floats tell, not the names.
#[test]
fn copies_are_found_by_their_floats() {
    let made = Made::gaussian("w", Dtype::F32, &[8, 12], 1);
    let own: Vec<f32> = made.values().iter().map(|&w| w as f32).collect();
    let turned = raw("other", FLOAT, &[12, 8], &floats(&transpose(&own, 12)));
    let nodes = [node("MatMul", &["x", "other"], "y", &[])];
    for settings in ["", "keep=int8", "granularity=tensor", "axis=1"] {
        let packed = Packed::new(std::slice::from_ref(&made), settings);
        // A tied weight under its other name.
        let options = packed.with(&model(21, &graph(&nodes, std::slice::from_ref(&turned))));
        let becomes = packed.plan("onnx", &options).unwrap().tensors[0].becomes.clone().unwrap();
        assert!(becomes.ends_with("as `other`, transposed"), "{settings}: {becomes}");
        // The same as well as under its own.
        let twice = [raw("w", FLOAT, &[8, 12], &floats(&own)), turned.clone()];
        let refusal = packed.refusal("onnx", &packed.with(&model(21, &graph(&nodes, &twice))));
        assert!(refusal.contains("once more, as `other`, which would"), "{settings}: {refusal}");
        // Or in another order, as of other views of it.
        for (dims, there) in [
            (vec![8, 12, 1, 1], own.clone()),
            (vec![8, 12], own.iter().rev().copied().collect()),
            (vec![4, 2, 12], own.clone()),
            // Or only some rows or columns.
            (vec![2, 12], own[12..36].to_vec()),
            (vec![12, 2], transpose(&own[12..36], 12)),
            (vec![8, 3], own.chunks(12).flat_map(|row| row[2..5].to_vec()).collect()),
        ] {
            let twice = [twice[0].clone(), raw("other", FLOAT, &dims, &floats(&there))];
            let refusal = packed.refusal("onnx", &packed.with(&model(21, &graph(&nodes, &twice))));
            assert!(refusal.contains("once more, as `other`, which would"), "{settings}: {refusal}");
        }
        // Others may be there: multiples, rows that are not next to one another, a row that is another.
        let mut near = own[12..36].to_vec();
        near[5] += 1.0;
        let apart = [&own[..12], &own[24..36]].concat();
        for there in [near, apart] {
            let twice = [twice[0].clone(), raw("other", FLOAT, &[2, 12], &floats(&there))];
            let export = packed.plan("onnx", &packed.with(&model(21, &graph(&nodes, &twice)))).unwrap();
            assert!(export.check().is_ok() && export.warnings[0].starts_with("`other`: no tensor stands for"));
        }
        let half: Vec<f32> = own.iter().map(|w| 0.5 * w).collect();
        let others = [twice[0].clone(), raw("other", FLOAT, &[12, 8], &floats(&half))];
        let export = packed.plan("onnx", &packed.with(&model(21, &graph(&nodes, &others)))).unwrap();
        assert!(export.check().is_ok() && export.warnings[0].starts_with("`other`: no tensor stands for"));
    }
    // Floats of a training that went on are held against those of the model, dense ones as well, as they change there.
    let twice = [raw("w", FLOAT, &[8, 12], &floats(&own)), turned.clone()];
    let tied = model(21, &graph(&nodes, &twice));
    let on: Vec<f64> = own.iter().map(|&w| f64::from(w) * 1.1 + 0.01).collect();
    for settings in ["", "keep=dense", "keep=int8"] {
        let packed = Packed::new(&[Made::new("w", Dtype::F32, &[8, 12], &on)], settings);
        assert!(packed.refusal("onnx", &packed.with(&tied)).contains("once more, as `other`"), "{settings}");
    }
    let packed = Packed::new(std::slice::from_ref(&made), "keep=dense");
    assert!(packed.plan("onnx", &packed.with(&tied)).unwrap().check().is_ok());
    // The same of dense ones, such as embeddings that are tied to a head.
    let file = model(21, &graph(&nodes, std::slice::from_ref(&turned)));
    for (shape, transposed) in [([8, 12], true), ([12, 8], false)] {
        let values = if transposed { own.clone() } else { transpose(&own, 12) };
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let packed = Packed::new(&[Made::new("embed.weight", Dtype::F32, &shape, &values)], "");
        let becomes = packed.plan("onnx", &packed.with(&file)).unwrap().tensors[0].becomes.clone().unwrap();
        assert!(becomes.contains("as `other`") && becomes.contains(", transposed") == transposed, "{becomes}");
    }
    // Empty ones and those of many numbers in few bytes are no reason to panic.
    let empty = [
        raw("w", FLOAT, &[8, 12], &floats(&own)),
        raw("other", FLOAT, &[0, 12], &[]),
        raw("d", FLOAT, &[1 << 40, 1], &[0; 4]),
    ];
    let packed = Packed::new(&[made.clone(), Made::new("d", Dtype::F32, &[0, 12], &[])], "");
    let _ = packed.plan("onnx", &packed.with(&model(21, &graph(&nodes, &empty)))).map(|export| export.check());
    // What the user leaves out stays as it is, whatever it holds; what nothing takes gives no outputs.
    let packed =
        Packed::new(&[made.clone(), Made::new("other", Dtype::F32, &[12, 8], &values64(&transpose(&own, 12)))], "");
    let twice = [raw("w", FLOAT, &[8, 12], &floats(&own)), turned.clone()];
    let tied = graph(&[node("MatMul", &["x", "other"], "y", &[])], &twice);
    let options = Options { leave_out: vec!["other".to_owned()], ..packed.with(&model(21, &tied)) };
    assert!(packed.plan("onnx", &options).unwrap().check().is_ok());
    let packed = Packed::new(std::slice::from_ref(&made), "");
    let unused = graph(&[node("MatMul", &["w", "x"], "y", &[])], &twice);
    assert!(packed.plan("onnx", &packed.with(&model(21, &unused))).unwrap().check().is_ok());
    // An initializer of the tensor's name that has another shape is not passed over for one that is like it.
    let named = [raw("w", FLOAT, &[9, 12], &[0; 4 * 108]), turned];
    let refusal = packed.refusal("onnx", &packed.with(&model(21, &graph(&nodes, &named))));
    assert!(refusal.contains("has shape [9, 12]"), "{refusal}");
}

fn values64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// Of tied weights that the container has under both names, too. Which is which the modules say, not the name that was kept.
#[test]
fn tied_weights_go_where_their_modules_are() {
    let scoped = |op: &str, module: &str, inputs: &[&str], output: &str| {
        [node(op, inputs, output, &[]), bytes(3, format!("/{module}/{op}"))].concat()
    };
    let made = Made::gaussian("wte.weight", Dtype::F32, &[8, 12], 1);
    let head = Made { name: "lm_head.weight".to_owned(), ..made.clone() };
    let own: Vec<f32> = made.values().iter().map(|&w| w as f32).collect();
    let rows = raw("lm_head.weight", FLOAT, &[8, 12], &floats(&own));
    let nodes =
        [scoped("Gather", "wte", &["lm_head.weight", "i"], "h"), scoped("MatMul", "lm_head", &["h", "val"], "y")];
    let folded = model(21, &graph(&nodes, &[rows.clone(), raw("val", FLOAT, &[12, 8], &floats(&transpose(&own, 12)))]));
    let packed = Packed::of_names(&[made.clone(), head.clone()], &["lm_head.weight"]);
    let becomes = |file: &[u8]| {
        let lines = packed.plan("onnx", &packed.with(file)).unwrap().tensors;
        lines.into_iter().map(|line| (line.tensor, line.becomes.unwrap())).collect::<Vec<_>>()
    };
    let lines = becomes(&folded);
    assert_eq!(lines[0].1, "FLOAT [8, 12] as `lm_head.weight`");
    assert!(lines[1].1.starts_with("INT2 [12, 8]") && lines[1].1.ends_with("as `val`, transposed"), "{lines:?}");
    // Where nothing is folded, there is one for both: as long as both are the same.
    let nodes = [
        scoped("Gather", "wte", &["lm_head.weight", "i"], "h"),
        node("Transpose", &["lm_head.weight"], "t", &[]),
        scoped("MatMul", "lm_head", &["h", "t"], "y"),
    ];
    let kept = model(21, &graph(&nodes, &[rows]));
    let both = Packed::of_names(&[made.clone(), head.clone()], &["lm_head.weight", "wte.weight"]);
    let lines = both.plan("onnx", &both.with(&kept)).unwrap().tensors;
    assert_eq!(lines[1].becomes.as_deref(), Ok("nothing: the model has it as `wte.weight`, which is equal"));
    assert!(packed.refusal("onnx", &packed.with(&kept)).contains("packed of the same floats"));
    // Vectors are found by their numbers where these are not all alike.
    let bias = |values: [f64; 3]| Packed::new(&[Made::new("a.bias", Dtype::F32, &[3], &values)], "");
    let file = |values: &[f32]| {
        model(21, &graph(&[node("Add", &["x", "b"], "y", &[])], &[raw("b", FLOAT, &[3], &floats(values))]))
    };
    let packed = bias([1.0, 2.0, 3.0]);
    let lines = packed.plan("onnx", &packed.with(&file(&[1.0, 2.0, 3.0]))).unwrap().tensors;
    assert_eq!(lines[0].becomes.as_deref(), Ok("FLOAT [3] as `b`"));
    assert!(packed.plan("onnx", &packed.with(&file(&[3.0, 2.0, 1.0]))).unwrap().check().is_err());
    let packed = bias([1.0; 3]);
    assert!(packed.plan("onnx", &packed.with(&file(&[1.0; 3]))).unwrap().check().is_err());
}

/// Of equal tensors exporters keep one and an `Identity`. What becomes of the one becomes of the other.
#[test]
fn merged_tensors_become_what_the_one_kept_becomes() {
    let ones = |name: &str, value: f64| Made::new(name, Dtype::F32, &[4], &[value; 4]);
    let wide = |name: &str, seed| Made::gaussian(name, Dtype::F32, &[8, 4], seed);
    let of = |shape: &[usize], values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        model(21, &graph(&[node("Identity", &["a"], "b", &[])], &[raw("a", FLOAT, shape, &floats(&values))]))
    };
    let vector = of(&[4], &[1.0; 4]);
    let matrix = of(&[8, 4], &wide("a", 1).values());
    let halves = Made::new("b", Dtype::F16, &[4], &[1.0; 4]);
    let other = [Made::gaussian("b", Dtype::F32, &[8, 4], 2)];
    let exclude = |name: &str| format!("exclude {name}");
    for (case, made, file, leave_out, good) in [
        ("both dense", vec![ones("a", 1.0), ones("b", 1.0)], &vector, "", true),
        ("in another type", vec![ones("a", 1.0), halves], &vector, "", true),
        ("another", vec![ones("a", 1.0), ones("b", 2.0)], &vector, "", false),
        ("the one kept becomes another", vec![ones("a", 2.0), ones("b", 1.0)], &vector, "", false),
        ("both become another", vec![ones("a", 2.0), ones("b", 2.0)], &vector, "", true),
        ("left out", vec![ones("a", 2.0), ones("b", 1.0)], &vector, "a", true),
        ("left out, others", vec![ones("a", 2.0), ones("b", 2.0)], &vector, "a", false),
        ("both ternary", vec![wide("a", 1), wide("b", 1)], &matrix, "", true),
        ("ternary, others", [vec![wide("a", 1)], other.to_vec()].concat(), &matrix, "", false),
        ("one of them ternary", vec![wide("a", 1), wide("b", 1)], &matrix, &exclude("b"), false),
        ("the other", vec![wide("a", 1), wide("b", 1)], &matrix, &exclude("a"), false),
        ("ternary, left out", vec![wide("a", 1), wide("b", 1)], &matrix, "a", false),
    ] {
        let (exclude, leave_out) = match leave_out.strip_prefix("exclude ") {
            Some(name) => (vec![name.to_owned()], vec![]),
            None => (vec![], Some(leave_out.to_owned()).filter(|name| !name.is_empty()).into_iter().collect()),
        };
        let ternary =
            ["a", "b"].map(str::to_owned).into_iter().filter(|name| file == &matrix && !exclude.contains(name));
        let packed = Packed::of_names(&made, &ternary.collect::<Vec<_>>());
        let lines = packed.plan("onnx", &Options { leave_out, ..packed.with(file) }).unwrap().tensors;
        let becomes = &lines.last().unwrap().becomes;
        match becomes {
            Ok(words) => assert_eq!(words, "nothing: the model takes `a` for it, which is equal", "{case}"),
            Err(words) => assert!(words.contains("takes `a` for it"), "{case}: {words}"),
        }
        assert_eq!(becomes.is_ok(), good, "{case}");
    }
}

/// Thousands of matrices of one size, such as those of experts, were each held against all others.
#[test]
fn many_matrices_of_one_size_take_little_time() {
    let names: Vec<String> = (0..20_000).map(|i| format!("{i}")).collect();
    let made: Vec<Made> =
        names.iter().map(|name| Made::new(name, Dtype::F32, &[2, 2], &[1.0, 0.0, 0.0, 1.0])).collect();
    let there: Vec<_> = names.iter().map(|name| raw(name, FLOAT, &[2, 2], &floats(&[1.0, 0.0, 0.0, 1.0]))).collect();
    let packed = Packed::new(&made, "");
    let nodes: Vec<_> = names.iter().map(|name| node("MatMul", &["x", name], &format!("y{name}"), &[])).collect();
    let export = packed.plan("onnx", &packed.with(&model(21, &graph(&nodes, &there)))).unwrap();
    assert!(export.check().is_ok() && export.tensors.len() == 20_000);
}

/// A batch norm that is left out, and is not in the model, is in the weights that are.
#[test]
fn folded_batch_norms_are_noticed() {
    let mean = Made::new("1.running_mean", Dtype::F32, &[4], &[1.0; 4]);
    for (shape, settings) in
        [([4, 3, 2, 2], ""), ([3, 4, 2, 2], "axis=1"), ([3, 2, 4, 2], "axis=2"), ([3, 2, 2, 4], "axis=3")]
    {
        let conv = Made::gaussian("0.weight", Dtype::F32, &shape, 1);
        let packed = Packed::new(&[conv.clone(), mean.clone()], settings);
        let own: Vec<f32> = conv.values().iter().map(|&w| w as f32).collect();
        for (scale, good) in [([1.0, 1.0], true), ([0.7, 0.7], false), ([0.7, 1.0], false)] {
            let there: Vec<f32> = own.iter().enumerate().map(|(i, w)| scale[i % 2] * w).collect();
            let file = model(21, &graph(&[], &[raw("0.weight", FLOAT, &shape, &floats(&there))]));
            let options = Options { leave_out: vec!["1.*".to_owned()], ..packed.with(&file) };
            assert_eq!(packed.plan("onnx", &options).unwrap().check().is_ok(), good, "{settings} {scale:?}");
        }
    }
}
