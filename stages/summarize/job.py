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
"""What is asked of the half about some of a video's texts."""
SUMMARY = (
    "Below are descriptions of all parts of a video in order, each after its times. Summarize the "
    "whole video in one paragraph: what it shows, and what happens at which times."
)
"""What is asked about the last of them, where nobody asks otherwise."""
LARGEST_CONTEXT = 8192
"""Most tokens that are read and said at once, however many a half could take: beyond that, memory
grows and what stands in the middle is passed over."""
ASSUMED_CONTEXT = 2048
"""Tokens that a half is taken to read and say where its configuration does not tell."""
ANSWERS = 4
"""Parts of the room for texts and an answer, of which the answer takes one at the most: then two
texts as long as an answer always go together."""
STEP = 256
"""Tokens between two lengths of prompts on a CPU."""
MAX_TEXTS = 20
"""Most texts that go into one: chapters of ten minutes where chunks have 30 s."""


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
    """Namespace of the summaries."""
    media: list[SummaryItem]
    asked: str = SUMMARY
    """What is asked about the last texts of a medium."""
    context: int
    """Most tokens that are read and said at once."""
    max_new_tokens: int
    """Most tokens of a text that is said."""
    generation: SamplingParams = field(default_factory=SamplingParams)
    """How words are chosen."""
    strip_think: bool = False
    """Whether what stands between <think> and </think> is left out."""
