"""Chooses which frames of a chunk are sampled, by the user's options, or else by the defaults of
the checkpoint's processor.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from artifacts.schema import WHOLE_SECONDS, Sampling
from artifacts.tiles import OFF
from flows.core.options.commands import RunOptions
from flows.core.options.media import OVERLAP, VectorSamplingOptions, VideoSamplingOptions
from stages.models.profile import ModelProfile

CHUNK_SECONDS = 30.0
"""Default limit of the chunk length, in seconds."""
FPS = 1.0
"""Default frames per second, if the checkpoint states none."""
MAX_FRAMES = 32
"""Default limit of frames per chunk, if the checkpoint states none."""
VECTORS_PER_CHUNK = 16
"""Video frames per chunk for a dual encoder. The chunk is as long as these frames take."""


def full_chunk(sampling: Sampling, seconds: float = math.inf) -> int:
    """Return the number of frames in a chunk of full length, or in that of a video of so many
    seconds if it is shorter."""
    length = min(sampling.chunk_seconds, seconds)
    frames = sampling.frames or math.ceil(length * (sampling.fps or FPS))
    return min(max(frames, sampling.min_frames), sampling.max_frames)


def default_full_chunk(profile: ModelProfile) -> int:
    """Return the number of frames in a chunk of full length with default options."""
    video = VideoSamplingOptions()
    return full_chunk(_sampling(profile, video, video.fps))


def requested_sampling(profile: ModelProfile, config: RunOptions) -> Sampling:
    """Return the requested sampling, before the context limits it."""
    video = config.groups.video
    offered = config if isinstance(config, VectorSamplingOptions) else video
    sampling = _sampling(profile, video, offered.fps)
    if video.clip_frames:
        sampling = _of_clips(sampling, video, config.groups.data_sets.trainer)
    return replace(sampling, deinterlace=offered.deinterlace != OFF)


def _of_clips(sampling: Sampling, video: VideoSamplingOptions, trainers: Sequence[str]) -> Sampling:
    """Return the sampling with chunks that are as long as the frames that a trainer takes. Those of
    slow videos may be longer, and get no more frames than planned."""
    fps, count = video.rate_of_clips(trainers), video.clip_frames or 0
    of_clips = replace(
        sampling,
        chunk_seconds=count / fps,
        clip_frames=count,
        clip_fps=fps,
        clip_overlap=video.clip_rest == OVERLAP,
        clip_own=video.has_own_frames,
    )
    most = full_chunk(of_clips)
    return replace(of_clips, min_frames=min(of_clips.min_frames, most), max_frames=most)


def _sampling(profile: ModelProfile, video: VideoSamplingOptions, rate: float | None) -> Sampling:
    """Return the sampling without deinterlacing. `rate`: the requested frames per second of a dual
    encoder."""
    if profile.route == "dual":  # one vector per frame, so no frame is left out
        rate = rate or FPS
        return Sampling(
            chunk_seconds=VECTORS_PER_CHUNK / rate, fps=rate, max_frames=VECTORS_PER_CHUNK
        )
    chunk = _chunk_seconds(profile, video)
    if fixed := 1 if profile.one_frame else profile.frames_per_video:
        return Sampling(
            chunk_seconds=chunk,
            shots=video.shots,
            chapters=video.chapters,
            frames=fixed,
            max_frames=fixed,
        )
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
            chapters=video.chapters,
            frames=min(frames, max_frames),
            max_frames=max_frames,
        )
    return Sampling(
        chunk_seconds=chunk,
        shots=video.shots,
        chapters=video.chapters,
        fps=fps or FPS,
        min_frames=min(stated.min_frames or 1, maximum),
        max_frames=maximum,
    )


def _chunk_seconds(profile: ModelProfile, video: VideoSamplingOptions) -> float:
    """Return the chunk length in seconds. By default it is at most what the processor states, and
    what the model hears at once if the run uses sound."""
    if video.whole or video.chunk is not None:
        return video.chunk or WHOLE_SECONDS
    is_given = video.fps or video.frames or video.max_frames
    stated = None if is_given else profile.sampling.seconds
    heard = profile.hearing.max_seconds if profile.hearing else 0.0
    return min(CHUNK_SECONDS, stated or CHUNK_SECONDS, heard or CHUNK_SECONDS)
