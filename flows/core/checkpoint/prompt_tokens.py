"""Selects the frames of a chunk that a model gets, and counts the tokens of its prompts.

The user's options select the frames, or else the defaults of the checkpoint's processor. The
model's context then limits them. The limit depends on the model, and on the frame size where that
determines the tokens per frame. It never depends on a prompt or on `--max-new-tokens`: a fixed
number of tokens is reserved for text, so that another prompt needs no other frames.

The model's profile determines how many tokens and bytes the processor makes of frames of a given
size. The checkpoint's tokenizer counts the tokens of a prompt. The module loads no model and opens
no media file.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artifacts.frame_fit import LARGE_EDGE
from artifacts.schema import WHOLE_SECONDS, ChunkIndex, MediaKind, Sampling
from artifacts.tiles import OFF
from flows.core.options.commands import RunOptions
from flows.core.options.media import OVERLAP, VectorSamplingOptions, VideoSamplingOptions
from stages.encode import shown_frames
from stages.models.pixel_bounds import PixelBounds
from stages.models.profile import ModelProfile, SeenSize

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


PROBED_EDGE = 1280
"""Edge, in pixels, of the largest square frame whose tokens a profile holds."""


def known_sizes(profile: ModelProfile, kind: MediaKind) -> list[SeenSize]:
    """Return the measured sizes of square frames, smallest first."""
    image = kind == "image"
    largest = SeenSize(
        edge=PROBED_EDGE,
        tokens=profile.image_tokens if image else profile.frame_tokens,
        pixel_bytes=profile.image_pixel_bytes if image else profile.frame_pixel_bytes,
    )
    return [*(profile.image_sizes if image else profile.frame_sizes), largest]


def largest_video(profile: ModelProfile) -> tuple[float, float]:
    """Return the largest token count and pixel bytes of all frames of a video together. They follow
    from a size at which two frames are not yet downscaled."""
    known, max_pixels = known_sizes(profile, "video"), profile.pixels_per_video
    unscaled = [size for size in known if 2 * size.edge**2 <= max_pixels]
    if not unscaled:
        return 2 * known[-1].tokens, 2 * known[-1].pixel_bytes
    ratio = max_pixels / unscaled[-1].edge ** 2
    return ratio * unscaled[-1].tokens, ratio * unscaled[-1].pixel_bytes


def frame_size_tokens(
    profile: ModelProfile, kind: MediaKind, size: tuple[int, int]
) -> tuple[float, float]:
    """Return tokens and pixel bytes of a frame that the model sees at this height and width,
    interpolated between the profile's square frames by pixel count."""
    known = known_sizes(profile, kind)
    largest, fit = known[-1], profile.fit_image if kind == "image" else profile.fit_video
    # A frame of at least the largest size counts as the largest one.
    square = math.prod(fit.size(PROBED_EDGE, PROBED_EDGE))
    pixels = math.prod(size)
    if pixels >= square and fit.long_edges:
        return largest.tokens, largest.pixel_bytes
    above = next((i for i, size in enumerate(known) if size.edge**2 >= pixels), len(known) - 1)
    high, low = known[above], known[max(above - 1, 0)]
    share = 1.0
    if high.edge > low.edge:  # frames that are not downscaled keep growing
        share = max(0.0, (pixels - low.edge**2) / (high.edge**2 - low.edge**2))

    def between(a: int, b: int) -> float:
        return a + share * (b - a)

    return between(low.tokens, high.tokens), between(low.pixel_bytes, high.pixel_bytes)


def encoder_frames(profile: ModelProfile, kind: MediaKind, frames: int) -> int:
    """Return the number of frames that the encoder counts. Encoders that take frames in pairs round
    an odd number up."""
    video = "video" in profile.modalities and kind == "video"
    return max(frames, frames + frames % 2 if video else 1)


def chunk_frame_tokens(
    profile: ModelProfile, kind: MediaKind, frames: int, size: tuple[int, int]
) -> tuple[float, float]:
    """Return tokens and pixel bytes per counted frame, for a chunk of so many frames that the model
    sees at this height and width."""
    tokens, pixel_bytes = frame_size_tokens(profile, kind, size)
    encoder_count = encoder_frames(profile, kind, frames)
    if kind == "video" and (bounds := profile.video_bounds):
        exact = bounds.tokens(frames, *size) / encoder_count
        return exact, pixel_bytes * (exact / tokens if tokens else 1.0)
    if kind == "video" and profile.pixels_per_video:
        video_tokens, video_bytes = largest_video(profile)
        return min(tokens, video_tokens / encoder_count), min(
            pixel_bytes, video_bytes / encoder_count
        )
    return tokens, pixel_bytes


TOKENIZER = "tokenizer.json"


def max_prompt_tokens(text: str) -> int:
    """Return an upper bound of a text's tokens: each token has at least one byte."""
    return len(text.encode("utf-8", "replace"))


class PromptTokens:
    """The tokenizer of one checkpoint, loaded on first use."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOKENIZER
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, or 0 if only the half's processor can count
        them."""
        return len(self.ids(text))

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text; none if only the half's processor knows them."""
        from tokenizers import Tokenizer

        with self._lock:
            try:
                if self._tokenizer is None:
                    self._tokenizer = Tokenizer.from_file(str(self._path))
                    # Some files say to which length texts are cut or filled.
                    self._tokenizer.no_truncation()
                    self._tokenizer.no_padding()
                return [*self._tokenizer.encode(text, add_special_tokens=False).ids]
            except Exception:  # other tokenizer formats are read by the half
                return []


