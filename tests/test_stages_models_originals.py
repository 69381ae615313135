"""Checkpoints in the form of the original LLaVA code are refused by name, before any weight is
looked at."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from artifacts.errors import UsageError
from stages.models import describe, load_half, resolve_model
from stages.models.hub.originals import CONVERTED
from stages.models.hub.resolve import find_model
from tests.support.families import checkpoint, hf
from tests.support.hub import Repository, serve
from tests.support.hub_client import client, use_cache
from tests.support.media import picture
from tests.support.refusals import one_line

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 288,
}
SETTINGS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    **SIZES,
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}
"""As the authors' code writes them."""
FORMS: dict[str, dict[str, Any]] = {
    "as the first ones": {},
    "with a type of its own": {"model_type": "llava_llama"},
    "on another text model": {
        "architectures": ["LlavaMistralForCausalLM"],
        "model_type": "llava_mistral",
    },
    "on a third one": {"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen"},
    "with the type of its text model": {"model_type": "llama"},
    "of code that followed it": {"architectures": ["BunnyForCausalLM"]},
    "without a class": {"architectures": None},
    "with its tower under another name": {"mm_vision_tower": None, "mm_image_tower": "x"},
}


def original(folder: Path, **changes: Any) -> Path:
    """A tiny checkpoint whose weights are called as in the authors' files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **changes}))
    weights = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)).state_dict()
    for layer in (0, 2):
        weights[f"model.mm_projector.{layer}.weight"] = torch.randn(32, 32)
        weights[f"model.mm_projector.{layer}.bias"] = torch.randn(32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a configuration is read by transformers or a file of weights is opened."""
    import safetensors
    from transformers import AutoConfig

    # Imported now, it has what it should keep, and not what stands there meanwhile.
    importlib.import_module("transformers.modeling_utils")

    def refused(*_: Any, **__: Any) -> Any:
        pytest.fail("it was opened")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refused)
    monkeypatch.setattr(safetensors, "safe_open", refused)


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("form", FORMS)
def test_an_original_checkpoint_fails_wherever_it_is_given(form: str, tmp_path: Path) -> None:
    folder = original(tmp_path / "my-own", **FORMS[form])
    uses: list[Callable[[], Any]] = [
        lambda: load_half(folder, "vision"),
        lambda: load_half(folder, "language"),
        lambda: load_half(folder, "whole", trust_remote_code=True),
        lambda: describe(folder),
        lambda: resolve_model(str(folder)),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="in the form of the original LLaVA code") as caught:
            use()
        assert str(folder) in caught.value.message and "\n" not in str(caught.value)
        assert "ends in -hf" in caught.value.hint


@pytest.mark.parametrize("name", CONVERTED)
def test_the_converted_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_half(original(tmp_path / name), "vision")
    assert f"Take {CONVERTED[name]}, the same model" in caught.value.hint
    assert CONVERTED[name].startswith("llava-hf/") and CONVERTED[name].endswith("-hf")


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    use_cache(tmp_path / "hub", monkeypatch)
    with client(monkeypatch) as to:
        yield to


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_of_an_original_checkpoint_on_the_hub_no_weight_is_fetched(
    connect: Callable[[str], None], tmp_path: Path
) -> None:
    name = "liuhaotian/llava-v1.6-mistral-7b"
    stored = Repository(files=files_of(original(tmp_path / "made")))
    with serve({name: stored}) as hub:
        connect(hub.url)
        for use in (find_model, resolve_model, describe):
            with pytest.raises(UsageError, match=name) as caught:
                use(name)
            assert "llava-hf/llava-v1.6-mistral-7b-hf" in caught.value.hint
        assert hub.downloads() == ["config.json"]
    with pytest.raises(UsageError, match=name):
        load_half(name, "vision")  # the hub is gone by now


def test_of_an_original_checkpoint_that_is_pickled_the_converted_one_is_named_too(
    connect: Callable[[str], None],
) -> None:
    name = "liuhaotian/llava-v1.5-7b"
    config = json.dumps(SETTINGS).encode()
    files = {"config.json": config, "pytorch_model-00001-of-00002.bin": b"pickle"}
    with serve({name: Repository(files=files)}) as hub:
        connect(hub.url)
        with pytest.raises(UsageError, match="original LLaVA code") as caught:
            resolve_model(name)
        assert hub.downloads() == ["config.json"]
    assert "llava-hf/llava-1.5-7b-hf" in caught.value.hint


@pytest.mark.parametrize("verb", ["caption", "plan"])
def test_the_commands_refuse_an_original_checkpoint_in_one_line(verb: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture(1)).save(tmp_path / "one.png")
    folder = original(tmp_path / "llava-v1.5-13b")
    given = ["--model", str(folder), "--store", str(tmp_path / "store")]
    given += ["--out", str(tmp_path / "out")] if verb == "caption" else []
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", verb, str(tmp_path / "one.png"), *given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "llava-hf/llava-1.5-13b-hf" in one_line(ended.stderr)


def test_one_that_brings_its_own_code_is_not_taken_for_one_of_transformers(tmp_path: Path) -> None:
    """It may be run by that code, and by nothing else."""
    code = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    folder = original(tmp_path / "own", **code)
    (folder / "code.py").write_text("raise SystemExit('must not run')\n")
    assert resolve_model(folder) == folder
    with pytest.raises(UsageError, match="brings its own Python code"):
        load_half(folder, "vision")


def test_a_converted_checkpoint_that_still_names_its_tower_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "somewhere"}))
    assert load_half(folder, "vision").get_submodule("model.vision_tower")
