"""Names of files, folders of the user, and folders that a command owns."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.disk.files import refuse_foreign, replace_file, write_text
from artifacts.disk.names import LONGEST_NAME, SUFFIXES, file_stems
from artifacts.disk.paths import (
    NEARBY,
    RealPaths,
    folder_named,
    lies_in,
    nearby_folder,
    user_cache,
    user_state,
)
from artifacts.errors import UsageError
from flows.commands.export import result as export_result
from flows.commands.export.options import ExportConfig
from flows.commands.export.result import awaits_acceptance, move_into_place, refuse_foreign_folder
from stages.export.parity import PARITY, Figures, evaluate_parity

VERDICT = json.dumps(evaluate_parity(Figures(), 64, {}).to_json())


def test_files_of_one_stem_get_names_of_their_own() -> None:
    assert file_stems(["a.mp4", "b.mp4"]) == ["a", "b"]
    assert file_stems(["a.mp4", "a.mkv", "c/a.mp4"]) == ["a.mp4", "a.mkv", "c/a"]
    assert file_stems(["a.mp4", "a.mp4", "a"]) == ["a.mp4", "a.mp4-2", "a"]
    assert file_stems(["x.tar.mp4"]) == ["x.tar"]
    assert file_stems(["a.mp4"] * 3 + ["a.mp4-2"]) == ["a.mp4", "a.mp4-2", "a.mp4-3", "a.mp4-2-2"]


def test_a_file_gives_way_to_a_folder_of_its_name() -> None:
    assert file_stems(["a.mp4", "a.txt/b.mp4"]) == ["a-2", "a.txt/b"]


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".mp4", "ü" * 126 + ".ts", "🐦" * 62 + ".mp4", "x" * 255, "y" * 251 + ".m"]
)
def test_the_longest_names_fit_with_every_suffix(tmp_path: Path, name: str) -> None:
    twins = [name, name, f"z/{name}", name[:-1] + "5"]
    stems = file_stems(twins)
    assert len(set(stems)) == len(twins)
    for stem in stems:
        for suffix in SUFFIXES:
            write_text(tmp_path / f"{stem}{suffix}", ["a"])
    assert sum(len(files) for *_, files in os.walk(tmp_path)) == len(twins) * len(SUFFIXES)


def test_a_long_name_keeps_what_fits_of_it() -> None:
    name = "ü" * 125 + "a" * 4
    (stem,) = file_stems([f"{name}.x"])
    assert stem.startswith("ü" * 100) and "~" in stem
    assert len(stem.encode()) <= LONGEST_NAME - len(SUFFIXES[0])
    assert file_stems([f"{name}.x"]) == [stem]


@pytest.mark.parametrize("name", ["..mp4", "...mp4", ".mp4", "-rf.mp4", "a/...mp4", "a b\nc.mp4"])
def test_odd_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    (stem,) = file_stems([name])
    out = tmp_path / "out"
    write_text(out / f"{stem}.txt", ["a"])
    (made,) = [Path(at, file) for at, _, files in os.walk(tmp_path) for file in files]
    assert made.is_relative_to(out) and made.suffix == ".txt"
    assert made.parent == (out / name).parent


def test_real_paths_are_the_kernel_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "folder").symlink_to("a/b")
    (tmp_path / "link").symlink_to("folder/file")
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path / "a")
    real = RealPaths()
    below = ("a/b/file", "folder/file", "folder/../b/file", "link", "circle", "missing/file")
    odd = [f"{tmp_path}/folder/", f"{tmp_path}/folder/..", "b/file", "b", ".", "/"]
    for path in [f"{tmp_path}/{name}" for name in below] + odd:
        assert real.of(path) == os.path.realpath(path), path
        assert real.of(Path(path)) == os.path.realpath(Path(path)), path


def test_a_path_lies_in_a_folder_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to(tmp_path)
    inside = str(tmp_path / "in")
    assert lies_in(inside, inside) and lies_in(f"{inside}/new/er", inside)
    assert not lies_in(f"{inside}-too", inside)
    assert not lies_in(f"{inside}/out/x", inside)
    assert not lies_in(f"{inside}/../x", inside)
    assert lies_in("/etc", "/")


def test_folders_are_where_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("XDG_STATE_HOME", "states")
    assert user_cache() == tmp_path / "home" / ".cache" / "penstock"
    assert user_state() == tmp_path / "states" / "penstock"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    assert user_cache() == tmp_path / "home" / "caches" / "penstock"


def test_a_user_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-of-that-name/cache")
    with pytest.raises(UsageError, match="has no home") as raised:
        user_cache()
    assert "XDG_CACHE_HOME" in raised.value.hint
    monkeypatch.setenv(NEARBY, "~nobody-of-that-name/cache")
    with pytest.raises(UsageError, match="cannot be resolved") as raised:
        nearby_folder()
    assert NEARBY in raised.value.hint


def test_a_folder_named_in_a_deleted_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="--out x: the working folder cannot be found"):
        folder_named("x", "out")
    assert folder_named(str(tmp_path), "out") == tmp_path


@pytest.mark.parametrize(
    "name", ["training.json", "README.md", "a.prom.txt", "onnx/mine.txt", ".git/config"]
)
def test_an_export_refuses_a_folder_with_files_of_somebody_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        refuse_foreign_folder(ExportConfig(model="demo", to="nf4", out=str(tmp_path)))
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", [PARITY, "rejected/config.json", "parity/native/run.json"])
def test_an_export_goes_on_in_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    refuse_foreign_folder(ExportConfig(model="demo", to="nf4", out=str(tmp_path)))


def test_a_folder_that_is_new_or_empty_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new", (), ())
    refuse_foreign(tmp_path, (), ())
    (tmp_path / "penstock.prom").write_text("")  # of a --metrics-file
    refuse_foreign(tmp_path, (), ())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not a folder"):
        refuse_foreign(tmp_path / "file", (), ())


@pytest.mark.parametrize("name", ["README.md", "onnx"])
def test_a_checkpoint_is_never_put_over_what_lies_in_its_place(tmp_path: Path, name: str) -> None:
    request = ExportConfig(model="demo", to="nf4", out=str(tmp_path), accept=True)
    (request.work / "onnx").mkdir(parents=True)
    (request.work / "README.md").write_text("the checkpoint's")
    (request.work / PARITY).write_text(VERDICT)
    mine = tmp_path / name / "mine.txt" if name == "onnx" else tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="exists, and is not"):
        move_into_place(request)
    assert mine.read_text() == "mine" and (request.work / PARITY).exists()


def test_a_broken_move_goes_on_over_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ExportConfig(model="demo", to="nf4", out=str(tmp_path), accept=True)

    def write() -> None:
        request.work.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (request.work / name).write_text("{}")
        (request.work / PARITY).write_text(VERDICT)

    def broken(path: Path, to: Path) -> None:
        if path.parent == request.work and path.name == "config.json":
            raise KeyboardInterrupt
        replace_file(path, to)

    write()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(export_result, "replace_file", broken)
        move_into_place(request)
    assert (tmp_path / PARITY).exists() and not (request.work / PARITY).exists()
    again = replace(request, accept=False)
    assert awaits_acceptance(again, {}) and not awaits_acceptance(again, {"kind": "int8"})
    assert move_into_place(again, resumed=True).accepted
    assert (tmp_path / "config.json").is_file() and not request.work.exists()
