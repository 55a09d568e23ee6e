//! Ternary tensors out and in: golden blocks of ggml, what comes back, what a type cannot hold, planes. Not here: files
//! around them.

use half::f16;
use twn_pack::export::{self, Options};
use twn_pack::{Container, Dtype, Plan, Rules, Tensor, convert, import, verify};

use crate::file::*;

#[test]
fn golden_blocks_come_out() {
    let directory = tempfile::tempdir().unwrap();
    let (trits, blocks) = golden();
    for encoding in ["t2", "t5"] {
        let bytes = f32s(trits.iter().map(|trit| trit * 0.5));
        let settings = format!("method=auto,encoding={encoding}");
        let container = pack(directory.path(), &[("w", Dtype::F32, &[1, 256], bytes, &settings)], &[]);
        for (format, kind, ..) in TYPES {
            let (lines, file) = export(&container, format, &Options::default());
            let (_, tensors) = read(&file.unwrap());
            assert_eq!(tensors, [raw("w", &[256, 1], kind, blocks[&kind].clone())], "{format}, {encoding}");
            assert_eq!((lines[0].rounding, lines[0].bytes), (0.0, blocks[&kind].len() as u64));
        }
    }
}

#[test]
fn golden_blocks_go_in() {
    let directory = tempfile::tempdir().unwrap();
    let (trits, blocks) = golden();
    let codes: Vec<u8> = trits.iter().map(|trit| (trit + 1.0) as u8).collect();
    for (_, kind, weights, _) in TYPES {
        let file = assemble(32, &[], &[raw("w", &[256, 1], kind, blocks[&kind].clone())]);
        let checkpoint = open(directory.path(), &file).unwrap();
        assert_eq!(moved(&checkpoint, "w").unwrap(), (codes.clone(), vec![0.5; 256 / weights]));
        let container = convert(&checkpoint, &Rules::default(), &directory.path().join("out.twn"));
        let Some(Tensor::Ternary(tensor)) = container.by_name("w") else { panic!() };
        let mut found = vec![9; 256];
        tensor.codes(0, 0, &mut found).unwrap();
        assert_eq!((found, tensor.scales().collect::<Vec<_>>()), (codes.clone(), vec![0.5]));
        assert!(verify::verify_against(&container, &checkpoint, None).unwrap().is_good());
    }
}

/// Every encoding and granularity that a type takes; the values are those of the container but for the scales.
#[test]
fn values_are_those_of_the_container() {
    let directory = tempfile::tempdir().unwrap();
    let tensors: [(&str, &[usize], &str); 7] = [
        ("filter", &[5, 512], ""),
        ("tensor", &[3, 256], "granularity=tensor"),
        ("group", &[2, 1024], "granularity=group:512"),
        ("ragged group", &[2, 768], "granularity=group:512,encoding=t5"),
        ("t5", &[4, 256], "encoding=t5"),
        ("b1", &[3, 256], "method=bwn"),
        ("conv", &[3, 64, 2, 2], "scale-dtype=f16"),
    ];
    let made = tensors.map(|(name, shape, settings)| {
        (name, Dtype::F32, shape, random(name.len() as u64, shape.iter().product()), settings)
    });
    let container = pack(directory.path(), &made, &[]);
    for (format, kind, ..) in TYPES {
        let (lines, file) = export(&container, format, &Options::default());
        let (_, tensors) = read(&file.unwrap());
        for (((name, tensor), line), (as_name, dimensions, found, bytes)) in
            container.tensors().zip(&lines).zip(&tensors)
        {
            let Tensor::Ternary(ternary) = tensor else { panic!() };
            let expected = ternary.to_array().unwrap();
            assert_eq!((name, *found), (as_name.as_str(), kind));
            let n = ternary.filter_len as u64;
            assert_eq!(dimensions, &[n, ternary.filters as u64], "{name}");
            let values = values(kind, bytes);
            assert_eq!(values.len(), expected.len());
            let mut largest = 0.0f64;
            for (value, expected) in values.into_iter().zip(expected.iter()) {
                assert_eq!(value, f16::from_f32(*expected).to_f32(), "{format}, {name}");
                if value != 0.0 {
                    largest = largest.max((f64::from(value) / f64::from(*expected) - 1.0).abs());
                }
            }
            assert_eq!(line.rounding, largest, "{format}, {name}");
            assert!(largest < 1.0 / 2048.0);
        }
    }
}

