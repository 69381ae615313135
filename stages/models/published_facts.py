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
    """Least and most pixels of a video's frame, as the author's script keeps them; None where
    transformers keeps the same."""
    token_side: int = 0
    """Pixels of the side of what becomes one token, to which these numbers of pixels belong."""
    pixels_a_video: int = 0
    """Most pixels of all frames of a video together; 0: no limit is known."""
    context: int = 0
    """Positions that the decoder was made for, without RoPE scaling; 0: not known, or not the same
    for all checkpoints of the family."""
    fps: float | None = None
    """Frames a second that the author's script takes; None with `frames`: it spreads that number of
    frames over the video, however long."""
    frames: int | None = None
    """Most frames of a video that it takes."""
    last_frame: bool = False
    """Whether it spreads frames from the first to the last one of the video, both taken."""
    system: str | None = None
    """System turn of the author's script where it differs from the chat template's; None: as the
    template."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Values that the card of the instruction-tuned checkpoints states: `temperature` (0: greedy),
    `top_p`, `top_k`, `presence_penalty`, `repetition_penalty`."""
    source: str = ""
    """Where all of this stands: repository, file and commit, or the page."""
    change: str = ""
    """What a later release of transformers changed for it: `positions` or `outer pair`."""
    change_source: str = ""
    """Where it stands that the authors trained without the change."""


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
"""`model_type` of config.json → facts."""


def facts_of(model_type: str) -> FamilyFacts:
    """Return what is known of a family by its `model_type`; empty facts where nothing is."""
    return FACTS.get(model_type, FamilyFacts())
