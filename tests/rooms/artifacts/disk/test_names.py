"""What a disk does with names, and the names that are chosen by it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.disk.names import Naming, file_name, file_stems, folded, one_name
from tests.support.odd_disk import CASELESS, ENCRYPTED, FAT, MAC, UNFORMED, WINDOWS, Kind, odd_disk


def stems(*names: str, out: Path) -> list[str]:
    return file_stems(names, Naming(out))


def test_names_that_are_one_on_some_disk_get_numbers(tmp_path: Path) -> None:
    for names, expected in (
        (("Cat.mp4", "cat.mp4"), ["Cat.mp4", "cat.mp4-2"]),
        (("Cat.mp4", "cat.mkv"), ["Cat.mp4", "cat.mkv"]),
        (("A/x.mp4", "a/x.mp4", "a/y.mp4"), ["A/x.mp4", "a/x.mp4-2", "a/y"]),
        (("stra\u00dfe.mp4", "STRASSE.mkv"), ["stra\u00dfe.mp4", "STRASSE.mkv"]),
        (("\u00e9.mp4", "e\u0301.mp4"), ["\u00e9.mp4", "e\u0301.mp4-2"]),
        (("A.TXT/b.mp4", "a.mp4"), ["A.TXT/b", "a-2"]),
        (("\u2764\ufe0f.png", "\u2764.png"), ["\u2764\ufe0f.png", "\u2764.png-2"]),
        (("d. /x.mp4", "d/x.mp4"), ["d. /x.mp4", "d/x.mp4-2"]),
        (("\ufb01.mp4", "fi.mp4"), ["\ufb01.mp4", "fi.mp4-2"]),
    ):
        assert stems(*names, out=tmp_path) == expected
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_what_the_disk_refuses_is_replaced(tmp_path: Path) -> None:
    odd = ("a:b.mp4", "a?b.mp4", "a_b.mkv", "AUX.mp4", "nul.short.mp4", "auxiliary.mp4")
    with odd_disk(tmp_path / "odd", WINDOWS) as disk:
        assert stems(*odd, out=disk) == [
            "a_b.mp4", "a_b.mp4-2", "a_b.mkv", "_AUX", "_nul.short", "auxiliary",
        ]  # fmt: skip
        assert stems("nul/x .mp4", "c\x01d..mp4", out=disk) == ["_nul/x ", "c_d."]
        assert not os.listdir(disk)
    with odd_disk(tmp_path / "ascii", Kind(refused="\u8a9e\u00e9")) as disk:
        names = ("\u8a9e\u00fc.mp4", "\u732b\u00fc.mp4")
        assert stems(*names, out=disk) == ["__.mp4", "__.mp4-2"]


def test_names_fit_a_disk_of_shorter_ones(tmp_path: Path) -> None:
    with odd_disk(tmp_path / "odd", ENCRYPTED) as disk:
        found = stems("x" * 200 + ".mp4", "x" * 201 + ".mp4", "y" * 139 + ".mp4", out=disk)
    assert len(set(found)) == 3 and all(len(stem) <= 139 for stem in found)
    assert found[2] == "y" * 139


def test_media_and_their_folders_keep_their_names(tmp_path: Path) -> None:
    """They are there, whatever their names are."""
    with odd_disk(tmp_path / "odd", WINDOWS) as disk:
        path = f"{disk}/" + "\u8a9e" * 80 + "/Aux/a:b.mp4"
        assert file_stems([path]) == [path.removesuffix(".mp4")]


def test_an_ordinary_disk_changes_no_name(tmp_path: Path) -> None:
    odd = ["\u00e9.mp4", "\u8a9e.mp4", "a:b?.mp4", "aux.mp4", "d. /x .mp4"]
    assert stems(*odd, out=tmp_path) == [name.removesuffix(".mp4") for name in odd]
    name = "a" * 255
    assert file_name(name, tmp_path) == name and file_name(f"{name}.png", tmp_path).endswith(".png")
    assert not os.listdir(tmp_path)
    assert stems(*odd, out=tmp_path / "missing") == stems(*odd, out=tmp_path)


def test_the_files_of_a_killed_process_go_with_the_next(tmp_path: Path) -> None:
    killing = (
        "import os, signal, sys\n"
        "from artifacts.disk import names\n"
        "os.close = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "names.Naming(sys.argv[1]).part('a:b')\n"
    )
    ended = subprocess.run([sys.executable, "-c", killing, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".penstock-")
    assert Naming(tmp_path).part("a:b") == "a:b" and not [*tmp_path.iterdir()]


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", [CASELESS, MAC, UNFORMED, FAT, None])
def test_media_of_a_disk_are_one_where_the_disk_says_so(tmp_path: Path, kind: Kind | None) -> None:
    with odd_disk(tmp_path / "odd", kind or Kind()) as disk:
        (disk / "Caf\u00e9.png").touch()
        names = (f"{disk}/Caf\u00e9", f"{disk}/CAFE\u0301")
        assert (len({*map(Naming().folded, names)}) == 1) == (kind is not None)
        assert os.listdir(disk) == ["caf\u00e9.png" if kind is CASELESS else "Caf\u00e9.png"]


def test_a_file_is_known_by_each_of_its_names(tmp_path: Path) -> None:
    names = ("Caf\u00e9.txt", "cafe\u0301.TXT", "CAF\u00c9.txt")
    assert len({one_name(tmp_path / name) for name in names}) == 1
    assert one_name(tmp_path / "cafe.txt") != one_name(tmp_path / names[0])
    assert folded("\u0130.mp4") == folded("i.mp4") and folded("..") == folded("..")
