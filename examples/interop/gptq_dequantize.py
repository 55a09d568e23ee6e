"""Whether the readers of GPTQ checkpoints get the weights of `twn-pack unpack` from `twn-pack export --to gptq`: the
formula of AutoGPTQ 0.7.1 (qlinear_cuda_old.py), GPTQModel's TorchLinear, and a whole model that GPTQModel loads.

    pip install torch transformers safetensors gptqmodel

    # MODEL has a config.json and a model.safetensors
    twn-pack MODEL -o model.twn --granularity group:32
    twn-pack unpack model.twn --dtype f32 -o floats.safetensors
    twn-pack export model.twn --to gptq --into MODEL/config.json -o OUT/model.safetensors
    python gptq_dequantize.py OUT floats.safetensors --gptqmodel --logits
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file


def autogptq(layer, config):
    """Its `forward` without the product: weights [in, out]."""
    shifts, group = torch.arange(0, 32, 2, dtype=torch.int32), config["group_size"]
    codes = (layer["qweight"][:, None, :] >> shifts[None, :, None]) & 3
    zeros = ((layer["qzeros"][:, :, None] >> shifts[None, None, :]) + 1) & 3
    codes = codes.reshape(-1, layer["qweight"].shape[1])
    codes = codes.reshape(-1, group if group != -1 else codes.shape[0], codes.shape[1])
    weights = layer["scales"][:, None, :] * (codes - zeros.reshape(zeros.shape[0], 1, -1))
    return weights.reshape(-1, weights.shape[2])


def gptqmodel_linear(layer, config):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    inputs, outputs = len(layer["g_idx"]), layer["scales"].shape[1]
    linear = TorchLinear(2, config["group_size"], config["sym"], config["desc_act"], inputs, outputs, bias=False)
    linear.load_state_dict(layer)
    convert_gptq_v1_to_v2_format_module(linear, bits=2, pack_dtype=torch.int32)
    linear.optimized = True  # no torch.compile
    linear.post_init()
    linear.eval()
    x = torch.eye(inputs, dtype=torch.float16)
    assert torch.equal(linear(x), linear.dequantize_weight().to(x.dtype))
    return linear.dequantize_weight()


def check(directory, floats, reader):
    config = json.loads((directory / "quantize_config.json").read_text())
    tensors, worst, count = load_file(directory / "model.safetensors"), 0.0, 0
    for name in sorted(tensors):
        if not name.endswith(".qweight"):
            continue
        prefix = name.removesuffix("qweight")
        layer = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
        weights, expected = reader(layer, config).float().T, floats[prefix + "weight"]
        assert weights.shape == expected.shape and torch.equal(weights.sign(), expected.sign()), name
        used = expected != 0
        worst = max(worst, ((weights - expected)[used] / expected[used]).abs().max().item())
        count += 1
    print(f"{reader.__name__}: {count} layers, every sign and zero equal; largest relative difference {worst:.2e}")
    assert count and worst <= 2**-11, "more than the rounding of scales to float16"


def logits(directory, floats, tokens, dtype):
    import gptqmodel
    import transformers
    from gptqmodel import BACKEND, GPTQModel

    config = transformers.AutoConfig.from_pretrained(directory)
    model = GPTQModel.load(str(directory), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=dtype)
    kinds = [type(module).__name__ for module in model.model.modules()]
    del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(floats)
    with torch.no_grad():
        found, expected = model.model(tokens).logits.float(), plain(tokens).logits
        half = plain.to(dtype)(tokens).logits.float()
    print("GPTQModel", gptqmodel.__version__, kinds.count("TorchLinear"), "TorchLinear,", kinds.count("Linear"), "Linear")
    print(f"logits up to {expected.abs().max():.4f}; largest difference from unpacked floats in float32 "
          f"{(found - expected).abs().max():.2e}; of those in {dtype} {(half - expected).abs().max():.2e}")


parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
parser.add_argument("directory", type=pathlib.Path)
parser.add_argument("floats", type=pathlib.Path)
parser.add_argument("--gptqmodel", action="store_true", help="also with GPTQModel's TorchLinear")
parser.add_argument("--logits", action="store_true", help="also load the whole model with GPTQModel")
arguments = parser.parse_args()
unpacked = load_file(arguments.floats)
check(arguments.directory, unpacked, autogptq)
if arguments.gptqmodel:
    check(arguments.directory, unpacked, gptqmodel_linear)
if arguments.logits:
    generator = torch.Generator().manual_seed(1)
    logits(arguments.directory, unpacked, torch.randint(0, 90, (3, 17), generator=generator), torch.float16)
