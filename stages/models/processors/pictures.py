"""Turns frames into the inputs of an encoder of single pictures, without a prompt. It is done by
the checkpoint's own processor. Knows no family."""

from typing import Any

from stages.models.halves.records import RowCount
from stages.models.processors.clip import Clip, pictures
from stages.models.processors.side_inputs import Prepared


def prepare_pictures(processor: Any, clip: Clip, prompt: str = "") -> Prepared:
    """Run the processor on each frame of a chunk. There is no prompt that it could read. It is
    asked as a whole, because it may have settings for pictures beside those of its parts."""
    made = dict(processor(images=pictures(clip.frames), return_tensors="pt"))
    count = len(clip.frames)
    return Prepared(
        inputs={name: value for name, value in made.items() if value is not None},
        channel="images",
        side={},
        replacements=(),
        count=RowCount(tokens=count, media=count),
    )
