"""A new prompt from the cache through the real decode stage, over pure decoding; prints the ratio.

Pure decoding has the same half in one process, the features and the inputs of every batch ready in
memory, and calls `generate` and nothing else. Runs of both sides alternate, each in a process of
its own. It does not know what makes the difference: reading, checking, unpacking, writing the
prompt, turning tokens into text and publishing all belong to the stage.

    python benchmarks/reprompt.py [--clips 64] [--batch 8] [--repeat 5] [--only demo|large]
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._bench import Bench, Runner, batches_of
from benchmarks._models import LARGE, build, publish_clips
from benchmarks._modes import Outcome, run_mode
from penstock_demo import CHECKPOINT

FIRST, OTHER = "Describe this video in detail.", "What happens in this video?"
OWN = "own"
FIGURES = {
    OWN: "against `generate` in the same run",
    "seconds": "after loading",
    "cpu_seconds": "CPU after loading",
    "whole_seconds": "start, import and load included",
}


def compare(bench: Bench, batch: int, repeat: int) -> dict[str, float]:
    """Figure → the stage's over that of pure decoding: the median of the pairs."""
    bench.run("encode", batches_of(bench.members, batch))
    again = [{**member, "prompt": OTHER} for member in bench.members]
    pairs: list[tuple[Outcome, Outcome]] = []
    for _ in range(repeat):
        cut = batches_of(again, batch)
        pairs.append((bench.run("decode", cut), bench.run("pure", cut)))
    stages = [stage for stage, _ in pairs]
    inside = statistics.median(stage.seconds / stage.generate_seconds for stage in stages)
    return {OWN: inside} | {
        name: statistics.median(getattr(stage, name) / getattr(pure, name) for stage, pure in pairs)
        for name in FIGURES
        if name != OWN and all(getattr(pure, name) for _, pure in pairs)
    }


def main(arguments: Sequence[str] | None = None, runner: Runner = run_mode) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=64)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--repeat", type=int, default=5)
    options.add_argument("--tokens", type=int, default=48)
    options.add_argument("--only", choices=("demo", "large"))
    given = options.parse_args(arguments)
    for name in [given.only] if given.only else ["demo", "large"]:
        with tempfile.TemporaryDirectory() as folder:
            large = Path(folder, "model")
            bench = Bench(
                model=CHECKPOINT if name == "demo" else build(large, LARGE, given.tokens),
                store=f"{folder}/store",
                members=publish_clips(f"{folder}/store", [8] * given.clips, FIRST),
                tokens=given.tokens,
                runner=runner,
            )
            ratios = compare(bench, given.batch, given.repeat)
        print(f"{name}: {given.clips} clips, batch {given.batch}, median of {given.repeat} pairs")
        for figure, ratio in ratios.items():
            print(f"  a new prompt ÷ pure decoding, {FIGURES[figure]}: {ratio:.3f}")


if __name__ == "__main__":
    main()
