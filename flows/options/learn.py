"""Options of `penstock learn`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from artifacts.options import Option
from flows.options.commands import CaptionConfig
from flows.options.model import TRUST_HELP, MemoryOptions
from flows.options.text import TrustOptions
from flows.options.tune import EPOCHS, TRAINING, StepOptions, TrainingOptions, TuneRun

LEAST = 40
"""Fewest corrected or accepted captions from which an adapter is accepted by its score."""
LEAST_STEPS = 100
"""Fewest optimizer steps, unless requested. With 8 epochs of 31 captions (32 steps) an adapter of
the demo model wrote broken captions; with 100 steps it had the new style."""


@dataclass(frozen=True, kw_only=True)
class LearnRun(TuneRun):
    """The run that trains or scores an adapter on the features of a caption run."""


@dataclass(frozen=True, kw_only=True)
class LearnConfig(TrustOptions, StepOptions, MemoryOptions):
    """One round of learning. Field names equal the option names of the command line."""

    out: Annotated[
        str,
        Option(
            "output folder of `penstock caption` [penstock-out]",
            metavar="OUT",
            positional=True,
            nargs="?",
            not_empty="Name a folder, or leave it out: penstock-out",
            path=True,
        ),
    ] = "penstock-out"
    """Output folder of a caption run whose captions were reviewed."""
    journal: Annotated[
        tuple[str, ...],
        Option(
            "edits.jsonl of a copy of OUT whose edits are added; repeatable",
            TRAINING,
            "FILE",
            repeated=True,
            path=True,
        ),
    ] = ()
    """Journals (`edits.jsonl`) of copies of the folder, whose edits are added to it."""
    anyway: Annotated[
        bool,
        Option(f"train on fewer than {LEAST} captions, without accepting the adapter", TRAINING),
    ] = False
    """Whether to train on fewer corrections than are needed to accept an adapter."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, TRAINING)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRun:
    """The caption run that a round repeats."""

    config: CaptionConfig
    command: Mapping[str, Any] | None = None
    """Its command as `run.json` states it; None: a program ran it."""

    def training(self, config: LearnConfig, examples: int, *, resume: bool) -> TrainingOptions:
        """Return the settings of the training of a round on so many examples."""
        own = {field.name: getattr(config, field.name) for field in fields(StepOptions)}
        if config.epochs is None and config.steps is None:
            own["steps"] = max(LEAST_STEPS, math.ceil(EPOCHS * examples / config.batch_size))
        limit = self.config.max_new_tokens
        return TrainingOptions(**own, validate=0.0, resume=resume, max_new_tokens=limit)

    def tuning(self, config: LearnConfig, out: Path, tokens: int, adapter: str = "") -> LearnRun:
        """Return the run that trains an adapter for these captions into the folder above `out`, on
        texts of at most `tokens`. Without `tokens`, it scores the model with an `adapter`."""
        known = {field.name for field in fields(LearnRun)}
        known &= {field.name for field in fields(CaptionConfig)} - {"engine", "slots"}
        same = {name: getattr(self.config, name) for name in known}
        of_step = ("batch_size", "lora_rank", "recompute", "optimizer")
        own = {
            **{name: getattr(config, name) for name in of_step},
            **self._limits(config),
            "sources": (),
            "out": str(out),
            "adapter": adapter,
            "language_precision": config.precision,
            "caption_tokens": tokens,
            "scored_only": not tokens,
        }
        return LearnRun(**{**same, **own})

    def captioning(self, config: LearnConfig, out: Path, adapter: str) -> CaptionConfig:
        """Return the run with an adapter, into a folder."""
        more = {**self._limits(config), "trust_folder": config.trust_folder}
        return replace(self.config, out=str(out), adapter=adapter, **more)

    def _limits(self, config: LearnConfig) -> dict[str, Any]:
        """Return the options that a round may set anew."""
        return {
            "memory": self.config.memory if config.memory is None else config.memory,
            "trust_remote_code": config.trust_remote_code or self.config.trust_remote_code,
        }
