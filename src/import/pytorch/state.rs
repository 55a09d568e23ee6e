//! Names and tensors in an unpickled checkpoint. Not here: where the bytes are taken from ([`super`]).

use std::collections::HashSet;

use super::super::Names;
use super::super::pickle::{Id, Object, Pickle, Value};
use super::super::zip::shown;
use super::{Name, RESAVE};
use crate::source::Strided;
use crate::{Dtype, limits};

/// What programs call the state dict in a checkpoint of a training.
const WRAPPERS: [&str; 7] = ["state_dict", "model_state_dict", "model_state", "model", "module", "network", "params"];

/// How many classes and functions a tensor may be made of, one inside the other.
const MADE_OF: usize = 4;

/// Dicts, lists and tensors, and values inside of them, that are looked at however small a pickle is.
const VISITS: [usize; 2] = [1 << 16, 4 << 20];

/// Entries of an optimizer's state at most, so that what a pickle refers to many times is not searched as often.
const OPTIMIZER_ENTRIES: usize = 8;

/// The bytes of a storage, and where in the file they begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    pub bytes: &'a [u8],
    pub begin: usize,
}

/// A tensor: its values are in the storage.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    pub dtype: Dtype,
    pub storage: Storage<'a>,
    pub strided: Strided,
}

/// The tensors of a checkpoint, named.
#[derive(Debug)]
pub(super) struct State<'a> {
    pub tensors: Vec<(String, Tensor<'a>)>,
    pub warnings: Vec<String>,
}

impl<'a> State<'a> {
    /// Finds them in a pickle; `storage` gives the storage of a key.
    pub fn read(pickle: &Pickle<'_, Name>, storage: impl Fn(&str) -> Option<Storage<'a>>) -> Result<Self, String> {
        let mut warnings = Vec::new();
        let root = unwrap(pickle, &mut warnings);
        let mut walk = Walk {
            pickle,
            storage,
            tensors: Vec::new(),
            names: HashSet::new(),
            name_bytes: 0,
            other_key: None,
            visits: VISITS.map(|at_least| at_least + 4 * pickle.values.len()),
            skipped: Names::default(),
            optimizers: Names::default(),
        };
        let mut name = String::new();
        if is_tensor(pickle, root) {
            name.push_str("tensor");
        }
        walk.visit(root, &mut name, 0)?;
        let (count, skipped) = (walk.skipped.count, walk.skipped.examples());
        if walk.tensors.is_empty() {
            let others = match count {
                0 => String::new(),
                _ => format!(", but {count} other values, of which some may be arrays of numpy (first: {skipped})"),
            };
            return Err(format!("it holds no tensors{others}; {RESAVE}"));
        }
        if walk.optimizers.count > 0 {
            warnings.push(format!("what an optimizer remembers is left out: {}", walk.optimizers.examples()));
        }
        if count > 0 {
            warnings.push(format!("{count} values that are no tensors are left out: {skipped}"));
        }
        Ok(Self { tensors: walk.tensors, warnings })
    }
}

/// Keys and values of a dict, or attributes of a namespace.
fn items<'p>(pickle: &'p Pickle<'_, Name>, id: Id) -> Option<&'p [(Id, Id)]> {
    match pickle.get(id) {
        Value::Dict(items) | Value::Object(Object { class: Name::Mapping, items, .. }) => Some(items),
        Value::Object(Object { class: Name::Namespace, state: Some(state), .. }) => match pickle.get(*state) {
            Value::Dict(items) => Some(items),
            _ => None,
        },
        _ => None,
    }
}

/// What is in a list, a tuple or a set.
fn elements<'p>(pickle: &'p Pickle<'_, Name>, id: Id) -> Option<&'p [Id]> {
    match pickle.get(id) {
        Value::Tuple(elements)
        | Value::List(elements)
        | Value::Object(Object { class: Name::Sequence, elements, .. }) => Some(elements),
        _ => None,
    }
}

