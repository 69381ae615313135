"""Cuts a window of time out of the stored features of a video's chunks, as if it had been encoded
alone.

That is possible where the tower reads frames, or groups of frames, on their own. Text and grids of
the window come from the checkpoint's processor, which is run on black frames of the same size. So
frame marks, times and positions are those of a clip that is that short. Only features are cut.

`stages.answer.WINDOWED` names the families whose windows were compared with their frames encoded
alone.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from artifacts.errors import UsageError
from artifacts.records.tensors import make_record
from stages.models.halves.records import OUTLINE, FeatureRecord, Rule
from stages.models.processors.blank_clips import Clip
from stages.models.processors.known import known
from stages.models.processors.prepare import prepare
from stages.models.processors.side_inputs import Prepared
from stages.models.protocols import Processor

GRID = "video_grid_thw"
"""Side input with the steps of time of a video and the patches of each."""
RUN = re.compile(r"(<[^<>]+>)\1+")
"""A mark that is repeated: the placeholders of a step, the only tokens that are."""


class NoWindows(UsageError):
    """The features of this model cannot be cut by time."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"its features have no windows of time: {reason}",
            hint="Choose another model, or search without --ask",
        )


def joined(rows: Sequence[FeatureRecord], clips: Sequence[Clip]) -> tuple[FeatureRecord, Clip]:
    """Return neighbouring chunks, whose frames have one size, as one chunk. Clips have the times
    and sizes of frames; their pixels are not read."""
    first, side = rows[0], dict(rows[0].side)
    if len(rows) == 1:
        return first, clips[0]
    features = {
        modality: make_record(
            type(record),
            {
                name: _together([row.features[modality][name] for row in rows], rule)
                for name, rule in first.rules[modality]["fields"].items()
            },
        )
        for modality, record in first.features.items()
    }
    if GRID in side:
        side[GRID] = side[GRID].clone()
        side[GRID][0, 0] = sum(int(row.side[GRID][0, 0]) for row in rows)
    count = replace(first.count, tokens=sum(row.count.tokens for row in rows))
    times, begin = list[float](), 0.0
    for clip in clips:
        times += [begin + time for time in clip.times]
        begin += clip.seconds
    clip = Clip.black(clips[0].frames.shape[1:3], times, begin, clips[0].kind)
    return replace(first, features=features, side=side, count=count), clip


def cut_window(
    processor: Processor, row: FeatureRecord, clip: Clip, first: int, last: int
) -> FeatureRecord:
    """Return the features of the steps of time that are nearest to the frames from `first` to
    `last`, the latter left out. Raises NoWindows."""
    frames = len(clip.times)
    steps = steps_of(row, frames)
    per_step = -(-frames // steps)
    start = min(round(first / per_step), steps - 1)
    stop = min(steps, max(start + 1, round(last / per_step)))
    shown = clip.times[start * per_step : stop * per_step]
    times = tuple(round(time - shown[0], 6) for time in shown)
    seconds = clip.seconds * len(times) / frames
    window = clip.frames.shape[1:3], times, seconds, clip.kind
    alone = known(processor, f"window {window}", lambda: prepare(processor, Clip.black(*window)))
    if OUTLINE in row.side:
        raise NoWindows("the processor writes its prompt from whole frames")
    features = {
        modality: make_record(
            type(record),
            {
                name: _cut(record[name], rule, steps, start, stop)
                for name, rule in row.rules[modality]["fields"].items()
            },
        )
        for modality, record in row.features.items()
    }
    tokens = row.count.tokens // steps * (stop - start)
    side, texts = _at_size(row, alone, tokens)
    return replace(
        row,
        features=features,
        side=side,
        replacements=texts,
        count=replace(alone.count, tokens=tokens),
        blank={name: [*alone.inputs[name].shape] for name in row.blank},
    )


def steps_of(row: FeatureRecord, frames: int) -> int:
    """Return into how many equal steps of time the features of a chunk can be cut. Raises
    NoWindows."""
    if (grid := row.side.get(GRID)) is not None:
        return int(grid[0, 0])
    lengths = {
        len(part) if part.ndim > 2 and len(part) > 1 else frames
        for record in row.features.values()
        for of_field in record.values()
        for part in _tensors(of_field)
    }
    if len(lengths) != 1 or row.count.tokens % (steps := lengths.pop()):
        raise NoWindows(f"{row.count.tokens} tokens are no {frames} equal frames")
    return steps


def _at_size(
    row: FeatureRecord, alone: Prepared, tokens: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return side inputs and texts of a window whose frames have the size of the chunk's: many
    processors make few frames larger than many. Raises NoWindows."""
    if alone.count.tokens == tokens:
        return alone.side, alone.replacements
    if GRID not in row.side or GRID not in alone.side:
        raise NoWindows("its frames have another size in a shorter clip")
    grid = row.side[GRID].clone()
    grid[0, 0] = alone.side[GRID][0, 0]

    def resized(run: re.Match[str]) -> str:
        repeats = len(run[0]) // len(run[1])
        return run[1] * (repeats * tokens // alone.count.tokens)

    texts = tuple(RUN.sub(resized, text) for text in alone.replacements)
    return {**alone.side, GRID: grid}, texts


def _tensors(of_field: Any) -> list[torch.Tensor]:
    if isinstance(of_field, torch.Tensor):
        return [of_field]
    parts = of_field if isinstance(of_field, list | tuple) else []
    return [tensor for part in parts for tensor in _tensors(part)]


def _cut(of_field: Any, rule: Rule, steps: int, start: int, stop: int) -> Any:
    """Cut a field by the rule by which its rows are joined."""
    if rule == "same":
        return of_field
    if rule == "join" and len(of_field) == steps:  # one part for each step
        return type(of_field)(of_field[start:stop])
    if rule == "join":
        return type(of_field)(_cut(part, "cat", steps, start, stop) for part in of_field)
    if isinstance(rule, dict) and "each" in rule:
        pairs = zip(of_field, rule["each"], strict=True)
        return type(of_field)(_cut(part, of_part, steps, start, stop) for part, of_part in pairs)
    if not isinstance(of_field, torch.Tensor) or len(of_field) % steps:
        raise NoWindows(f"its features are no {steps} equal steps")
    rows = len(of_field) // steps
    return of_field[start * rows : stop * rows]


def _together(fields: Sequence[Any], rule: Rule) -> Any:
    """Join the parts of neighbouring chunks of one video."""
    first = fields[0]
    if isinstance(first, torch.Tensor):
        return torch.cat([*fields])
    if rule == "join":
        parts = [part for of_field in fields for part in of_field]
        return type(first)(parts if len(first) > 1 else [torch.cat(parts)])
    if isinstance(rule, dict) and "each" in rule:
        pairs = zip(zip(*fields, strict=True), rule["each"], strict=True)
        return type(first)(_together(parts, of_part) for parts, of_part in pairs)
    return first
