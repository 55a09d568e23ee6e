"""How fast every format goes in and out, as whole commands of the program, beside reading the same input (mapped, every
byte, on as many threads) and a plain `cp` of it to the same place, synced as outputs are; and the most anonymous memory of
each command (`RssAnon`).

    cargo build --release
    python3 benches/formats.py target/release/twn-pack /dev/shm [--mebibytes 1024] [--rounds 5] [--threads 1 2] [--only REGEX] [--axis 1]
    python3 benches/formats.py target/release/twn-pack DIRECTORY --cold --mebibytes 4096 [--outputs /dev/shm]

Makes so many MiB of random f32 weights, matrices of 4096 x 4096 (a sixteenth of that in codes of two bits), in a
directory of its own in the given one, packs them with one scale per tensor, exports them to every format, and packs again what
is read again: codes, and floats. With `--cold` the page cache lets go of the input before
every run, so that all of them begin and end at the disk, and reading is by calls instead of mapped; with `--outputs` what is
written goes to another directory, of another device. With `--axis 1` the filters are columns, for formats that have such. Linux only. Needs numpy, safetensors, torch, onnx; without torch or onnx these formats are left out.
"""

import argparse
import json
import mmap
import os
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROWS = 4096


def timed(command, **options):
    """Milliseconds from start to exit, those of the processor, and the peak of `RssAnon` in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
        except (OSError, TypeError):
            pass
        time.sleep(0.001)
    took = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took * 1e3, processor * 1e3, peak / 1024


def forget(path):
    """Lets the page cache drop a file."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_calls(path, _threads):
    """Milliseconds in which a file is read into a buffer, in order: two threads would be slower from a disk."""
    buffer = bytearray(1 << 20)
    begin = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return (time.perf_counter() - begin) * 1e3


def read_mapped(path, threads):
    """Milliseconds in which every byte of a file is looked at."""
    begin = time.perf_counter()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        words = np.frombuffer(mapped, np.uint64, count=len(mapped) // 8)
        step = 1 << 17
        sums = lambda thread: sum(int(words[i : i + step].sum()) for i in range(thread * step, len(words), threads * step))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(sums, range(threads)))
        del words, sums
    return (time.perf_counter() - begin) * 1e3


def floats(directory, tensors):
    """The same weights as a file of every format that has floats."""
    files = {"safetensors": directory / "floats.safetensors"}
    save_file(tensors, files["safetensors"])
    files["npz"] = directory / "floats.npz"
    np.savez(files["npz"], **tensors)
    files["npz, Fortran order"] = directory / "fortran.npz"
    np.savez(files["npz, Fortran order"], **{name: np.asfortranarray(values) for name, values in tensors.items()})
    try:
        import torch

        files["PyTorch"] = directory / "floats.pt"
        torch.save({name: torch.from_numpy(values) for name, values in tensors.items()}, files["PyTorch"])
        files["PyTorch, transposed"] = directory / "transposed.pt"
        turned = {name: torch.from_numpy(values).t().contiguous().t() for name, values in tensors.items()}
        torch.save(turned, files["PyTorch, transposed"])
    except ImportError:
        pass
    try:
        import gguf

        files["GGUF, F32"] = directory / "floats.gguf"
        writer = gguf.GGUFWriter(files["GGUF, F32"], "none")
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except ImportError:
        pass
    return files