#[test]
fn what_comes_back_is_the_same_tensor() {
    let directory = tempfile::tempdir().unwrap();
    let long = "encoder.".repeat(20) + "weight";
    let tensors: Vec<Packed<'_>> = vec![
        ("conv", Dtype::F32, &[4, 64, 2, 2], random(1, 1024), ""),
        ("bf16", Dtype::BF16, &[2, 256], vec![0x3e; 1024], "granularity=tensor"),
        ("group", Dtype::F32, &[2, 1024], random(2, 2048), "granularity=group:512"),
        (&long, Dtype::F32, &[3, 512], random(3, 1536), "granularity=group:256"),
        ("signs", Dtype::F32, &[3, 256], random(4, 768), "method=bwn"),
        ("bias", Dtype::F16, &[5], (0..10).collect(), ""),
        ("scalar", Dtype::I64, &[], vec![1, 2, 3, 4, 5, 6, 7, 8], ""),
        ("bytes", Dtype::U8, &[3], vec![1, 200, 3], ""),
        ("wide", Dtype::U64, &[2], vec![255; 16], ""),
        ("five", Dtype::I32, &[1, 2, 1, 2, 1], (0..16).collect(), ""),
        ("none", Dtype::F32, &[0, 3], vec![], ""),
    ];
    let container = pack(directory.path(), &tensors, &[("format", "pt"), ("note", "a \"quoted\" note")]);
    for (format, ..) in TYPES {
        let (lines, file) = export(&container, format, &Options::default());
        let said = |name: &str| lines.iter().find(|line| line.tensor == name).unwrap().becomes.clone().unwrap();
        assert_eq!((said("bytes"), said("five")), ("I8 [3] for U8".to_owned(), "I32 [4]".to_owned()));
        assert!(said(&long).contains("as `twn_pack.tensor."), "{}", said(&long));
        let file = file.unwrap();
        let checkpoint = open(directory.path(), &file).unwrap();
        assert_eq!(checkpoint.warnings(), [""; 0]);
        let back = convert(&checkpoint, &Rules::default(), &directory.path().join("back.twn"));
        assert_eq!(back.index().metadata, container.index().metadata, "{format}");
        assert_eq!(back.index().tensors.len(), container.index().tensors.len());
        for (name, tensor) in container.tensors() {
            match (tensor, back.by_name(name).unwrap()) {
                (Tensor::Dense(old), Tensor::Dense(new)) => {
                    assert_eq!((old.dtype, old.shape, old.data), (new.dtype, new.shape, new.data), "{name}");
                }
                (Tensor::Ternary(old), Tensor::Ternary(new)) => {
                    assert_eq!((old.dtype, &old.shape, old.axis), (new.dtype, &new.shape, new.axis), "{name}");
                    assert_eq!(old.granularity, new.granularity, "{format}, {name}");
                    let rounded = old.scales().map(|scale| f16::from_f32(scale).to_f32());
                    assert!(rounded.eq(new.scales()), "{name}");
                    for filter in 0..old.filters {
                        let [mut a, mut b] = [vec![8; old.filter_len], vec![9; old.filter_len]];
                        old.codes(0, filter, &mut a).unwrap();
                        new.codes(0, filter, &mut b).unwrap();
                        assert_eq!(a, b, "{name}, filter {filter}");
                    }
                }
                _ => panic!("{name}: another kind"),
            }
        }
    }
}

