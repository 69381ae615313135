"""Features in a file of their own keep all that decoding needs of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import UsageError
from artifacts.tensor_files import write_tree
from stages.models import Features, encode, generate, load_features, load_half, save_features
from stages.models.halves.features import is_pixels
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import GREEDY
from tests.support.trees import assert_equal

Half = tuple[Path, dict[str, Any], Features]


def encoded(family: str, folder: Path) -> Half:
    torch.manual_seed(0)
    model, inputs = FAMILIES[family]()
    model.save_pretrained(folder)
    return folder, inputs, encode(load_half(folder, "vision"), inputs)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "janus", "perception_lm:video"])
def test_features_come_back_with_all_that_decoding_needs(family: str, tmp_path: Path) -> None:
    _, _, features = encoded(family, tmp_path)
    save_features(tmp_path / "features", features)
    found = load_features(tmp_path / "features")
    assert found.needs == features.needs and "input_ids" in found.needs
    assert {n: tuple(s) for n, s in found.blank.items()} == features.blank != {}
    assert_equal(dict(found), dict(features))


def test_a_model_that_asks_for_its_features_finds_them_in_a_file(tmp_path: Path) -> None:
    """It is shown pixels without content, whose shapes a plain dict would have lost."""
    folder, inputs, features = encoded("janus", tmp_path)
    save_features(tmp_path / "features", features)
    language = load_half(folder, "language")
    wanted: Any = generate(language, inputs, features, **GREEDY)
    found: Any = generate(language, inputs, load_features(tmp_path / "features"), **GREEDY)
    assert torch.equal(found.sequences, wanted.sequences)
    with pytest.raises(UsageError, match="did not ask for its image features"):
        generate(language, inputs, dict(features), **GREEDY)


def test_features_from_a_file_still_refuse_what_decoding_would_lack(tmp_path: Path) -> None:
    folder, inputs, features = encoded("qwen3_vl", tmp_path)
    save_features(tmp_path / "features", features)
    lacking = {n: v for n, v in inputs.items() if n != "image_grid_thw" and not is_pixels(n)}
    with pytest.raises(UsageError, match="decoding needs image_grid_thw"):
        generate(load_half(folder, "language"), lacking, load_features(tmp_path / "features"))


def test_a_record_whose_fields_have_no_defaults_comes_back(tmp_path: Path) -> None:
    _, _, features = encoded("perception_lm", tmp_path)
    assert type(features["image"]).__name__ == "TimmWrapperModelOutput"
    save_features(tmp_path / "features", features)
    assert_equal(load_features(tmp_path / "features")["image"], features["image"])


def test_a_plain_dict_of_features_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not say what decoding needs"):
        save_features(tmp_path / "features", {"image": 0})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tree", [0, ["features"], {"features": {}}, {"features": 1, "needs": 2}])
def test_a_file_of_something_else_is_not_taken_for_features(tree: Any, tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", tree)
    with pytest.raises(UsageError, match="holds something else than features"):
        load_features(tmp_path / "tree")
