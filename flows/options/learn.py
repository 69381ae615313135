"""Options of `penstock learn`."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from artifacts.options import Option
from flows.options.commands import CaptionConfig
from flows.options.media import CardOptions, VideoSamplingOptions
from flows.options.model import TRUST_HELP, MemoryOptions
from flows.options.tune import EPOCHS, TRAINING, StepOptions, TrainingOptions, TuneRun

LEAST = 40
"""Fewest corrected or accepted captions from which an adapter is accepted by its score."""
LEAST_STEPS = 100
"""Fewest optimizer steps, unless requested. With 8 epochs of 31 captions (32 steps) an adapter of
the demo model wrote broken captions; with 100 steps it had the new style."""


@dataclass(frozen=True, kw_only=True)
class LearnRun(CardOptions, VideoSamplingOptions, TuneRun):
    """The run that trains or scores an adapter on the features of a caption run."""


@dataclass(frozen=True, kw_only=True)
class LearnConfig(StepOptions, MemoryOptions):
    """One round of learning. Field names equal the option names of the command line."""

    out: Annotated[
        str,
        Option(
            "output folder of `penstock caption` [penstock-out]",
            metavar="OUT",
            positional=True,
            nargs="?",
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

    def training(self, run: CaptionConfig, examples: int, *, resume: bool) -> TrainingOptions:
        """Return the settings of the training of a round on so many examples."""
        own = {field.name: getattr(self, field.name) for field in fields(StepOptions)}
        if self.epochs is None and self.steps is None:
            own["steps"] = max(LEAST_STEPS, math.ceil(EPOCHS * examples / self.batch_size))
        return TrainingOptions(
            **own, validate=0.0, resume=resume, max_new_tokens=run.max_new_tokens
        )

    def run_of(self, run: CaptionConfig, out: str, tokens: int, adapter: str = "") -> LearnRun:
        """Return the run that trains an adapter for a caption run into the folder above `out`, on
        captions of at most `tokens`. Without `tokens`, it scores the model with an `adapter`."""
        known = {field.name for field in fields(LearnRun)} & {field.name for field in fields(run)}
        same = {name: getattr(run, name) for name in known - {"engine", "slots", "adapter"}}
        own = {
            "sources": (),
            "out": out,
            "adapter": adapter,
            "language_precision": self.precision,
            "batch_size": self.batch_size,
            "lora_rank": self.lora_rank,
            "recompute": self.recompute,
            "optimizer": self.optimizer,
            "caption_tokens": tokens,
            "scored_only": not tokens,
            "memory": run.memory if self.memory is None else self.memory,
            "trust_remote_code": self.trust_remote_code or run.trust_remote_code,
        }
        return LearnRun(**{**same, **own})

    def captioning(self, run: CaptionConfig, out: Path, adapter: str) -> CaptionConfig:
        """Return the caption run with an adapter, into a folder."""
        memory = run.memory if self.memory is None else self.memory
        trusted = self.trust_remote_code or run.trust_remote_code
        return replace(run, out=str(out), adapter=adapter, memory=memory, trust_remote_code=trusted)
