"""Options of `penstock tune`."""

from dataclasses import dataclass
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from flows.options.commands import RunOptions
from flows.options.model import (
    AS_PUBLISHED_OPTION,
    AdapterOptions,
    HalfPrecisionOptions,
    MemoryOptions,
    ModelOptions,
    StoreOptions,
)
from flows.options.text import EngineOptions
from stages.tune.job import ADAMW, ADAMW8

OPTIMIZERS = (ADAMW, ADAMW8)
PRECISIONS = ("native", "fp32", "bf16", "nf4", "auto")
"""The values of `--precision`: those that gradients go through, and leave to take nf4 where the
others do not fit."""
EPOCHS = 8.0
"""Times that all examples are gone through where nobody says."""
TRAINING = "training"
RUNNING = "running"


@dataclass(frozen=True, kw_only=True)
class TrainedHalfOptions(OptionGroup):
    """Resource limits of the half that is trained."""

    lora_rank: Annotated[int, Option("[%(default)s]", TRAINING, "N", above=0)] = 16
    """Rank of the adapter; alpha is twice that."""
    recompute: Annotated[bool, Option("layers are computed again, not kept", TRAINING)] = False
    """Whether layers are computed again for the backward pass instead of kept."""
    optimizer: Annotated[str, Option("|".join(OPTIMIZERS), TRAINING, "O", values=OPTIMIZERS)] = (
        ADAMW
    )
    """Optimizer: with moments in 32 bit, or in 8."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TrainedHalfOptions):
    """The training settings of an adapter."""

    precision: Annotated[
        str, Option(f"{'|'.join(PRECISIONS)} [%(default)s]", TRAINING, "P", values=PRECISIONS)
    ] = "native"
    """Precision of the frozen half."""
    epochs: Annotated[
        float | None, Option(f"times through all examples [{EPOCHS:g}]", TRAINING, "N", above=0)
    ] = None
    """Times that all examples are gone through; None: by `steps`, or EPOCHS."""
    steps: Annotated[
        int | None, Option("times that weights change, instead", TRAINING, "N", above=0)
    ] = None
    """Times that the weights are changed."""
    batch_size: Annotated[int, Option("examples a step [%(default)s]", TRAINING, "N", above=0)] = 8
    """Examples of one step."""
    lr: Annotated[float, Option("learning rate [%(default)s]", TRAINING, "X", above=0)] = 2e-3
    """Largest learning rate."""
    seed: Annotated[int, Option("of the order and the start [%(default)s]", TRAINING, "S")] = 0
    """Seed of the order, of the adapter's start, and of what is held out."""
    validate: Annotated[float, Option("held out [%(default)s]", TRAINING, "SHARE")] = 0.1
    """Share of the examples that the adapter is scored by, and not trained on."""
    validate_only: Annotated[
        bool, Option("score ADAPTER, or M without one; train none", TRAINING)
    ] = False
    """Whether nothing is trained: the adapter in `out`, or the model where there is none, is scored
    by all examples."""
    resume: Annotated[bool, Option("begin with the adapter that is in ADAPTER", TRAINING)] = False
    """Whether to begin with the adapter that is in `out`, though data or options are others."""
    max_new_tokens: Annotated[int, Option("when it is scored [256]", TRAINING, "N", above=0)] = 256
    """Longest caption that is said when the adapter is scored."""
    tensorboard: Annotated[bool, Option("write ADAPTER/run/tensorboard as well", RUNNING)] = False
    """Whether losses and memory are written for TensorBoard."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise UsageError(
                "--steps and --epochs exclude each other", hint="Leave one of them out"
            )
        if not 0 <= self.validate < 1:
            raise UsageError(
                f"--validate is {self.validate}", hint="Give a share such as 0.1; 0 for none"
            )


@dataclass(frozen=True, kw_only=True)
class TuneConfig(TrainingOptions, MemoryOptions, StoreOptions, ModelOptions):
    """One training run. Fields have the names of the command line's options."""

    data: Annotated[
        str,
        Option(
            "captions.jsonl, .csv, .parquet; or media with .txt beside",
            positional=True,
            not_empty="Give a path",
        ),
    ]
    """Captions: a `.jsonl`, `.csv` or `.parquet`, or a folder of media with `.txt` beside them."""
    out: Annotated[str, Option("folder of the adapter", metavar="ADAPTER", not_empty="Give a path")]
    """Folder of the adapter."""
    as_published: Annotated[bool | None, AS_PUBLISHED_OPTION] = None
    """Train the model as its authors published it, or (False) as the installed transformers runs
    it; None: as the training was begun, or as `caption` runs the model."""

    def captioning(
        self,
        sources: tuple[str, ...],
        out: str,
        caption_tokens: int = 0,
        adapter: str = "",
        begun: bool | None = None,
    ) -> "TuneRun":
        """Return how the media of the examples are encoded, and the half is loaded, with an
        `adapter` that is there; captions have so many tokens at the most. `begun`: whether a
        training was begun as published (None: it was not begun)."""
        return TuneRun(
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
            as_published=begun if self.as_published is None else self.as_published,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True, kw_only=True)
class LearnedOptions(TrainedHalfOptions):
    """The settings that determine the memory of a training run."""

    caption_tokens: int = 0
    """Most tokens of a caption that is learned, about."""
    scored_only: bool = False
    """Whether nothing is trained."""


@dataclass(frozen=True, kw_only=True)
class TuneRun(LearnedOptions, EngineOptions, AdapterOptions, HalfPrecisionOptions, RunOptions):
    """The run that encodes the media of the training examples."""
