"""Options of the commands that train: `penstock tune` and `penstock learn`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from artifacts.errors import UsageError, excluding
from artifacts.options import Option
from flows.core.options.commands import CaptionConfig, RunOptions
from flows.core.options.media import VideoSamplingOptions
from flows.core.options.model import (
    TRUST_HELP,
    AdapterOptions,
    DateOptions,
    ModelOptions,
    RecordedAdapterOptions,
)
from flows.core.options.precision import HalfPrecisionOptions
from flows.core.options.store import FeatureFormOptions, MemoryOptions, StoreOptions
from flows.core.options.text import EngineOptions, TrustOptions
from flows.core.options.trained_half import TRAINING, LearnedOptions, TrainedHalfOptions

PRECISIONS = ("native", "fp32", "bf16", "nf4", "auto")
"""The values of `--precision` that gradients can pass through. `auto` may use nf4 if the others do
not fit."""
EPOCHS = 8.0
"""Default number of epochs."""
MAX_SEED = 2**32
"""Training multiplies seeds, and PyTorch takes 64 bits."""
RUNNING = "running"


@dataclass(frozen=True, kw_only=True)
class StepOptions(TrainedHalfOptions):
    """The settings that decide a trained adapter, apart from its examples."""

    precision: Annotated[
        str,
        Option(
            f"of the frozen half: {'|'.join(PRECISIONS)} [%(default)s]",
            TRAINING,
            "P",
            values=PRECISIONS,
        ),
    ] = "native"
    """Precision of the frozen half."""
    epochs: Annotated[float | None, Option(f"epochs [{EPOCHS:g}]", TRAINING, "N", above=0)] = None
    """Number of epochs; None: set by `steps`, else EPOCHS."""
    steps: Annotated[
        int | None, Option("optimizer steps, instead of epochs", TRAINING, "N", above=0)
    ] = None
    """Number of optimizer steps."""
    batch_size: Annotated[
        int, Option("examples per step [%(default)s]", TRAINING, "N", above=0)
    ] = 8
    """Examples per optimizer step."""
    lr: Annotated[float, Option("learning rate [%(default)s]", TRAINING, "X", above=0)] = 2e-3
    """Peak learning rate."""
    seed: Annotated[
        int, Option("random seed [%(default)s]", TRAINING, "S", least=-MAX_SEED, most=MAX_SEED)
    ] = 0
    """Seed of the order, the adapter's initial weights, and the validation split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise excluding("--steps", "--epochs")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(StepOptions):
    """The training settings of `penstock tune`."""

    validate: Annotated[float, Option("validation share [%(default)s]", TRAINING, "SHARE")] = 0.1
    """Share of the examples that is held out to score the adapter."""
    validate_only: Annotated[
        bool, Option("score ADAPTER, or the model without one; do not train", TRAINING)
    ] = False
    """Whether to skip training, and score the adapter in `out`, or the model without one, on all
    examples."""
    resume: Annotated[bool, Option("start from the adapter in ADAPTER", TRAINING)] = False
    """Whether to start from the adapter in `out` even if data or options have changed."""
    max_new_tokens: Annotated[
        int, Option("maximum tokens per caption when scoring [256]", TRAINING, "N", above=0)
    ] = 256
    """Maximum tokens per caption when the adapter is scored."""
    tensorboard: Annotated[bool, Option("also write ADAPTER/run/tensorboard", RUNNING)] = False
    """Whether losses and memory are also written for TensorBoard."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.validate < 1:
            raise UsageError(
                f"invalid --validate {self.validate}", hint="Give a share such as 0.1; 0 for none"
            )


@dataclass(frozen=True, kw_only=True)
class TuneConfig(
    TrainingOptions, MemoryOptions, FeatureFormOptions, StoreOptions, DateOptions, ModelOptions
):
    """One training run. Field names equal the option names of the command line."""

    data: Annotated[
        str,
        Option(
            "captions.jsonl, .csv, .parquet; or media with .txt files",
            positional=True,
            not_empty="Give a path",
            path=True,
        ),
    ]
    """Captions: a `.jsonl`, `.csv` or `.parquet` file, or a folder of media with `.txt` files."""
    out: Annotated[
        str, Option("folder of the adapter", metavar="ADAPTER", not_empty="Give a path", path=True)
    ]
    """Folder of the adapter."""

    def captioning(
        self,
        sources: tuple[str, ...],
        out: str,
        caption_tokens: int = 0,
        adapter: str = "",
        begun: str = "",
        sampling: Mapping[str, Any] | None = None,
    ) -> "TuneRun":
        """Return the run that encodes the examples' media and loads the trained half, with an
        `adapter` to start from. Captions have at most `caption_tokens`. `begun`: folder of
        an adapter that is trained further. `sampling`: options of frame sampling, and
        the form of stored features, of the run whose captions they are."""
        recorded = dict(sampling or {})
        form = recorded.pop("features_as", "")
        return TuneRun(
            **recorded,
            features_as=self.features_as or form,
            sources=sources,
            adapter=adapter,
            lora_rank=self.lora_rank,
            recompute=self.recompute,
            optimizer=self.optimizer,
            scored_only=self.validate_only,
            caption_tokens=caption_tokens,
            model=self.model,
            revision=self.revision,
            store=self.store,
            out=out,
            language_precision=self.precision,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            memory=self.memory,
            today=self.today,
            recorded_by=begun,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True, kw_only=True)
class TuneRun(
    VideoSamplingOptions,
    LearnedOptions,
    EngineOptions,
    DateOptions,
    RecordedAdapterOptions,
    AdapterOptions,
    FeatureFormOptions,
    HalfPrecisionOptions,
    RunOptions,
):
    """The run that encodes the media of the training examples."""

    clip_own: bool = False
    """Whether clips of slower videos have that many of their own frames."""

    @property
    def has_own_frames(self) -> bool:
        """Return whether they have, as in the run whose captions are trained on."""
        return self.clip_own


LEAST = 40
"""Fewest corrected or accepted captions from which an adapter is accepted by its score."""
LEAST_STEPS = 100
"""Fewest optimizer steps, unless requested. With 8 epochs of 31 captions (32 steps) an adapter of
the demo model wrote broken captions; with 100 steps it had the new style."""


@dataclass(frozen=True, kw_only=True)
class LearnConfig(TrustOptions, StepOptions, FeatureFormOptions, MemoryOptions):
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
class CommandRecord:
    """The words of a command as a record has them, and the folder in which it ran."""

    words: tuple[str, ...]
    folder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRun:
    """The caption run that a round repeats."""

    config: CaptionConfig
    command: CommandRecord | None = None
    """Its command as `run.json` states it; None: a program ran it."""

    def training(self, config: LearnConfig, examples: int, *, resume: bool) -> TrainingOptions:
        """Return the settings of the training of a round on so many examples."""
        own = {field.name: getattr(config, field.name) for field in fields(StepOptions)}
        if config.epochs is None and config.steps is None:
            own["steps"] = max(LEAST_STEPS, math.ceil(EPOCHS * examples / config.batch_size))
        limit = self.config.max_new_tokens
        return TrainingOptions(**own, validate=0.0, resume=resume, max_new_tokens=limit)

    def tuning(self, config: LearnConfig, out: Path, tokens: int, adapter: str = "") -> TuneRun:
        """Return the run that trains an adapter for these captions into the folder above `out`, on
        texts of at most `tokens`. Without `tokens`, it scores the model with an `adapter`."""
        known = {field.name for field in fields(TuneRun)}
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
        return TuneRun(**{**same, **own})

    def captioning(self, config: LearnConfig, out: Path, adapter: str) -> CaptionConfig:
        """Return the run with an adapter, into a folder."""
        more = {**self._limits(config), "trust_folder": config.trust_folder}
        return replace(self.config, out=str(out), adapter=adapter, **more)

    def _limits(self, config: LearnConfig) -> dict[str, Any]:
        """Return the options that a round may set anew."""
        return {
            "memory": self.config.memory if config.memory is None else config.memory,
            "features_as": config.features_as or self.config.features_as,
            "trust_remote_code": config.trust_remote_code or self.config.trust_remote_code,
        }