/// Whether something is anywhere inside of these, as far as tensors are looked for. What was `seen` is passed over.
fn hold(
    pickle: &Pickle<'_, Name>,
    mut these: Vec<Id>,
    seen: &mut [bool],
    something: fn(&Pickle<'_, Name>, Id) -> bool,
) -> bool {
    while let Some(id) = these.pop() {
        if std::mem::replace(&mut seen[id as usize], true) {
            continue;
        }
        if something(pickle, id) {
            return true;
        }
        these.extend(items(pickle, id).unwrap_or_default().iter().map(|&(_, value)| value));
        these.extend(elements(pickle, id).unwrap_or_default());
    }
    false
}

/// A dict or deque whose items are arguments of its class, instead of set one by one.
fn is_made_of_a_list(pickle: &Pickle<'_, Name>, id: Id) -> bool {
    let Value::Object(Object { class: Name::Mapping | Name::Sequence, args, .. }) = pickle.get(id) else {
        return false;
    };
    let holds = |id: &Id| match pickle.get(*id) {
        Value::List(elements) | Value::Tuple(elements) => !elements.is_empty(),
        Value::Dict(items) => !items.is_empty(),
        _ => false,
    };
    pickle.tuple(*args).is_some_and(|args| args.iter().any(holds))
}

fn is_tensor(pickle: &Pickle<'_, Name>, id: Id) -> bool {
    use Name::{FromType, Parameter, Tensor, TensorV2, TensorV3, Unread};
    let tensors = [Tensor, TensorV2, TensorV3, Parameter, FromType];
    matches!(pickle.get(id), Value::Object(Object { class, .. }) if tensors.contains(class) || matches!(class, Unread(_)))
}

/// Whether it is a tensor of several axes: a number, a state of random numbers or a mean is no weight.
fn is_matrix(pickle: &Pickle<'_, Name>, mut id: Id) -> bool {
    let is_one = is_tensor(pickle, id);
    // As far as tensors are looked for in what they are made of.
    for _ in 0..MADE_OF {
        if let Value::Object(Object { class: Name::Parameter, args, .. }) = pickle.get(id)
            && let Some(&[data, ..]) = pickle.tuple(*args)
        {
            id = data;
        }
    }
    let Value::Object(Object { class: Name::Tensor | Name::TensorV2 | Name::TensorV3, args, .. }) = pickle.get(id)
    else {
        return is_one;
    };
    let shape = pickle.tuple(*args).and_then(|args| pickle.tuple(*args.get(2)?));
    is_one && shape.is_none_or(|shape| shape.len() > 1)
}

/// Whether it is what `state_dict` of an optimizer of torch returns.
fn is_optimizer(pickle: &Pickle<'_, Name>, items: &[(Id, Id)]) -> bool {
    let has = |name: &str| items.iter().any(|&(key, _)| matches!(pickle.get(key), &Value::Text(key) if key == name));
    items.len() <= OPTIMIZER_ENTRIES && has("state") && has("param_groups")
}

/// The dict that the tensors are in: the whole; or, where none of its values is a tensor of several axes, the one with
/// tensors under a well-known name, if there is only one, and no other value has such tensors that it has none of.
fn unwrap(pickle: &Pickle<'_, Name>, warnings: &mut Vec<String>) -> Id {
    let mut root = pickle.root;
    let unseen = || vec![false; pickle.values.len()];
    for _ in 0..WRAPPERS.len() {
        let Some(all) = items(pickle, root).filter(|items| !items.iter().any(|&(_, value)| is_matrix(pickle, value)))
        else {
            break;
        };
        // What was seen in vain for one is in vain for all.
        let mut seen = unseen();
        let mut found = all.iter().filter_map(|&(key, value)| match pickle.get(key) {
            &Value::Text(key)
                if WRAPPERS.contains(&key)
                    && items(pickle, value).is_some()
                    && hold(pickle, vec![value], &mut seen, is_tensor) =>
            {
                seen.fill(false);
                Some((key, value))
            }
            _ => None,
        });
        let (Some((key, value)), None) = (found.next(), found.next()) else { break };
        let others = || all.iter().map(|&(_, other)| other).filter(|&other| other != value).collect();
        if !hold(pickle, vec![value], &mut unseen(), is_matrix) && hold(pickle, others(), &mut unseen(), is_matrix) {
            break;
        }
        if all.len() > 1 {
            let others = all.iter().filter(|&&(_, other)| other != value).take(4);
            let others: Vec<String> =
                others.map(|&(key, _)| part(pickle, key).unwrap_or_else(|| kind(pickle, key))).collect();
            let dots = if all.len() > others.len() + 1 { ", …" } else { "" };
            warnings.push(format!("the tensors under `{key}` are taken; left out: {}{dots}", others.join(", ")));
        } else {
            warnings.push(format!("the tensors are taken from under `{key}`"));
        }
        root = value;
    }
    root
}

/// What a key adds to a name, if it is text or a number.
fn part(pickle: &Pickle<'_, Name>, key: Id) -> Option<String> {
    match pickle.get(key) {
        Value::Text(text) if text.len() <= limits::NAME_BYTES => Some((*text).to_owned()),
        Value::Text(text) => Some(shown(text)),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What a key is that adds nothing to a name.
fn kind(pickle: &Pickle<'_, Name>, key: Id) -> String {
    match pickle.get(key) {
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Other(what) => (*what).to_owned(),
        Value::Tuple(elements) => {
            let first =
                elements.iter().take(4).map(|&id| part(pickle, id).map_or("…".to_owned(), |part| shown(&part)));
            format!("({})", first.collect::<Vec<_>>().join(", "))
        }
        _ => "an object, such as bytes".to_owned(),
    }
}

struct Walk<'p, 'a, S> {
    pickle: &'p Pickle<'p, Name>,
    storage: S,
    tensors: Vec<(String, Tensor<'a>)>,
    names: HashSet<String>,
    name_bytes: u64,
    /// The key that is neither text nor a number and that what is looked at stands under, if there is one.
    other_key: Option<String>,
    /// How many more may be looked at, as in [`VISITS`]: what a pickle refers to many times could be endless.
    visits: [usize; 2],
    /// Values that are no tensors.
    skipped: Names,
    /// Optimizers' states.
    optimizers: Names,
}

impl<'a, S: Fn(&str) -> Option<Storage<'a>>> Walk<'_, 'a, S> {
    fn visit(&mut self, id: Id, name: &mut String, depth: usize) -> Result<(), String> {
        let pickle = self.pickle;
        let is_value = !matches!(pickle.get(id), Value::Dict(_) | Value::List(_) | Value::Tuple(_) | Value::Object(_));
        let visits = &mut self.visits[usize::from(is_value)];
        *visits = visits.checked_sub(1).ok_or_else(|| format!("too much of it stands in several places; {RESAVE}"))?;
        if is_tensor(pickle, id) {
            let wrong = |what: String| format!("tensor `{}`: {what}", shown(name));
            if let Some(key) = &self.other_key {
                return Err(wrong(format!(
                    "the key `{key}` in its name is neither text nor a whole number; rename it to text and \
                     save it again, or {RESAVE}"
                )));
            }
            let tensor = self.tensor(id).map_err(wrong)?;
            self.name_bytes += name.len() as u64;
            if name.len() > limits::NAME_BYTES || self.name_bytes > limits::HEADER_BYTES {
                return Err(wrong("names that are too long; save the weights alone".to_owned()));
            }
            if !self.names.insert(name.clone()) {
                return Err(wrong(
                    "two entries of the file have this name, once keys are joined by dots and numbers are text; rename \
                     one of them"
                        .to_owned(),
                ));
            }
            self.tensors.push((name.clone(), tensor));
            return Ok(());
        }
        if depth > limits::PICKLE_DEPTH {
            return Err(format!(
                "`{}`: more than {} dicts and lists inside each other; {RESAVE}",
                shown(name),
                limits::PICKLE_DEPTH
            ));
        }
        if is_made_of_a_list(pickle, id) {
            return Err(format!(
                "`{}`: a dict or deque that is made of a list, as Python 2 writes it; {RESAVE}",
                shown(name)
            ));
        }
        if let Some(items) = items(pickle, id) {
            if depth > 0 && is_optimizer(pickle, items) {
                self.optimizers.add(name);
                return Ok(());
            }
            for &(key, value) in items {
                if let Some(part) = part(pickle, key) {
                    self.inside(value, &part, name, depth)?;
                    continue;
                }
                let key = kind(pickle, key);
                let outer = self.other_key.replace(key.clone());
                self.inside(value, &key, name, depth)?;
                self.other_key = outer;
            }
            return Ok(());
        }
        let Some(elements) = elements(pickle, id) else {
            self.skipped.add(name);
            return Ok(());
        };
        for (i, &element) in elements.iter().enumerate() {
            self.inside(element, &i.to_string(), name, depth)?;
        }
        Ok(())
    }

    fn inside(&mut self, id: Id, part: &str, name: &mut String, depth: usize) -> Result<(), String> {
        let length = name.len();
        if length > limits::NAME_BYTES {
            return Err(format!("tensor `{}`: names that are too long; save the weights alone", shown(name)));
        }
        if length > 0 {
            name.push('.');
        }
        name.push_str(part);
        self.visit(id, name, depth + 1)?;
        name.truncate(length);
        Ok(())
    }

    /// The tensor that a call of torch's functions would have made.
    fn tensor(&self, id: Id) -> Result<Tensor<'a>, String> {
        let pickle = self.pickle;
        let malformed = || "is not what torch.save writes; save it again".to_owned();
        let Value::Object(object) = pickle.get(id) else { return Err(malformed()) };
        let (mut class, mut args, mut built) =
            (object.class, pickle.tuple(object.args).ok_or_else(malformed)?, object.state.is_some());
        // A parameter is made of a tensor, a class of its own of a function and its arguments.
        for _ in 0..MADE_OF {
            match (class, args) {
                (Name::Parameter, &[data, ..]) => {
                    let Value::Object(object) = pickle.get(data) else { return Err(malformed()) };
                    (class, args) = (object.class, pickle.tuple(object.args).ok_or_else(malformed)?);
                    built |= object.state.is_some();
                }
                (Name::FromType, &[function, of, inner, ..]) => {
                    let (&Value::Global(function), Value::Global(Name::TensorClass)) =
                        (pickle.get(function), pickle.get(of))
                    else {
                        return Err("is of a class of its own, expected torch.Tensor; save v.full_tensor() of a DTensor, \
                                    v.dequantize() of a quantized one, v.as_subclass(torch.Tensor) of a class that only \
                                    adds to it, or delete it from the dict before saving"
                            .to_owned());
                    };
                    (class, args) = (function, pickle.tuple(inner).ok_or_else(malformed)?);
                }
                _ => break,
            }
        }
        if built {
            return Err(format!("has a state beside its values; {RESAVE}"));
        }
        let (dtype, metadata) = match (class, args) {
            (Name::Tensor, [_, _, _, _]) | (Name::TensorV2, [_, _, _, _, _, _]) => (None, None),
            (Name::TensorV2, &[_, _, _, _, _, _, metadata]) => (None, Some(metadata)),
            (Name::TensorV3, &[_, _, _, _, _, _, dtype]) => (Some(dtype), None),
            (Name::TensorV3, &[_, _, _, _, _, _, dtype, metadata]) => (Some(dtype), Some(metadata)),
            (Name::Unread(what), _) => {
                return Err(format!(
                    "is {what}, expected real numbers in C order; delete it from the dict before saving, or convert it"
                ));
            }
            _ => return Err(malformed()),
        };
        let marks = metadata.and_then(|metadata| items(pickle, metadata)).unwrap_or_default();
        if marks.iter().any(|&(_, value)| matches!(pickle.get(value), Value::Bool(true))) {
            return Err("is a conjugated or negated view; save it with .resolve_conj().resolve_neg()".to_owned());
        }
        let dtype = match dtype.map(|dtype| pickle.get(dtype)) {
            None => None,
            Some(Value::Global(Name::Type(dtype))) => Some(*dtype),
            Some(Value::Global(Name::Unread(what))) => {
                return Err(format!("is {what}, which cannot be ternary; delete it from the dict before saving"));
            }
            Some(_) => return Err(malformed()),
        };
        self.strided(dtype, args, malformed)
    }

    fn strided(&self, dtype: Option<Dtype>, args: &[Id], malformed: impl Fn() -> String) -> Result<Tensor<'a>, String> {
        let &[storage, offset, shape, strides, ..] = args else { return Err(malformed()) };
        let (of, storage) = self.storage(storage, &malformed)?;
        let dtype = dtype.or(of).ok_or_else(&malformed)?;
        let shape = self.numbers(shape, "shape")?;
        let strides = self.numbers(strides, "strides")?;
        let &Value::Int(offset) = self.pickle.get(offset) else { return Err(malformed()) };
        if shape.len() != strides.len() {
            return Err(format!("{} strides, expected {}, one per dimension", strides.len(), shape.len()));
        }
        let size = dtype.bitsize() / 8;
        let offset = usize::try_from(offset).map_err(|_| format!("storage offset {offset}, expected 0 or more"))?;
        let strided = Strided { size, offset, shape, strides };
        let end = strided.end().and_then(|end| end.checked_mul(size));
        if end.is_none_or(|end| end > storage.bytes.len()) {
            return Err(format!(
                "shape {:?} with strides {:?} at offset {offset} of {dtype} reaches past the {} bytes of its storage; was \
                 the file damaged?",
                strided.shape,
                strided.strides,
                storage.bytes.len()
            ));
        }
        Ok(Tensor { dtype, storage, strided })
    }

    /// ('storage', its class, key, device, count), and what the class says of the type.
    fn storage(&self, id: Id, malformed: &impl Fn() -> String) -> Result<(Option<Dtype>, Storage<'a>), String> {
        let pickle = self.pickle;
        let Value::Persistent(name) = pickle.get(id) else { return Err(malformed()) };
        let Some(&[kind, class, key, _, count]) = pickle.tuple(*name) else { return Err(malformed()) };
        let dtype = match pickle.get(class) {
            Value::Global(Name::Storage(dtype)) => Some(*dtype),
            Value::Global(Name::Untyped) => None,
            Value::Global(Name::Unread(what)) => {
                return Err(format!("is {what}, which cannot be ternary; delete it from the dict before saving"));
            }
            _ => return Err(malformed()),
        };
        let (Value::Text("storage"), &Value::Text(key), &Value::Int(count)) =
            (pickle.get(kind), pickle.get(key), pickle.get(count))
        else {
            return Err(malformed());
        };
        if key.len() > limits::NAME_BYTES {
            return Err(malformed());
        }
        let storage = (self.storage)(key)
            .ok_or_else(|| format!("its storage, entry `data/{}`, is not in the file; was it damaged?", shown(key)))?;
        let size = dtype.map_or(1, |dtype| dtype.bitsize() as u64 / 8);
        let found = storage.bytes.len();
        // A storage of bytes that was viewed as larger values can have some left over.
        if u64::try_from(count).ok() != Some(found as u64 / size) {
            return Err(format!(
                "its storage, entry `data/{}`, has {found} bytes, expected {count} values of {size}; was the file damaged?",
                shown(key)
            ));
        }
        Ok((dtype, storage))
    }

    /// A tuple of a few numbers.
    fn numbers(&self, id: Id, what: &str) -> Result<Vec<usize>, String> {
        let elements = match self.pickle.get(id) {
            Value::Tuple(elements) | Value::List(elements) => elements,
            _ => return Err(format!("its {what} are no numbers; save it again")),
        };
        if elements.len() > limits::RANK {
            return Err(format!("{} {what}, expected at most {}; reshape it", elements.len(), limits::RANK));
        }
        let number = |&id: &Id| match self.pickle.get(id) {
            &Value::Int(number) => {
                usize::try_from(number).map_err(|_| format!("{number} in its {what}, expected 0 or more"))
            }
            _ => Err(format!("its {what} are no numbers; save it again")),
        };
        elements.iter().map(number).collect()
    }
}
