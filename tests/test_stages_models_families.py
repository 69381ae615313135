"""Every family that transformers has: in halves it says what it says as a whole, or it is known why
not. No family is named in the program."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.halves.absent import Absent, NeedsWeights
from stages.models.halves.boundary import pieces_called
from stages.models.halves.delivery import generate
from stages.models.halves.features import Features, encode
from stages.models.halves.load import half_class, load_half
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import FAILING, GREEDY, UNCUT, judge, untried

ROOT = Path(__file__).parent.parent
QUICK = [name for name in FAMILIES if ":" not in name]
SLOW = [name for name in FAMILIES if ":" in name]
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


@pytest.mark.parametrize("variant", QUICK)
def test_a_family_says_the_same_in_halves(variant: str, tmp_path: Path) -> None:
    verdict = judge(variant, tmp_path)
    assert verdict.result == ("joint" if variant in UNCUT else "exact")
    other = "joint" if variant in UNCUT else "protocol"
    assert verdict.route == BY_OTHER_ROUTES.get(variant, other)
    assert verdict.pieces == NEEDING_PIECES.get(variant, ())
    assert verdict.foreseen == verdict.pieces, "so that shards and digests count them"
    assert not untried(variant, verdict.takes), "the table tries all that a family takes"


@pytest.mark.slow
@pytest.mark.parametrize("variant", SLOW)
def test_videos_batches_and_mixed_media_say_the_same_in_halves(
    variant: str, tmp_path: Path
) -> None:
    expected = "joint" if variant.split(":")[0] in UNCUT else "exact"
    expected = "fails" if variant in FAILING else expected
    assert judge(variant, tmp_path).result.partition(":")[0] == expected


def test_the_table_of_models_counts_its_rows() -> None:
    page = (ROOT / "docs" / "models.md").read_text().partition("## Dual encoders")[0]
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    results = Counter(row[1] or row[2] for row in rows)
    stated = re.search(r"\*\*(\d+) families exact, (\d+) joint, (\d+) refused\.\*\*", page)
    assert stated is not None
    assert [results[name] for name in ("exact", "joint", "refused")] == [*map(int, stated.groups())]
    assert results.total() == sum(results[name] for name in ("exact", "joint", "refused"))
    assert results["exact"] >= 75
    assert "not tried" not in page and "differs" not in page
    assert {row[0] for row in rows} >= set(QUICK)


def test_the_program_names_no_family() -> None:
    """Whole words only, and none that are words of the language: a family is called `git`. Two
    files name checkpoints that are refused."""
    common = {"git"}
    names = {name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if name not in common}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})\b", re.IGNORECASE)
    hub = ROOT / "stages" / "models" / "hub"
    refusing = {hub / "originals.py", hub / "unsupported.py"}
    for path in sorted({*(ROOT / "stages").rglob("*.py")} - refusing):
        assert not pattern.findall(path.read_text()), path


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("janus")
    torch.manual_seed(0)
    model, inputs = FAMILIES["janus"]()
    model.save_pretrained(folder)
    return folder, inputs


def test_features_that_are_not_asked_for_fail(
    replayed: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    """A model that is shown no pixels asks for no features, and would speak of nothing."""
    folder, inputs = replayed
    features = encode(load_half(folder, "vision"), inputs)
    unseen = Features(features, features.needs, blank={})
    with pytest.raises(UsageError, match="did not ask for its image features"):
        generate(load_half(folder, "language"), inputs, unseen, **GREEDY)


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
    assert not isinstance(half.multi_modal_projector, Absent)
    assert isinstance(half.vision_model, Absent)


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
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from stages.models.halves.routes import refuse

    cls: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[getattr(transformers, name)]
    with pytest.raises(UsageError, match=r"takes no pictures|does not write text token by token"):
        refuse(cls)