def model(path, names, axis):
    """An ONNX model of as many products, whose weights are said to lie in a file that nobody needs."""
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("Gemm", [f"x.{name}", name], [f"y.{name}"], transB=1 - axis) for name in names],
        "products",
        [helper.make_tensor_value_info(f"x.{name}", TensorProto.FLOAT, [1, ROWS]) for name in names],
        [helper.make_tensor_value_info(f"y.{name}", TensorProto.FLOAT, [1, ROWS]) for name in names],
    )
    for name in names:
        tensor = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=[ROWS, ROWS])
        tensor.external_data.add(key="location", value="nowhere.bin")
        tensor.data_location = TensorProto.EXTERNAL
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("program", type=Path)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--mebibytes", type=int, default=1024)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--only", default="")
    arguments.add_argument("--axis", type=int, choices=[0, 1], default=0)
    arguments.add_argument("--cold", action="store_true")
    arguments.add_argument("--outputs", type=Path)
    asked = arguments.parse_args()
    program = str(asked.program.resolve())
    inputs_in = tempfile.TemporaryDirectory(dir=asked.directory)
    outputs_in = tempfile.TemporaryDirectory(dir=asked.outputs or asked.directory)
    with inputs_in as directory, outputs_in as outputs_directory:
        directory = Path(directory)
        run = lambda *words: subprocess.run([program, *map(str, words), "-q"], check=True, stdout=subprocess.DEVNULL)
        random = np.random.default_rng(1)
        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(asked.mebibytes // 64)]
        tensors = {name: random.standard_normal((ROWS, ROWS), dtype=np.float32) for name in names}
        inputs = floats(directory, tensors)
        del tensors
        twn = directory / "m.twn"
        run(inputs["safetensors"], "-o", twn, "--granularity", "tensor", "--axis", asked.axis)
        (directory / "into.json").write_text(json.dumps({"dtype": "float32"}))
        out = Path(outputs_directory) / "out"
        cases = []
        outputs = [("safetensors", "safetensors"), ("tq1_0", "gguf"), ("tq2_0", "gguf"), ("q2_0", "gguf")]
        outputs += [("bitnet", "safetensors"), ("gptq", "safetensors"), ("onnx", "onnx"), ("onnx-nbits", "onnx")]
        if asked.axis == 1:
            outputs = [(form, ending) for form, ending in outputs if form == "safetensors" or ending == "onnx"]
        back = []
        for form, ending in outputs:
            into = {"bitnet": "into.json"}.get(form)
            if ending == "onnx":
                try:
                    model(directory / "into.onnx", names, asked.axis)
                except ImportError:
                    continue
                into = "into.onnx"
            into = ["--into", directory / into] if into else []
            output = directory / form / f"m.{ending}"
            output.parent.mkdir()
            run("export", twn, "--to", form, "-o", output, *into)
            cases.append((f".twn -> {form}", twn, ["export", twn, "--to", form, "-o", out / f"m.{ending}", *into]))
            if form not in ("safetensors", "gptq"):
                back.append((f"{form} -> .twn", output, [output, "-o", out / "m.twn"]))
        cases.append((".twn -> floats", twn, ["unpack", twn, "-o", out / "m.safetensors"]))
        cases.append((".twn, verify", twn, ["verify", twn]))
        for form, path in inputs.items():
            back.append((f"{form} -> .twn", path, [path, "-o", out / "m.twn"]))
        copy = ["sh", "-c", 'cp "$0" "$1" && sync "$1"']
        begin, read = (forget, read_calls) if asked.cold else (lambda path: None, read_mapped)
        middle, which = (statistics.median, "medians") if asked.cold else (min, "the least")
        print(f"{asked.mebibytes} MiB of f32 weights; {which} of {asked.rounds} rounds, in ms, with that of the processor in brackets")
        for threads in asked.threads:
            title = f"{threads} thread(s)"
            print(f"\n{title:<26}  MB in    out          command   reading            cp   of reading   of cp    (cpu)   MiB anon")
            environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TMPDIR": str(directory)}
            for what, path, words in cases + back:
                if not re.search(asked.only, what):
                    continue
                rounds = []
                for _ in range(asked.rounds):
                    out.mkdir()
                    begin(path)
                    reading = read(path, threads)
                    begin(path)
                    copying, copy_processor, _ = timed([*copy, path, out / "copy"])
                    (out / "copy").unlink()
                    begin(path)
                    ms, processor, anonymous = timed([program, *map(str, words), "-q"], env=environment)
                    rounds.append((reading, copying, copy_processor, ms, processor, anonymous))
                    size = sum(file.stat().st_size for file in out.iterdir())
                    shutil.rmtree(out)
                reading, copying, copy_processor, ms, processor, _ = map(middle, zip(*rounds))
                print(
                    f"{what:<26} {path.stat().st_size / 1e6:6.0f} {size / 1e6:6.0f} {ms:8.1f} ({processor:6.1f}) "
                    f"{reading:9.1f} {copying:5.1f} ({copy_processor:5.1f}) {reading / ms:12.2f} {ms / copying:7.2f} "
                    f"{processor / copy_processor:8.2f} {max(anonymous for *_, anonymous in rounds):10.1f}",
                    flush=True,
                )


main()
