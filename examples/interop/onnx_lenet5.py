"""An exported LeNet-5 in onnxruntime: the logits of the unpacked floats, and `twn-pack eval`'s accuracy on MNIST.

    pip install torch onnx onnxscript onnxruntime safetensors
    python examples/interop/onnx_lenet5.py lenet5-mnist.safetensors mnist-directory --twn-pack target/debug/twn-pack

Both of PyTorch's exporters, with and without their folding; one plane and two; `onnx` and `onnx-nbits`; a
network of linear layers for batches of sequences (`MatMul` in place of `Gemm`), and what cannot be exported is refused.
What is exported is packed again: every weight comes back by its codes, with the same values.
"""

import argparse
import gzip
import json
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import load_file, save_file
from torch import nn

BAR = 1e-4


class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 5, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 5, bias=False), nn.BatchNorm2d(64)
        self.fc1, self.bn3 = nn.Linear(1024, 512, bias=False), nn.BatchNorm1d(512)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, x):
        x = torch.relu(torch.max_pool2d(self.bn1(self.conv1(x)), 2))
        x = torch.relu(torch.max_pool2d(self.bn2(self.conv2(x)), 2))
        return self.fc2(torch.relu(self.bn3(self.fc1(x.flatten(1)))))


class Mlp(nn.Module):
    """Linear layers over [batch, length, features]: exporters make MatMul and Add of them."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(200, 384), nn.Linear(384, 200, bias=False)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def images(directory):
    with gzip.open(directory / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 1, 28, 28)
    with gzip.open(directory / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8:], np.uint8)
    return torch.from_numpy(pixels.astype(np.float32) / 255), labels


def export_torch(network, example, path, exporter):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter.startswith("dynamo"):
            shapes = ({0: torch.export.Dim("n")},)
            torch.onnx.export(network, (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False,
                              optimize=exporter == "dynamo-folded", external_data=exporter == "dynamo-external")
        else:
            plain = {} if exporter == "script-folded" else {
                "do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
            torch.onnx.export(network, (example,), path, dynamo=False, input_names=["x"], output_names=["y"],
                              dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, **plain)


def run(path, x):
    onnx.checker.check_model(path)
    options = onnxruntime.SessionOptions()
    # Of a decoder in blocks and a MatMul onnxruntime makes a MatMulNBits of its own, with inputs in int8 unless told not to.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="lenet5-mnist.safetensors")
    parser.add_argument("mnist", type=Path, help="the directory with MNIST's files")
    parser.add_argument("--twn-pack", default="twn-pack", help="the program")
    args = parser.parse_args()

    def twn_pack(*words, fails=False):
        done = subprocess.run([args.twn_pack, *map(str, words)], capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stderr + done.stdout
        return done.stderr if fails else done.stdout

    print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}")
    x, labels = images(args.mnist)
    failed = []

    def compare(what, source, onnx_file, expected, x, labels=None):
        got = run(onnx_file, x)
        error = float(np.abs(got - expected).max())
        accuracy = "" if labels is None else f", accuracy {np.mean(got.argmax(1) == labels):.4f}"
        before = sum(file.stat().st_size for file in onnx_file.parent.glob(source.name + "*"))
        print(f"  {what:<44} {onnx_file.stat().st_size:>9,} bytes of {before:,}, max error {error:.1e}{accuracy}")
        if error > BAR or (labels is not None and (got.argmax(1) != expected.argmax(1)).any()):
            failed.append(what)

    def same(a, b):
        return torch.equal(a, b) or a.dim() == 2 and torch.equal(a.T, b)

    def back(onnx_file, floats):
        """Exporters of PyTorch give some weights names of their own: they are known by their values."""
        again, values = onnx_file.with_name("back.twn"), onnx_file.with_name("back.safetensors")
        twn_pack(onnx_file, "-o", again, "--force")
        twn_pack("unpack", again, "-o", values, "--force")
        tensors = json.loads(twn_pack("inspect", again, "--json"))["tensors"]
        moved = [tensor["name"] for tensor in tensors if "as-packed" in tensor["became"]]
        values, weights = load_file(values), [tensor for tensor in load_file(floats).values() if tensor.dim() > 1]
        assert len(moved) == len(weights), tensors
        assert all(any(same(weight, values[name]) for name in moved) for weight in weights)

    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)
        network = LeNet5()
        network.load_state_dict(load_file(args.model))
        network.eval()
        exporters = ["dynamo", "dynamo-external", "dynamo-folded", "script", "script-folded"]
        for exporter in exporters:
            export_torch(network, x[:2], at / f"{exporter}.onnx", exporter)
        for planes, settings in [(1, []), (2, []), (1, ["--granularity", "tensor"]), (2, ["--granularity", "group:100"])]:
            name = f"{planes} planes {' '.join(settings)}".strip()
            packed, plain = at / "m.twn", at / "m.safetensors"
            twn_pack(args.model, "-o", packed, "--force", "--include", "conv*.weight",
                     "--include", "fc*.weight", "--planes", planes, *settings)
            twn_pack("unpack", packed, "-o", plain, "--force")
            unpacked = LeNet5()
            unpacked.load_state_dict(load_file(plain))
            # All images for what `eval` is asked too; a part for the other granularities.
            some = len(x) if not settings else 1000
            with torch.no_grad():
                expected = unpacked.eval()(x[:some]).numpy()
            said = "not asked"
            if not settings:
                report = twn_pack("eval", packed, "--net", "lenet5", "--data", args.mnist, "--json", "-q")
                said = json.loads(report)["accuracy"]
            print(f"{name}: twn-pack eval: {said}; unpacked in PyTorch: {np.mean(expected.argmax(1) == labels[:some]):.4f} "
                  f"of {some} images")
            into = ["--planes-as-tensors"] if planes > 1 else []
            if planes > 1:
                twn_pack("export", packed, "--to", "onnx", "--into", at / "script.onnx", "-o", at / "o.onnx", fails=True)
            for form in ["onnx", "onnx-nbits"]:
                for exporter in ["dynamo", "dynamo-external", "script"]:
                    source, out = at / f"{exporter}.onnx", at / "out.onnx"
                    twn_pack("export", packed, "--to", form, "--into", source, "-o", out, "--force", *into)
                    compare(f"{exporter}, {form}", source, out, expected, x[:some], labels[:some])
                    back(out, plain)
        print("folded models:", twn_pack("export", packed, "--to", "onnx", "--into", at / "dynamo-folded.onnx", "-o",
                                         at / "o.onnx", *into, fails=True).splitlines()[0])
        # Folded models are packed as they are: their own initializers by their own names.
        for exporter in ["dynamo-folded", "script-folded"]:
            source, packed, out = at / f"{exporter}.onnx", at / "f.twn", at / "out.onnx"
            twn_pack(source, "-o", packed, "--force", "--planes", 2)
            twn_pack("unpack", packed, "-o", plain, "--force")
            dense = onnx.load(source)
            values = load_file(plain)
            for tensor in dense.graph.initializer:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name].numpy(), tensor.name))
            onnx.save(dense, at / "dense.onnx")
            for form in ["onnx", "onnx-nbits"]:
                twn_pack("export", packed, "--to", form, "--into", source, "-o", out, "--force", "--planes-as-tensors")
                compare(f"{exporter} itself, 2 planes, {form}", source, out, run(at / "dense.onnx", x[:1000]), x[:1000], labels[:1000])

        torch.manual_seed(1)
        mlp, y = Mlp().eval(), torch.randn(4, 7, 200)
        save_file(mlp.state_dict(), at / "mlp.safetensors")
        for exporter in ["dynamo", "dynamo-folded", "script", "script-folded"]:
            export_torch(mlp, y[:2], at / f"mlp-{exporter}.onnx", exporter)
        for settings in [[], ["--granularity", "group:64"], ["--granularity", "group:48"], ["--granularity", "group:50"]]:
            twn_pack(at / "mlp.safetensors", "-o", at / "mlp.twn", "--force", *settings)
            twn_pack("unpack", at / "mlp.twn", "-o", plain, "--force")
            unpacked = Mlp()
            unpacked.load_state_dict(load_file(plain))
            with torch.no_grad():
                expected = unpacked.eval()(y).numpy()
            for form in ["onnx", "onnx-nbits"]:
                for exporter in ["dynamo", "dynamo-folded", "script", "script-folded"]:
                    source, out = at / f"mlp-{exporter}.onnx", at / "out.onnx"
                    lines = twn_pack("export", at / "mlp.twn", "--to", form, "--into", source, "-o", out, "--force")
                    kinds = "MatMulNBits" if "MatMulNBits" in lines else "INT2"
                    compare(f"linear layers {' '.join(settings)}, {exporter}, {form}: {kinds}", source, out, expected, y)
                    back(out, plain)
    assert not failed, failed
    print("all within", BAR)


if __name__ == "__main__":
    main()
