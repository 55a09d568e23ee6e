//! Which tensors of dicts, lists and objects inside each other are taken. Not here: tensors themselves
//! ([`crate::pickles`]), checkpoints that PyTorch wrote ([`crate::written`]).

use crate::*;

fn matrix() -> Vec<u8> {
    tensor(6, 0, &[2, 3], &[3, 1])
}

fn vector() -> Vec<u8> {
    tensor(6, 0, &[3], &[1])
}

/// A dict that is no whole pickle.
fn inner(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let whole = dict(items);
    whole[2..whole.len() - 1].to_vec()
}

fn open(items: &[(&str, Vec<u8>)]) -> twn_pack::Result<Checkpoint> {
    state(&dict(items), &[("0", &floats(6))])
}

/// In alphabetical order.
fn names(items: &[(&str, Vec<u8>)]) -> Vec<String> {
    let mut names: Vec<_> = open(items).unwrap().tensors().map(|tensor| tensor.name.to_owned()).collect();
    names.sort();
    names
}

/// A config under a well-known name hid the weights.
#[test]
fn only_dicts_with_tensors_are_state_dicts() {
    let weights = || inner(&[("w", matrix())]);
    let config = || inner(&[("dim", int(4)), ("betas", b"]".to_vec())]);
    assert_eq!(names(&[("model", config()), ("weights", weights())]), ["weights.w"]);
    assert_eq!(names(&[("network", config()), ("G", weights()), ("D", weights())]), ["D.w", "G.w"]);
    for (state, config_name) in [("state_dict", "params"), ("model", "network")] {
        let checkpoint = open(&[(state, weights()), (config_name, config())]).unwrap();
        assert!(checkpoint.by_name("w").is_some(), "{state}");
        assert!(
            checkpoint.warnings().concat().contains(&format!("under `{state}` are taken; left out: {config_name}"))
        );
    }
    // Means and deviations, which no matrices are dropped for.
    let means = || inner(&[("mean", vector()), ("std", vector())]);
    assert_eq!(names(&[("params", means()), ("net", weights())]), ["net.w", "params.mean", "params.std"]);
    assert_eq!(names(&[("params", means()), ("mean", vector())]), ["mean", "std"]);
    // Two of them, as ever, the same one included; and one whose tensors lie deeper.
    assert_eq!(names(&[("model", weights()), ("params", means())]), ["model.w", "params.mean", "params.std"]);
    let memoized = [&weights()[..], b"q\x01"].concat();
    assert_eq!(names(&[("model", memoized), ("module", b"h\x01".to_vec())]), ["model.w", "module.w"]);
    let deep = inner(&[("config", config()), ("layers", [b"](", &weights()[..], b"e"].concat())]);
    assert_eq!(names(&[("model", deep), ("other", weights())]), ["layers.0.w"]);
    let none = open(&[("model", config())]).unwrap_err().to_string();
    assert!(none.contains("it holds no tensors"), "{none}");
}

/// Many that hold nothing are not searched once for each.
#[test]
fn many_empty_wrappers_end_soon() {
    let begin = std::time::Instant::now();
    let list = [b"](".to_vec(), b"N".repeat(1_000_000), b"e".to_vec()].concat();
    let nothing = [&b"}X\x01\0\0\0a"[..], &list, b"sq\x01"].concat();
    let mut pickle = [&b"\x80\x02}(X\x05\0\0\0modelq\x02"[..], &nothing].concat();
    (0..100_000).for_each(|_| pickle.extend(b"h\x02h\x01"));
    pickle.extend(b"u.");
    assert!(state(&pickle, &[]).is_err());
    assert!(begin.elapsed() < std::time::Duration::from_secs(60), "{:?}", begin.elapsed());
}

/// They were left out, and the warning said that they were no tensors.
#[test]
fn deques_and_namespaces_are_looked_into() {
    let deque = [b"ccollections\ndeque\n)K\x04\x86R(", &matrix()[..], &vector(), b"e"].concat();
    assert_eq!(names(&[("d", deque), ("w", matrix())]), ["d.0", "d.1", "w"]);
    for begin in [&b"ctypes\nSimpleNamespace\n)R"[..], b"cargparse\nNamespace\n)\x81"] {
        let namespace = [begin, &inner(&[("a", matrix()), ("lr", int(1))]), b"b"].concat();
        assert_eq!(names(&[("n", namespace), ("w", matrix())]), ["n.a", "w"]);
    }
    // As Python 2 writes it.
    let made = [b"ccollections\ndeque\n](", &matrix()[..], b"e\x85R"].concat();
    let found = open(&[("d", made), ("w", matrix())]).unwrap_err().to_string();
    assert!(found.contains("`d`: a dict or deque that is made of a list"), "{found}");
}

/// `torchao`, `DTensor` and subclasses of one's own: what they are made of has any names.
#[test]
fn tensors_of_classes_of_their_own_are_refused_where_they_would_be_taken() {
    let own = |function: &[u8]| {
        let class = b"cmymodel\nQuantized\nq\x07(h\x07ctorch\nfloat32\nK\x02K\x03\x86t}X\x04\0\0\0spec";
        let begin = [function, b"(ctorch._utils\n_rebuild_wrapper_subclass\n", class].concat();
        [&begin[..], b"cmymodel\nSpec\n)\x81}b", b"s", b"tR"].concat()
    };
    let first = own(b"ctorch._tensor\n_rebuild_from_type_v2\nq\x08");
    let found = open(&[("w", first.clone())]).unwrap_err().to_string();
    assert!(found.contains("tensor `w`: is of a class of its own, expected torch.Tensor"), "{found}");
    assert!(found.contains("v.full_tensor()") && found.contains("v.dequantize()"), "{found}");
    let model = inner(&[("w", matrix())]);
    let states = [&b"]("[..], &first, &own(b"h\x08"), b"e"].concat();
    assert_eq!(names(&[("model", model.clone()), ("optimizer", states.clone())]), ["w"]);
    // Elsewhere such names are refused still, and inside what runs something.
    let object = b"cmymodel\nNet\n)\x81".to_vec();
    let found = open(&[("model", model.clone()), ("optimizer", states), ("x", object)]).unwrap_err().to_string();
    assert!(found.contains("asks for `mymodel.Net`"), "{found}");
    let runs = b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nX\x01\0\0\0a\x85RtR".to_vec();
    let found = open(&[("model", model), ("optimizer", runs)]).unwrap_err().to_string();
    assert!(found.contains("asks for `os.system`"), "{found}");
}
