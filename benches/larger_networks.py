"""VGG-7 of quarter width and ResNet-18 with CIFAR's stem, trained for some hundred steps with every method, on made
images of 3 x 32 x 32: ten classes of waves, each with a direction and a colour, in noise.

    cargo build --release
    python3 benches/larger_networks.py DIRECTORY [--images 4800] [--batch 32] [--width 0.5] [--networks vgg7 resnet18-cifar]

Prints the mean loss over each of two epochs, and the accuracy on 500 other images. Needs Python's
standard library only. `--width` is that of the ResNet.
"""

import argparse
import json
import math
import os
import random
import struct
import subprocess
from pathlib import Path

METHODS = ["none", "twn", "bwn", "absmean", "optimal", "tga", "esa", "binaryconnect"]


def image(label):
    """Bytes of 3 x 32 x 32: a wave in the class's direction, with a phase of its own, and noise."""
    angle, phase = math.pi * label / 10, random.uniform(0, 2 * math.pi)
    across, down = 0.7 * math.cos(angle), 0.7 * math.sin(angle)
    wave = [math.sin(across * x + down * y + phase) for y in range(32) for x in range(32)]
    colour = [0.4 + 0.3 * math.cos(2 * math.pi * (label % 3 - c) / 3) for c in range(3)]
    noise = random.randbytes(3 * 1024)
    return bytes(
        max(0, min(255, int(64 + 96 * colour[c] * (1 + wave[i]) + (noise[c * 1024 + i] - 128) / 2)))
        for c in range(3)
        for i in range(1024)
    )


def array(path, kind, shape, data):
    """A .npy file, version 1."""
    header = repr({"descr": kind, "fortran_order": False, "shape": tuple(shape)}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--images", type=int, default=4800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", default="0.5")
    parser.add_argument("--networks", nargs="*", default=["vgg7", "resnet18-cifar"])
    parser.add_argument("--threads", default="2")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    arguments = parser.parse_args()
    data = arguments.directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    random.seed(1)
    for split, count in [("train", arguments.images), ("test", 500)]:
        labels = [i % 10 for i in range(count)]
        array(data / f"{split}-images.npy", "|u1", [count, 3, 32, 32], b"".join(map(image, labels)))
        array(data / f"{split}-labels.npy", "|u1", [count], bytes(labels))
    binary = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release/twn-pack"
    print("| network | method | steps | loss, first epoch | second | test accuracy | images/s |")
    print("|---|---|---|---|---|---|---|")
    for network in arguments.networks:
        width = "0.25" if network == "vgg7" else arguments.width
        for method in arguments.methods:
            output = arguments.directory / f"{network}-{method}.safetensors"
            command = [binary, "train", "--net", network, "--width", width, "--classes", "10", "--data", data]
            # BinaryConnect's weights have no scale; its paper trains them with Adam.
            adam = method == "binaryconnect"
            command += ["--optimizer", "adam", "--rate", "0.001"] if adam else ["--rate", "0.02"]
            command += ["--method", method, "--epochs", "2", "--batch", str(arguments.batch)]
            command += ["-o", output, "-q", "--threads", arguments.threads]
            subprocess.run(command, check=True)
            lines = (output.with_suffix(".run") / "metrics.jsonl").read_text().splitlines()
            epochs = [json.loads(line) for line in lines[1:]]
            steps = 2 * -(-arguments.images // arguments.batch)
            print(
                f"| {network} x {width} | {method} | {steps} | {epochs[0]['loss']:.3f} | {epochs[1]['loss']:.3f} "
                f"| {100 * epochs[1]['test_accuracy']:.1f} % | {epochs[1]['images_per_second']:.0f} |",
                flush=True,
            )


main()
