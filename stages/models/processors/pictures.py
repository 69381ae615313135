"""Turns frames into the inputs of an encoder of single pictures, without a prompt. It is done by
the checkpoint's own processor. Knows no family."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from stages.models.halves.records import RowCount
from stages.models.processors.clip import Clip, pictures
from stages.models.processors.side_inputs import Prepared

PARTS_AT_ONCE = 16
"""Parts of a picture that are copies of their own at one moment."""


def prepare_pictures(processor: Any, clip: Clip, prompt: str = "") -> Prepared:
    """Run the processor on each frame of a chunk. There is no prompt that it could read. It is
    asked as a whole, because it may have settings for pictures beside those of its parts."""
    return _prepared(processor(images=pictures(clip.frames), return_tensors="pt"), len(clip.frames))


def prepare_parts(
    processor: Any, clip: Clip, boxes: Sequence[tuple[int, int, int, int]]
) -> Prepared:
    """Run the processor on parts of a picture, a few at a time: left, top, right, bottom of each in
    pixels."""
    frame, made = clip.frames[0], []
    for at in range(0, len(boxes), PARTS_AT_ONCE):
        some = boxes[at : at + PARTS_AT_ONCE]
        parts = [frame[None, top:bottom, left:right] for left, top, right, bottom in some]
        images = [picture for part in parts for picture in pictures(part)]
        made.append(_prepared(processor(images=images, return_tensors="pt"), len(some)))
    inputs = {name: torch.cat([m.inputs[name] for m in made]) for name in made[0].inputs}
    count = RowCount(tokens=len(boxes), media=len(boxes))
    return replace(made[0], inputs=inputs, count=count)


def _prepared(outputs: Any, count: int) -> Prepared:
    made = dict(outputs)
    return Prepared(
        inputs={name: value for name, value in made.items() if value is not None},
        channel="images",
        side={},
        replacements=(),
        count=RowCount(tokens=count, media=count),
    )
