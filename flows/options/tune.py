"""Options of `penstock tune`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from flows.options.commands import RunOptions
from flows.options.media import CardOptions, VideoSamplingOptions
from flows.options.model import (
    AdapterOptions,
    DateOptions,
    HalfPrecisionOptions,
    MemoryOptions,
    ModelOptions,
    RecordedAdapterOptions,
    StoreOptions,
)
from flows.options.text import EngineOptions
from stages.tune.job import ADAMW, ADAMW8, PAGED_ADAMW8

OPTIMIZERS = (ADAMW, ADAMW8, PAGED_ADAMW8)
PRECISIONS = ("native", "fp32", "bf16", "nf4", "auto")
"""The values of `--precision` that gradients can pass through. `auto` may use nf4 if the others do
not fit."""
EPOCHS = 8.0
"""Default number of epochs."""
TRAINING = "training"
RUNNING = "running"


@dataclass(frozen=True, kw_only=True)
class TrainedHalfOptions(OptionGroup):
    """Settings that determine the memory of the trained half."""

    lora_rank: Annotated[
        int, Option("rank of the adapter [%(default)s]", TRAINING, "N", above=0)
    ] = 16
    """Rank of the adapter; alpha is twice that."""
    recompute: Annotated[bool, Option("gradient checkpointing", TRAINING)] = False
    """Gradient checkpointing: recompute activations in the backward pass."""
    optimizer: Annotated[str, Option("|".join(OPTIMIZERS), TRAINING, "O", values=OPTIMIZERS)] = (
        ADAMW
    )
    """Optimizer, with moments in 32 bit or in 8."""


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
    seed: Annotated[int, Option("random seed [%(default)s]", TRAINING, "S")] = 0
    """Seed of the order, the adapter's initial weights, and the validation split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise UsageError(
                "--steps and --epochs exclude each other", hint="Leave one of them out"
            )


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
class TuneConfig(TrainingOptions, MemoryOptions, StoreOptions, DateOptions, ModelOptions):
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
        an adapter that is trained further. `sampling`: options of frame sampling."""
        return TuneRun(
            **(sampling or {}),
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
class LearnedOptions(TrainedHalfOptions):
    """The settings that determine the memory of a training run."""

    caption_tokens: int = 0
    """Approximate maximum number of tokens of a training caption."""
    scored_only: bool = False
    """Whether training is skipped."""


@dataclass(frozen=True, kw_only=True)
class TuneRun(
    CardOptions,
    VideoSamplingOptions,
    LearnedOptions,
    EngineOptions,
    DateOptions,
    RecordedAdapterOptions,
    AdapterOptions,
    HalfPrecisionOptions,
    RunOptions,
):
    """The run that encodes the media of the training examples."""
