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

MIN_FRAME_TOKENS = 64
"""Minimum tokens per frame for which fewer pixels are suggested."""
MARGIN = 1.1
"""Factor on suggested pixels in the estimate, because processors round up to patches."""


def fewer_pixels(model: Model, workloads: Sequence[Workload]) -> Iterator[int]:
    """Yield pixel limits for the largest frames, each half of the previous one. Yield nothing if
    the model's processor has no such limit."""
    multiple = model.profile.least_pixels
    largest = max((math.prod(seen_size(model, w.kind, w.stored)) for w in workloads), default=0)
    for step in range(1, 32) if multiple else ():
        limit = (largest >> step) // multiple * multiple
        if limit < MIN_FRAME_TOKENS * multiple:
            return
        yield limit


def limit_pixels(model: Model, workload: Workload, pixels: int) -> Workload:
    """Return the workload with frames limited to this number of pixels."""
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
