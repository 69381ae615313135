"""Every family that transformers has: in halves it says what it says as a whole, or it is known why
not. No family is named in the program."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.halves.absent import MissingModule, NeedsWeights
from stages.models.halves.boundary import pieces_called
from stages.models.halves.features import encode
from stages.models.halves.load import half_class, load_half
from stages.models.halves.routes import refuse
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import FAILING, UNCUT, judge, untried

BY_OTHER_ROUTES = {
    "blip_2": "splice",
    "florence2": "replay",
    "instructblip": "replay",
    "instructblipvideo": "replay",
    "janus": "replay",
    "t5gemma2": "replay",
}
NEEDING_PIECES = {
    "chameleon": ("model.embed_tokens",),
    "emu3": ("model.text_model.embed_tokens",),
    "gemma3n": ("model.embed_vision", "model.embed_audio"),
    "llama4": ("multi_modal_projector",),
}


QUICK = {"blip_2", "janus", "chameleon", "llama4", "git", "llava", "mllama", "qwen3_vl"}
"""One of each route, and of each that needs something special of it."""


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
    assert verdict.pieces == NEEDING_PIECES.get(variant, ())
    assert verdict.foreseen == verdict.pieces, "so that shards and digests count them"
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
        encode(load_half(tmp_path, "vision", pieces=()), inputs)


def test_a_piece_that_is_called_by_way_of_another_method_is_found_too() -> None:
    class Indirect(transformers.Llama4ForConditionalGeneration):
        def forward(self, hidden: Any, mm_encoder_outputs: Any = None) -> Any:
            return self.project(hidden)

        def project(self, hidden: Any) -> Any:
            return self.multi_modal_projector(hidden)

    config = FAMILIES["llama4"]()[0].config
    with torch.device("meta"):
        pieces = pieces_called(Indirect(config), "language")
        half = half_class(Indirect, "language", None)(config)
    assert pieces == ("multi_modal_projector",)
    assert not isinstance(half.multi_modal_projector, MissingModule)
    assert isinstance(half.vision_model, MissingModule)


def test_a_tower_that_the_installed_package_lacks_is_told_in_one_line(tmp_path: Path) -> None:
    model, _ = FAMILIES["perception_lm"]()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["architecture"] = "vit_of_another_time"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EnvironmentFault, match="needs a package") as caught:
        load_half(tmp_path, "vision")
    assert "timm" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["PI0Config", "EvollaConfig", "Mistral4Config", "DiffusionGemmaConfig"]
)
def test_a_model_that_captions_no_pictures_is_refused(name: str) -> None:
    cls: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[getattr(transformers, name)]
    with pytest.raises(UsageError, match=r"takes no pictures|does not write text token by token"):
        refuse(cls)
