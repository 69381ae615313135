"""What each part of staged captioning is worth, on clips of unlike length; prints a table.

Each row takes one thing away or puts one thing in: a half a process, batches by length, the
language half's precision. Times are those of the steady state. Knows no stage's inside.

    python benchmarks/ablation.py [--clips 16] [--batch 8] [--repeat 3] [--skip int8,nf4]
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._bench import Bench, Member, Runner, batches_of
from benchmarks._models import LARGE, TINY, build, publish_clips
from benchmarks._modes import Outcome, run_mode

FRAMES = (2, 16)
"""Of the clips, in turn: as folders of short and long files have them."""
TOKENS = 16
MIB = 1 << 20
ROWS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "all of it": ("decode", True, {}),
    "without batches by length": ("decode", False, {}),
    "without separation": ("joint", False, {}),
    "with an int8 language half": ("decode", True, {"precision": "int8"}),
    "with an nf4 language half": ("decode", True, {"precision": "nf4"}),
}
"""Row → what is run, whether batches go by length, and what else the job says."""


def measure(
    bench: Bench, lengths: Sequence[int], batch: int, repeat: int, rows: Sequence[str]
) -> dict[str, list[Outcome]]:
    """Row → its outcomes, one a round; that of encoding under its own name."""
    pairs = sorted(zip(lengths, bench.members, strict=True), key=lambda pair: -pair[0])
    by_length: list[Member] = [member for _, member in pairs]
    found: dict[str, list[Outcome]] = {}
    for _ in range(repeat):
        found.setdefault("encode", []).append(bench.run("encode", batches_of(by_length, batch)))
        for row in rows:
            mode, in_order, changes = ROWS[row]
            cut = batches_of(by_length if in_order else bench.members, batch)
            found.setdefault(row, []).append(bench.run(mode, cut, **changes))
    return found


def table(found: dict[str, list[Outcome]], clips: int) -> list[str]:
    """Markdown: captions a second, encoding included, and what that is of the first row's."""
    lines = [
        "| | captions/s | CPU s a caption | to all of it, in CPU time | MiB |",
        "|---|---|---|---|---|",
    ]
    costs: list[float] = []
    for row, outcomes in found.items():
        if row == "encode":
            continue
        both = [outcomes] if ROWS[row][0] == "joint" else [outcomes, found["encode"]]
        wall = sum(statistics.median(o.seconds for o in side) for side in both)
        cpu = sum(statistics.median(o.cpu_seconds for o in side) for side in both)
        costs.append(cpu)
        peak = max(mark[2] for side in both for o in side for mark in o.marks) / MIB
        figures = f"{clips / wall:.2f} | {cpu / clips:.2f} | {costs[0] / cpu:.2f} | {peak:.0f}"
        lines.append(f"| {row} | {figures} |")
    return lines


def main(arguments: Sequence[str] | None = None, runner: Runner = run_mode) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=16)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--skip", default="", help="precisions not to be tried: int8,nf4")
    options.add_argument("--quick", action="store_true", help="tiny shapes: does it run at all?")
    given = options.parse_args(arguments)
    lengths = [FRAMES[at % len(FRAMES)] for at in range(given.clips)]
    skipped = given.skip.split(",")
    rows = [row for row, (_, _, job) in ROWS.items() if job.get("precision") not in skipped]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            model=build(Path(folder, "model"), TINY if given.quick else LARGE, TOKENS),
            store=f"{folder}/store",
            members=publish_clips(f"{folder}/store", lengths),
            tokens=TOKENS,
            runner=runner,
        )
        found = measure(bench, lengths, given.batch, given.repeat, rows)
    print("\n".join(table(found, given.clips)))


if __name__ == "__main__":
    main()
