"""Whether transformers reads BitNet checkpoints as twn-pack does, both ways: its own `unpack_weights` and
`weight_scale` against the floats of `twn-pack unpack`, and, where the directory is a whole model, its logits.

    pip install torch transformers accelerate safetensors

    # out: MODEL has a config.json and a model.safetensors
    twn-pack MODEL -o model.twn --granularity tensor
    twn-pack unpack model.twn --dtype f32 -o floats.safetensors
    twn-pack export model.twn --to bitnet --into MODEL/config.json -o OUT/model.safetensors
    python bitnet_unpack.py check OUT floats.safetensors --logits

    # in: a checkpoint that transformers' `pack_weights` made
    python bitnet_unpack.py make IN --linear-class bitlinear
    twn-pack IN -o in.twn
    twn-pack unpack in.twn --dtype f32 -o floats.safetensors
    python bitnet_unpack.py check IN floats.safetensors
"""

import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.bitnet import AutoBitLinear, pack_weights, unpack_weights


def check(directory, floats):
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    inverse = config.get("linear_class", "bitlinear") == "bitlinear"
    tensors, count, worst = load_file(directory / "model.safetensors"), 0, 0.0
    for name, tensor in tensors.items():
        if name.endswith("weight_scale"):
            continue
        if tensor.dtype != torch.uint8:
            assert torch.equal(tensor, floats[name]), name
            continue
        trits, scale = unpack_weights(tensor, torch.float32), tensors[name + "_scale"].double()
        expected = (trits.double() / scale if inverse else trits.double() * scale).float()
        assert floats[name].shape == expected.shape, name
        assert torch.equal(torch.sign(floats[name]), trits) or scale == 0, name
        worst = max(worst, (floats[name] - expected).abs().max().item())
        count += 1
    assert set(floats) == {name for name in tensors if not name.endswith("weight_scale")}
    print(f"{count} packed tensors, {len(floats) - count} others; largest difference of a weight {worst}")
    assert count and worst == 0


def check_logits(directory, floats):
    """The model as transformers loads it, against the same layers made of floats by hand."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, info = load(directory, dtype=torch.float32, output_loading_info=True)
    print("loading:", {key: value for key, value in info.items() if value})
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    config = transformers.AutoConfig.from_pretrained(directory)
    del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(floats)
    tokens = torch.randint(0, config.vocab_size, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weights_only = plain(tokens).logits
        bit = [name for name, module in model.named_modules() if isinstance(module, AutoBitLinear)]
        for name in bit:
            linear = plain.get_submodule(name)
            layer = AutoBitLinear(linear.in_features, linear.out_features, linear.bias is not None)
            # In the same order as there: other roundings of activations to 8 bits are large against those of floats.
            scale = linear.weight.abs().max().reshape(1)
            layer.load_state_dict({**linear.state_dict(), "weight": linear.weight / scale, "weight_scale": scale})
            plain.set_submodule(name, layer)
        found, expected = model(tokens).logits, plain(tokens).logits
    print(f"{len(bit)} AutoBitLinear layers; logits up to {expected.abs().max():.4f}")
    print(f"largest difference: {(found - expected).abs().max():.2e} from the same layers of unpacked floats")
    print(f"                    {(found - weights_only).abs().max():.2e} from layers that leave activations as they are")
    assert torch.equal(found, expected)


def make(directory, linear_class):
    generator, tensors = torch.Generator().manual_seed(3), {}
    for i, (rows, columns) in enumerate([(64, 48), (8, 33), (4, 1), (128, 256)]):
        trits = torch.randint(-1, 2, (rows, columns), generator=generator).float()
        alpha = torch.tensor([0.013 * (i + 1)], dtype=torch.bfloat16)
        tensors[f"layers.{i}.weight"] = pack_weights(trits)
        tensors[f"layers.{i}.weight_scale"] = 1 / alpha if linear_class == "bitlinear" else alpha
    tensors["norm.weight"] = torch.randn(48, generator=generator)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = {"dtype": "float32", "quantization_config": {"quant_method": "bitnet", "linear_class": linear_class}}
    (directory / "config.json").write_text(json.dumps(config))


parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
commands = parser.add_subparsers(dest="command", required=True)
checker = commands.add_parser("check", help="compare a BitNet checkpoint with what `twn-pack unpack` gave")
checker.add_argument("directory", type=pathlib.Path)
checker.add_argument("floats", type=pathlib.Path)
checker.add_argument("--logits", action="store_true", help="load the whole model, too")
maker = commands.add_parser("make", help="make a small BitNet checkpoint with transformers' pack_weights")
maker.add_argument("directory", type=pathlib.Path)
maker.add_argument("--linear-class", choices=["bitlinear", "autobitlinear"], default="bitlinear")
arguments = parser.parse_args()
print("transformers", transformers.__version__, "torch", torch.__version__)
if arguments.command == "make":
    make(arguments.directory, arguments.linear_class)
else:
    unpacked = load_file(arguments.floats)
    check(arguments.directory, unpacked)
    if arguments.logits:
        check_logits(arguments.directory, unpacked)
