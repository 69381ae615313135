"""Selects the frames of a chunk by the user's options, or else by the defaults of the checkpoint's
processor. Does not apply the model's context limit."""

import math
from dataclasses import replace

from artifacts.options import OptionGroup
from artifacts.schema import WHOLE_SECONDS, Sampling
from artifacts.tiles import OFF
from flows.options.media import VectorSamplingOptions, VideoSamplingOptions
from stages.models.profile import ModelProfile

CHUNK_SECONDS = 30.0
"""Default limit of the chunk length, in seconds."""
FPS = 1.0
"""Default frames per second, if the checkpoint states none."""
MAX_FRAMES = 32
"""Default limit of frames per chunk, if the checkpoint states none."""
VECTORS_A_CHUNK = 16
"""Video frames per chunk for a dual encoder. The chunk is as long as these frames take."""


def full_chunk(sampling: Sampling) -> int:
    """Return the number of frames in a chunk of full length."""
    frames = sampling.frames or math.ceil(sampling.chunk_seconds * (sampling.fps or FPS))
    return min(max(frames, sampling.min_frames), sampling.max_frames)


def default_full_chunk(profile: ModelProfile) -> int:
    """Return the number of frames in a chunk of full length with default options."""
    return full_chunk(requested_sampling(profile, VideoSamplingOptions()))


def requested_sampling(profile: ModelProfile, config: OptionGroup) -> Sampling:
    """Return the requested sampling, before the context limits it."""
    return replace(_sampling(profile, config), deinterlace=_options(config).deinterlace != OFF)


def _sampling(profile: ModelProfile, config: OptionGroup) -> Sampling:
    if profile.route == "dual":  # one vector per frame, so no frame is left out
        rate = _options(config).fps or FPS
        return Sampling(chunk_seconds=VECTORS_A_CHUNK / rate, fps=rate, max_frames=VECTORS_A_CHUNK)
    video = VideoSamplingOptions.of(config)
    chunk = _chunk_seconds(profile, video)
    if fixed := 1 if profile.one_frame else profile.frames_a_video:
        return Sampling(chunk_seconds=chunk, shots=video.shots, frames=fixed, max_frames=fixed)
    stated = profile.sampling
    fps, frames = video.fps, video.frames
    if fps is None and frames is None:
        fps = stated.fps
        frames = stated.frames if fps is None else None
    maximum = video.max_frames or stated.max_frames or stated.frames or MAX_FRAMES
    if frames is not None:
        max_frames = video.max_frames or frames
        return Sampling(
            chunk_seconds=chunk,
            shots=video.shots,
            frames=min(frames, max_frames),
            max_frames=max_frames,
        )
    return Sampling(
        chunk_seconds=chunk,
        shots=video.shots,
        fps=fps or FPS,
        min_frames=min(stated.min_frames or 1, maximum),
        max_frames=maximum,
    )


def _options(config: OptionGroup) -> VectorSamplingOptions | VideoSamplingOptions:
    if isinstance(config, VectorSamplingOptions):
        return config
    return VideoSamplingOptions.of(config)


def _chunk_seconds(profile: ModelProfile, video: VideoSamplingOptions) -> float:
    """Return the chunk length in seconds. By default it is at most what the processor states."""
    if video.whole or video.chunk is not None:
        return video.chunk or WHOLE_SECONDS
    is_given = video.fps or video.frames or video.max_frames
    stated = None if is_given else profile.sampling.seconds
    return min(CHUNK_SECONDS, stated or CHUNK_SECONDS)
