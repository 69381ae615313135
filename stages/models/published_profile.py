"""Adds to a model's profile whether it runs as published, and the differences if not. Reads no
weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from artifacts.schema import Part
from stages.models.in_tree.registry import native_of
from stages.models.pixel_bounds import limits_frames
from stages.models.profile import ModelProfile, PartProfile
from stages.models.published import change_of, is_published_way, published_bounds


def with_published_facts(
    profile: ModelProfile, folder: Path, as_published: bool | None
) -> ModelProfile:
    """Return the profile of the checkpoint in a folder with its known differences.

    `as_published` decides how it is run, or the rule if None. An in-tree model runs as published
    only on request."""
    native, change = native_of(folder), change_of(folder)
    if native is not None:
        other = native.as_published
        parts = (
            _with_description(profile, other.part, other.description) if other else profile.parts
        )
        return replace(profile, parts=parts, as_published=bool(as_published and other))
    if change is None or profile.route == "dual":
        return profile
    parts = _with_description(profile, "language", change.description)
    frames, bounds = published_bounds(folder, as_published=True), profile.video_bounds
    if frames is not None and bounds is not None and limits_frames(bounds, frames):
        description = (
            f"frames of videos are kept between {frames.least:,} and {frames.most:,} pixels"
        )
        parts = {**parts, "vision": replace(parts["vision"], as_published=description)}
    return replace(profile, parts=parts, as_published=is_published_way(folder, as_published))


def _with_description(
    profile: ModelProfile, part: Part, description: str
) -> Mapping[Part, PartProfile]:
    return {**profile.parts, part: replace(profile.parts[part], as_published=description)}
