"""Counts the text tokens that a processor writes around images: frame times, marks, a template."""

from dataclasses import dataclass
from typing import Any

from artifacts.schema import MediaKind
from stages.models.processors.calling import text_ids
from stages.models.processors.clip import black_clip
from stages.models.processors.prepare import channel_of, prepare, rebuild
from stages.process.exit_diagnosis import out_of_memory

FEW, MORE = 2, 6
"""Frame counts of two videos whose prompts show what each frame adds."""
EDGE = 64
"""Side length of the frames in pixels."""
PROMPT = "?"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptOverhead:
    """Tokens of a prompt that are neither image tokens nor the user's text."""

    a_prompt: int = 0
    a_frame: int = 0


def prompt_overhead(processor: Any, kind: MediaKind) -> PromptOverhead:
    """Return how many tokens the processor adds around frames of this kind; 0 if unknown."""
    counts = (FEW, MORE) if kind == "video" else (1, 1)
    if kind == "video" and channel_of(processor, kind) == "images":
        counts = (1, MORE)
    try:
        few, more = (_text_tokens(processor, kind, count) for count in counts)
    except Exception as error:  # a processor may fail in any way; real frames will show the error
        if out_of_memory(error):
            raise
        return PromptOverhead()
    a_frame = max(0, -(-(more - few) // max(1, counts[1] - counts[0])))
    return PromptOverhead(a_prompt=max(0, few - counts[0] * a_frame), a_frame=a_frame)


def _text_tokens(processor: Any, kind: MediaKind, count: int) -> int:
    """Return the tokens of a prompt with `count` frames, without those of the frames themselves."""
    row = prepare(processor, black_clip(kind, count, EDGE, EDGE))
    return int(text_ids(rebuild(processor, [row], [PROMPT])).shape[1]) - row.count.tokens
