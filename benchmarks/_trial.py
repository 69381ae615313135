"""One run of the real command line under a budget, what it left behind, and what has to hold of
it and of a plan."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._common import MIB, PENSTOCK, cells
from benchmarks._plan_cases import Row
from flows.checkpoint.precision import QUANTIZED
from flows.results.status import stages_of

HEADS = "budget MiB | precision | run | exit | rungs | peaks MiB | captions | seconds"
SLACK = 0.01
"""Of a budget: how far above it a peak may be, because threads get room for their stacks."""
COUNTED = 500_000_000
"""Bytes from which on a measured peak has to be as planned: below it, libraries are most of it."""
WITHIN = {"cpu": 0.10, "cuda": 0.05}
"""How far a plan may be from what was measured."""
GIVEN_UP = ("out of memory", "killed", "item alone")
"""Reasons of rungs for which something had to fail first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run."""

    name: str
    """Which of those under a budget."""
    precision: str
    """As it was asked for."""
    budget: int
    """Bytes."""
    code: int
    """Exit status."""
    seconds: float
    exit_report: str
    """Of its errors."""
    rungs: tuple[dict[str, Any], ...]
    """Of its record."""
    peaks: dict[str, int]
    """Stage → bytes above what its imports take; of a GPU above what was taken before. Only stages
    that had something to do and are kept to the budget."""
    captions: tuple[dict[str, Any], ...]

    @property
    def failed_rungs(self) -> int:
        """Rungs that it went to because something failed."""
        return sum(rung["reason"] in GIVEN_UP for rung in self.rungs)

    def at(self, stage: str, first: bool) -> str:
        """The rung that a stage began or ended on; empty where it is the one asked for."""
        named = [rung["name"] for rung in self.rungs if rung["stage"] == stage]
        return str(named[0 if first else -1]) if named else ""

    @property
    def precisions(self) -> Counter[str]:
        """What captions say that they were made in → how many; empty of one that does not say."""
        said = (caption.get("precision") or {} for caption in self.captions)
        return Counter(" and ".join(map(str, each.values())) for each in said)

    @property
    def within(self) -> bool:
        """Whether what was measured is within the budget."""
        return max(self.peaks.values(), default=0) <= self.budget * (1 + SLACK)

    def complete(self, clips: int) -> bool:
        """Whether it ended well, with a caption for every clip."""
        return self.code == 0 and len({c["media_path"] for c in self.captions}) == clips

    def row(self) -> str:
        """One line of the table, in Markdown."""
        rungs = "; ".join(f"{r['stage']}: {r['name']} ({r['reason']})" for r in self.rungs)
        said = ", ".join(f"{count} in {name or '?'}" for name, count in self.precisions.items())
        peaks = ", ".join(f"{stage} {peak / MIB:,.0f}" for stage, peak in self.peaks.items())
        told = (f"{self.budget / MIB:,.0f}", self.precision, self.name, self.code)
        words = said if self.code == 0 else self.exit_report.replace("|", "/")
        found = (rungs or "as asked", peaks or "none ran", words, f"{self.seconds:.0f}")
        return cells([*told, *found])


@dataclass(frozen=True, kw_only=True, slots=True)
class Bed:
    """What all runs have in common."""

    folder: Path
    """Where each leaves its outputs; stores too."""
    clips: Path
    model: Path
    device: str
    options: tuple[str, ...]

    def run(self, name: str, precision: str, budget: int, prompt: str, store: str) -> Trial:
        """Caption all clips; what was made before in that store is not made again."""
        out = self.folder / f"out-{budget}-{precision}-{name.replace(' ', '-')}"
        command = [*PENSTOCK, "caption", str(self.clips), "--model", str(self.model), "--quiet"]
        command += ["--out", str(out), "--store", str(self.folder / f"{store}-{budget}")]
        command += ["--precision", precision, "--memory", str(budget), "--prompt", prompt]
        unseen = () if self.device == "cuda" else ("CUDA_VISIBLE_DEVICES",)
        env = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
        env |= dict.fromkeys(unseen, "")
        started = time.monotonic()
        done = subprocess.run(
            [*command, *self.options], env=env, capture_output=True, text=True, check=False
        )
        return read_trial(
            out,
            name=name,
            precision=precision,
            budget=budget,
            code=done.returncode,
            seconds=time.monotonic() - started,
            exit_report=" ".join(done.stderr.split()),
        )


def read_trial(out: Path, **known: Any) -> Trial:
    """A run with what lies in its folder; one that is refused beforehand may have left nothing."""
    try:
        record = json.loads((out / "run.json").read_text(encoding="utf-8"))
        text = (out / "captions.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return Trial(**known, rungs=(), peaks={}, captions=())
    on_gpu = record["plan"].get("device", "cpu") != "cpu"
    peaks = {
        stage.name: stage.taken_bytes
        for stage in stages_of(record, time.time())
        if stage.taken_bytes and not (on_gpu and stage.name == "frames")
    }
    captions = tuple(map(json.loads, text.splitlines()))
    return Trial(**known, rungs=tuple(record["rungs"]), peaks=peaks, captions=captions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Something that has to hold."""

    text: str
    holds: bool

    def row(self) -> str:
        return cells([self.text, "yes" if self.holds else "NO"])


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
        holds={"encode", "decode"} <= first.peaks.keys() and first.within and again.within,
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
            holds="give --" in trial.exit_report.lower(),
        )
    alone = len(trial.precisions) == 1 and not any(q in str(trial.precisions) for q in QUANTIZED)
    return Check(
        text=f"{name}: complete within the budget",
        holds=trial.complete(clips) and alone and trial.within,
    )


def judge_nf4(trial: Trial, clips: int) -> Check:
    """A language half in 4 bit lives in little."""
    return Check(
        text=f"nf4 in {trial.budget / MIB:,.0f} MiB: complete within the budget",
        holds=trial.complete(clips) and trial.within and any("nf4" in p for p in trial.precisions),
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
