"""Limits the frames of a chunk to those that fit the model's context.

The limit depends on the model, and on the frame size where that determines the tokens per frame. It
never depends on a prompt or on `--max-new-tokens`: a fixed number of tokens is reserved for text,
so that another prompt needs no other frames. The module loads no model and opens no media file.
"""

from dataclasses import dataclass, field, replace

from artifacts.frame_fit import LARGE_EDGE
from artifacts.schema import ChunkIndex, Sampling
from flows.core.checkpoint.frame_sampling import default_full_chunk, full_chunk, requested_sampling
from flows.core.checkpoint.frame_tokens import frame_size_tokens, largest_video, measured_sizes
from flows.core.options.commands import RunOptions
from stages.encode import shown_frames
from stages.models.pixel_bounds import PixelBounds
from stages.models.profile import ModelProfile

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
    tokens, bounds = (
        {size.tokens for size in measured_sizes(profile, "video")},
        profile.video_bounds,
    )
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
    _limits: dict[tuple[int, int], int | None] = field(default_factory=dict, compare=False)

    def of(self, size: tuple[int, int]) -> int | None:
        """Return the most frames of this stored height and width that a chunk shows. None: no
        limit."""
        if size not in self._limits:
            max_frames = frames_of_size(self.profile, size)
            self._limits[size] = None if max_frames is None else max(1, max_frames)
        return self._limits[size]

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
