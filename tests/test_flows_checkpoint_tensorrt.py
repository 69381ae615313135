"""TensorRT is no dependency: what is missing of it is said, and what it makes of graphs is kept
apart by all that decides it."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from artifacts.errors import EnvironmentFault
from flows.checkpoint import graphs
from flows.checkpoint.graphs import (
    LIBRARIES,
    check_tensorrt,
    engines_folder,
    missing_libraries,
    tensorrt_version,
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Libraries that open, of a version that may be changed."""
    library = SimpleNamespace(number=101302)
    library.getInferLibVersion = lambda: library.number
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    return library


def test_what_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str) -> object:
        if name == LIBRARIES[1]:
            raise OSError(name)
        return object()

    monkeypatch.setattr(ctypes, "CDLL", opened)
    assert missing_libraries() == [LIBRARIES[1]]
    with pytest.raises(EnvironmentFault, match=f"cannot open {LIBRARIES[1]}") as caught:
        check_tensorrt("cuda:0")
    assert "tensorrt-cu13-libs>=10.9,<11" in str(caught.value.hint)
    with pytest.raises(EnvironmentFault, match="needs a GPU"):
        check_tensorrt("cpu")


def test_one_that_is_there_is_told_by_its_version(installed: SimpleNamespace) -> None:
    check_tensorrt("cuda:0")
    assert not missing_libraries() and tensorrt_version() == "10.13.2"


def test_what_it_makes_is_kept_apart_by_all_that_decides_it(
    installed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(graphs, "driver_version", lambda _: "570.1")
    monkeypatch.setattr(graphs, "device_model", lambda _: "NVIDIA L4")
    monkeypatch.setattr(graphs, "device_capability", lambda _: (8, 9))
    found = [engines_folder(tmp_path, "a" * 64, "cuda:0", 8)]
    assert found == [engines_folder(tmp_path, "a" * 64, "cuda:0", 8)]
    found.append(engines_folder(tmp_path, "b" * 64, "cuda:0", 8))
    found.append(engines_folder(tmp_path, "a" * 64, "cuda:0", 4))
    installed.number = 100900
    found.append(engines_folder(tmp_path, "a" * 64, "cuda:0", 8))
    monkeypatch.setattr(graphs, "device_model", lambda _: "NVIDIA A10")
    found.append(engines_folder(tmp_path, "a" * 64, "cuda:0", 8))
    assert len(set(found)) == 5 and all(path.parent == tmp_path / "engines" for path in found)
