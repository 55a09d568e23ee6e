//! Small tensors of any kind and any settings, all the way round: packed, opened, verified,
//! compared with the checkpoint, dequantized, unpacked and packed again.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use twn_pack::convert::{self, Options};
use twn_pack::select::{Keep, Override};
use twn_pack::{
    Checkpoint, Container, Dtype, Encoding, Error, Granularity, Isa, Plan, Rules, ScaleDtype, Settings, Tensor,
    TernaryTensor, unpack, verify,
};
use twn_pack_fuzz::{Bytes, bits};

const FLOATS: [Dtype; 6] = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2];

struct Case {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    settings: Settings,
    data: Vec<u8>,
}

/// Control bytes first, then the weights' own bytes; where they run out, they repeat or are made up.
fn case(input: &mut Bytes<'_>) -> Case {
    let dtype = input.pick(&FLOATS);
    let rank = input.pick(&[2, 2, 2, 3, 4, 5, 1, 0]);
    let mut shape: Vec<usize> = (0..rank).map(|_| input.pick(&[1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 0, 12])).collect();
    // Bounded work: the last dimensions give way.
    while shape.iter().product::<usize>() > 1500 {
        let last = shape.iter().rposition(|&d| d > 2).expect("a product of twos and ones is small");
        shape[last] = 2;
    }
    let long = input.u8();
    if rank >= 2 && long >= 240 {
        // Long filters: over one vector, or (rarely: they take long) over one block.
        let n = input.pick(&[64, 257, 1000, 4099]) + usize::from(input.u8());
        shape = if long % 2 == 0 { vec![2, n] } else { vec![n, 3] };
        if long == 255 && input.u8() > 250 {
            let n = input.pick(&[81_920, 81_921, 81_963]);
            shape = if input.u8() % 2 == 0 { vec![1, n] } else { vec![n, 1] };
        }
    }
    let method = input.pick(&["twn", "optimal", "absmean", "bwn", "twn"]);
    let factor = (method == "twn").then(|| input.pick(&[None, None, Some(0.0), Some(0.5), Some(1.0), Some(1e300)]));
    let encoding = input.pick(&[None, Some(Encoding::T2), Some(Encoding::T5), Some(Encoding::B1)]);
    let granularity = match input.u8() % 4 {
        0 => None,
        1 => Some(Granularity::Tensor),
        2 => Some(Granularity::Group(input.pick(&[1, 2, 3, 5, 7, 8, 64, 100_000, u64::MAX, 1 << 63]))),
        _ => Some(Granularity::Group(u64::from(input.u8()) + 1)),
    };
    let planes = input.pick(&[None, None, Some(2), Some(3)]);
    // Of several planes every unit has a search of its own, all of it on each instruction set: of many weights one unit.
    let one_unit = planes.is_some() && shape.iter().product::<usize>() > 4000;
    let settings = Settings {
        method: Some(method.to_owned()),
        factor: factor.flatten(),
        granularity: if one_unit { Some(Granularity::Tensor) } else { granularity },
        planes,
        axis: Some(input.pick(&[0, 0, 1, 2, 3, 4])),
        encoding,
        sparsity_alpha: None,
        scale_dtype: input.pick(&[None, Some(ScaleDtype::F16)]),
        keep: input.pick(&[None, None, None, Some(Keep::Int8)]),
    };
    let name_length = input.below(12);
    let mut name = String::from_utf8_lossy(input.take(name_length)).into_owned();
    if name == "__metadata__" {
        name.push('_');
    }
    let size = dtype.bitsize() / 8;
    let count: usize = shape.iter().product();
    let mode = input.u8();
    let seed = input.0;
    let mut random = u64::from(mode) ^ (count as u64) << 8;
    let mut data = Vec::with_capacity(count * size);
    for i in 0..count {
        let mut weight: Vec<u8> = (0..size).map(|b| seed.get(i * size + b).copied().unwrap_or(0)).collect();
        if (i + 1) * size > seed.len() {
            // Repeat a few given weights, or walk.
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let given = seed.len() / size;
            if given > 0 && mode % 4 != 0 {
                let from = (random >> 33) as usize % given * size;
                weight.copy_from_slice(&seed[from..from + size]);
            } else {
                weight.copy_from_slice(&random.to_le_bytes()[8 - size..]);
            }
        }
        if mode & 0x80 != 0 {
            // No NaN, no infinity, and no magnitude that a scale could not hold: clear exponent bits.
            let top = weight.last_mut().unwrap();
            *top &= if dtype == Dtype::F64 || mode & 0x40 != 0 { 0xbf } else { 0xef };
            if dtype == Dtype::F64 {
                *top |= 0x3f;
            }
        }
        data.extend(weight);
    }
    Case { name, dtype, shape, settings, data }
}

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let case = case(&mut Bytes(data));
    let directory = twn_pack_fuzz::directory();
    let path = |name: &str| directory.path().join(name);
    let input = path("in.safetensors");
    std::fs::write(&input, safetensors(&case)).unwrap();
    let checkpoint = Checkpoint::open(&input).expect("a good file");
    // A pattern without a name's exceptions: whatever can be ternary becomes ternary.
    let overrides = case.settings.keep.map(|_| Override { pattern: "*".to_owned(), settings: case.settings.clone() });
    let overrides = overrides.into_iter().collect();
    let rules = Rules { settings: case.settings.clone(), include: vec!["*".to_owned()], overrides, ..Rules::default() };
    let plan = match Plan::new(&checkpoint, &rules) {
        Ok(plan) => plan,
        Err(Error::Request(_)) => return,
        Err(other) => panic!("{other}"),
    };
    let output = path("out.twn");
    let weights = weights(case.dtype, &case.data);
    let ternary = case.shape.len() >= 2 && !case.data.is_empty();
    let container = match pack(&checkpoint, &plan, &output) {
        Ok(()) => Container::open(&output).expect("what was packed opens"),
        Err(Error::Weights { .. }) => {
            assert!(ternary && !output.exists());
            return;
        }
        Err(other) => panic!("{other}"),
    };
    let verified = verify::verify(&container, None).unwrap();
    assert!(verified.is_good(), "{:?}", verified.problems);
    let against = verify::verify_against(&container, &checkpoint, None).unwrap();
    assert!(against.is_good(), "{:?}", against.problems);
    let tensor = match container.by_name(&case.name).expect("its name is kept") {
        Tensor::Dense(dense) => {
            assert!(!ternary);
            assert_eq!((dense.data, &dense.shape), (case.data.as_slice(), &case.shape));
            return;
        }
        Tensor::Int8(tensor) => {
            assert!(ternary && case.settings.keep.is_some() && tensor.to_array().is_ok());
            return;
        }
        Tensor::Ternary(tensor) => tensor,
    };
    assert!(ternary && weights.iter().all(|w| w.is_finite()));
    // Codes of several planes follow from no threshold, and are not found again.
    let one = tensor.planes == 1;
    if one {
        check_views(&tensor, &weights);
    }
    let treatment = case.settings.treatment().unwrap();
    for isa in Isa::all() {
        let other = convert::ternarize(checkpoint.tensor(0), &treatment, isa).unwrap();
        assert_eq!(other.packed(), tensor.packed(), "{}", isa.name());
        assert_eq!(other.scale_bytes(), tensor.scale_bytes(), "{}", isa.name());
        assert_eq!(other.stats, tensor.stats, "{}", isa.name());
    }
    // Into its own type, and into any other.
    for dtype in [None, Some(FLOATS[data.len() % FLOATS.len()])] {
        let back = path("back.safetensors");
        match unpack::unpack(&container, &back, &unpack::Options { dtype, overwrite: true, ..Default::default() }) {
            Ok(length) => assert_eq!(length, std::fs::metadata(&back).unwrap().len()),
            // A scale that the type cannot hold. Every scale is an f32.
            Err(Error::Request(_)) if !matches!(dtype.unwrap_or(case.dtype), Dtype::F32 | Dtype::F64) => continue,
            Err(other) => panic!("{other}"),
        }
        if one {
            again(&tensor, &case, &back, &rules, &path("again.twn"));
        }
    }
});

