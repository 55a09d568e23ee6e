"""MNIST from scratch with every method, as in table 2 of TWN (arXiv 1605.04711): mean and standard deviation
of the test accuracy after the last epoch, over seeds. Every arm has the same recipe.

    cargo build --release
    python3 benches/mnist_table.py DIRECTORY-WITH-THE-FOUR-MNIST-FILES RUNS-DIRECTORY [--epochs 30] [--seeds 3] [--first 1] [--threads N]

A run that is in RUNS-DIRECTORY already is not done again, so that this can be interrupted and started anew, and several
can share the work (--arms). The number of threads changes nothing but the time.
Needs Python's standard library only.
"""

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

ARMS = {
    "full precision": ["--method", "none"],
    "twn": ["--method", "twn"],
    "twn, one scale per layer": ["--method", "twn", "--granularity", "tensor"],
    "bwn (BPWN)": ["--method", "bwn"],
    "tga": ["--method", "tga"],
    "esa, a = 0.2": ["--method", "esa", "--sparsity-alpha", "0.2"],
    "esa, a = 0.5": ["--method", "esa", "--sparsity-alpha", "0.5"],
    "esa, a = 1.0": ["--method", "esa", "--sparsity-alpha", "1.0"],
}


def run(data, directory, options):
    """The last epoch's metrics."""
    metrics = directory / "metrics.jsonl"
    output = directory / "trained.safetensors"
    if not output.exists():
        directory.mkdir(parents=True, exist_ok=True)
        binary = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release/twn-pack"
        command = [binary, "train", "--net", "lenet5", "--data", data, "--recipe", "twn-mnist", "--run", directory]
        resume = ["--resume"] if (directory / "state.safetensors").exists() else []
        subprocess.run([*command, "-o", output, "--progress", "never", "-q", *options, *resume], check=True)
    return json.loads(metrics.read_text().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    arguments = parser.parse_args()
    found = {name: [] for name in arguments.arms}
    # Seed by seed, so that an interrupted table has all arms.
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for name in arguments.arms:
            options = [*ARMS[name], "--epochs", str(arguments.epochs), "--seed", str(seed), "-j", arguments.threads]
            place = "".join(c if c.isalnum() or c == "." else "-" for c in name)
            metrics = run(arguments.data, arguments.runs / f"{place}-{arguments.epochs}-{seed}", options)
            found[name].append(metrics)
            accuracy = 100 * metrics["test_accuracy"]
            print(f"{name}, seed {seed}: {accuracy:.2f} %, {metrics['images_per_second']:.0f} images/s", flush=True)
    print(f"\n{arguments.epochs} epochs, test accuracy in %, mean, standard deviation over the seeds, standard error of the mean\n")
    print("| method | mean | deviation | error | seeds | zeros |\n|---|---|---|---|---|---|")
    for name, metrics in found.items():
        accuracy = [100 * m["test_accuracy"] for m in metrics]
        deviation = statistics.stdev(accuracy) if len(accuracy) > 1 else float("nan")
        zeros = [m["sparsity"] for m in metrics if m["sparsity"] is not None]
        share = f"{100 * statistics.mean(zeros):.1f} %" if zeros else ""
        each = ", ".join(f"{a:.2f}" for a in accuracy)
        error = deviation / len(accuracy) ** 0.5
        print(f"| {name} | {statistics.mean(accuracy):.3f} | {deviation:.3f} | {error:.3f} | {each} | {share} |")


main()
