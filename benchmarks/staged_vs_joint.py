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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks._bench import BATCHES, Bench
from benchmarks._models import LARGE, TINY, build, half_bytes, publish_clips
from benchmarks._modes import Outcome
from demo import CHECKPOINT

BUDGETS = (1.1, 1.5, 2.0, 4.0)
"""Times the larger half's weights."""
SLACK = 0.05
"""Of the larger half's weights: how far the tightest budget of joint is above what it took, because
the kernel counts what malloc holds back as well."""
CLIPS = {"demo": 31, "large": 16}
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
    # In this order: decoding reads the features that encoding made.
    peaks = {mode: bench.peaks(mode) for mode in ("encode", "decode", "joint")}
    for mode, found in peaks.items():
        sizes = ", ".join(f"{size}: {peak / MIB:.0f}" for size, peak in found.items())
        print(f"peak of {mode} in MiB at batch {sizes}", flush=True)
    lines = []
    budgets = {f"{times} x": round(times * larger) for times in BUDGETS}
    least = peaks["joint"][1] + round(SLACK * larger)
    budgets[f"{least / larger:.2f} x (joint's least)"] = least
    for label, budget in sorted(budgets.items(), key=lambda item: item[1]):
        taken = {mode: bench.largest(mode, budget, peaks[mode]) for mode in peaks}
        lines.append(Line(label=f"{label} = {budget / MIB:.0f} MiB", **taken))
    for size in (bench.batches[0], bench.batches[-2]):
        lines.append(Line(label=f"equal batch {size}", joint=size, encode=size, decode=size))
    wanted = {(mode, getattr(line, mode)) for line in lines for mode in peaks}
    for done in range(repeat):
        for mode, size in sorted(wanted, key=lambda item: (item[1], item[0])):
            if size and len(bench.found.get((mode, size), ())) <= done:
                bench.timed(mode, size)
    return lines


def table(bench: Bench, lines: list[Line]) -> list[str]:
    """Markdown: a row a line."""
    rows = [
        "| budget | joint: batch, captions/s, MiB | staged: batches, captions/s, MiB "
        "| ratio | CPU | with start-up |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        made = bench.clips
        joint = bench.found.get(("joint", line.joint), [])
        pairs = list(
            zip(
                bench.found.get(("encode", line.encode), []),
                bench.found.get(("decode", line.decode), []),
                strict=False,
            )
        )
        left = right = "does not fit"
        if joint:
            rate = made / _median([o.seconds for o in joint])
            left = f"{line.joint}, {rate:.2f}, {_peak(joint)}"
        if pairs:
            rate = made / _median([e.seconds + d.seconds for e, d in pairs])
            peak = max(_peak([e for e, _ in pairs]), _peak([d for _, d in pairs]))
            right = f"{line.encode} and {line.decode}, {rate:.2f}, {peak}"
        ratios = ["", "", ""]
        if joint and pairs:
            for at, name in enumerate(("seconds", "cpu_seconds", "whole_seconds")):
                both = zip(joint, pairs, strict=False)
                of = [
                    getattr(j, name) / (getattr(e, name) + getattr(d, name)) for j, (e, d) in both
                ]
                ratios[at] = f"{_median(of):.2f}"
        rows.append(f"| {line.label} | {left} | {right} | {' | '.join(ratios)} |")
    return rows


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _peak(outcomes: list[Outcome]) -> int:
    return round(max(outcome.peak for outcome in outcomes) / MIB)


def measure(name: str, model: Path, folder: Path, given: argparse.Namespace) -> None:
    """Measure one checkpoint and print what was found."""
    batches = (1, 2) if given.quick else BATCHES
    clips = 3 if given.quick else CLIPS[name]
    tokens = 4 if given.quick else TOKENS
    store = str(folder / f"store-{name}")
    members = publish_clips(store, [8] * max(clips, sum(batches)))
    bench = Bench(
        model=model,
        store=store,
        members=members,
        clips=clips,
        tokens=tokens,
        batches=batches,
    )
    halves = half_bytes(model)
    weights = ", ".join(f"{half} {size / MIB:.0f} MiB" for half, size in halves.items())
    print(f"\n## {name}: {weights}; {clips} clips of 8 frames, up to {tokens} new tokens\n")
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
