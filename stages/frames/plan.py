"""Chooses the frames of each chunk from a video's timeline.

A chunk is the interval [k * chunk_seconds, (k + 1) * chunk_seconds) of the time since the first
frame. Times count from time 0 of the file, which may be earlier. A frame belongs to the chunk in
which it begins. For each target time the plan takes the chunk's own frame that is on display then.
Before the chunk's first own frame it takes that first one. A single frame is taken at the chunk's
middle. A chunk in which no frame begins, because a still image stays on screen, takes the frame on
display.
"""

import math
from array import array
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from artifacts.schema import ChunkIndex, Sampling
from stages.frames.timeline import Timeline

ROUNDING_SECONDS = 1e-9
"""Times closer than this are equal: far below a tick, far above a float's error."""
SLIVER_FRAMES = 1.5
"""A last chunk of at most this many frames is joined to the one before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """The frames of one chunk."""

    index: int
    """Index in the video, from 0."""
    start: float
    """Start in seconds since time 0."""
    end: float
    """End in seconds."""
    first: int
    """Ticks of the earliest frame that may replace an undecodable one."""
    beyond: int
    """Ticks from which on no frame may replace one."""
    ticks: "array[int]"
    """Frames to take, ascending."""


def chunk_count(duration: float, frame_count: int, chunk_seconds: float) -> int:
    """Return how many chunks cover `duration` seconds; a last sliver is not a separate chunk."""
    whole = max(1, math.ceil((duration - ROUNDING_SECONDS) / chunk_seconds))
    sliver = min(SLIVER_FRAMES * duration / frame_count, chunk_seconds / 2)
    rest = duration - (whole - 1) * chunk_seconds
    return whole - 1 if whole > 1 and rest <= sliver else whole


def plan_chunks(timeline: Timeline, sampling: Sampling) -> list[ChunkPlan]:
    """Plan every chunk of a video, from its first frame to the end of its last."""
    length = sampling.chunk_seconds
    count = chunk_count(timeline.duration, len(timeline.pts), length)
    starts = [timeline.offset + index * length for index in range(count)]
    return [
        plan_chunk(timeline, sampling, index=index, start=start, end=end)
        for index, (start, end) in enumerate(pairwise([*starts, timeline.end]))
    ]


def plan_chunk(
    timeline: Timeline, sampling: Sampling, *, index: int, start: float, end: float
) -> ChunkPlan:
    """Plan one chunk, from `start` to `end` in seconds since time 0."""
    low, high = positions(timeline, start, end)
    picks = _picks(timeline, sampling, start, end, low, high)
    return ChunkPlan(
        index=index,
        start=start,
        end=end,
        first=int(timeline.pts[low]),
        beyond=int(timeline.pts[high - 1]) + 1,
        ticks=array("q", timeline.pts[picks].tolist()),
    )


def plan_stored(timeline: Timeline, index: ChunkIndex) -> ChunkPlan:
    """Return the plan of a stored chunk, with the frames that it has."""
    low, high = positions(timeline, index.start, index.end)
    return ChunkPlan(
        index=index.index,
        start=index.start,
        end=index.end,
        first=int(timeline.pts[low]),
        beyond=int(timeline.pts[high - 1]) + 1,
        ticks=array("q", [tick_at(timeline, seconds) for seconds in index.times]),
    )


def positions(timeline: Timeline, start: float, end: float) -> tuple[int, int]:
    """Return the position of a chunk's first own frame, and the position after its last one."""
    low = int(np.searchsorted(timeline.pts, tick_from(timeline, start)))
    high = len(timeline.pts)
    if end < timeline.end:
        high = int(np.searchsorted(timeline.pts, tick_from(timeline, end)))
    return (low - 1, low) if low >= high else (low, high)


def _picks(
    timeline: Timeline, sampling: Sampling, start: float, end: float, low: int, high: int
) -> NDArray[np.int64]:
    """Return the positions of the frames to take, from `low` to below `high`."""
    step = 1 / sampling.fps if sampling.fps else (end - start) / (sampling.frames or 1)
    targets = max(1, math.ceil((end - start - ROUNDING_SECONDS) / step))
    if sampling.last_frame and sampling.frames != 1:
        count = min(max(targets, sampling.min_frames), sampling.max_frames, high - low)
        return low + np.rint(np.linspace(0, high - low - 1, count)).astype(np.int64)
    first = (start + end) / 2 if sampling.frames == 1 else start
    moments = [tick_at(timeline, first + j * step) for j in range(targets)]
    shown = np.searchsorted(timeline.pts, np.array(moments, dtype=np.int64), side="right") - 1
    picks = np.unique(np.clip(shown, low, high - 1))
    min_count = min(sampling.min_frames, high - low)
    if len(picks) < min_count:
        picks = low + _evenly(high - low, min_count)
    if len(picks) > sampling.max_frames:
        picks = picks[_evenly(len(picks), sampling.max_frames)]
    return picks


def _evenly(count: int, keep: int) -> NDArray[np.int64]:
    """Return `keep` different positions out of `count`, evenly spaced from the first on."""
    return np.arange(keep, dtype=np.int64) * count // keep


def tick_at(timeline: Timeline, seconds: float) -> int:
    """Return the last tick at or before `seconds`."""
    rate = timeline.time_base.denominator / timeline.time_base.numerator
    return timeline.start + math.floor((seconds - timeline.offset + ROUNDING_SECONDS) * rate)


def tick_from(timeline: Timeline, seconds: float) -> int:
    """Return the first tick at or after `seconds`."""
    rate = timeline.time_base.denominator / timeline.time_base.numerator
    return timeline.start + math.ceil((seconds - timeline.offset - ROUNDING_SECONDS) * rate)
