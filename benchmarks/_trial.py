"""One run of the real command line under a budget, and what it left behind; knows not what is
expected of it."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.results.status import stages_of

PENSTOCK = [sys.executable, "-m", "flows.cli.main"]
GIVEN_UP = ("out of memory", "killed", "item alone")
"""Reasons of rungs for which something had to fail first."""
MIB = 1 << 20


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
    last_words: str
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

    @property
    def largest(self) -> int:
        """The highest peak, in bytes."""
        return max(self.peaks.values(), default=0)

    def at(self, stage: str, first: bool) -> str:
        """The rung that a stage began or ended on; empty where it is the one asked for."""
        named = [rung["name"] for rung in self.rungs if rung["stage"] == stage]
        return str(named[0 if first else -1]) if named else ""

    @property
    def precisions(self) -> Counter[str]:
        """What captions say that they were made in → how many; empty of one that does not say."""
        said = (caption.get("precision") or {} for caption in self.captions)
        return Counter(" and ".join(map(str, each.values())) for each in said)

    def complete(self, clips: int) -> bool:
        """Whether it ended well, with a caption for every clip."""
        return self.code == 0 and len({c["media_path"] for c in self.captions}) == clips

    def row(self) -> str:
        """One line of the table, in Markdown."""
        rungs = "; ".join(f"{r['stage']}: {r['name']} ({r['reason']})" for r in self.rungs)
        said = ", ".join(f"{count} in {name or '?'}" for name, count in self.precisions.items())
        peaks = ", ".join(f"{stage} {peak / MIB:,.0f}" for stage, peak in self.peaks.items())
        cells = (
            f"{self.budget / MIB:,.0f}",
            self.precision,
            self.name,
            str(self.code),
            rungs or "as asked",
            peaks or "none ran",
            said if self.code == 0 else self.last_words.replace("|", "/"),
            f"{self.seconds:.0f}",
        )
        return f"| {' | '.join(cells)} |"


HEADS = (
    "budget MiB",
    "precision",
    "run",
    "exit",
    "rungs",
    "peaks MiB",
    "captions",
    "seconds",
)


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
            last_words=" ".join(done.stderr.split()),
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
