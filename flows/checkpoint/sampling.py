"""Selects the frames of a chunk that the model gets: the requested frames, limited by the model's
context. Opens no file."""

from dataclasses import replace

from artifacts.schema import Sampling
from flows.checkpoint.context import FrameBound, bound_by_size, frames_of_any_size
from flows.checkpoint.requested_frames import full_chunk, requested_sampling
from flows.options.commands import RunOptions
from stages.models.profile import ModelProfile


def sampling_of(profile: ModelProfile, config: RunOptions) -> Sampling:
    """Return the sampling of frames that the model gets. With `as_published=False`, the context
    sets no limit."""
    sampling = requested_sampling(profile, config)
    max_frames = frames_of_any_size(profile)
    if config.as_published is False or max_frames is None or full_chunk(sampling) <= max_frames:
        return sampling
    max_frames = max(1, max_frames)
    return replace(
        sampling,
        frames=sampling.frames and min(sampling.frames, max_frames),
        min_frames=min(sampling.min_frames, max_frames),
        max_frames=max_frames,
    )


def frame_bound(profile: ModelProfile, config: RunOptions) -> FrameBound | None:
    """Return the frame limit of a model if it depends on the frame size. Return None with
    `as_published=False`, and if a full chunk of the largest frames fits."""
    if config.as_published is False:
        return None
    return bound_by_size(profile, full_chunk(requested_sampling(profile, config)))