/// Unpacked weights become the same codes again.
fn again(tensor: &TernaryTensor<'_>, case: &Case, back: &Path, rules: &Rules, output: &Path) {
    // From Δ = mean|w| on, weights that are ternary already may lie below Δ.
    if case.settings.factor.is_some_and(|factor| factor >= 1.0) {
        return;
    }
    let unpacked = Checkpoint::open(back).expect("what was unpacked opens");
    let plan = Plan::new(&unpacked, rules).unwrap();
    let absmean = case.settings.method.as_deref() == Some("absmean");
    match pack(&unpacked, &plan, output) {
        Ok(()) => {}
        // Its scale shrinks each time, until no type holds it.
        Err(Error::Weights { .. }) if absmean => return,
        // A wider range than scales have: the sum of their rounded values may leave it.
        Err(Error::Weights { .. }) if tensor.scale_dtype == ScaleDtype::F16 => return,
        Err(other) => panic!("{other}"),
    }
    let container = Container::open(output).unwrap();
    let Some(Tensor::Ternary(second)) = container.by_name(&case.name) else { panic!("ternary again") };
    assert_eq!(second.packed(), tensor.packed());
    let exact = matches!(unpacked.tensor(0).dtype, Dtype::F32 | Dtype::F64);
    if exact && !absmean {
        assert_eq!(second.scale_bytes(), tensor.scale_bytes());
        assert_eq!(second.stats.squared_error, 0.0);
    }
}

