"""What a training and a scoring record beside the adapter: `tune.json` and `score.json`."""

from dataclasses import dataclass, field
from typing import Any

from artifacts.disk.json_types import Count, Number, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleCaption:
    """A caption of the model beside the reference."""

    said: Text
    right: Text


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingScore:
    """How close the model came to the held-out captions at a step."""

    step: Count
    loss: Number
    """Mean per token."""
    exact: Number
    """Share of captions that are exact."""
    words: Number
    """Share of words in common."""
    samples: list[SampleCaption]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecord:
    """A training, or its progress."""

    recipe: dict[Text, Any]
    finished: bool
    steps: Count
    examples: Count
    held_out: Count
    precision: Text = ""
    optimizer: Text = ""
    trained_parameters: Count = 0
    frozen_parameters: Count = 0
    end_token: int = 0
    losses: list[Number]
    """Mean loss per token of each step."""
    memory_bytes: list[Count]
    """Host memory after each step."""
    held_out_losses: list[tuple[Count, Number]]
    """Step, and the loss on held-out captions."""
    best_step: Count
    scores: list[TrainingScore]
    sound: Text = ""
    """`off` if the model hears, and was trained without sound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionScore:
    """The score of one held-out caption."""

    loss: Number
    """Sum over its tokens."""
    tokens: Count
    exact: bool
    """Whether it was generated exactly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRecord:
    """How close a model came to the reference captions, without training."""

    captions: Count
    end_token: int = 0
    loss: Number
    exact: Number
    words: Number
    samples: list[SampleCaption]
    each: list[CaptionScore] = field(default_factory=list)
    """Scores of the captions, in their order."""
