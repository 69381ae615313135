"""Selects the frames of a chunk that the model gets: the requested ones, but no more than fit its
context. Opens no file.
"""

from dataclasses import replace

from artifacts.schema import Sampling
from flows.checkpoint.context import FrameBound, bound_by_size, frames_of_any_size
from flows.checkpoint.requested_frames import full_chunk, requested_sampling
from flows.options.commands import RunOptions
from stages.models.profile import ModelProfile


def sampling_of(profile: ModelProfile, config: RunOptions) -> Sampling:
    """Return the frames of a chunk that the model of a profile is shown. As stock, explicitly asked
    for, the context limits nothing."""
    sampling = requested_sampling(profile, config)
    most = frames_of_any_size(profile)
    if config.as_published is False or most is None or full_chunk(sampling) <= most:
        return sampling
    most = max(1, most)
    return replace(
        sampling,
        frames=sampling.frames and min(sampling.frames, most),
        min_frames=min(sampling.min_frames, most),
        max_frames=most,
    )


def frame_bound(profile: ModelProfile, config: RunOptions) -> FrameBound | None:
    """Return the bound on the frames of a chunk where it depends on their size; None as stock, and
    where a full chunk of the largest frames fits."""
    if config.as_published is False:
        return None
    return bound_by_size(profile, full_chunk(requested_sampling(profile, config)))
