"""How fast a vision half is, and what it takes, as torch computes it, as torch compiles it, and as
ONNX Runtime computes its graphs; prints a table.

One thread. CLIP has published sizes and random weights; the demo's towers are the trained ones, and
see clips and pictures of the demo's world. All ways are timed in one process and take turns, a
batch a round; of a GPU it is the time until the batch is done. Memory is of one process a way, from
loading to the end of one batch, above its imports; on a GPU it is the GPU's. Features of all rounds
are held against those of torch in 32 bit. A CPU gets graphs in 8 bit, a GPU in 16.

    python -m benchmarks.graphs [--shapes b32,l14,demo,demo-clip] [--batch 8] [--rounds 15]
        [--seconds 60] [--device cuda:0]
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from stages.process.device import device_name
from stages.process.host_memory import cpu_line
from tests.support.builders import towers as _towers
from tests.support.builders.common import MIB, Found, cells, heads, in_fresh_process
from tests.support.builders.towers import NAMES, checkpoint

HEADS = (
    "vision half | computed by | on | ms per batch | x | MiB | of torch fp32 | files MiB | cosine"
    " | least | neighbours"
)
FLAGS = {
    "AVX512-BF16": ("avx512_bf16",),
    "AMX-BF16": ("amx_bf16",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX-INT8": ("amx_int8",),
}
"""What makes few bits fast → what the kernel calls it."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shapes", default=",".join(NAMES))
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rounds", type=int, default=15, help="at the most; 3 at the least")
    options.add_argument("--seconds", type=float, default=60, help="for the rounds of a shape")
    options.add_argument("--device", default="", help="cpu or cuda:0; a GPU where there is one")
    given = options.parse_args(arguments)
    shapes = given.shapes.split(",")
    if unknown := [shape for shape in shapes if shape not in NAMES]:
        options.error(f"--shapes {unknown[0]} is not known; there are {', '.join(NAMES)}")
    device = given.device or device_name()
    print(f"{machine(device)}\n\n{heads(HEADS)}", flush=True)
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            subject = prepared(Path(folder), shape, device, given)
            for line in measured(shape, subject):
                print(line, flush=True)


def prepared(folder: Path, shape: str, device: str, given: argparse.Namespace) -> _towers.Subject:
    """Write a checkpoint and its graphs; return its description for the measurements."""
    model = checkpoint(folder, shape)
    kinds = ("onnx", "onnx-int8" if device == "cpu" else "onnx-fp16")
    graphs = {kind: str(folder / kind) for kind in kinds}
    routes = [in_thread(_towers.export, str(model), kind, out) for kind, out in graphs.items()]
    return _towers.Subject(
        route=routes[-1],
        model=str(model),
        graphs=graphs,
        device=device,
        batch=given.batch,
        rounds=given.rounds,
        seconds=given.seconds,
    )


def measured(shape: str, subject: _towers.Subject) -> Iterator[str]:
    """Time and look at every way to compute one vision half; yields lines of the table."""
    found = in_thread(_towers.times, subject)
    device = subject.device.partition(":")[0]
    first = 0
    for name, seconds in found["seconds"].items():
        took = in_thread(_towers.peak, subject, name)
        first = first or took["peak"]
        near, speed = found["near"][name], _towers.times_faster(found["seconds"], name)
        figures = (
            f"{1000 * median(seconds):,.1f}",
            f"{speed:.2f}",
            f"{took['peak'] / MIB:,.0f}",
            f"{took['peak'] / first:.2f}",
            f"{took['bytes'] / MIB:,.1f}",
            f"{near['centred_mean']:.4f}",
            f"{near['centred_least']:.4f}",
            f"{near['neighbours']:.0%}",
        )
        yield cells([NAMES[shape], name, device, *figures])
    for name, why in found["cannot"].items():
        yield cells([NAMES[shape], name, device, "not possible: " + why.replace("|", "/")])


def in_thread(work: Callable[..., Found], *given: Any) -> Found:
    """What a process of one thread finds."""
    return in_fresh_process(work, *given, OMP_NUM_THREADS="1")


def machine(device: str) -> str:
    """One line of what computes."""
    flags = cpu_line("flags").split()
    has = [name for name, words in FLAGS.items() if any(word in flags for word in words)]
    message = f"{cpu_line('model name')}, {os.cpu_count()} cores, one thread; it has "
    message += ", ".join(has) or "neither bf16 nor VNNI"
    return message if device == "cpu" else f"{message}; computed on {device}"


if __name__ == "__main__":
    main()
