"""Whether the readers of GPTQ checkpoints get the weights of `twn-pack unpack` from `twn-pack export --to gptq`: the
formula of AutoGPTQ 0.7.1 (qlinear_cuda_old.py), GPTQModel's TorchLinear, and a whole model that GPTQModel and transformers load.

    pip install torch transformers safetensors gptqmodel optimum accelerate

    # MODEL has a config.json and a model.safetensors; for --logits put its tokenizer into OUT, too
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


def logits(directory, floats, dtype):
    import gptqmodel
    import optimum.version
    import transformers

    causal = transformers.AutoModelForCausalLM
    gptq = gptqmodel.GPTQModel.load(str(directory), backend=gptqmodel.BACKEND.GPTQ_TORCH, device="cpu", dtype=dtype)
    readers = {
        f"GPTQModel {gptqmodel.__version__}": gptq.model,
        f"transformers {transformers.__version__} with optimum {optimum.version.__version__}":
            causal.from_pretrained(directory, dtype=dtype, device_map="cpu"),
    }
    config = transformers.AutoConfig.from_pretrained(directory)
    del config.quantization_config
    plain = causal.from_config(config, dtype=torch.float32)
    plain.load_state_dict(floats)
    tokens = torch.randint(0, config.vocab_size, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = {name: model(tokens).logits.float() for name, model in readers.items()}
        expected, half = plain(tokens).logits, plain.to(dtype)(tokens).logits.float()
    print(f"logits of unpacked floats in float32: up to {expected.abs().max():.4f}")
    print(f"largest difference from them: {(half - expected).abs().max():.2e} of the same in {dtype}")
    for name, model in readers.items():
        kinds = [type(module).__name__ for module in model.modules()]
        counts = f"{kinds.count('TorchLinear')} TorchLinear, {kinds.count('Linear')} Linear"
        print(f"    {(found[name] - expected).abs().max():.2e} of {name}: {counts}")
        assert (found[name] - expected).abs().max() <= 2 * (half - expected).abs().max()


parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
parser.add_argument("directory", type=pathlib.Path)
parser.add_argument("floats", type=pathlib.Path)
parser.add_argument("--gptqmodel", action="store_true", help="also with GPTQModel's TorchLinear")
parser.add_argument("--logits", action="store_true", help="also load the whole model with GPTQModel, and with transformers")
arguments = parser.parse_args()
unpacked = load_file(arguments.floats)
check(arguments.directory, unpacked, autogptq)
if arguments.gptqmodel:
    check(arguments.directory, unpacked, gptqmodel_linear)
if arguments.logits:
    logits(arguments.directory, unpacked, torch.float16)
