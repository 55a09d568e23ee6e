#!/usr/bin/env python3
"""Writes the fixtures of tests/pytorch and tests/npz.rs into fixtures/foreign/{pytorch,npz}.

    pip install torch numpy safetensors
    python examples/interop/make_torch_fixtures.py [--out fixtures/foreign]

The files were written with torch 2.15.0, numpy 2.4.6 and safetensors 0.8.0. Beside the checkpoints of PyTorch and numpy
stands what they hold, as the safetensors library writes it: `state.safetensors` and `arrays.safetensors`.
"""

import argparse
import collections
import json
import os
import pathlib
import pickle
import zipfile

import numpy
import safetensors.numpy
import safetensors.torch
import torch


def state():
    """One tensor of each type, and of each way to lie in a storage."""
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(4, 6, generator=generator)
    tensors = {
        "f32": base,
        "f16": torch.randn(3, 5, generator=generator).half(),
        "bf16": torch.randn(5, 3, generator=generator).bfloat16(),
        "f64": torch.randn(2, 2, generator=generator).double(),
        "e4m3": torch.randn(2, 8, generator=generator).to(torch.float8_e4m3fn),
        "e5m2": torch.randn(2, 8, generator=generator).to(torch.float8_e5m2),
        "i64": torch.tensor([[1, -2], [3, 1 << 40]]),
        "i32": torch.tensor([7, -7], dtype=torch.int32),
        "i16": torch.tensor([300, -300], dtype=torch.int16),
        "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "u16": torch.tensor([0, 65535], dtype=torch.uint16),
        "u32": torch.tensor([0, 4294967295], dtype=torch.uint32),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 7),
        "tied": base,
        "transposed": base.t(),
        "row": base[2],
        "columns": base[:, 1:5:2],
        "expanded": torch.tensor([1.0, -2.0, 3.0]).expand(5, 3),
        "permuted": torch.arange(120.0).reshape(2, 3, 4, 5).permute(3, 1, 0, 2),
        "channels_last": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(2, 3, generator=generator)),
        "buffer": torch.nn.Buffer(torch.ones(3)),
    }
    return collections.OrderedDict(tensors)


