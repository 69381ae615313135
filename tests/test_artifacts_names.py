import os
from pathlib import Path

import pytest

from artifacts.files import write_text
from artifacts.names import LONGEST_NAME, SUFFIXES, file_stems


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
