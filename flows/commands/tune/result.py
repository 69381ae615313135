"""Reads and validates the results of a training run from an adapter's folder. Trains nothing."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.json_records import json_of, read_json_file
from artifacts.disk.json_shapes import Json
from artifacts.errors import PenstockError, UsageError
from artifacts.texts.captions import Failure
from artifacts.wording import counted
from flows.commands.tune.report import training_facts
from flows.outputs.record.run_record import RUN_RECORD
from stages.models.adapter_modules import ADAPTER_WEIGHTS
from stages.tune import CHECKPOINT, EACH, RECORD, SCORE, STAGE
from stages.tune.record import ScoreRecord, TrainingRecord

RUN = "run"
"""Subfolder of an adapter's folder for the record and the logs of the run."""
TRAIN_AGAIN = "Train it again: penstock tune DATA --model MODEL --out ADAPTER"
RECIPE_OPTIONS = {
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
"""Entry of a recipe → the option or input that sets it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneResult:
    """The result of a training or scoring run."""

    out: Path

    exit_code = 0
    made = 1
    """Number of adapters or scores."""

    @property
    def failures(self) -> list[Failure]:
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned(TuneResult):
    """The result of a training run, or its progress."""

    record: TrainingRecord

    def to_json(self) -> dict[str, Json]:
        return {"adapter": str(self.out), **json_of(self.record)}

    def row(self) -> dict[str, Json]:
        record = self.record
        counts = {"steps": record.steps, "examples": record.examples, "held_out": record.held_out}
        row: dict[str, Json] = {"adapter": str(self.out), **counts}
        if record.scores:
            last = record.scores[-1]
            row |= {"exact": last.exact, "words": last.words, "loss": last.loss}
        return row

    def line(self) -> str:
        losses, scores = self.record.losses, self.record.scores
        line = counted(self.record.steps, "step")
        if losses:
            line += f": loss {losses[0]:.3f} to {losses[-1]:.3f}"
        if len(scores) > 1:
            line += (
                f"; exact on {counted(self.record.held_out, 'held-out caption')}: "
                f"{scores[0].exact:.0%} before, {scores[-1].exact:.0%} now"
            )
        state = "adapter" if self.record.finished else "unfinished adapter"
        return f"{line}; {state} in {self.out}"

    __repr__ = line


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterScore(TuneResult):
    """How close a model comes to the reference captions, with or without an adapter."""

    adapter: str
    """Folder of the adapter; empty: the model without an adapter."""
    score: ScoreRecord

    def to_json(self) -> dict[str, Json]:
        score = json_of(replace(self.score, each=[]))
        del score[EACH]
        return {"adapter": self.adapter, **score}

    def row(self) -> dict[str, Json]:
        score = self.score
        shown = {"exact": score.exact, "words": score.words, "loss": score.loss}
        return {"adapter": self.adapter, "captions": score.captions, **shown}

    def line(self) -> str:
        label = f"with the adapter in {self.adapter}" if self.adapter else "without an adapter"
        return (
            f"{label}: {counted(self.score.captions, 'caption')}, {self.score.exact:.0%} "
            f"exact, {self.score.words:.0%} of words in common, loss {self.score.loss:.3f}"
        )

    __repr__ = line


def tuned_in(out: Path) -> Tuned:
    """Return the training of an adapter's folder. Raises EnvironmentFault."""
    record = read_json_file(TrainingRecord, out / RECORD, TRAIN_AGAIN)
    return Tuned(out=out, record=record)


def steps_in(out: Path, recipe: Mapping[str, Json]) -> int:
    """Return the number of steps of this recipe from which a training in a folder goes on."""
    if not (out / CHECKPOINT).is_file():
        return 0
    with contextlib.suppress(PenstockError):  # without a record it goes on all the same
        record = tuned_in(out).record
        return len(record.losses) * (digest_of(record.recipe) == digest_of(dict(recipe)))
    return 0


def scored_in(out: Path, adapter: str) -> AdapterScore:
    """Return the last score in an adapter's folder. Raises EnvironmentFault."""
    score = read_json_file(ScoreRecord, out / RUN / SCORE, TRAIN_AGAIN)
    return AdapterScore(out=out, adapter=adapter, score=score)


def refuse_other_recipe(out: Path, recipe: Mapping[str, Json], *, resume: bool) -> None:
    """Refuse to train into a folder whose adapter has another recipe, unless `resume`. Raises
    UsageError."""
    if resume or not (out / ADAPTER_WEIGHTS).is_file():
        return
    if not (out / RECORD).is_file():
        why = "has no training record"
    else:
        trained = tuned_in(out).record.recipe
        described = {name: option for name, option in RECIPE_OPTIONS.items() if name in recipe}
        others = [option for name, option in described.items() if trained.get(name) != recipe[name]]
        if not others:
            return
        why = f"was trained with other settings ({', '.join(others)})"
    raise UsageError(
        f"the adapter in {out} {why}", hint="Give another --out, or --resume to continue from it"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFound:
    """The state of a training run as read from its folder."""

    run: Path
    """Folder of the record of its run."""
    tuned: Tuned | None
    """The training record; None: no step is finished yet."""

    @property
    def reported_run(self) -> Path:
        return self.run

    def lines(self) -> Iterator[str]:
        """Yield the state in one line."""
        yield self.tuned.line() if self.tuned is not None else "no step is finished yet"

    def to_json(self) -> dict[str, Json]:
        return {"training": None if self.tuned is None else self.tuned.to_json()}

    def about(self) -> Iterator[tuple[str, str]]:
        """Yield nothing: the run's rows say all."""
        yield from ()

    def sections(self) -> dict[str, Json]:
        """Return its curves and samples, once a step is finished."""
        if self.tuned is None:
            return {}
        return {"training": training_facts(self.tuned.line(), self.tuned.record)}


def training_in(out: Path) -> TrainingFound | None:
    """Return the training in a folder; None for any other folder. Raises EnvironmentFault."""
    run, is_finished = out / RUN, (out / RECORD).is_file()
    begun = (run / RUN_RECORD).is_file() and (run / "logs" / f"{STAGE.name}.log").exists()
    if (out / RUN_RECORD).exists() or not (is_finished or begun):
        return None
    return TrainingFound(run=run, tuned=tuned_in(out) if is_finished else None)
