"""Turns frames into the inputs of an encoder of single pictures, without a prompt. It is done by
the checkpoint's own image processor. Knows no family."""

from typing import Any

from artifacts.errors import UsageError
from stages.models.halves.records import RowCount
from stages.models.processors.clip import Clip, pictures
from stages.models.processors.side_inputs import Prepared


def prepare_pictures(processor: Any, clip: Clip, prompt: str = "") -> Prepared:
    """Run the image processor on each frame of a chunk. There is no prompt that it could read."""
    part = getattr(processor, "image_processor", None)
    if part is None:
        raise UsageError(
            f"{type(processor).__name__} has no image processor",
            hint="Download the checkpoint again, with its preprocessor_config.json",
        )
    made = dict(part(images=pictures(clip.frames), return_tensors="pt"))
    count = len(clip.frames)
    return Prepared(
        inputs={name: value for name, value in made.items() if value is not None},
        channel="images",
        side={},
        replacements=(),
        count=RowCount(tokens=count, media=count),
    )
