"""Trains an adapter of the language half on stored features. No pixel is read, and no vision
encoder is loaded.

This module has the job. It imports no model library.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stages.models.half_job import HalfJob
from stages.models.shards import SHARD_BYTES
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


INDEX, ABOUT, CARD, LOADER = "index.jsonl", "features.json", "README.md", "load_features.py"
"""Files of an exported data set besides its shards: a row per caption; the model and how rows are
joined; the data-set card; a program that reads all of them without Penstock."""


class CaptionToExport(NamedTuple):
    """A caption of a data set, in the fields of its row in the index."""

    features: str
    """Cache key of the features, and name of their tensors."""
    prompt: str
    caption: str
    is_cut: bool
    """Whether the token limit ended it. It is trained without an end token."""
    media: str
    """Name of the file that was captioned."""
    start: float | None
    """Start of the chunk in seconds; None: the file is one chunk."""
    end: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureExportJob:
    """The captions of a run that become a data set with their features."""

    store: str
    model: str
    """Folder of the checkpoint, of which the processor is loaded."""
    folder: str
    """Folder to write to."""
    rows: list[CaptionToExport]
    bytes: int
    """Bytes of the features, as they are restored."""
    about: dict[str, Any]
    """What `features.json` says of the run."""
    card: str
    """Text of the data-set card."""
    form: str = ""
    """Form in which the run stored features; empty: as computed."""
    max_pixels: int = 0
    max_video_pixels: int = 0
    as_published: bool = False
    trust_remote_code: bool = False
    shard_bytes: int = SHARD_BYTES


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
