"""Chooses the frames of a chunk: what the user asked for, else what the checkpoint's processor
states, and no more than fit the model's context. Opens no file."""

import math
from dataclasses import replace

from artifacts.schema import WHOLE_SECONDS, Sampling
from flows.job.config import CaptionConfig
from flows.job.context import FrameBound, bound_by_size, frames_of_any_size
from stages.models.profile import ModelProfile

CHUNK_SECONDS = 30.0
"""Longest chunk where the user does not say."""
FPS = 1.0
"""Frames a second where neither the user nor the checkpoint says."""
MAX_FRAMES = 32
"""Frames a chunk at the most where neither the user nor the checkpoint says."""
VECTORS_A_CHUNK = 16
"""Frames of a video that a dual encoder is given at once: a chunk is as long as those take."""


def sampling_of(profile: ModelProfile, config: CaptionConfig) -> Sampling:
    """Return the frames of a chunk that the model of a profile is shown. As stock, explicitly asked
    for, the context limits nothing."""
    sampling = wanted_sampling(profile, config)
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


def frame_bound(profile: ModelProfile, config: CaptionConfig) -> FrameBound | None:
    """Return the bound on the frames of a chunk where it depends on their size; None as stock, and
    where a full chunk of the largest frames fits."""
    if config.as_published is False:
        return None
    return bound_by_size(profile, full_chunk(wanted_sampling(profile, config)))


def full_chunk(sampling: Sampling) -> int:
    """Return the frames of a chunk of full length."""
    wanted = sampling.frames or math.ceil(sampling.chunk_seconds * (sampling.fps or FPS))
    return min(max(wanted, sampling.min_frames), sampling.max_frames)


def wanted_sampling(profile: ModelProfile, config: CaptionConfig) -> Sampling:
    """Return the same whatever the context holds."""
    if profile.route == "dual":  # a vector a frame, so none is left out
        rate = config.fps or FPS
        return Sampling(chunk_seconds=VECTORS_A_CHUNK / rate, fps=rate, max_frames=VECTORS_A_CHUNK)
    chunk = _chunk_seconds(profile, config)
    if only := 1 if profile.one_frame else profile.frames_a_video:
        return Sampling(chunk_seconds=chunk, shots=config.shots, frames=only, max_frames=only)
    stated = profile.sampling
    fps, frames = config.fps, config.frames
    if fps is None and frames is None:
        fps = stated.fps
        frames = stated.frames if fps is None else None
    maximum = config.max_frames or stated.max_frames or stated.frames or MAX_FRAMES
    if frames is not None:
        most = config.max_frames or frames
        return Sampling(
            chunk_seconds=chunk,
            shots=config.shots,
            frames=min(frames, most),
            max_frames=most,
        )
    return Sampling(
        chunk_seconds=chunk,
        shots=config.shots,
        fps=fps or FPS,
        min_frames=min(stated.min_frames or 1, maximum),
        max_frames=maximum,
    )


def _chunk_seconds(profile: ModelProfile, config: CaptionConfig) -> float:
    """Return the seconds of a chunk: by default no more than the processor says that it sees."""
    if config.whole or config.chunk is not None:
        return config.chunk or WHOLE_SECONDS
    asked = config.fps or config.frames or config.max_frames
    stated = None if asked else profile.sampling.seconds
    return min(CHUNK_SECONDS, stated or CHUNK_SECONDS)
