"""What it costs that the bytes of features do not depend on their batch.

Two commands run whole, in turns: `caption` with the large model over clips in batches of 8, and
`embed` with CLIP ViT-B/32 over small pictures. Each runs in the way `auto` and in batches, or, with
`--before`, by an earlier version that is installed for another interpreter. Prints the CPU seconds
of the stage that encodes, and chunks a CPU second as a share of the other side.

    python -m benchmarks.encode_ways [--clips 64] [--pictures 1000] [--pairs 5] [--quick]
        [--before /path/to/python]
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import cells, heads, met, run_penstock

GOALS = {"caption": 0.95, "embed": 0.90}
"""Chunks a CPU second, at least, for each of the other side."""
SIDE = 96
"""Pixels of a small picture's edge."""
OTHERS = {
    "caption": ("--batch-size", "8", "--max-new-tokens", "1", "--precision", "bf16"),
    "embed": (),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=64)
    options.add_argument("--pictures", type=int, default=1000)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--before", help="interpreter of an earlier version [this one, batches]")
    options.add_argument("--quick", action="store_true", help="tiny models: does it run at all?")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        build(folder, given.clips, given.pictures, quick=given.quick)
        print("\n".join(table(folder, given.pairs, given.before)))


def build(folder: Path, clips: int, pictures: int, *, quick: bool) -> None:
    """Write both models, clips of the demo's world, and small pictures of noise."""
    import numpy as np
    from PIL import Image

    from benchmarks._models import LARGE, TINY
    from benchmarks._models import build as build_large
    from benchmarks._tower_shapes import checkpoint
    from penstock_demo.clips import write_clips

    build_large(folder / "caption-model", TINY if quick else LARGE, 8)
    checkpoint(folder / "dual", "b32", quick).rename(folder / "embed-model")
    write_clips(folder / "caption", clips, 3)
    (folder / "embed").mkdir()
    draw = np.random.default_rng(0)
    for number in range(pictures):
        pixels = draw.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "embed" / f"{number:04}.png")


def table(folder: Path, pairs: int, before: str | None) -> Iterator[str]:
    """Run all pairs, and yield Markdown."""
    yield f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    yield heads("command | chunks | auto, CPU s | other, CPU s | ratio | least | most | goal")
    other = (before, ()) if before else (sys.executable, ("--encode-way", "batches"))
    for verb, goal in GOALS.items():
        took: list[tuple[float, float]] = []
        for number in range(pairs):
            sides = [(sys.executable, ()), other]
            found = [
                cpu_seconds(folder, verb, f"{number}-{at}", *sides[at])
                for at in ((0, 1) if number % 2 else (1, 0))
            ]
            took.append((found[0], found[1]) if number % 2 else (found[1], found[0]))
        ratios = [old / new for new, old in took]
        new, old = (statistics.median(side) for side in zip(*took, strict=True))
        ratio = statistics.median(ratios)
        chunks = len([*(folder / verb).glob("*.[mp]*")])
        spread = (f"{min(ratios):.2f}", f"{max(ratios):.2f}")
        result = f"{goal} {met(ratio >= goal)}"
        yield cells([verb, chunks, f"{new:.1f}", f"{old:.1f}", f"{ratio:.2f}", *spread, result])


def cpu_seconds(folder: Path, verb: str, name: str, python: str, more: Sequence[str]) -> float:
    """Run a command with an empty store, and return the CPU seconds of its stage that encodes."""
    out, store = folder / f"out-{verb}-{name}", folder / f"store-{verb}-{name}"
    model, options = folder / f"{verb}-model", (*OTHERS[verb], *more)
    where: Any = {"python": python, "cwd": folder}  # where no other version lies
    record = run_penstock(verb, folder / verb, model, out, store, *options, **where)
    seconds: float = record["stages"][1]["cpu_seconds"]
    return seconds


if __name__ == "__main__":
    main()