#[test]
fn what_a_type_cannot_hold_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let check = |shape: &[usize], settings: &str, scale: f32, format: &str, expected: &str| {
        let weights = random(1, shape.iter().product());
        let weights = weights.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) * scale);
        let tensor = ("w", Dtype::F32, shape, f32s(weights), settings);
        let container = pack(directory.path(), &[tensor], &[]);
        let (lines, file) = export(&container, format, &Options::default());
        let reason = lines[0].becomes.as_ref().unwrap_err();
        assert!(reason.contains(expected), "{settings}: {reason}");
        assert!(file.unwrap_err().to_string().contains(expected));
        // As floats, it goes; to the values that unpacking gives.
        let options = Options { refused_as_dense: true, ..Options::default() };
        let (lines, file) = export(&container, format, &options);
        let (_, tensors) = read(&file.unwrap());
        // And why is still said.
        let line = lines[0].becomes.as_ref().unwrap();
        assert!(line.contains(&format!(", as floats: {}", reason.split("; ").next().unwrap())), "{line}");
        let unpacked = match container.by_name("w").unwrap() {
            Tensor::Ternary(ternary) => ternary.to_array().unwrap(),
            Tensor::Int8(int8) => int8.to_array().unwrap(),
            Tensor::Dense(_) => panic!(),
        };
        let dimensions: Vec<u64> = shape.iter().rev().map(|&d| d as u64).collect();
        assert_eq!(tensors, [raw("w", &dimensions, 0, f32s(unpacked.iter().copied()))], "{settings}");
    };
    check(&[2, 320], "", 1.0, "tq2_0", "320 weights per filter, TQ2_0 takes multiples of 256; q2_0 takes it");
    check(&[2, 100], "", 1.0, "q2_0", "100 weights per filter, Q2_0 takes multiples of 64; keep it dense");
    check(&[2, 512], "granularity=group:64", 1.0, "tq1_0", "a scale for every 64 weights, TQ1_0 has one for every 256");
    check(&[2, 512], "granularity=group:384", 1.0, "tq2_0", "export to q2_0, or pack it with granularity=group:256");
    check(&[2, 128], "granularity=group:32", 1.0, "q2_0", "a scale for every 32 weights, Q2_0 has one for every 64");
    check(&[256, 2], "axis=1", 1.0, "tq2_0", "filters along axis 1");
    check(&[2, 8, 64], "axis=1", 1.0, "q2_0", "filters along axis 1");
    check(&[2, 256], "planes=2", 1.0, "tq2_0", "2 planes, TQ2_0 has one; give --planes-as-tensors");
    check(&[2, 256], "keep=int8", 1.0, "tq2_0", "int8, which has no GGUF type");
    check(&[2, 256], "", 1e6, "tq2_0", "f16 goes from 6.0e-8 to 65504");
    check(&[2, 256], "", 1e-9, "q2_0", "f16 goes from 6.0e-8 to 65504");
    check(&[2, 256], "granularity=tensor", 1e-9, "tq1_0", "scale 0 is");
    let error = export::format("tq3").err().unwrap().to_string();
    assert!(error.contains("tq1_0, tq2_0, q2_0"), "{error}");
}

/// f16 has fewer bits below 6.1e-5.
#[test]
fn coarse_rounding_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let weights = f32s((0..256).map(|i| if i % 3 == 0 { 1e-6 } else { 0.0 }));
    let container = pack(directory.path(), &[("w", Dtype::F32, &[1, 256], weights, "method=auto")], &[]);
    let export = export::format("tq2_0").unwrap().export(&container, &Options::default()).unwrap();
    let expected = (f16::from_f32(1e-6).to_f64() / f64::from(1e-6_f32) - 1.0).abs();
    assert_eq!(export.tensors[0].rounding, expected);
    assert!(expected > 1e-3 && export.warnings[0].contains("`w`"), "{:?}", export.warnings);
}

