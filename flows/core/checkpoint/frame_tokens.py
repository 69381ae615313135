"""Counts the tokens and bytes that a checkpoint's processor makes of frames of a given size, by the
model's profile.
"""

import math

from artifacts.schema import MediaKind
from stages.models.profile import ModelProfile, SeenSize

PROBED_EDGE = 1280
"""Edge, in pixels, of the largest square frame whose tokens a profile holds."""


def measured_sizes(profile: ModelProfile, kind: MediaKind) -> list[SeenSize]:
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
    sizes, max_pixels = measured_sizes(profile, "video"), profile.pixels_per_video
    unscaled = [size for size in sizes if 2 * size.edge**2 <= max_pixels]
    if not unscaled:
        return 2 * sizes[-1].tokens, 2 * sizes[-1].pixel_bytes
    ratio = max_pixels / unscaled[-1].edge ** 2
    return ratio * unscaled[-1].tokens, ratio * unscaled[-1].pixel_bytes


def frame_size_tokens(
    profile: ModelProfile, kind: MediaKind, size: tuple[int, int]
) -> tuple[float, float]:
    """Return tokens and pixel bytes of a frame that the model sees at this height and width,
    interpolated between the profile's square frames by pixel count."""
    sizes = measured_sizes(profile, kind)
    largest, fit = sizes[-1], profile.fit_image if kind == "image" else profile.fit_video
    # A frame of at least the largest size counts as the largest one.
    square = math.prod(fit.size(PROBED_EDGE, PROBED_EDGE))
    pixels = math.prod(size)
    if pixels >= square and fit.long_edges:
        return largest.tokens, largest.pixel_bytes
    above = next((i for i, size in enumerate(sizes) if size.edge**2 >= pixels), len(sizes) - 1)
    high, low = sizes[above], sizes[max(above - 1, 0)]
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
