#!/usr/bin/env python3
"""Holds a GGUF file that `twn-pack export` wrote against the floats that `twn-pack unpack` wrote, with the package gguf:
it lists and dequantizes every tensor, rounds the floats' scales to f16, and compares.

    pip install gguf==0.19.0 safetensors numpy
    twn-pack export model.twn --to tq2_0 -o model.gguf
    twn-pack unpack model.twn -o floats.safetensors
    python examples/interop/gguf_read.py model.gguf floats.safetensors

gguf 0.19.0 has no dequantizer of Q2_0; here it is done as ggml's C code does it.
"""

import argparse
import json
from enum import IntEnum

import gguf
import numpy as np
from safetensors import safe_open

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("gguf")
arguments.add_argument("floats")
arguments = arguments.parse_args()

Q2_0 = 42
if not hasattr(gguf.GGMLQuantizationType, "Q2_0"):
    # The reader refuses types that it does not know; this one is newer than it is.
    known = {kind.name: kind.value for kind in gguf.GGMLQuantizationType}
    gguf.gguf_reader.GGMLQuantizationType = IntEnum("GGMLQuantizationType", {**known, "Q2_0": Q2_0})
    gguf.GGML_QUANT_SIZES[Q2_0] = (64, 18)


def values(tensor):
    kind = tensor.tensor_type.name
    if kind in ("TQ1_0", "TQ2_0", "BF16"):
        return gguf.quants.dequantize(tensor.data, gguf.GGMLQuantizationType[kind])
    if kind != "Q2_0":
        return tensor.data
    blocks = tensor.data.view(np.uint8).reshape(-1, 18)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    codes = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return scales * (codes.reshape(-1, 64).astype(np.float32) - 1)


reader = gguf.GGUFReader(arguments.gguf)
field = reader.fields.get("twn_pack.tensors")
described = json.loads(field.contents()) if field else {}
largest = ternary = 0
with safe_open(arguments.floats, "numpy") as floats:
    for tensor in reader.tensors:
        what = described.get(tensor.name, {})
        expected = floats.get_tensor(what.get("name", tensor.name)).astype(np.float32).ravel()
        found = values(tensor).astype(np.float32).ravel()
        kind = tensor.tensor_type.name
        print(f"{tensor.name}: {kind} {[int(d) for d in tensor.shape]}")
        if kind in ("TQ1_0", "TQ2_0", "Q2_0"):
            ternary += 1
            nonzero = expected != 0
            assert ((found != 0) == nonzero).all(), tensor.name
            largest = max(largest, np.abs(found[nonzero] / expected[nonzero] - 1).max(initial=0))
            expected = expected.astype(np.float16).astype(np.float32)
        assert found.shape == expected.shape and (found == expected).all(), tensor.name
print(f"{len(reader.tensors)} tensors, {ternary} of them ternary: equal, scales rounded to f16 by up to {largest:.1e}")
