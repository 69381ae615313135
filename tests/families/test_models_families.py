"""Every family and every dual encoder that transformers has: in halves it says what it says as a
whole, or it is known why not. No family is named in the program."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from artifacts.errors import MissingPackage, UsageError
from stages.models.halves.absent import MissingModule, NeedsWeights
from stages.models.halves.boundary import modules_called
from stages.models.halves.features import encode, image_vectors, text_vectors
from stages.models.halves.load import half_class, load_half
from stages.models.halves.model_class import config_and_class
from stages.models.halves.split_route import refuse
from tests.support import dual_encoders
from tests.support.dual_encoders import judge as judge_dual
from tests.support.dual_encoders import kept_by_vision, reached_by_running
from tests.support.families import change_config
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import FAILING, UNCUT, judge, untried

REPLAYED = ("florence2", "instructblip", "instructblipvideo", "janus", "t5gemma2")
BY_OTHER_ROUTES = {"blip_2": "splice"} | dict.fromkeys(REPLAYED, "replay")
NEEDING_PIECES = {
    "chameleon": ("model.embed_tokens",),
    "emu3": ("model.text_model.embed_tokens",),
    "gemma3n": ("model.embed_vision", "model.embed_audio"),
    "llama4": ("multi_modal_projector",),
}


QUICK = {"blip_2", "janus", "chameleon", "llama4", "git", "llava", "mllama", "qwen3_vl"}
"""One of each route, and of each that needs something special of it."""


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in FAMILIES
        if ":" not in name
    ],
)
def test_a_family_says_the_same_in_halves(variant: str, tmp_path: Path) -> None:
    verdict = judge(variant, tmp_path)
    assert verdict.result == ("joint" if variant in UNCUT else "exact")
    other = "joint" if variant in UNCUT else "protocol"
    assert verdict.route == BY_OTHER_ROUTES.get(variant, other)
    assert verdict.extra_modules == NEEDING_PIECES.get(variant, ())
    assert verdict.foreseen == verdict.extra_modules, "so that shards and digests count them"
    assert not untried(variant, verdict.takes), "the table tries all that a family takes"


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in FAMILIES if ":" in name])
def test_videos_batches_and_mixed_media_say_the_same_in_halves(
    variant: str, tmp_path: Path
) -> None:
    expected = "joint" if variant.split(":")[0] in UNCUT else "exact"
    expected = "fails" if variant in FAILING else expected
    assert judge(variant, tmp_path).result.partition(":")[0] == expected


def test_a_piece_that_was_not_loaded_is_named(tmp_path: Path) -> None:
    model, inputs = FAMILIES["emu3"]()
    model.save_pretrained(tmp_path)
    with pytest.raises(NeedsWeights, match=r"model\.text_model\.embed_tokens"):
        encode(load_half(tmp_path, "vision", extra_modules=()), inputs)


def test_a_piece_that_is_called_by_way_of_another_method_is_found_too() -> None:
    class Indirect(transformers.Llama4ForConditionalGeneration):
        def forward(self, hidden: Any, mm_encoder_outputs: Any = None) -> Any:
            return self.project(hidden)

        def project(self, hidden: Any) -> Any:
            return self.multi_modal_projector(hidden)

    config = FAMILIES["llama4"]()[0].config
    with torch.device("meta"):
        extra_modules = modules_called(Indirect(config), "language")
        half = half_class(Indirect, "language", None)(config)
    assert extra_modules == ("multi_modal_projector",)
    assert not isinstance(half.multi_modal_projector, MissingModule)
    assert isinstance(half.vision_model, MissingModule)


@pytest.mark.slow
def test_a_tower_that_the_installed_package_lacks_is_told_in_one_line(tmp_path: Path) -> None:
    model, _ = FAMILIES["perception_lm"]()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["vision_config"]
    change_config(tmp_path, vision_config={**config, "architecture": "vit_of_another_time"})
    with pytest.raises(MissingPackage, match="needs a package") as caught:
        load_half(tmp_path, "vision")
    assert "timm" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["PI0Config", "EvollaConfig", "Mistral4Config", "DiffusionGemmaConfig"]
)
def test_a_model_that_captions_no_pictures_is_refused(name: str) -> None:
    cls: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[getattr(transformers, name)]
    with pytest.raises(UsageError, match=r"takes no pictures|does not write text token by token"):
        refuse(cls)


REFUSED = {
    "blip-2": "nor make one vector of a picture and one of a text",
    "videoprism": "a vector of a whole video",
}
"""Type of a model → what its refusal says: not one vector a picture."""
MADE = sorted(set(dual_encoders.names()) - set(REFUSED))
FAILING_DUAL = {("tipsv2", torch.bfloat16): "fails: expected m1 and m2 to have the same dtype"}
"""In transformers itself: its text vectors are in 32 bit, whatever the model computes in."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_halves_make_the_vectors_and_logits_of_the_whole(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    verdict = judge_dual(name, tmp_path, dtype)
    assert verdict.results["pictures"] == verdict.results["texts"] == "exact"
    expected = FAILING_DUAL.get((name, dtype), "exact")
    assert verdict.results["logits"].startswith(expected)
    assert sum(verdict.shares) < 1.01, "no weight of one half is in the other"


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_of_another_shape_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    verdict = judge_dual(name, tmp_path)
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
    half: Any = load_half(tmp_path, "vision")
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
