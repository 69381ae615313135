"""Facts that authors of published checkpoints state, and where they state them."""

import re
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
    assert facts.pixels_a_frame is None
    assert facts.pixels_a_video == 0
    assert facts.context == 262_144
    assert facts.sampling["presence_penalty"] == 1.5


def test_contexts_are_those_of_published_checkpoints() -> None:
    contexts = {
        "qwen2_vl": 32_768,
        "qwen2_5_vl": 128_000,
        "llava": 4_096,
        "video_llava": 4_096,
        "llava_next_video": 4_096,
    }
    assert {name: facts_of(name).context for name in contexts} == contexts


def test_a_family_without_facts_has_empty_ones() -> None:
    assert facts_of("no_such_family") == FamilyFacts()


@pytest.mark.parametrize("family", sorted(FACTS))
def test_each_entry_names_its_source_with_file_or_page(family: str) -> None:
    source = FACTS[family].source
    assert re.search(r"\bat [0-9a-f]{7}\b", source), source
    assert re.search(r"[\w-]+/[\w.-]+ .*\.(py|md|ipynb|sh|json)\b", source), source


@pytest.mark.parametrize("family", sorted(FACTS))
def test_values_are_possible(family: str) -> None:
    facts = FACTS[family]
    if facts.pixels_a_frame is not None:
        assert facts.pixels_a_frame[0] % facts.token_side**2 == 0
        assert 0 < facts.pixels_a_frame[0] < facts.pixels_a_frame[1]
    assert not facts.last_frame or facts.frames
    assert set(facts.sampling) <= {
        "temperature",
        "top_p",
        "top_k",
        "presence_penalty",
        "repetition_penalty",
    }


def test_the_table_is_read_without_a_model_library() -> None:
    code = (
        "import sys, stages.models.published_facts;"
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
