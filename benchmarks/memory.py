"""Whether a budget is kept to and what does not fit is survived, on a model with the tensors of
LLaVA-1.5-7B and random weights, through the real command line; prints tables, and ends with 1 where
something does not hold.

Under each budget clips are captioned with `--precision auto`, then again with another prompt, which
has to start where the first run ended, then with `--precision native`, which has to be complete or
to end with 3 and to say what would fit. It starts the command line and reads its records.

    python -m benchmarks.memory [--device cpu|cuda] [--shape 7b|small] [--clips 50]
                                [--budgets 4GiB,8GiB,16GiB] [--folder DIR] [--skip nf4]
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.errors import UsageError
from artifacts.option_texts import parse_size
from flows.core.checkpoint.precision import QUANTIZED, resolve_settings
from flows.core.job.plan_record import RungRecord
from flows.core.options.commands import CaptionConfig
from flows.outputs.record.run_read import load_record
from flows.outputs.run_status import stages_of
from stages.models.inspection import describe
from stages.process.device import device_name
from tests.support.builders.common import MIB, PENSTOCK, cells, heads
from tests.support.builders.llava import SEVEN_B, SMALL, TINY, Llava, build

PROMPTS = ("What is to be seen?", "What is going on??", "What is happening?")
"""As long as each other, so that what a run takes is the same."""
FRAMES = 2
"""A clip."""
HEADS = "budget MiB | precision | run | exit | rungs | peaks MiB | captions | seconds"
SLACK = 0.01
"""Of a budget: how far above it a peak may be, because threads get room for their stacks."""
GIVEN_UP = ("out of memory", "killed", "item alone")
"""Reasons of rungs for which something had to fail first."""


class Setting(NamedTuple):
    """A model and what is tried on it."""

    llava: Llava
    tokens: int
    """A caption."""
    budgets: str
    """As given; `1.3x` is times the language half's weights as they are loaded."""
    nf4: str
    """The budget that nf4 has to live in."""


SETTINGS = {
    "7b": Setting(SEVEN_B, 16, budgets="4GiB,8GiB,16GiB", nf4="6GiB"),
    "small": Setting(SMALL, 8, budgets="0.8x,1.3x,2x", nf4="0.9x"),
    "tiny": Setting(TINY, 2, budgets="1.7x,3.5x", nf4="3.5x"),
}


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
    rungs: tuple[RungRecord, ...]
    """Of its record."""
    peaks: dict[str, int]
    """Stage → bytes above what its imports take; of a GPU above what was taken before. Only stages
    that had something to do and are kept to the budget."""
    captions: tuple[dict[str, Any], ...]

    @property
    def failed_rungs(self) -> int:
        """Rungs that it went to because something failed."""
        return sum(rung.reason in GIVEN_UP for rung in self.rungs)

    def at(self, stage: str, first: bool) -> str:
        """The rung that a stage began or ended on; empty where it is the one asked for."""
        named = [rung.name for rung in self.rungs if rung.stage == stage]
        return str(named[0 if first else -1]) if named else ""

    @property
    def precisions(self) -> Counter[str]:
        """What captions say that they were made in → how many; empty of one that does not say."""
        text = (caption.get("precision") or {} for caption in self.captions)
        return Counter(" and ".join(map(str, each.values())) for each in text)

    @property
    def within(self) -> bool:
        """Whether what was measured is within the budget."""
        return max(self.peaks.values(), default=0) <= self.budget * (1 + SLACK)

    def complete(self, clips: int) -> bool:
        """Whether it ended well, with a caption for every clip."""
        return self.code == 0 and len({c["media_path"] for c in self.captions}) == clips

    def row(self) -> str:
        """One line of the table, in Markdown."""
        rungs = "; ".join(f"{r.stage}: {r.name} ({r.reason})" for r in self.rungs)
        text = ", ".join(f"{count} in {name or '?'}" for name, count in self.precisions.items())
        peaks = ", ".join(f"{stage} {peak / MIB:,.0f}" for stage, peak in self.peaks.items())
        message = (f"{self.budget / MIB:,.0f}", self.precision, self.name, self.code)
        words = text if self.code == 0 else self.exit_report.replace("|", "/")
        found = (rungs or "as asked", peaks or "none ran", words, f"{self.seconds:.0f}")
        return cells([*message, *found])


class Bed(NamedTuple):
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
        record = load_record(out)
        text = (out / "captions.jsonl").read_text(encoding="utf-8")
    except (FileNotFoundError, UsageError):
        return Trial(**known, rungs=(), peaks={}, captions=())
    on_gpu = record.plan.device != "cpu"
    peaks = {
        stage.name: stage.taken_bytes
        for stage in stages_of(record, time.time())
        if stage.taken_bytes and not (on_gpu and stage.name == "frames")
    }
    captions = tuple(map(json.loads, text.splitlines()))
    return Trial(**known, rungs=tuple(record.rungs), peaks=peaks, captions=captions)


class Check(NamedTuple):
    """Something that has to hold."""

    text: str
    holds: bool

    def row(self) -> str:
        return cells([self.text, "yes" if self.holds else "NO"])


