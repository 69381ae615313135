"""Checkpoints in the form of the original LLaVA code are refused by name, before any weight is
looked at."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from stages.models import describe, load_half, resolve_model
from stages.models.hub.originals import CONVERTED
from stages.models.hub.resolve import find_model
from tests.support.families import copy_of
from tests.support.hub import Repository, serve
from tests.support.hub_client import client, use_cache

SETTINGS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "hidden_size": 32,
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}
"""As the authors' code writes them."""
FORMS: dict[str, dict[str, Any]] = {
    "as the first ones": {},
    "with a type of its own": {"model_type": "llava_llama"},
    "on a third one": {"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen"},
    "with the type of its text model": {"model_type": "llama"},
    "of code that followed it": {"architectures": ["BunnyForCausalLM"]},
    "without a class": {"architectures": None},
    "with its tower under another name": {"mm_vision_tower": None, "mm_image_tower": "x"},
}


def written(folder: Path, config: dict[str, Any]) -> Path:
    """A folder whose weights cannot be read, because nobody is to look at them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"not opened")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_an_original_checkpoint_fails_wherever_it_is_given(form: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "my-own", {**SETTINGS, **FORMS[form]})
    uses: list[Callable[[], Any]] = [
        lambda: load_half(folder, "vision"),
        lambda: load_half(folder, "whole", trust_remote_code=True),
        lambda: describe(folder),
        lambda: resolve_model(str(folder)),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="in the form of the original LLaVA code") as caught:
            use()
        assert str(folder) in caught.value.message and "\n" not in str(caught.value)
        assert "ends in -hf" in caught.value.hint


@pytest.mark.parametrize("name", [*CONVERTED][:2])
def test_the_converted_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_half(written(tmp_path / name, SETTINGS), "vision")
    assert f"Take {CONVERTED[name]}, the same model" in caught.value.hint
    assert CONVERTED[name].startswith("llava-hf/") and CONVERTED[name].endswith("-hf")


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    use_cache(tmp_path / "hub", monkeypatch)
    with client(monkeypatch) as to:
        yield to


def test_of_an_original_checkpoint_on_the_hub_no_weight_is_fetched(
    connect: Callable[[str], None],
) -> None:
    name = "liuhaotian/llava-v1.6-mistral-7b"
    files = {"config.json": json.dumps(SETTINGS).encode(), "model.safetensors": b"not fetched"}
    with serve({name: Repository(files=files)}) as hub:
        connect(hub.url)
        for use in (find_model, resolve_model, describe):
            with pytest.raises(UsageError, match=name) as caught:
                use(name)
            assert "llava-hf/llava-v1.6-mistral-7b-hf" in caught.value.hint
        assert hub.downloads() == ["config.json"]
    with pytest.raises(UsageError, match=name):
        load_half(name, "vision")  # the hub is gone by now


def test_one_that_brings_its_own_code_is_not_taken_for_one_of_transformers(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    folder = written(tmp_path / "own", {**SETTINGS, **code})
    (folder / "code.py").write_text("raise SystemExit('must not run')\n")
    assert resolve_model(folder) == folder
    with pytest.raises(UsageError, match="brings its own Python code"):
        load_half(folder, "vision")


def test_a_converted_checkpoint_that_still_names_its_tower_is_loaded(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model", mm_vision_tower="somewhere")
    assert load_half(folder, "vision").get_submodule("model.vision_tower")
