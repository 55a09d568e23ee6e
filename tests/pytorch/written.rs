//! What PyTorch wrote. Not here: what somebody else made of its format.

use std::collections::BTreeMap;

use twn_pack::convert::{self, Options};
use twn_pack::{Checkpoint, Container, Dtype, Plan, Rules, Tensor, import};

use crate::{common, fixture, open_bytes, refusal};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let tensor = |t: twn_pack::TensorView<'_>| (t.name.to_owned(), (t.dtype, t.shape.to_vec(), common::c_order(&t)));
    checkpoint.tensors().map(tensor).collect()
}

fn golden(name: &str) -> Tensors {
    tensors(&Checkpoint::open(fixture(name)).unwrap())
}

fn open(name: &str) -> Checkpoint {
    import::open(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn every_type_and_layout_is_what_torch_says_it_is() {
    let golden = golden("state.safetensors");
    for name in ["state.pt", "protocol3.pt", "protocol4.pt", "protocol5.pt"] {
        let checkpoint = open(name);
        assert_eq!(tensors(&checkpoint), golden, "{name}");
        let warnings = checkpoint.warnings().join("\n");
        assert!(warnings.contains("2 tensors, ") && warnings.contains("do not lie side by side"), "{name}: {warnings}");
        // Only the file that was given, not the temporary one.
        assert_eq!(checkpoint.files().count(), 1);
        assert_eq!(checkpoint.file_bytes(), std::fs::metadata(fixture(name)).unwrap().len());
    }
}

#[test]
fn tied_weights_share_their_bytes() {
    let checkpoint = open("state.pt");
    let bytes = |name| checkpoint.by_name(name).unwrap().stored.as_ptr();
    assert_eq!(bytes("f32"), bytes("tied"));
    assert_eq!(checkpoint.by_name("transposed").unwrap().order, Some(&[1, 0][..]));
    assert_eq!(bytes("f32"), bytes("transposed"));
    // Row 2 of 6 values of 4 bytes.
    assert_eq!(bytes("row") as usize - bytes("f32") as usize, 48);
}

#[test]
fn checkpoints_of_a_training_give_the_state_dict() {
    let checkpoint = open("training.pt");
    assert_eq!(tensors(&checkpoint), golden("training.safetensors"));
    let warnings = checkpoint.warnings().join("\n");
    assert!(warnings.contains("the tensors under `state_dict` are taken; left out: epoch, optimizer, "), "{warnings}");

    // Numbers that are tensors stand beside it in PyTorch's own example.
    let checkpoint = open("imagenet.pt");
    assert_eq!(tensors(&checkpoint), golden("training.safetensors"));
    let warnings = checkpoint.warnings().join("\n");
    assert!(
        warnings.contains("under `state_dict` are taken; left out: epoch, arch, optimizer, best_acc1, …"),
        "{warnings}"
    );
    // By another name, and an optimizer's state.
    let checkpoint = open("net.pt");
    let names: Vec<String> = tensors(&checkpoint).into_keys().collect();
    assert_eq!(names, ["net.linear.bias", "net.linear.weight"]);
    let warnings = checkpoint.warnings().concat();
    assert!(warnings.contains("what an optimizer remembers is left out: `optimizer`"), "{warnings}");
    // Who gives an optimizer's state alone means it.
    assert!(open("optimizer.pt").by_name("state.0.exp_avg").is_some());

    let golden = golden("state.safetensors");
    let checkpoint = open("nested.pt");
    for name in ["f32", "tied", "transposed"] {
        let tensor = checkpoint.by_name(&format!("encoder.{name}")).unwrap();
        assert_eq!((tensor.dtype, tensor.shape.to_vec(), common::c_order(&tensor)), golden[name]);
    }
    assert!(checkpoint.warnings().concat().contains("from under `model`"), "{:?}", checkpoint.warnings());

    let names: Vec<String> = tensors(&open("two-models.pt")).into_keys().collect();
    assert_eq!(
        names,
        ["critic.linear.bias", "critic.linear.weight", "generator.linear.bias", "generator.linear.weight"]
    );
    let warnings = open("two-models.pt").warnings().concat();
    assert!(warnings.contains("1 values that are no tensors are left out: `step`"), "{warnings}");
    let list = tensors(&open("list.pt"));
    assert_eq!((&list["0"], &list["1"]), (&golden["f32"], &golden["transposed"]));
    assert_eq!(tensors(&open("tensor.pt")), [("tensor".to_owned(), golden["f32"].clone())].into());
}

#[test]
fn shards_are_joined_by_an_index_or_a_directory() {
    let golden = golden("state.safetensors");
    for path in ["sharded", "sharded/pytorch_model.bin.index.json"] {
        assert_eq!(tensors(&open(path)), golden, "{path}");
        assert_eq!(open(path).warnings(), [""; 0]);
    }
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let (first, second) = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin");
    for name in [first, second] {
        std::fs::copy(fixture("sharded").join(name), here.join(name)).unwrap();
    }
    assert_eq!(tensors(&import::open(here).unwrap()), golden);
    // Without an index the names say how many there should be.
    std::fs::rename(here.join(first), here.join("elsewhere")).unwrap();
    let missing = import::open(here).unwrap_err().to_string();
    assert!(missing.contains(&format!("holds `{second}`, but not `{first}`")), "{missing}");
    std::fs::rename(here.join("elsewhere"), here.join(first)).unwrap();

    let index = here.join("pytorch_model.bin.index.json");
    let answer = |index_json: String| {
        std::fs::write(&index, index_json).unwrap();
        import::open(here).map(|c| c.warnings().join("\n")).map_err(|e| e.to_string())
    };
    let map = |entries: &[(&str, &str)]| {
        serde_json::json!({"weight_map": entries.iter().copied().collect::<BTreeMap<_, _>>()}).to_string()
    };
    let missing = answer(map(&[("f32", first), ("gone", second)])).unwrap_err();
    assert!(missing.contains("tensor `gone` should be in `pytorch_model-00002-of-00002.bin`"), "{missing}");
    let name = answer(map(&[("f32", "../elsewhere.bin")])).unwrap_err();
    assert!(name.contains("not a plain file name"), "{name}");
    let unlisted = answer(map(&[("f32", first), ("f16", second)])).unwrap();
    assert!(unlisted.contains("is not in the index; taken all the same"), "{unlisted}");
    // The second shard anew, with a tensor of the first.
    std::fs::copy(here.join(first), here.join(second)).unwrap();
    let others = answer(map(&[("f32", second), ("f16", first)])).unwrap_err();
    assert!(others.contains("is in both"), "{others}");
    std::fs::remove_file(&index).unwrap();
    let twice = import::open(here).unwrap_err().to_string();
    assert!(twice.contains("is in both"), "{twice}");
    // What macOS lays beside files is none of them.
    for name in ["._x.safetensors", "._pytorch_model.bin.index.json", "._pytorch_model.bin"] {
        std::fs::write(here.join(name), b"\0\x05\x16\x07").unwrap();
    }
    std::fs::remove_file(here.join(second)).unwrap();
    std::fs::copy(fixture("sharded").join(second), here.join(second)).unwrap();
    assert_eq!(tensors(&import::open(here).unwrap()), golden);
    std::fs::copy(fixture("sharded/pytorch_model.bin.index.json"), &index).unwrap();
    assert_eq!(tensors(&import::open(here).unwrap()), golden);
    std::fs::remove_file(&index).unwrap();
    // Safetensors win.
    std::fs::copy(fixture("training.safetensors"), here.join("model.safetensors")).unwrap();
    let checkpoint = import::open(here).unwrap();
    assert_eq!(checkpoint.len(), 2);
    assert!(checkpoint.warnings().concat().contains("the safetensors are taken"));
}

#[test]
fn a_directory_with_one_file_is_that_file() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["model.pt", "weights.pth", "state.bin"] {
        let path = directory.path().join(name);
        std::fs::copy(fixture("state.pt"), &path).unwrap();
        assert_eq!(tensors(&import::open(directory.path()).unwrap()), golden("state.safetensors"), "{name}");
        std::fs::remove_file(path).unwrap();
    }
    for name in ["model.pt", "optimizer.pt"] {
        std::fs::copy(fixture("state.pt"), directory.path().join(name)).unwrap();
    }
    let error = import::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("holds several checkpoints (`model.pt`, `optimizer.pt`); give the file"), "{error}");
}