fn pack(checkpoint: &Checkpoint, plan: &Plan, output: &Path) -> twn_pack::Result<()> {
    convert::pack(checkpoint, plan, output, &Options { overwrite: true, ..Options::default() }).map(|_| ())
}

/// Codes, planes and values say the same, and codes follow from a threshold: within a unit, every
/// weight that is kept is larger than every weight that is not, and has its code's sign.
fn check_views(tensor: &TernaryTensor<'_>, weights: &[f64]) {
    let (filters, n) = (tensor.filters, tensor.filter_len);
    let inner: usize = tensor.shape[tensor.axis + 1..].iter().product();
    let place = |i: usize, j: usize| (j / inner * filters + i) * inner + j % inner;
    let array = tensor.to_array().unwrap();
    assert_eq!(array.shape(), tensor.shape.as_slice());
    let array = array.as_slice().expect("standard layout");
    let (mut codes, mut values) = (vec![9; n], vec![0.0; n]);
    let run = tensor.scale_run();
    let per_unit =
        |i: usize, j: usize| if tensor.granularity == Granularity::Tensor { 0 } else { i * n.div_ceil(run) + j / run };
    let units = if tensor.granularity == Granularity::Tensor { 1 } else { filters * n.div_ceil(run) };
    // (largest dropped, smallest kept)
    let mut edges = vec![(-1.0f64, f64::INFINITY); units];
    let mut counts = [0; 3];
    for i in 0..filters {
        tensor.codes(0, i, &mut codes).unwrap();
        tensor.dequantize_filter(i, &mut values).unwrap();
        let (zeros, signs) = (tensor.zero_plane(0, i).unwrap(), tensor.sign_plane(0, i).unwrap());
        for (j, &code) in codes.iter().enumerate() {
            let alpha = tensor.scale(0, i, j);
            let expected = [-alpha, 0.0, alpha][usize::from(code)];
            assert_eq!(bits(values[j]), bits(expected), "filter {i}, weight {j}");
            assert_eq!(bits(array[place(i, j)]), bits(expected), "filter {i}, weight {j}");
            assert_eq!((zeros[j], signs[j]), (code == 1, code == 0), "filter {i}, weight {j}");
            counts[usize::from(code)] += 1;
            let weight = weights[place(i, j)];
            let edge = &mut edges[per_unit(i, j)];
            match code {
                1 => edge.0 = edge.0.max(weight.abs()),
                0 => assert!(weight < 0.0, "{weight} became -1"),
                _ => assert!(weight >= 0.0, "{weight} became +1"),
            }
            if code != 1 {
                edge.1 = edge.1.min(weight.abs());
            }
        }
    }
    assert_eq!(counts, [tensor.stats.negative, tensor.stats.zeros, tensor.stats.positive]);
    assert!(edges.iter().all(|(dropped, kept)| dropped < kept), "{edges:?}");
}

fn weights(dtype: Dtype, data: &[u8]) -> Vec<f64> {
    data.chunks_exact(dtype.bitsize() / 8)
        .map(|b| match dtype {
            Dtype::F64 => f64::from_le_bytes(b.try_into().unwrap()),
            Dtype::F32 => f64::from(f32::from_le_bytes(b.try_into().unwrap())),
            Dtype::F16 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f64(),
            Dtype::BF16 => half::bf16::from_le_bytes(b.try_into().unwrap()).to_f64(),
            // The upper half of an f16.
            Dtype::F8_E5M2 => half::f16::from_le_bytes([0, b[0]]).to_f64(),
            _ => e4m3(b[0]),
        })
        .collect()
}

fn e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2f64.powi(-9),
        _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

fn safetensors(case: &Case) -> Vec<u8> {
    let mut json = serde_json::Map::new();
    let entry = serde_json::json!({
        "dtype": case.dtype.to_string(), "shape": case.shape, "data_offsets": [0, case.data.len()],
    });
    json.insert(case.name.clone(), entry);
    let json = serde_json::Value::Object(json).to_string().into_bytes();
    // No padding: data begins anywhere, as the format allows.
    [(json.len() as u64).to_le_bytes().as_slice(), &json, &case.data].concat()
}
