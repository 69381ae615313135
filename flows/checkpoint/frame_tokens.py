"""Computes from a model's profile how many tokens and bytes its processor produces for frames of a
given size. Opens no file.
"""

import math

from artifacts.schema import FrameFit, MediaKind
from stages.models.profile import ModelProfile, SeenSize

PROBED_EDGE = 1280
"""Side, in pixels, of the largest square frame whose tokens a profile holds."""


def known_sizes(profile: ModelProfile, kind: MediaKind) -> list[SeenSize]:
    """Return what is known of square frames, smallest first."""
    image = kind == "image"
    largest = SeenSize(
        edge=PROBED_EDGE,
        tokens=profile.image_tokens if image else profile.frame_tokens,
        pixel_bytes=profile.image_pixel_bytes if image else profile.frame_pixel_bytes,
    )
    return [*(profile.image_sizes if image else profile.frame_sizes), largest]


def max_of_a_video(profile: ModelProfile) -> tuple[float, float]:
    """Return most tokens and pixel bytes of all frames of a video together. They follow from a size
    at which two of them are seen as large as they are."""
    known, most = known_sizes(profile, "video"), profile.pixels_a_video
    whole = [size for size in known if 2 * size.edge**2 <= most]
    if not whole:
        return 2 * known[-1].tokens, 2 * known[-1].pixel_bytes
    times = most / whole[-1].edge ** 2
    return times * whole[-1].tokens, times * whole[-1].pixel_bytes


def seen(
    profile: ModelProfile, fit: FrameFit, kind: MediaKind, size: tuple[int, int]
) -> tuple[float, float]:
    """Return tokens and pixel bytes of a frame that is seen at this height and width. They follow
    from what the profile says of square ones of as many pixels."""
    known = known_sizes(profile, kind)
    largest = known[-1]
    # A frame as large as any is ever seen counts as one.
    square = math.prod(fit.size(PROBED_EDGE, PROBED_EDGE))
    pixels = math.prod(size)
    if pixels >= square and fit.long_edges:
        return largest.tokens, largest.pixel_bytes
    above = next((i for i, size in enumerate(known) if size.edge**2 >= pixels), len(known) - 1)
    high, low = known[above], known[max(above - 1, 0)]
    share = 1.0
    if high.edge > low.edge:  # what is seen as large as it is goes on growing
        share = max(0.0, (pixels - low.edge**2) / (high.edge**2 - low.edge**2))

    def between(a: int, b: int) -> float:
        return a + share * (b - a)

    return between(low.tokens, high.tokens), between(low.pixel_bytes, high.pixel_bytes)


def counted_frames(profile: ModelProfile, kind: MediaKind, frames: int) -> int:
    """Return the frames of a chunk as an encoder counts them: those that take them in pairs make
    two of an odd one."""
    video = "video" in profile.modalities and kind == "video"
    return max(frames, frames + frames % 2 if video else 1)


def seen_together(
    profile: ModelProfile, kind: MediaKind, frames: int, size: tuple[int, int]
) -> tuple[float, float]:
    """Return tokens and pixel bytes of each counted frame of a chunk of so many frames that are
    seen at this height and width."""
    fit = profile.fit_image if kind == "image" else profile.fit_video
    tokens, pixel_bytes = seen(profile, fit, kind, size)
    counted = counted_frames(profile, kind, frames)
    if kind == "video" and (bounds := profile.video_bounds):
        exact = bounds.tokens(frames, *size) / counted
        return exact, pixel_bytes * (exact / tokens if tokens else 1.0)
    if kind == "video" and profile.pixels_a_video:
        most_tokens, most_bytes = max_of_a_video(profile)
        return min(tokens, most_tokens / counted), min(pixel_bytes, most_bytes / counted)
    return tokens, pixel_bytes
