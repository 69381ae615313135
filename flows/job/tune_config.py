"""Holds what a training is asked to do. It knows nothing of how it is done."""

from dataclasses import dataclass

from artifacts.errors import UsageError
from flows.job.config import CaptionConfig, check_above_zero
from stages.tune.job import ADAMW, ADAMW8

OPTIMIZERS = (ADAMW, ADAMW8)
PRECISIONS = ("native", "fp32", "bf16", "nf4", "auto")
"""The values of `--precision`: those that gradients go through, and leave to take nf4 where the
others do not fit."""
ABOVE_ZERO = ("lora_rank", "epochs", "steps", "batch_size", "lr", "max_new_tokens")
"""Numbers that are above 0."""
EPOCHS = 8.0
"""Times that all examples are gone through where nobody says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """One training. Fields have the names of the command line's options."""

    data: str
    """Captions: a `.jsonl`, `.csv` or `.parquet`, or a folder of media with `.txt` beside them."""
    model: str
    """Hub id, folder, or `demo`."""
    out: str
    """Folder of the adapter."""
    store: str = ""
    """Folder of frames and features; empty: as everywhere."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    precision: str = "native"
    """Precision of the frozen half."""
    lora_rank: int = 16
    """Rank of the adapter; alpha is twice that."""
    epochs: float | None = None
    """Times that all examples are gone through; None: by `steps`, or EPOCHS."""
    steps: int | None = None
    """Times that the weights are changed."""
    batch_size: int = 8
    """Examples of one step."""
    lr: float = 2e-3
    """Largest learning rate."""
    seed: int = 0
    """Seed of the order, of the adapter's start, and of what is held out."""
    recompute: bool = False
    """Whether layers are computed again for the backward pass instead of kept."""
    optimizer: str = ADAMW
    """Optimizer: with moments in 32 bit, or in 8."""
    validate: float = 0.1
    """Share of the examples that the adapter is scored by, and not trained on."""
    validate_only: bool = False
    """Whether nothing is trained: the adapter in `out`, or the model where there is none, is scored
    by all examples."""
    resume: bool = False
    """Whether to begin with the adapter that is in `out`, though data or options are others."""
    tensorboard: bool = False
    """Whether losses and memory are written for TensorBoard."""
    max_new_tokens: int = 256
    """Longest caption that is said when the adapter is scored."""
    memory: int | None = None
    """Bytes that a stage may take at the most; None: what is free."""
    as_published: bool | None = None
    """Train the model as its authors published it, or (False) as the installed transformers runs
    it; None: as the training was begun, or as `caption` runs the model."""
    trust_remote_code: bool = False
    """Whether code that comes with the checkpoint is run."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError(
                "--steps and --epochs exclude each other", hint="Leave one of them out"
            )
        check_above_zero(self, ABOVE_ZERO)
        if not 0 <= self.validate < 1:
            raise UsageError(
                f"--validate is {self.validate}", hint="Give a share such as 0.1; 0 for none"
            )
        for name, values in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in values:
                raise UsageError(
                    f"--{name} {getattr(self, name)} is not known",
                    hint=f"Choose from {', '.join(values)}",
                )
        for name in ("data", "model", "out"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is empty", hint="Give a path")

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneRun(CaptionConfig):
    """The run of a training: what its stages need to be told beside what they always are."""

    lora_rank: int = 16
    recompute: bool = False
    optimizer: str = ADAMW
    caption_tokens: int = 0
    """Most tokens of a caption that is learned, about."""
    scored_only: bool = False
    """Whether nothing is trained."""
