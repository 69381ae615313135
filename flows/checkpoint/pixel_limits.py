"""Checks `--max-pixels` and `--max-video-pixels` against the limits of a model's processor."""

from artifacts.errors import UsageError
from flows.options.commands import RunOptions
from flows.options.media import VideoSamplingOptions
from stages.models.profile import ModelProfile

MIN_TOKENS = 64
"""Smallest useful image, in tokens; a smaller one shows almost nothing."""


def check_pixels(config: RunOptions, profile: ModelProfile) -> None:
    """Check `--max-pixels` and `--max-video-pixels`. Raises UsageError if the model's processor has
    no such limit, or the value is too small."""
    video_options = VideoSamplingOptions.of(config)
    _check(
        "--max-pixels",
        video_options.max_pixels,
        profile.least_pixels,
        config.model,
    )
    min_pixels = profile.least_pixels if profile.video_bounds else 0
    _check("--max-video-pixels", video_options.max_video_pixels, min_pixels, config.model)


def _check(option: str, value: int | None, min_pixels: int, model: str) -> None:
    if value is None:
        return
    if not min_pixels:
        raise UsageError(
            f"{option}: not supported by {model} (its processor has no pixel limit)",
            hint="Leave it out; a smaller --max-frames also takes less memory",
        )
    if value < min_pixels:
        raise UsageError(
            f"{option} {value} is too small (one token of {model} covers {min_pixels} pixels)",
            hint=f"Give {MIN_TOKENS * min_pixels} or more",
        )
