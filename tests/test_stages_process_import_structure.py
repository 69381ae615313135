"""What transformers exports is read from its files once; garbage waits meanwhile."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.user_folders import user_cache
from stages.process.deferred_imports import Structure, with_cached_structure
from stages.process.gc_freeze import gc_frozen

MADE: Structure = {frozenset({"torch"}): {"one.modeling_one": {"One", "Two"}}}
OTHER = '{"format": 1, "state": "STATE", "digest": "", "structure": [["torch", {"one": ["Two"]}]]}'
Defined = tuple[Callable[..., Structure], list[Any]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "transformers" / "models"
    (folder / "one").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "one" / "modeling_one.py").write_text("class One: ...")
    return folder


@pytest.fixture
def define() -> Defined:
    asked: list[Any] = []

    def defined(path: Any, prefix: str | None = None) -> Structure:
        asked.append(path)
        return MADE

    return defined, asked


def test_the_list_is_made_once_also_for_later_processes(models: Path, define: Defined) -> None:
    defined, asked = define
    first = with_cached_structure(defined, __file__)
    assert first(models / "__init__.py") == MADE
    under = {frozenset({"torch"}): {"models.one.modeling_one": {"One", "Two"}}}
    assert first(models, prefix="models") == under
    assert with_cached_structure(defined, __file__)(models) == MADE
    assert len(asked) == 1
    first(models)[frozenset({"torch"})]["one.modeling_one"].clear()  # each has its own
    assert first(models) == MADE


def test_other_files_have_another_list(models: Path, define: Defined, tmp_path: Path) -> None:
    defined, asked = define
    with_cached_structure(defined, __file__)(models)
    os.utime(models / "one" / "modeling_one.py", ns=(1, 1))
    with_cached_structure(defined, __file__)(models)
    (models / "one" / "processing_one.py").write_text("class Processor: ...")
    with_cached_structure(defined, __file__)(models)
    assert len(asked) == 3
    (source := tmp_path / "import_utils.py").write_text("")
    with_cached_structure(defined, str(source))(models)  # what makes the list is another
    assert len(asked) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', "[" * 200_000, OTHER])
def test_a_damaged_list_is_made_anew(models: Path, define: Defined, damage: str) -> None:
    defined, asked = define
    with_cached_structure(defined, __file__)(models)
    (path,) = (user_cache() / "imports").iterdir()
    whole = path.read_text(encoding="utf-8")
    path.write_text(damage.replace("STATE", json.loads(whole)["state"]), encoding="utf-8")
    assert with_cached_structure(defined, __file__)(models) == MADE and len(asked) == 2
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(whole)


def test_without_a_cache_files_are_read(
    models: Path, define: Defined, monkeypatch: pytest.MonkeyPatch
) -> None:
    defined, asked = define
    monkeypatch.setenv("XDG_CACHE_HOME", str(models / "__init__.py"))
    for count in (1, 2):
        assert with_cached_structure(defined, __file__)(models) == MADE and len(asked) == count
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-of-that-name/cache")
    assert with_cached_structure(defined, __file__)(models) == MADE


def test_folders_of_one_model_are_asked_of_transformers(models: Path, define: Defined) -> None:
    defined, asked = define
    with_cached_structure(defined, __file__)(models / "one")
    with_cached_structure(defined, __file__)(models / "one")
    assert asked == [models / "one"] * 2 and not (user_cache() / "imports").exists()


def test_the_list_is_transformers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.utils.import_utils import define_import_structure

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(transformers.__file__).parent / "models"
    own = define_import_structure(str(folder), prefix="models")
    for _ in range(2):
        assert (
            with_cached_structure(define_import_structure, __file__)(folder, prefix="models") == own
        )


def test_garbage_waits_until_the_block_ends_however_it_ends() -> None:
    with pytest.raises(ImportError), gc_frozen():
        with gc_frozen():
            pass
        assert not gc.isenabled()  # an inner block does not end an outer one
        raise ImportError
    assert gc.isenabled()
