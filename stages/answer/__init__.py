"""Measures how probable the labels of questions are about stored features. Loads only the language
half, and generates no text."""

from dataclasses import dataclass, field
from typing import NamedTuple

from artifacts.records.claims import Share
from stages.models.half_job import HalfJob
from stages.process.stage_spec import StageSpec

ROWS = 4
"""Beginnings of labels that one pass reads. Each has a copy of the KV cache."""


WINDOWED = (*("gemma3", "internvl", "llava", "llava_next"), *("qwen2_5_vl", "qwen3_vl", "smolvlm"))
"""Model types whose stored features can be cut by time: their windows were compared with the same
frames encoded alone, and are equal in every byte."""


class WindowChunk(NamedTuple):
    """A chunk that a window has frames of."""

    features: str
    """Key of its features."""
    times: tuple[float, ...]
    """Time of each frame in seconds from its start."""
    seconds: float
    """Its length."""
    height: int
    width: int


class Window(NamedTuple):
    """The frames from `first` to `last`, the latter left out, of neighbouring chunks."""

    chunks: tuple[WindowChunk, ...]
    first: int
    last: int


class AnswerItem(NamedTuple):
    """A probe about one chunk, or about a window of time."""

    key: str
    features: str
    """Key of the features of the chunk; of a window, of its first one."""
    prompt: str
    labels: tuple[str, ...]
    """The texts whose probability is measured after the prompt."""
    heard: str = ""
    """Key of the features of its sound; empty: none."""
    window: Window | None = None
    """The window that is shown; None: the whole chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerJob:
    """Probes about chunks."""

    half: HalfJob
    store: str
    features_namespace: str
    namespace: str
    """Cache namespace of the answers."""
    heard_namespace: str = ""
    """Cache namespace of the features of sound; empty: no item has sound."""
    batches: list[list[AnswerItem]]
    """The probes of each chunk together: they share the prefill of what is seen."""
    prefill: int = 0
    """Tokens of a prompt that the half prefills per chunk; 0: all."""
    made_by: dict[str, str] = field(default_factory=dict)
    """What each record says of model and program: `weights`, `commit` and `penstock`."""
    share: Share = field(default_factory=Share)
    """What this process may claim until those on other devices work, too."""


OUTPUT_VERSION = 1
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="answer",
    reads=("features", "heard"),
    writes="answers",
    part="language",
    job=AnswerJob,
    prompted=True,
    can_reject_items=True,
    fans_out=True,
    output_version=OUTPUT_VERSION,
    entry="stages.answer.run:run",
    verb="answering",
    counts="prompt",
)