#[test]
fn what_is_not_read_is_refused_by_name_with_a_way_out() {
    for (name, says, way_out) in [
        (
            "module.pt",
            "the class `__main__.Net`, a whole model or a part of one, expected a state dict",
            "t = lambda v: t(v.state_dict()) if isinstance(v, torch.nn.Module)",
        ),
        ("sequential.pt", "`torch.nn.modules.container.Sequential`, a whole model", "state_dict()"),
        ("complex.pt", "tensor `w`: is a complex tensor", "delete it from the dict"),
        ("quantized.pt", "tensor `w`: is a quantized tensor", "convert it"),
        ("sparse.pt", "tensor `w`: is a sparse tensor", "convert it"),
        ("meta.pt", "tensor `w`: is a tensor on the device `meta`", "delete it from the dict"),
        ("negated.pt", "tensor `w`: is a conjugated or negated view", "resolve_neg()"),
        ("legacy.pt", "the form that torch.save wrote before version 1.6", "weights_only=False), OUT)"),
        (
            "bare.pkl",
            "a bare pickle of Python",
            "with open(FILE, 'rb') as f: d = pickle.load(f); t = lambda v: t(v.state_dict())",
        ),
        ("script.pt", "a TorchScript program", "torch.jit.load"),
        ("no-tensors.pt", "it holds no tensors", "torch.as_tensor(v) if hasattr(v, 'shape')"),
        ("big-endian.pt", "byte order \"big\", expected \"little\"", "torch.save(torch.load(FILE"),
        ("no-storage.pt", "its storage, entry `data/0`, is not in the file", "damaged"),
        ("short-storage.pt", "has 92 bytes, expected 24 values of 4", "damaged"),
    ] {
        let found = refusal(name);
        assert!(found.contains(says) && found.contains(way_out) && found.contains(name), "{name}: {found}");
    }
    // A tar file, by its magic number.
    let tar = [&b"pickle\0\0"[..], &[0; 249], b"ustar\x0000", &[0; 248]].concat();
    let found = open_bytes(&[b"sys_info", &tar[8..]].concat()).unwrap_err().to_string();
    assert!(found.contains("a tar file"), "{found}");
    // Bare pickles of protocols 0 and 1, which do not begin with their number.
    for begins in
        ["(dp0\nVw\np1\n", "(lp1\nI1\naI2\na.", "ccollections\nOrderedDict\np0\n", "}q\0X\x01\0\0\0wq\x01K\x01s."]
    {
        let found = open_bytes(begins.as_bytes()).unwrap_err().to_string();
        assert!(found.contains("a bare pickle of Python") && found.contains("pickle.load(f)"), "{found}");
    }
}

