"""The job description of the score stage. Imports no model library."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stages.decode.generation import SamplingParams
from stages.models.half_job import HalfJob


class ScoreItem(NamedTuple):
    """A text about a chunk."""

    key: str
    """Key of its scores."""
    features: str
    """Key of the chunk's features."""
    prompt: str
    text: str
    ended: bool = True
    """Whether the text is complete, so that its end token is scored, too."""
    behind_reasoning: bool = False
    """Whether the text stands behind the reasoning that the template opens, as training places it.
    What the model wrote stands where it was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreJob:
    """Texts to score with the same half."""

    half: HalfJob
    store: str
    features_namespaces: list[str]
    """Cache namespaces in which the features may be."""
    namespace: str
    """Cache namespace of the scores."""
    items: list[ScoreItem]
    generation: SamplingParams = field(default_factory=SamplingParams)
    """Holds the system prompt and the forced beginning, which is not scored."""
