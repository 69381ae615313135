"""Captions a second and peak memory of staged captioning against stock joint `generate`, at equal
batch and at equal budgets; prints the tables of docs/performance.md.

Every measurement is a process of its own, `tests.support.builders.modes`, and runs of both sides
alternate. A budget is what a process may take above its libraries, weights included; it is enforced
by the kernel, and each side takes the largest batch that lives.

    python -m benchmarks.staged_vs_joint [--quick] [--only demo|large] [--repeat 3]
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

from artifacts.digests import digest_of
from penstock_demo import CHECKPOINT
from tests.support.builders.common import MIB, cells, heads
from tests.support.builders.models import FRAMES, LARGE, TINY, build, half_bytes, publish_clips
from tests.support.builders.modes import Outcome, run_mode

BATCHES = (1, 2, 4, 8, 16)
Member = dict[str, str]
"""What a job says of one clip."""

BUDGETS = (1.1, 1.5, 2.0, 4.0)
"""Times the larger half's weights."""
SLACK = 0.05
"""Of the larger half's weights: how far the tightest budget of joint is above what it took, because
the kernel counts what malloc holds back as well."""
MODES = ("encode", "decode", "joint")
"""In this order: decoding reads the features that encoding made."""
MANY = 200
"""Clips of the run whose start-up time is reported."""
TOKENS = 32


class Step(NamedTuple):
    """One batch."""

    seconds: float
    """Wall seconds a clip."""
    cpu_seconds: float
    """CPU seconds a clip, of all threads."""
    peak: int
    """Bytes."""


@dataclass(kw_only=True, slots=True)
class Bench:
    """One checkpoint with its clips, and all that was measured on it."""

    model: Path
    store: str
    members: list[Member]
    tokens: int
    """New tokens a caption."""
    batches: tuple[int, ...] = BATCHES
    steps: dict[tuple[str, int], list[Step]] = field(default_factory=dict)
    """(mode, batch) → what it took, one a round."""
    starts: dict[str, list[float]] = field(default_factory=dict)
    """Mode → seconds of a process outside its steady state: start, import and load."""
    lived: dict[tuple[str, int], int] = field(default_factory=dict)
    """(mode, batch) → a budget in bytes within which it was seen to live."""
    features: str = ""
    """Namespace of the features that decoding reads: those of the first encoding."""
    _namespaces: int = 0

    def run(self, mode: str, cut: Sequence[Sequence[Member]], budget: int | None = None) -> Outcome:
        """One run of a mode over batches of members, published where nothing is yet."""
        self._namespaces += 1
        namespace = digest_of(["namespace", self._namespaces])
        if mode == "encode" and not self.features:
            self.features = namespace
        job = {
            "store": self.store,
            "model": str(self.model),
            "device": "cpu",
            "dtype": "bfloat16",
            "attention": "sdpa",
            "frames_namespace": FRAMES,
            "features_namespace": self.features,
            "namespace": namespace,
            "max_new_tokens": self.tokens,
            "batches": [[_entry(mode, member) for member in batch] for batch in cut],
        }
        return run_mode(mode, job, budget)

    def ladder(self, mode: str) -> None:
        """One process that takes a batch of each size in turn, each larger than the last; the
        first batch warms it up and does not count."""
        sizes, cut, at = (1, *self.batches), [], 0
        for size in sizes:
            cut.append(self.members[at : at + size])
            at += size
        outcome = self.run(mode, cut)
        self.starts.setdefault(mode, []).append(outcome.whole_seconds - outcome.seconds)
        before, end = outcome.marks[0], 0
        for size in self.batches:
            end += size
            mark = outcome.marks[end]
            seconds, cpu = ((mark[i] - before[i]) / size for i in (0, 1))
            step = Step(seconds=seconds, cpu_seconds=cpu, peak=mark[2])
            self.steps.setdefault((mode, size), []).append(step)
            before = mark

    def peak(self, mode: str, size: int) -> int:
        """The highest memory of a batch of that size in any round, in bytes."""
        return max(step.peak for step in self.steps[mode, size])

    def largest(self, mode: str, budget: int) -> int:
        """The largest batch that lives within the budget; 0 when none does. It is tried for real,
        also where the peak says that it would not fit."""
        fitting = [size for size in self.batches if self.peak(mode, size) <= budget]
        for size in sorted(fitting, reverse=True) or [self.batches[0]]:
            if budget >= self.lived.get((mode, size), budget + 1):
                return size
            if not self.run(mode, [self.members[:size]], budget).died:
                self.lived[mode, size] = budget
                return size
        return 0


def _entry(mode: str, member: Member) -> Member:
    features = digest_of(["features", member["frames"]])
    key = features if mode == "encode" else digest_of(["caption", member["frames"]])
    return {**member, "key": key, "features": features}


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
    message = (
        "joint: batch, captions/s, MiB | staged: batches, captions/s, MiB | ratio | in CPU time"
    )
    rows = heads(f" | {message} | of {MANY} clips with start-up").splitlines()
    for line in lines:
        joint = bench.steps.get(("joint", line.joint), [])
        first = bench.steps.get(("encode", line.encode), [])
        second = bench.steps.get(("decode", line.decode), [])
        left = right = "does not fit"
        if joint:
            left = f"{line.joint}, {1 / median(s.seconds for s in joint):.2f}, {_peak(joint)}"
        if first and second:
            rate = 1 / median(e.seconds + d.seconds for e, d in zip(first, second, strict=True))
            both = f"{line.encode} and {line.decode}"
            right = f"{both}, {rate:.2f}, {max(_peak(first), _peak(second))}"
        ratios = ["", "", ""]
        if joint and first and second:
            ratios = [f"{ratio:.2f}" for ratio in _ratios(bench, joint, first, second)]
        rows.append(cells([line.label, left, right, *ratios]))
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
        median(j.seconds / (e.seconds + d.seconds) for j, e, d in rounds),
        median(j.cpu_seconds / (e.cpu_seconds + d.cpu_seconds) for j, e, d in rounds),
        median(whole),
    )


def _peak(steps: list[Step]) -> int:
    return round(max(step.peak for step in steps) / MIB)


def measure(name: str, model: Path, folder: Path, given: argparse.Namespace) -> None:
    """Measure one checkpoint and print what was found."""
    batches = (1, 2) if given.quick else BATCHES
    tokens = 4 if given.quick else TOKENS
    store = str(folder / f"store-{name}")
    members = publish_clips(store, [8] * (1 + sum(batches)))
    bench = Bench(model=model, store=store, members=members, tokens=tokens, batches=batches)
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
