"""Captions a second and peak memory of staged captioning against stock joint `generate`, at equal
batch and at equal budgets; prints the tables of docs/performance.md.

Every measurement is a process of its own, `benchmarks._modes`, and runs of both sides alternate.
A budget is what a process may take above its libraries, weights included; it is enforced by the
kernel, and each side takes the largest batch that lives. Knows no stage's inside.

    python benchmarks/staged_vs_joint.py [--quick] [--only demo|large] [--repeat 3]
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks._bench import BATCHES, Bench, Step
from benchmarks._models import LARGE, TINY, build, half_bytes, publish_clips
from penstock_demo import CHECKPOINT

BUDGETS = (1.1, 1.5, 2.0, 4.0)
"""Times the larger half's weights."""
SLACK = 0.05
"""Of the larger half's weights: how far the tightest budget of joint is above what it took, because
the kernel counts what malloc holds back as well."""
MODES = ("encode", "decode", "joint")
"""In this order: decoding reads the features that encoding made."""
MANY = 200
"""Clips of the run for which start-up is told."""
TOKENS = 32
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One comparison: what each side takes at once."""

    label: str
    joint: int
    """Batch; 0 does not fit."""
    encode: int
    decode: int


def compare(bench: Bench, larger: int, repeat: int) -> list[Line]:
    """Measure everything there is to say of one checkpoint."""
    for _ in range(repeat):
        for mode in MODES:
            bench.ladder(mode)
    lines = [
        Line(label=f"equal batch {size}", joint=size, encode=size, decode=size)
        for size in bench.batches
    ]
    print("\n".join(table(bench, lines)), flush=True)
    budgets = {f"{times} x": round(times * larger) for times in BUDGETS}
    least = bench.peak("joint", 1) + round(SLACK * larger)
    budgets[f"{least / larger:.2f} x (joint's least)"] = least
    for label, budget in sorted(budgets.items(), key=lambda item: item[1]):
        taken = {mode: bench.largest(mode, budget) for mode in MODES}
        lines.append(Line(label=f"{label} = {budget / MIB:.0f} MiB", **taken))
        print(label, taken, flush=True)
    return lines


def table(bench: Bench, lines: list[Line]) -> list[str]:
    """Markdown: a row a line."""
    rows = [
        "| | joint: batch, captions/s, MiB | staged: batches, captions/s, MiB "
        f"| ratio | in CPU time | of {MANY} clips with start-up |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        joint = bench.steps.get(("joint", line.joint), [])
        first = bench.steps.get(("encode", line.encode), [])
        second = bench.steps.get(("decode", line.decode), [])
        left = right = "does not fit"
        if joint:
            left = f"{line.joint}, {1 / _median(s.seconds for s in joint):.2f}, {_peak(joint)}"
        if first and second:
            rate = 1 / _median(e.seconds + d.seconds for e, d in zip(first, second, strict=True))
            both = f"{line.encode} and {line.decode}"
            right = f"{both}, {rate:.2f}, {max(_peak(first), _peak(second))}"
        ratios = ["", "", ""]
        if joint and first and second:
            ratios = [f"{ratio:.2f}" for ratio in _ratios(bench, joint, first, second)]
        rows.append(f"| {line.label} | {left} | {right} | {' | '.join(ratios)} |")
    return rows


def _ratios(
    bench: Bench, joint: list[Step], first: list[Step], second: list[Step]
) -> tuple[float, float, float]:
    """Joint's time over that of the stages: wall, CPU, and wall of a run with its start; medians
    of the rounds."""
    rounds = list(zip(joint, first, second, strict=True))
    starts = zip(*(bench.starts[mode] for mode in ("joint", "encode", "decode")), strict=True)
    whole = [
        (sj + MANY * j.seconds) / (se + sd + MANY * (e.seconds + d.seconds))
        for (j, e, d), (sj, se, sd) in zip(rounds, starts, strict=True)
    ]
    return (
        _median(j.seconds / (e.seconds + d.seconds) for j, e, d in rounds),
        _median(j.cpu_seconds / (e.cpu_seconds + d.cpu_seconds) for j, e, d in rounds),
        _median(whole),
    )


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _peak(steps: list[Step]) -> int:
    return round(max(step.peak for step in steps) / MIB)


def measure(name: str, model: Path, folder: Path, given: argparse.Namespace) -> None:
    """Measure one checkpoint and print what was found."""
    batches = (1, 2) if given.quick else BATCHES
    tokens = 4 if given.quick else TOKENS
    store = str(folder / f"store-{name}")
    members = publish_clips(store, [8] * (1 + sum(batches)))
    bench = Bench(
        model=model,
        store=store,
        members=members,
        tokens=tokens,
        batches=batches,
    )
    halves = half_bytes(model)
    weights = ", ".join(f"{half} {size / MIB:.0f} MiB" for half, size in halves.items())
    print(f"\n## {name}: {weights}; clips of 8 frames, up to {tokens} new tokens\n")
    lines = compare(bench, max(halves.values()), 1 if given.quick else given.repeat)
    print("\n".join(["", *table(bench, lines)]), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny shapes: does it run at all?")
    options.add_argument("--only", choices=("demo", "large"))
    options.add_argument("--repeat", type=int, default=3)
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.only != "large":
            measure("demo", CHECKPOINT, folder, given)
        if given.only != "demo":
            shape, tokens = (TINY, 4) if given.quick else (LARGE, TOKENS)
            measure("large", build(folder / "model", shape, tokens), folder, given)


if __name__ == "__main__":
    main()
