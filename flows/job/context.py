"""Bounds the frames of a chunk by the model's context; opens no file.

The bound depends on the model, and on the size of the frames where that decides their tokens. It
never depends on a prompt or on `--max-new-tokens`: words have a reserve of their own, so that
another question needs no other frames.
"""

from flows.job.frame_tokens import known_sizes, most_of_a_video, seen
from stages.models.profile import ModelProfile

RESERVE_TOKENS = 1024
"""Tokens of the context that are kept for words."""
RESERVE_SHARE = 4
"""One part in so many of the context, where that is less."""
USUAL_WORDS = 320
"""Tokens of the question and the longest answer where the user sets neither."""


def frame_room(profile: ModelProfile) -> int:
    """Return the tokens of the context that the frames of a chunk may take; 0 where the context is
    unknown, or frames stand elsewhere."""
    context = profile.context_tokens
    if profile.route == "dual" or profile.is_encoder_decoder:
        return 0
    return context - min(RESERVE_TOKENS, context // RESERVE_SHARE)


def frames_of_any_size(profile: ModelProfile) -> int | None:
    """Return the most frames of a chunk that fit the context, of a model that makes the same number
    of tokens of any frame. None: the context sets no such bound."""
    if profile.frames_a_video or len({each.tokens for each in known_sizes(profile, "video")}) > 1:
        return None
    each = known_sizes(profile, "video")[-1].tokens
    return _fitting(profile, each) if each else None


def frames_of_size(profile: ModelProfile, size: tuple[int, int]) -> int | None:
    """Return the most frames of this height and width, as stored, of a chunk that fit the context.
    None: it sets no bound."""
    each, _ = seen(profile, profile.fit_video, "video", size)
    if profile.frames_a_video or not each:
        return None
    most = _fitting(profile, each)
    if most is None or not profile.pixels_a_video:
        return most
    # Of many frames of a video each is seen smaller, so that all together take no more than this.
    left = frame_room(profile) - most_of_a_video(profile)[0]
    if left >= 0 and not profile.words_a_frame:
        return None
    return max(most, int(left // profile.words_a_frame)) if left >= 0 else most


def _fitting(profile: ModelProfile, each: float) -> int | None:
    """Return how many frames fit that are so many tokens each. The number that the checkpoint's own
    processor states fits as soon as it leaves room for the usual words."""
    room, context = frame_room(profile), profile.context_tokens
    if not room:
        return None
    most = int(room // (each + profile.words_a_frame))
    # Encoders that take frames in pairs make two of an odd one: half of the reserve is for words.
    if "video" in profile.modalities and most % 2 and (most + 1) * each > (room + context) / 2:
        most -= 1
    stated = profile.sampling.max_frames or profile.sampling.frames or 0
    words = profile.words_a_prompt + USUAL_WORDS
    return max(most, stated) if stated * (each + profile.words_a_frame) + words <= context else most
