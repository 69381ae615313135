"""Removes a chat template's pair of vision tokens around a video when the processor writes a pair
around each frame."""

from typing import Any
from weakref import WeakSet

UNPAIRED: "WeakSet[Any]" = WeakSet()
"""Processors of models that were trained without the outer pair."""


def without_outer_pair(processor: Any, text: str) -> str:
    """Return a turn without the pair of tokens around a video, for a processor in `UNPAIRED`; for
    others, the text as it is."""
    if processor not in UNPAIRED:
        return text
    video = processor.video_token
    return text.replace(f"{processor.vision_start_token}{video}{processor.vision_end_token}", video)
