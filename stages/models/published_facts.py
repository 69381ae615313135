"""What authors of published checkpoints state about videos, context and sampling, and what later
releases of transformers changed.

`published_facts.json` has one entry for each `model_type`, with its source. A fact without a
confirming source is left out, so its field stays empty. `total_pixels` of qwen-vl-utils counts the
frames of a pair once: `pixels_a_video` is twice that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

TABLE = "published_facts.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFacts:
    """What the authors of a family of checkpoints state; an empty field is unknown."""

    pixels_a_frame: tuple[int, int] | None = None
    """Minimum and maximum pixels per video frame in the author's script; None if transformers uses
    the same."""
    token_side: int = 0
    """Side length in pixels of the square that becomes one token, for these pixel counts."""
    pixels_a_video: int = 0
    """Maximum pixels of all frames of a video together; 0: no known limit."""
    context: int = 0
    """Positions that the decoder was trained for, without RoPE scaling; 0: unknown, or different
    among the checkpoints of the family."""
    fps: float | None = None
    """Frames per second in the author's script; None with `frames`: the script spreads that number
    of frames over the video, whatever its length."""
    frames: int | None = None
    """Maximum frames per video in the author's script."""
    last_frame: bool = False
    """Whether the script spreads frames from the first to the last frame, both included."""
    system: str | None = None
    """System turn of the author's script if it differs from the chat template's; None: the same."""
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
    found = {}
    for family, facts in table.items():
        if (edges := facts.get("pixels_a_frame")) is not None:
            facts["pixels_a_frame"] = (edges[0], edges[1])
        found[family] = FamilyFacts(**facts)
    return found


FACTS: Mapping[str, FamilyFacts] = _read()
"""`model_type` of a config.json → facts."""


def facts_of(model_type: str) -> FamilyFacts:
    """Return the facts about a family by its `model_type`; empty facts if unknown."""
    return FACTS.get(model_type, FamilyFacts())
