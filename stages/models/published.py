"""Runs a checkpoint as its authors published it where later releases of transformers differ.

Releases of transformers changed the inputs of some families. Since 5.3 the positions of the text
after a video differ. Since 5.10 a video has a second pair of vision tokens around it. Weights made
before such a release were trained without the change. The facts name these families.
`runs_as_published` decides whether a checkpoint runs as published or as the installed transformers
runs it: it compares the release that wrote the checkpoint's config.json with that of the change. A
checkpoint written by this program states the choice under `FIELD`.

`published_facts.json` holds what authors of published checkpoints state about videos, context and
sampling, with one entry and its source for each `model_type`. A fact without a confirming source is
left out, so its field stays empty. `total_pixels` of qwen-vl-utils counts the frames of a pair
once: `pixels_per_video` is twice that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from stages.models.hub.checkpoint import json_bytes, read_config
from stages.models.pixel_bounds import PixelBounds, limits_frames
from stages.models.profile import ModelProfile

TABLE = "published_facts.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFacts:
    """What the authors of a family of checkpoints state; an empty field is unknown."""

    pixels_per_frame: tuple[int, int] | None = None
    """Minimum and maximum pixels per video frame in the author's script; None if transformers uses
    the same."""
    token_side: int = 0
    """Side length in pixels of the square that becomes one token, for these pixel counts."""
    pixels_per_video: int = 0
    """Maximum pixels of all frames of a video together; 0: no known limit."""
    context: int = 0
    """Positions that the decoder was trained for, without RoPE scaling; 0: unknown, or different
    among the checkpoints of the family."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Values from the model card of the instruction-tuned checkpoints: `temperature` (0: greedy),
    `top_p`, `top_k`, `presence_penalty`, `repetition_penalty`."""
    source: str = ""
    """Source of these facts: repository, file and commit, or a web page."""
    change: str = ""
    """What a later release of transformers changed: `positions` or `outer pair`."""
    change_source: str = ""
    """Source that shows that the authors trained without the change."""


def _read() -> dict[str, FamilyFacts]:
    table: dict[str, dict[str, Any]] = json.loads(
        files(__package__).joinpath(TABLE).read_text(encoding="utf-8")
    )
    families = {}
    for family, facts in table.items():
        if (edges := facts.get("pixels_per_frame")) is not None:
            facts["pixels_per_frame"] = (edges[0], edges[1])
        families[family] = FamilyFacts(**facts)
    return families


FACTS: Mapping[str, FamilyFacts] = _read()
"""`model_type` of a config.json → facts."""


def facts_of(model_type: str) -> FamilyFacts:
    """Return the facts about a family by its `model_type`; empty facts if unknown."""
    return FACTS.get(model_type, FamilyFacts())


FIELD = "penstock_as_published"
"""Field of a config.json, written by Penstock or by hand: whether the checkpoint was made as
published."""
AS_PUBLISHED, AS_STOCK = "true", "false"
"""Values of the field in the metadata of an adapter's weights; metadata values are strings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StockChange:
    """A change in transformers that older weights were not trained with."""

    release: str
    """First release of transformers with the change."""
    description: str
    """How a checkpoint runs without the change, for people."""
    positions: bool = False
    """Whether the change concerns position ids. Then the sizes of videos differ as well."""


POSITIONS = StockChange(
    release="5.3",
    description="the text after a video is placed behind it (transformers places it inside a video "
    "that is longer than its sides)",
    positions=True,
)
OUTER_PAIR = StockChange(
    release="5.10", description="no second pair of vision tokens is put around a video"
)
CHANGES = {"positions": POSITIONS, "outer pair": OUTER_PAIR}
"""Changes by their names in the facts."""


def change_of(folder: Path) -> StockChange | None:
    """Return the change in transformers that concerns a checkpoint's family; None if unknown."""
    return _change_in(read_config(folder))


def _change_in(config: Mapping[str, Any]) -> StockChange | None:
    return CHANGES.get(facts_of(str(config.get("model_type", ""))).change)


def runs_as_published(folder: Path, as_published: bool | None = None) -> bool:
    """Return whether a checkpoint is run as published.

    `as_published` decides if given. Else the checkpoint's own statement decides. Without one, the
    rule is whether its config.json names a transformers older than the change."""
    config = read_config(folder)
    if _change_in(config) is None:
        return False
    if as_published is not None:
        return as_published
    if isinstance(recorded := config.get(FIELD), bool):
        return recorded
    return _is_older(config)


def states_as_published(folder: Path) -> bool:
    """Return whether a checkpoint itself states how it is run."""
    return isinstance(read_config(folder).get(FIELD), bool)


def stating_as_published(config: bytes, as_published: bool) -> bytes:
    """Return a config.json that states how its checkpoint was run. Return the same bytes if the
    rule cannot decide otherwise."""
    fields = json.loads(config)
    if not isinstance(fields, dict) or not _rule_may_differ(fields, as_published):
        return config
    return json_bytes({**fields, FIELD: as_published})


def as_published_metadata(folder: Path, as_published: bool) -> dict[str, str]:
    """Return the adapter metadata that state how the checkpoint was run in training. Return nothing
    if the rule cannot decide otherwise."""
    if not _rule_may_differ(read_config(folder), as_published):
        return {}
    return {FIELD: AS_PUBLISHED if as_published else AS_STOCK}


def _rule_may_differ(config: Mapping[str, Any], as_published: bool) -> bool:
    """Return whether the rule might run a checkpoint with this configuration differently than
    `as_published` says."""
    changed = _change_in(config) is not None
    return changed and (as_published or FIELD in config or _is_older(config))


def _is_older(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration was written before transformers changed its family."""
    change = _change_in(config)
    return change is not None and is_before(config.get("transformers_version"), change.release)


def is_before(version: object, release: str) -> bool:
    """Return whether a version is older than a release. A development version counts as the release
    that it leads to. An invalid version is not older."""
    from packaging.version import InvalidVersion, Version

    try:
        parsed = Version(version if isinstance(version, str) else "")
    except InvalidVersion:
        return False
    return Version(parsed.base_version) < Version(release)


def published_bounds(folder: Path, as_published: bool | None = None) -> PixelBounds | None:
    """Return the pixel bounds for videos of a checkpoint that is run as published.

    If `as_published` is None, the rule decides. Return None if the processor's own bounds apply, as
    for every checkpoint that is run as stock."""
    change = change_of(folder)
    if change is None or not change.positions or not runs_as_published(folder, as_published):
        return None
    facts = facts_of(str(read_config(folder).get("model_type", "")))
    if facts.pixels_per_frame is None:
        return None
    min_pixels, max_pixels = facts.pixels_per_frame
    side, video = facts.token_side, facts.pixels_per_video
    return PixelBounds(side=side, least=min_pixels, most=max_pixels, per_video=video)


def with_published_facts(
    profile: ModelProfile, folder: Path, as_published: bool | None
) -> ModelProfile:
    """Return the profile of the checkpoint in a folder with its known differences.

    `as_published` decides how it is run, or the rule if None."""
    change = change_of(folder)
    if change is None or profile.route == "dual":
        return profile
    language = replace(profile.parts["language"], as_published=change.description)
    parts = {**profile.parts, "language": language}
    frames, bounds = published_bounds(folder, as_published=True), profile.video_bounds
    if frames is not None and bounds is not None and limits_frames(bounds, frames):
        description = (
            f"frames of videos are kept between {frames.least:,} and {frames.most:,} pixels"
        )
        parts = {**parts, "vision": replace(parts["vision"], as_published=description)}
    return replace(profile, parts=parts, as_published=runs_as_published(folder, as_published))
