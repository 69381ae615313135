"""Checks `--max-pixels` and `--max-video-pixels` against the limits of a model's processor."""

from artifacts.errors import UsageError
from flows.options.commands import RunOptions
from flows.options.media import VideoSamplingOptions
from stages.models.profile import ModelProfile

TOKENS = 64
"""Tokens below which a picture shows next to nothing."""


def check_pixels(config: RunOptions, profile: ModelProfile) -> None:
    """Refuse `--max-pixels` and `--max-video-pixels` where the model's processor has no such limit,
    or where the value is too small. Raises UsageError."""
    video_options = VideoSamplingOptions.of(config)
    _check(
        "--max-pixels",
        video_options.max_pixels,
        profile.least_pixels,
        config.model,
    )
    least = profile.least_pixels if profile.video_bounds else 0
    _check("--max-video-pixels", video_options.max_video_pixels, least, config.model)


def _check(option: str, value: int | None, least: int, model: str) -> None:
    if value is None:
        return
    if not least:
        raise UsageError(
            f"the processor of {model} has no limit of pixels that {option} could set",
            hint="Leave it out; fewer frames take less memory, too: --max-frames",
        )
    if value < least:
        raise UsageError(
            f"{option} is {value}, and one token of {model} has {least}",
            hint=f"Give {TOKENS * least} or more",
        )
