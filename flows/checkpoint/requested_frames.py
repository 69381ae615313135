"""Selects the frames of a chunk by the user's options, or else by the defaults of the checkpoint's
processor. Does not apply the model's context limit.
"""

import math

from artifacts.options import OptionGroup
from artifacts.schema import WHOLE_SECONDS, Sampling
from flows.options.media import VectorSamplingOptions, VideoSamplingOptions
from stages.models.profile import ModelProfile

CHUNK_SECONDS = 30.0
"""Longest chunk where the user does not say."""
FPS = 1.0
"""Frames a second where neither the user nor the checkpoint says."""
MAX_FRAMES = 32
"""Frames a chunk at the most where neither the user nor the checkpoint says."""
VECTORS_A_CHUNK = 16
"""Frames of a video that a dual encoder is given at once: a chunk is as long as those take."""


def full_chunk(sampling: Sampling) -> int:
    """Return the frames of a chunk of full length."""
    wanted = sampling.frames or math.ceil(sampling.chunk_seconds * (sampling.fps or FPS))
    return min(max(wanted, sampling.min_frames), sampling.max_frames)


def usual_frames(profile: ModelProfile) -> int:
    """Return the frames of a chunk of full length where the user asks for none."""
    return full_chunk(requested_sampling(profile, VideoSamplingOptions()))


def requested_sampling(profile: ModelProfile, config: OptionGroup) -> Sampling:
    """Return the choice of frames, whatever the context holds."""
    if profile.route == "dual":  # a vector a frame, so none is left out
        rate = _frame_rate(config) or FPS
        return Sampling(chunk_seconds=VECTORS_A_CHUNK / rate, fps=rate, max_frames=VECTORS_A_CHUNK)
    video = VideoSamplingOptions.of(config)
    chunk = _chunk_seconds(profile, video)
    if only := 1 if profile.one_frame else profile.frames_a_video:
        return Sampling(chunk_seconds=chunk, shots=video.shots, frames=only, max_frames=only)
    stated = profile.sampling
    fps, frames = video.fps, video.frames
    if fps is None and frames is None:
        fps = stated.fps
        frames = stated.frames if fps is None else None
    maximum = video.max_frames or stated.max_frames or stated.frames or MAX_FRAMES
    if frames is not None:
        most = video.max_frames or frames
        return Sampling(
            chunk_seconds=chunk,
            shots=video.shots,
            frames=min(frames, most),
            max_frames=most,
        )
    return Sampling(
        chunk_seconds=chunk,
        shots=video.shots,
        fps=fps or FPS,
        min_frames=min(stated.min_frames or 1, maximum),
        max_frames=maximum,
    )


def _frame_rate(config: OptionGroup) -> float | None:
    if isinstance(config, VectorSamplingOptions):
        return config.fps
    return VideoSamplingOptions.of(config).fps


def _chunk_seconds(profile: ModelProfile, video: VideoSamplingOptions) -> float:
    """Return the seconds of a chunk: by default no more than the processor says that it sees."""
    if video.whole or video.chunk is not None:
        return video.chunk or WHOLE_SECONDS
    asked = video.fps or video.frames or video.max_frames
    stated = None if asked else profile.sampling.seconds
    return min(CHUNK_SECONDS, stated or CHUNK_SECONDS)
