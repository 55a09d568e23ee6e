//! The names that a pickle of PyTorch may ask for, and what they mean here. Every other is refused. Not here: what is
//! made of them ([`super::state`]).

use super::super::pickle::qualified;
use super::RESAVE;
use crate::Dtype;

/// What a global name in a pickle stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Name {
    /// A dict: keys and values are set on it one by one.
    Mapping,
    /// A list: elements are appended to it.
    Sequence,
    /// Its attributes are the dict that it is given as its state.
    Namespace,
    /// `_rebuild_tensor`, `_rebuild_tensor_v2`, `_rebuild_tensor_v3`: storage, offset, shape, strides, …
    Tensor,
    TensorV2,
    TensorV3,
    /// The tensor is its first argument.
    Parameter,
    /// The function that makes the tensor, the class that it gets, and the arguments.
    FromType,
    /// A class that says nothing about the values.
    TensorClass,
    /// A storage with a type of its own, or of bytes.
    Storage(Dtype),
    Untyped,
    Type(Dtype),
    /// Tensors that cannot be read, and what they are.
    Unread(&'static str),
    /// What is no tensor, and is skipped.
    Skipped,
    /// Any other that a tensor of a class of its own is made of.
    Foreign,
}

/// Modules of Python whose functions can run what a file says: nobody is told to load a file that asks for one.
const RUN: &str = "__builtin__ _io _pickle asyncio bdb builtins code commands ctypes http httplib importlib io marshal nt \
                   operator os pdb pickle pip posix pty runpy shutil socket subprocess sys types urllib webbrowser";

/// What a name means, or why it is refused; a tensor of a class of its own may be made of any but those that run things.
pub(super) fn known(module: &str, name: &str, in_tensor: bool) -> Result<Name, String> {
    if let Some(known) = lookup(module, name) {
        return Ok(known);
    }
    let asked = qualified(module, name);
    // Classes in classes are asked for so, which harmless files do as well.
    let is_path = matches!((module, name), ("builtins" | "__builtin__", "getattr"));
    if !is_path && RUN.split(' ').any(|name| module.split('.').next() == Some(name)) {
        return Err(format!(
            "its pickle asks for `{asked}`, of a module that can run and write anything and that no tensor needs; nothing of it \
             was run; do not load it with Python; ask whoever made it for the state dict alone, or for safetensors"
        ));
    }
    if in_tensor {
        return Ok(Name::Foreign);
    }
    if module.starts_with("torch.nn.modules") || module == "__main__" {
        return Err(format!(
            "it holds an object of the class `{asked}`, a whole model or a part of one, expected a state dict; {RESAVE}"
        ));
    }
    Err(format!("its pickle asks for `{asked}`, which tensors do not need; nothing of it was run; {RESAVE}"))
}

fn lookup(module: &str, name: &str) -> Option<Name> {
    Some(match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => Name::Mapping,
        ("collections", "deque") => Name::Sequence,
        ("argparse", "Namespace") | ("types", "SimpleNamespace") => Name::Namespace,
        ("torch._utils", "_rebuild_tensor") => Name::Tensor,
        ("torch._utils", "_rebuild_tensor_v2") => Name::TensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Name::TensorV3,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Name::Parameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Name::FromType,
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter" | "Buffer") => Name::TensorClass,
        ("torch._utils", "_rebuild_qtensor") => Name::Unread("a quantized tensor"),
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => Name::Unread("a sparse tensor"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => {
            Name::Unread("a tensor on the device `meta`, without values")
        }
        ("torch._utils", "_rebuild_nested_tensor") => Name::Unread("a nested tensor"),
        ("torch.storage", "UntypedStorage" | "_UntypedStorage") | ("torch", "UntypedStorage") => Name::Untyped,
        ("torch" | "torch.cuda", _) if ["Complex", "complex", "bcomplex"].iter().any(|of| name.starts_with(of)) => {
            Name::Unread("a complex tensor")
        }
        (
            "torch",
            "bits8" | "bits16" | "bits1x8" | "bits2x4" | "bits4x2" | "float4_e2m1fn_x2" | "int1" | "int2" | "int3"
            | "int4" | "int5" | "int6" | "int7" | "uint1" | "uint2" | "uint3" | "uint4" | "uint5" | "uint6" | "uint7",
        ) => Name::Unread("a tensor of bits or of numbers under 8 bits"),
        (
            "torch" | "torch.cuda",
            "QInt8Storage" | "QInt32Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage",
        ) => Name::Unread("a quantized tensor"),
        (
            "torch",
            "Size"
            | "device"
            | "per_tensor_affine"
            | "per_tensor_symmetric"
            | "per_channel_affine"
            | "per_channel_affine_float_qparams"
            | "per_channel_symmetric"
            | "qint8"
            | "quint8"
            | "qint32"
            | "quint4x2"
            | "quint2x4",
        ) => Name::Skipped,
        ("torch" | "torch.cuda", _) => return Name::of_type(name),
        ("torch.serialization", "_get_layout")
        | ("_codecs", "encode")
        | ("collections", "Counter")
        | ("copyreg" | "copy_reg", "_reconstructor")
        | (
            "builtins" | "__builtin__",
            "set" | "frozenset" | "complex" | "bytearray" | "bytes" | "slice" | "range" | "xrange" | "object" | "dict"
            | "list" | "tuple" | "int" | "long" | "float" | "bool" | "str" | "Ellipsis" | "NotImplemented",
        )
        | ("numpy", "dtype" | "ndarray")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
        | ("torch.torch_version", "TorchVersion")
        | ("datetime", "datetime" | "timedelta" | "date" | "time" | "timezone")
        | ("decimal", "Decimal")
        | ("fractions", "Fraction")
        | ("uuid", "UUID")
        | ("pathlib" | "pathlib._local", "Path" | "PosixPath" | "WindowsPath" | "PurePosixPath" | "PureWindowsPath") => {
            Name::Skipped
        }
        _ => return None,
    })
}
