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
}

/// What a name means, or why it is refused.
pub(super) fn known(module: &str, name: &str) -> Result<Name, String> {
    lookup(module, name).ok_or_else(|| {
        let asked = qualified(module, name);
        if module.starts_with("torch.nn.modules") || module == "__main__" {
            return format!(
                "it holds an object of the class `{asked}`, a whole model or a part of one, expected a state dict; where you \
                 trust the file, save that: d = torch.load(FILE, map_location='cpu', weights_only=False); \
                 torch.save(d.state_dict(), OUT) (d['model'].state_dict() or the like where the model is inside), or its \
                 tensors alone, where it is no model"
            );
        }
        format!("its pickle asks for `{asked}`, which tensors do not need; nothing of it was run; {RESAVE}")
    })
}

fn lookup(module: &str, name: &str) -> Option<Name> {
    Some(match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => Name::Mapping,
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
        | ("collections", "Counter" | "deque")
        | ("copyreg" | "copy_reg", "_reconstructor")
        | (
            "builtins" | "__builtin__",
            "set" | "frozenset" | "complex" | "bytearray" | "bytes" | "slice" | "range" | "xrange" | "object" | "dict"
            | "list" | "tuple" | "int" | "long" | "float" | "bool" | "str" | "Ellipsis" | "NotImplemented",
        )
        | ("numpy", "dtype" | "ndarray")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
        | ("argparse", "Namespace")
        | ("types", "SimpleNamespace")
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
