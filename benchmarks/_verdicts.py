"""What has to hold of runs under a budget and of a plan; runs nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks._plan_table import Row
from benchmarks._trial import MIB, Trial
from flows.job.obtainable import QUANTIZED

SLACK = 0.01
"""Of a budget: how far above it a peak may be, because threads get room for their stacks."""
COUNTED = 500_000_000
"""Bytes from which on a measured peak has to be as planned: below it, libraries are most of it."""
WITHIN = {"cpu": 0.10, "cuda": 0.05}
"""How far a plan may be from what was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Something that has to hold."""

    text: str
    holds: bool

    def row(self) -> str:
        return f"| {self.text} | {'yes' if self.holds else 'NO'} |"


def judge_auto(first: Trial, again: Trial, clips: int) -> Iterator[Check]:
    """What has to hold of a run under `auto`, and of the one after it."""
    name = f"{first.budget / MIB:,.0f} MiB"
    said = all(first.precisions)
    yield Check(
        text=f"{name}, auto: complete, every caption says its precision",
        holds=first.complete(clips) and said,
    )
    yield Check(
        text=f"{name}, auto: encode and decode keep to the budget",
        holds={"encode", "decode"} <= first.peaks.keys() and within(first) and within(again),
    )
    # What was made before is not made again, so that only decode is there to be looked at.
    same = again.at("decode", True) == first.at("decode", False)
    yield Check(
        text=f"{name}, auto: another prompt starts on the rung that fitted, and nothing fails",
        holds=again.complete(clips) and same and not again.failed_rungs,
    )


def judge_native(trial: Trial, clips: int) -> Check:
    """Complete in nothing but the checkpoint's own precision, or refused with what would fit."""
    name = f"{trial.budget / MIB:,.0f} MiB, native"
    if trial.code == 3:
        return Check(
            text=f"{name}: ends with 3 and says what would fit",
            holds="give --" in trial.last_words.lower(),
        )
    alone = len(trial.precisions) == 1 and not any(q in str(trial.precisions) for q in QUANTIZED)
    return Check(
        text=f"{name}: complete within the budget",
        holds=trial.complete(clips) and alone and within(trial),
    )


def judge_nf4(trial: Trial, clips: int) -> Check:
    """A language half in 4 bit lives in little."""
    return Check(
        text=f"nf4 in {trial.budget / MIB:,.0f} MiB: complete within the budget",
        holds=trial.complete(clips) and within(trial) and any("nf4" in p for p in trial.precisions),
    )


def judge_plan(rows: Sequence[Row], device: str) -> Check:
    """The worst of those that count."""
    most = WITHIN[device]
    counted = [abs(row.error) for row in rows if row.measured >= COUNTED]
    worst = max(counted, default=0.0)
    return Check(
        text=f"plan against measured: worst error {worst:.1%} of {len(counted)} cases of 500 MB "
        f"and more, {most:.0%} allowed",
        holds=worst <= most,
    )


def within(trial: Trial) -> bool:
    """Whether what was measured is within the budget."""
    return trial.largest <= trial.budget * (1 + SLACK)
