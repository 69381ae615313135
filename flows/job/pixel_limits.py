"""Checks `--max-pixels` against the limits of a model's processor."""

from artifacts.errors import UsageError
from flows.job.config import CaptionConfig
from stages.models.profile import ModelProfile

TOKENS = 64
"""Tokens below which a picture shows next to nothing."""


def check_pixels(config: CaptionConfig, profile: ModelProfile) -> None:
    """Refuse `--max-pixels` where the model's processor has no such limit, or where the value is
    too small. Raises UsageError."""
    if config.max_pixels is None:
        return
    least = profile.least_pixels
    if not least:
        raise UsageError(
            f"the processor of {config.model} has no limit of pixels that --max-pixels could set",
            hint="Leave it out; fewer frames take less memory, too: --max-frames",
        )
    if config.max_pixels < least:
        raise UsageError(
            f"--max-pixels is {config.max_pixels}, and one token of {config.model} has {least}",
            hint=f"Give {TOKENS * least} or more",
        )
