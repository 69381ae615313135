"""Limits the frames of a chunk by the model's context length. Opens no file.

The limit depends on the model, and on the frame size where that determines the tokens per frame. It
never depends on a prompt or on `--max-new-tokens`: a fixed number of tokens is reserved for text,
so that another prompt needs no other frames.
"""

from dataclasses import dataclass, field, replace

from artifacts.schema import LARGE_EDGE, ChunkIndex
from flows.checkpoint.frame_tokens import known_sizes, max_of_a_video, seen
from flows.checkpoint.requested_frames import usual_frames
from stages.encode.shown_frames import shown_frames
from stages.models.pixel_bounds import PixelBounds
from stages.models.profile import ModelProfile

RESERVE_TOKENS = 1024
"""Tokens of the context that are kept for words."""
RESERVE_SHARE = 4
"""One part in so many of the context, where that is less."""
MOST_TRIED = 2048
"""Frames of a chunk that are tried at the most where their number decides their size."""
USUAL_WORDS = 320
"""Tokens of the question and the longest answer where the user sets neither."""


def frame_room(profile: ModelProfile) -> int:
    """Return the tokens of the context that the frames of a chunk may take; 0 where the context is
    unknown, or frames stand elsewhere."""
    if profile.route == "dual" or profile.is_encoder_decoder:
        return 0
    return tokens_for_frames(profile.context_tokens)


def tokens_for_frames(context: int) -> int:
    """Return the tokens of a context that are not kept for words."""
    return context - min(RESERVE_TOKENS, context // RESERVE_SHARE)


def frames_of_any_size(profile: ModelProfile) -> int | None:
    """Return the most frames of a chunk that fit the context, of a model that makes the same number
    of tokens of any frame. None: the context sets no such bound."""
    tokens, bounds = {each.tokens for each in known_sizes(profile, "video")}, profile.video_bounds
    together = bounds is not None and not (bounds.times and not bounds.a_video)
    if profile.frames_a_video or together or len(tokens) > 1:
        return None
    (each,) = tokens
    return _fitting(profile, each) if each else None


def frames_of_size(profile: ModelProfile, size: tuple[int, int]) -> int | None:
    """Return the most frames of this height and width, as stored, of a chunk that fit the context.
    None: it sets no bound."""
    each, _ = seen(profile, profile.fit_video, "video", size)
    room = frame_room(profile)
    if profile.frames_a_video or not each or not room:
        return None
    if profile.video_bounds is not None:
        return _counted(profile, profile.video_bounds, size)
    if profile.pixels_a_video:
        # Of many frames of a video each is seen smaller, so that all together take no more.
        left = room - max_of_a_video(profile)[0]
        if left >= 0:
            words = profile.words_a_frame
            return max(_fitting(profile, each) or 0, int(left // words)) if words else None
    return _fitting(profile, each)


def _counted(profile: ModelProfile, bounds: PixelBounds, size: tuple[int, int]) -> int | None:
    """Return the same where it is known to which size a video of so many frames is resized."""

    def tokens(count: int) -> int:
        return bounds.tokens(count, *size) + count * profile.words_a_frame

    room, usual = frame_room(profile), usual_frames(profile)
    if tokens(usual) <= profile.context_tokens - _usual_words(profile):
        room = max(room, tokens(usual))
    if tokens(MOST_TRIED) <= room:
        return None
    return next((count for count in range(MOST_TRIED, 0, -1) if tokens(count) <= room), 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameBound:
    """The frame limit of a model whose tokens per frame grow with the frame size."""

    profile: ModelProfile
    _known: dict[tuple[int, int], int | None] = field(default_factory=dict, compare=False)

    def of(self, size: tuple[int, int]) -> int | None:
        """Return the most frames of this height and width, as stored, that are shown of a chunk;
        None: any number."""
        if size not in self._known:
            most = frames_of_size(self.profile, size)
            self._known[size] = None if most is None else max(1, most)
        return self._known[size]

    def shown(self, chunk: ChunkIndex) -> ChunkIndex:
        """Return a chunk with the frames that are shown of it, evenly over all that it has."""
        most = self.of((chunk.height, chunk.width))
        if most is None or len(chunk.times) <= most:
            return chunk
        return replace(chunk, times=shown_frames(chunk.times, chunk.end - chunk.start, most)[1])


def bound_by_size(profile: ModelProfile, frames: int) -> FrameBound | None:
    """Return the bound of a model where it depends on the size of frames; None where as many
    `frames` fit as large as they are ever seen."""
    if not frame_room(profile) or frames_of_any_size(profile) is not None:
        return None
    most = frames_of_size(profile, (LARGE_EDGE, LARGE_EDGE))
    return None if most is None or frames <= most else FrameBound(profile=profile)


def _fitting(profile: ModelProfile, each: float) -> int | None:
    """Return how many frames fit that are so many tokens each. Those of a run where the user asks
    for none fit as soon as they leave room for its usual words."""
    room, context = frame_room(profile), profile.context_tokens
    if not room:
        return None
    most = int(room // (each + profile.words_a_frame))
    # Encoders that take frames in pairs make two of an odd one: half of the reserve is for words.
    if "video" in profile.modalities and most % 2 and (most + 1) * each > (room + context) / 2:
        most -= 1
    usual = usual_frames(profile)
    fits = usual * (each + profile.words_a_frame) + _usual_words(profile) <= context
    return max(most, usual) if fits else most


def _usual_words(profile: ModelProfile) -> int:
    """Return the tokens of a prompt and an answer where the user sets neither."""
    return profile.words_a_prompt + USUAL_WORDS
