"""Trains an adapter of the language half on stored features. No pixel is read, and no vision
encoder is loaded.

This module has the job. It imports no model library.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stages.models.half_job import HalfJob
from stages.process.stage_spec import StageSpec

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


OUTPUT_VERSION = 3
"""Raised when the same examples train another adapter."""
STAGE = StageSpec(
    name="tune",
    part="language",
    needs_weights=True,
    job=TuneJob,
    of_media=False,
    output_version=OUTPUT_VERSION,
    entry="stages.tune.run:run",
    verb="tuning",
    counts="step",
)
