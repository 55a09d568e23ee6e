#!/usr/bin/env python3
"""llama.cpp runs a model whose weights twn-pack made ternary. A small Llama with random weights is written as a
Hugging Face checkpoint and, by the package gguf, as a GGUF file (query and key rows reordered as llama.cpp's converter
does). `twn-pack` packs the checkpoint's linear weights, `export --into` puts them into the GGUF file, and llama.cpp
loads and generates with that. The same weights as floats, from `twn-pack unpack`, have to give the same logits but for
the eight bits that llama.cpp's ternary products give the activations.

    pip install gguf==0.19.0 safetensors numpy
    pip install llama-cpp-python --no-binary llama-cpp-python        # builds llama.cpp; 0.3.36 knows all three types
    python examples/interop/llama_generate.py target/release/twn-pack
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Llama
from safetensors.numpy import load_file, save_file

LAYERS, WIDTH, HIDDEN, HEADS, KV_HEADS = 2, 256, 512, 4, 2
TOKENS = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + ["\u2581"] + list("abcdefghijklmnopqrstuvwxyz")
LINEAR = {
    "self_attn.q_proj": ("attn_q", HEADS, WIDTH, WIDTH),
    "self_attn.k_proj": ("attn_k", KV_HEADS, WIDTH * KV_HEADS // HEADS, WIDTH),
    "self_attn.v_proj": ("attn_v", None, WIDTH * KV_HEADS // HEADS, WIDTH),
    "self_attn.o_proj": ("attn_output", None, WIDTH, WIDTH),
    "mlp.gate_proj": ("ffn_gate", None, HIDDEN, WIDTH),
    "mlp.up_proj": ("ffn_up", None, HIDDEN, WIDTH),
    "mlp.down_proj": ("ffn_down", None, WIDTH, HIDDEN),
}


def checkpoint():
    random = np.random.default_rng(1)
    tensor = lambda *shape: (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    tensors = {"model.embed_tokens.weight": tensor(len(TOKENS), WIDTH) * 16, "lm_head.weight": tensor(len(TOKENS), WIDTH)}
    tensors["model.norm.weight"] = 1 + tensor(WIDTH)
    for layer in range(LAYERS):
        for name, (_, _, rows, columns) in LINEAR.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = tensor(rows, columns) * 2
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = 1 + tensor(WIDTH)
        tensors[f"model.layers.{layer}.post_attention_layernorm.weight"] = 1 + tensor(WIDTH)
    return tensors


def write_gguf(path, tensors):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    kind = gguf.TokenType
    writer.add_token_types([kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256 + [kind.NORMAL] * 27)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    whole = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    for name, ours in whole.items():
        writer.add_tensor(f"{ours}.weight", tensors[f"{name}.weight"])
    for layer in range(LAYERS):
        for name, (ours, heads, *_) in LINEAR.items():
            weights = tensors[f"model.layers.{layer}.{name}.weight"]
            if heads:
                # LlamaModel.permute of convert_hf_to_gguf.py.
                halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1)
                weights = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))
            writer.add_tensor(f"blk.{layer}.{ours}.weight", weights)
        for name, ours in {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}.items():
            writer.add_tensor(f"blk.{layer}.{ours}.weight", tensors[f"model.layers.{layer}.{name}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(path):
    """The logits behind a prompt and what follows it."""
    model = Llama(str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False, seed=1)
    prompt = model.tokenize(b"the quick brown fox jumps over the lazy dog")
    model.eval(prompt)
    logits = np.array(model.scores[: len(prompt)])
    text = model.create_completion(prompt, max_tokens=24, temperature=0)["choices"][0]["text"]
    return logits, text


def compare(path, expected):
    """Tensor by tensor, by gguf's own dequantizers: the floats, scales rounded to f16."""
    expected = {tensor.name: tensor.data for tensor in gguf.GGUFReader(expected).tensors}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_allclose(values, expected[tensor.name], rtol=2**-11, atol=0, err_msg=tensor.name)


arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("twn_pack")
twn_pack = str(Path(arguments.parse_args().twn_pack).resolve())

with tempfile.TemporaryDirectory() as directory:
    directory = Path(directory)
    twn = lambda *words: subprocess.run([twn_pack, *map(str, words), "-q"], check=True)
    save_file(checkpoint(), directory / "model.safetensors")
    write_gguf(directory / "model.gguf", checkpoint())
    twn(directory / "model.safetensors", "-o", directory / "model.twn", "--exclude", "*embed_tokens*", "--exclude", "*lm_head*")
    twn("unpack", directory / "model.twn", "-o", directory / "floats.safetensors")
    floats = load_file(directory / "floats.safetensors")
    write_gguf(directory / "floats.gguf", floats)
    float_logits, float_text = run(directory / "model.gguf")
    expected, expected_text = run(directory / "floats.gguf")
    spread = expected.std()
    print(f"before packing, F32:  logits off by {np.abs(float_logits - expected).max() / spread:.3f} of their spread")
    print(f"ternary, as F32:      {expected_text!r}")
    for kind in ("tq1_0", "tq2_0", "q2_0"):
        path = directory / f"{kind}.gguf"
        twn("export", directory / "model.twn", "--to", kind, "--into", directory / "model.gguf", "-o", path)
        if kind != "q2_0":  # gguf 0.19.0 does not know it
            compare(path, directory / "floats.gguf")
        logits, text = run(path)
        error = np.abs(logits - expected)
        same = (logits.argmax(1) == expected.argmax(1)).mean()
        print(f"ternary, as {kind.upper():8}  {text!r}")
        print(
            f"    {path.stat().st_size} bytes, logits off by {error.max() / spread:.3f} of their spread, "
            f"{error.mean() / spread:.4f} on average; {same:.0%} of the next tokens are the same"
        )
        assert error.max() < 0.25 * spread and error.mean() < 0.05 * spread, kind
