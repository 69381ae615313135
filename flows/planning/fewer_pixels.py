"""Estimates a job whose images and frames are limited to fewer pixels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flows.checkpoint.frame_tokens import encoder_frames, frame_size_tokens
from flows.checkpoint.models import Model
from flows.planning.workloads import (
    PIXEL_BYTES,
    Workload,
    seen_size,
)

FEWEST_TOKENS = 64
"""Tokens a frame below which fewer pixels are not proposed."""
MARGIN = 1.1
"""Pixels that are reckoned with for each that is proposed: a processor rounds them to patches."""


def fewer_pixels(model: Model, workloads: Sequence[Workload]) -> Iterator[int]:
    """Yield numbers of pixels to which the largest frames can be kept, each half of the last;
    nothing where the model's processor has no such limit."""
    least = model.profile.least_pixels
    largest = max((math.prod(seen_size(model, w.kind, w.stored)) for w in workloads), default=0)
    for step in range(1, 32) if least else ():
        most = (largest >> step) // least * least
        if most < FEWEST_TOKENS * least:
            return
        yield most


def kept_to(model: Model, workload: Workload, pixels: int) -> Workload:
    """Return the workload with frames that are kept to so many pixels."""
    kind, counted = workload.kind, encoder_frames(model.profile, workload.kind, workload.frames)
    height, width = seen_size(model, kind, workload.stored)
    share = min(1.0, MARGIN * pixels / (height * width)) ** 0.5
    size = (math.ceil(height * share), math.ceil(width * share))
    tokens, pixel_bytes = frame_size_tokens(model.profile, model.fit(kind), kind, size)
    before = max(1, workload.tokens - workload.text_tokens)
    after = min(before, math.ceil(counted * tokens))
    return replace(
        workload,
        units=min(workload.units, math.ceil(counted * pixel_bytes / PIXEL_BYTES)),
        tokens=after + workload.text_tokens,
        feature_bytes=math.ceil(workload.feature_bytes * after / before),
    )
