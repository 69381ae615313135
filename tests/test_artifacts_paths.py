import os
from pathlib import Path

import pytest

from artifacts.paths import RealPaths, lies_in


def test_real_paths_are_those_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "folder").symlink_to("a/b")
    (tmp_path / "link").symlink_to("folder/file")
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path / "a")
    real = RealPaths()
    for path in (
        f"{tmp_path}/a/b/file",
        f"{tmp_path}/folder/file",
        f"{tmp_path}/folder/../b/file",
        f"{tmp_path}/link",
        f"{tmp_path}/circle",
        f"{tmp_path}/missing/file",
        f"{tmp_path}/folder/",
        f"{tmp_path}/folder/..",
        "b/file",
        "b",
        ".",
        "/",
    ):
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