#[test]
fn planes_become_tensors_whose_sum_is_the_weight() {
    let directory = tempfile::tempdir().unwrap();
    let tensor = ("w", Dtype::F32, &[2, 256][..], random(7, 512), "planes=2,scale-dtype=f16");
    let container = pack(directory.path(), std::slice::from_ref(&tensor), &[]);
    let options = Options { planes_as_tensors: true, ..Options::default() };
    let (_, file) = export(&container, "tq2_0", &options);
    let (_, tensors) = read(&file.unwrap());
    let names: Vec<_> = tensors.iter().map(|tensor| tensor.0.as_str()).collect();
    assert_eq!(names, ["w.plane0", "w.plane1"]);
    let planes: Vec<_> = tensors.iter().map(|tensor| values(35, &tensor.3)).collect();
    let Some(Tensor::Ternary(ternary)) = container.by_name("w") else { panic!() };
    let sum = planes[0].iter().zip(&planes[1]).map(|(a, b)| a + b);
    assert!(sum.eq(ternary.to_array().unwrap().iter().copied()));
    // Read, they are one tensor of two planes again, and that gives the same file.
    for (to, shape, settings) in [
        ("tq1_0", vec![2, 256], "planes=2,scale-dtype=f16"),
        ("q2_0", vec![4, 3, 8, 8], "planes=3,granularity=group:64"),
        ("tq2_0", vec![3, 512], "planes=4,granularity=tensor"),
    ] {
        let weights = random(9, shape.iter().product());
        let container = pack(directory.path(), &[("w", Dtype::F32, &shape, weights, settings)], &[]);
        let (_, file) = export(&container, to, &options);
        let (path, back) = (directory.path().join("planes.gguf"), directory.path().join("back.twn"));
        std::fs::write(&path, file.as_ref().unwrap()).unwrap();
        let checkpoint = import::open(&path).unwrap();
        assert_eq!(checkpoint.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["w"]);
        let plan = Plan::new(&checkpoint, &Rules::default()).unwrap();
        let overwrite = convert::Options { overwrite: true, ..Default::default() };
        convert::pack(&checkpoint, &plan, &back, &overwrite).unwrap();
        let back = Container::open(back).unwrap();
        assert!(verify::verify(&back, None).unwrap().is_good());
        let [Some(Tensor::Ternary(old)), Some(Tensor::Ternary(new))] = [&container, &back].map(|c| c.by_name("w"))
        else {
            panic!()
        };
        assert_eq!((&new.shape, new.planes, new.granularity), (&old.shape, old.planes, old.granularity));
        assert_eq!(new.packed(), old.packed());
        assert!(new.scales().eq(old.scales().map(|scale| f16::from_f32(scale).to_f32())));
        // Sizes are known before: the index says what the file had.
        assert_eq!(back.index().tensors[0].source_bytes(), checkpoint.ternary(0).unwrap().bytes() as u64);
        let again = export(&back, to, &options).1.unwrap();
        assert!(read(&again).1 == read(file.as_ref().unwrap()).1, "{to}");
        // Beside another tensor of the weight's name, or without one of them, each is a tensor by itself.
        let (keys, mut tensors) = read(file.as_ref().unwrap());
        let keys: Vec<_> = keys.into_iter().map(|(name, value)| [&text(&name)[..], &value].concat()).collect();
        tensors.push(raw("w", &[1], 0, f32s([1.0])));
        std::fs::write(&path, assemble(32, &keys, &tensors)).unwrap();
        let checkpoint = import::open(&path).unwrap();
        assert_eq!((checkpoint.len(), checkpoint.warnings().len()), (old.planes + 1, 1));
        assert!(checkpoint.warnings()[0].contains("planes of `w` stay apart"), "{:?}", checkpoint.warnings());
        tensors.truncate(old.planes - 1);
        std::fs::write(&path, assemble(32, &keys, &tensors)).unwrap();
        let checkpoint = import::open(&path).unwrap();
        assert_eq!((checkpoint.len(), checkpoint.tensor(0).name), (old.planes - 1, "w.plane0"));
    }
    let into = Options { into: Some(directory.path().join("any")), ..options.clone() };
    let error = export::format("tq2_0").unwrap().export(&container, &into).unwrap_err().to_string();
    assert!(error.contains("leave it out, or --into"), "{error}");
    // Refused, it is one tensor of floats.
    let axis = ("w", Dtype::F32, &[256, 2][..], random(7, 512), "planes=2,axis=1");
    let container = pack(directory.path(), &[axis], &[]);
    let (lines, _) = export_lines(&container, &options);
    assert!(lines[0].becomes.as_ref().unwrap_err().contains("filters along axis 1"), "{lines:?}");
    let (_, file) = export(&container, "tq2_0", &Options { refused_as_dense: true, ..options.clone() });
    let Some(Tensor::Ternary(ternary)) = container.by_name("w") else { panic!() };
    let sum = f32s(ternary.to_array().unwrap().iter().copied());
    assert_eq!(read(&file.unwrap()).1, [raw("w", &[2, 256], 0, sum)]);
    let container = pack(directory.path(), &[tensor, ("w.plane1", Dtype::F32, &[2], random(1, 2), "")], &[]);
    let (lines, _) = export_lines(&container, &options);
    assert!(lines.iter().all(|line| line.becomes.as_ref().unwrap_err().contains("`w.plane1`")), "{lines:?}");
}
