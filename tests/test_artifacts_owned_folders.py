"""A command that owns its folder refuses one with other content."""

from pathlib import Path

import pytest

from artifacts.errors import UsageError
from artifacts.owned_folders import refuse_foreign
from flows.options.export_config import ExportRequest
from flows.results.export_result import move_into_place, refuse_foreign_folder
from stages.export.parity import PARITY


@pytest.mark.parametrize("name", ["training.json", "README.md", "onnx/mine.txt", ".git/config"])
def test_an_export_refuses_a_folder_with_files_of_somebody_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        refuse_foreign_folder(ExportRequest(kind="nf4", folder=tmp_path))
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", [PARITY, "rejected/config.json", "parity/native/run.json"])
def test_an_export_goes_on_in_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    refuse_foreign_folder(ExportRequest(kind="nf4", folder=tmp_path))


def test_a_folder_that_is_new_or_empty_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new", (), ())
    refuse_foreign(tmp_path, (), ())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not a folder"):
        refuse_foreign(tmp_path / "file", (), ())


@pytest.mark.parametrize("name", ["README.md", "onnx"])
def test_a_checkpoint_is_never_put_over_what_lies_in_its_place(tmp_path: Path, name: str) -> None:
    asked = ExportRequest(kind="nf4", folder=tmp_path, accept=True)
    (asked.work / "onnx").mkdir(parents=True)
    (asked.work / "README.md").write_text("the checkpoint's")
    (asked.work / PARITY).write_text('{"passed": true, "missed": [], "recipe": {}}')
    mine = tmp_path / name / "mine.txt" if name == "onnx" else tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="exists, and is not"):
        move_into_place(asked)
    assert mine.read_text() == "mine" and (asked.work / PARITY).exists()


def test_a_broken_move_goes_on_over_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ExportRequest(kind="nf4", folder=tmp_path, accept=True)

    def write() -> None:
        asked.work.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (asked.work / name).write_text("{}")
        (asked.work / PARITY).write_text('{"passed": true, "missed": [], "recipe": {}}')

    write()
    moved = Path.replace

    def broken(path: Path, to: Path) -> Path:
        if path.parent == asked.work and path.name == "config.json":
            raise KeyboardInterrupt
        return moved(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", broken)
        with pytest.raises(KeyboardInterrupt):
            move_into_place(asked)
    write()
    assert move_into_place(asked).accepted
    assert (tmp_path / "config.json").is_file() and not asked.work.exists()