class Code:
    """What a malicious file asks for: to run a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)


def training():
    """A checkpoint as training loops write them, with the optimizer's state and numbers of numpy."""
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    model.linear(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model.state_dict(), {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": numpy.float64(0.5),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "classes": {"a", "b"},
        "size": torch.Size([2, 3]),
        "big": 1 << 80,
        "device": torch.device("cpu"),
        "time": 1.5,
    }


def rezip(source, target, change):
    """The same entries, each changed by `change(name, bytes)`; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(zipfile.ZipInfo(name), data)


def pytorch(out):
    tensors = state()
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, out / "state.safetensors")
    torch.save(tensors, out / "state.pt")
    for protocol in (3, 4, 5):
        torch.save(tensors, out / f"protocol{protocol}.pt", pickle_protocol=protocol)
    small = {name: tensors[name] for name in ("f32", "tied", "transposed")}
    torch.save(small, out / "small.pt")
    torch.save({"model": {"encoder": small}}, out / "nested.pt")
    model, checkpoint = training()
    safetensors.torch.save_file(model, out / "training.safetensors")
    torch.save(checkpoint, out / "training.pt")
    # As PyTorch's own ImageNet example writes it: a number that is a tensor beside the state dict.
    best = {"best_acc1": torch.tensor([71.25]), "rng": torch.arange(8, dtype=torch.uint8)}
    torch.save({"epoch": 1, "arch": "net", "state_dict": model, "optimizer": checkpoint["optimizer"], **best}, out / "imagenet.pt")
    torch.save({"net": model, "optimizer": checkpoint["optimizer"]}, out / "net.pt")
    torch.save(checkpoint["optimizer"], out / "optimizer.pt")
    # BitNet's weights: codes 0, 1, 2 and 1 in the row quarters of each byte.
    codes = {"a.weight": torch.full((1, 3), 0b01_10_01_00, dtype=torch.uint8), "a.weight_scale": torch.tensor([0.5])}
    torch.save(codes, out / "bitnet.pt")
    torch.save({"generator": model, "critic": model, "step": 1}, out / "two-models.pt")
    torch.save([small["f32"], small["transposed"]], out / "list.pt")
    torch.save(small["f32"], out / "tensor.pt")
    # What is refused.
    torch.save(Net(), out / "module.pt")
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), out / "sequential.pt")
    torch.save({"w": small["f32"], "code": Code("executed")}, out / "code.pt")
    torch.save({"w": torch.complex(base := torch.ones(2), base)}, out / "complex.pt")
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)}, out / "quantized.pt")
    torch.save({"w": torch.eye(2).to_sparse()}, out / "sparse.pt")
    torch.save({"w": torch.ones(2, 2, device="meta")}, out / "meta.pt")
    torch.save({"w": torch._neg_view(torch.ones(2))}, out / "negated.pt")
    torch.save(small, out / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 1}, out / "no-tensors.pt")
    (out / "bare.pkl").write_bytes(pickle.dumps({"a": [1, 2, 3]}, protocol=4))
    script = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(script, out / "script.pt")
    order = lambda name, data: b"big" if name.endswith("/byteorder") else data
    rezip(out / "small.pt", out / "big-endian.pt", order)
    rezip(out / "small.pt", out / "no-storage.pt", lambda name, data: None if name.endswith("/data/0") else data)
    rezip(out / "small.pt", out / "short-storage.pt", lambda name, data: data[:-4] if name.endswith("/data/0") else data)
    # Shards.
    shards = out / "sharded"
    shards.mkdir(exist_ok=True)
    names = list(plain)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    weight_map = {}
    for file, part in parts.items():
        torch.save({name: plain[name] for name in part}, shards / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


def npz(out):
    random = numpy.random.default_rng(6)
    arrays = {
        "f4": random.standard_normal((4, 6), dtype=numpy.float32),
        "f2": random.standard_normal((3, 5)).astype("<f2"),
        "f8": random.standard_normal((2, 3)),
        "i1": numpy.array([-128, 127], "i1"),
        "i2": numpy.array([-300, 300], "<i2"),
        "i4": numpy.array([[1, -2], [3, 4]], "<i4"),
        "i8": numpy.array([1 << 40], "<i8"),
        "u1": numpy.array([0, 255], "u1"),
        "u2": numpy.array([0, 65535], "<u2"),
        "u4": numpy.array([0, 4294967295], "<u4"),
        "u8": numpy.array([1 << 63], "<u8"),
        "b1": numpy.array([True, False, True]),
        "scalar": numpy.float32(2.5),
        "none": numpy.zeros((0, 7), "<f4"),
        "layer/weight": random.standard_normal((5, 2, 3)).astype("<f4"),
        "fortran": numpy.asfortranarray(random.standard_normal((4, 5, 3)).astype("<f4")),
        "fortran_i8": numpy.asfortranarray(numpy.arange(6, dtype="<i8").reshape(2, 3)),
        "zeros": numpy.zeros((60, 50), "<f4"),
    }
    safetensors.numpy.save_file({name: numpy.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}, out / "arrays.safetensors")
    numpy.savez(out / "stored.npz", **arrays)
    numpy.savez_compressed(out / "deflated.npz", **arrays)
    numpy.save(out / "single.npy", arrays["f4"])
    numpy.save(out / "fortran.npy", arrays["fortran"])
    for version in ((2, 0), (3, 0)):
        with zipfile.ZipFile(out / f"version{version[0]}.npz", "w", zipfile.ZIP_DEFLATED) as file:
            for name in ("f4", "fortran"):
                with file.open(f"{name}.npy", "w") as entry:
                    numpy.lib.format.write_array(entry, arrays[name], version=version)
    # What is refused.
    numpy.savez(out / "objects.npz", w=arrays["f4"], o=numpy.array([{"a": 1}, None], dtype=object))
    numpy.savez(out / "big-endian.npz", w=arrays["f4"].astype(">f4"))
    numpy.savez(out / "complex.npz", w=numpy.ones(3, "<c8"))
    numpy.savez(out / "records.npz", w=numpy.zeros(3, [("a", "<f4"), ("b", "<i4")]))
    numpy.savez(out / "text.npz", w=numpy.array(["a", "bc"]))
    with zipfile.ZipFile(out / "other.zip", "w") as file:
        file.writestr("model.safetensors", b"")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default="fixtures/foreign", help="default: %(default)s")
    out = parser.parse_args().out
    for name, make in (("pytorch", pytorch), ("npz", npz)):
        (out / name).mkdir(parents=True, exist_ok=True)
        make(out / name)


if __name__ == "__main__":
    main()