def judge_auto(first: Trial, again: Trial, clips: int) -> Iterator[Check]:
    """What has to hold of a run under `auto`, and of the one after it."""
    name = f"{first.budget / MIB:,.0f} MiB, auto"
    complete = first.complete(clips) and all(first.precisions)
    yield Check(f"{name}: complete, every caption says its precision", complete)
    both = {"encode", "decode"} <= first.peaks.keys()
    kept = both and first.within and again.within
    yield Check(f"{name}: encode and decode keep to the budget", kept)
    # What was made before is not made again, so that only decode is there to be looked at.
    same = again.at("decode", True) == first.at("decode", False)
    yield Check(
        f"{name}: another prompt starts on the rung that fitted, and nothing fails",
        again.complete(clips) and same and not again.failed_rungs,
    )


def judge_native(trial: Trial, clips: int) -> Check:
    """Complete in nothing but the checkpoint's own precision, or refused with what would fit."""
    name = f"{trial.budget / MIB:,.0f} MiB, native"
    if trial.code == 3:
        message = "give --" in trial.exit_report.lower()
        return Check(f"{name}: ends with 3 and says what would fit", message)
    alone = len(trial.precisions) == 1 and not any(q in str(trial.precisions) for q in QUANTIZED)
    complete = trial.complete(clips) and alone and trial.within
    return Check(f"{name}: complete within the budget", complete)


def judge_nf4(trial: Trial, clips: int) -> Check:
    """A language half in 4 bit lives in little."""
    quantized = any("nf4" in precision for precision in trial.precisions)
    complete = trial.complete(clips) and trial.within and quantized
    return Check(f"nf4 in {trial.budget / MIB:,.0f} MiB: complete within the budget", complete)


def budgets_of(message: str, weights: int) -> list[int]:
    """Bytes of `8GiB,1.3x`; the latter are times `weights`."""
    return [
        round(float(each.removesuffix("x")) * weights)
        if each.endswith("x")
        else parse_size(each, "--memory")
        for each in message.split(",")
    ]


def try_budgets(bed: Bed, budgets: Sequence[int], clips: int) -> list[Check]:
    """All runs under each budget; prints a line of each."""
    found: list[Check] = []
    shrunk = False
    for budget in budgets:
        runs = [("first", "auto"), ("another prompt", "auto"), ("a third prompt", "native")]
        trials = []
        for prompt, (name, precision) in zip(PROMPTS, runs, strict=True):
            trials.append(bed.run(name, precision, budget, prompt, "store"))
            print(trials[-1].row(), flush=True)
        first, again, native = trials
        found += [*judge_auto(first, again, clips), judge_native(native, clips)]
        shrunk = shrunk or any(rung.stage != "frames" for rung in first.rungs)
    text = "the default batch exceeds a budget, and `run.json` shows the rungs"
    return [*found, Check(text=text, holds=shrunk)]


def measure(given: argparse.Namespace, folder: Path) -> list[Check]:
    """Everything that was not skipped; prints what is found."""
    from penstock_demo.clips import write_clips

    setting, device = SETTINGS[given.shape], "cuda:0" if given.device == "cuda" else "cpu"
    model = folder / "models" / given.shape
    if not (model / "config.json").exists():
        build(model, setting.llava, setting.tokens)
    profile = describe(model)
    halves = resolve_settings(CaptionConfig(sources=()), profile, device)
    weights = {half: settings[0].weight_bytes for half, settings in halves.items()}
    message = ", ".join(f"{half} {size / MIB:,.0f} MiB" for half, size in weights.items())
    print(f"LLaVA-shaped, {given.shape}: {message}; {given.clips} clips of {FRAMES} frames")
    found: list[Check] = []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        clips = Path(made, "clips")
        write_clips(clips, given.clips, 7)
        (clips / "truth.jsonl").unlink()  # not a list of sources
        options = ("--frames", str(FRAMES), "--max-new-tokens", str(setting.tokens))
        bed = Bed(folder=Path(made), clips=clips, model=model, device=given.device, options=options)
        print(heads(HEADS), flush=True)
        if "nf4" not in given.skip:
            budget = budgets_of(setting.nf4, weights["language"])[0]
            trial = bed.run("first", "nf4", budget, PROMPTS[0], "nf4")
            print(trial.row(), flush=True)
            found.append(judge_nf4(trial, given.clips))
        budgets = budgets_of(given.budgets or setting.budgets, weights["language"])
        found += try_budgets(bed, budgets, given.clips)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", choices=("cpu", "cuda"), default=device_name().split(":")[0])
    options.add_argument("--shape", choices=SETTINGS, help="7b on a GPU, small elsewhere")
    options.add_argument("--clips", type=int, default=50)
    options.add_argument("--budgets", help="such as 8GiB, or 1.3x the language half's weights")
    options.add_argument("--folder", type=Path, help="where the model is kept for the next time")
    options.add_argument("--skip", default="", help="nf4")
    given = options.parse_args(arguments)
    given.shape = given.shape or ("7b" if given.device == "cuda" else "small")
    with tempfile.TemporaryDirectory() as made:
        checks = measure(given, given.folder or Path(made))
    print("\n".join(["", heads("what | holds"), *(check.row() for check in checks)]))
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
