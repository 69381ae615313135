"""A model's name leads to a folder or to an error that says what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.resolve import is_complete, resolve_model


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of this test's own."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(cache: Path, name: str, files: dict[str, str]) -> Path:
    """A repository as the hub's client leaves it after a download."""
    repo = cache / f"models--{name.replace('/', '--')}"
    folder = repo / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == tmp_path / "model"
    assert resolve_model(tmp_path / "model") == tmp_path / "model"


def test_a_folder_without_a_configuration_fails(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        resolve_model(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c", "word", "owner/--bad--"])
def test_what_is_neither_a_folder_nor_a_hub_id_fails(name: str) -> None:
    with pytest.raises(UsageError, match="there is no model at"):
        resolve_model(name)


def test_a_downloaded_model_needs_no_network(empty_cache: Path) -> None:
    files = {"config.json": "{}", "model.safetensors": ""}
    folder = snapshot(empty_cache, "owner/name", files)
    assert resolve_model("owner/name") == folder


def test_an_unreachable_hub_names_the_demo() -> None:
    with pytest.raises(EnvironmentFault, match="--model demo") as error:
        resolve_model("owner/name")
    assert error.value.exit_code == 5
    assert "HF_HUB_OFFLINE is set" in str(error.value)


def test_half_a_download_is_not_taken_for_a_model(empty_cache: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    files = {"config.json": "{}", "model.safetensors.index.json": index, "model-1.safetensors": ""}
    folder = snapshot(empty_cache, "owner/name", files)
    assert not is_complete(folder)
    with pytest.raises(EnvironmentFault):
        resolve_model("owner/name")
    (folder / "model-2.safetensors").touch()
    assert is_complete(folder)
    assert resolve_model("owner/name") == folder


def test_resolving_and_the_package_import_nothing_heavy() -> None:
    code = (
        "import sys, stages.models, stages.models.resolve, stages.models.card;"
        "print([name for name in ('torch', 'transformers', 'numpy', 'av') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_unknown_name_of_the_package_fails() -> None:
    import stages.models

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stages.models.nothing
