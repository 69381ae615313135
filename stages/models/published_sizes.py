"""Gives the range of pixel counts in which a checkpoint's authors keep video frames."""

from pathlib import Path

from stages.models.pixel_bounds import PixelBounds
from stages.models.published import change_of, config_of, is_published_way
from stages.models.published_facts import facts_of


def published_bounds(folder: Path, as_published: bool | None = None) -> PixelBounds | None:
    """Return the pixel bounds for videos of a checkpoint that is run as published.

    If `as_published` is None, the rule decides. Return None if the processor's own bounds apply, as
    for every checkpoint that is run as stock."""
    change = change_of(folder)
    if change is None or not change.positions or not is_published_way(folder, as_published):
        return None
    facts = facts_of(str(config_of(folder).get("model_type", "")))
    if facts.pixels_a_frame is None:
        return None
    min_pixels, max_pixels = facts.pixels_a_frame
    side, video = facts.token_side, facts.pixels_a_video
    return PixelBounds(side=side, least=min_pixels, most=max_pixels, a_video=video)