#[test]
fn packing_gives_the_same_weights_as_from_safetensors() {
    let directory = tempfile::tempdir().unwrap();
    let rules = Rules { include: vec!["*".to_owned()], ..Rules::default() };
    let pack = |checkpoint: Checkpoint, name: &str| {
        let path = directory.path().join(name);
        let plan = Plan::new(&checkpoint, &rules).unwrap();
        convert::pack(&checkpoint, &plan, &path, &Options::default()).unwrap();
        Container::open(&path).unwrap()
    };
    let torch = pack(open("state.pt"), "torch.twn");
    let golden = pack(Checkpoint::open(fixture("state.safetensors")).unwrap(), "golden.twn");
    let sections = |container: &Container| -> BTreeMap<String, (String, Vec<u8>, Vec<u8>)> {
        let section = |(name, tensor): (&str, Tensor<'_>)| {
            let sections = match tensor {
                Tensor::Ternary(t) => {
                    (format!("ternary {} {:?}", t.dtype, t.shape), t.packed().to_vec(), t.scale_bytes().to_vec())
                }
                Tensor::Dense(t) => (format!("dense {} {:?}", t.dtype, t.shape), t.data.to_vec(), Vec::new()),
                _ => panic!("{name}"),
            };
            (name.to_owned(), sections)
        };
        container.tensors().map(section).collect()
    };
    assert_eq!(sections(&torch), sections(&golden));
    assert!(sections(&torch)["transposed"].0.starts_with("ternary"));
}

#[test]
fn the_program_reads_them() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.twn");
    let (input, output) = (fixture("training.pt").display().to_string(), output.display().to_string());
    let (_, warnings) = common::expect(0, &[&*input, "-o", &*output, "--include", "*"]);
    assert!(warnings.contains("the tensors under `state_dict` are taken"), "{warnings}");
    common::expect(0, &["verify", &*output, "--against", &*input]);
    let (table, _) = common::expect(0, &["inspect", &*input]);
    assert!(table.contains("linear.weight"), "{table}");
    let (_, refused) = common::expect(3, &["inspect", &*fixture("code.pt").display().to_string()]);
    assert!(refused.contains("posix.system"), "{refused}");
}
