"""The job description of the tune stage. Imports no model library."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stages.models.half_job import HalfJob

RECORD = "tune.json"
"""File of what was learned, beside the adapter."""
SCORE = "score.json"
"""File of how near a half comes to captions that it is only scored by."""
CHECKPOINT = "checkpoint.safetensors"
"""File of what a training goes on from, until the adapter is written."""
ADAMW, ADAMW8 = "adamw", "adamw8bit"
"""Optimizers: torch's, and that of bitsandbytes, whose moments have 8 bits."""


class TuneItem(NamedTuple):
    """A chunk and its target caption."""

    features: str
    """Key of the features."""
    prompt: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneJob:
    """The examples on which an adapter is trained, and the settings."""

    half: HalfJob
    store: str
    features_namespace: str
    examples: list[TuneItem]
    """None: nothing is trained, and the half is scored as it is."""
    held_out: list[TuneItem]
    """Examples that are not trained on, by which the adapter is scored."""
    folder: str
    """Folder of the checkpoints, and of the adapter in the end."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """All that decides the adapter: a checkpoint of another one is not gone on with."""
    resume: bool = False
    """Whether to begin with the adapter that is in the folder, and not with a new one."""
    rank: int = 16
    steps: int
    """Times that the weights are changed."""
    batch: int
    """Examples of one step."""
    rows: int
    """Examples that go through the half at once, at the most."""
    rate: float
    """Largest learning rate."""
    seed: int = 0
    recompute: bool = False
    """Whether a layer's activations are computed again for the backward pass, and not kept."""
    optimizer: str = ADAMW
    checkpoint_steps: int = 25
    max_new_tokens: int = 256
    """Longest caption that is said when the adapter is scored."""
    tensorboard: str = ""
    """Folder of what TensorBoard shows; empty: nothing is written for it."""
