"""Facts that authors of published checkpoints state, what docs/models.md says of their contexts,
and what the installed transformers makes of fixed inputs, beside what was recorded."""

import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from flows.core.checkpoint.frame_room import sampling_of
from flows.core.options.commands import CaptionConfig
from scripts.pages.tables import FRAMES, UNKNOWN, in_context
from scripts.prove.published_check import (
    RECORDED,
    counted_positions,
    differences,
    of_processor,
    processors,
    record,
)
from stages.models.pixel_bounds import PixelBounds
from stages.models.published import FACTS, FamilyFacts, facts_of
from tests.support.by_hand import PROFILE
from tests.support.commands import completed


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_frames_of_qwen_keep_the_pixels_of_its_authors_script(family: str) -> None:
    facts = facts_of(family)
    assert facts.pixels_per_frame == (128 * 784, 768 * 784) == (100_352, 602_112)
    # 90,316,800 pixels for pairs of frames: 300 frames of the largest size.
    assert facts.pixels_per_video == 180_633_600 == 300 * 602_112


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"])
def test_newer_qwen_keeps_sizes_of_transformers_and_a_presence_penalty(family: str) -> None:
    facts = facts_of(family)
    assert (facts.pixels_per_frame, facts.pixels_per_video, facts.context) == (None, 0, 262_144)
    assert facts.sampling["presence_penalty"] == 1.5


def test_contexts_are_those_of_published_checkpoints_and_other_families_have_no_facts() -> None:
    contexts = {
        "qwen2_vl": 32_768,
        "qwen2_5_vl": 128_000,
        "llava": 4_096,
        "video_llava": 4_096,
        "llava_next_video": 4_096,
    }
    assert {name: facts_of(name).context for name in contexts} == contexts
    assert facts_of("no_such_family") == FamilyFacts()


def test_every_entry_names_its_source_and_possible_values() -> None:
    for family, facts in FACTS.items():
        assert " at " in facts.source, family
        if facts.pixels_per_frame is not None:
            assert 0 < facts.pixels_per_frame[0] < facts.pixels_per_frame[1]
            assert facts.pixels_per_frame[0] % facts.token_side**2 == 0


def test_the_table_is_read_without_a_model_library() -> None:
    code = (
        "import sys, stages.models.published;"
        "sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'numpy')))"
    )
    assert completed([sys.executable, "-c", code]).returncode == 0


PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_says_what_the_script_works_out() -> None:
    text = PAGE.read_text()
    lines = text[text.index("| family | image |") :].partition("## Dual encoders")[0].splitlines()
    head, *rows = [[*map(str.strip, line.split("|"))][1:] for line in lines if line[:2] == "| "]
    at = head.index("30 s chunk in context")
    found = {row[0]: row[at] for row in rows}
    assert found == {family: in_context(family) for family in found}
    assert set(FRAMES) <= set(found)
    assert (found["llava"], found["llava_next_video"], found["video_llava"]) == (
        "5 of 30",
        "21 of 30",
        "11 of 30",
    )
    assert found["qwen2_5_vl"] == "30 of 30" and found["qwen3_vl"] == "60 of 60"
    assert found["internvl"] == found["aria"] == UNKNOWN


def test_frames_kept_to_published_pixels_are_as_many_tokens_as_the_table_says() -> None:
    facts = facts_of("qwen2_5_vl")
    assert facts.pixels_per_frame is not None
    least, most = facts.pixels_per_frame
    bounds = PixelBounds(side=facts.token_side, least=least, most=most, pair=2)
    assert bounds.tokens(30, 1080, 1920) == 10_800 == 30 * FRAMES["qwen2_5_vl"].tokens


def test_a_run_shows_as_many_frames_as_the_table_says() -> None:
    known = replace(PROFILE, context_tokens=facts_of("llava").context, tokens_per_frame=1)
    assert sampling_of(known, CaptionConfig(sources=("a",))).max_frames == 5


of_transformers = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KEPT = json.loads(RECORDED.read_text())
ASK = "were published weights made for it? docs/published.md, scripts/prove/published_check.py"


def compare(found: dict[str, dict[str, Any]]) -> None:
    """Compare a part of a record with what is kept of it."""
    kept = {
        family: {name: KEPT["families"][family].get(name) for name in values}
        for family, values in found.items()
    }
    lines = [*differences(kept, found, KEPT["transformers"])]
    assert not lines, "\n".join([*lines, ASK])


@of_transformers
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava_next_video", "internvl"])
def test_a_processor_makes_of_videos_what_was_recorded(family: str) -> None:
    compare({family: of_processor(processors()[family]())})


@of_transformers
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_model_counts_positions_as_was_recorded(family: str) -> None:
    compare({family: {"positions": counted_positions(family)}})


@of_transformers
def test_the_record_has_what_published_weights_disagree_with() -> None:
    """The question stands inside the video, and a second pair of tokens is around one."""
    families = KEPT["families"]
    assert "; text 38-47; next 248" in families["qwen2_5_vl"]["positions"]
    counts = families["qwen3_vl"]["4 frames of 48x64"]["counts"]
    assert counts["<|vision_start|>"] == counts["<|vision_end|>"] == 3  # of 2 pairs of frames


@of_transformers
def test_a_difference_is_named_with_family_values_and_releases() -> None:
    kept = {"qwen2_vl": {"positions": "text 0-14", "ids": "a"}, "gone": {"ids": "b"}}
    found = {"qwen2_vl": {"positions": "text 0-15", "ids": "a"}, "new": {"ids": "c"}}
    here = f"transformers {version('transformers')} gives"
    assert [*differences(kept, found, "5.20.0")] == [
        f"qwen2_vl, positions: transformers 5.20.0 gave text 0-14, {here} text 0-15",
        f"gone: transformers 5.20.0 gave {{'ids': 'b'}}, {here} None",
        f"new: transformers 5.20.0 gave None, {here} {{'ids': 'c'}}",
    ]


@of_transformers
@pytest.mark.slow
def test_every_family_with_videos_is_as_recorded() -> None:
    found = record()
    lines = [*differences(KEPT["families"], found, KEPT["transformers"])]
    assert not lines, "\n".join([*lines, ASK])
