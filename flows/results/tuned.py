"""Reads the results of a training run from an adapter's folder, which a user may have changed.
Trains nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.captions import Failure
from artifacts.errors import UsageError
from artifacts.shapes import MapOf, anything, count, number, read_json
from artifacts.words import counted
from flows.results.run_record import RUN_RECORD
from stages.models.adapters.reading import ADAPTER_WEIGHTS
from stages.models.hub.headers import read_metadata
from stages.models.published import AS_PUBLISHED, FIELD
from stages.tune import STAGE
from stages.tune.job import CHECKPOINT, RECORD, SCORE

RUN = "run"
"""Folder of an adapter's folder for the record and the logs of the run."""
AGAIN = "Train it again: penstock tune DATA --model MODEL --out ADAPTER"
SCORE_SHAPE = {
    "exact": number,
    "words": number,
    "loss": number,
    "samples": [{"said": anything, "right": anything}],
}
SHAPE = {
    "recipe": MapOf(anything),
    "finished": lambda value: isinstance(value, bool),
    "steps": count,
    "examples": count,
    "held_out": count,
    "losses": [number],
    "memory_bytes": [count],
    "held_out_losses": [anything],
    "best_step": count,
    "scores": [{"step": count, **SCORE_SHAPE}],
}
"""Shape of `tune.json`."""
ASKED = {
    "data": "the captions",
    "model": "the model",
    "rank": "--lora-rank",
    "steps": "--steps or --epochs",
    "batch": "--batch-size",
    "rate": "--lr",
    "seed": "--seed",
    "precision": "--precision",
    "optimizer": "--optimizer",
    "resume": "--resume",
}
"""Entry of a recipe → what a person asked by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneResult:
    """The result of a training or scoring run."""

    out: Path

    exit_code = 0
    made = 1
    """Number of adapters, or of scores."""

    @property
    def failures(self) -> list[Failure]:
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned(TuneResult):
    """The end of a training run, or its progress."""

    record: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"adapter": str(self.out), **self.record}

    def row(self) -> dict[str, Any]:
        """Return the outcome as a row of a table."""
        told = {name: self.record[name] for name in ("steps", "examples", "held_out")}
        last = self.record["scores"][-1] if self.record["scores"] else {}
        shown = {name: last[name] for name in ("exact", "words", "loss") if name in last}
        return {"adapter": str(self.out), **told, **shown}

    def line(self) -> str:
        """Return the outcome in one line."""
        losses, scores = self.record["losses"], self.record["scores"]
        line = counted(self.record["steps"], "step")
        if losses:
            line += f": loss {losses[0]:.3f} to {losses[-1]:.3f}"
        if len(scores) > 1:
            first, last = scores[0], scores[-1]
            line += (
                f"; of {counted(self.record['held_out'], 'caption')} held out "
                f"{first['exact']:.0%} were exact before and {last['exact']:.0%} are now"
            )
        end = "the adapter is in" if self.record["finished"] else "it is not finished, in"
        return f"{line}; {end} {self.out}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterScore(TuneResult):
    """How close a model comes to the reference captions, with or without an adapter."""

    adapter: str
    """Folder of the adapter; empty: the model alone."""
    score: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"adapter": self.adapter, **self.score}

    def row(self) -> dict[str, Any]:
        """Return the outcome as a row of a table."""
        shown = {name: self.score[name] for name in ("captions", "exact", "words", "loss")}
        return {"adapter": self.adapter, **shown}

    def line(self) -> str:
        """Return the outcome in one line."""
        who = f"with the adapter in {self.adapter}" if self.adapter else "without an adapter"
        return (
            f"{who}: of {counted(self.score['captions'], 'caption')} {self.score['exact']:.0%} are "
            f"exact, {self.score['words']:.0%} of words are common, loss {self.score['loss']:.3f}"
        )


def tuned_in(out: Path) -> Tuned:
    """Return the training of an adapter's folder. Raises EnvironmentFault."""
    return Tuned(out=out, record=read_json(out / RECORD, SHAPE, AGAIN, _told_since))


def _told_since(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with what older versions did not write."""
    return {"finished": True, "memory_bytes": [], **record}


def scored_in(out: Path, adapter: str) -> AdapterScore:
    """Return the last score in an adapter's folder. Raises EnvironmentFault."""
    shape = {"captions": count, **SCORE_SHAPE}
    return AdapterScore(
        out=out, adapter=adapter, score=read_json(out / RUN / SCORE, shape, AGAIN, dict)
    )


def begun_way(out: Path) -> bool | None:
    """Return whether the training in a folder was begun as published, which one that does not say
    was not; None: none was begun."""
    if (out / RECORD).is_file():
        return bool(tuned_in(out).record["recipe"].get("as_published", False))
    if (out / ADAPTER_WEIGHTS).is_file():
        return read_metadata(out / ADAPTER_WEIGHTS).get(FIELD) == AS_PUBLISHED
    return False if (out / CHECKPOINT).is_file() else None


def refuse_other(out: Path, recipe: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse to train where an adapter lies that was trained otherwise, as far as a recipe tells,
    unless it is to be gone on with. Raises UsageError."""
    if resume or not (out / ADAPTER_WEIGHTS).is_file():
        return
    if not (out / RECORD).is_file():
        why = "was not trained here"
    else:
        found = tuned_in(out).record["recipe"]
        told = {name: words for name, words in ASKED.items() if name in recipe}
        others = [words for name, words in told.items() if found.get(name) != recipe[name]]
        if not others:
            return
        why = f"was trained otherwise ({', '.join(others)})"
    raise UsageError(
        f"the adapter in {out} {why}",
        hint="Give another --out, or --resume to begin with it",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFound:
    """The state of a training run as read from its folder."""

    run: Path
    """Folder of the record of its run."""
    tuned: Tuned | None
    """What it learned; None: it has made no step yet."""

    def line(self) -> str:
        """Return in a line how it stands."""
        return self.tuned.line() if self.tuned is not None else "no step is made yet"


def training_in(out: Path) -> TrainingFound | None:
    """Return the training that a folder is of; None for any other. Raises EnvironmentFault."""
    run, made = out / RUN, (out / RECORD).is_file()
    if (out / RUN_RECORD).exists() or not (made or _is_of_training(run)):
        return None
    return TrainingFound(run=run, tuned=tuned_in(out) if made else None)


def _is_of_training(run: Path) -> bool:
    return (run / RUN_RECORD).is_file() and (run / "logs" / f"{STAGE.name}.log").exists()
