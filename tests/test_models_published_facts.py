"""Facts that authors of published checkpoints state."""

import subprocess
import sys

import pytest

from stages.models.published_facts import FACTS, FamilyFacts, facts_of


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_frames_of_qwen_keep_the_pixels_of_its_authors_script(family: str) -> None:
    facts = facts_of(family)
    assert facts.pixels_a_frame == (128 * 784, 768 * 784) == (100_352, 602_112)
    # 90,316,800 pixels for pairs of frames: 300 frames of the largest size.
    assert facts.pixels_a_video == 180_633_600 == 300 * 602_112
    assert (facts.fps, facts.frames, facts.last_frame) == (2.0, 768, True)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"])
def test_newer_qwen_keeps_sizes_of_transformers_and_a_presence_penalty(family: str) -> None:
    facts = facts_of(family)
    assert (facts.pixels_a_frame, facts.pixels_a_video, facts.context) == (None, 0, 262_144)
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
        if facts.pixels_a_frame is not None:
            assert 0 < facts.pixels_a_frame[0] < facts.pixels_a_frame[1]
            assert facts.pixels_a_frame[0] % facts.token_side**2 == 0
        assert not facts.last_frame or facts.frames, family


def test_the_table_is_read_without_a_model_library() -> None:
    code = (
        "import sys, stages.models.published_facts;"
        "sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
