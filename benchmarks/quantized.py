"""Checkpoints that other programs quantized: what a decode step takes, how long a layer is loaded,
and the memory of loading packed layers; prints tables.

The language half (0.5 billion parameters, random codes) is loaded in 32 bit, in nf4, dequantized
from a layout, and packed. All are in one process and take turns at decode steps of 1 and 8 rows
behind a prompt; the ratio is to 32 bit in the same round, the median of rounds. A layer of 3,584 x
18,944 is read as the loader reads it. Memory is anonymous, of a process of its own, looked at every
millisecond of the load.

    OMP_NUM_THREADS=1 python -m benchmarks.quantized [--layouts awq w4a16 fp8] [--rounds 5]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from stages.models.hub.headers import local_headers
from stages.models.stored.codes import CPU_BYTES, CPU_ROWS, codes_of, unpack
from stages.models.stored.layouts import recognized
from tests.support.builders.common import (
    MIB,
    Peak,
    cells,
    cpu_seconds,
    heads,
    in_fresh_process,
    met,
)
from tests.support.builders.quantized import LAYOUTS, one_layer, quantized
from tests.support.builders.shapes import build

PROMPT, STEPS = 16, 4
"""Tokens before the first step, and steps of a round."""
ROWS = (1, 8)
LAYER = (3584, 18944)
"""Rows and columns of the layer that is loaded: the last one of an MLP of 7 billion parameters."""
MOST_SECONDS = {"awq": 1.5, "w4a16": 0.6}
"""Goal of reading it, on a quiet machine."""
MOST_SHARE = 1.06
"""Goal: packed memory while it is loaded, to the sum of its parts."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=[*LAYOUTS])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", choices=("steps", "layer", "memory"), default="")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "0.5b")
        if given.only != "layer":
            build(folder, "0.5b", 12)
        for name, lines in (
            ("layer", layer_lines),
            ("memory", memory_lines),
            ("steps", step_lines),
        ):
            if given.only in ("", name):
                for line in lines(folder, given):
                    print(line, flush=True)
                print()


def step_lines(folder: Path, given: argparse.Namespace) -> Iterator[str]:
    """Yield what a decode step takes in each form, in CPU time."""
    halves: dict[str, Any] = {"fp32": half_of(folder), "nf4": half_of(folder, precision="nf4")}
    for layout in given.layouts:
        made = quantized(folder, layout)
        halves[f"{layout}, dequantized"] = half_of(made)
        halves[f"{layout}, packed"] = half_of(made, packed=True)
    yield f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads"
    yield heads(" | ".join(["form", *(f"{rows} rows, ms | to fp32" for rows in ROWS)]))
    found = {rows: taken(halves, rows, given.rounds) for rows in ROWS}
    for name in halves:
        row = [name]
        for rows in ROWS:
            seconds, plain = found[rows][name], found[rows]["fp32"]
            ratio = median(mine / other for mine, other in zip(seconds, plain, strict=True))
            row += [f"{1000 * median(seconds):.0f}", f"{ratio:.2f}"]
        yield cells(row)


def half_of(folder: Path, precision: str = "native", *, packed: bool = False) -> Any:
    """Load the language half of a checkpoint. It computes in 32 bit."""
    from stages.models.loading import ModelJob

    job = ModelJob(model=str(folder), dtype="float32", precision=precision, packed=packed)
    return job.load("language")


@torch.inference_mode()
def taken(halves: Mapping[str, Any], rows: int, rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of a step by form, one figure a round."""
    ids = torch.randint(10, 1000, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))
    caches = {name: half(input_ids=ids).past_key_values for name, half in halves.items()}
    found: dict[str, list[float]] = {name: [] for name in halves}
    for _ in range(rounds):
        for name, half in halves.items():

            def some(half: Any = half, cache: Any = caches[name]) -> None:
                for _ in range(STEPS):
                    half(input_ids=ids[:, :1], past_key_values=cache)

            found[name].append(cpu_seconds(some) / STEPS)
    return found


def layer_lines(folder: Path, given: argparse.Namespace) -> Iterator[str]:
    """Yield the CPU seconds in which one layer is read, packed and dequantized."""
    load = os.getloadavg()[0]
    yield f"a layer of {LAYER[0]:,} x {LAYER[1]:,}, 1 thread, least of rounds, load {load:.1f}"
    yield heads("layout | packed, CPU s | dequantized to bf16, CPU s | goal")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for layout in given.layouts:
        layer, tensors = one_layer(layout, LAYER)
        codes, whole = [], []
        for _ in range(given.rounds):
            since = time.process_time()
            held = codes_of(layer, tensors)
            codes.append(time.process_time() - since)
            unpack(layer, held, torch.bfloat16, torch.bfloat16)
            whole.append(time.process_time() - since)
        goal = MOST_SECONDS.get(layout)
        right = "" if goal is None else f"{goal} {met(min(whole) <= goal)}"
        yield cells([layout, f"{min(codes):.2f}", f"{min(whole):.2f}", right])
    torch.set_num_threads(threads)


def memory_lines(folder: Path, given: argparse.Namespace) -> Iterator[str]:
    """Yield what loading the packed half in 16 bit takes, and what its parts take together."""
    yield heads("layout | peak, MiB | its parts, MiB | share")
    for layout in given.layouts:
        made = quantized(folder, layout)
        peak, parts = in_fresh_process(peak_of, made), parts_of(made, layout)
        share = f"{peak / parts:.3f} {met(peak <= parts)}"
        yield cells([layout, f"{peak / MIB:.0f}", f"{parts / MIB:.0f}", share])


def peak_of(folder: Path) -> int:
    """Return the most anonymous memory above the imports while the half is loaded packed."""
    from stages.models.loading import ModelJob, warm_source

    job = ModelJob(model=str(folder), dtype="bfloat16", packed=True)
    warm_source(job)
    peak = Peak()
    half = job.load("language")
    assert half is not None
    return peak.bytes()


def parts_of(folder: Path, layout: str) -> int:
    """Return the goal: quantized layers at their bits and scales, all else in 16 bit, 6 % more, the
    largest layer in 16 bit, and a piece of rows in 32 bit."""
    from stages.models.inspection import describe

    half = describe(folder).language
    headers = local_headers(folder, half.shards)
    own = [header for header in headers if header.name in half.tensors]
    layers = recognized(own, LAYOUTS[layout][1]).values()
    held = sum(header.size for header in own)
    largest = max(layers, key=lambda layer: layer.rows * layer.columns)
    piece = max(CPU_BYTES, 4 * CPU_ROWS * largest.columns)
    return int(MOST_SHARE * held) + 2 * largest.rows * largest.columns + piece


if __name__ == "__main__":
    main()
