"""The installed transformers makes of fixed inputs what the recorded release made of them; a
release that does otherwise is named with the family and with what differs."""

import json
from importlib.metadata import version
from typing import Any

import pytest

from scripts.published_check import (
    RECORDED,
    counted_positions,
    differences,
    of_processor,
    processors,
    record,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KEPT = json.loads(RECORDED.read_text())
ASK = "is it what published weights were made for? docs/published.md, scripts/published_check.py"


def compare(found: dict[str, dict[str, Any]]) -> None:
    """Compare a part of a record with what is kept of it."""
    kept = {
        family: {name: KEPT["families"][family].get(name) for name in values}
        for family, values in found.items()
    }
    lines = [*differences(kept, found, KEPT["transformers"])]
    assert not lines, "\n".join([*lines, ASK])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava_next_video", "internvl"])
def test_a_processor_makes_of_videos_what_was_recorded(family: str) -> None:
    compare({family: of_processor(processors()[family]())})


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_model_counts_positions_as_was_recorded(family: str) -> None:
    compare({family: {"positions": counted_positions(family)}})


def test_the_record_has_what_published_weights_disagree_with() -> None:
    """The question stands inside the video, and a second pair of tokens is around one."""
    families = KEPT["families"]
    assert "; text 38-47; next 248" in families["qwen2_5_vl"]["positions"]
    counts = families["qwen3_vl"]["4 frames of 48x64"]["counts"]
    assert counts["<|vision_start|>"] == counts["<|vision_end|>"] == 3  # of 2 pairs of frames


def test_a_difference_is_named_with_family_values_and_releases() -> None:
    kept = {"qwen2_vl": {"positions": "text 0-14", "ids": "a"}, "gone": {"ids": "b"}}
    found = {"qwen2_vl": {"positions": "text 0-15", "ids": "a"}, "new": {"ids": "c"}}
    here = f"transformers {version('transformers')} gives"
    assert [*differences(kept, found, "5.20.0")] == [
        f"qwen2_vl, positions: transformers 5.20.0 gave text 0-14, {here} text 0-15",
        f"gone: transformers 5.20.0 gave {{'ids': 'b'}}, {here} None",
        f"new: transformers 5.20.0 gave None, {here} {{'ids': 'c'}}",
    ]


@pytest.mark.slow
def test_every_family_with_videos_is_as_recorded() -> None:
    found = record()
    lines = [*differences(KEPT["families"], found, KEPT["transformers"])]
    assert not lines, "\n".join([*lines, ASK])
