"""Staged captioning against joint `generate` at one batch size, batch by batch in one process;
prints the ratios.

Both sides of a pair run within seconds of each other, so that a busy machine disturbs both alike:
what `staged_vs_joint.py` cannot do, whose sides are processes of their own. Loading does not count,
and memory cannot be told.

    python benchmarks/equal_batch.py [--batch 4] [--run 4] [--pairs 5] [--tokens 16]
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._bench import Bench, Member, batches_of
from benchmarks._models import LARGE, TINY, build, publish_clips
from benchmarks._modes import Outcome, perform


def here(mode: str, job: dict[str, Any], budget: int | None = None) -> Outcome:
    return perform(mode, job)


def pair(bench: Bench, cut: list[list[Member]]) -> tuple[float, float]:
    """Joint's time over that of both stages, for the same batches: wall and CPU."""
    bench.features = ""  # decode what this pair encodes
    first, joint, second = (bench.run(mode, cut) for mode in ("encode", "joint", "decode"))
    return (
        joint.seconds / (first.seconds + second.seconds),
        joint.cpu_seconds / (first.cpu_seconds + second.cpu_seconds),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--run", type=int, default=4, help="batches one after another, a side")
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--tokens", type=int, default=16)
    options.add_argument("--quick", action="store_true", help="tiny shapes: does it run at all?")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        shape = TINY if given.quick else LARGE
        bench = Bench(
            model=build(Path(folder, "model"), shape, given.tokens),
            store=store,
            members=publish_clips(store, [8] * given.batch * given.run * (1 + given.pairs)),
            tokens=given.tokens,
            runner=here,
        )
        # The first warms both sides up and does not count.
        cut = batches_of(bench.members, given.batch)
        runs = [cut[at : at + given.run] for at in range(0, len(cut), given.run)]
        pairs = [pair(bench, run) for run in runs][1:]
    wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{given.run} batches of {given.batch}, median of {given.pairs} pairs;")
    print("above 1 the stages are faster")
    print(f"  joint ÷ staged, wall {wall:.3f}, CPU {cpu:.3f}")


if __name__ == "__main__":
    main()
