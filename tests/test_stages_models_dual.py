"""Dual encoders in halves: each makes alone what the whole makes, and logits come of stored
vectors. No family is named in the program."""

from pathlib import Path

import pytest
import torch

from artifacts.errors import UsageError
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.classes import config_and_class
from stages.models.halves.load import load_half
from stages.models.halves.vectors import image_vectors, text_vectors
from tests.support import dual_encoders
from tests.support.dual_verdict import judge, kept_by_vision, reached_by_running

REFUSED = {
    "blip-2": "nor make one vector of a picture and one of a text",
    "videoprism": "a vector of a whole video",
}
"""Type of a model → what its refusal says: not one vector a picture."""
MADE = sorted(set(dual_encoders.names()) - set(REFUSED))
FAILING = {("tipsv2", torch.bfloat16): "fails: expected m1 and m2 to have the same dtype"}
"""In transformers itself: its text vectors are in 32 bit, whatever the model computes in."""


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.slow),
    ],
)
def test_halves_make_the_vectors_and_logits_of_the_whole(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    verdict = judge(name, tmp_path, dtype)
    assert verdict.results["pictures"] == verdict.results["texts"] == "exact"
    wanted = FAILING.get((name, dtype), "exact")
    assert verdict.results["logits"].startswith(wanted)
    assert sum(verdict.shares) < 1.01, "no weight of one half is in the other"


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_of_another_shape_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    verdict = judge(name, tmp_path)
    assert REFUSED[name] in verdict.refused and verdict.class_name in verdict.refused


@pytest.mark.parametrize("name", MADE)
def test_what_the_class_says_of_its_parts_is_what_computes(name: str) -> None:
    assert kept_by_vision(name) == reached_by_running(name)


def test_a_half_asked_for_the_other_names_what_it_lacks_fails(tmp_path: Path) -> None:
    dual_encoders.tiny("clip").save_pretrained(tmp_path)
    with pytest.raises(NeedsWeights, match="text_model is needed"):
        text_vectors(load_half(tmp_path, "vision"), dual_encoders.texts())
    with pytest.raises(NeedsWeights, match="vision_model is needed"):
        image_vectors(load_half(tmp_path, "language"), dual_encoders.pictures("clip"))


def test_several_vectors_of_a_picture_fail(tmp_path: Path) -> None:
    dual_encoders.tiny("clip").save_pretrained(tmp_path)
    half = load_half(tmp_path, "vision")
    half.visual_projection = torch.nn.Unflatten(1, (4, 8))
    with pytest.raises(UsageError, match=r"shape \[3, 4, 8\] for 3 inputs, not one each"):
        image_vectors(half, dual_encoders.pictures("clip"))


def test_a_configuration_with_its_own_class_is_not_taken_for_the_stock_one_fails(
    tmp_path: Path,
) -> None:
    config = dual_encoders.config_of("clip")
    config.architectures = ["OwnModel"]
    config.auto_map = {"AutoModel": "own.OwnModel"}
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="its own Python code"):
        config_and_class(tmp_path, trusted=False)


@pytest.mark.parametrize(
    ("architecture", "found"),
    [
        ("BlipModel", "BlipModel"),
        ("BlipForConditionalGeneration", "BlipForConditionalGeneration"),
        ("", "BlipForConditionalGeneration"),
    ],
)
def test_a_configuration_of_both_sorts_says_which_it_is_of(
    architecture: str, found: str, tmp_path: Path
) -> None:
    config = dual_encoders.config_of("blip")
    config.architectures = [architecture] if architecture else None
    config.save_pretrained(tmp_path)
    assert config_and_class(tmp_path, trusted=False)[1].__name__ == found
