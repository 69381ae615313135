"""Options that determine the memory of a half that is trained, for a training and for its plan."""

from dataclasses import dataclass
from typing import Annotated

from artifacts.options import Option, OptionGroup
from stages.tune import ADAMW, ADAMW8, PAGED_ADAMW8

OPTIMIZERS = (ADAMW, ADAMW8, PAGED_ADAMW8)
TRAINING = "training"
"""Heading of the training options."""


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
class LearnedOptions(TrainedHalfOptions):
    """The settings that determine the memory of a training run."""

    caption_tokens: int = 0
    """Approximate maximum number of tokens of a training caption."""
    scored_only: bool = False
    """Whether training is skipped."""
