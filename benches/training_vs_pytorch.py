"""LeNet-5 training steps in PyTorch and in twn-pack, in turn, on the same number of threads.

    python3 benches/training_vs_pytorch.py [--rounds 5] [--steps 40]

Needs PyTorch and a built `cargo build --release --example training_speed`. Prints images per second, the
median over the rounds, and the median of the rounds' ratios: the machine's speed moves, ratios less.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch
from torch import nn
from torch.nn import functional as F


class Ternary(torch.autograd.Function):
    """TWN per filter, straight-through."""

    @staticmethod
    def forward(ctx, w):
        flat = w.flatten(1)
        magnitude = flat.abs()
        mask = magnitude > 0.7 * magnitude.mean(1, keepdim=True)
        alpha = (magnitude * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return (alpha * flat.sign() * mask).view_as(w)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class LeNet(nn.Module):
    def __init__(self, ternary):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 5, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 5, bias=False), nn.BatchNorm2d(64)
        self.fc1, self.bn3 = nn.Linear(1024, 512, bias=False), nn.BatchNorm1d(512)
        self.fc2 = nn.Linear(512, 10)
        self.w = Ternary.apply if ternary else lambda w: w

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.bn1(F.conv2d(x, self.w(self.conv1.weight))), 2))
        x = F.relu(F.max_pool2d(self.bn2(F.conv2d(x, self.w(self.conv2.weight))), 2))
        x = F.relu(self.bn3(F.linear(x.flatten(1), self.w(self.fc1.weight))))
        return F.linear(x, self.w(self.fc2.weight), self.fc2.bias)


def pytorch(batch, ternary, threads, steps):
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    net = LeNet(ternary)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    x, labels = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    for step in range(-3, steps):
        if step == 0:
            start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return batch * steps / (time.perf_counter() - start)


def ours(batch, ternary, threads, steps):
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    command = [f"{target}/release/examples/training_speed", str(batch), "twn" if ternary else "none", str(threads), str(steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    print(f"PyTorch {torch.__version__}; images per second, median of {arguments.rounds} rounds")
    print("threads  batch  method  PyTorch  twn-pack  ratio")
    for threads in (1, 2):
        for batch in (50, 100):
            for ternary in (False, True):
                pairs = []
                for _ in range(arguments.rounds):
                    a = pytorch(batch, ternary, threads, arguments.steps)
                    pairs.append((a, ours(batch, ternary, threads, arguments.steps)))
                theirs, mine = (statistics.median(side) for side in zip(*pairs))
                ratio = statistics.median(b / a for a, b in pairs)
                method = "twn" if ternary else "float"
                print(f"{threads:7}  {batch:5}  {method:6}  {theirs:7.0f}  {mine:8.0f}  {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