RESERVE_TOKENS = 1024
"""Tokens of the context reserved for text."""
RESERVE_SHARE = 4
"""At most one part in this many of the context is reserved for text."""
MAX_TRIED = 2048
"""Largest number of frames tried for models whose frame size depends on that number."""
USUAL_TEXT_TOKENS = 320
"""Tokens of the default prompt and the longest default answer."""


def frame_room(profile: ModelProfile) -> int:
    """Return the tokens of the context that frames of a chunk may take. Return 0 if the context is
    unknown or does not hold the frames."""
    if profile.route == "dual" or profile.is_encoder_decoder:
        return 0
    return tokens_for_frames(profile.context_tokens)


def tokens_for_frames(context: int) -> int:
    """Return the tokens of a context that are not reserved for text."""
    return context - min(RESERVE_TOKENS, context // RESERVE_SHARE)


def frames_of_any_size(profile: ModelProfile) -> int | None:
    """Return how many frames of a chunk fit the context, for a model with a fixed token count per
    frame. None: the context sets no such limit."""
    tokens, bounds = {size.tokens for size in known_sizes(profile, "video")}, profile.video_bounds
    together = bounds is not None and not (bounds.times and not bounds.per_video)
    if profile.frames_per_video or together or len(tokens) > 1:
        return None
    (frame_tokens,) = tokens
    return _frames_that_fit(profile, frame_tokens) if frame_tokens else None


def frames_of_size(profile: ModelProfile, size: tuple[int, int]) -> int | None:
    """Return how many frames of this stored height and width fit the context. None: no limit."""
    frame_tokens, _ = frame_size_tokens(profile, "video", size)
    room = frame_room(profile)
    if profile.frames_per_video or not frame_tokens or not room:
        return None
    if profile.video_bounds is not None:
        return _frames_by_bounds(profile, profile.video_bounds, size)
    if profile.pixels_per_video:
        # Frames of a video with many frames are scaled down, so that their total stays constant.
        remaining = room - largest_video(profile)[0]
        if remaining >= 0:
            if not (text := profile.tokens_per_frame):
                return None
            return max(_frames_that_fit(profile, frame_tokens) or 0, int(remaining // text))
    return _frames_that_fit(profile, frame_tokens)


def _frames_by_bounds(
    profile: ModelProfile, bounds: PixelBounds, size: tuple[int, int]
) -> int | None:
    """Return the same for a model whose resizing of a video is known from its frame count."""

    def tokens(count: int) -> int:
        return bounds.tokens(count, *size) + count * profile.tokens_per_frame

    room, usual = frame_room(profile), default_full_chunk(profile)
    if tokens(usual) <= profile.context_tokens - _usual_text_tokens(profile):
        room = max(room, tokens(usual))
    if tokens(MAX_TRIED) <= room:
        return None
    return next((count for count in range(MAX_TRIED, 0, -1) if tokens(count) <= room), 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameBound:
    """The frame limit of a model whose tokens per frame grow with the frame size."""

    profile: ModelProfile
    _known: dict[tuple[int, int], int | None] = field(default_factory=dict, compare=False)

    def of(self, size: tuple[int, int]) -> int | None:
        """Return the most frames of this stored height and width that a chunk shows. None: no
        limit."""
        if size not in self._known:
            max_frames = frames_of_size(self.profile, size)
            self._known[size] = None if max_frames is None else max(1, max_frames)
        return self._known[size]

    def shown(self, chunk: ChunkIndex) -> ChunkIndex:
        """Return a chunk with the frames that the model gets, spread evenly over all of its
        frames."""
        max_frames = self.of((chunk.height, chunk.width))
        if max_frames is None or len(chunk.times) <= max_frames:
            return chunk
        return replace(
            chunk, times=shown_frames(chunk.times, chunk.end - chunk.start, max_frames)[1]
        )


def sampling_of(profile: ModelProfile, config: RunOptions) -> Sampling:
    """Return the sampling of frames that the model gets."""
    sampling = requested_sampling(profile, config)
    max_frames = frames_of_any_size(profile)
    if max_frames is None or full_chunk(sampling) <= max_frames:
        return sampling
    max_frames = max(1, max_frames)
    return replace(
        sampling,
        frames=sampling.frames and min(sampling.frames, max_frames),
        min_frames=min(sampling.min_frames, max_frames),
        max_frames=max_frames,
    )


def frame_bound(profile: ModelProfile, config: RunOptions) -> FrameBound | None:
    """Return the frame limit of a model if it depends on the frame size. Return None if a full
    chunk of the largest frames fits."""
    if not frame_room(profile) or frames_of_any_size(profile) is not None:
        return None
    max_frames = frames_of_size(profile, (LARGE_EDGE, LARGE_EDGE))
    fits = max_frames is None or full_chunk(requested_sampling(profile, config)) <= max_frames
    return None if fits else FrameBound(profile=profile)


def _frames_that_fit(profile: ModelProfile, frame_tokens: float) -> int | None:
    """Return how many frames of so many tokens each fit. The default number of frames already fits
    if it leaves room for the default text."""
    room, context = frame_room(profile), profile.context_tokens
    if not room:
        return None
    with_text = frame_tokens + profile.tokens_per_frame
    max_frames = int(room // with_text)
    # Encoders that take frames in pairs round an odd number up. Half of the reserve stays for text.
    if (
        "video" in profile.modalities
        and max_frames % 2
        and (max_frames + 1) * frame_tokens > (room + context) / 2
    ):
        max_frames -= 1
    usual = default_full_chunk(profile)
    fits = usual * with_text + _usual_text_tokens(profile) <= context
    return max(max_frames, usual) if fits else max_frames


def _usual_text_tokens(profile: ModelProfile) -> int:
    return profile.tokens_per_prompt + USUAL_TEXT_TOKENS
