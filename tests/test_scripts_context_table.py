"""docs/models.md says how much of a chunk fits the context of published checkpoints."""

from dataclasses import replace
from pathlib import Path

from flows.checkpoint.context import sampling_of
from flows.options.commands import CaptionConfig
from scripts.model_table import FRAMES, UNKNOWN, in_context
from stages.models.pixel_bounds import PixelBounds
from stages.models.published_facts import facts_of
from tests.support.by_hand import PROFILE

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


def test_the_page_says_what_the_script_works_out() -> None:
    lines = PAGE.read_text().partition("## Dual encoders")[0].splitlines()
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
    assert facts.pixels_a_frame is not None
    least, most = facts.pixels_a_frame
    bounds = PixelBounds(side=facts.token_side, least=least, most=most, pair=2)
    assert bounds.tokens(30, 1080, 1920) == 10_800 == 30 * FRAMES["qwen2_5_vl"].tokens


def test_a_run_shows_as_many_frames_as_the_table_says() -> None:
    known = replace(PROFILE, context_tokens=facts_of("llava").context, words_a_frame=1)
    assert sampling_of(known, CaptionConfig(sources=("a",))).max_frames == 5
