"""Turns the captions of a video's chunks into chapters and a summary. Loads only the language
half.

This module has the job, and packs timed texts into groups that fit a model's context. It imports no
model library.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stages.decode.generation import SamplingParams
from stages.models.half_job import HalfJob
from stages.process.stage_spec import StageSpec

MINUTE, HOUR = 60, 3600
DASH = "\u2013"
"""Separator of two times."""


class TimedText(NamedTuple):
    """The text about one time span of a video."""

    start: float
    """Seconds."""
    end: float
    text: str

    @property
    def line(self) -> str:
        """Return the text as a line of a prompt, such as `[00:30-01:00] A ball rolls.`, with an en
        dash."""
        return f"[{clock(self.start)}{DASH}{clock(self.end)}] {' '.join(self.text.split())}"


def clock(seconds: float) -> str:
    """Return a time as `05:30`, or `1:05:30` from an hour on."""
    total = int(seconds)
    hours, rest = divmod(total, HOUR)
    minutes, left = divmod(rest, MINUTE)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes:02d}:{left:02d}"


def pack_groups(counts: Sequence[int], room: int, max_texts: int) -> list[range]:
    """Return ranges of consecutive texts that together cover all texts once. A group holds at most
    `room` tokens, by the `counts` of its texts, and at most `max_texts` texts. A larger text is a
    group of its own. The number of groups is minimal, and they are as even as that allows."""
    group_count = len(_greedy_groups(counts, room, max_texts))
    low, high = 0, room
    while low < high:
        middle = (low + high) // 2
        if len(_greedy_groups(counts, middle, max_texts)) <= group_count:
            high = middle
        else:
            low = middle + 1
    few = -(-len(counts) // group_count) if counts else max_texts
    even = _greedy_groups(counts, high, few)
    groups = even if len(even) == group_count else _greedy_groups(counts, high, max_texts)
    assert [at for group in groups for at in group] == list(range(len(counts)))
    return groups


def _greedy_groups(counts: Sequence[int], room: int, max_texts: int) -> list[range]:
    """Return groups that are each as full as possible."""
    starts = [0] if counts else []
    tokens = 0
    for at, count in enumerate(counts):
        if at > starts[-1] and (tokens + count > room or at - starts[-1] == max_texts):
            starts.append(at)
            tokens = 0
        tokens += count
    stops = [*starts[1:], len(counts)]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


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


OUTPUT_VERSION = 1
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="summarize",
    writes="summaries",
    part="language",
    job=SummaryJob,
    of_media=False,
    uses_token_limit=True,
    output_version=OUTPUT_VERSION,
    entry="stages.summarize.run:run",
    verb="summarizing",
    counts="chapter or summary",
)
