"""The job description of the summarize stage. Imports no model library."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stages.decode.generation import SamplingParams
from stages.models.half_job import HalfJob
from stages.summarize.packing import TimedText

CHAPTER = (
    "Below are descriptions of consecutive parts of a video, each after its times. Tell in one "
    "paragraph what happens in these parts, in order, and say at which times."
)
"""Prompt for a chapter, about some of a video's texts."""
SUMMARY = (
    "Below are descriptions of all parts of a video in order, each after its times. Summarize the "
    "whole video in one paragraph: what it shows, and what happens at which times."
)
"""Default prompt for the summary, about the last level of texts."""
LARGEST_CONTEXT = 8192
"""Maximum number of tokens of prompt and answer, even if the half supports more. Beyond that,
memory grows, and models ignore the middle of the prompt."""
ASSUMED_CONTEXT = 2048
"""Context size of a half whose configuration does not state one."""
ANSWERS = 4
"""The answer takes at most one of this many parts of the space for texts and answer. Two texts as
long as an answer then always fit together."""
STEP = 256
"""On a CPU, prompt lengths are padded to a multiple of this number of tokens."""
MAX_TEXTS = 20
"""Maximum number of texts per node: chapters of ten minutes for chunks of 30 s."""


class SummaryItem(NamedTuple):
    """A medium to summarize."""

    digest: str
    key: str
    """Key of its summary."""
    texts: list[TimedText]
    """Captions of its chunks, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryJob:
    """Media to summarize from their captions."""

    half: HalfJob
    store: str
    namespace: str
    """Cache namespace of the summaries."""
    media: list[SummaryItem]
    asked: str = SUMMARY
    """Prompt for the summary."""
    context: int
    """Maximum number of tokens of prompt and answer."""
    max_new_tokens: int
    """Maximum number of tokens of a generated text."""
    generation: SamplingParams = field(default_factory=SamplingParams)
    """Sampling parameters."""
    strip_think: bool = False
    """Whether text between <think> and </think> is removed."""
