"""Frames and words that a context has no room for are refused, with what does fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.schema import FrameFit
from flows.job.config import CaptionConfig
from flows.pipelines import CAPTION
from flows.planning.choose import question_of_model
from flows.planning.context_check import refuse_beyond_context, standard_notes
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile, SeenSize
from tests.support.by_hand import PROFILE, images, model
from tests.support.families import checkpoint

LLAVA = replace(PROFILE, context_tokens=4096, words_a_frame=1, words_a_prompt=19)
LARGE = replace(
    LLAVA,
    frame_sizes=(SeenSize(edge=640, tokens=144, pixel_bytes=1),),
    fit_video=FrameFit(),
    least_pixels=784,
)
"""A model of which larger frames are more tokens."""


def refused(profile: ModelProfile, prompt: str, *more: Any, **options: Any) -> str:
    """Message and hint of the refusal of a plan; empty where there is none. A byte is a token."""
    folder = Path(checkpoint("llava"))
    asked = replace(model(profile), checkpoint=Checkpoint(name="llava", folder=folder))
    config = CaptionConfig(sources=("a",), **options)
    question = question_of_model(asked, config, "cpu", CAPTION, prompt)
    question = replace(question, workloads=more or question.workloads)
    try:
        refuse_beyond_context(question)
    except UsageError as error:
        assert error.exit_code == 2
        return f"{error.message}. {error.hint}"
    return ""


def test_the_largest_limit_that_fits_is_named() -> None:
    """4,096 less 5 frames of 577 tokens, 19 of the template and 92 of the prompt leave 1,100."""
    prompt = "w" * 92
    assert refused(LLAVA, prompt, max_new_tokens=1100) == ""
    said = refused(LLAVA, prompt, max_new_tokens=1101)
    assert "beside 5 frames (2,885) and the prompt (111)" in said
    assert said.endswith("Give --max-new-tokens 1100, or less")
    assert "--max-new-tokens 1090" in refused(LLAVA, prompt, max_new_tokens=1101, system="s" * 10)
    said = refused(LLAVA, "w" * 1300)
    assert said.endswith("Give --max-frames 4, or ask in fewer words")
    assert refused(LLAVA, "w" * 1300, max_frames=4) == ""
    said = refused(LLAVA, "w" * 1300, frames=1, max_new_tokens=2800)
    assert said.endswith("Give --max-new-tokens 2200, or less")
    assert refused(LLAVA, "w" * 3600).endswith("Ask in fewer words")
    said = refused(replace(LLAVA, frames_a_video=5), "w" * 1300, max_new_tokens=1400)
    assert said.endswith("Ask in fewer words, and give --max-new-tokens 596")
    assert refused(LLAVA, prompt, max_new_tokens=9000, as_published=False) == ""
    assert refused(replace(LLAVA, context_tokens=0), prompt, max_new_tokens=9000) == ""
    assert refused(replace(LLAVA, is_encoder_decoder=True), prompt, max_new_tokens=9000) == ""


def test_times_in_a_prompt_count_as_they_are_written() -> None:
    """5 frames: `0.00s,1.00s,2.00s,3.00s,4.00s`."""
    assert "--max-new-tokens 1163" in refused(LLAVA, "{times}", max_new_tokens=1164)


def test_a_picture_that_exceeds_the_context_fails_alone() -> None:
    assert refused(LLAVA, "w", replace(images(tokens=9000), text_tokens=10)) == ""
    said = refused(LLAVA, "w", replace(images(tokens=2000), text_tokens=10), max_new_tokens=2200)
    assert "beside the picture (1,990)" in said and "--max-new-tokens 2086" in said


def test_one_frame_that_does_not_fit_is_refused_with_pixels_that_do() -> None:
    small = replace(LARGE, context_tokens=512)
    said = refused(small, "w", max_new_tokens=1)
    assert "and its context of 512 has room for 384 beside words" in said
    pixels = int(said.partition("--max-pixels ")[2].partition(",")[0])
    assert pixels % 784 == 0 and 0 < pixels < 1080 * 1920
    assert "--as-stock" in refused(replace(small, least_pixels=0), "w", max_new_tokens=1)


def test_a_plan_of_a_model_alone_says_how_many_frames_of_full_hd_fit() -> None:
    config = CaptionConfig(sources=())
    (line,) = standard_notes(model(LARGE), config)
    assert line.startswith("llava: 4 frames of 1920x1080 fit its context of 4,096 tokens, of 30; ")
    question = question_of_model(model(LARGE), config, "cpu", CAPTION)
    assert [workload.frames for workload in question.workloads] == [4]
    (line,) = standard_notes(model(LARGE), replace(config, as_published=False))
    assert "30 frames of 1920x1080 in a chunk exceed" in line and "4 fit" in line
    assert standard_notes(model(LLAVA), config) == []


@pytest.mark.parametrize("frames", [1, 4])
def test_chunks_that_fit_are_not_told_of(frames: int) -> None:
    assert standard_notes(model(LARGE), CaptionConfig(sources=(), frames=frames)) == []


def test_the_pixels_that_are_proposed_leave_room_for_prompt_and_answer() -> None:
    """10 frames in 4,096 tokens: 307 each beside the reserve, and 107 beside an answer of 3,000."""
    config = CaptionConfig(sources=(), frames=10)

    def proposed(limit: int) -> int:
        (line,) = standard_notes(model(LARGE), replace(config, max_new_tokens=limit))
        return int(line.partition("--max-pixels ")[2].partition(" ")[0] or 0)

    beside_reserve, beside_answer = proposed(8), proposed(3000)
    assert 0 < beside_answer < beside_reserve
    assert beside_answer / beside_reserve == pytest.approx(107 / 306, abs=0.02)
    assert proposed(4070) == 0, "no number of pixels leaves as much"
