"""Trains an adapter of the language half on stored features. No pixel is read, and no vision
encoder is loaded.

This module has the job, and the choice of an adapter's layers, rank and alpha.

A training that continues from an adapter keeps all three: the same weights under another alpha
would have another effect. The module imports no model library.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.errors import UsageError
from stages.models.adapter_modules import PREFIX, LoraAdapter, read_adapter
from stages.models.half_job import HalfJob
from stages.process.job import StageSpec

RECORD = "tune.json"
"""File with the record of a training, next to the adapter."""
SCORE = "score.json"
"""File with the scores of a half that is not trained."""
EACH = "each"
"""Field of that file with the loss, tokens and exactness of each caption."""
CHECKPOINT = "checkpoint.safetensors"
"""File from which a training resumes until the adapter is written."""
ADAMW, ADAMW8, PAGED_ADAMW8 = "adamw", "adamw8bit", "paged_adamw8bit"
"""Optimizers: torch's, bitsandbytes' with 8-bit moments, and the same with moments that a GPU's
driver pages to the host."""


class TuneItem(NamedTuple):
    """A chunk and its target caption."""

    features: str
    """Cache key of the features."""
    prompt: str
    caption: str
    is_cut: bool = False
    """Whether its end is not the end of a caption, and so is not trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneJob:
    """The examples on which an adapter is trained, and the settings."""

    half: HalfJob
    store: str
    features_namespace: str
    other_features: list[str] = field(default_factory=list)
    """Other cache namespaces in which features of the examples may be."""
    examples: list[TuneItem]
    """Training examples; empty: the half is scored without training."""
    held_out: list[TuneItem]
    """Examples that are only used to score the adapter."""
    folder: str
    """Folder of the checkpoints and of the adapter."""
    base: str = ""
    """Digest of the weights of the checkpoint, which the adapter states; empty: unknown."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Everything that decides the adapter; a checkpoint with another recipe is ignored."""
    resume: bool = False
    """Whether to start from the adapter in the folder instead of a new one."""
    rank: int = 16
    steps: int
    """Number of optimizer steps."""
    batch: int
    """Examples per step."""
    rows: int
    """Most examples per forward pass."""
    rate: float
    """Peak learning rate."""
    seed: int = 0
    recompute: bool = False
    """Whether to use gradient checkpointing."""
    optimizer: str = ADAMW
    checkpoint_steps: int = 25
    max_new_tokens: int = 256
    """Most tokens per generated caption when the adapter is scored."""
    sound: str = ""
    """`off` if the model hears, and the examples have no sound; it is recorded."""
    tensorboard: str = ""
    """Folder for TensorBoard; empty: nothing is written."""


SCALE = 2
"""Alpha of a new adapter, as a multiple of its rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterLayout:
    """The layers that an adapter changes."""

    ranks: Mapping[str, int]
    """Path of a layer → rank."""
    alphas: Mapping[str, float]
    """Path of a layer → alpha."""

    @property
    def rank(self) -> int:
        """Return the most common rank."""
        return int(most_common(self.ranks.values()))


def most_common(numbers: Iterable[float]) -> float:
    """Return the most common number, the first of several."""
    return Counter(numbers).most_common(1)[0][0]


def new_layout(paths: Iterable[str], rank: int) -> AdapterLayout:
    ranks = dict.fromkeys(sorted(paths), rank)
    return AdapterLayout(ranks=ranks, alphas=dict.fromkeys(ranks, float(SCALE * rank)))


def layout_in(folder: Path, rank: int) -> AdapterLayout:
    """Return the layout of the adapter in a folder, from which a training with that rank continues.
    Raises UsageError if the ranks differ."""
    found = layout_of(folder)
    if found.rank != rank:
        raise UsageError(
            f"--lora-rank is {rank}, but the adapter in {folder} has rank {found.rank}",
            hint=f"Give --lora-rank {found.rank} with --resume, or another --out",
        )
    return found


def layout_of(folder: Path) -> AdapterLayout:
    """Return the layout of the adapter in a folder. Raises UsageError if no training can continue
    from it."""
    adapter = read_adapter(folder)
    _refuse_beyond(adapter)
    ranks = {path: adapter.places[of.a].shape[0] for path, of in adapter.low_rank.items()}
    alphas = {path: round(of.scale * ranks[path], 9) for path, of in adapter.low_rank.items()}
    return AdapterLayout(ranks=ranks, alphas=alphas)


def _refuse_beyond(adapter: LoraAdapter) -> None:
    """Raise UsageError for an adapter that a training could not write again unchanged."""
    odd = next(iter(adapter.whole.values()), "")
    tables = [path for path, of in adapter.low_rank.items() if of.embedding]
    named = [of.a for of in adapter.low_rank.values() if not of.a.startswith(PREFIX)]
    if odd or tables or named:
        raise UsageError(
            f"the adapter in {adapter.folder} holds {odd or [*tables, *named][0]}, which cannot be "
            "trained further",
            hint="Use another --out, and train a new adapter",
        )


OUTPUT_VERSION = 3
"""Raised when the same examples train another adapter."""
STAGE = StageSpec(
    name="tune",
    part="language",
    job=TuneJob,
    of_media=False,
    output_version=OUTPUT_VERSION,
    entry="stages.tune.run:run",
    verb="tuning",
    counts="step",
)
